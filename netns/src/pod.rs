//! A pod's network: a veth pair between the node's bridge and the pod's namespace, one address, two routes.
//!
//! ```text
//! node socket   RTM_NEWLINK  veth v0011aabb (port of the bridge, up, group), its peer eth0 born in the pod
//! node socket   alias · hairpin port · route ADDRESS/32 on the bridge                                (one send)
//! pod socket    lo up · eth0 up · ADDRESS/32 · GATEWAY/32 on the link · default via GATEWAY           (one send)
//! both          each link is asked for once, so that its carrier counts
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::Instant;

use crate::address::Scope;
use crate::error::{Error, Errors, Kind, Result};
use crate::ipam::Cidr;
use crate::link::{self, Link, mac_of};
use crate::namespace::Namespace;
use crate::netlink::Route as Socket;
use crate::node::{Node, Step};
use crate::route::Hop;
use crate::{Outcome, address, route};

/// Links about to go are gathered in this group, and the group is removed at once.
const DOOMED_GROUP: u32 = 0x00de_ad00;
/// Name of the link inside the pod.
pub const POD_LINK: &str = "eth0";

/// The network of one pod, as wished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNet {
    /// Name of the link on the bridge; derived from the identity, so that a second attempt meets the first: `v0011aabb`.
    pub link: String,
    /// Whose it is; opaque here, at most 100 bytes without `/` and `@`. Becomes part of the link's alias.
    pub owner: String,
    /// The pod's address, inside the node's pod CIDR; or another node's, which the pod brought along.
    pub address: Ipv4Addr,
    /// Bytes.
    pub mtu: u32,
    /// `IFLA_GROUP` of the link, for those who sort links; 0 is none.
    pub group: u32,
}

/// A pod's link found on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the link on the bridge.
    pub link: String,
    /// Whose it is; `None` for a link that a crash left before it was marked.
    pub owner: Option<String>,
    /// The address it carries; likewise.
    pub address: Option<Ipv4Addr>,
}

impl Node {
    /// Connects `namespace` to the node. Idempotent: what is there and ours stays.
    ///
    /// Blocks for about a millisecond: call it from a thread that may.
    ///
    /// # Errors
    /// [`Kind::AlreadyExists`] when the link belongs to another owner, [`Kind::Busy`] when the bridge is full (1,023 ports),
    /// [`Kind::NotFound`] when the namespace died. What was done stays and is completed by the next call, or removed by
    /// [`detach`](Self::detach).
    pub fn attach(&self, pod: &PodNet, namespace: &Namespace) -> Result<(Outcome, Vec<Step>)> {
        self.attach_with(pod, namespace, &mut |_| Ok(()))
    }

