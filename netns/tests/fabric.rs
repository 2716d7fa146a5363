//! The network between nodes, on the real kernel: a host, three nodes, pods on each. Packets are asserted, not rules.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use common::cluster::{Cluster, VIP, cidr, gateway, pod_address, port};
use common::{Server, ask, eventually, root};
use netns::fabric::{self, Cable};
use netns::nft::Kernel;
use netns::{
    Attachment, Conntrack, Endpoint, Kind, Moved, Namespace, Node, Outcome, Protocol, ServiceTable, Services,
    VirtualPort,
};

const SOON: Duration = Duration::from_millis(400);

#[test]
fn root_pods_reach_pods_on_every_node_with_their_own_address() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(3);
    let _servers = cluster.serve(80);
    for (from, source) in cluster.everyone() {
        for to in 0..3 {
            let (name, seen) = ask(from, pod_address(to, 0), 80).unwrap();
            assert_eq!((name, seen), (format!("pod-{to}-0"), source.to_string()));
        }
    }
    // A node's own address is its gateway.
    for (index, node) in cluster.nodes.iter().enumerate() {
        for to in 0..3 {
            let seen = ask(node.namespace(), pod_address(to, 0), 80).unwrap().1;
            assert_eq!(seen, gateway(index).to_string());
        }
        let _server = Server::start(node.namespace(), gateway(index), 81, "node");
        for (from, source) in cluster.everyone() {
            assert_eq!(ask(from, gateway(index), 81).unwrap(), ("node".into(), source.to_string()));
        }
    }
}

#[test]
fn root_datagrams_pass_between_nodes() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(3);
    for to in 0..3 {
        let server = cluster.pod(to, 0).udp((pod_address(to, 0), 53).into()).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        for from in 0..3 {
            let client = cluster.pod(from, 1).udp((pod_address(from, 1), 4000).into()).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            client.send_to(b"?", (pod_address(to, 0), 53)).unwrap();
            let (_, source) = server.recv_from(&mut [0; 8]).unwrap();
            assert_eq!(source, SocketAddr::from((pod_address(from, 1), 4000)));
            server.send_to(b"!", source).unwrap();
            assert_eq!(client.recv_from(&mut [0; 8]).unwrap().1, (pod_address(to, 0), 53).into());
        }
    }
}

