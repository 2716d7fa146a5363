//! When each further node was last heard of. In memory only: idle means that nothing is written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// The heartbeats of all further nodes.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Liveness {
    nodes: Mutex<BTreeMap<String, Heard>>,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    at: Option<Instant>,
    bell: Arc<Notify>,
}

impl Liveness {
    /// A node was heard of, now.
    pub(in crate::daemon) fn beat(&self, node: &str) {
        self.heard(node, |heard| {
            heard.at = Some(Instant::now());
            heard.bell.notify_one();
        });
    }

    /// When a node was last heard of, since this daemon is up.
    pub(in crate::daemon) fn seen(&self, node: &str) -> Option<Instant> {
        self.heard(node, |heard| heard.at)
    }

    /// Waits until a node is heard of. One waiter per node: the manager's. A beat that nobody waited for is told to
    /// the next one who does.
    ///
    /// # Cancellation
    /// Loses nothing.
    pub(in crate::daemon) async fn notified(&self, node: &str) {
        let bell = self.heard(node, |heard| Arc::clone(&heard.bell));
        bell.notified().await;
    }

    /// A node of this name is no more.
    pub(super) fn forget(&self, node: &str) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    fn heard<T>(&self, node: &str, look: impl FnOnce(&mut Heard) -> T) -> T {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        look(nodes.entry(node.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_beat_is_seen_and_rings_once() {
        let liveness = Liveness::default();
        assert_eq!(liveness.seen("n1"), None);
        let before = Instant::now();
        liveness.beat("n1");
        assert!(liveness.seen("n1").is_some_and(|seen| seen >= before));
        assert_eq!(liveness.seen("n2"), None);
        liveness.notified("n1").await;
        let again = tokio::time::timeout(std::time::Duration::from_millis(20), liveness.notified("n1"));
        assert!(again.await.is_err(), "one beat, one ring");
    }
}