    /// As [`attach`](Self::attach), but asks `before` each step, naming it: to pause, or to fail on purpose.
    ///
    /// # Errors
    /// As [`attach`](Self::attach), or what `before` says.
    pub fn attach_with(
        &self,
        pod: &PodNet,
        namespace: &Namespace,
        before: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<(Outcome, Vec<Step>)> {
        self.check(pod)?;
        let mut steps = Steps { list: Vec::new(), outcome: None, before };
        self.attach_steps(pod, namespace, &mut steps)
            .map_err(|error| error.during(format!("attach {}", pod.link)))?;
        Ok((steps.outcome.unwrap_or(Outcome::Unchanged), steps.list))
    }

    fn attach_steps(&self, pod: &PodNet, namespace: &Namespace, steps: &mut Steps<'_>) -> Result<()> {
        let mut inside = steps.time("open a socket in the pod's namespace", || Socket::open(namespace))?;
        let mut outside = self.socket();
        let create = link::create_veth(&link::Veth {
            name: &pod.link,
            mtu: pod.mtu,
            group: pod.group,
            bridge: Some(self.bridge()),
            mac: None,
            peer_name: POD_LINK,
            peer_mac: Some(mac_of(pod.address)),
            peer_namespace: namespace.as_fd(),
        });
        let alias = self.alias(pod);
        let name = create.name.clone();
        match steps.time(&name, || outside.perform(create.clone())) {
            Ok(()) => steps.outcome = Some(Outcome::Changed),
            Err(error) if error.kind() == Kind::AlreadyExists => {
                let there = link::find(&mut outside, &pod.link)?;
                if let Some(other) = there.as_ref().and_then(|link| link.alias.as_ref())
                    && !same_owner(other, &alias)
                {
                    return Err(Error::new(
                        Kind::AlreadyExists,
                        format!("link {} belongs to {other}", pod.link),
                    ));
                }
                let peer = link::find(&mut inside, POD_LINK)?;
                let pair = there.as_ref().zip(peer.as_ref());
                if !pair
                    .is_some_and(|(near, far)| near.peer == Some(far.index) && far.peer == Some(near.index))
                {
                    if peer.is_some() {
                        let text = format!("the pod's {POD_LINK} is not the peer of {}", pod.link);
                        return Err(Error::new(Kind::AlreadyExists, text));
                    }
                    // The other end went into a namespace of an earlier attempt.
                    if there.is_some() {
                        let delete = link::delete(&pod.link);
                        let name = delete.name.clone();
                        steps.time(&name, || outside.perform(delete))?;
                    }
                    steps.time(&name, || outside.perform(create))?;
                    steps.outcome = Some(Outcome::Changed);
                }
            }
            Err(error) => return Err(error),
        }
        let via_bridge = route::Route {
            destination: Cidr::single(pod.address),
            hop: Hop::Direct,
            link: self.bridge(),
            source: Some(self.net().gateway),
        };
        let mark =
            vec![link::set_alias(&pod.link, &alias), link::set_hairpin(&pod.link), route::ensure(via_bridge)];
        steps.time(&format!("alias, hairpin mode and route {}/32 of {}", pod.address, pod.link), || {
            outside.perform_all(mark)
        })?;
        drop(outside);

        let peer = link::find(&mut inside, POD_LINK)?
            .ok_or_else(|| Error::new(Kind::NotFound, format!("link {POD_LINK} in the pod's namespace")))?;
        let gateway = self.net().gateway;
        let everywhere = Cidr::new(Ipv4Addr::UNSPECIFIED, 0)?;
        let route = |destination, hop| {
            route::ensure(route::Route { destination, hop, link: peer.index, source: None })
        };
        let configure = vec![
            link::set_up("lo"),
            link::set_up(POD_LINK),
            address::ensure(peer.index, pod.address, Scope::Universe),
            route(Cidr::single(gateway), Hop::Direct),
            route(everywhere, Hop::Via(gateway)),
        ];
        steps.time(&format!("lo and {POD_LINK} up, {}/32, default via {gateway}", pod.address), || {
            inside.perform_all(configure)
        })?;
        if steps.outcome.is_some() {
            steps.time(&format!("carrier of {}", pod.link), || {
                link::settle(&mut self.socket(), &[&pod.link, &self.net().bridge])?;
                link::settle(&mut inside, &[POD_LINK])
            })?;
        }
        Ok(())
    }

    /// Disconnects a pod. Idempotent; the namespace may be gone already.
    ///
    /// Blocks for about 20 ms when the link still exists (the kernel waits for readers): prefer
    /// [`detach_many`](Self::detach_many), or let the namespace die first.
    ///
    /// # Errors
    /// As [`detach_many`](Self::detach_many).
    pub fn detach(&self, link: &str, address: Option<Ipv4Addr>) -> std::result::Result<Outcome, Errors> {
        self.detach_many(&[Attachment { link: link.into(), owner: None, address }])
    }

    /// Disconnects pods, all at the price of one. With an owner, only if the link is still that owner's. Idempotent, continues past
    /// failures.
    ///
    /// # Errors
    /// All that failed.
    pub fn detach_many(&self, pods: &[Attachment]) -> std::result::Result<Outcome, Errors> {
        let mut errors = Errors::default();
        let mut socket = self.socket();
        let Some(there) = errors.note(link::list(&mut socket)) else { return Err(errors) };
        let there: BTreeMap<&str, &Link> = there
            .iter()
            .filter(|link| link.controller == Some(self.bridge()))
            .map(|link| (link.name.as_str(), link))
            .collect();
        let (mut doomed, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for pod in pods {
            let found = there.get(pod.link.as_str()).map(|link| self.attachment(link));
            if let Some(found) = &found {
                if pod.owner.is_some() && found.owner.is_some() && pod.owner != found.owner {
                    continue;
                }
                doomed.insert(pod.link.as_str());
            }
            addresses.extend(pod.address.or_else(|| found.and_then(|found| found.address)));
        }
        // An address may have been given to a later pod already.
        for link in there.values().filter(|link| !doomed.contains(link.name.as_str())) {
            self.attachment(link).address.map(|address| addresses.remove(&address));
        }
        let doomed: Vec<_> = doomed.into_iter().map(|link| link::set_group(link, DOOMED_GROUP)).collect();
        let routes = addresses
            .into_iter()
            .map(|address| route::delete(Cidr::single(address), self.bridge()))
            .collect();
        let mut changed = false;
        if !doomed.is_empty() {
            changed = true;
            for result in errors.note(socket.batch(doomed)).into_iter().flatten() {
                // Gone with its namespace meanwhile.
                errors.note(
                    result.or_else(|error| if error.kind() == Kind::NotFound { Ok(()) } else { Err(error) }),
                );
            }
            let gone = socket.perform(link::delete_group(DOOMED_GROUP));
            errors
                .note(gone.or_else(|error| if error.kind() == Kind::NotFound { Ok(()) } else { Err(error) }));
        }
        changed |= errors.note(route::delete_all(&mut socket, routes)).is_some_and(|deleted| deleted > 0);
        let outcome = if changed { Outcome::Changed } else { Outcome::Unchanged };
        errors.into_result().map(|()| outcome)
    }

    /// The pods' links on this node, so that a collector can tell leaks: what is listed here and not on record.
    ///
    /// # Errors
    /// The socket's.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let links = link::list(&mut self.socket())?;
        Ok(links
            .iter()
            .filter(|link| link.controller == Some(self.bridge()))
            .map(|link| self.attachment(link))
            .collect())
    }

    /// Addresses with a route on the bridge; one that belongs to no attachment was left by a namespace that died by itself.
    ///
    /// # Errors
    /// The socket's.
    pub fn routed_addresses(&self) -> Result<Vec<Ipv4Addr>> {
        let routes = route::list(&mut self.socket())?;
        let ours = |route: &&route::Route| route.link == self.bridge() && route.destination.prefix() == 32;
        Ok(routes.iter().filter(ours).map(|route| route.destination.network()).collect())
    }

    fn check(&self, pod: &PodNet) -> Result<()> {
        link::check_name(&pod.link)?;
        let invalid = |text: String| Err(Error::new(Kind::Invalid, text));
        if pod.owner.is_empty() || pod.owner.len() > 100 || pod.owner.contains(['/', '@']) {
            return invalid(format!("owner {:?}: 1 to 100 bytes without '/' and '@'", pod.owner));
        }
        let net = self.net();
        if [Some(net.bridge.as_str()), Some(net.uplink_name()), net.fabric_name()]
            .contains(&Some(pod.link.as_str()))
        {
            return invalid(format!("link name {} is the node's own", pod.link));
        }
        if !net.cluster_cidr.contains(pod.address)
            || [net.gateway, net.outer_address()].contains(&pod.address)
        {
            return invalid(format!("{} is no pod address of {}", pod.address, net.cluster_cidr));
        }
        Ok(())
    }

    /// `MARK/OWNER@ADDRESS`: all that removal needs to know, kept where it cannot get apart from the link.
    fn alias(&self, pod: &PodNet) -> String {
        format!("{}/{}@{}", self.net().mark, pod.owner, pod.address)
    }

    pub(crate) fn attachment(&self, link: &Link) -> Attachment {
        let ours =
            link.alias.as_deref().and_then(|alias| alias.strip_prefix(&self.net().mark)?.strip_prefix('/'));
        let (owner, address) = ours.and_then(|rest| rest.split_once('@')).unzip();
        Attachment {
            link: link.name.clone(),
            owner: owner.map(str::to_owned),
            address: address.and_then(|address| address.parse().ok()),
        }
    }
}

fn same_owner(left: &str, right: &str) -> bool {
    let owner = |alias: &str| alias.rsplit_once('@').map(|(owner, _)| owner.to_owned());
    owner(left) == owner(right)
}

struct Steps<'a> {
    list: Vec<Step>,
    outcome: Option<Outcome>,
    before: &'a mut dyn FnMut(&str) -> Result<()>,
}

impl Steps<'_> {
    fn time<T>(&mut self, effect: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        (self.before)(effect)?;
        let started = Instant::now();
        let value = act()?;
        self.list.push(Step { effect: effect.to_owned(), took: started.elapsed() });
        Ok(value)
    }
}
