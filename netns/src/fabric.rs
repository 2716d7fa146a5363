//! Between nodes: the hub's ports, and each node's routes to the others.
//!
//! ```text
//!  hub's namespace (the node with the link to the host)          other nodes' namespaces
//! ┌──────────────────────────────────────────────────┐   veth   ┌──────────────────────────────────────┐
//! │ bridge fabric, no address ──┬── port f1a2b3c4 ───┼──────────┤ fabric, no address                   │
//! │                             └── port f…          │          │  hub's CIDR, default via hub onlink  │
//! │ node's CIDR via node onlink dev fabric           │          │  peer's CIDR via peer onlink         │
//! │ CLUSTER_CIDR unreachable                         │          │  own CIDR unreachable                │
//! └──────────────────────────────────────────────────┘          └──────────────────────────────────────┘
//! ```
//!
//! Peers meet on the hub's bridge, below IP: one hop. A node's address is that of its bridge for pods; every link answers for it.
//! A port that is down is a cut cable: nothing here sets it up but [`set_port`]. The port's alias, `MARK/port@ADDRESS`, tells which
//! routes must go with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::error::{Error, Errors, Kind, Result};
use crate::ipam::Cidr;
use crate::link::{self, Link};
use crate::namespace::Namespace;
use crate::netlink::Route as Socket;
use crate::node::Node;
use crate::plan::{NodeNet, Uplink, port_address, port_prefix};
use crate::route::{self, Hop, Route};
use crate::{Outcome, plan};

/// Another node: where its pods have their addresses, and its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its pods' addresses.
    pub cidr: Cidr,
    /// Its own address.
    pub gateway: Ipv4Addr,
}

/// A pod that is elsewhere than its address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moved {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The address of the node that it is on; may be the node's own.
    pub gateway: Ipv4Addr,
}

/// State of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// Packets pass.
    Whole,
    /// None does, either way.
    Cut,
}

/// The state of the port `link` of the node with `mark`.
///
/// # Errors
/// [`Kind::NotFound`] when there is no such port of that node's.
pub fn port(hub: &Namespace, link: &str, mark: &str) -> Result<Cable> {
    let (port, _) = find_port(&mut Socket::open(hub)?, link, mark)?;
    Ok(if port.up { Cable::Whole } else { Cable::Cut })
}

/// Cuts a port or mends it. Idempotent. When it answers, packets pass, or none does any more.
///
/// # Errors
/// As [`port`].
pub fn set_port(hub: &Namespace, link: &str, mark: &str, cable: Cable) -> Result<Outcome> {
    let mut socket = Socket::open(hub)?;
    let (port, _) = find_port(&mut socket, link, mark)?;
    match (cable, port.up) {
        (Cable::Whole, true) | (Cable::Cut, false) => return Ok(Outcome::Unchanged),
        (Cable::Whole, false) => {
            socket.perform(link::set_up(link))?;
            // The port, then the bridge, which has a carrier while one of its ports has.
            link::settle(&mut socket, &[link])?;
            let bridge =
                link::list(&mut socket)?.into_iter().find(|link| Some(link.index) == port.controller);
            link::settle(&mut socket, &bridge.iter().map(|link| link.name.as_str()).collect::<Vec<_>>())?;
        }
        (Cable::Cut, true) => socket.perform(link::set_down(link))?,
    }
    Ok(Outcome::Changed)
}

fn find_port(socket: &mut Socket, link: &str, mark: &str) -> Result<(Link, Ipv4Addr)> {
    let absent = || Error::new(Kind::NotFound, format!("hub: port {link} of {mark}"));
    let port = link::find(socket, link)?.ok_or_else(absent)?;
    let gateway = gateway_of(&port, &port_prefix(mark)).ok_or_else(absent)?;
    Ok((port, gateway))
}

fn gateway_of(port: &Link, prefix: &str) -> Option<Ipv4Addr> {
    port.alias.as_deref()?.strip_prefix(prefix)?.parse().ok()
}

