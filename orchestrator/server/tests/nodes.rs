//! The server over TCP: tokens, identities, limits, heartbeats.
#![allow(clippy::unwrap_used, reason = "a failed expectation of a test panics")]

mod harness;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api::{Key, Kind};
use client::{
    Client, DeleteOptions, ListOptions, LogOptions, Method, Output, Request, WatchOptions, WriteOptions,
};
use futures::future::{BoxFuture, FutureExt};
use harness::{FakeNode, key, pod, pods};
use registry::{Config, Registry};
use serde_json::json;
use server::{Door, Identity, NodeServer, Server, is_same_secret};
use store::Memory;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

/// One node, n1, whose token is `secret`; one root, whose token is `root`.
struct OneNode {
    beats: AtomicU64,
    /// Whether the test's own address is a node's.
    is_expected: AtomicBool,
    valid: watch::Sender<bool>,
}

impl OneNode {
    fn new(is_expected: bool) -> Arc<OneNode> {
        let valid = watch::channel(true).0;
        Arc::new(OneNode { beats: AtomicU64::new(0), is_expected: AtomicBool::new(is_expected), valid })
    }
}

impl Door for OneNode {
    fn identify(&self, token: &str) -> Option<Identity> {
        let of_node = is_same_secret(token.as_bytes(), b"secret") && *self.valid.borrow();
        let of_root = is_same_secret(token.as_bytes(), b"root");
        if of_root { Some(Identity::Root) } else { of_node.then(|| Identity::Node("n1".into())) }
    }

    fn is_expected_from(&self, _: IpAddr) -> bool {
        self.is_expected.load(Ordering::Relaxed)
    }

    fn revoked(&self, _: &str) -> BoxFuture<'static, ()> {
        let mut valid = self.valid.subscribe();
        async move { drop(valid.wait_for(|valid| !valid).await) }.boxed()
    }

    fn heartbeat(&self, node: &str) {
        assert_eq!(node, "n1");
        self.beats.fetch_add(1, Ordering::Relaxed);
    }
}

struct Yard {
    door: Arc<OneNode>,
    registry: Arc<Registry<Memory>>,
    address: SocketAddr,
}

impl Yard {
    async fn start(is_expected: bool) -> Yard {
        let door = OneNode::new(is_expected);
        let registry = Arc::new(Registry::open(Memory::new(), Config::default()).await.unwrap());
        let server = Server::new(Arc::clone(&registry), Arc::new(FakeNode::default()));
        let server = Arc::new(server.with_door(Arc::clone(&door) as Arc<dyn Door>));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door_of_server = Arc::clone(&door) as Arc<dyn Door>;
        tokio::spawn(server::serve_tcp(listener, server, door_of_server, std::future::pending()));
        Yard { door, registry, address }
    }

    fn client(&self, token: &str) -> Client {
        client_of(self.address, token)
    }
}

fn client_of(address: SocketAddr, token: &str) -> Client {
    Client::tcp(address, token, Arc::new(|address| TcpStream::connect(address).boxed()))
}

#[tokio::test]
async fn nobody_without_a_token() {
    let yard = Yard::start(false).await;
    for token in ["", "wrong", "secre", "secrets", "Secret"] {
        let error = yard.client(token).list(pods(), None, &ListOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), Some(Kind::Unauthorized), "{token:?}");
    }
    // The answer is a Status; the connection ends with it.
    let mut stream = TcpStream::connect(yard.address).await.unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(answer.contains("\"reason\":\"Unauthorized\""), "{answer}");
}

#[tokio::test]
async fn a_node_does_its_work_and_no_more() {
    let yard = Yard::start(true).await;
    let (root, node) = (yard.client("root"), yard.client("secret"));
    let options = WriteOptions::default();
    let resource = |name| api::resource_by_any_name(name).unwrap();
    for name in ["n1", "n2"] {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        root.create(resource("nodes"), "", &object, &options).await.unwrap();
        let mut object = pod(&format!("of-{name}"));
        object["spec"]["nodeName"] = name.into();
        root.create(pods(), "default", &object, &options).await.unwrap();
    }
    // It sees its own pods.
    let own = |fields: &str| ListOptions { fields: Some(fields.into()), ..ListOptions::default() };
    let listed = node.list(pods(), None, &own("spec.nodeName=n1")).await.unwrap();
    assert_eq!(listed.items.iter().map(|pod| pod.name()).collect::<Vec<_>>(), ["of-n1"]);
    let denied = |error: client::Error| assert_eq!(error.kind(), Some(Kind::Denied), "{error}");
    denied(node.list(pods(), None, &own("spec.nodeName=n2")).await.unwrap_err());
    denied(node.get(&key("of-n2")).await.unwrap_err());
    denied(node.logs(&key("of-n1"), &LogOptions::default()).await.err().unwrap());
    assert!(node.get(&key("of-n3")).await.unwrap_err().is_not_found());
    // It tells what became of them, and says their last word.
    let mut mine = node.get(&key("of-n1")).await.unwrap();
    mine.set("status.phase", "Running");
    node.update(&key("of-n1"), Some("status"), &mine.0, &options).await.unwrap();
    denied(node.update(&key("of-n1"), None, &mine.0, &options).await.unwrap_err());
    denied(node.update(&key("of-n2"), Some("status"), &mine.0, &options).await.unwrap_err());
    denied(node.delete(&key("of-n1"), &DeleteOptions::default()).await.unwrap_err());
    let last = |uid: &str| DeleteOptions {
        grace_period_secs: Some(0),
        uid: Some(uid.into()),
        ..DeleteOptions::default()
    };
    node.delete(&key("of-n1"), &last(mine.uid())).await.unwrap();
    assert!(root.get(&key("of-n1")).await.unwrap_err().is_not_found());
    // A watch of what it may see, and none of what it may not.
    let fields = Some("spec.nodeName=n1".to_owned());
    let watch_of = |fields| WatchOptions { fields, ..WatchOptions::default() };
    assert!(node.watch(pods(), None, &watch_of(fields)).await.is_ok());
    denied(node.watch(pods(), None, &watch_of(None)).await.err().unwrap());
    denied(node.delete(&Key::core("nodes", "", "n1"), &DeleteOptions::default()).await.unwrap_err());
}

