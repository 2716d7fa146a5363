//! A yard of its own for each test: an agent on the real kernel, over an API that is a map.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use api::{Error, Key, Object};
use futures::future::BoxFuture;
use node::agent::{Agent, Config};
use node::fault::Fault;
use node::host::{Event, Upstream};
use node::{Yard, network, purge};
use serde_json::{Value, json};

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: needs root\n");
    }
    root
}

/// The API: objects in a map, and everybody is told of changes at once.
#[derive(Default)]
pub struct Map {
    pub objects: Mutex<BTreeMap<Key, Object>>,
    pub revision: AtomicU32,
    pub agent: Mutex<Weak<Agent>>,
    pub events: Mutex<Vec<(String, String, String)>>,
    pub status_writes: AtomicU32,
}

impl Map {
    pub fn put(&self, mut object: Object) -> Object {
        let revision = self.revision.fetch_add(1, Ordering::SeqCst) + 1;
        object.set_resource_version(Some(revision.into()));
        self.objects.lock().unwrap().insert(object.key(), object.clone());
        if object.kind() == "Pod"
            && let Some(agent) = self.agent.lock().unwrap().upgrade()
        {
            agent.changed(Arc::new(object.clone()));
        }
        object
    }

    pub fn get_now(&self, key: &Key) -> Option<Object> {
        self.objects.lock().unwrap().get(key).cloned()
    }
}

impl Upstream for Map {
    fn status(&self, pod: Key, uid: String, status: Value) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async move {
            let mut object = self.get_now(&pod).ok_or_else(|| Error::not_found(&pod))?;
            if object.uid() != uid {
                return Err(Error::conflict(&pod, "another uid"));
            }
            self.status_writes.fetch_add(1, Ordering::SeqCst);
            object.set("status", status);
            Ok(self.put(object).resource_version().unwrap())
        })
    }

    fn removed(&self, pod: Key, uid: String) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let mut objects = self.objects.lock().unwrap();
            match objects.get(&pod) {
                Some(object) if object.uid() == uid => {
                    objects.remove(&pod);
                    Ok(())
                }
                _ => Err(Error::not_found(&pod)),
            }
        })
    }

    fn get(&self, key: Key) -> BoxFuture<'_, Result<Object, Error>> {
        Box::pin(async move { self.get_now(&key).ok_or_else(|| Error::not_found(&key)) })
    }

    fn update(&self, object: Object) -> BoxFuture<'_, Result<Object, Error>> {
        Box::pin(async move {
            let key = object.key();
            let known = self.get_now(&key).ok_or_else(|| Error::not_found(&key))?;
            if known.resource_version() != object.resource_version() {
                return Err(Error::modified(&key));
            }
            Ok(self.put(object))
        })
    }

    fn node(&self, node: Object) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.put(node);
            Ok(())
        })
    }

    fn event(&self, event: Event) {
        let mut events = self.events.lock().unwrap();
        events.push((event.about.name().into(), event.reason.into(), event.message));
    }
}

/// A yard that is purged when dropped, with nothing left.
pub struct World {
    pub yard: Yard,
    pub api: Arc<Map>,
    pub agent: Option<Arc<Agent>>,
    dir: Option<tempfile::TempDir>,
}

impl World {
    pub async fn new() -> World {
        World::with_fault(None).await
    }

    pub async fn with_fault(fault: Option<&str>) -> World {
        let dir = tempfile::tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let name = format!("t{}-{number}", std::process::id());
        let mut yard = Yard::beneath(dir.path(), &name).unwrap();
        yard.binary = env!("CARGO_BIN_EXE_node-testbin").into();
        let mut world = World { yard, api: Arc::default(), agent: None, dir: Some(dir) };
        drop(world.yard.open().unwrap());
        world.start(fault).await;
        world
    }

    /// Starts an agent, as a daemon does.
    pub async fn start(&mut self, fault: Option<&str>) {
        let (network, _) = network::ensure(&self.yard).await.unwrap();
        let config = Config {
            yard: self.yard.clone(),
            network,
            applets: vec![],
            nameservers: vec![],
            links: Arc::default(),
            resolv_conf: None,
            fault: fault.map(|fault| fault.parse::<Fault>().unwrap()),
        };
        let agent = Agent::new(config, Arc::clone(&self.api) as Arc<dyn Upstream>).unwrap();
        *self.api.agent.lock().unwrap() = Arc::downgrade(&agent);
        let listed: Vec<Arc<Object>> = self
            .api
            .objects
            .lock()
            .unwrap()
            .values()
            .filter(|o| o.kind() == "Pod")
            .cloned()
            .map(Arc::new)
            .collect();
        agent.sync(&listed).unwrap();
        self.agent = Some(agent);
    }

