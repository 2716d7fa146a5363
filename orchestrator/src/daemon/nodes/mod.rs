//! The node manager: makes further nodes as their objects wish, watches them, and fences them.
//!
//! ```text
//!  store ── watch ──► wish ─┐                    one task per node, one lock per node
//!  pidfd of its agent ──────┤
//!  heartbeats (memory) ─────┼─► look: plan (pure) ─► steps ─► Ready condition, if it changed
//!  one deadline ────────────┘
//!  controllers ── Call::Fence ──► fence (same lock)
//! ```
//! Nothing polls: a node at rest costs one timer per grace period, and nothing is written. The kernel is asked what
//! runs; the run directory holds only who the agent is, and that a cgroup was killed.

mod agent;
mod condition;
mod fence;
mod liveness;
mod plan;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{Error, Key, Kind, Object};
use node::Yard;
use node::host::from_runtime;
use registry::Registry;
use runtime::cgroup::Hierarchies;
use store::{End, EventKind, Scope, Store};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{error, info};

pub(in crate::daemon) use liveness::Liveness;

use super::fabric::Fabric;
use agent::Agent;

/// How long a node may be silent unless told otherwise.
pub(crate) const GRACE_PERIOD: Duration = Duration::from_secs(4);

/// All further nodes of a yard.
pub(in crate::daemon) struct Nodes<S> {
    registry: Arc<Registry<S>>,
    yard: Yard,
    binary: PathBuf,
    hierarchies: Arc<Hierarchies>,
    liveness: Arc<Liveness>,
    fabric: Arc<Fabric>,
    grace: Duration,
    born: Instant,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    /// Held while a node is given addresses.
    addresses: tokio::sync::Mutex<()>,
}

/// One further node.
struct Entry {
    name: String,
    /// Counts what was told of its object.
    news: watch::Sender<u64>,
    /// Rings when a fence changed what runs there.
    fenced: Notify,
    state: tokio::sync::Mutex<State>,
}

/// What a node's task knows. All of it could be found anew.
#[derive(Debug, Default)]
struct State {
    /// Whether the agent of a daemon before us was looked for.
    looked: bool,
    agent: Option<Agent>,
    /// Nothing of it ran, unwished, when this was last looked at.
    died: bool,
    /// It is not started before.
    rest_until: Option<Instant>,
    /// Starts in a row that ended soon.
    short_lives: u32,
    /// Directories and network were made since the agent last started.
    made: bool,
    /// Whether its link was cut, when that was last done.
    cut: Option<bool>,
    /// Puts back what others remove of its network.
    watch: tokio::task::JoinSet<()>,
    /// What was last told of as an Event.
    told: Option<String>,
}

/// What a task waits for.
enum Next {
    /// The node is no more.
    Gone,
    /// News; or this moment, if given; or to be heard of, if `listen`.
    Await { deadline: Option<Instant>, listen: bool },
}

impl<S: Store> Nodes<S> {
    /// A manager that does nothing yet.
    ///
    /// # Errors
    /// What this host lacks.
    pub(in crate::daemon) fn new(
        registry: Arc<Registry<S>>,
        yard: Yard,
        grace: Duration,
        (liveness, fabric): (Arc<Liveness>, Arc<Fabric>),
    ) -> node::Result<Arc<Nodes<S>>> {
        let binary = std::fs::canonicalize(&yard.binary)
            .map_err(|error| node::Error::io(format!("resolve {}", yard.binary.display()), error))?;
        Ok(Arc::new(Nodes {
            registry,
            yard,
            binary,
            hierarchies: Hierarchies::detect().map_err(from_runtime)?,
            liveness,
            fabric,
            grace,
            born: Instant::now(),
            entries: Mutex::default(),
            addresses: tokio::sync::Mutex::default(),
        }))
    }

    /// Manages nodes until the store closes.
    ///
    /// # Cancellation
    /// May stop anywhere: the next daemon looks at what there is.
    pub(in crate::daemon) async fn run(self: Arc<Self>) {
        let resource = Key::core("nodes", "", "").resource;
        loop {
            let store = self.registry.store();
            let scope = Scope { resource: Some(resource), namespace: None };
            let Ok(mut watch) = store.watch(scope, store.revision()) else { continue };
            let (_, nodes) = store.list(resource, None);
            let listed = nodes.iter().map(store::Record::object).filter(steps::is_ours);
            let names: BTreeSet<String> = listed.map(|node| node.name().to_owned()).collect();
            for name in names.iter().chain(&self.left_over()) {
                self.tell(name);
            }
            while let Some(event) = watch.next().await {
                let node = event.record.object();
                let is_known = || self.lock().contains_key(node.name());
                if steps::is_ours(&node) || (event.kind != EventKind::Deleted && is_known()) {
                    self.tell(node.name());
                }
            }
            if watch.end() == Some(End::Closed) {
                return;
            }
        }
    }

