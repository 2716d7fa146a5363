//! Flows that the kernel remembers: forgets those to endpoints that serve no longer.
//!
//! A TCP connection ends by itself. A UDP "connection" is whatever has the same ports within 30 to 120 s, so a client that keeps
//! sending would reach a dead endpoint for ever.

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::error::{Kind, Result};
use crate::namespace::Namespace;
use crate::netlink::{Channel, refused};
use crate::nft::wire::{ACK, Writer};
use crate::service::{Endpoint, Protocol, VirtualPort};

// linux/netfilter/nfnetlink_conntrack.h
const SUBSYSTEM: u16 = 1;
const CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_FILTER: u16 = 25;
// nf_internals.h: which fields of a tuple a filter compares.
const IP_SRC: u32 = 1;
const IP_DST: u32 = 1 << 1;
const PROTO_NUM: u32 = 1 << 3;
const SRC_PORT: u32 = 1 << 4;
const DST_PORT: u32 = 1 << 5;

/// The flows of one namespace.
pub struct Conntrack {
    channel: Channel,
}

impl Conntrack {
    /// Opens a socket that belongs to `namespace` for its whole life.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] when the kernel lacks nfnetlink.
    pub fn open(namespace: &Namespace) -> Result<Self> {
        Ok(Self { channel: Channel::open(namespace, NETLINK_NETFILTER)? })
    }

    /// Forgets the flows from each virtual port to its endpoint, those of protocols without connections only. To be called after
    /// the rules have changed, or new packets would renew the flow. Idempotent; answers how many pairs it asked for.
    ///
    /// One message per pair, filtered by the kernel: a walk over its table, without listing it.
    ///
    /// # Errors
    /// The kernel's refusal. [`Kind::NotFound`] (the table is empty) is success.
    ///
    /// Source: net/netfilter/nf_conntrack_netlink.c, `ctnetlink_flush_conntrack`; kernel 5.8 for `CTA_FILTER`.
    pub fn forget(&mut self, removed: &[(VirtualPort, Endpoint)]) -> Result<usize> {
        let mut asked = 0;
        for (port, endpoint) in removed.iter().filter(|(port, _)| port.protocol == Protocol::Udp) {
            let sequence = self.channel.next_sequence();
            let bytes = message(*port, *endpoint, sequence);
            let name = format!("CT_DELETE({port} to {endpoint})");
            let refusals = self.channel.exchange(&name, &bytes, sequence.wrapping_sub(1), sequence)?;
            if let Some(refusal) = refusals.first() {
                let error = refused(name, refusal);
                if error.kind() != Kind::NotFound {
                    return Err(error);
                }
            }
            asked += 1;
        }
        Ok(asked)
    }
}

fn message(port: VirtualPort, endpoint: Endpoint, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::new();
    // Version 1 makes the kernel read the family (AF_INET).
    writer.message(SUBSYSTEM << 8 | CT_DELETE, ACK, sequence, [2, 1, 0, 0], |w| {
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
    });
    writer.bytes
}