#[test]
fn root_every_node_translates_virtual_ips_for_its_own_clients() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(3);
    let _servers = cluster.serve(8080);
    // The clients' node, another, and a third.
    let mut tables = cluster.tables();
    let wish = services(80, &[(0, 0), (1, 0), (2, 0)]);
    for table in &mut tables {
        table.apply(&wish).unwrap();
    }
    for (from, source) in cluster.everyone() {
        let mut reached = BTreeSet::new();
        for _ in 0..60 {
            let (name, seen) = ask(from, VIP, 80).unwrap();
            let itself = cluster.name_of(from) == Some(name.clone());
            let expect = if itself { cluster.gateway_of(from).to_string() } else { source.to_string() };
            assert_eq!(seen, expect, "{name}");
            reached.insert(name);
        }
        assert_eq!(reached.len(), 3, "{source}: {reached:?}");
        assert_eq!(ask(from, VIP, 81).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    // A node's table is its own: what another serves does not matter.
    tables[1].remove().unwrap();
    tables[1].apply(&services(80, &[(2, 0)])).unwrap();
    assert_eq!(ask(cluster.pod(1, 0), VIP, 80).unwrap().0, "pod-2-0");
    assert!((0..60).any(|_| ask(cluster.pod(0, 0), VIP, 80).unwrap().0 != "pod-2-0"));
}

#[test]
fn root_the_name_servers_address_is_each_nodes_own() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(3);
    let dns = cluster.nodes[0].net().dns.unwrap();
    let _servers: Vec<_> = (0..3)
        .map(|index| Server::start(cluster.nodes[index].namespace(), dns, 53, &format!("dns-{index}")))
        .collect();
    for table in &mut cluster.tables() {
        table.apply(&services(80, &[(2, 0)])).unwrap();
    }
    for (from, source) in cluster.everyone() {
        let index = cluster.node_of(from).unwrap_or(0);
        assert_eq!(ask(from, dns, 53).unwrap(), (format!("dns-{index}"), source.to_string()));
    }
    // What runs in the node's own namespace asks it too, and nothing else of the service CIDR.
    for (index, node) in cluster.nodes.iter().enumerate() {
        assert_eq!(ask(node.namespace(), dns, 53).unwrap().0, format!("dns-{index}"));
        assert_eq!(ask(node.namespace(), VIP, 81).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn root_a_cut_node_keeps_its_own_traffic_and_heals() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(3);
    let _servers = cluster.serve(80);
    let listener = cluster.pod(1, 0).listen((pod_address(1, 0), 9000).into()).unwrap();
    let mut client =
        cluster.pod(2, 0).connect_blocking((pod_address(1, 0), 9000).into(), Duration::from_secs(3)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let cable = |cable| fabric::set_port(cluster.hub(), &port(1), "test/n1", cable).unwrap();
    assert_eq!((cable(Cable::Cut), cable(Cable::Cut)), (Outcome::Changed, Outcome::Unchanged));
    assert_eq!(fabric::port(cluster.hub(), &port(1), "test/n1").unwrap(), Cable::Cut);

    let fails = |from: &Namespace, to: Ipv4Addr| from.connect_blocking((to, 80).into(), SOON).is_err();
    for index in [0, 2] {
        assert!(fails(cluster.pod(index, 0), pod_address(1, 0)), "{index} to 1");
        assert!(fails(cluster.pod(1, 0), pod_address(index, 0)), "1 to {index}");
    }
    assert!(fails(cluster.host(), pod_address(1, 0)));
    assert!(fails(cluster.pod(1, 0), cluster.nodes[0].net().outer_address()));
    assert_eq!(ask(cluster.pod(1, 1), pod_address(1, 0), 80).unwrap().0, "pod-1-0", "within the node");
    assert_eq!(ask(cluster.pod(0, 1), pod_address(2, 0), 80).unwrap().0, "pod-2-0", "among the others");
    // Setting up again does not heal.
    assert_eq!(cluster.ensure(1).1, []);
    assert_eq!(fabric::port(cluster.hub(), &port(1), "test/n1").unwrap(), Cable::Cut);

    // An open connection is not told: what is written waits.
    client.write_all(b"late").unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    assert!(server.read(&mut [0; 4]).is_err());
    assert_eq!((cable(Cable::Whole), cable(Cable::Whole)), (Outcome::Changed, Outcome::Unchanged));
    let mut buffer = [0; 4];
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    server.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"late");
    for (from, _) in cluster.everyone() {
        eventually("the way is open again", || ask(from, pod_address(1, 0), 80).is_ok());
    }
    assert_eq!(
        fabric::set_port(cluster.hub(), &port(1), "test/n2", Cable::Cut).unwrap_err().kind(),
        Kind::NotFound,
        "another node's"
    );
}

#[test]
fn root_a_pod_keeps_its_address_wherever_it_goes() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(3);
    let address = pod_address(1, 0);
    let reach = |expect: &str| {
        for (from, source) in cluster.everyone().into_iter().filter(|(_, source)| *source != address) {
            let (name, seen) = ask(from, address, 80).unwrap();
            assert_eq!((name.as_str(), seen), (expect, source.to_string()));
        }
    };
    let at = |index: usize| [Moved { address, gateway: gateway(index) }];
    let mut held = Vec::new();
    for (round, (old, new)) in [(1, 2), (2, 0), (0, 2), (2, 1)].into_iter().enumerate() {
        let pod = common::cluster::pod(1, 0);
        let attachment = Attachment { link: pod.link.clone(), owner: None, address: Some(address) };
        let name = format!("round-{round}");
        let namespace = Namespace::create().unwrap();
        // Either order: the new place first, or the old one's removal.
        if round % 2 == 0 {
            cluster.nodes[old].detach_many(std::slice::from_ref(&attachment)).unwrap();
        }
        cluster.nodes[new].attach(&pod, &namespace).unwrap();
        let at = at(new);
        let moved: &[Moved] = if new == 1 { &[] } else { &at };
        cluster.set_peers(moved);
        if round % 2 == 1 {
            cluster.nodes[old].detach_many(&[attachment]).unwrap();
            cluster.set_peers(moved);
        }
        let _server = Server::start(&namespace, address, 80, &name);
        reach(&name);
        for node in &cluster.nodes {
            assert_eq!(node.set_peers(&cluster.peers(), moved).unwrap(), Outcome::Unchanged);
        }
        // It reaches everyone as itself.
        let _others: Vec<_> = [(0, 1), (1, 1), (2, 1)]
            .map(|(node, index)| {
                Server::start(cluster.pod(node, index), pod_address(node, index), 80, "other")
            })
            .into();
        for node in 0..3 {
            assert_eq!(ask(&namespace, pod_address(node, 1), 80).unwrap().1, address.to_string());
        }
        held.push(namespace);
    }
}

#[test]
fn root_stale_lists_are_put_right_by_the_next() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(3);
    let (address, namespace) = (pod_address(1, 0), Namespace::create().unwrap());
    let pod = common::cluster::pod(1, 0);
    cluster.nodes[1].detach(&pod.link, Some(address)).unwrap();
    cluster.nodes[2].attach(&pod, &namespace).unwrap();
    let _server = Server::start(&namespace, address, 80, "moved");
    let at = |index: usize| [Moved { address, gateway: gateway(index) }];
    cluster.set_peers(&at(0));
    assert!(cluster.pod(2, 0).connect_blocking((address, 80).into(), SOON).is_err());
    cluster.set_peers(&at(2));
    for (from, _) in cluster.everyone().into_iter().filter(|(_, source)| *source != address) {
        assert_eq!(ask(from, address, 80).unwrap().0, "moved");
    }
}