/// Removes a node's port, and the hub's routes to nodes that have none. With the last port go the bridge and the routes that are
/// there for other nodes only, the host's too. Idempotent, continues past failures.
///
/// # Errors
/// All that failed.
pub fn remove_port(hub: &Node, link: &str, mark: &str) -> std::result::Result<Outcome, Errors> {
    let mut errors = Errors::default();
    let Uplink::Host(uplink) = &hub.net().uplink else {
        return Err(Errors(vec![Error::new(Kind::Invalid, format!("{} is no hub", hub.net().mark))]));
    };
    let mut socket = hub.socket();
    let (Some(links), Some(routes)) =
        (errors.note(link::list(&mut socket)), errors.note(route::list(&mut socket)))
    else {
        return Err(errors);
    };
    let bridge = uplink.hub.name().and_then(|name| links.iter().find(|link| link.name == name));
    let doomed =
        links.iter().find(|port| port.name == link && gateway_of(port, &port_prefix(mark)).is_some());
    let mut changed = false;
    if let Some(bridge) = bridge {
        let left: Vec<&Link> = links
            .iter()
            .filter(|port| port.controller == Some(bridge.index))
            .filter(|port| doomed.is_none_or(|doomed| doomed.index != port.index))
            .collect();
        let reached: BTreeSet<_> =
            left.iter().filter_map(|port| port_address(port.alias.as_deref()?)).collect();
        let stale = routes
            .iter()
            .filter(|route| route.link == bridge.index)
            .filter(|route| route.hop.neighbour().is_none_or(|gateway| !reached.contains(&gateway)));
        let mut gone: Vec<_> = stale.map(|route| route::delete(route.destination, route.link)).collect();
        if left.is_empty() {
            gone.push(route::delete(hub.net().cluster_cidr, 0));
        }
        changed |= errors.note(route::delete_all(&mut socket, gone)).is_some_and(|deleted| deleted > 0);
        // Ports first: a crash in between must leave the bridge to tell that there is something to remove.
        changed |= errors.note(delete(&mut socket, doomed)) == Some(true);
        if left.is_empty() {
            if hub.net().cluster_cidr != hub.net().pod_cidr {
                let unroute = || -> Result<bool> {
                    let mut outside = Socket::open(hub.outside())?;
                    let Some(link) = link::find(&mut outside, &uplink.host_link)? else { return Ok(false) };
                    let gone = vec![route::delete(hub.net().cluster_cidr, link.index)];
                    Ok(route::delete_all(&mut outside, gone)? > 0)
                };
                changed |= errors.note(unroute()) == Some(true);
            }
            changed |= errors.note(delete(&mut socket, Some(bridge))) == Some(true);
        }
    } else {
        changed |= errors.note(delete(&mut socket, doomed)) == Some(true);
    }
    let outcome = if changed { Outcome::Changed } else { Outcome::Unchanged };
    errors.into_result().map(|()| outcome)
}

