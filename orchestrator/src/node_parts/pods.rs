//! Tells an agent of the pods bound to its node.

use std::sync::Arc;

use node::agent::Agent;
use tracing::error;

use super::feed::{Feed, Told};

/// The kinds that [`feed`] wants.
pub(crate) const KINDS: &[&str] = &["pods"];

/// Feeds the agent until the feed ends. Before the first list, nothing is started or ended.
pub(crate) async fn feed(mut feed: impl Feed, agent: Arc<Agent>) {
    while let Some(told) = feed.next().await {
        match told {
            Told::All(pods) => {
                let listed: Vec<_> = pods.into_iter().map(Arc::new).collect();
                if let Err(error) = agent.sync(&listed) {
                    error!(error = %error.chain(), "read the pods that are here; nothing is started or ended");
                    return;
                }
            }
            Told::Changed(pod) => agent.changed(Arc::new(pod)),
            Told::Gone(pod) => agent.deleted(&pod),
        }
    }
}
