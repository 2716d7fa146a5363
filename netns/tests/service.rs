//! Virtual IPs on the real kernel: packets, not rules, are what is asserted.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Server, Yard, ask, net, pod_address, root};
use netns::conntrack::Way;
use netns::nft::Kernel;
use netns::{Conntrack, Endpoint, Kind, Namespace, Outcome, Protocol, ServiceTable, Services, VirtualPort};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

fn table(yard: &Yard) -> ServiceTable<Kernel> {
    ServiceTable::open(Kernel::open(yard.node.namespace()).unwrap(), "yard", net().service_cidr).unwrap()
}

fn tcp(port: u16) -> VirtualPort {
    VirtualPort { address: VIP, protocol: Protocol::Tcp, port }
}

fn endpoints(pods: &[u32]) -> BTreeSet<Endpoint> {
    pods.iter().map(|&pod| Endpoint { address: pod_address(pod), port: 8080 }).collect()
}

fn services(list: &[(VirtualPort, &[u32])]) -> Services {
    Services(list.iter().map(|(port, pods)| (*port, endpoints(pods))).collect())
}

fn serve(yard: &Yard, pods: &[u32]) -> Vec<Server> {
    let start =
        |&pod: &u32| Server::start(&yard.pods[pod as usize], pod_address(pod), 8080, &format!("pod-{pod}"));
    pods.iter().map(start).collect()
}

fn spread(from: &Namespace, connections: usize) -> BTreeMap<String, usize> {
    let mut spread = BTreeMap::new();
    for _ in 0..connections {
        *spread.entry(ask(from, VIP, 80).unwrap().0).or_insert(0) += 1;
    }
    spread
}

#[test]
fn root_virtual_ip_spreads_from_pod_host_and_node() {
    if !root() {
        return;
    }
    let yard = Yard::new(4);
    let _servers = serve(&yard, &[1, 2, 3]);
    let applied = table(&yard).apply(&services(&[(tcp(80), &[1, 2, 3])])).unwrap();
    assert_eq!(applied.outcome, Outcome::Changed);
    for from in [&yard.pods[0], yard.node.outside(), yard.node.namespace()] {
        let spread = spread(from, 60);
        assert_eq!(spread.len(), 3, "{spread:?}");
        // One in 3 of 60 is 20; fewer than 4 happens less than once in a million runs.
        assert!(spread.values().all(|&count| count >= 4), "{spread:?}");
    }
    assert_eq!(
        ask(&yard.pods[0], VIP, 80).unwrap().1,
        pod_address(0).to_string(),
        "the source address stays"
    );
}

#[test]
fn root_pod_reaches_itself_through_its_virtual_ip() {
    if !root() {
        return;
    }
    let yard = Yard::new(1);
    let _servers = serve(&yard, &[0]);
    table(&yard).apply(&services(&[(tcp(80), &[0])])).unwrap();
    assert_eq!(
        ask(&yard.pods[0], VIP, 80).unwrap(),
        ("pod-0".into(), net().gateway.to_string()),
        "seen as the gateway's"
    );
}

