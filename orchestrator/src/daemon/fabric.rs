//! The API on the fabric: where further nodes reach the daemon, and how it reaches them.
//!
//! ```text
//!  node-0's network namespace                         a further node's network namespace
//!    <gateway>:6443  ◄── heartbeat, list, watch, write ── agent
//!    (a socket made there) ── logs, exec, trace, … ──────► agent  <its gateway>:10250
//! ```
//! The port is open only while there are further nodes. Each has a token; who has it may do what a node may do
//! ([`server::authorize`]), and the daemon shows the same one to the agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::{Client, Connect};
use futures::future::{BoxFuture, FutureExt};
use server::{Answer, Door, Identity, is_same_secret};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::remote_node::RemoteNode;
use crate::node_parts::AGENT_PORT;

/// The port of the API inside node-0's network namespace.
pub(super) const API_PORT: u16 = 6443;

/// Pause before the port is opened again after a refusal.
const RETRY: Duration = Duration::from_secs(1);

/// A node that was not heard of for this long is not waited for: streams from it end, requests to it are refused.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// Told of each heartbeat, with the node's name.
type OnBeat = Box<dyn Fn(&str) + Send + Sync>;

/// Who may come in, and the way to them.
pub(super) struct Fabric {
    network: Arc<netns::Node>,
    on_beat: OnBeat,
    nodes: Mutex<BTreeMap<String, Admitted>>,
    any: watch::Sender<bool>,
}

struct Admitted {
    address: Ipv4Addr,
    token: String,
    /// When it was last heard of.
    heard: Option<Instant>,
    /// Dropped when the token is worth nothing any more.
    valid: watch::Sender<()>,
}

impl Fabric {
    /// Nobody may come in yet. `on_beat` is told of each heartbeat; it must not wait.
    pub(super) fn new(
        network: Arc<netns::Node>,
        on_beat: impl Fn(&str) + Send + Sync + 'static,
    ) -> Arc<Fabric> {
        Arc::new(Fabric {
            network,
            on_beat: Box::new(on_beat),
            nodes: Mutex::default(),
            any: watch::channel(false).0,
        })
    }

    /// Lets a node in by this token, from its address, and opens the port if it is the first. Idempotent; another token
    /// ends what was opened with the one before.
    pub(super) fn admit(&self, node: &str, address: Ipv4Addr, token: &str) {
        let mut nodes = self.lock();
        let same = |known: &Admitted| known.address == address && known.token == token;
        if !nodes.get(node).is_some_and(same) {
            let (token, valid) = (token.to_owned(), watch::channel(()).0);
            nodes.insert(node.to_owned(), Admitted { address, token, heard: None, valid });
        }
        drop(nodes);
        self.any.send_if_modified(|any| !std::mem::replace(any, true));
    }

    /// Lets a node in no longer, ends its connections, and closes the port behind the last one. Idempotent.
    pub(super) fn forget(&self, node: &str) {
        let mut nodes = self.lock();
        nodes.remove(node);
        let any = !nodes.is_empty();
        drop(nodes);
        self.any.send_if_modified(|known| std::mem::replace(known, any) != any);
    }

    /// A further node, as far as it is asked about its pods.
    pub(super) fn node(self: &Arc<Self>, name: &str) -> Option<RemoteNode> {
        let (address, token) = {
            let nodes = self.lock();
            let node = nodes.get(name)?;
            (SocketAddr::from((node.address, AGENT_PORT)), node.token.clone())
        };
        let network = Arc::clone(&self.network);
        let connect: Connect = Arc::new(move |address| {
            let network = Arc::clone(&network);
            async move { network.namespace().connect(address).await }.boxed()
        });
        Some(RemoteNode::new(name, Client::tcp(address, &token, connect), Arc::clone(self)))
    }

    /// All further nodes.
    pub(super) fn nodes(self: &Arc<Self>) -> Vec<RemoteNode> {
        let names: Vec<String> = self.lock().keys().cloned().collect();
        names.iter().filter_map(|name| self.node(name)).collect()
    }

    /// Completes when a node has been silent for too long to wait for it.
    ///
    /// Costs a wake-up every few seconds as long as somebody waits.
    pub(super) async fn lost(&self, node: &str) {
        let asked = Instant::now();
        loop {
            let heard =
                self.lock().get(node).and_then(|node| node.heard).map_or(asked, |heard| heard.max(asked));
            if heard.elapsed() >= SILENCE_MAX {
                return;
            }
            tokio::time::sleep_until(heard + SILENCE_MAX).await;
        }
    }

    /// Serves further nodes whenever there are any. Does not end.
    pub(super) async fn serve<A: Answer>(self: Arc<Self>, server: Arc<A>) {
        let address = SocketAddr::from((self.network.net().gateway, API_PORT));
        let mut any = self.any.subscribe();
        loop {
            // The sender is ours: it does not go away.
            let _ = any.wait_for(|any| *any).await;
            let listener = match self.listen(address) {
                Ok(listener) => listener,
                Err(error) => {
                    warn!(%address, %error, "listen for further nodes");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            info!(%address, "listening for further nodes");
            let door = Arc::clone(&self) as Arc<dyn Door>;
            let none_left = async { drop(any.wait_for(|any| !*any).await) };
            server::serve_tcp(listener, Arc::clone(&server), door, none_left).await;
            info!(%address, "no further nodes");
        }
    }

    fn listen(&self, address: SocketAddr) -> std::io::Result<tokio::net::TcpListener> {
        let listener = self.network.namespace().listen(address)?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Admitted>> {
        // Every change is whole before the lock is released.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Door for Fabric {
    fn identify(&self, token: &str) -> Option<Identity> {
        // All are compared: the time tells nothing about which one was nearly right.
        let nodes = self.lock();
        let same = |known: &Admitted| is_same_secret(known.token.as_bytes(), token.as_bytes());
        let matches =
            nodes.iter().fold(None, |found, (name, known)| if same(known) { Some(name) } else { found });
        matches.map(|name| Identity::Node(name.clone()))
    }

    fn is_expected_from(&self, address: IpAddr) -> bool {
        self.lock().values().any(|node| IpAddr::V4(node.address) == address)
    }

    fn revoked(&self, token: &str) -> BoxFuture<'static, ()> {
        let nodes = self.lock();
        let valid = nodes.values().find(|node| node.token == token).map(|node| node.valid.subscribe());
        async move {
            if let Some(mut valid) = valid {
                // Nothing is ever sent: this ends with the sender.
                let _ = valid.changed().await;
            }
        }
        .boxed()
    }

    fn heartbeat(&self, node: &str) {
        if let Some(node) = self.lock().get_mut(node) {
            node.heard = Some(Instant::now());
        }
        (self.on_beat)(node);
    }
}
