//! What a node's network lacks. Pure: (wished, observed) → actions, in the order that the kernel needs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use crate::address::{Address, Scope};
use crate::error::{Error, Kind, Result};
use crate::ipam::Cidr;
use crate::link::{Link, Mac, fabric_mac_of, mac_of};
use crate::route::{Hop, Route};

mod wish;

pub use wish::{FabricLink, HostLink, Hub, NodeNet, Uplink};
pub(crate) use wish::{port_address, port_prefix};

/// Which namespace an action takes place in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The node's.
    Node,
    /// The host's, or what stands for it in an isolated yard.
    Host,
    /// That of the node with the link to the host.
    Hub,
}

/// What there is in one namespace.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// All links.
    pub links: Vec<Link>,
    /// All IPv4 addresses.
    pub addresses: Vec<Address>,
    /// All IPv4 unicast routes of the main table.
    pub routes: Vec<Route>,
    /// Values of [`SYSCTLS`] and of the bridge's, by path beneath `/proc/sys/net`; absent ones are missing.
    pub sysctls: BTreeMap<String, String>,
}

/// One step towards the wish. Links go by name, because an index is known only once the link exists.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the like-named request")]
pub enum Action {
    /// Writes a file beneath `/proc/sys/net` of the node's namespace.
    Sysctl {
        path: String,
        value: String,
    },
    /// Removes a half of a pair whose other half is gone or wrong.
    DeleteLink {
        place: Place,
        link: String,
    },
    CreateBridge {
        name: String,
        mac: Mac,
        mtu: u32,
    },
    /// One end at `place`, a port of `bridge` if there is one; the other, the uplink, in the node's namespace.
    CreateVeth {
        place: Place,
        link: String,
        bridge: Option<String>,
        uplink: String,
        uplink_mac: Option<Mac>,
        mtu: u32,
    },
    SetBridge {
        place: Place,
        link: String,
        bridge: String,
    },
    SetAlias {
        place: Place,
        link: String,
        alias: String,
    },
    SetUp {
        place: Place,
        link: String,
    },
    AddAddress {
        place: Place,
        link: String,
        address: Ipv4Addr,
        scope: Scope,
    },
    /// Without a link only for [`Hop::Unreachable`].
    AddRoute {
        place: Place,
        link: Option<String>,
        destination: Cidr,
        hop: Hop,
        source: Option<Ipv4Addr>,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl { path, value } => write!(f, "node: write {value} to /proc/sys/net/{path}"),
            Self::DeleteLink { place, link } => write!(f, "{place}: delete link {link}"),
            Self::CreateBridge { name, .. } => write!(f, "node: create bridge {name}"),
            Self::CreateVeth { place, link, uplink, .. } => {
                write!(f, "{place}: create veth {link}, its peer {uplink} in node")
            }
            Self::SetBridge { place, link, bridge } => {
                write!(f, "{place}: make link {link} a port of {bridge}")
            }
            Self::SetAlias { place, link, alias } => write!(f, "{place}: mark link {link} as {alias}"),
            Self::SetUp { place, link } => write!(f, "{place}: set link {link} up"),
            Self::AddAddress { place, link, address, .. } => {
                write!(f, "{place}: add address {address}/32 to {link}")
            }
            Self::AddRoute { place, link, destination, hop, .. } => {
                write!(f, "{place}: add route {destination}")?;
                match hop {
                    Hop::Direct => {}
                    Hop::Via(via) => write!(f, " via {via}")?,
                    Hop::OnLink(via) => write!(f, " via {via} onlink")?,
                    Hop::Unreachable => f.write_str(" unreachable")?,
                }
                link.as_ref().map_or(Ok(()), |link| write!(f, " link {link}"))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Host => "host",
            Self::Hub => "hub",
        })
    }
}

