//! What all workers of a node share, and the door to the API above them.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object};
use futures::future::BoxFuture;
use rootfs::{Snapshots, Toolbox};
use runtime::cgroup::{Cgroup, Hierarchies};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Kind, Result};
use crate::journal::Journal;
use crate::yard::Yard;

/// How the agent reads and writes objects. The daemon implements it over the registry, tests over a map.
///
/// Each call is one commit at most. The agent repeats what fails with a transient error.
pub trait Upstream: Send + Sync + 'static {
    /// Replaces a pod's status, if the pod still has this uid. Answers its new resource version.
    fn status(&self, pod: Key, uid: String, status: Value) -> BoxFuture<'_, Result<u64, api::Error>>;

    /// The pod is gone from this node, observed: the last word of its deletion. Fine if it is not there.
    fn removed(&self, pod: Key, uid: String) -> BoxFuture<'_, Result<(), api::Error>>;

    /// Reads an object.
    fn get(&self, key: Key) -> BoxFuture<'_, Result<Object, api::Error>>;

    /// Writes an object's main part, at the resource version that it carries.
    fn update(&self, object: Object) -> BoxFuture<'_, Result<Object, api::Error>>;

    /// Makes or replaces this node's Node object, status included; writes nothing if nothing changed.
    fn node(&self, node: Object) -> BoxFuture<'_, Result<(), api::Error>>;

    /// Tells people. Never waits, may be dropped under load.
    fn event(&self, event: Event);
}

/// Something worth telling about an object.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// The object it is about.
    pub about: Arc<Object>,
    /// `true` for Normal, `false` for Warning.
    pub normal: bool,
    /// `Started`, `BackOff`, `Fenced` ...
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What all workers of a node share.
pub struct Host {
    /// Paths and names.
    pub yard: Yard,
    /// The name of the node.
    pub node: String,
    /// The node's own address.
    pub address: Ipv4Addr,
    /// The node's network.
    pub network: Arc<netns::Node>,
    /// This host's cgroups.
    pub hierarchies: Arc<Hierarchies>,
    /// Writable layers.
    pub snapshots: Snapshots,
    /// Claim volumes.
    pub volumes: rootfs::Volumes,
    /// What the toolbox image is made of.
    pub toolbox: Toolbox,
    /// What shims run.
    pub program: shim::spawn::Program,
    /// The API.
    pub upstream: Arc<dyn Upstream>,
    /// Steps taken.
    pub journal: Journal,
    /// Where faults strike, in tests.
    pub fault: crate::fault::Point,
    /// Capabilities that this host can give. /proc/self/status, `CapBnd`.
    pub bounding: u64,
    /// Nameservers for pods, or none.
    pub nameservers: Vec<Ipv4Addr>,
    /// What containers are told of Services.
    pub links: Arc<crate::links::Links>,
    /// The host's `resolv.conf`, if its pods shall know of it.
    pub resolv_conf: Option<PathBuf>,
    /// Removes links.
    pub detacher: Detacher,
}

impl Host {
    /// What the host's resolv.conf says now.
    pub fn resolv(&self) -> dns::Resolv {
        let Some(path) = &self.resolv_conf else { return dns::Resolv::default() };
        dns::Resolv::read(path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "read the host's nameservers");
            dns::Resolv::default()
        })
    }

    /// Names a cgroup of ours, which may or may not exist.
    ///
    /// # Errors
    /// `Invalid` for a path that leaves its place.
    pub fn cgroup(&self, path: &str) -> Result<Cgroup> {
        Cgroup::name(&self.hierarchies, path.as_ref()).map_err(from_runtime)
    }

    /// Kills everything in the cgroup and sees it empty: the proof that nothing of it runs.
    ///
    /// # Errors
    /// `Busy` if something does not die: it waits in the kernel (D state).
    pub async fn fence(&self, path: &str) -> Result<()> {
        let cgroup = self.cgroup(path)?;
        if !cgroup.populated().map_err(from_runtime)? {
            return Ok(());
        }
        cgroup.kill().map_err(from_runtime)?;
        let waited = cgroup.clone();
        let empty = blocking(move || waited.wait_empty(FENCE_TIMEOUT).map_err(from_runtime)).await?;
        if !empty {
            let pids = cgroup.pids().unwrap_or_default();
            let text = format!(
                "cgroup {path} is still populated {FENCE_TIMEOUT:?} after cgroup.kill: pids {pids:?}"
            );
            return Err(Error::new(Kind::Busy, text));
        }
        Ok(())
    }
}