fn delete(socket: &mut Socket, link: Option<&Link>) -> Result<bool> {
    let Some(link) = link else { return Ok(false) };
    match socket.perform(link::delete(&link.name)) {
        Ok(()) => Ok(true),
        // Gone with its other end meanwhile.
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Node {
    /// Routes exactly these peers' CIDRs and moved pods by the link to other nodes. The list may name the node itself. A moved pod
    /// that is here, and attached, is routed to the bridge. Idempotent; what serves stays untouched.
    ///
    /// A hub without a bridge for others has nobody to reach, whatever the lists say: nothing is done. Setting up a node makes the bridge
    /// and the route to that node.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when the link to other nodes is gone; [`Kind::Invalid`] for what lies outside the cluster CIDR, after the rest
    /// was done; the kernel's refusals.
    pub fn set_peers(&self, peers: &[Peer], moved: &[Moved]) -> Result<Outcome> {
        let during = |error: Error| error.during(format!("routes between nodes of {}", self.net().mark));
        self.set_routes(peers, moved).map_err(during)
    }

    fn set_routes(&self, peers: &[Peer], moved: &[Moved]) -> Result<Outcome> {
        let mut socket = self.socket();
        let Some(fabric) = self.fabric_link(&mut socket)? else {
            return Ok(Outcome::Unchanged);
        };
        let links = Links { bridge: self.bridge(), fabric };
        let routes = route::list(&mut socket)?;
        let wish = wished(self.net(), links, peers, moved);
        let (mut fresh, stale) = difference(links, &wish, &routes);
        if fresh.iter().any(|route| route.link == links.bridge) {
            let there = link::list(&mut socket)?;
            let here: BTreeSet<_> = there
                .iter()
                .filter(|link| link.controller == Some(links.bridge))
                .filter_map(|link| self.attachment(link).address)
                .collect();
            fresh.retain(|route| route.link != links.bridge || here.contains(&route.destination.network()));
        }
        let kept: BTreeSet<_> = fresh.iter().map(|route| route.destination).collect();
        let stale: Vec<_> = stale
            .into_iter()
            .filter(|destination| !kept.contains(destination))
            .map(|destination| route::delete(destination, links.fabric))
            .collect();
        let mut changed = !fresh.is_empty();
        socket.perform_all(fresh.into_iter().map(route::ensure).collect())?;
        changed |= route::delete_all(&mut socket, stale)? > 0;
        match wish.refused.first() {
            Some(text) => Err(Error::new(Kind::Invalid, text.clone())),
            None if changed => Ok(Outcome::Changed),
            None => Ok(Outcome::Unchanged),
        }
    }

    /// Index of the link to other nodes. `None` for a hub that has none.
    fn fabric_link(&self, socket: &mut Socket) -> Result<Option<u32>> {
        let net = self.net();
        let name = net
            .fabric_name()
            .ok_or_else(|| Error::new(Kind::Invalid, "the node was opened without a bridge for others"))?;
        match (link::find(socket, name)?, &net.uplink) {
            (Some(link), _) => Ok(Some(link.index)),
            (None, Uplink::Host(_)) => Ok(None),
            (None, Uplink::Fabric(_)) => Err(Error::new(Kind::NotFound, format!("link {name}"))),
        }
    }
}

#[derive(Clone, Copy)]
struct Links {
    bridge: u32,
    fabric: u32,
}

#[derive(Default)]
struct Wished {
    routes: BTreeMap<Cidr, Route>,
    refused: Vec<String>,
}

/// Pure: the routes that peers and moved pods ask for.
fn wished(net: &NodeNet, links: Links, peers: &[Peer], moved: &[Moved]) -> Wished {
    let mut wish = Wished::default();
    let source = Some(net.gateway);
    let on_link =
        |destination, gateway| Route { destination, hop: Hop::OnLink(gateway), link: links.fabric, source };
    for peer in peers {
        if peer.gateway == net.gateway || peer.cidr == net.pod_cidr {
            continue;
        }
        if !net.cluster_cidr.contains_all(peer.cidr) || peer.cidr.overlaps(net.pod_cidr) {
            wish.refused.push(format!(
                "peer {} via {}: not in {}, or ours",
                peer.cidr, peer.gateway, net.cluster_cidr
            ));
            continue;
        }
        wish.routes.insert(peer.cidr, on_link(peer.cidr, peer.gateway));
    }
    for pod in moved {
        let destination = Cidr::single(pod.address);
        if !net.cluster_cidr.contains(pod.address) || pod.address == net.gateway {
            wish.refused.push(format!("moved pod {destination}: not in {}, or ours", net.cluster_cidr));
            continue;
        }
        let route = if pod.gateway == net.gateway {
            Route { destination, hop: Hop::Direct, link: links.bridge, source }
        } else {
            on_link(destination, pod.gateway)
        };
        wish.routes.insert(destination, route);
    }
    if let Uplink::Fabric(link) = &net.uplink {
        for destination in [link.hub_cidr, plan::everywhere()] {
            wish.routes.insert(destination, on_link(destination, link.hub_gateway));
        }
    }
    wish
}

/// Pure: routes to add or put in place of others, and destinations to reach by the fabric no longer.
fn difference(links: Links, wish: &Wished, there: &[Route]) -> (Vec<Route>, Vec<Cidr>) {
    let there_set: BTreeSet<&Route> = there.iter().collect();
    let fresh: Vec<Route> =
        wish.routes.values().filter(|route| !there_set.contains(route)).copied().collect();
    let stale = there
        .iter()
        .filter(|route| route.link == links.fabric)
        .filter(|route| wish.routes.get(&route.destination).is_none_or(|wished| wished.link != links.fabric))
        .map(|route| route.destination)
        .collect();
    (fresh, stale)
}

#[cfg(test)]
mod tests;
