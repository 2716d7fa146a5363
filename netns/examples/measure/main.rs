//! Measures what the README promises, on the kernel at hand, in namespaces of its own. As root:
//! `cargo run --release -p netns --example measure`

#![allow(clippy::unwrap_used, missing_docs, reason = "a tool that may stop at the first failure")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use netns::nft::Kernel;
use netns::{
    Attachment, Endpoint, HostLink, Hub, Namespace, Node, NodeNet, PodNet, Protocol, ServiceTable, Services,
    Uplink, VirtualPort,
};

mod fabric;

const PODS: u32 = 100;
const ADDED: u32 = 100;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: needs root");
        return;
    }
    let net = NodeNet {
        mark: "measure/node-0".into(),
        bridge: "pods".into(),
        uplink: Uplink::Host(HostLink {
            name: "host".into(),
            host_link: "py-measure".into(),
            host_address: [10, 88, 0, 2].into(),
            hub: Hub::No,
        }),
        gateway: [10, 88, 0, 1].into(),
        dns: None,
        pod_cidr: "10.88.0.0/16".parse().unwrap(),
        cluster_cidr: "10.88.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/12".parse().unwrap(),
        mtu: 1500,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (inside, host) = (Namespace::create().unwrap(), Namespace::create().unwrap());
    let started = Instant::now();
    let (node, steps) = runtime.block_on(Node::ensure(net, inside, host)).unwrap();
    println!("set up a node: {} steps, {:?}", steps.len(), started.elapsed());

    let pods = attach(&node);
    for count in [10, 100, 1000, 10_000] {
        services(&node, &pods, count);
    }
    detach(&node, &pods);
    fabric::measure(&runtime);
}

fn address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a58_0100 + index)
}

fn wish(index: u32) -> PodNet {
    PodNet {
        link: format!("v{index:08x}"),
        owner: format!("uid-{index}"),
        address: address(index),
        mtu: 1500,
        group: 0,
    }
}

fn attach(node: &Node) -> Vec<Namespace> {
    let (mut creates, mut attaches) = (Vec::new(), Vec::new());
    let mut slowest = Vec::new();
    let pods = (0..PODS)
        .map(|index| {
            let started = Instant::now();
            let namespace = Namespace::create().unwrap();
            creates.push(started.elapsed());
            let started = Instant::now();
            slowest = node.attach(&wish(index), &namespace).unwrap().1;
            attaches.push(started.elapsed());
            namespace
        })
        .collect();
    report("create a namespace", &mut creates);
    report("attach a pod", &mut attaches);
    for step in slowest {
        println!("    {:>9.1?}  {}", step.took, step.effect);
    }
    pods
}

fn services(node: &Node, pods: &[Namespace], count: u32) {
    let port = |index: u32| VirtualPort {
        address: Ipv4Addr::from_bits(0x0a60_0001 + index),
        protocol: Protocol::Tcp,
        port: 80,
    };
    let two = |index: u32| -> BTreeSet<Endpoint> {
        [index % PODS, (index + 1) % PODS].map(|pod| Endpoint { address: address(pod), port: 8080 }).into()
    };
    let kernel = Kernel::open(node.namespace()).unwrap();
    let mut table = ServiceTable::open(kernel, "measure", node.net().service_cidr).unwrap();
    let mut all = Services((0..count).map(|index| (port(index), two(index))).collect());
    let started = Instant::now();
    let work = table.apply(&all).unwrap().work;
    let full = started.elapsed();
    println!("{count} services x 2 endpoints: full load {full:.1?}, {} elements", work.elements);

    let _listeners: Vec<_> =
        pods.iter().map(|pod| pod.listen((Ipv4Addr::UNSPECIFIED, 8080).into()).unwrap()).collect();
    let (mut writes, mut packets) = (Vec::new(), Vec::new());
    pods[0]
        .run(|| {
            for added in 0..ADDED {
                let new = port(count + added);
                all.0.insert(new, two(added));
                let started = Instant::now();
                let applied = table.apply(&all).unwrap();
                writes.push(started.elapsed());
                assert!(applied.work.messages <= 8, "{:?}", applied.work);
                drop(
                    TcpStream::connect_timeout(&SocketAddr::from((new.address, 80)), Duration::from_secs(3))
                        .unwrap(),
                );
                packets.push(started.elapsed());
            }
        })
        .unwrap();
    report("  add one: decide and commit", &mut writes);
    report("  add one: until connected", &mut packets);
    table.remove().unwrap();
}

fn detach(node: &Node, pods: &[Namespace]) {
    let one = Attachment { link: wish(0).link, owner: None, address: Some(address(0)) };
    let started = Instant::now();
    node.detach_many(&[one]).unwrap();
    println!("detach one pod: {:.1?}", started.elapsed());
    let started = Instant::now();
    node.detach_many(&node.attachments().unwrap()).unwrap();
    println!("detach {} pods: {:.1?}", pods.len() - 1, started.elapsed());
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: min {:.1?}, p50 {:.1?}, p99 {:.1?}", times[0], at(50), at(99));
}
