//! The network of further nodes, as the daemon and an agent use it: on the real kernel, in a yard of the test's own.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::future::Future;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use netns::{Cidr, Namespace, Node, Outcome, PodNet};
use node::network::{self, Peer};
use node::{Yard, error::Kind, purge};

static NUMBER: AtomicU32 = AtomicU32::new(0);

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = Write::write_all(&mut std::io::stderr(), b"SKIP: needs root\n");
    }
    root
}

/// A yard without a daemon, purged when dropped.
struct World {
    yard: Yard,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let yard = Yard::beneath(dir.path(), &format!("net{}-{number}", std::process::id())).unwrap();
        drop(yard.open().unwrap());
        World { yard, dir }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let report = purge::purge(&self.yard);
        let left = mounts_beneath(self.dir.path());
        if !std::thread::panicking() {
            assert_eq!(report.unwrap().errors, Vec::<String>::new());
            assert_eq!(left, Vec::<String>::new());
        }
    }
}

fn mounts_beneath(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect()
}

fn cidr(index: u8) -> Cidr {
    Cidr::around(Ipv4Addr::new(10, 244, index, 0), 24)
}

fn name(index: u8) -> String {
    format!("n{index}")
}

/// A pod's namespace with a server that says where it is.
fn serve(node: &Node, index: u8) -> (Namespace, Ipv4Addr) {
    let namespace = Namespace::create().unwrap();
    let address = node.net().pod_cidr.nth(10).unwrap();
    let pod =
        PodNet { link: "v00000001".into(), owner: "uid-1".into(), address, mtu: node.net().mtu, group: 0 };
    node.attach(&pod, &namespace).unwrap();
    let listener = namespace.listen((address, 80).into()).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            _ = stream.write_all(&[index]);
        }
    });
    (namespace, address)
}

