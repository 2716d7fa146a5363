//! Routes of the main table.

use std::fmt;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::{Kind, Result};
use crate::ipam::Cidr;
use crate::netlink::{self, Request};

/// A unicast route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub destination: Cidr,
    /// Next hop.
    pub hop: Hop,
    /// Index of the link; 0 for [`Hop::Unreachable`].
    pub link: u32,
    /// Source address that local senders take.
    pub source: Option<Ipv4Addr>,
}

/// Where a route leads next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// The destination is on the link itself.
    Direct,
    /// A neighbour, which another route says to be on the link.
    Via(Ipv4Addr),
    /// A neighbour on the link whatever other routes say (`onlink`).
    OnLink(Ipv4Addr),
    /// Nowhere: senders are told so at once.
    Unreachable,
}

impl Hop {
    /// The neighbour, if there is one.
    pub fn neighbour(self) -> Option<Ipv4Addr> {
        match self {
            Self::Via(address) | Self::OnLink(address) => Some(address),
            Self::Direct | Self::Unreachable => None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        match self.hop {
            Hop::Unreachable => return f.write_str(" unreachable"),
            Hop::Direct => {}
            Hop::Via(address) => write!(f, " via {address}")?,
            Hop::OnLink(address) => write!(f, " via {address} onlink")?,
        }
        write!(f, " link {}", self.link)?;
        self.source.map_or(Ok(()), |source| write!(f, " src {source}"))
    }
}

/// The route to everywhere.
pub const DEFAULT: &str = "0.0.0.0/0";

/// Adds the route, or puts it in place of the one to the same destination. Idempotent.
pub fn ensure(route: Route) -> Request {
    Request {
        name: format!("RTM_NEWROUTE({route})"),
        message: RouteNetlinkMessage::NewRoute(message(route)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// Removes the route to `destination` on `link` (0: the unreachable one); `ESRCH` when there is none.
pub fn delete(destination: Cidr, link: u32) -> Request {
    let hop = if link == 0 { Hop::Unreachable } else { Hop::Direct };
    let route = Route { destination, hop, link, source: None };
    let mut message = message(route);
    // RT_SCOPE_NOWHERE and protocol 0 mean "any" here.
    message.header.scope = RouteScope::NoWhere;
    message.header.protocol = RouteProtocol::Unspec;
    Request {
        name: format!("RTM_DELROUTE({route})"),
        message: RouteNetlinkMessage::DelRoute(message),
        flags: 0,
    }
}

/// All IPv4 routes of the main table that lead somewhere or are refused.
///
/// # Errors
/// The socket's.
pub fn list(socket: &mut netlink::Route) -> Result<Vec<Route>> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let dump = socket.dump("RTM_GETROUTE", &RouteNetlinkMessage::GetRoute(message))?;
    Ok(dump.iter().filter_map(parse).collect())
}

/// Performs deletions and forgives those whose route is gone already.
///
/// # Errors
/// The first other refusal.
pub fn delete_all(socket: &mut netlink::Route, routes: Vec<Request>) -> Result<usize> {
    let mut deleted = 0;
    for result in socket.batch(routes)? {
        match result {
            Ok(()) => deleted += 1,
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

/// Reads a route out of a message that carries one of the main table.
pub fn parse(message: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let unreachable = match message.header.kind {
        RouteType::Unicast => false,
        RouteType::Unreachable => true,
        _ => return None,
    };
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut network, mut via, mut link, mut source) = (Ipv4Addr::UNSPECIFIED, None, 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => network = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Oif(index) => link = *index,
            _ => {}
        }
    }
    let destination = Cidr::new(network, message.header.destination_prefix_length).ok()?;
    let hop = match via {
        _ if unreachable => Hop::Unreachable,
        None => Hop::Direct,
        Some(via) if message.header.flags.contains(RouteFlags::Onlink) => Hop::OnLink(via),
        Some(via) => Hop::Via(via),
    };
    Some(Route { destination, hop, link, source })
}

fn message(route: Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = route.destination.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = if route.hop == Hop::Direct { RouteScope::Link } else { RouteScope::Universe };
    message.header.kind = RouteType::Unicast;
    match route.hop {
        // The kernel refuses this type with a link.
        Hop::Unreachable => message.header.kind = RouteType::Unreachable,
        Hop::OnLink(_) => message.header.flags = RouteFlags::Onlink,
        Hop::Direct | Hop::Via(_) => {}
    }
    if route.hop != Hop::Unreachable {
        message.attributes.push(RouteAttribute::Oif(route.link));
    }
    if route.destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(route.destination.network())));
    }
    message
        .attributes
        .extend(route.hop.neighbour().map(|via| RouteAttribute::Gateway(RouteAddress::Inet(via))));
    message
        .attributes
        .extend(route.source.map(|source| RouteAttribute::PrefSource(RouteAddress::Inet(source))));
    message
}
