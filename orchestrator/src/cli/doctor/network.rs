//! The network: bridge, veth and nf_tables, tried in a namespace that nobody else sees; and address conflicts.

use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;

use netns::link::{Veth, create_bridge, create_veth};
use netns::netlink::Route;
use netns::nft::{Batch, Tables, kernel::Kernel, ruleset};
use netns::{Namespace, link};
use node::yard::{Cidr, Yard};

use super::Check;

const MODULES: &str = "modprobe it, or install the kernel's modules package (linux-modules-extra on Ubuntu)";

pub fn checks() -> Vec<Check> {
    let mut checks = match Namespace::create() {
        Ok(namespace) => vec![bridge(&namespace), veth(&namespace), tables(&namespace)],
        Err(error) => {
            let fix = "run as root on the host, not in a restricted container";
            vec![Check::missing("network namespaces", chain(&error), fix)]
        }
    };
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let yard = Yard::host();
    checks.push(conflicts("pod addresses", yard.pod_cidr, &routes));
    checks.push(conflicts("service addresses", yard.service_cidr, &routes));
    checks
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

fn verdict(name: &'static str, result: netns::Result<()>, found: &str) -> Check {
    match result {
        Ok(()) => Check::ok(name, found),
        Err(error) => Check::missing(name, chain(&error), MODULES),
    }
}

fn bridge(namespace: &Namespace) -> Check {
    let mac = link::mac_of(Ipv4Addr::new(10, 0, 0, 1));
    let made = Route::open(namespace).and_then(|mut route| route.perform(create_bridge("br0", mac, 1500)));
    verdict("bridge", made, "made one")
}

fn veth(namespace: &Namespace) -> Check {
    let veth = Veth {
        name: "v0",
        mtu: 1500,
        group: 0,
        bridge: None,
        mac: None,
        peer_name: "v1",
        peer_mac: None,
        peer_namespace: namespace.as_fd(),
    };
    let made = Route::open(namespace).and_then(|mut route| route.perform(create_veth(&veth)));
    verdict("veth", made, "made a pair")
}

/// The very rules that virtual IPs need, map lookups and all.
fn tables(namespace: &Namespace) -> Check {
    let loaded = || {
        let cidr = netns::Cidr::new(Ipv4Addr::new(10, 96, 0, 0), 16)?;
        let batch = Batch { table: "podyard".to_string(), messages: ruleset::fixed(cidr) };
        Kernel::open(namespace)?.commit(&batch).map(drop)
    };
    verdict("nf_tables", loaded(), "loaded the rules of virtual IPs")
}

/// Whether the host has a route of its own into a block. Source: proc_net(5) and the kernel's fib_trie.c: hexadecimal
/// numbers in the machine's byte order.
fn conflicts(name: &'static str, wanted: Cidr, routes: &str) -> Check {
    let hex = |text: Option<&str>| {
        let number = u32::from_str_radix(text?, 16).ok()?;
        Some(u32::from_be_bytes(number.to_ne_bytes()))
    };
    let other = routes.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (network, mask) = (hex(fields.get(1).copied())?, hex(fields.get(7).copied())?);
        let prefix = u8::try_from(mask.count_ones()).ok()?;
        let link = *fields.first()?;
        let found = Cidr::around(Ipv4Addr::from(network), prefix);
        // The default route reaches everything and takes nothing; our own links carry our own routes.
        let is_ours = link.starts_with("podyard");
        (prefix > 0 && !is_ours && found.overlaps(wanted)).then(|| format!("{found} on {link}"))
    });
    let block = wanted.to_string();
    match other {
        None => Check::ok(name, format!("{block} is free")),
        Some(other) => Check::warn(
            name,
            format!("{block} overlaps {other}"),
            "choose other blocks with `podyard up --pod-cidr … --service-cidr …`, or --isolated",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn routes_of_others_are_seen() {
        // 10.96.0.0/12 and a default route, as a little-endian machine prints them.
        let hex = |address: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(address));
        let line = |link: &str, network: [u8; 4], mask: [u8; 4]| {
            format!("{link}\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n", hex(network), hex(mask))
        };
        let routes = "Iface…\n".to_string()
            + &line("eth0", [0; 4], [0; 4])
            + &line("docker0", [10, 96, 0, 0], [255, 240, 0, 0]);
        let yard = Yard::host();
        let found = conflicts("x", yard.service_cidr, &routes);
        assert_eq!(
            (found.verdict, found.found.as_str()),
            (Verdict::Warn, "10.96.0.0/16 overlaps 10.96.0.0/12 on docker0")
        );
        assert_eq!(conflicts("x", yard.pod_cidr, &routes).verdict, Verdict::Ok);
    }
}