    /// Further nodes of which something is left on this host.
    fn left_over(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for dir in [self.yard.nodes_run_dir(), self.yard.nodes_data_dir()] {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            names.extend(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        }
        let cgroup = fence::cgroup(&self.hierarchies, &self.yard.nodes_cgroup());
        match cgroup.and_then(|cgroup| cgroup.children().map_err(from_runtime)) {
            Ok(children) => names.extend(children),
            Err(error) => error!(error = %error.chain(), "look for nodes that are no more"),
        }
        names.retain(|name| node::yard::is_node_name(name));
        names
    }

    /// Something about this node changed: its task looks. The first node has none, whatever its object says.
    fn tell(self: &Arc<Self>, name: &str) {
        if name == self.yard.node {
            return;
        }
        self.entry(name).news.send_modify(|count| *count += 1);
    }

    /// The node's entry, with a task that tends it.
    fn entry(self: &Arc<Self>, name: &str) -> Arc<Entry> {
        let mut entries = self.lock();
        if let Some(entry) = entries.get(name) {
            return Arc::clone(entry);
        }
        let entry = Arc::new(Entry {
            name: name.to_owned(),
            news: watch::Sender::new(0),
            fenced: Notify::new(),
            state: tokio::sync::Mutex::default(),
        });
        entries.insert(name.to_owned(), Arc::clone(&entry));
        tokio::spawn(Arc::clone(self).tend(Arc::clone(&entry)));
        entry
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        // Every change is whole before the lock is released.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after one node until it is no more.
    async fn tend(self: Arc<Self>, entry: Arc<Entry>) {
        let mut news = entry.news.subscribe();
        let mut failures = 0;
        loop {
            news.borrow_and_update();
            let (next, agent) = {
                let mut state = entry.state.lock().await;
                let next = match self.look(&entry.name, &mut state).await {
                    Ok(next) => {
                        failures = 0;
                        next
                    }
                    Err(error) => {
                        failures += 1;
                        self.complain(&entry.name, &mut state, &error).await;
                        let pause = Duration::from_millis(100 << failures.min(8));
                        Next::Await { deadline: Some(Instant::now() + pause), listen: false }
                    }
                };
                (next, state.agent.clone())
            };
            let (deadline, listen) = match next {
                Next::Await { deadline, listen } => (deadline, listen),
                Next::Gone => {
                    let mut entries = self.lock();
                    // News that came meanwhile is of another node by this name.
                    if news.has_changed().unwrap_or(false) {
                        continue;
                    }
                    entries.remove(&entry.name);
                    return;
                }
            };
            let due = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let ended = async {
                match &agent {
                    Some(agent) => agent.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is in the entry, which this task holds.
                _ = news.changed() => {}
                ended = ended => if let Err(error) = ended {
                    error!(node = entry.name, error = %error.chain(), "watch the agent");
                },
                () = due => {}
                () = self.liveness.notified(&entry.name), if listen => {}
                () = entry.fenced.notified() => {}
            }
        }
    }

    /// Ends all that runs on a node that is not ready, releases its claims and removes its pods.
    ///
    /// # Errors
    /// `Conflict` if the node is ready again, or another one by that name; `Denied` for a node that is not ours to end;
    /// `Busy`, naming them, if processes do not die.
    pub(in crate::daemon) async fn fence(self: &Arc<Self>, name: &str, uid: &str) -> Result<(), Error> {
        let key = Key::core("nodes", "", name);
        if name == self.yard.node {
            return Err(Error::denied(&key, "the first node lives in the daemon and cannot be fenced"));
        }
        let begun = std::time::Instant::now();
        let entry = self.entry(name);
        let mut state = entry.state.lock().await;
        let lock_micros = begun.elapsed().as_micros() as u64;
        let node = self.registry.store().get(&key).map(|record| record.object());
        match &node {
            None if uid.is_empty() => {}
            None => return Err(Error::not_found(&key)),
            Some(node) if node.uid() != uid => {
                return Err(Error::conflict(&key, "it is another node by that name"));
            }
            Some(node) if !api::node::is_managed(node) => {
                return Err(Error::denied(&key, "it is not a node that this daemon manages"));
            }
            Some(node) if api::node::ready(node) == "True" => {
                return Err(Error::conflict(&key, "it is ready again: its agent ends its pods"));
            }
            Some(_) => {
                let pods = fence::pods_of(&self.registry, name);
                if !pods.iter().any(Object::is_deleting) {
                    return Ok(());
                }
            }
        }
        let outcome = self.fence_locked(name, &mut state).await;
        drop(state);
        entry.fenced.notify_one();
        let fenced = outcome?;
        info!(
            node = name,
            pods = fenced.pods.len(),
            claims = fenced.claims.len(),
            lock_micros,
            kill_micros = fenced.kill_micros as u64,
            claims_micros = fenced.claims_micros as u64,
            pods_micros = fenced.pods_micros as u64,
            total_micros = begun.elapsed().as_micros() as u64,
            "fenced"
        );
        let manager = Arc::clone(self);
        tokio::spawn(async move { manager.tell_of_fence(node, fenced).await });
        Ok(())
    }
}

/// An error of the node crate as the API tells it.
fn to_api(error: &node::Error) -> Error {
    let kind = match error.kind() {
        node::Kind::NotFound => Kind::NotFound,
        node::Kind::AlreadyExists => Kind::AlreadyExists,
        node::Kind::Conflict => Kind::Conflict,
        node::Kind::Invalid => Kind::Invalid,
        node::Kind::Unsupported => Kind::Unsupported,
        node::Kind::Busy => Kind::Busy,
        node::Kind::Denied => Kind::Denied,
        node::Kind::Internal => Kind::Internal,
    };
    Error::new(kind, error.chain())
}
