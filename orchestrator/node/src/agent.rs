//! The agent of one node: it gives every pod bound here a worker, and answers questions about them.
//!
//! It is told the complete list first ([`Agent::sync`]) and changes after that. Nothing is torn down before that
//! list: an empty cache must not read as "delete all".

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::{Key, Object};
use jiff::Timestamp;
use rootfs::{Snapshots, Toolbox};
use runtime::cgroup::Hierarchies;
use tokio::sync::watch;

use crate::desired::Desired;
use crate::error::{Error, Kind, Result};
use crate::exec::{self, Session, Streams};
use crate::fault::Fault;
use crate::gate::{Gate, Go, Stand};
use crate::gc;
use crate::host::{Detacher, Host, Upstream, from_runtime};
use crate::journal::{Journal, Trace};
use crate::logs::{self, LogOptions};
use crate::namespaces::{self, NamespaceInfo};
use crate::node_object;
use crate::observed::{Observed, State};
use crate::plan::{Run, Step, plan};
use crate::pod::Pod;
use crate::shim_client::from_shim;
use crate::worker::{Handle, Wish, Worker, is_running};
use crate::yard::Yard;

/// What an agent is made of.
pub struct Config {
    /// Paths and names.
    pub yard: Yard,
    /// The node's network.
    pub network: Arc<netns::Node>,
    /// Names of the toolbox image's applets.
    pub applets: Vec<String>,
    /// Nameservers for pods.
    pub nameservers: Vec<Ipv4Addr>,
    /// What containers are told of Services; kept by whoever knows them.
    pub links: Arc<crate::links::Links>,
    /// The host's `resolv.conf`, if its pods shall know of it.
    pub resolv_conf: Option<PathBuf>,
    /// A fault to strike with, in tests.
    pub fault: Option<Fault>,
}

/// The agent of one node.
pub struct Agent {
    host: Arc<Host>,
    pods: Mutex<Pods>,
}

#[derive(Default)]
struct Pods {
    synced: bool,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    name: String,
    pod: Arc<Pod>,
    handle: Handle,
}

impl Entry {
    /// The first container of the pod's spec: meant where none is named.
    fn first_container(&self) -> Option<String> {
        match &*self.handle.wish.borrow() {
            Wish::Object(pod) => pod.get_str("spec.containers.0.name").map(str::to_owned),
            Wish::Gone => None,
        }
    }
}

impl Agent {
    /// An agent that does nothing yet.
    ///
    /// # Errors
    /// What this host lacks.
    pub fn new(config: Config, upstream: Arc<dyn Upstream>) -> Result<Arc<Agent>> {
        let Config { yard, network, applets, nameservers, links, resolv_conf, fault } = config;
        let binary = std::fs::canonicalize(&yard.binary)
            .map_err(|error| Error::io(format!("resolve {}", yard.binary.display()), error))?;
        let point = crate::fault::Point::default();
        point.aim(fault);
        let host = Host {
            node: yard.node.clone(),
            address: network.net().gateway,
            hierarchies: Hierarchies::detect().map_err(from_runtime)?,
            snapshots: Snapshots::new(yard.snapshots_dir()),
            volumes: rootfs::Volumes::new(yard.volumes_dir()),
            toolbox: Toolbox { binary, applets },
            program: shim::spawn::Program::open(&yard.binary).map_err(from_shim)?,
            upstream,
            journal: Journal::default(),
            fault: point,
            bounding: bounding_set(),
            nameservers,
            links,
            resolv_conf,
            detacher: Detacher::start(Arc::clone(&network)),
            network,
            yard,
        };
        Ok(Arc::new(Agent { host: Arc::new(host), pods: Mutex::default() }))
    }

    /// What the workers share.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The node's own object, as it is now.
    pub fn node_object(&self) -> Object {
        node_object::node(&self.host, Timestamp::now())
    }

