//! The nodes' networks, as the yard wishes them.
//!
//! The first node (node-0) has the link to the host. Further nodes meet on a bridge in its namespace, which exists only while there
//! are any: see [`netns::fabric`]. All of this is called by the daemon, but [`open_node`] and [`set_peers`], which an agent calls for its own
//! node. The yard is always the host's, not a node's part of it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netns::fabric::{self, Cable};
use netns::node::Step;
use netns::{Cidr, FabricLink, HostLink, Hub, Monitor, Namespace, Node, NodeNet, Uplink};
pub use netns::{Moved, Outcome, Peer};
use tokio::sync::Mutex;

use crate::error::{Error, Kind, Result};
use crate::host::{blocking, from_netns};
use crate::yard::{Yard, is_node_name};

const MTU: u32 = 1500;
/// Pause before the kernel is asked again after a refusal.
const RETRY: Duration = Duration::from_secs(1);
/// The bridge for pods.
const PODS: &str = "pods";
/// The bridge for nodes, and each further node's link to it.
const FABRIC: &str = "fabric";
/// Kubernetes' custom: the cluster's name server has the tenth virtual address.
const DNS: u32 = 10;

/// Held by whoever makes or removes what all further nodes share. One daemon drives a yard, so this is enough.
static SHARED: Mutex<()> = Mutex::const_new(());

impl Yard {
    /// The pin of the namespace that plays the host in an isolated yard.
    pub fn host_netns(&self) -> std::path::PathBuf {
        self.node_netns("host")
    }

    /// Begins the alias of every link of this yard's first node.
    pub fn link_mark(&self) -> String {
        self.link_mark_of(&self.node)
    }

    fn link_mark_of(&self, node: &str) -> String {
        format!("podyard/{}/{node}", self.name)
    }

    /// Where the cluster's name server answers, on every node.
    pub fn dns_address(&self) -> Option<Ipv4Addr> {
        self.service_cidr.nth(DNS)
    }

    /// The network of the yard's first node.
    ///
    /// The gateway has the first address of the pod CIDR, the host the last: neither is given to a pod.
    ///
    /// # Errors
    /// `Invalid` for a pod CIDR without room.
    pub fn node_net(&self) -> Result<NodeNet> {
        // A link name holds 15 bytes, and names of yards may begin alike.
        let uplink = Uplink::Host(HostLink {
            name: "host".into(),
            host_link: format!("py{:08x}", hash(&self.mark())),
            host_address: self.pod_cidr.last(),
            hub: Hub::Lazy(FABRIC.into()),
        });
        self.net(&self.node, self.pod_cidr, uplink)
    }

    /// The network of a further node.
    fn further_net(&self, name: &str, cidr: Cidr) -> Result<NodeNet> {
        let uplink = Uplink::Fabric(FabricLink {
            name: FABRIC.into(),
            port: port_name(name),
            hub: FABRIC.into(),
            hub_gateway: gateway(self.pod_cidr)?,
            hub_cidr: self.pod_cidr,
        });
        self.net(name, cidr, uplink)
    }

    fn net(&self, name: &str, pod_cidr: Cidr, uplink: Uplink) -> Result<NodeNet> {
        Ok(NodeNet {
            mark: self.link_mark_of(name),
            bridge: PODS.into(),
            uplink,
            gateway: gateway(pod_cidr)?,
            dns: self.dns_address(),
            pod_cidr,
            cluster_cidr: self.cluster_cidr,
            service_cidr: self.service_cidr,
            mtu: MTU,
        })
    }

    /// The namespace of the host, or what stands for it.
    fn outside(&self) -> Result<Namespace> {
        let outside = if self.isolated {
            Namespace::ensure(&self.host_netns()).map(|(namespace, _)| namespace)
        } else {
            Namespace::current()
        };
        outside.map_err(from_netns)
    }

    /// The first node's namespace.
    fn hub(&self) -> Result<Namespace> {
        Namespace::open(&self.node_netns(&self.node)).map_err(from_netns)
    }

