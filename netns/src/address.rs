//! Addresses on links.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::Result;
use crate::netlink::{Request, Route};

/// An address as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Index of the link that carries it.
    pub link: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
}

/// What an address is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The node's own: senders take it as their source.
    Universe,
    /// To be reached only: the kernel chooses it as the source of nothing, masquerading included.
    Link,
}

/// Puts `address`/32 on a link. Idempotent.
pub fn ensure(link: u32, address: Ipv4Addr, scope: Scope) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = link;
    message.header.scope = match scope {
        Scope::Universe => AddressScope::Universe,
        Scope::Link => AddressScope::Link,
    };
    message.attributes =
        vec![AddressAttribute::Local(IpAddr::V4(address)), AddressAttribute::Address(IpAddr::V4(address))];
    Request {
        name: format!("RTM_NEWADDR({address}/32)"),
        message: RouteNetlinkMessage::NewAddress(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// All IPv4 addresses of the socket's namespace.
///
/// # Errors
/// The socket's.
pub fn list(route: &mut Route) -> Result<Vec<Address>> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let dump = route.dump("RTM_GETADDR", &RouteNetlinkMessage::GetAddress(message))?;
    Ok(dump.iter().filter_map(parse).collect())
}

/// Reads an address out of a message that carries one.
pub fn parse(message: &RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })?;
    Some(Address { link: message.header.index, address, prefix: message.header.prefix_len })
}