/// What a node's namespace needs, beneath `/proc/sys/net`. A new namespace may inherit the host's settings
/// (`net.core.devconf_inherit_init_net`), so those that matter are written even where zero is the kernel's default.
/// Files that this kernel lacks are passed over, except the first.
pub const SYSCTLS: [(&str, &str); 7] = [
    ("ipv4/ip_forward", "1"),
    // Pods are /32 on one bridge: each forwarded packet leaves where it came in, which would earn a redirect.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    // The link to the host has no address of its own: it must answer for the bridge's.
    ("ipv4/conf/all/arp_ignore", "0"),
    ("ipv4/conf/default/arp_ignore", "0"),
    // Where br_netfilter is loaded: frames would be translated and delivered below IP, unseen by the forward hook. The data
    // path works either way (see `link::set_hairpin`), because the module may come later, with 1 for everyone.
    ("bridge/bridge-nf-call-iptables", "0"),
    // Nothing speaks IPv6 here yet; without this each link sends router solicitations and multicast reports.
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// The sysctl of the bridge itself; the kernel takes the logical or of this and `all`.
pub fn bridge_sysctl(bridge: &str) -> (String, &'static str) {
    (format!("ipv4/conf/{bridge}/send_redirects"), "0")
}

/// What is lacking. Empty when all is as wished. `outer` is what there is at the other end of the uplink.
///
/// # Errors
/// [`Kind::AlreadyExists`] for a link of someone else's under our name, [`Kind::Conflict`] for a route there into our CIDRs,
/// [`Kind::NotFound`] for a hub without its bridge, [`Kind::Invalid`] for a wish that cannot work.
pub fn plan(wish: &NodeNet, node: &Observed, outer: &Observed) -> Result<Vec<Action>> {
    wish.validate()?;
    let mut plan = Planner { wish, actions: Vec::new() };
    for (path, value) in SYSCTLS {
        let there = node.sysctls.get(path).map(String::as_str);
        if there != Some(value) && (there.is_some() || path == SYSCTLS[0].0) {
            plan.actions.push(Action::Sysctl { path: path.into(), value: value.into() });
        }
    }
    // The node's own packets to itself go by loopback, a refusal of its own connection among them.
    if node.find("lo").is_some_and(|lo| !lo.up) {
        plan.actions.push(Action::SetUp { place: Place::Node, link: "lo".into() });
    }
    let bridge = plan.bridge(node, &wish.bridge, mac_of(wish.gateway))?;
    plan.up(Place::Node, bridge, &wish.bridge);
    plan.address(node, bridge, wish.gateway, Scope::Universe);
    if let Some(dns) = wish.dns {
        plan.address(node, bridge, dns, Scope::Link);
    }
    match &wish.uplink {
        Uplink::Host(link) => plan.host(link, node, outer)?,
        Uplink::Fabric(link) => plan.fabric(link, node, outer)?,
    }
    let (path, value) = bridge_sysctl(&wish.bridge);
    // A new bridge takes over `default`, which is right by then.
    if bridge.is_some() && node.sysctls.get(&path).is_some_and(|there| there != value) {
        plan.actions.push(Action::Sysctl { path, value: value.into() });
    }
    Ok(plan.actions)
}

/// The outer end of the uplink, as wished.
struct Outer<'a> {
    place: Place,
    name: &'a str,
    alias: String,
    bridge: Option<&'a Link>,
}

struct Planner<'a> {
    wish: &'a NodeNet,
    actions: Vec<Action>,
}