    /// Refuses names that are not a further node's.
    fn check_further(&self, name: &str) -> Result<()> {
        if name == self.node || !is_node_name(name) {
            return Err(Error::new(Kind::Invalid, format!("{name:?} cannot be a further node")));
        }
        Ok(())
    }
}

/// A node's own address: the first of its pods'.
fn gateway(pod_cidr: Cidr) -> Result<Ipv4Addr> {
    let room = pod_cidr.size() >= 8;
    pod_cidr
        .nth(1)
        .filter(|_| room)
        .ok_or_else(|| Error::new(Kind::Invalid, format!("pod CIDR {pod_cidr}: too small")))
}

/// The hub's end of a further node's link.
fn port_name(node: &str) -> String {
    format!("f{:08x}", hash(node))
}

fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Makes the first node's network namespace and its link to the host, or finds them. Idempotent. Answers what was done.
///
/// # Errors
/// What the kernel refuses; `Conflict` if the host routes one of our CIDRs elsewhere.
pub async fn ensure(yard: &Yard) -> Result<(Arc<Node>, Vec<Step>)> {
    let _shared = SHARED.lock().await;
    let (node, _) = Namespace::ensure(&yard.node_netns(&yard.node)).map_err(from_netns)?;
    let (node, steps) = Node::ensure(yard.node_net()?, node, yard.outside()?).await.map_err(from_netns)?;
    Ok((Arc::new(node), steps))
}

/// Makes a further node's network namespace, its link to the first node, and what the first node and the host need to reach it; or
/// finds them. Idempotent. A cut link stays cut; only one that was lost altogether comes back whole.
///
/// # Errors
/// As [`ensure`]; `Invalid` for a CIDR outside the cluster's or overlapping the first node's; `Conflict` for one that another node
/// has; `AlreadyExists` when a node of that name was made with another CIDR and is not yet removed.
pub async fn ensure_node(yard: &Yard, name: &str, cidr: Cidr) -> Result<(Arc<Node>, Vec<Step>)> {
    let made = ensure_shared(yard, name, cidr, Missing::Made).await?;
    made.ok_or_else(|| Error::new(Kind::NotFound, format!("namespace of node {name}")))
}

/// What to do about a further node without a namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Made,
    Stays,
}

async fn ensure_shared(
    yard: &Yard,
    name: &str,
    cidr: Cidr,
    missing: Missing,
) -> Result<Option<(Arc<Node>, Vec<Step>)>> {
    yard.check_further(name)?;
    let net = yard.further_net(name, cidr)?;
    net.validate().map_err(from_netns)?;
    let _shared = SHARED.lock().await;
    // Looked at under the lock: a node that is being removed is not brought back.
    let pin = yard.node_netns(name);
    let there = match Namespace::open(&pin) {
        Err(error) if error.kind() == netns::Kind::NotFound => None,
        other => Some(other.map_err(from_netns)?),
    };
    if there.is_none() && missing == Missing::Stays {
        return Ok(None);
    }
    let mut hub_net = yard.node_net()?;
    if let Uplink::Host(link) = &mut hub_net.uplink {
        link.hub = Hub::Ready(FABRIC.into());
    }
    let hub = Namespace::ensure(&yard.node_netns(&yard.node)).map_err(from_netns)?.0;
    let (hub, mut steps) = Node::ensure(hub_net, hub, yard.outside()?).await.map_err(from_netns)?;
    let node = match there {
        Some(node) => node,
        None => Namespace::ensure(&pin).map_err(from_netns)?.0,
    };
    let outside = hub.namespace().try_clone().map_err(from_netns)?;
    let (node, more) = Node::ensure(net, node, outside).await.map_err(from_netns)?;
    steps.extend(more);
    Ok(Some((Arc::new(node), steps)))
}