#[tokio::test]
async fn hearts_beat_over_one_connection_until_the_token_is_revoked() {
    let yard = Yard::start(true).await;
    let mut session = yard.client("secret").session().await.unwrap();
    let beat = || Request::new(Method::POST, "/podyard/v1/nodes/n1/heartbeat");
    for count in 1..=3 {
        session.request(beat()).await.unwrap();
        assert_eq!(yard.door.beats.load(Ordering::Relaxed), count);
    }
    let other = Request::new(Method::POST, "/podyard/v1/nodes/n2/heartbeat");
    let refused = session.request(other).await.unwrap_err();
    assert_eq!(refused.kind(), Some(Kind::Denied), "and the session goes on");
    session.request(beat()).await.unwrap();
    let mut watch = yard
        .client("secret")
        .watch(api::resource_by_any_name("services").unwrap(), None, &WatchOptions::default())
        .await
        .unwrap();
    yard.door.valid.send_replace(false);
    let ended = timeout(DEADLINE, watch.next()).await.unwrap();
    assert!(ended.is_none_or(|event| event.is_err()), "a watch ends with the token it was opened with");
    assert!(session.request(beat()).await.is_err());
    let error = yard.client("secret").session().await.unwrap().request(beat()).await.unwrap_err();
    assert_eq!(error.kind(), Some(Kind::Unauthorized));
    drop(yard.registry);
}

#[tokio::test]
async fn a_flood_of_strangers_leaves_room_for_nodes_and_is_ended() {
    let yard = Yard::start(false).await;
    let begun = Instant::now();
    let mut strangers = Vec::new();
    for _ in 0..500 {
        strangers.push(TcpStream::connect(yard.address).await.unwrap());
    }
    yard.door.is_expected.store(true, Ordering::Relaxed);
    let one = timeout(DEADLINE, yard.client("secret").get(&Key::core("nodes", "", "n1"))).await.unwrap();
    assert!(one.unwrap_err().is_not_found(), "a node is served beside them");
    // Those that got a slot lose it, because they say nothing; the others lost their connection at once.
    for mut stream in strangers {
        let mut byte = [0];
        let read = timeout(DEADLINE, stream.read(&mut byte)).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "closed");
    }
    assert!(begun.elapsed() < DEADLINE);
}

#[tokio::test]
async fn an_agent_serves_its_pods_to_the_daemon() {
    let door = OneNode::new(true) as Arc<dyn Door>;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::new(NodeServer::new(Arc::new(FakeNode::default())));
    tokio::spawn(server::serve_tcp(listener, server, door, std::future::pending()));
    let daemon = client_of(address, "root");
    let options = LogOptions { container: Some("main".into()), ..LogOptions::default() };
    let mut log = daemon.logs(&key("a"), &options).await.unwrap();
    assert_eq!(log.next().await.unwrap().unwrap(), "a main tail=None\n");
    let command = vec!["both".to_owned()];
    let options = client::ExecOptions { command, ..client::ExecOptions::default() };
    let (_input, mut output) = daemon.exec(&key("a"), &options).await.unwrap();
    let mut said = Vec::new();
    while let Some(piece) = timeout(DEADLINE, output.next()).await.unwrap() {
        said.push(piece.unwrap());
    }
    assert!(said.contains(&Output::Stdout("out".into())) && said.contains(&Output::Exit(3)), "{said:?}");
    let (trace, _) = daemon.request_json(Request::get("/podyard/v1/trace/default/a")).await.unwrap();
    assert_eq!(trace["pod"], "default/a");
    let planned = Request::new(Method::POST, "/podyard/v1/pod-plan").json(&pod("a"));
    let (plan, _) = daemon.request_json(planned).await.unwrap();
    assert_eq!(plan["steps"][0]["step"], "container main start");
    // It has no objects, and other nodes have nothing to ask.
    assert!(daemon.get(&key("a")).await.unwrap_err().is_not_found());
    let other = client_of(address, "secret").request(Request::get("/podyard/v1/info")).await;
    assert_eq!(other.unwrap_err().kind(), Some(Kind::Denied));
}
