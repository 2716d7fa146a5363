use super::*;
use crate::plan::{FabricLink, HostLink, Hub};

const LINKS: Links = Links { bridge: 3, fabric: 7 };

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn net(index: u8) -> NodeNet {
    let gateway = |index: u8| Ipv4Addr::from([10, 88, index, 1]);
    let uplink = match index {
        0 => Uplink::Host(HostLink {
            name: "host".into(),
            host_link: "py-n0".into(),
            host_address: ip("10.88.0.255"),
            hub: Hub::Lazy("fabric".into()),
        }),
        _ => Uplink::Fabric(FabricLink {
            name: "fabric".into(),
            port: format!("f{index}"),
            hub: "fabric".into(),
            hub_gateway: gateway(0),
            hub_cidr: cidr("10.88.0.0/24"),
        }),
    };
    NodeNet {
        mark: format!("test/n{index}"),
        bridge: "pods".into(),
        uplink,
        gateway: gateway(index),
        dns: None,
        pod_cidr: Cidr::around(gateway(index), 24),
        cluster_cidr: cidr("10.88.0.0/16"),
        service_cidr: cidr("10.96.0.0/16"),
        mtu: 1500,
    }
}

fn peer(index: u8) -> Peer {
    Peer { cidr: net(index).pod_cidr, gateway: net(index).gateway }
}

fn moved(address: &str, index: u8) -> Moved {
    Moved { address: ip(address), gateway: net(index).gateway }
}

/// In the words of `ip route`.
fn routes(net: &NodeNet, peers: &[Peer], moved: &[Moved]) -> Vec<String> {
    wished(net, LINKS, peers, moved).routes.values().map(ToString::to_string).collect()
}

#[test]
fn a_node_reaches_its_peers_and_the_hub() {
    let all = [peer(0), peer(1), peer(2)];
    assert_eq!(
        routes(&net(1), &all, &[]),
        [
            "0.0.0.0/0 via 10.88.0.1 onlink link 7 src 10.88.1.1",
            "10.88.0.0/24 via 10.88.0.1 onlink link 7 src 10.88.1.1",
            "10.88.2.0/24 via 10.88.2.1 onlink link 7 src 10.88.1.1",
        ]
    );
    assert_eq!(routes(&net(1), &[], &[]).len(), 2, "the hub stays reachable");
    assert_eq!(
        routes(&net(0), &all, &[]),
        [
            "10.88.1.0/24 via 10.88.1.1 onlink link 7 src 10.88.0.1",
            "10.88.2.0/24 via 10.88.2.1 onlink link 7 src 10.88.0.1",
        ]
    );
}

#[test]
fn moved_pods_are_reached_where_they_are() {
    let pods = [moved("10.88.1.9", 2), moved("10.88.2.9", 1)];
    assert_eq!(
        routes(&net(1), &[peer(2)], &pods)[2..],
        [
            "10.88.1.9/32 via 10.88.2.1 onlink link 7 src 10.88.1.1",
            "10.88.2.0/24 via 10.88.2.1 onlink link 7 src 10.88.1.1",
            "10.88.2.9/32 link 3 src 10.88.1.1",
        ]
    );
}

#[test]
fn what_lies_outside_the_cluster_is_refused_and_the_rest_is_done() {
    let stray = |text: &str| Peer { cidr: cidr(text), gateway: ip("10.88.9.1") };
    let bad = [stray("0.0.0.0/0"), stray("192.168.0.0/24"), stray("10.88.1.0/25"), stray("10.88.0.0/16")];
    let wish = wished(
        &net(1),
        LINKS,
        &[&bad[..], &[peer(2)]].concat(),
        &[moved("8.8.8.8", 2), moved("10.88.1.1", 2)],
    );
    assert_eq!(wish.refused.len(), 6, "{:?}", wish.refused);
    assert_eq!(wish.routes.len(), 3);
}

#[test]
fn only_the_difference_is_done() {
    let net = net(1);
    let wish = |peers: &[Peer], pods: &[Moved]| wished(&net, LINKS, peers, pods);
    let there = |wish: &Wished| wish.routes.values().copied().collect::<Vec<_>>();
    let before = there(&wish(&[peer(2), peer(3)], &[moved("10.88.1.9", 2), moved("10.88.3.9", 1)]));
    let check = |peers: &[Peer], pods: &[Moved], fresh: &[&str], stale: &[&str]| {
        let (add, gone) = difference(LINKS, &wish(peers, pods), &before);
        let add: Vec<_> = add.iter().map(|route| route.destination.to_string()).collect();
        let gone: Vec<_> = gone.iter().map(ToString::to_string).collect();
        assert_eq!(
            (add, gone),
            (fresh.iter().map(|t| (*t).into()).collect(), stale.iter().map(|t| (*t).into()).collect())
        );
    };
    let pods = [moved("10.88.1.9", 2), moved("10.88.3.9", 1)];
    check(&[peer(2), peer(3)], &pods, &[], &[]);
    check(&[peer(3), peer(4)], &pods, &["10.88.4.0/24"], &["10.88.2.0/24"]);
    check(&[peer(2), peer(3)], &[moved("10.88.1.9", 3), pods[1]], &["10.88.1.9/32"], &[]);
    // Back home: the bridge's route is the attachment's; ours goes.
    check(&[peer(2), peer(3)], &[pods[1]], &[], &["10.88.1.9/32"]);
    check(&[peer(2), peer(3)], &[moved("10.88.1.9", 1), pods[1]], &["10.88.1.9/32"], &["10.88.1.9/32"]);
    check(&[], &[], &[], &["10.88.1.9/32", "10.88.2.0/24", "10.88.3.0/24"]);
}
