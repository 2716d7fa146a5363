//! Services and endpoint slices.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use super::{Causes, Tree, items, labels, names, text, texts, tree};

const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];

pub(super) fn spec(spec: &Tree, causes: &mut Causes) {
    let kind = text(spec, "type");
    causes.one_of("spec.type", kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    causes.one_of("spec.sessionAffinity", text(spec, "sessionAffinity"), &["ClientIP", "None"]);
    if text(spec, "sessionAffinity") == "ClientIP" {
        causes.warn("not implemented yet: spec.sessionAffinity ClientIP");
    }
    if text(spec, "internalTrafficPolicy") == "Local" {
        causes.warn("not implemented yet: spec.internalTrafficPolicy Local");
    }
    if let Some(selector) = tree(spec, "selector") {
        labels::map(selector, "spec.selector", causes);
    }
    let ip = text(spec, "clusterIP");
    if !matches!(ip, "" | "None") && ip.parse::<IpAddr>().is_err() {
        causes.invalid("spec.clusterIP", ip, "must be a valid IP address, None or empty");
    }
    if let Some(first) = texts(spec, "clusterIPs").next()
        && first != ip
    {
        causes.invalid("spec.clusterIPs", first, "first value must match `clusterIP`");
    }
    if kind == "ExternalName" {
        if !matches!(ip, "" | "None") {
            causes.forbidden("spec.clusterIP", "may not be set for ExternalName services");
        }
        match text(spec, "externalName") {
            "" => causes.required("spec.externalName"),
            name => causes.name("spec.externalName", name.trim_end_matches('.'), names::dns_subdomain),
        }
    }
    ports(spec, kind, ip, causes);
}

fn ports(spec: &Tree, kind: &str, ip: &str, causes: &mut Causes) {
    let count = items(spec, "spec", "ports").count();
    if count == 0 && kind != "ExternalName" && ip != "None" {
        causes.required("spec.ports");
    }
    let mut seen = HashSet::new();
    for (path, port) in items(spec, "spec", "ports") {
        let name = text(port, "name");
        if name.is_empty() {
            if count > 1 {
                causes.required(format!("{path}.name"));
            }
        } else {
            causes.name(format!("{path}.name"), name, names::dns_label);
            if !seen.insert(name) {
                causes.duplicate(format!("{path}.name"), name);
            }
        }
        match port.get("port") {
            None => causes.required(format!("{path}.port")),
            number => causes.in_range(format!("{path}.port"), number, 1, 65_535),
        }
        causes.one_of(format!("{path}.protocol"), text(port, "protocol"), PROTOCOLS);
        match port.get("targetPort") {
            Some(Value::String(name)) => {
                causes.name(format!("{path}.targetPort"), name, names::port_name);
            }
            number => causes.in_range(format!("{path}.targetPort"), number, 1, 65_535),
        }
    }
}

pub(super) fn endpoint_slice(slice: &Tree, causes: &mut Causes) {
    let family = text(slice, "addressType");
    if family.is_empty() {
        causes.required("addressType");
    } else {
        causes.one_of("addressType", family, &["IPv4", "IPv6", "FQDN"]);
    }
    for (path, endpoint) in items(slice, "", "endpoints") {
        let mut count = 0;
        for (index, address) in texts(endpoint, "addresses").enumerate() {
            count += 1;
            let good = match family {
                "IPv4" => address.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => address.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => names::dns_subdomain(address).is_ok(),
            };
            if !good {
                let why = format!("must be a valid {family} address");
                causes.invalid(format!("{path}.addresses[{index}]"), address, why);
            }
        }
        if count == 0 {
            causes.required_because(format!("{path}.addresses"), "must contain at least 1 address");
        }
        if !text(endpoint, "hostname").is_empty() {
            causes.name(format!("{path}.hostname"), text(endpoint, "hostname"), names::dns_label);
        }
    }
    let mut seen = HashSet::new();
    for (path, port) in items(slice, "", "ports") {
        let name = text(port, "name");
        if !name.is_empty() {
            causes.name(format!("{path}.name"), name, names::dns_label);
        }
        if !seen.insert(name) {
            causes.duplicate(format!("{path}.name"), name);
        }
        causes.one_of(format!("{path}.protocol"), text(port, "protocol"), PROTOCOLS);
        causes.in_range(format!("{path}.port"), port.get("port"), 1, 65_535);
    }
}