#[test]
fn root_addresses_of_nobody_are_refused_not_sent_in_circles() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(2);
    let unreachable = |from: &Namespace, to: Ipv4Addr| {
        let error = from.connect_blocking((to, 80).into(), Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{to}: {error}");
    };
    for (from, _) in cluster.everyone() {
        // On node 1, on node 0, on no node.
        for stranger in [pod_address(1, 77), pod_address(0, 77), Ipv4Addr::new(10, 88, 9, 9)] {
            unreachable(from, stranger);
        }
    }
}

#[test]
fn root_udp_flows_to_a_removed_endpoint_are_forgotten_on_each_node() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(3);
    let udp = |endpoint: (usize, u32)| {
        let port = VirtualPort { address: VIP, protocol: Protocol::Udp, port: 53 };
        Services([(port, [to(endpoint)].into())].into())
    };
    let server = |(node, index): (usize, u32)| {
        let socket = cluster.pod(node, index).udp((pod_address(node, index), 8080).into()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    };
    let (one, two) = (server((1, 0)), server((2, 0)));
    let mut tables = cluster.tables();
    let mut flows: Vec<_> =
        cluster.nodes.iter().map(|node| Conntrack::open(node.namespace()).unwrap()).collect();
    let clients: Vec<_> =
        (0..3).map(|node| cluster.pod(node, 1).udp((pod_address(node, 1), 4000).into()).unwrap()).collect();
    for (node, table) in tables.iter_mut().enumerate() {
        table.apply(&udp((1, 0))).unwrap();
        clients[node].send_to(b"x", (VIP, 53)).unwrap();
        assert_eq!(one.recv_from(&mut [0; 8]).unwrap().1, (pod_address(node, 1), 4000).into());
        let removed = table.apply(&udp((2, 0))).unwrap().removed;
        assert_eq!(flows[node].forget(&removed).unwrap(), 1);
        clients[node].send_to(b"x", (VIP, 53)).unwrap();
        assert_eq!(two.recv_from(&mut [0; 8]).unwrap().1, (pod_address(node, 1), 4000).into());
    }
}

