//! Links: the messages that make, mark, find and remove them. Pure but for the reading at the end.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};

use crate::error::{Error, Kind, Result};
use crate::netlink::{Request, Route};

/// A hardware address.
pub type Mac = [u8; 6];

/// The hardware address that belongs to an IPv4 address: locally administered, so it cannot meet a real one, and derived,
/// so neighbours stay right when a link is made anew.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// The hardware address of a node on the link between nodes, from the node's address.
pub fn fabric_mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x59, a, b, c, d]
}

/// What we read of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique within its namespace.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// `IFLA_IFALIAS`: our mark of ownership.
    pub alias: Option<String>,
    /// `IFLA_GROUP`.
    pub group: u32,
    /// Index of the bridge this link is a port of.
    pub controller: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// `bridge`, `veth`, … if the driver has a name.
    pub kind: Option<String>,
    /// Index of a veth's peer, in the peer's namespace.
    pub peer: Option<u32>,
}

/// One end of a veth pair to be created in the socket's namespace; the other is born elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// Bytes, for both ends.
    pub mtu: u32,
    /// `IFLA_GROUP` of this end; 0 is the default group.
    pub group: u32,
    /// Index of the bridge that this end becomes a port of.
    pub bridge: Option<u32>,
    /// Hardware address of this end, or the kernel's choice.
    pub mac: Option<Mac>,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Hardware address of the other end, or the kernel's choice.
    pub peer_mac: Option<Mac>,
    /// Where the other end is born.
    pub peer_namespace: BorrowedFd<'a>,
}

/// Creates a veth pair, this end up. The other end must come up later, from inside: `veth_open` refuses a peer born up
/// with `ENOTCONN`.
///
/// Source: drivers/net/veth.c, `veth_newlink`.
pub fn create_veth(veth: &Veth<'_>) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(veth.peer_name.into()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::NetNsFd(veth.peer_namespace.as_raw_fd()),
    ];
    peer.attributes.extend(veth.peer_mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    let mut message = up_message();
    message.attributes = vec![
        LinkAttribute::IfName(veth.name.into()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::Group(veth.group),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    message.attributes.extend(veth.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    message.attributes.extend(veth.bridge.map(LinkAttribute::Controller));
    Request {
        name: format!("RTM_NEWLINK(veth {} peer {})", veth.name, veth.peer_name),
        message: RouteNetlinkMessage::NewLink(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

/// Creates a bridge, up, with a fixed hardware address: left to itself a bridge takes its lowest port's and changes it
/// as ports come and go, under the feet of everyone's neighbour tables.
pub fn create_bridge(name: &str, mac: Mac, mtu: u32) -> Request {
    let mut message = up_message();
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::StpState(0.into()),
                InfoBridge::MulticastSnooping(false),
            ])),
        ]),
    ];
    Request {
        name: format!("RTM_NEWLINK(bridge {name})"),
        message: RouteNetlinkMessage::NewLink(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

/// Marks a link as someone's. A message of its own: in the creating message the kernel ignores the alias silently.
pub fn set_alias(name: &str, alias: &str) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::IfAlias(alias.into())];
    set(format!("RTM_SETLINK({name} alias)"), attributes, LinkMessage::default())
}

/// Lets a bridge send a frame back out of the port it came in by. Where `net.bridge.bridge-nf-call-iptables` is 1, the bridge
/// itself translates a pod's frame to a virtual IP and delivers it below IP, to the sender too if it is the endpoint.
///
/// Source: net/bridge/br_netfilter_hooks.c, `br_nf_pre_routing_finish` ("bridged-and-DNAT'ed"); net/bridge/br_forward.c.
pub fn set_hairpin(name: &str) -> Request {
    let port = vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ];
    let attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::LinkInfo(port)];
    // IFLA_INFO_SLAVE_DATA is read by RTM_NEWLINK only.
    let mut request = set(format!("RTM_NEWLINK({name} hairpin)"), attributes, LinkMessage::default());
    if let RouteNetlinkMessage::SetLink(message) = request.message {
        request.message = RouteNetlinkMessage::NewLink(message);
    }
    request
}

/// Brings a link up.
pub fn set_up(name: &str) -> Request {
    set(format!("RTM_SETLINK({name} up)"), vec![LinkAttribute::IfName(name.into())], up_message())
}

/// Takes a link down. A port's other end loses its carrier.
pub fn set_down(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.change_mask = LinkFlags::Up;
    set(format!("RTM_SETLINK({name} down)"), vec![LinkAttribute::IfName(name.into())], message)
}

/// Makes a link a port of a bridge.
pub fn set_bridge(name: &str, bridge: u32) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Controller(bridge)];
    set(format!("RTM_SETLINK({name} master {bridge})"), attributes, LinkMessage::default())
}

/// Moves a link into a group.
pub fn set_group(name: &str, group: u32) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Group(group)];
    set(format!("RTM_SETLINK({name} group {group:#x})"), attributes, LinkMessage::default())
}

/// Removes a link; a veth takes its peer along. About 20 ms, which the kernel spends waiting for readers: see
/// [`delete_group`].
pub fn delete(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.into())];
    Request { name: format!("RTM_DELLINK({name})"), message: RouteNetlinkMessage::DelLink(message), flags: 0 }
}

/// Removes all links of a group in one go: the kernel waits for readers once, not once per link.
pub fn delete_group(group: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::Group(group)];
    Request {
        name: format!("RTM_DELLINK(group {group:#x})"),
        message: RouteNetlinkMessage::DelLink(message),
        flags: 0,
    }
}

/// All links of the socket's namespace.
///
/// # Errors
/// The socket's.
pub fn list(route: &mut Route) -> Result<Vec<Link>> {
    let dump = route.dump("RTM_GETLINK", &RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(dump.into_iter().filter_map(|message| parse(&message)).collect())
}

/// The link of that name, if there is one.
///
/// # Errors
/// The socket's.
pub fn find(route: &mut Route, name: &str) -> Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.into())];
    match route.get_one(&format!("RTM_GETLINK({name})"), &RouteNetlinkMessage::GetLink(message)) {
        Ok(message) => Ok(parse(&message)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until these links really carry what is sent by them. A carrier that came is put to use by deferred work; what is sent before is
/// lost, which costs a TCP connection a second. Asked about one link, the kernel does that work first (since Linux 6.8; older
/// ones do it a little later).
///
/// Source: net/core/rtnetlink.c, `rtnl_getlink`; net/core/link_watch.c.
///
/// # Errors
/// The socket's.
pub fn settle(route: &mut Route, names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| find(route, name).map(drop))
}

/// Reads a link out of a message that carries one.
pub fn parse(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) if !alias.is_empty() => link.alias = Some(alias.clone()),
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address) => link.mac = address.as_slice().try_into().ok(),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}

/// Refuses names that the kernel would refuse or cut.
///
/// # Errors
/// [`Kind::Invalid`].
pub fn check_name(name: &str) -> Result<()> {
    let fine = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
    if fine {
        Ok(())
    } else {
        Err(Error::new(Kind::Invalid, format!("{name:?} is no link name of at most 15 bytes")))
    }
}

fn set(name: String, attributes: Vec<LinkAttribute>, mut message: LinkMessage) -> Request {
    message.attributes = attributes;
    Request { name, message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}

fn up_message() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}
