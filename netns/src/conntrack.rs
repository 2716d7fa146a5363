//! Flows that the kernel remembers: forgets those to endpoints that serve no longer.
//!
//! A TCP connection ends by itself. A UDP "connection" is whatever has the same ports within 30 to 120 s, so a client that keeps
//! sending would reach a dead endpoint for ever.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::error::{Error, Kind, Result};
use crate::namespace::Namespace;
use crate::netlink::{Channel, refused};
use crate::nft::wire::{ACK, DUMP, IP, Writer, find};
use crate::service::{Endpoint, Protocol, VirtualPort};

// linux/netfilter/nfnetlink_conntrack.h
const SUBSYSTEM: u16 = 1;
const CT_NEW: u16 = 0;
const CT_GET: u16 = 1;
const CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
// nf_internals.h: which fields of a tuple a filter compares.
const IP_SRC: u32 = 1;
const IP_DST: u32 = 1 << 1;
const PROTO_NUM: u32 = 1 << 3;
const SRC_PORT: u32 = 1 << 4;
const DST_PORT: u32 = 1 << 5;

/// Flows of one list that are kept in memory; the others wait for the next list.
const FLOWS_MAX: usize = 16_384;
const LISTS_MAX: usize = 256;
/// Deletes in one send: all of them refused still fit into the receive buffer.
const DELETES_MAX: usize = 64;

type Pair = (VirtualPort, Endpoint);

/// How flows are found: the best way first, each next one for an older kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel deletes what matches a filter. Newer than Linux 6.8: 6.1 answers `EINVAL`, 6.18 does it.
    FilteredDelete,
    /// The kernel lists what matches a filter (5.8); each flow is deleted by its original tuple.
    FilteredList,
    /// The kernel lists everything.
    List,
}

/// The flows of one namespace.
pub struct Conntrack {
    channel: Channel,
    /// The best way that this kernel has not refused yet.
    way: Way,
}

impl Conntrack {
    /// Opens a socket that belongs to `namespace` for its whole life.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] when the kernel lacks nfnetlink.
    pub fn open(namespace: &Namespace) -> Result<Self> {
        Ok(Self { channel: Channel::open(namespace, NETLINK_NETFILTER)?, way: Way::FilteredDelete })
    }

    /// Works as on a kernel that knows no better way, for tests.
    #[doc(hidden)]
    pub fn downgrade(&mut self, way: Way) {
        self.way = way;
    }

    /// The way in use, for tests.
    #[doc(hidden)]
    pub fn way(&self) -> Way {
        self.way
    }

    /// Forgets the flows from each virtual port to its endpoint, those of protocols without connections only. To be called after
    /// the rules have changed, or new packets would renew the flow. Idempotent; answers how many pairs it asked for.
    ///
    /// One message per pair, filtered by the kernel: a walk over its table, without listing it. A kernel that cannot (see [`Way`])
    /// lists its UDP flows once for all pairs, and what matches is deleted flow by flow.
    ///
    /// # Errors
    /// The kernel's refusal. [`Kind::NotFound`] (the table is empty, the flow is gone) is success. [`Kind::Busy`] when flows come
    /// faster than they go.
    ///
    /// Source: net/netfilter/nf_conntrack_netlink.c, `ctnetlink_del_conntrack`, `ctnetlink_alloc_filter`.
    pub fn forget(&mut self, removed: &[Pair]) -> Result<usize> {
        let pairs: BTreeSet<Pair> =
            removed.iter().filter(|(port, _)| port.protocol == Protocol::Udp).copied().collect();
        let done = pairs.is_empty() || (self.way == Way::FilteredDelete && self.delete_filtered(&pairs)?);
        if !done {
            self.delete_listed(&pairs)?;
        }
        Ok(pairs.len())
    }

