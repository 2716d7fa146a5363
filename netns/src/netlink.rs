//! A small blocking netlink socket: one send for many messages, one acknowledgement, errors by message.
//!
//! The kernel handles a request inside `sendmsg`, so when it returns the answers are queued; nothing here waits for an
//! event. The receive timeout only guards against our own mistakes.

use std::os::fd::AsFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{Error, Kind, Result};
use crate::namespace::Namespace;

const ANSWER_TIMEOUT_SECS: i64 = 10;
const RECEIVE_BYTES_MAX: usize = 1 << 18;
const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A routing request: what it is called in errors and journals, and the message.
#[derive(Clone, Debug)]
pub struct Request {
    /// Like strace would show it: `RTM_NEWLINK(v0011aabb)`.
    pub name: String,
    /// The message.
    pub message: RouteNetlinkMessage,
    /// `NLM_F_CREATE` and the like; `NLM_F_REQUEST` is added.
    pub flags: u16,
}

/// One message the kernel refused.
#[derive(Debug)]
pub struct Refusal {
    /// Sequence number of the message.
    pub sequence: u32,
    /// Why.
    pub errno: Errno,
    /// The kernel's words, if it had any (`NLMSGERR_ATTR_MSG`).
    pub text: Option<String>,
}

/// A raw netlink socket of one protocol.
pub struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// Opens a socket that belongs to `namespace` for its whole life.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] when the kernel lacks the protocol.
    pub fn open(namespace: &Namespace, protocol: isize) -> Result<Self> {
        let socket = namespace
            .run(|| {
                let mut socket = Socket::new(protocol)?;
                socket.bind_auto()?;
                socket.connect(&SocketAddr::new(0, 0))?;
                Ok::<_, std::io::Error>(socket)
            })?
            .map_err(|error| Error::io(format!("socket(AF_NETLINK, {protocol})"), error))?;
        let option =
            |result: std::io::Result<()>| result.map_err(|error| Error::io("setsockopt(SOL_NETLINK)", error));
        option(socket.set_cap_ack(true))?;
        option(socket.set_ext_ack(true))?;
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_SECS))
            .map_err(|errno| Error::sys("setsockopt(SO_RCVTIMEO)", errno))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BYTES_MAX) })
    }

    /// The next unused sequence number.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Leaves the numbers before `sequence` to a batch that numbered its messages itself.
    pub(crate) fn skip_to(&mut self, sequence: u32) {
        self.sequence = sequence;
    }

    /// Makes room for a batch of `bytes` in the socket's send buffer (the whole batch is one datagram).
    ///
    /// # Errors
    /// [`Kind::Denied`] without `CAP_NET_ADMIN`.
    pub fn reserve(&mut self, bytes: usize) -> Result<()> {
        // The kernel counts its own bookkeeping too and doubles what it is told.
        setsockopt(&self.socket.as_fd(), sockopt::SndBufForce, &(bytes + (1 << 16)))
            .map_err(|errno| Error::sys("setsockopt(SO_SNDBUFFORCE)", errno))
    }

    /// Sends messages already encoded, numbered from `begin + 1` to `last`, and collects refusals until the answer to `last`
    /// (which must ask for one) arrives. A refusal of `begin` ends it too: nfnetlink refuses a whole batch that way.
    ///
    /// # Errors
    /// The socket's own; refusals are the `Ok` value.
    pub fn exchange(&mut self, call: &str, bytes: &[u8], begin: u32, last: u32) -> Result<Vec<Refusal>> {
        self.send(call, bytes)?;
        let mut refusals = Vec::new();
        loop {
            let mut done = false;
            self.receive(call, |kind, sequence, flags, payload| {
                // Answers to an exchange that ended early are stale.
                if kind != NLMSG_ERROR || !(begin..=last).contains(&sequence) {
                    return;
                }
                let code =
                    payload.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
                if code != 0 {
                    let text = extended_text(flags, payload);
                    refusals.push(Refusal { sequence, errno: Errno::from_raw(-code), text });
                }
                done |= sequence == last || (sequence == begin && code != 0);
            })?;
            if done {
                return Ok(refusals);
            }
        }
    }

    /// Sends one dump request already encoded and hands each part to `part` as (message type, payload).
    ///
    /// # Errors
    /// The kernel's refusal; [`Kind::Busy`] when the objects changed meanwhile (`NLM_F_DUMP_INTR`): dump again.
    pub fn dump(&mut self, call: &str, bytes: &[u8], mut part: impl FnMut(u16, &[u8])) -> Result<()> {
        const NLM_F_DUMP_INTR: u16 = 0x10;
        self.send(call, bytes)?;
        let mut torn = false;
        loop {
            let mut end = None;
            self.receive(call, |kind, _, flags, payload| {
                torn |= flags & NLM_F_DUMP_INTR != 0;
                match kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        end = Some(
                            payload
                                .get(..4)
                                .and_then(|code| code.try_into().ok())
                                .map_or(0, i32::from_ne_bytes),
                        );
                    }
                    _ => part(kind, payload),
                }
            })?;
            match end {
                None => {}
                Some(0) if torn => {
                    return Err(Error::new(Kind::Busy, format!("{call}: changed while reading")));
                }
                Some(0) => return Ok(()),
                Some(code) => return Err(Error::sys(call, Errno::from_raw(-code))),
            }
        }
    }

    fn send(&mut self, call: &str, bytes: &[u8]) -> Result<()> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(sent) => {
                    return Err(Error::new(
                        Kind::Internal,
                        format!("{call}: {sent} of {} bytes sent", bytes.len()),
                    ));
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(Error::io(format!("sendto(AF_NETLINK, {call})"), error)),
            }
        }
    }

    /// One datagram; `each` gets (type, sequence, flags, payload) of every message in it.
    fn receive(&mut self, call: &str, mut each: impl FnMut(u16, u32, u16, &[u8])) -> Result<()> {
        self.buffer.clear();
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => break,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(Error::io(format!("recvfrom(AF_NETLINK, {call})"), error)),
            }
        }
        let mut rest = self.buffer.as_slice();
        while rest.len() >= HEADER_BYTES {
            let length = usize::try_from(u32_at(rest, 0)).unwrap_or(0);
            if length < HEADER_BYTES || length > rest.len() {
                return Err(Error::new(Kind::Internal, format!("{call}: malformed answer")));
            }
            let (kind, flags) = (u16_at(rest, 4), u16_at(rest, 6));
            each(kind, u32_at(rest, 8), flags, &rest[HEADER_BYTES..length]);
            rest = rest.get((length + 3) & !3..).unwrap_or(&[]);
        }
        Ok(())
    }
}