    /// The complete list of pods. Those bound here get a worker; what is here and not listed is torn down; what is
    /// of no pod is swept.
    ///
    /// # Errors
    /// The disk's answer; the agent does nothing then.
    pub fn sync(self: &Arc<Self>, listed: &[Arc<Object>]) -> Result<()> {
        let mut pods = self.lock();
        let ours = |pod: &&Arc<Object>| self.is_ours(pod);
        let wished: BTreeMap<&str, &Arc<Object>> =
            listed.iter().filter(ours).map(|pod| (pod.uid(), pod)).collect();
        let recorded = gc::recorded(&self.host)?;
        if !pods.synced {
            let known = recorded.iter().cloned().chain(wished.keys().map(|uid| (*uid).to_owned())).collect();
            let addresses =
                listed.iter().filter_map(|pod| pod.get_str("status.podIP")?.parse().ok()).collect();
            let found = gc::find(&self.host, &known, &addresses)?;
            pods.synced = true;
            tokio::spawn(gc::sweep(Arc::clone(&self.host), found));
        }
        for uid in &recorded {
            if !wished.contains_key(uid.as_str()) {
                self.wish(&mut pods, uid, Wish::Gone)?;
            }
        }
        for (uid, pod) in &wished {
            self.wish(&mut pods, uid, Wish::Object(Arc::clone(pod)))?;
        }
        for (uid, entry) in &pods.entries {
            if !wished.contains_key(uid.as_str()) {
                entry.handle.wish.send_replace(Wish::Gone);
            }
        }
        Ok(())
    }

    /// A pod was made or changed. Before [`Agent::sync`], and for pods of other nodes, nothing is done.
    pub fn changed(self: &Arc<Self>, pod: Arc<Object>) {
        let mut pods = self.lock();
        if !pods.synced || !self.is_ours(&pod) {
            return;
        }
        let uid = pod.uid().to_owned();
        if let Err(error) = self.wish(&mut pods, &uid, Wish::Object(pod)) {
            tracing::error!(%uid, error = %error.chain(), "take on pod");
        }
    }

    /// A pod is no longer known to the API: whatever is left of it goes.
    pub fn deleted(self: &Arc<Self>, pod: &Object) {
        let pods = self.lock();
        if let Some(entry) = pods.entries.get(pod.uid()) {
            entry.handle.wish.send_replace(Wish::Gone);
        }
    }

    /// The steps taken for a pod.
    pub fn trace(&self, pod: &Key) -> Option<Trace> {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let uid =
            self.lock().entries.iter().find(|(_, entry)| entry.name == name).map(|(uid, _)| uid.clone());
        uid.and_then(|uid| self.host.journal.by_uid(&uid)).or_else(|| self.host.journal.by_name(&name))
    }

    /// The steps that would be taken for this pod, from where it stands.
    pub fn plan(&self, pod: &Object) -> Vec<Step> {
        let seen = self.lock().entries.get(pod.uid()).map(|entry| entry.handle.seen.borrow().clone());
        let mut desired = Desired::from_object(pod);
        // A pod that is not bound yet will have an address once it is.
        desired.pod_ip.get_or_insert(Ipv4Addr::UNSPECIFIED);
        plan(&desired, &seen.unwrap_or_default(), Timestamp::now()).steps
    }

    /// Lets a pod that pauses go on; answers when it pauses again or is done.
    ///
    /// # Errors
    /// `NotFound` if it is not here.
    pub async fn step(&self, pod: &Key, go: Go) -> Result<Stand> {
        let gate: Arc<Gate> = self.with(pod, |entry| Arc::clone(&entry.handle.gate))?;
        Ok(gate.step(go).await)
    }

    /// What was last seen of a pod, and all that is seen of it later.
    ///
    /// # Errors
    /// `NotFound` if it is not here.
    pub fn seen(&self, pod: &Key) -> Result<watch::Receiver<Observed>> {
        self.with(pod, |entry| entry.handle.seen.clone())
    }

    /// Every namespace of the yard, and who is in it.
    ///
    /// # Errors
    /// What cannot be read.
    pub async fn namespaces(&self) -> Result<Vec<NamespaceInfo>> {
        let pods: Vec<(String, Arc<Pod>)> =
            self.lock().entries.values().map(|entry| (entry.name.clone(), Arc::clone(&entry.pod))).collect();
        namespaces::map(&self.host, &pods).await
    }

    /// Runs a program in a running container; the pod's first one, if none is named.
    ///
    /// # Errors
    /// `NotFound` for pod or container; `Conflict` if it does not run; the shim's refusal.
    pub async fn exec(
        &self,
        pod: &Key,
        container: Option<&str>,
        command: &[String],
        streams: Streams,
    ) -> Result<Session> {
        let (pod, seen) =
            self.with(pod, |entry| (Arc::clone(&entry.pod), entry.handle.seen.borrow().clone()))?;
        let (name, attempts) = pick(&seen, container)?;
        let last = attempts.last().filter(|last| matches!(last.state, State::Running { .. }));
        let last =
            last.ok_or_else(|| Error::new(Kind::Conflict, format!("container {name} does not run")))?;
        let run = Run { container: name.to_owned(), attempt: last.number };
        exec::exec(&pod, &run, command, streams).await
    }

