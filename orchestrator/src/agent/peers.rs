//! Routes to the other nodes, as the Node objects say.

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use node::Cidr;
use node::network::{Peer, set_peers};
use tracing::warn;

use crate::node_parts::feed::{Feed, View};

/// Pause before the kernel is asked again after a refusal.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the routes until the feed ends. Before the first list they stay as they are.
pub(super) async fn run(mut feed: impl Feed, network: Arc<netns::Node>, name: String) {
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
        is_refused = match set_peers(&network, &peers, &[]) {
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