    /// Ends the agent between two awaits, as SIGKILL would.
    pub fn stop(&mut self) {
        *self.api.agent.lock().unwrap() = Weak::new();
        self.agent = None;
    }

    pub fn agent(&self) -> &Arc<Agent> {
        self.agent.as_ref().unwrap()
    }

    /// A bound pod with address `10.244.0.<last>`.
    pub fn pod(&self, name: &str, last: u8, spec: Value) -> Object {
        let mut pod = Object(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": uid(&self.yard.name, name),
                "annotations": {"podyard.io/restart-backoff-base": "50ms"}},
            "spec": spec,
            "status": {"phase": "Pending", "podIP": format!("10.244.0.{last}")},
        }));
        pod.set("spec.nodeName", "node-0");
        pod
    }

    pub fn apply(&self, pod: Object) -> Key {
        let key = pod.key();
        self.api.put(pod);
        key
    }

    pub fn delete(&self, key: &Key, grace_secs: i64) {
        let mut pod = self.api.get_now(key).unwrap();
        let end = jiff::Timestamp::now().as_second() + grace_secs;
        pod.set("metadata.deletionTimestamp", jiff::Timestamp::from_second(end).unwrap().to_string());
        pod.set("metadata.deletionGracePeriodSeconds", grace_secs);
        self.api.put(pod);
    }

    /// Waits until the pod is as wished.
    #[track_caller]
    pub fn until(
        &self,
        key: &Key,
        what: &str,
        wished: impl Fn(Option<&Object>) -> bool,
    ) -> impl Future<Output = Option<Object>> {
        let api = Arc::clone(&self.api);
        let key = key.clone();
        let what = what.to_owned();
        let agent = self.agent.clone();
        let caller = std::panic::Location::caller();
        async move {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let object = api.get_now(&key);
                if wished(object.as_ref()) {
                    return object;
                }
                if Instant::now() > deadline {
                    let trace = agent.and_then(|agent| agent.trace(&key));
                    panic!("{caller}: {key} is not {what}: {object:#?}\n{trace:#?}");
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    #[track_caller]
    pub fn ready(&self, key: &Key) -> impl Future<Output = Option<Object>> {
        self.until(key, "ready", |pod| pod.is_some_and(is_ready))
    }

    #[track_caller]
    pub fn gone(&self, key: &Key) -> impl Future<Output = Option<Object>> {
        self.until(key, "gone", |pod| pod.is_none())
    }

    /// What is left of the pod on this host.
    pub fn leftovers(&self, uid: &str) -> Vec<String> {
        let host = self.agent().host();
        let paths = self.yard.pod(uid);
        let mut left = Vec::new();
        for dir in [&paths.dir, &paths.volumes_dir()] {
            if dir.exists() {
                left.push(dir.display().to_string());
            }
        }
        for cgroup in [paths.cgroup(), paths.shim_cgroup()] {
            if host.cgroup(&cgroup).unwrap().exists() {
                left.push(cgroup);
            }
        }
        let links = host.network.attachments().unwrap();
        left.extend(
            links.into_iter().filter(|link| link.owner.as_deref() == Some(uid)).map(|link| link.link),
        );
        left.extend(host.snapshots.list().unwrap().into_iter().filter(|key| key.starts_with(uid)));
        left
    }

    pub fn attempt(&self, key: &Key, container: &str) -> Option<(u32, i32)> {
        let seen = self.agent().seen(key).ok()?;
        let seen = seen.borrow();
        let last = seen.last(container)?;
        match last.state {
            node::observed::State::Running { pid, .. } => Some((last.number, pid)),
            _ => None,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop();
        let report = purge::purge(&self.yard).unwrap();
        if !std::thread::panicking() {
            assert_eq!(report.errors, Vec::<String>::new(), "{report}");
            assert!(!self.yard.run_dir.exists() && !self.yard.data_dir.exists());
        }
        self.dir.take();
    }
}

pub fn is_ready(pod: &Object) -> bool {
    pod.get_array("status.conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Unique on the host: names of cgroups derive from it.
pub fn uid(yard: &str, name: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (yard, name, std::process::id()).hash(&mut hasher);
    format!("{:016x}-{name}", hasher.finish())
}

/// A container of the host's programs.
pub fn sh(name: &str, script: &str) -> Value {
    json!({"name": name, "image": "podyard.local/host", "command": ["/bin/sh", "-c", script]})
}