impl Planner<'_> {
    /// The uplink to the host, and the bridge of a hub.
    fn host(&mut self, link: &HostLink, node: &Observed, host: &Observed) -> Result<()> {
        let wish = self.wish;
        let (gateway, host_address) = (wish.gateway, link.host_address);
        let outer = Outer { place: Place::Host, name: &link.host_link, alias: wish.alias(), bridge: None };
        let (uplink, host_link) = self.veth(&link.name, None, &outer, node, host)?;
        let mut routed = vec![wish.pod_cidr, wish.service_cidr];
        let hub = match &link.hub {
            Hub::Ready(name) => Some(name),
            Hub::Lazy(name) => node.find(name).map(|_| name),
            Hub::No => None,
        };
        routed.extend(hub.map(|_| wish.cluster_cidr));
        check_host(&routed, host, host_link)?;

        self.up(Place::Node, uplink, &link.name);
        let out = |destination, hop| (destination, hop, Some(gateway));
        self.route(Place::Node, node, uplink, &link.name, out(Cidr::single(host_address), Hop::Direct));
        self.route(Place::Node, node, uplink, &link.name, out(everywhere(), Hop::Via(host_address)));
        self.up(Place::Host, host_link, &link.host_link);
        if !host_link.is_some_and(|link| host.has_address(link, host_address)) {
            let link = link.host_link.clone();
            let (address, scope) = (host_address, Scope::Universe);
            self.actions.push(Action::AddAddress { place: Place::Host, link, address, scope });
        }
        let back = |destination, hop| (destination, hop, Some(host_address));
        let to_gateway = back(Cidr::single(gateway), Hop::Direct);
        self.route(Place::Host, host, host_link, &link.host_link, to_gateway);
        for cidr in routed {
            self.route(Place::Host, host, host_link, &link.host_link, back(cidr, Hop::Via(gateway)));
        }

        if let Some(name) = hub {
            let hub = self.bridge(node, name, fabric_mac_of(gateway))?;
            self.up(Place::Node, hub, name);
            // What no node has would go to the host, which sends it back here.
            self.refuse(Place::Node, node, wish.cluster_cidr);
        }
        Ok(())
    }

    /// The uplink to the hub, and the hub's route back.
    fn fabric(&mut self, link: &FabricLink, node: &Observed, hub: &Observed) -> Result<()> {
        let wish = self.wish;
        let bridge = hub
            .find(&link.hub)
            .filter(|bridge| bridge.kind.as_deref() == Some("bridge"))
            .ok_or_else(|| Error::new(Kind::NotFound, format!("hub: bridge {}", link.hub)))?;
        check_hub(wish, link, hub, bridge)?;
        let outer =
            Outer { place: Place::Hub, name: &link.port, alias: wish.port_alias(), bridge: Some(bridge) };
        let (uplink, port) = self.veth(&link.name, Some(fabric_mac_of(wish.gateway)), &outer, node, hub)?;
        if port.is_some_and(|port| port.controller != Some(bridge.index)) {
            let (link, bridge) = (link.port.clone(), bridge.name.clone());
            self.actions.push(Action::SetBridge { place: Place::Hub, link, bridge });
        }
        self.up(Place::Node, uplink, &link.name);
        for destination in [link.hub_cidr, everywhere()] {
            let out = (destination, Hop::OnLink(link.hub_gateway), Some(wish.gateway));
            self.route(Place::Node, node, uplink, &link.name, out);
        }
        // What no pod of ours has would go to the hub, which sends it back here.
        self.refuse(Place::Node, node, wish.pod_cidr);
        let back = (wish.pod_cidr, Hop::OnLink(wish.gateway), Some(link.hub_gateway));
        self.route(Place::Hub, hub, Some(bridge), &link.hub, back);
        Ok(())
    }

    /// A bridge in the node's namespace.
    fn bridge<'a>(&mut self, node: &'a Observed, name: &str, mac: Mac) -> Result<Option<&'a Link>> {
        let bridge = node.find(name);
        let alias = self.wish.alias();
        if let Some(link) = bridge {
            // Without an alias: made by us just before a crash; nobody else makes links in the node's namespace.
            let ours = link.kind.as_deref() == Some("bridge")
                && link.alias.as_ref().is_none_or(|there| *there == alias);
            if !ours {
                return Err(foreign(Place::Node, link));
            }
        } else {
            self.actions.push(Action::CreateBridge { name: name.into(), mac, mtu: self.wish.mtu });
        }
        if bridge.and_then(|link| link.alias.as_ref()) != Some(&alias) {
            self.actions.push(Action::SetAlias { place: Place::Node, link: name.into(), alias });
        }
        Ok(bridge)
    }

    /// Both ends when they are a pair of ours; otherwise the pair is made anew.
    fn veth<'a>(
        &mut self,
        inner: &str,
        inner_mac: Option<Mac>,
        outer: &Outer<'_>,
        node: &'a Observed,
        outside: &'a Observed,
    ) -> Result<(Option<&'a Link>, Option<&'a Link>)> {
        let (uplink, far) = (node.find(inner), outside.find(outer.name));
        let pair = uplink
            .zip(far)
            .filter(|(near, far)| near.peer == Some(far.index) && far.peer == Some(near.index));
        if let Some(link) = far {
            // Without an alias, the other end in our node's namespace proves that we made it.
            let ours = match &link.alias {
                Some(there) => *there == outer.alias,
                None => pair.is_some(),
            };
            if !ours {
                return Err(foreign(outer.place, link));
            }
        }
        if pair.is_none() {
            for (place, link) in [(Place::Node, uplink), (outer.place, far)] {
                self.actions.extend(link.map(|link| Action::DeleteLink { place, link: link.name.clone() }));
            }
            self.actions.push(Action::CreateVeth {
                place: outer.place,
                link: outer.name.into(),
                bridge: outer.bridge.map(|bridge| bridge.name.clone()),
                uplink: inner.into(),
                uplink_mac: inner_mac,
                mtu: self.wish.mtu,
            });
        }
        let (uplink, far) = pair.unzip();
        for (place, link, name, alias) in
            [(outer.place, far, outer.name, &outer.alias), (Place::Node, uplink, inner, &self.wish.alias())]
        {
            if link.and_then(|link| link.alias.as_ref()) != Some(alias) {
                self.actions.push(Action::SetAlias { place, link: name.into(), alias: alias.clone() });
            }
        }
        Ok((uplink, far))
    }

    fn up(&mut self, place: Place, link: Option<&Link>, name: &str) {
        if !link.is_some_and(|link| link.up) {
            self.actions.push(Action::SetUp { place, link: name.into() });
        }
    }

    /// An address of the node's own, on its bridge.
    fn address(&mut self, node: &Observed, bridge: Option<&Link>, address: Ipv4Addr, scope: Scope) {
        if !bridge.is_some_and(|bridge| node.has_address(bridge, address)) {
            let link = self.wish.bridge.clone();
            self.actions.push(Action::AddAddress { place: Place::Node, link, address, scope });
        }
    }

    fn route(&mut self, place: Place, there: &Observed, link: Option<&Link>, name: &str, wanted: Wanted) {
        let (destination, hop, source) = wanted;
        let same = |route: &Route| {
            link.is_some_and(|link| link.index == route.link)
                && (route.destination, route.hop, route.source) == wanted
        };
        if !there.routes.iter().any(same) {
            let link = Some(name.to_owned());
            self.actions.push(Action::AddRoute { place, link, destination, hop, source });
        }
    }

    fn refuse(&mut self, place: Place, there: &Observed, destination: Cidr) {
        let hop = Hop::Unreachable;
        if !there.routes.iter().any(|route| (route.destination, route.hop) == (destination, hop)) {
            self.actions.push(Action::AddRoute { place, link: None, destination, hop, source: None });
        }
    }
}

