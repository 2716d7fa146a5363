//! The agent's side of the link against a real server over TCP, which goes away and comes back.
#![allow(clippy::unwrap_used, reason = "a failed expectation of a test panics")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::{Error, Key, Kind as Refusal, Object, Part};
use client::{Client, Connect};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::BoxStream;
use hyper::body::Bytes;
use registry::{Config, DeleteOptions, Registry, WriteOptions};
use serde_json::{Value, json};
use server::yard::{Info, NamespaceMap, PodPlan, ServiceMap, StepAction, StepState, Trace};
use server::{Door, ExecRequest, ExecSession, Identity, LogOptions, NodeApi, Server};
use store::{Limits, Memory};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::feed::{Kind, RemoteFeed};
use super::{link, objects};
use crate::node_parts::feed::{Feed, Told};
use crate::node_parts::upstream::{Objects, Registrar};
use node::host::Upstream;

const DEADLINE: Duration = Duration::from_secs(20);

/// A daemon without a node.
struct Daemon {
    registry: Arc<Registry<Memory>>,
    address: SocketAddr,
    serving: Option<JoinHandle<()>>,
}

impl Daemon {
    async fn start() -> Daemon {
        let limits = Limits { events_max: 20, ..Limits::default() };
        let registry = Registry::open(Memory::with_limits(limits), Config::default()).await.unwrap();
        let mut daemon =
            Daemon { registry: Arc::new(registry), address: ([127, 0, 0, 1], 0).into(), serving: None };
        daemon.come_back();
        daemon
    }

    /// Serves, at the same address as before.
    fn come_back(&mut self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        let listener: TcpListener = socket.listen(64).unwrap();
        self.address = listener.local_addr().unwrap();
        let door = Arc::new(OneNode) as Arc<dyn Door>;
        let server = Server::new(Arc::clone(&self.registry), Arc::new(NoNode)).with_door(Arc::clone(&door));
        let serving = server::serve_tcp(listener, Arc::new(server), door, std::future::pending());
        self.serving = Some(tokio::spawn(serving));
    }

    /// Is killed: all its connections end.
    async fn die(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        let _ = serving.await;
    }

    fn client(&self) -> Client {
        let connect: Connect = Arc::new(|address| TcpStream::connect(address).boxed());
        Client::tcp(self.address, "secret", connect)
    }

    async fn create(&self, plural: &str, name: &str, more: Value) -> Object {
        let resource = api::resource_by_any_name(plural).unwrap();
        let mut object = more;
        object["metadata"] = json!({"name": name});
        let written = self.registry.create(resource, "default", object, &WriteOptions::default()).await;
        written.unwrap().object
    }

    async fn service(&self, name: &str) {
        let spec = json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}]}});
        self.create("services", name, spec).await;
    }

    async fn delete(&self, plural: &str, name: &str) {
        let key = Key::core(plural, "default", name);
        self.registry.delete(&key, &DeleteOptions::default()).await.unwrap();
    }
}

struct OneNode;

impl Door for OneNode {
    fn identify(&self, token: &str) -> Option<Identity> {
        (token == "secret").then(|| Identity::Node("n1".into()))
    }

    fn is_expected_from(&self, _: IpAddr) -> bool {
        true
    }

    fn revoked(&self, _: &str) -> BoxFuture<'static, ()> {
        std::future::pending().boxed()
    }

    fn heartbeat(&self, _: &str) {}
}

struct NoNode;

fn nothing<T: Send>() -> BoxFuture<'static, Result<T, Error>> {
    async { Err(Error::new(Refusal::Unsupported, "no node here")) }.boxed()
}

impl NodeApi for NoNode {
    fn logs(
        &self,
        _: Key,
        _: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<Bytes>>, Error>> {
        nothing()
    }
    fn exec(&self, _: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>> {
        nothing()
    }
    fn attach(&self, _: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>> {
        nothing()
    }
    fn trace(&self, _: Key) -> BoxFuture<'_, Result<Trace, Error>> {
        nothing()
    }
    fn step(&self, _: Key, _: StepAction) -> BoxFuture<'_, Result<StepState, Error>> {
        nothing()
    }
    fn namespaces(&self) -> BoxFuture<'_, Result<NamespaceMap, Error>> {
        nothing()
    }
    fn plan(&self, _: Object) -> BoxFuture<'_, Result<PodPlan, Error>> {
        nothing()
    }
    fn services(&self, _: Option<String>) -> BoxFuture<'_, Result<ServiceMap, Error>> {
        nothing()
    }
    fn info(&self) -> BoxFuture<'_, Result<Info, Error>> {
        nothing()
    }
}

async fn next(feed: &mut RemoteFeed) -> String {
    let names =
        |objects: Vec<Object>| objects.iter().map(|it| it.name().to_owned()).collect::<Vec<_>>().join(" ");
    match timeout(DEADLINE, feed.next()).await.unwrap().unwrap() {
        Told::All(objects) => format!("all: {}", names(objects)),
        Told::Changed(object) => format!("changed: {}", object.name()),
        Told::Gone(object) => format!("gone: {}", object.name()),
    }
}

