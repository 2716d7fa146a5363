//! A yard in namespaces of its own: a stand-in for the host, a node, and pods. Nothing of the real host is touched.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod cluster;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netns::{HostLink, Hub, Namespace, Node, NodeNet, PodNet, Uplink};

pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: needs root\n");
    }
    root
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub fn net() -> NodeNet {
    NodeNet {
        mark: "test/node-0".into(),
        bridge: "pods".into(),
        uplink: Uplink::Host(HostLink {
            name: "host".into(),
            host_link: "py-node-0".into(),
            host_address: [10, 88, 0, 2].into(),
            hub: Hub::No,
        }),
        gateway: [10, 88, 0, 1].into(),
        dns: None,
        pod_cidr: "10.88.0.0/22".parse().unwrap(),
        cluster_cidr: "10.88.0.0/22".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        mtu: 1500,
    }
}

pub fn pod_address(index: u32) -> Ipv4Addr {
    net().pod_cidr.nth(10 + index).unwrap()
}

pub fn pod(index: u32) -> PodNet {
    PodNet {
        link: format!("v{index:08x}"),
        owner: format!("uid-{index}"),
        address: pod_address(index),
        mtu: 1500,
        group: 0,
    }
}

pub struct Yard {
    pub node: Node,
    pub pods: Vec<Namespace>,
}

impl Yard {
    pub fn new(pods: u32) -> Self {
        let (namespace, host) = (Namespace::create().unwrap(), Namespace::create().unwrap());
        let (node, _) = block_on(Node::ensure(net(), namespace, host)).unwrap();
        let mut yard = Self { node, pods: Vec::new() };
        for index in 0..pods {
            let namespace = Namespace::create().unwrap();
            yard.node.attach(&pod(index), &namespace).unwrap();
            yard.pods.push(namespace);
        }
        yard
    }
}

/// Answers every TCP connection with its name, until dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(namespace: &Namespace, address: Ipv4Addr, port: u16, name: &str) -> Self {
        Self::on(namespace.listen(SocketAddr::from((address, port))).unwrap(), name)
    }

    fn on(listener: TcpListener, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, name) = (stop.clone(), name.to_owned());
        listener.set_nonblocking(true).unwrap();
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                let mut fds = [nix::poll::PollFd::new(
                    std::os::fd::AsFd::as_fd(&listener),
                    nix::poll::PollFlags::POLLIN,
                )];
                nix::poll::poll(&mut fds, 20_u16).unwrap();
                while let Ok((mut stream, peer)) = listener.accept() {
                    let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Connects from `from`, returns (server's name, the source address the server saw).
pub fn ask(from: &Namespace, address: Ipv4Addr, port: u16) -> std::io::Result<(String, String)> {
    let mut stream = from.connect_blocking(SocketAddr::from((address, port)), Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (name, source) = text.split_once(' ').unwrap();
    Ok((name.into(), source.into()))
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}