    /// A container's log.
    ///
    /// # Errors
    /// `NotFound` for pod, container or (with `previous`) an earlier run.
    pub fn logs(&self, pod: &Key, container: Option<&str>, options: LogOptions) -> Result<logs::Log> {
        let (uid, seen, first) = self.with(pod, |entry| {
            (entry.pod.paths().uid().to_owned(), entry.handle.seen.clone(), entry.first_container())
        })?;
        let now = seen.borrow().clone();
        let (name, attempts) = pick(&now, container.or(first.as_deref()))?;
        let ran = attempts.iter().rev().filter(|attempt| attempt.state != State::Recorded);
        let attempt =
            ran.map(|attempt| attempt.number).nth(usize::from(options.previous)).ok_or_else(|| {
                let which = if options.previous { "previous terminated" } else { "started" };
                Error::new(
                    Kind::NotFound,
                    format!("{which} container {name:?} in pod {:?} not found", pod.name),
                )
            })?;
        let path: PathBuf = self.host.yard.container_log((&pod.namespace, &pod.name, &uid), name, attempt);
        let name = name.to_owned();
        Ok(logs::Log::open(path, options, seen, move |seen| is_running(seen, &name, attempt)))
    }

    fn with<T>(&self, pod: &Key, look: impl FnOnce(&Entry) -> T) -> Result<T> {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let pods = self.lock();
        let entry = pods.entries.values().find(|entry| entry.name == name);
        entry.map(look).ok_or_else(|| Error::new(Kind::NotFound, format!("pod {name} is not on this node")))
    }

    fn is_ours(&self, pod: &Object) -> bool {
        pod.get_str("spec.nodeName") == Some(self.host.node.as_str()) && !pod.uid().is_empty()
    }

    /// Tells the pod's worker, which is made if there is none.
    fn wish(self: &Arc<Self>, pods: &mut Pods, uid: &str, wish: Wish) -> Result<()> {
        if let Some(entry) = pods.entries.get(uid) {
            entry.handle.wish.send_replace(wish);
            return Ok(());
        }
        check_uid(uid)?;
        let pod = Arc::new(Pod::load(Arc::clone(&self.host), uid)?);
        let name = match &wish {
            Wish::Object(object) => format!("{}/{}", object.namespace(), object.name()),
            Wish::Gone => {
                pod.record().map(|record| format!("{}/{}", record.namespace, record.name)).unwrap_or_default()
            }
        };
        let (worker, handle) = Worker::new(Arc::clone(&pod), wish);
        pods.entries.insert(uid.to_owned(), Entry { name, pod, handle });
        let agent = Arc::downgrade(self);
        let uid = uid.to_owned();
        tokio::spawn(async move {
            let fulfilled = worker.run().await;
            let Some(agent) = agent.upgrade() else { return };
            let mut pods = agent.lock();
            let Some(entry) = pods.entries.remove(&uid) else { return };
            // A wish that came while the worker ended must not be lost.
            let latest = entry.handle.wish.borrow().clone();
            if matches!(latest, Wish::Object(_))
                && latest != fulfilled
                && let Err(error) = agent.wish(&mut pods, &uid, latest)
            {
                tracing::error!(%uid, error = %error.chain(), "take on pod");
            }
        });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Pods> {
        // Every change is whole before the lock is released.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The container named, or the only one.
fn pick<'a>(seen: &'a Observed, name: Option<&str>) -> Result<(&'a str, &'a [crate::observed::Attempt])> {
    let found = match name {
        Some(name) => seen.attempts.get_key_value(name),
        None => seen.attempts.first_key_value(),
    };
    found.map(|(name, attempts)| (name.as_str(), attempts.as_slice())).ok_or_else(|| {
        Error::new(Kind::NotFound, format!("container {:?} has not started", name.unwrap_or("")))
    })
}

/// Uids become names of directories and cgroups.
fn check_uid(uid: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if uid.is_empty() || uid.len() > 64 || uid.starts_with('-') || !uid.chars().all(plain) {
        return Err(Error::new(Kind::Invalid, format!("pod uid {uid:?}")));
    }
    Ok(())
}

/// Capabilities that a process of ours can have. proc_pid_status(5), `CapBnd`.
fn bounding_set() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
}
