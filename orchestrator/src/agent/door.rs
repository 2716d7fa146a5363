//! Who may ask an agent: the daemon, which knows the node's token.

use std::net::IpAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use server::{Door, Identity, is_same_secret};

/// Lets in the daemon.
pub(super) struct DaemonsDoor {
    token: Arc<str>,
    daemon: IpAddr,
}

impl DaemonsDoor {
    /// A door for who shows `token`; the daemon is at `daemon`.
    pub(super) fn new(token: Arc<str>, daemon: IpAddr) -> DaemonsDoor {
        DaemonsDoor { token, daemon }
    }
}

impl Door for DaemonsDoor {
    fn identify(&self, token: &str) -> Option<Identity> {
        is_same_secret(self.token.as_bytes(), token.as_bytes()).then_some(Identity::Root)
    }

    fn is_expected_from(&self, address: IpAddr) -> bool {
        address == self.daemon
    }

    fn revoked(&self, _: &str) -> BoxFuture<'static, ()> {
        // The token lives as long as this process.
        Box::pin(std::future::pending())
    }

    fn heartbeat(&self, _: &str) {}
}