    /// `false`, and never again, when this kernel does not filter deletes.
    fn delete_filtered(&mut self, pairs: &BTreeSet<Pair>) -> Result<bool> {
        for pair in pairs {
            let sequence = self.channel.next_sequence();
            let mut writer = Writer::new();
            // Version 1 makes the kernel read the family (AF_INET).
            writer.message(SUBSYSTEM << 8 | CT_DELETE, ACK, sequence, [2, 1, 0, 0], |w| filter_pair(w, pair));
            let name = format!("CT_DELETE({} to {})", pair.0, pair.1);
            let refusals = self.channel.exchange(&name, &writer.bytes, sequence.wrapping_sub(1), sequence)?;
            match refusals.first().map(|refusal| refused(name, refusal)) {
                // An older kernel ignores the filter and finds the tuple incomplete.
                Some(error) if cannot(&error) => {
                    self.way = Way::FilteredList;
                    return Ok(false);
                }
                Some(error) if error.kind() != Kind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(true)
    }

    fn delete_listed(&mut self, pairs: &BTreeSet<Pair>) -> Result<()> {
        for _ in 0..LISTS_MAX {
            let flows = self.list(pairs)?;
            self.delete(&flows)?;
            if flows.len() < FLOWS_MAX {
                return Ok(());
            }
        }
        Err(Error::new(Kind::Busy, "forget UDP flows: they come faster than they go"))
    }

    /// Up to [`FLOWS_MAX`] flows of `pairs`.
    fn list(&mut self, pairs: &BTreeSet<Pair>) -> Result<Vec<Flow>> {
        let mut writer = Writer::new();
        let sequence = self.channel.next_sequence();
        writer.message(SUBSYSTEM << 8 | CT_GET, DUMP, sequence, IP, |w| match pairs.first() {
            _ if self.way == Way::List => {}
            Some(pair) if pairs.len() == 1 => filter_pair(w, pair),
            _ => filter_udp(w),
        });
        let mut flows = Vec::new();
        let listed = self.channel.dump("CT_GET", &writer.bytes, |kind, payload| {
            // Whatever the kernel filtered, only a flow of ours is touched.
            if kind == SUBSYSTEM << 8 | CT_NEW
                && flows.len() < FLOWS_MAX
                && let Some(flow) = Flow::parse(payload)
                && pairs.contains(&flow.pair())
            {
                flows.push(flow);
            }
        });
        match listed {
            Err(error) if cannot(&error) && self.way != Way::List => {
                self.way = Way::List;
                self.list(pairs)
            }
            other => other.map(|()| flows),
        }
    }

    fn delete(&mut self, flows: &[Flow]) -> Result<()> {
        for flows in flows.chunks(DELETES_MAX) {
            let begin = self.channel.next_sequence();
            let mut last = begin;
            let mut writer = Writer::new();
            for (index, flow) in flows.iter().enumerate() {
                last = self.channel.next_sequence();
                let flags = if index + 1 == flows.len() { ACK } else { 0 };
                writer.message(SUBSYSTEM << 8 | CT_DELETE, flags, last, [2, 1, 0, 0], |w| flow.name(w));
            }
            let name = format!("CT_DELETE({} flows)", flows.len());
            let refusals = self.channel.exchange(&name, &writer.bytes, begin, last)?;
            if let Some(refusal) = refusals.iter().find(|refusal| refusal.errno != Errno::ENOENT) {
                return Err(refused(name, refusal));
            }
        }
        Ok(())
    }
}

/// The words of a kernel that lacks a filter.
fn cannot(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP))
}

fn filter_pair(w: &mut Writer, (port, endpoint): &Pair) {
    let protocol = [port.protocol as u8];
    w.nest(CTA_TUPLE_ORIG, |w| {
        w.nest(1, |w| w.attribute(2, &port.address.octets()));
        w.nest(2, |w| {
            w.attribute(1, &protocol);
            w.attribute(3, &port.port.to_be_bytes());
        });
    });
    w.nest(CTA_TUPLE_REPLY, |w| {
        w.nest(1, |w| w.attribute(1, &endpoint.address.octets()));
        w.nest(2, |w| {
            w.attribute(1, &protocol);
            w.attribute(2, &endpoint.port.to_be_bytes());
        });
    });
    w.nest(CTA_FILTER, |w| {
        w.attribute(1, &(IP_DST | PROTO_NUM | DST_PORT).to_ne_bytes());
        w.attribute(2, &(IP_SRC | PROTO_NUM | SRC_PORT).to_ne_bytes());
    });
}

