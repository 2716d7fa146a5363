//! Removes the data of volumes whose objects are deleted.

use std::sync::Arc;

use node::agent::Agent;
use tracing::error;

use crate::node_parts::feed::{Feed, Told};

/// The kinds that [`feed`] wants.
pub(super) const KINDS: &[&str] = &["persistentvolumes"];

/// Runs until the feed ends.
pub(super) async fn feed(mut feed: impl Feed, agent: Arc<Agent>) {
    while let Some(told) = feed.next().await {
        let Told::Gone(volume) = told else { continue };
        let agent = Arc::clone(&agent);
        // A large volume takes its time; the others do not wait for it.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = agent.volume_deleted(&volume) {
                error!(volume = volume.name(), error = %error.chain(), "remove the volume's data");
            }
        });
    }
}