type Wanted = (Cidr, Hop, Option<Ipv4Addr>);

pub(crate) const fn everywhere() -> Cidr {
    Cidr::around(Ipv4Addr::UNSPECIFIED, 0)
}

/// A route of the host's into one of our CIDRs would lead its traffic, or ours, astray.
fn check_host(routed: &[Cidr], host: &Observed, ours: Option<&Link>) -> Result<()> {
    for route in &host.routes {
        // One that leads nowhere takes nothing from a longer one of ours.
        let foreign = ours.is_none_or(|link| route.link != link.index) && route.hop != Hop::Unreachable;
        for cidr in routed {
            if foreign && route.destination.prefix() > 0 && route.destination.overlaps(*cidr) {
                let text = format!(
                    "{cidr} overlaps the host's route {} on {}: choose another CIDR",
                    route.destination,
                    host.name_of(route.link)
                );
                return Err(Error::new(Kind::Conflict, text));
            }
        }
    }
    Ok(())
}

/// No two nodes have the same addresses. Single addresses are pods'.
fn check_hub(wish: &NodeNet, uplink: &FabricLink, hub: &Observed, bridge: &Link) -> Result<()> {
    let others =
        hub.links.iter().filter(|port| port.controller == Some(bridge.index) && port.name != uplink.port);
    for (port, address) in others.filter_map(|port| Some((port, port_address(port.alias.as_deref()?)?))) {
        if wish.pod_cidr.contains(address) {
            let other = port.alias.as_deref().unwrap_or_default();
            return Err(Error::new(Kind::Conflict, format!("pod CIDR {} is in use: {other}", wish.pod_cidr)));
        }
    }
    for route in &hub.routes {
        let ours = route.link == bridge.index
            && (route.destination, route.hop.neighbour()) == (wish.pod_cidr, Some(wish.gateway));
        let other = (1..32).contains(&route.destination.prefix()) && route.hop != Hop::Unreachable && !ours;
        if other && route.destination.overlaps(wish.pod_cidr) {
            let text = format!("pod CIDR {} overlaps {}, of another node", wish.pod_cidr, route.destination);
            return Err(Error::new(Kind::Conflict, text));
        }
    }
    Ok(())
}

impl Observed {
    fn find(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    fn name_of(&self, index: u32) -> &str {
        self.links.iter().find(|link| link.index == index).map_or("?", |link| &link.name)
    }

    fn has_address(&self, link: &Link, address: Ipv4Addr) -> bool {
        self.addresses
            .iter()
            .any(|there| (there.link, there.address, there.prefix) == (link.index, address, 32))
    }
}

fn foreign(place: Place, link: &Link) -> Error {
    let alias = link.alias.as_deref().unwrap_or("none");
    Error::new(Kind::AlreadyExists, format!("{place}: link {} is not ours (alias {alias})", link.name))
}

#[cfg(test)]
mod tests;
