//! Routes to the other nodes, as the Node objects say.

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use node::Cidr;
use node::network::{Moved, Peer, set_peers};
use tracing::warn;

use crate::node_parts::feed::{Feed, View};

/// Pause before the kernel is asked again after a refusal.
const RETRY: Duration = Duration::from_secs(1);

/// Whose routes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// A further node's: all of them.
    Further,
    /// node-0's: those to the other nodes' blocks come with their links, so only addresses that moved matter.
    First,
}

/// Keeps the routes until the feed ends. Before the first list they stay as they are.
pub(crate) async fn run(mut feed: impl Feed, network: Arc<netns::Node>, name: String, of: Of) {
    let mut had_moved = false;
    let mut nodes = View::default();
    let mut is_refused = false;
    loop {
        let told = match is_refused {
            false => feed.next().await.map(Some),
            true => tokio::time::timeout(RETRY, feed.next()).await.map_or(Some(None), |told| told.map(Some)),
        };
        let Some(told) = told else { return };
        told.into_iter().chain(std::iter::from_fn(|| feed.try_next())).for_each(|told| nodes.take_in(told));
        let peers: Vec<Peer> = nodes.0.values().filter(|node| node.name() != name).filter_map(peer).collect();
        let moved: Vec<Moved> = nodes.0.values().flat_map(moved).collect();
        if of == Of::First && moved.is_empty() && !had_moved && !is_refused {
            continue;
        }
        had_moved = !moved.is_empty();
        is_refused = match set_peers(&network, &peers, &moved) {
            Ok(_) => false,
            Err(error) => {
                warn!(error = %error.chain(), "route to the other nodes");
                true
            }
        };
    }
}

/// Where a node's pods are: behind its gateway, the first of their addresses.
fn peer(node: &Object) -> Option<Peer> {
    let cidr: Cidr = node.get_str("spec.podCIDR")?.parse().ok()?;
    Some(Peer { cidr, gateway: cidr.nth(1)? })
}

/// Addresses that pods have kept on a node that is not their home.
fn moved(node: &Object) -> Vec<Moved> {
    let Some(Peer { gateway, .. }) = peer(node) else { return Vec::new() };
    api::node::moved(node).map(|address| Moved { address, gateway }).collect()
}
