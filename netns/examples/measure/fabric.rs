//! Between nodes: what a further node costs to set up, and what the way to another node costs over staying on one's own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use netns::fabric::{self, Cable};
use netns::nft::Kernel;
use netns::{
    Cidr, Endpoint, FabricLink, HostLink, Hub, Namespace, Node, NodeNet, Peer, PodNet, Protocol,
    ServiceTable, Services, Uplink, VirtualPort,
};

use super::report;

const CONNECTS: usize = 3000;
const STREAM: Duration = Duration::from_secs(1);
const ROUNDS: usize = 20;

fn gateway(node: u8) -> Ipv4Addr {
    [10, 88, node, 1].into()
}

fn net(node: u8) -> NodeNet {
    let uplink = match node {
        0 => Uplink::Host(HostLink {
            name: "host".into(),
            host_link: "py-measure".into(),
            host_address: [10, 88, 0, 255].into(),
            hub: Hub::Ready("fabric".into()),
        }),
        _ => Uplink::Fabric(FabricLink {
            name: "fabric".into(),
            port: format!("f{node}"),
            hub: "fabric".into(),
            hub_gateway: gateway(0),
            hub_cidr: Cidr::around(gateway(0), 24),
        }),
    };
    NodeNet {
        mark: format!("measure/n{node}"),
        bridge: "pods".into(),
        uplink,
        gateway: gateway(node),
        dns: None,
        pod_cidr: Cidr::around(gateway(node), 24),
        cluster_cidr: Cidr::around(gateway(0), 16),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        mtu: 1500,
    }
}

pub fn measure(runtime: &tokio::runtime::Runtime) {
    let ensure = |node: u8, inside: &Namespace, outside: &Namespace| {
        let (inside, outside) = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
        runtime.block_on(Node::ensure(net(node), inside, outside)).unwrap()
    };
    let (inside, host) = (Namespace::create().unwrap(), Namespace::create().unwrap());
    let mut nodes = vec![ensure(0, &inside, &host).0];
    let (mut made, mut again) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let started = Instant::now();
        let namespace = Namespace::create().unwrap();
        let node = ensure(1, &namespace, &inside).0;
        made.push(started.elapsed());
        let started = Instant::now();
        assert_eq!(ensure(1, &namespace, &inside).1, []);
        again.push(started.elapsed());
        if round + 1 == ROUNDS {
            nodes.push(node);
        } else {
            fabric::remove_port(&nodes[0], "f1", "measure/n1").unwrap();
            nodes[0] = ensure(0, &inside, &host).0;
        }
    }
    report("set up a further node, namespace included", &mut made);
    report("  the same again: nothing to do", &mut again);
    for node in 2..4 {
        nodes.push(ensure(node, &Namespace::create().unwrap(), &inside).0);
    }
    let peers: Vec<Peer> =
        (0..4).map(|node| Peer { cidr: net(node).pod_cidr, gateway: gateway(node) }).collect();
    for node in &nodes {
        node.set_peers(&peers, &[]).unwrap();
    }
    let (mut cuts, mut heals) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (cable, times) in [(Cable::Cut, &mut cuts), (Cable::Whole, &mut heals)] {
            let started = Instant::now();
            fabric::set_port(&inside, "f3", "measure/n3", cable).unwrap();
            times.push(started.elapsed());
        }
    }
    report("cut", &mut cuts);
    report("heal", &mut heals);

    let address = |node: u8, index: u32| net(node).pod_cidr.nth(10 + index).unwrap();
    let pods: Vec<Vec<Namespace>> = (0..3)
        .map(|node| {
            let attach = |index: u32| {
                let namespace = Namespace::create().unwrap();
                let (link, owner) = (format!("v{index}"), format!("uid-{index}"));
                let pod = PodNet { link, owner, address: address(node, index), mtu: 1500, group: 0 };
                nodes[usize::from(node)].attach(&pod, &namespace).unwrap();
                namespace
            };
            (0..2).map(attach).collect()
        })
        .collect();
    let vip = Ipv4Addr::new(10, 96, 0, 1);
    let kernel = Kernel::open(nodes[1].namespace()).unwrap();
    let mut table = ServiceTable::open(kernel, "measure", net(1).service_cidr).unwrap();
    let virtual_port = |port| VirtualPort { address: vip, protocol: Protocol::Tcp, port };
    let behind = |node, port| [Endpoint { address: address(node, 0), port }].into();
    let wish = [(virtual_port(8080), behind(2, 8080)), (virtual_port(8081), behind(2, 8081))];
    table.apply(&Services(wish.into())).unwrap();
    for pod in [&pods[1][0], &pods[2][0], &pods[0][0]] {
        serve(pod);
    }
    let client = &pods[1][1];
    for (what, target) in [
        ("on the same node", address(1, 0)),
        ("on another node", address(2, 0)),
        ("on the hub", address(0, 0)),
        ("by a virtual IP, on another node", vip),
    ] {
        connects(client, what, target);
        stream(client, target);
    }
    connects(&host, "from the host, on the hub", address(0, 0));
    connects(&host, "from the host, on another node", address(2, 0));
}

/// Port 8080 accepts, 8081 swallows.
fn serve(pod: &Namespace) {
    let listener = pod.listen((Ipv4Addr::UNSPECIFIED, 8080).into()).unwrap();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    let listener = pod.listen((Ipv4Addr::UNSPECIFIED, 8081).into()).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut buffer = vec![0; 1 << 17];
            while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
        }
    });
}

fn connects(from: &Namespace, what: &str, target: Ipv4Addr) {
    let mut times = Vec::with_capacity(CONNECTS);
    from.run(|| {
        for _ in 0..CONNECTS {
            let started = Instant::now();
            drop(TcpStream::connect(SocketAddr::from((target, 8080))).unwrap());
            times.push(started.elapsed());
        }
    })
    .unwrap();
    report(&format!("connect to a pod {what}"), &mut times);
}

fn stream(from: &Namespace, target: Ipv4Addr) {
    let mut stream = from.connect_blocking((target, 8081).into(), Duration::from_secs(3)).unwrap();
    let (buffer, started, mut sent) = (vec![0; 1 << 17], Instant::now(), 0_u64);
    while started.elapsed() < STREAM {
        stream.write_all(&buffer).unwrap();
        sent += buffer.len() as u64;
    }
    let bits = u128::from(sent) * 8 / started.elapsed().as_micros();
    println!("  one stream: {}.{:03} Gbit/s", bits / 1000, bits % 1000);
}