fn ask(from: &Namespace, address: Ipv4Addr) -> std::io::Result<u8> {
    let mut stream = from.connect_blocking(SocketAddr::from((address, 80)), Duration::from_millis(700))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_nodes_come_are_cut_and_go() {
    if !root() {
        return;
    }
    let world = World::new();
    let yard = &world.yard;
    let (first, _) = network::ensure(yard).await.unwrap();
    let mut nodes: Vec<Arc<Node>> = vec![first];
    for index in 1..3 {
        let started = Instant::now();
        let (node, steps) = network::ensure_node(yard, &name(index), cidr(index)).await.unwrap();
        println!("ensure_node: {} steps, {:?}", steps.len(), started.elapsed());
        let started = Instant::now();
        let again = network::ensure_node(yard, &name(index), cidr(index)).await.unwrap();
        assert_eq!(again.1, []);
        println!("again: {:?}", started.elapsed());
        nodes.push(node);
    }
    let peers: Vec<Peer> = (0..3).map(|i| Peer { cidr: cidr(i), gateway: cidr(i).nth(1).unwrap() }).collect();
    // An agent opens what the daemon made.
    let opened = network::open_node(yard, "n1", cidr(1)).unwrap();
    assert_eq!(opened.namespace().inode().unwrap(), nodes[1].namespace().inode().unwrap());
    assert_eq!(opened.net().dns, Some(Ipv4Addr::new(10, 96, 0, 10)));
    nodes[1] = opened;
    for node in &nodes {
        network::set_peers(node, &peers, &[]).unwrap();
        assert_eq!(network::set_peers(node, &peers, &[]).unwrap(), Outcome::Unchanged);
    }
    let pods: Vec<_> = (0..3).map(|index| serve(&nodes[usize::from(index)], index)).collect();
    let reached = |from: usize, to: usize| ask(&pods[from].0, pods[to].1).ok() == u8::try_from(to).ok();
    let host = Namespace::open(&yard.host_netns()).unwrap();
    for (to, (_, address)) in pods.iter().enumerate() {
        assert!((0..3).all(|from| reached(from, to)), "{to}");
        assert_eq!(ask(&host, *address).unwrap(), u8::try_from(to).unwrap());
    }

    assert!(!network::is_cut(yard, "n1").unwrap());
    let started = Instant::now();
    assert_eq!(network::cut(yard, "n1").await.unwrap(), Outcome::Changed);
    println!("cut: {:?}", started.elapsed());
    assert!(network::is_cut(yard, "n1").unwrap());
    assert!(!reached(0, 1) && !reached(1, 2) && reached(1, 1) && reached(0, 2));
    assert_eq!(network::ensure_node(yard, "n1", cidr(1)).await.unwrap().1, []);
    assert!(network::is_cut(yard, "n1").unwrap(), "not healed by the way");
    assert_eq!(network::heal(yard, "n1").await.unwrap(), Outcome::Changed);
    eventually("healed", || reached(0, 1) && reached(1, 2));

    let refused = network::ensure_node(yard, "n3", cidr(2)).await.err().unwrap();
    assert_eq!(refused.kind(), Kind::Conflict, "{}", refused.chain());
    assert_eq!(network::remove_node(yard, "n3").await.unwrap(), Outcome::Changed, "its namespace");
    for name in ["node-0", "host"] {
        assert_eq!(network::cut(yard, name).await.unwrap_err().kind(), Kind::Invalid);
        assert_eq!(network::remove_node(yard, name).await.unwrap_err().kind(), Kind::Invalid);
    }
    assert_eq!(network::cut(yard, "n9").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(network::remove_node(yard, "n9").await.unwrap(), Outcome::Unchanged);

    let started = Instant::now();
    assert_eq!(network::remove_node(yard, "n1").await.unwrap(), Outcome::Changed);
    println!("remove_node: {:?}", started.elapsed());
    assert_eq!(network::remove_node(yard, "n1").await.unwrap(), Outcome::Unchanged);
    assert!(!reached(0, 1) && reached(0, 2));
    assert_eq!(network::is_cut(yard, "n1").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(network::open_node(yard, "n1", cidr(1)).err().unwrap().kind(), Kind::NotFound);
    network::remove_node(yard, "n2").await.unwrap();
    let table = host.run(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap()).unwrap();
    assert_eq!(table.lines().count(), 1 + 3, "as for a node alone: {table}");
    // A node of the same name with other addresses.
    let (again, _) = network::ensure_node(yard, "n1", cidr(7)).await.unwrap();
    assert_eq!(again.net().gateway, Ipv4Addr::new(10, 244, 7, 1));
}

/// A daemon that is killed stops between any two answers of the kernel.
#[tokio::test]
async fn root_set_up_stopped_anywhere_is_completed() {
    if !root() {
        return;
    }
    let world = World::new();
    let yard = &world.yard;
    let (first, _) = network::ensure(yard).await.unwrap();
    let mut polls = 1;
    loop {
        let done = {
            let ensure = network::ensure_node(yard, "n1", cidr(1));
            polled(ensure, polls).await.is_some()
        };
        let (node, _) = network::ensure_node(yard, "n1", cidr(1)).await.unwrap();
        assert_eq!(network::ensure_node(yard, "n1", cidr(1)).await.unwrap().1, [], "after {polls}");
        let (pod, address) = serve(&node, 1);
        let started = Instant::now();
        while ask(first.outside(), address).is_err() {
            assert!(started.elapsed() < Duration::from_secs(10), "stopped after {polls}");
        }
        drop((node, pod));
        network::remove_node(yard, "n1").await.unwrap();
        if done {
            break;
        }
        polls += 1;
    }
    println!("stopped at {polls} places");
    assert!(polls > 20, "{polls}");
}

/// Polls at most `times`, then drops.
async fn polled<T>(future: impl Future<Output = T>, times: usize) -> Option<T> {
    let mut future = std::pin::pin!(future);
    for _ in 0..times {
        // Whoever wakes the task, it is polled again at once: the kernel answers within the call.
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(value);
        }
        tokio::task::yield_now().await;
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_nodes_come_and_go_all_at_once() {
    if !root() {
        return;
    }
    let world = World::new();
    network::ensure(&world.yard).await.unwrap();
    for _ in 0..3 {
        let changes = (1..7_u8).map(|index| {
            let yard = world.yard.clone();
            tokio::spawn(async move {
                network::ensure_node(&yard, &name(index), cidr(index)).await.unwrap();
                if index % 2 == 0 {
                    network::remove_node(&yard, &name(index)).await.unwrap();
                }
            })
        });
        for change in changes.collect::<Vec<_>>() {
            change.await.unwrap();
        }
        for index in (1..7).step_by(2) {
            assert!(!network::is_cut(&world.yard, &name(index)).unwrap());
            let again = network::ensure_node(&world.yard, &name(index), cidr(index)).await.unwrap();
            assert_eq!(again.1, []);
            network::remove_node(&world.yard, &name(index)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_what_others_remove_is_put_back() {
    if !root() {
        return;
    }
    let world = World::new();
    let yard = &world.yard;
    let (first, _) = network::ensure(yard).await.unwrap();
    let (node, _) = network::ensure_node(yard, "n1", cidr(1)).await.unwrap();
    let (zero, one) = (serve(&first, 0), serve(&node, 1));
    let host = Namespace::open(&yard.host_netns()).unwrap();
    let (whole, part) = (yard.clone(), yard.clone());
    let watch = tokio::spawn(async move { network::watch(&whole).await });
    let watch_node = tokio::spawn(async move { network::watch_node(&part, "n1", cidr(1)).await });
    let reached = || {
        [&host, &zero.0, &one.0].iter().all(|from| {
            ask(from, zero.1).is_ok_and(|index| index == 0) && ask(from, one.1).is_ok_and(|index| index == 1)
        })
    };
    eventually("all reached", reached);
    let perform = |namespace: &Namespace, request| {
        netns::netlink::Route::open(namespace).unwrap().perform(request).unwrap();
    };
    let index = |namespace: &Namespace, name: &str| {
        let mut socket = netns::netlink::Route::open(namespace).unwrap();
        netns::link::find(&mut socket, name).unwrap().unwrap().index
    };
    let netns::Uplink::Host(uplink) = &first.net().uplink else { unreachable!() };
    let default = Cidr::around(Ipv4Addr::UNSPECIFIED, 0);
    type Meddle<'a> = Box<dyn Fn() + 'a>;
    let meddlers: [(&str, Meddle<'_>); 7] = [
        ("link to the host", Box::new(|| perform(&host, netns::link::delete(&uplink.host_link)))),
        ("link to the host down", Box::new(|| perform(&host, netns::link::set_down(&uplink.host_link)))),
        (
            "route to the cluster",
            Box::new(|| {
                let link = index(&host, &uplink.host_link);
                perform(&host, netns::route::delete(first.net().cluster_cidr, link));
            }),
        ),
        ("the fabric", Box::new(|| perform(first.namespace(), netns::link::delete("fabric")))),
        ("the node's link", Box::new(|| perform(node.namespace(), netns::link::delete("fabric")))),
        (
            "the node's default route",
            Box::new(|| {
                perform(node.namespace(), netns::route::delete(default, index(node.namespace(), "fabric")))
            }),
        ),
        ("the node's link down", Box::new(|| perform(node.namespace(), netns::link::set_down("fabric")))),
    ];
    for (what, meddle) in meddlers {
        meddle();
        let started = Instant::now();
        eventually(what, reached);
        println!("{what}: back after {:?}", started.elapsed());
    }
    network::cut(yard, "n1").await.unwrap();
    assert!(!reached() && network::is_cut(yard, "n1").unwrap(), "a cut stays");
    // Once more put back: whoever watches has been here since the cut, and knows of it.
    perform(node.namespace(), netns::link::set_down("fabric"));
    eventually("the node's link is up again", || {
        let mut socket = netns::netlink::Route::open(node.namespace()).unwrap();
        netns::link::find(&mut socket, "fabric").unwrap().is_some_and(|link| link.up)
    });
    perform(node.namespace(), netns::link::delete("fabric"));
    eventually("a lost link comes back as it was", || network::is_cut(yard, "n1").is_ok_and(|cut| cut));
    assert!(!reached());
    network::heal(yard, "n1").await.unwrap();
    network::remove_node(yard, "n1").await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), watch_node).await.unwrap().unwrap();
    assert_eq!(network::open_node(yard, "n1", cidr(1)).err().unwrap().kind(), Kind::NotFound);
    assert!(!watch.is_finished());
    watch.abort();
}