fn filter_udp(w: &mut Writer) {
    w.nest(CTA_TUPLE_ORIG, |w| w.nest(2, |w| w.attribute(1, &[Protocol::Udp as u8])));
    w.nest(CTA_FILTER, |w| w.attribute(1, &PROTO_NUM.to_ne_bytes()));
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: [u8; 4],
    destination: [u8; 4],
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

impl Tuple {
    /// `None` unless it is a whole one, of UDP over IPv4.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (ip, transport) = (find(bytes, 1)?, find(bytes, 2)?);
        if find(transport, 1)? != [Protocol::Udp as u8] {
            return None;
        }
        Some(Self {
            source: find(ip, 1)?.try_into().ok()?,
            destination: find(ip, 2)?.try_into().ok()?,
            source_port: find(transport, 2)?.try_into().ok()?,
            destination_port: find(transport, 3)?.try_into().ok()?,
        })
    }

    fn encode(&self, w: &mut Writer) {
        w.nest(1, |w| {
            w.attribute(1, &self.source);
            w.attribute(2, &self.destination);
        });
        w.nest(2, |w| {
            w.attribute(1, &[Protocol::Udp as u8]);
            w.attribute(2, &self.source_port);
            w.attribute(3, &self.destination_port);
        });
    }
}

/// A UDP flow as the kernel lists it. Conntrack zones are not ours: such a flow is listed, but not found when deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    original: Tuple,
    reply: Tuple,
    /// Spares a later flow with the same tuple.
    id: Option<[u8; 4]>,
}

impl Flow {
    /// From a message past its netlink header. Bytes that make no sense are no flow.
    fn parse(payload: &[u8]) -> Option<Self> {
        let bytes = payload.get(IP.len()..)?;
        Some(Self {
            original: Tuple::parse(find(bytes, CTA_TUPLE_ORIG)?)?,
            reply: Tuple::parse(find(bytes, CTA_TUPLE_REPLY)?)?,
            id: find(bytes, CTA_ID).and_then(|id| id.try_into().ok()),
        })
    }

    /// What the client called and who answers.
    fn pair(&self) -> Pair {
        let port = VirtualPort {
            address: Ipv4Addr::from(self.original.destination),
            protocol: Protocol::Udp,
            port: u16::from_be_bytes(self.original.destination_port),
        };
        let endpoint = Endpoint {
            address: Ipv4Addr::from(self.reply.source),
            port: u16::from_be_bytes(self.reply.source_port),
        };
        (port, endpoint)
    }

    /// What the kernel needs to find it.
    fn name(&self, w: &mut Writer) {
        w.nest(CTA_TUPLE_ORIG, |w| self.original.encode(w));
        if let Some(id) = &self.id {
            w.attribute(CTA_ID, id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_survive_hostile_bytes() {
        let flow = Flow {
            original: Tuple {
                source: [10, 244, 0, 2],
                destination: [10, 96, 0, 10],
                source_port: 4000_u16.to_be_bytes(),
                destination_port: 53_u16.to_be_bytes(),
            },
            reply: Tuple {
                source: [10, 244, 0, 3],
                destination: [10, 244, 0, 2],
                source_port: 8080_u16.to_be_bytes(),
                destination_port: 4000_u16.to_be_bytes(),
            },
            id: Some([1, 2, 3, 4]),
        };
        let mut writer = Writer::new();
        writer.bytes.extend(IP);
        flow.name(&mut writer);
        writer.nest(CTA_TUPLE_REPLY, |w| flow.reply.encode(w));
        let bytes = writer.bytes;
        assert_eq!(Flow::parse(&bytes), Some(flow));
        let (port, endpoint) = flow.pair();
        assert_eq!(
            (port.to_string(), endpoint.to_string()),
            ("10.96.0.10:53/udp".into(), "10.244.0.3:8080".into())
        );
        for cut in 0..bytes.len() - 4 {
            assert_eq!(Flow::parse(&bytes[..cut]), None, "cut at {cut}");
        }
        // No byte may make it panic or run for ever.
        for at in 0..bytes.len() {
            for value in [0, 1, 3, 4, 5, 6, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                std::hint::black_box(Flow::parse(&bytes));
            }
        }
        let mut tcp = bytes.clone();
        let udp = tcp.windows(5).position(|window| window == [5, 0, 1, 0, 17]).unwrap();
        tcp[udp + 4] = Protocol::Tcp as u8;
        assert_eq!(Flow::parse(&tcp), None);
    }
}