/// The network that [`ensure_node`] made. Changes nothing.
///
/// # Errors
/// `NotFound` if there is none.
pub fn open_node(yard: &Yard, name: &str, cidr: Cidr) -> Result<Arc<Node>> {
    yard.check_further(name)?;
    let node = Namespace::open(&yard.node_netns(name)).map_err(from_netns)?;
    let node = Node::open(yard.further_net(name, cidr)?, node, yard.hub()?).map_err(from_netns)?;
    Ok(Arc::new(node))
}

/// Cuts a further node off: no packet passes between it and anything outside it. What runs there is not told. Idempotent.
///
/// # Errors
/// `Invalid` for the first node, `NotFound` if the node has no link.
pub async fn cut(yard: &Yard, name: &str) -> Result<Outcome> {
    set_cable(yard, name, Cable::Cut).await
}

/// Joins what [`cut`] parted. Idempotent.
///
/// # Errors
/// As [`cut`].
pub async fn heal(yard: &Yard, name: &str) -> Result<Outcome> {
    set_cable(yard, name, Cable::Whole).await
}

async fn set_cable(yard: &Yard, name: &str, cable: Cable) -> Result<Outcome> {
    yard.check_further(name)?;
    let (hub, port, mark) = (yard.hub()?, port_name(name), yard.link_mark_of(name));
    blocking(move || fabric::set_port(&hub, &port, &mark, cable).map_err(from_netns)).await
}

/// Whether a further node is cut off.
///
/// # Errors
/// As [`cut`].
pub fn is_cut(yard: &Yard, name: &str) -> Result<bool> {
    yard.check_further(name)?;
    let cable = fabric::port(&yard.hub()?, &port_name(name), &yard.link_mark_of(name)).map_err(from_netns)?;
    Ok(cable == Cable::Cut)
}

/// Removes a further node's link, the routes to it, and its namespace's pin; with the last one also what there is for further nodes
/// only. The namespace goes with the last process in it. Idempotent, goes on past failures.
///
/// # Errors
/// `Invalid` for the first node; all that failed.
pub async fn remove_node(yard: &Yard, name: &str) -> Result<Outcome> {
    yard.check_further(name)?;
    let _shared = SHARED.lock().await;
    let (yard, name) = (yard.clone(), name.to_owned());
    blocking(move || {
        let hub = match yard.hub() {
            Ok(hub) => Node::open(yard.node_net()?, hub, yard.outside()?).map_err(from_netns),
            Err(error) => Err(error),
        };
        let links = match hub {
            Ok(hub) => fabric::remove_port(&hub, &port_name(&name), &yard.link_mark_of(&name))
                .map_err(|errors| Error::new(Kind::Internal, format!("remove node {name}: {errors}"))),
            // Nobody to have a link to.
            Err(error) if error.kind() == Kind::NotFound => Ok(Outcome::Unchanged),
            Err(error) => Err(error),
        };
        let pin = netns::namespace::unpin(&yard.node_netns(&name)).map_err(from_netns);
        match (links?, pin?) {
            (Outcome::Unchanged, Outcome::Unchanged) => Ok(Outcome::Unchanged),
            _ => Ok(Outcome::Changed),
        }
    })
    .await
}

/// Routes exactly these other nodes' CIDRs and moved pods from `node`; the lists may name the node itself. Idempotent.
///
/// # Errors
/// As [`Node::set_peers`].
pub fn set_peers(node: &Node, peers: &[Peer], moved: &[Moved]) -> Result<Outcome> {
    node.set_peers(peers, moved).map_err(from_netns)
}

/// Puts back what others remove of the first node's network, as soon as the kernel tells of it. Runs until dropped.
///
/// # Cancellation
/// As [`ensure`].
pub async fn watch(yard: &Yard) {
    let places = || Ok(Some((yard.hub()?, yard.outside()?)));
    keep(&yard.node, places, || async { Ok(Some(ensure(yard).await?)) }).await;
}

/// What the step that makes a node's link says of itself.
const MAKES_A_LINK: &str = "create veth";