#[test]
fn root_a_removed_node_leaves_nothing() {
    if !root() {
        return;
    }
    let routes = |namespace: &Namespace| {
        namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap()).unwrap()
    };
    let links = |namespace: &Namespace| {
        let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect::<Vec<_>>()
    };
    let alone = Cluster::new(1);
    let before = (routes(alone.hub()), links(alone.hub()), routes(alone.host()));
    let late = netns::Peer { cidr: cidr(1), gateway: gateway(1) };
    for peers in [&[][..], &[late]] {
        assert_eq!(alone.nodes[0].set_peers(peers, &[]).unwrap(), Outcome::Unchanged);
    }
    assert_eq!((routes(alone.hub()), links(alone.hub()), routes(alone.host())), before, "nothing for nobody");

    let cluster = Cluster::new(3);
    cluster.set_peers(&[Moved { address: pod_address(0, 9), gateway: gateway(1) }]);
    let remove =
        |index| fabric::remove_port(&cluster.nodes[0], &port(index), &format!("test/n{index}")).unwrap();
    assert_eq!((remove(1), remove(1)), (Outcome::Changed, Outcome::Unchanged));
    assert!(!links(cluster.hub()).contains(&port(1)));
    let hex = |address: Ipv4Addr| format!("{:08X}", u32::from_ne_bytes(address.octets()));
    assert!(!routes(cluster.hub()).contains(&hex(gateway(1))), "{}", routes(cluster.hub()));
    assert!(routes(cluster.hub()).contains(&hex(gateway(2))));
    let _server = Server::start(cluster.pod(2, 0), pod_address(2, 0), 80, "two");
    assert_eq!(ask(cluster.host(), pod_address(2, 0), 80).unwrap().0, "two");
    assert_eq!(remove(2), Outcome::Changed);
    let facts = |cluster: &Cluster| {
        let strip = |text: String| text.replace(&hex([10, 88, 0, 1].into()), "");
        (strip(routes(cluster.host())), links(cluster.hub()).len())
    };
    assert_eq!(facts(&cluster), facts(&alone));
    // And it can come back.
    let node = cluster.ensure(1).0;
    assert!(node.set_peers(&cluster.peers()[..1], &[]).is_ok());
    assert_eq!(node.net().pod_cidr, cidr(1));
}

/// Whatever prefix of the set-up a crash let through, the next one completes it; and a hub that loses its bridge gets it back.
#[test]
fn root_links_lost_by_hand_come_back() {
    if !root() {
        return;
    }
    let cluster = Cluster::new(2);
    let _servers = cluster.serve(80);
    let whole = || {
        cluster.ensure(1);
        cluster.set_peers(&[]);
        assert_eq!(cluster.ensure(1).1, []);
        for (from, _) in cluster.everyone() {
            for to in 0..2 {
                eventually("reached", || ask(from, pod_address(to, 0), 80).is_ok());
            }
        }
    };
    let delete = |namespace: &Namespace, link: &str| {
        let mut socket = netns::netlink::Route::open(namespace).unwrap();
        socket.perform(netns::link::delete(link)).unwrap();
    };
    whole();
    delete(cluster.hub(), &port(1));
    whole();
    delete(cluster.nodes[1].namespace(), "fabric");
    whole();
    delete(cluster.hub(), "fabric");
    whole();
    delete(cluster.host(), "py-n0");
    whole();
}

fn to((node, index): (usize, u32)) -> Endpoint {
    Endpoint { address: pod_address(node, index), port: 8080 }
}

fn services(port: u16, endpoints: &[(usize, u32)]) -> Services {
    let port = VirtualPort { address: VIP, protocol: Protocol::Tcp, port };
    Services([(port, endpoints.iter().copied().map(to).collect())].into())
}

impl Cluster {
    fn tables(&self) -> Vec<ServiceTable<Kernel>> {
        let open = |node: &Node| {
            let kernel = Kernel::open(node.namespace()).unwrap();
            ServiceTable::open(kernel, "yard", node.net().service_cidr).unwrap()
        };
        self.nodes.iter().map(open).collect()
    }
}