/// How long killed processes may take to go before that is called a failure.
const FENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs what blocks on a thread that may.
///
/// # Errors
/// What `work` says, or `Internal` if it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::with(Kind::Internal, "blocking work", error))?
}

/// Removes links in batches: a deleted veth costs the kernel an RCU grace period of about 20 ms, and many at once
/// cost no more than one.
#[derive(Clone, Debug)]
pub struct Detacher {
    requests: mpsc::Sender<(netns::Attachment, oneshot::Sender<Result<(), String>>)>,
}

const BATCH_MAX: usize = 128;

impl Detacher {
    /// Starts the task that removes links of `network`. It ends when the last handle is dropped.
    pub fn start(network: Arc<netns::Node>) -> Detacher {
        let (requests, mut inbox) = mpsc::channel::<(netns::Attachment, oneshot::Sender<_>)>(BATCH_MAX);
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while inbox.recv_many(&mut batch, BATCH_MAX).await > 0 {
                let (links, askers): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
                let network = Arc::clone(&network);
                let result = tokio::task::spawn_blocking(move || network.detach_many(&links)).await;
                let result = match result {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(errors)) => Err(errors.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                for asker in askers {
                    // The asker may have left.
                    let _ = asker.send(result.clone());
                }
            }
        });
        Detacher { requests }
    }

    /// Removes one link, with whatever else is to be removed just then.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn detach(&self, link: netns::Attachment) -> Result<()> {
        let name = link.link.clone();
        let failed = |text: String| Error::new(Kind::Internal, format!("detach {name}: {text}"));
        let (answer, answered) = oneshot::channel();
        self.requests.send((link, answer)).await.map_err(|_| failed("the node is going down".into()))?;
        answered.await.map_err(|_| failed("the node is going down".into()))?.map_err(failed)
    }
}

/// An error of the runtime crate in this crate's terms.
pub fn from_runtime(error: runtime::Error) -> Error {
    let kind = match error.kind() {
        runtime::Kind::Invalid => Kind::Invalid,
        runtime::Kind::Unsupported => Kind::Unsupported,
        runtime::Kind::NotFound => Kind::NotFound,
        runtime::Kind::AlreadyExists => Kind::AlreadyExists,
        runtime::Kind::Busy | runtime::Kind::Timeout => Kind::Busy,
        runtime::Kind::Denied => Kind::Denied,
        runtime::Kind::Internal => Kind::Internal,
    };
    Error::new(kind, error.to_string())
}

/// An error of the rootfs crate in this crate's terms.
pub fn from_rootfs(error: rootfs::Error) -> Error {
    let kind = match error.kind() {
        rootfs::Kind::NotFound => Kind::NotFound,
        rootfs::Kind::AlreadyExists => Kind::AlreadyExists,
        rootfs::Kind::Conflict => Kind::Conflict,
        rootfs::Kind::Invalid => Kind::Invalid,
        rootfs::Kind::Unsupported => Kind::Unsupported,
        rootfs::Kind::Busy => Kind::Busy,
        rootfs::Kind::Denied => Kind::Denied,
        rootfs::Kind::Internal => Kind::Internal,
    };
    Error::new(kind, error.chain())
}

/// An error of the netns crate in this crate's terms.
pub fn from_netns(error: netns::Error) -> Error {
    let kind = match error.kind() {
        netns::Kind::NotFound => Kind::NotFound,
        netns::Kind::AlreadyExists => Kind::AlreadyExists,
        netns::Kind::Conflict => Kind::Conflict,
        netns::Kind::Invalid => Kind::Invalid,
        netns::Kind::Unsupported => Kind::Unsupported,
        netns::Kind::Busy => Kind::Busy,
        netns::Kind::Denied => Kind::Denied,
        netns::Kind::Internal => Kind::Internal,
    };
    Error::new(kind, format!("{error:#}"))
}

/// An error of the API in this crate's terms.
pub fn from_api(error: api::Error) -> Error {
    let kind = match error.kind() {
        api::Kind::NotFound | api::Kind::Gone => Kind::NotFound,
        api::Kind::AlreadyExists => Kind::AlreadyExists,
        api::Kind::Conflict => Kind::Conflict,
        api::Kind::Invalid | api::Kind::BadRequest => Kind::Invalid,
        api::Kind::Unsupported | api::Kind::MethodNotAllowed => Kind::Unsupported,
        api::Kind::Denied | api::Kind::Unauthorized => Kind::Denied,
        api::Kind::Busy | api::Kind::Timeout | api::Kind::Unavailable => Kind::Busy,
        api::Kind::Internal => Kind::Internal,
    };
    Error::new(kind, error.message)
}
