//! Files made for a pod that its containers see: /etc/hosts, /etc/hostname, /etc/resolv.conf. Pure texts.

use std::net::Ipv4Addr;

use api::Object;

use crate::env::hostname;

/// The cluster's domain.
pub const DOMAIN: &str = "cluster.local";

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

/// `/etc/resolv.conf`. Without a nameserver of the yard's, names of services do not resolve, and nothing else
/// is asked either: a pod has no way to the host's resolvers that we would know of.
pub fn resolv_conf(pod: &Object, nameservers: &[Ipv4Addr]) -> String {
    let config = &pod.0["spec"]["dnsConfig"];
    let listed = |field: &str| -> Vec<String> {
        config[field]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    let mut servers = listed("nameservers");
    let mut search = listed("searches");
    if pod.get_str("spec.dnsPolicy") != Some("None") {
        servers.splice(0..0, nameservers.iter().map(ToString::to_string));
        let namespace = pod.namespace();
        let own = [format!("{namespace}.svc.{DOMAIN}"), format!("svc.{DOMAIN}"), DOMAIN.to_owned()];
        search.splice(0..0, own);
    }
    let mut text: String = servers.iter().take(3).map(|server| format!("nameserver {server}\n")).collect();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    let mut options = vec!["ndots:5".to_owned()];
    for option in config["options"].as_array().into_iter().flatten() {
        let name = option["name"].as_str().unwrap_or("");
        match option["value"].as_str() {
            Some(value) => options.push(format!("{name}:{value}")),
            None => options.push(name.to_owned()),
        }
    }
    text.push_str(&format!("options {}\n", options.join(" ")));
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
        let text = resolv_conf(&pod, &[Ipv4Addr::new(10, 244, 0, 1)]);
        assert_eq!(
            text,
            "nameserver 10.244.0.1\nsearch d.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        );
    }
}