/// The module may be loaded by somebody later, and then the sysctl is 1.
#[test]
fn root_it_all_works_with_bridge_netfilter_too() {
    const SYSCTL: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if !root() {
        return;
    }
    let yard = Yard::new(3);
    if yard.node.namespace().run(|| std::fs::write(SYSCTL, "1")).unwrap().is_err() {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: br_netfilter is not loaded\n");
        return;
    }
    let _servers = serve(&yard, &[0, 1]);
    let mut table = table(&yard);
    table.apply(&services(&[(tcp(80), &[0, 1])])).unwrap();
    for from in [&yard.pods[0], &yard.pods[2], yard.node.outside()] {
        assert_eq!(spread(from, 30).len(), 2);
        assert_eq!(ask(from, VIP, 81).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn root_unknown_ports_and_empty_services_refuse_and_unknown_addresses_vanish() {
    if !root() {
        return;
    }
    let yard = Yard::new(2);
    let _servers = serve(&yard, &[1]);
    table(&yard).apply(&services(&[(tcp(80), &[1]), (tcp(90), &[])])).unwrap();
    for (who, from) in
        [("pod", &yard.pods[0]), ("host", yard.node.outside()), ("node", yard.node.namespace())]
    {
        for port in [81, 90, 8080] {
            assert_eq!(
                ask(from, VIP, port).unwrap_err().kind(),
                ErrorKind::ConnectionRefused,
                "{who}, port {port}"
            );
        }
        let nowhere = SocketAddr::from(([10, 96, 9, 9], 80));
        let error = from.connect_blocking(nowhere, Duration::from_millis(300)).unwrap_err();
        assert!([ErrorKind::TimedOut, ErrorKind::PermissionDenied].contains(&error.kind()), "{error}");
        assert_eq!(ask(from, VIP, 80).unwrap().0, "pod-1");
    }
}

#[test]
fn root_removed_endpoints_get_no_new_connections() {
    if !root() {
        return;
    }
    let yard = Yard::new(4);
    let _servers = serve(&yard, &[1, 2, 3]);
    let mut table = table(&yard);
    let mut check = |pods: &[u32]| {
        table.apply(&services(&[(tcp(80), pods)])).unwrap();
        let expect: BTreeSet<_> = pods.iter().map(|pod| format!("pod-{pod}")).collect();
        assert_eq!(spread(&yard.pods[0], 60).into_keys().collect::<BTreeSet<_>>(), expect);
    };
    check(&[1, 2, 3]);
    check(&[2, 3]);
    check(&[3]);
    check(&[1, 3]);
    check(&[2]);
    table.apply(&services(&[(tcp(80), &[])])).unwrap();
    assert_eq!(ask(&yard.pods[0], VIP, 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    table.apply(&services(&[])).unwrap();
    assert_eq!(table.dump().unwrap().ports.len(), 0);
}

#[test]
fn root_twice_is_once_and_a_restart_starts_from_the_kernel() {
    if !root() {
        return;
    }
    let yard = Yard::new(2);
    let _servers = serve(&yard, &[0, 1]);
    let wish = services(&[(tcp(80), &[0, 1]), (tcp(81), &[1]), (tcp(82), &[])]);
    let mut first = table(&yard);
    assert!(first.apply(&wish).unwrap().rebuilt.is_some());
    assert_eq!(first.apply(&wish).unwrap().outcome, Outcome::Unchanged);
    drop(first);
    let mut second = table(&yard);
    let applied = second.apply(&wish).unwrap();
    assert_eq!((applied.outcome, applied.rebuilt), (Outcome::Unchanged, None));
    assert_eq!(
        second.dump().unwrap().ports[&tcp(80)].iter().copied().collect::<BTreeSet<_>>(),
        endpoints(&[0, 1])
    );
    assert_eq!(second.dump().unwrap().addresses, [VIP].into());
    assert_eq!((second.remove().unwrap(), second.remove().unwrap()), (Outcome::Changed, Outcome::Unchanged));
    assert_eq!(second.dump().unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn root_changes_behind_our_back_are_corrected() {
    if !root() {
        return;
    }
    let yard = Yard::new(3);
    let _servers = serve(&yard, &[1, 2]);
    let (mut ours, mut other) = (table(&yard), table(&yard));
    ours.apply(&services(&[(tcp(80), &[1])])).unwrap();
    other.apply(&services(&[(tcp(80), &[2])])).unwrap();
    // Believes in endpoint 1; the kernel refuses what follows from that.
    ours.apply(&services(&[(tcp(80), &[1, 2])])).unwrap();
    assert_eq!(spread(&yard.pods[0], 40).len(), 2);
    other.remove().unwrap();
    assert_eq!(ours.verify().unwrap(), Outcome::Changed);
    let applied = ours.apply(&services(&[(tcp(80), &[1, 2])])).unwrap();
    assert!(applied.rebuilt.is_some());
    assert_eq!(spread(&yard.pods[0], 40).len(), 2);
}

#[test]
fn root_many_endpoints_and_established_connections_survive_a_rebuild() {
    use std::io::{Read, Write};
    if !root() {
        return;
    }
    let yard = Yard::new(12);
    let all: Vec<u32> = (1..12).collect();
    let _servers = serve(&yard, &all);
    let mut ours = table(&yard);
    ours.apply(&services(&[(tcp(80), &all), (tcp(5000), &[1])])).unwrap();
    assert!(spread(&yard.pods[0], 120).len() >= 9);

    let listener = yard.pods[1].listen(SocketAddr::from((pod_address(1), 9000))).unwrap();
    let mut wish = services(&[(tcp(80), &all)]);
    wish.0.insert(tcp(9000), [Endpoint { address: pod_address(1), port: 9000 }].into());
    ours.apply(&wish).unwrap();
    let mut client = yard.pods[0].connect_blocking((VIP, 9000).into(), Duration::from_secs(3)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    ours.remove().unwrap();
    ours.apply(&wish).unwrap();
    client.write_all(b"still").unwrap();
    let mut buffer = [0; 5];
    server.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"still");
}

#[test]
fn root_rules_stay_readable_by_nft() {
    if !root() {
        return;
    }
    if Command::new("nft").arg("--version").stdout(Stdio::null()).status().is_err() {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: nft is not installed\n");
        return;
    }
    let yard = Yard::new(0);
    table(&yard).apply(&services(&[(tcp(80), &[1, 2, 3]), (tcp(81), &[1])])).unwrap();
    let output = yard
        .node
        .namespace()
        .run(|| Command::new("nft").args(["list", "ruleset"]).output().unwrap())
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    for line in [
        "type nat hook prerouting priority dstnat; policy accept;",
        "ip daddr 10.96.0.0/16 jump services",
        "oif \"lo\" accept",
        "ip daddr . meta l4proto . th dport @svc-3 goto lb-3",
        "numgen random mod 3 vmap { 0 : goto ep-0, 1 : goto ep-1, 2 : goto ep-2 }",
        "dnat ip to ip daddr . meta l4proto . th dport map @ep-2",
        "ip saddr . ip daddr @hairpin masquerade fully-random",
        "10.96.0.10 . tcp . 80",
        "ip daddr @virtual reject",
    ] {
        assert!(text.contains(line), "lacks {line}:\n{text}");
    }
    // nft can read its own words back.
    let file = std::env::temp_dir().join(format!("netns-ruleset-{}", std::process::id()));
    std::fs::write(&file, &text).unwrap();
    let other = Namespace::create().unwrap();
    let status = other.run(|| Command::new("nft").arg("-f").arg(&file).status().unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(status.success());
}

#[test]
fn root_udp_flows_to_removed_endpoints_are_forgotten() {
    udp_flows_to_removed_endpoints_are_forgotten(Way::FilteredDelete);
}

#[test]
fn root_udp_flows_to_removed_endpoints_are_forgotten_without_filtered_delete() {
    udp_flows_to_removed_endpoints_are_forgotten(Way::FilteredList);
}

#[test]
fn root_udp_flows_to_removed_endpoints_are_forgotten_without_filters() {
    udp_flows_to_removed_endpoints_are_forgotten(Way::List);
}

/// A UDP client that keeps its socket follows a change of endpoints; its other flows stay.
fn udp_flows_to_removed_endpoints_are_forgotten(way: Way) {
    if !root() {
        return;
    }
    let yard = Yard::new(3);
    let udp = |port| VirtualPort { protocol: Protocol::Udp, ..tcp(port) };
    let server = |pod: u32| {
        let socket = yard.pods[pod as usize].udp((pod_address(pod), 8080).into()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    };
    let (one, two) = (server(1), server(2));
    let mut table = table(&yard);
    let mut conntrack = Conntrack::open(yard.node.namespace()).unwrap();
    conntrack.downgrade(way);
    // Two sockets: two flows from one port to one endpoint would differ in their translated source port.
    let clients = [4000, 4001].map(|port| yard.pods[0].udp((pod_address(0), port).into()).unwrap());
    let receives = |server: &std::net::UdpSocket| server.recv_from(&mut [0; 8]).ok().map(|(_, from)| from);

    table.apply(&services(&[(udp(53), &[1]), (udp(54), &[1])])).unwrap();
    let [first, second] = &clients;
    first.send_to(b"x", (VIP, 53)).unwrap();
    assert_eq!(receives(&one), Some((pod_address(0), 4000).into()));
    second.send_to(b"x", (VIP, 54)).unwrap();
    assert_eq!(receives(&one), Some((pod_address(0), 4001).into()));
    let applied = table.apply(&services(&[(udp(53), &[2]), (udp(54), &[1, 2])])).unwrap();
    first.send_to(b"x", (VIP, 53)).unwrap();
    assert!(receives(&one).is_some(), "the kernel remembers the flow");
    assert_eq!(applied.removed, [(udp(53), Endpoint { address: pod_address(1), port: 8080 })]);
    assert_eq!(conntrack.forget(&applied.removed).unwrap(), 1);
    first.send_to(b"x", (VIP, 53)).unwrap();
    assert!(receives(&two).is_some());
    second.send_to(b"x", (VIP, 54)).unwrap();
    assert!(receives(&one).is_some(), "not its flow");
    assert_eq!(conntrack.forget(&applied.removed).unwrap(), 1);
    // Several at once.
    let applied = table.apply(&services(&[(udp(53), &[1]), (udp(54), &[2])])).unwrap();
    assert_eq!(conntrack.forget(&applied.removed).unwrap(), 2);
    first.send_to(b"x", (VIP, 53)).unwrap();
    assert_eq!(receives(&one), Some((pod_address(0), 4000).into()));
    second.send_to(b"x", (VIP, 54)).unwrap();
    assert_eq!(receives(&two), Some((pod_address(0), 4001).into()));
    println!("asked for {way:?}, the kernel does {:?}", conntrack.way());
}