/// A routing socket: links, addresses, routes.
pub struct Route {
    channel: Channel,
}

impl Route {
    /// Opens a routing socket that belongs to `namespace` for its whole life.
    ///
    /// # Errors
    /// As [`Channel::open`].
    pub fn open(namespace: &Namespace) -> Result<Self> {
        Ok(Self { channel: Channel::open(namespace, NETLINK_ROUTE)? })
    }

    /// Performs all requests in one send, in order; a refused one does not stop the later ones. The answer has one entry
    /// per request.
    ///
    /// # Errors
    /// Only the socket's own.
    pub fn batch(&mut self, requests: Vec<Request>) -> Result<Vec<Result<()>>> {
        let Some(last_index) = requests.len().checked_sub(1) else { return Ok(Vec::new()) };
        let mut bytes = Vec::with_capacity(256 * requests.len());
        let begin = self.channel.next_sequence();
        let mut last = begin;
        let mut names = Vec::with_capacity(requests.len());
        for (index, request) in requests.into_iter().enumerate() {
            last = self.channel.next_sequence();
            let ack = if index == last_index { NLM_F_ACK } else { 0 };
            encode(&mut bytes, request.message, NLM_F_REQUEST | ack | request.flags, last);
            names.push(request.name);
        }
        let call = if names.len() == 1 {
            names[0].clone()
        } else {
            format!("{} and {} more", names[0], names.len() - 1)
        };
        let mut refusals: Vec<Option<Refusal>> = Vec::new();
        refusals.resize_with(names.len(), || None);
        for refusal in self.channel.exchange(&call, &bytes, begin, last)? {
            let index = refusal.sequence.wrapping_sub(begin + 1) as usize;
            if let Some(slot) = refusals.get_mut(index) {
                *slot = Some(refusal);
            }
        }
        Ok(names
            .into_iter()
            .zip(refusals)
            .map(|(name, refusal)| refusal.map_or(Ok(()), |refusal| Err(refused(name, &refusal))))
            .collect())
    }