/// As [`watch`], for a further node; ends when the node was removed, and brings no removed node back. A cut link that was lost comes
/// back cut.
///
/// # Cancellation
/// As [`ensure_node`].
pub async fn watch_node(yard: &Yard, name: &str, cidr: Cidr) {
    let places = || match Namespace::open(&yard.node_netns(name)) {
        Err(error) if error.kind() == netns::Kind::NotFound => Ok(None),
        node => Ok(Some((node.map_err(from_netns)?, yard.hub()?))),
    };
    let was_cut = &AtomicBool::new(false);
    let ensured = || async move {
        let link = is_cut(yard, name);
        let made = ensure_shared(yard, name, cidr, Missing::Stays).await?;
        // It may have been lost before we looked, or between the look and the mending.
        let lost = link.is_err()
            || made.iter().flat_map(|(_, steps)| steps).any(|step| step.effect.contains(MAKES_A_LINK));
        let cut_before = link.unwrap_or_else(|_| was_cut.load(Ordering::Relaxed));
        was_cut.store(cut_before, Ordering::Relaxed);
        if lost && cut_before && made.is_some() {
            cut(yard, name).await?;
        }
        Ok(made)
    };
    keep(name, places, ensured).await;
}

/// Listens, ensures, waits for news, and again, until there is nothing to ensure any more.
async fn keep<F: Future<Output = Result<Option<(Arc<Node>, Vec<Step>)>>>>(
    name: &str,
    places: impl Fn() -> Result<Option<(Namespace, Namespace)>>,
    ensured: impl Fn() -> F,
) {
    let mut listening = None;
    loop {
        let turn = async {
            let (inside, outside) = match &mut listening {
                Some(monitors) => monitors,
                None => {
                    let Some((inside, outside)) = places()? else { return Ok(false) };
                    let open = |namespace| Monitor::open(namespace).map_err(from_netns);
                    listening.insert((open(&inside)?, open(&outside)?))
                }
            };
            let Some((node, steps)) = ensured().await? else { return Ok(false) };
            for step in steps {
                tracing::warn!(node = name, effect = step.effect, "network: put back");
            }
            let net = node.net();
            let news = tokio::select! {
                news = inside.concerns(net) => news,
                news = outside.concerns(net) => news,
            };
            news.map_err(from_netns)?;
            Ok::<bool, Error>(true)
        };
        match turn.await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(node = name, error = %error.chain(), "watch the node's network");
                listening = None;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_yard_has_its_own_link() {
        let one = Yard::isolated("one").unwrap().node_net().unwrap();
        let two = Yard::isolated("two").unwrap().node_net().unwrap();
        let host_link = |net: &NodeNet| match &net.uplink {
            Uplink::Host(link) => link.host_link.clone(),
            Uplink::Fabric(_) => unreachable!(),
        };
        assert_ne!(host_link(&one), host_link(&two));
        assert_eq!(one.gateway.to_string(), "10.244.0.1");
        assert_eq!(one.outer_address().to_string(), "10.244.0.255");
        assert_eq!(one.dns.unwrap().to_string(), "10.96.0.10");
        one.validate().unwrap();
    }

    #[test]
    fn further_nodes_have_names_and_addresses_of_their_own() {
        let yard = Yard::isolated("one").unwrap();
        let cidr = |text: &str| text.parse().unwrap();
        let net = |name, text| yard.further_net(name, cidr(text)).unwrap();
        let (one, two) = (net("n1", "10.244.1.0/24"), net("n2", "10.244.2.0/24"));
        one.validate().unwrap();
        assert_eq!(one.gateway.to_string(), "10.244.1.1");
        assert_eq!(one.port_alias(), "podyard/one/n1/port@10.244.1.1");
        assert_ne!(one.uplink, two.uplink);
        assert!(net("n1", "10.244.0.0/25").validate().is_err(), "the first node's");
        assert!(net("n1", "10.245.0.0/24").validate().is_err(), "not the cluster's");
        assert!(yard.further_net("n1", cidr("10.244.1.0/30")).is_err());
        for name in ["node-0", "host", "", "..", "a/b"] {
            assert_eq!(yard.check_further(name).unwrap_err().kind(), Kind::Invalid, "{name}");
        }
    }
}
