//! Files made for a pod that its containers see: /etc/hosts, /etc/hostname, /etc/resolv.conf. Pure texts.

use std::net::Ipv4Addr;

use api::Object;
use dns::{DOMAIN, Resolv};

use crate::env::hostname;

/// The pod's name in DNS, if it has one: `web-0.web.default.svc.cluster.local`.
pub fn domain_name(pod: &Object) -> Option<String> {
    let subdomain = pod.get_str("spec.subdomain").filter(|name| !name.is_empty())?;
    Some(format!("{}.{subdomain}.{}.svc.{DOMAIN}", hostname(pod), pod.namespace()))
}

/// `/etc/hosts`.
pub fn hosts(pod: &Object) -> String {
    let mut text =
        String::from("# made by podyard\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    if let Some(ip) = pod.get_str("status.podIP") {
        let names = domain_name(pod).map(|name| format!("{name}\t")).unwrap_or_default();
        text.push_str(&format!("{ip}\t{names}{}\n", hostname(pod)));
    }
    for alias in pod.get_array("spec.hostAliases") {
        let names: Vec<&str> =
            alias["hostnames"].as_array().into_iter().flatten().filter_map(|n| n.as_str()).collect();
        text.push_str(&format!("{}\t{}\n", alias["ip"].as_str().unwrap_or(""), names.join("\t")));
    }
    text
}

/// As many nameservers as the C libraries take.
const NAMESERVERS_MAX: usize = 3;

/// `/etc/resolv.conf`. `cluster`: the yard's own nameservers; `host`: what the host's file says.
///
/// Source: Kubernetes documentation, "DNS for Services and Pods", Pod's DNS policy and DNS config.
pub fn resolv_conf(pod: &Object, cluster: &[Ipv4Addr], host: &Resolv) -> String {
    let config = &pod.0["spec"]["dnsConfig"];
    let listed = |field: &str| -> Vec<String> {
        let items = config[field].as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let own = || cluster.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (mut servers, mut search, mut options) = match pod.get_str("spec.dnsPolicy") {
        Some("None") => (Vec::new(), Vec::new(), Vec::new()),
        Some("Default") => {
            // The host's own loopback is not the pod's: the yard's servers ask there.
            let reachable = host.nameservers.iter().map(|server| server.ip()).filter(|ip| !ip.is_loopback());
            let reachable: Vec<String> = reachable.map(|ip| ip.to_string()).collect();
            let servers = if reachable.is_empty() { own() } else { reachable };
            (servers, host.search.clone(), Vec::new())
        }
        _ => {
            let namespace = pod.namespace();
            let mut search =
                vec![format!("{namespace}.svc.{DOMAIN}"), format!("svc.{DOMAIN}"), DOMAIN.to_owned()];
            search.extend(host.search.iter().cloned());
            (own(), search, vec![("ndots".to_owned(), Some("5".to_owned()))])
        }
    };
    servers.extend(listed("nameservers"));
    search.extend(listed("searches"));
    for option in config["options"].as_array().into_iter().flatten() {
        let name = option["name"].as_str().unwrap_or("").to_owned();
        let value = option["value"].as_str().map(str::to_owned);
        options.retain(|(known, _)| *known != name);
        options.push((name, value));
    }
    for list in [&mut servers, &mut search] {
        let mut met = std::collections::BTreeSet::new();
        list.retain(|item| met.insert(item.clone()));
    }
    let mut text: String =
        servers.iter().take(NAMESERVERS_MAX).map(|server| format!("nameserver {server}\n")).collect();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    if !options.is_empty() {
        let option = |(name, value): &(String, Option<String>)| match value {
            Some(value) => format!("{name}:{value}"),
            None => name.clone(),
        };
        let options: Vec<String> = options.iter().map(option).collect();
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pet_knows_its_name() {
        let pod = Object(json!({
            "metadata": {"name": "web-0", "namespace": "d"},
            "spec": {"hostname": "web-0", "subdomain": "web", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]},
            "status": {"podIP": "10.244.0.3"}
        }));
        let text = hosts(&pod);
        assert!(text.contains("10.244.0.3\tweb-0.web.d.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.contains("1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn resolvers_follow_the_policy() {
        let host = Resolv::parse("nameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch example.org");
        let own = [Ipv4Addr::new(10, 96, 0, 10)];
        let check = |spec: serde_json::Value, expect: &[&str]| {
            let pod = Object(json!({"metadata": {"name": "a", "namespace": "d"}, "spec": spec}));
            let lines = resolv_conf(&pod, &own, &host);
            assert_eq!(lines.lines().collect::<Vec<_>>(), expect);
        };
        let usual = [
            "nameserver 10.96.0.10",
            "search d.svc.cluster.local svc.cluster.local cluster.local example.org",
            "options ndots:5",
        ];
        check(json!({}), &usual);
        check(json!({"dnsPolicy": "ClusterFirst"}), &usual);
        check(json!({"dnsPolicy": "ClusterFirstWithHostNet"}), &usual);
        check(json!({"dnsPolicy": "Default"}), &["nameserver 192.0.2.1", "search example.org"]);
        let config = json!({
            "nameservers": ["9.9.9.9"], "searches": ["my.example"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
        });
        let all = ["nameserver 9.9.9.9", "search my.example", "options ndots:2 edns0"];
        check(json!({"dnsPolicy": "None", "dnsConfig": config}), &all);
        check(json!({"dnsConfig": config}), &[usual[0], all[0], &format!("{} my.example", usual[1]), all[2]]);
        // The pod cannot reach what only the host can.
        let host = Resolv::parse("nameserver 127.0.0.53");
        let pod = Object(json!({"metadata": {"name": "a"}, "spec": {"dnsPolicy": "Default"}}));
        assert_eq!(resolv_conf(&pod, &own, &host), "nameserver 10.96.0.10\n");
    }
}