#[tokio::test]
async fn a_feed_goes_on_after_a_restart_and_begins_anew_when_history_has_gone_on() {
    let mut daemon = Daemon::start().await;
    daemon.service("a").await;
    let (up, link) = watch::channel(false);
    tokio::spawn(link::keep(daemon.client(), "n1".into(), up));
    let kinds = vec![Kind::all("services"), Kind::all("endpointslices")];
    let mut feed = RemoteFeed::start(daemon.client(), link, kinds);
    assert_eq!(next(&mut feed).await, "all: a");
    daemon.service("b").await;
    assert_eq!(next(&mut feed).await, "changed: b");
    daemon.delete("services", "a").await;
    assert_eq!(next(&mut feed).await, "gone: a");
    // What happens while it is away is told, and nothing twice.
    daemon.die().await;
    daemon.service("c").await;
    daemon.delete("services", "b").await;
    daemon.come_back();
    assert_eq!(next(&mut feed).await, "changed: c");
    assert_eq!(next(&mut feed).await, "gone: b");
    // More than the history holds.
    daemon.die().await;
    for name in 0..30 {
        daemon.service(&format!("s{name}")).await;
        daemon.delete("services", &format!("s{name}")).await;
    }
    daemon.service("d").await;
    daemon.come_back();
    assert_eq!(next(&mut feed).await, "all: c d");
    daemon.service("e").await;
    assert_eq!(next(&mut feed).await, "changed: e");
}

#[tokio::test]
async fn the_link_tells_when_the_api_is_lost_and_when_it_is_back() {
    let mut daemon = Daemon::start().await;
    let (up, mut link) = watch::channel(false);
    tokio::spawn(link::keep(daemon.client(), "n1".into(), up));
    timeout(DEADLINE, link::wait_up(&mut link)).await.unwrap();
    daemon.die().await;
    timeout(DEADLINE, link::wait_down(&mut link)).await.unwrap();
    daemon.come_back();
    let begun = std::time::Instant::now();
    timeout(DEADLINE, link::wait_up(&mut link)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "a pause is a second at most");
}

#[tokio::test]
async fn an_agent_reads_and_writes_what_is_its_own() {
    let mut daemon = Daemon::start().await;
    let spec = |node: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "podyard.local/host"}]}})
    };
    daemon.create("nodes", "n1", json!({"apiVersion": "v1", "kind": "Node"})).await;
    let pod = daemon.create("pods", "mine", spec("n1")).await;
    daemon.create("pods", "theirs", spec("n2")).await;
    let (up, link) = watch::channel(true);
    let remote = Arc::new(objects::Remote::new(daemon.client(), link.clone()));
    let upstream = Registrar::open(Arc::clone(&remote), "n1");
    let own = vec![Kind::selected("pods", "spec.nodeName=n1")];
    let mut feed = RemoteFeed::start(daemon.client(), link, own);
    assert_eq!(next(&mut feed).await, "all: mine");
    // Its Node: the labels of the host and the status, once.
    let node = |time: &str| {
        Object(json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n1", "labels": {"kubernetes.io/os": "linux"}},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": time}]}}))
    };
    upstream.node(node("2026-01-01T00:00:00Z")).await.unwrap();
    let written = daemon.registry.get(&Key::core("nodes", "", "n1")).unwrap();
    assert_eq!(written.label("kubernetes.io/os"), Some("linux"));
    upstream.node(node("2026-01-02T00:00:00Z")).await.unwrap();
    let again = daemon.registry.get(&Key::core("nodes", "", "n1")).unwrap();
    assert_eq!(again.resource_version(), written.resource_version(), "nothing changed, nothing is written");
    // Its pod: status, and the last word.
    let status = json!({"phase": "Running"});
    let version = upstream.status(pod.key(), pod.uid().into(), status.clone()).await.unwrap();
    assert_eq!(next(&mut feed).await, "changed: mine");
    assert_eq!(upstream.status(pod.key(), pod.uid().into(), status.clone()).await.unwrap(), version);
    let other = upstream.status(pod.key(), "another".into(), status.clone()).await.unwrap_err();
    assert_eq!(other.kind(), Refusal::NotFound);
    let theirs = Key::core("pods", "default", "theirs");
    let denied = upstream.status(theirs, "u".into(), status.clone()).await.unwrap_err();
    assert_eq!(denied.kind(), Refusal::Denied);
    upstream.removed(pod.key(), "another".into()).await.unwrap();
    assert!(daemon.registry.get(&pod.key()).is_ok(), "another incarnation is not ours to finish");
    upstream.removed(pod.key(), pod.uid().into()).await.unwrap();
    upstream.removed(pod.key(), pod.uid().into()).await.unwrap();
    assert_eq!(next(&mut feed).await, "gone: mine");
    // Events, the same again counted.
    for _ in 0..2 {
        upstream.event(node::host::Event {
            about: Arc::new(pod.clone()),
            normal: true,
            reason: "Started",
            message: "m".into(),
        });
    }
    let events = api::resource_by_any_name("events").unwrap();
    let counted = async {
        loop {
            let list = daemon.registry.list(events, None, &registry::ListOptions::default()).unwrap();
            if list.objects().any(|event| event.get_i64("count") == Some(2)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, counted).await.unwrap();
    // Without the API, it is told soon.
    daemon.die().await;
    let gone = remote.get(&pod.key()).await.unwrap_err();
    assert_eq!(gone.kind(), Refusal::Unavailable);
    up.send_replace(false);
    let lost = timeout(DEADLINE, remote.update(node(""), Part::Status)).await.unwrap().unwrap_err();
    assert_eq!(lost.message, "the API cannot be reached");
}