    /// Performs one request.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn perform(&mut self, request: Request) -> Result<()> {
        self.batch(vec![request])?.pop().unwrap_or(Ok(()))
    }

    /// Performs all requests in one send and reports the first refusal.
    ///
    /// # Errors
    /// The first refusal; the other requests were tried all the same.
    pub fn perform_all(&mut self, requests: Vec<Request>) -> Result<()> {
        self.batch(requests)?.into_iter().collect()
    }

    /// Everything the kernel lists for a `Get…` message.
    ///
    /// # Errors
    /// As [`Channel::dump`]; torn dumps are repeated a few times.
    pub fn dump(&mut self, name: &str, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..10 {
            match self.get(name, message, NLM_F_DUMP) {
                Err(error) if error.kind() == Kind::Busy => {}
                other => return other,
            }
        }
        self.get(name, message, NLM_F_DUMP)
    }

    /// The one object a `Get…` message names.
    ///
    /// # Errors
    /// [`Kind::NotFound`] and the like.
    pub fn get_one(&mut self, name: &str, message: &RouteNetlinkMessage) -> Result<RouteNetlinkMessage> {
        // With an acknowledgement the answer ends like a dump does.
        let found = self.get(name, message, NLM_F_ACK)?.pop();
        found.ok_or_else(|| Error::new(Kind::Internal, format!("{name}: no answer")))
    }

    fn get(
        &mut self,
        name: &str,
        message: &RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let sequence = self.channel.next_sequence();
        let mut bytes = Vec::new();
        encode(&mut bytes, message.clone(), NLM_F_REQUEST | flags, sequence);
        let mut found = Vec::new();
        self.channel.dump(name, &bytes, |kind, payload| {
            let mut header = NetlinkHeader::default();
            header.message_type = kind;
            // What the decoder does not know cannot concern us: an exotic link is not one of ours.
            if let Ok(message) = RouteNetlinkMessage::deserialize(&header, payload) {
                found.push(message);
            }
        })?;
        Ok(found)
    }
}

/// Words for a refusal.
pub fn refused(name: String, refusal: &Refusal) -> Error {
    let name = refusal.text.as_ref().map_or_else(|| name.clone(), |text| format!("{name} ({text})"));
    Error::sys(name, refusal.errno)
}

fn encode(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    header.message_type = message.message_type();
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + ((message.buffer_len() + 3) & !3), 0);
    let end = start + message.buffer_len();
    message.serialize(&mut bytes[start..end]);
}

/// The kernel's own words in an acknowledgement (`NETLINK_EXT_ACK`). Source: netlink(7), linux/netlink.h.
fn extended_text(flags: u16, payload: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let echoed =
        if flags & NLM_F_CAPPED == 0 { usize::try_from(u32_at(payload, 4)).ok()? } else { HEADER_BYTES };
    let mut rest = payload.get(4 + ((echoed + 3) & !3)..)?;
    while rest.len() >= 4 {
        let (length, kind) = (usize::from(u16_at(rest, 0)), u16_at(rest, 2));
        let value = rest.get(4..length)?;
        if kind & 0x3fff == NLMSGERR_ATTR_MSG {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        rest = rest.get((length + 3) & !3..)?;
    }
    None
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}
