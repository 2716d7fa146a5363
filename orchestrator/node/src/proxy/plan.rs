//! Which endpoints stand behind which virtual port. Pure.

use std::fmt;

use api::{Key, Object};
use netns::{Cidr, Services};

use super::memory::Memory;

/// What the kernel shall hold, and what of the objects it cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every virtual port, with its ready endpoints.
    pub services: Services,
    /// Ordered by object.
    pub warnings: Vec<Warning>,
}

/// A part of an object that the proxy passes over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Whose part.
    pub key: Key,
    /// Which field, and why.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// The virtual ports of all Services. The order of the objects does not matter.
///
/// An endpoint counts as ready unless it says otherwise. Named target ports are resolved already: a slice carries numbers.
/// Services without a cluster IP (headless, `ExternalName`) have no virtual port. Of two Services that claim the same one, the older
/// has it.
pub fn plan<'a>(
    services: impl IntoIterator<Item = &'a Object>,
    slices: impl IntoIterator<Item = &'a Object>,
    service_cidr: Cidr,
) -> Plan {
    let mut memory = Memory::new(service_cidr);
    memory.replace(services, slices);
    Plan { services: memory.wish().clone(), warnings: memory.warnings() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::super::view::SERVICE_NAME;
    use super::*;

    fn cidr() -> Cidr {
        "10.96.0.0/16".parse().unwrap()
    }

    fn service(name: &str, spec: Value) -> Object {
        Object(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}),
        )
    }

    fn slice(name: &str, service: &str, ports: Value, endpoints: Value) -> Object {
        Object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "default", "labels": {SERVICE_NAME: service}},
            "ports": ports, "endpoints": endpoints,
        }))
    }

    /// The plan as text: `10.96.0.1:80/tcp > 10.88.0.5:8080`, and warnings.
    fn check(services: &[Object], slices: &[Object], expect: &[&str]) {
        let text = |plan: &Plan| {
            let mut lines: Vec<String> = Vec::new();
            for (port, endpoints) in &plan.services.0 {
                let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                lines.push(format!("{port} > {}", endpoints.join(" ")));
            }
            lines.extend(plan.warnings.iter().map(ToString::to_string));
            lines
        };
        assert_eq!(text(&plan(services, slices, cidr())), expect);
        let backwards = plan(services.iter().rev(), slices.iter().rev(), cidr());
        assert_eq!(text(&backwards), expect, "in another order");
    }

    fn web() -> Object {
        service(
            "web",
            json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "protocol": "TCP", "targetPort": "http"}]}),
        )
    }

    #[test]
    fn ready_endpoints_of_all_slices_serve() {
        let ports = json!([{"port": 8080, "protocol": "TCP", "name": ""}]);
        let first = json!([
            {"addresses": ["10.88.0.5", "10.88.0.99"], "conditions": {"ready": true}},
            {"addresses": ["10.88.0.6"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.88.0.7"]},
        ]);
        let second = json!([{"addresses": ["10.88.0.5"]}, {"addresses": ["10.88.0.8"], "conditions": {}}]);
        let slices = [
            slice("a", "web", ports.clone(), first),
            slice("b", "web", json!([{"port": 9090}]), second),
            slice("c", "other", ports, json!([{"addresses": ["10.88.0.9"]}])),
        ];
        check(
            &[web()],
            &slices,
            &["10.96.0.1:80/tcp > 10.88.0.5:8080 10.88.0.5:9090 10.88.0.7:8080 10.88.0.8:9090"],
        );
    }

    #[test]
    fn ports_meet_by_name_and_protocol() {
        let dns = service(
            "dns",
            json!({"clusterIP": "10.96.0.53", "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                {"name": "metrics", "port": 9153},
            ]}),
        );
        let ports = json!([
            {"name": "dns", "port": 5353, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 5354, "protocol": "TCP"},
            {"name": "metrics", "port": 1, "protocol": "UDP"},
        ]);
        check(
            &[dns],
            &[slice("a", "dns", ports, json!([{"addresses": ["10.88.0.5"]}]))],
            &[
                "10.96.0.53:53/tcp > 10.88.0.5:5354",
                "10.96.0.53:9153/tcp > ",
                "10.96.0.53:53/udp > 10.88.0.5:5353",
            ],
        );
    }

    #[test]
    fn no_slices_means_refused_not_unknown() {
        check(&[web()], &[], &["10.96.0.1:80/tcp > "]);
    }

    #[test]
    fn anothers_service_is_left_alone() {
        let mut dns = web();
        dns.set("metadata.labels", json!({crate::proxy::PROXY_NAME: "podyard-dns"}));
        check(&[dns], &[], &[]);
    }

    #[test]
    fn without_cluster_ip_nothing_is_served() {
        let none = |ip: Value| service("s", json!({"clusterIP": ip, "ports": [{"port": 80}]}));
        check(&[none(json!("None")), none(json!("")), none(Value::Null)], &[], &[]);
        check(&[service("e", json!({"type": "ExternalName", "externalName": "example.com"}))], &[], &[]);
    }

    #[test]
    fn what_cannot_be_served_is_told() {
        let stray = service("stray", json!({"clusterIP": "10.97.0.1", "ports": [{"port": 80}]}));
        let double = service(
            "zz",
            json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "sessionAffinity": "ClientIP"}),
        );
        let broken = service("broken", json!({"clusterIP": 7}));
        let bad = json!([{"addresses": ["127.0.0.1"]}, {"addresses": ["10.96.0.1"]}, {"addresses": ["x"]}, {"addresses": []}]);
        let slices = [slice("a", "web", json!([{"port": 8080}]), bad)];
        let plan = plan(&[web(), stray.clone(), double.clone(), broken.clone()], &slices, cidr());
        assert_eq!(plan.services.0.len(), 1);
        let keys: Vec<_> = plan.warnings.iter().map(|warning| warning.key.name.as_str()).collect();
        assert_eq!(keys, ["broken", "stray", "zz", "zz", "a", "a", "a"], "{:#?}", plan.warnings);
    }

    #[test]
    fn the_older_service_keeps_a_disputed_port() {
        let aged = |name: &str, time: &str, ip: &str| {
            let mut object = service(name, json!({"clusterIP": ip, "ports": [{"port": 80}]}));
            object.set("metadata.creationTimestamp", time);
            object
        };
        let (young, old) =
            (aged("a", "2026-02-01T00:00:00Z", "10.96.0.1"), aged("b", "2026-01-01T00:00:00Z", "10.96.0.1"));
        let slices = [slice("s", "b", json!([{"port": 1}]), json!([{"addresses": ["10.88.0.5"]}]))];
        let expect = [
            "10.96.0.1:80/tcp > 10.88.0.5:1",
            "services/default/a: spec.ports: 10.96.0.1:80/tcp belongs to another port or Service already",
        ];
        check(&[young, old], &slices, &expect);
    }

    fn aged(mut object: Object, revision: u64) -> Object {
        let uid = format!("uid-{}-{}", object.kind(), object.name());
        object.set("metadata.uid", uid);
        object.set_resource_version(Some(revision));
        object
    }

    /// Deleting the memory gives the same next plan: at every point of a random history.
    #[test]
    fn a_memory_never_changes_the_plan() {
        let mut seed = 0x1234_5678_9abc_def1_u64;
        println!("seed {seed}");
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let (mut services, mut slices) = (BTreeMap::new(), BTreeMap::new());
        let mut memory = Memory::new(cidr());
        for revision in 1..2000 {
            let (name, of) = (format!("s{}", random(6)), format!("s{}", random(6)));
            let ip = format!("10.96.0.{}", 1 + random(4));
            let kind = random(6);
            let changed = if kind <= 2 {
                let spec =
                    json!({"clusterIP": ip, "ports": [{"port": 80 + random(2)}, {"name": "b", "port": 80}]});
                aged(service(&name, spec), revision)
            } else {
                let endpoints = json!([{"addresses": [format!("10.88.0.{}", random(9))]}]);
                aged(slice(&name, &of, json!([{"port": 8080 + random(2)}]), endpoints), revision)
            };
            let objects = if kind <= 2 { &mut services } else { &mut slices };
            match kind % 3 {
                0 => {
                    objects.remove(&name);
                    memory.remove(&changed.key());
                }
                _ => {
                    objects.insert(name, changed.clone());
                    memory.put(&changed);
                }
            }
            if random(20) == 0 {
                memory.replace(services.values(), slices.values());
            }
            let fresh = plan(services.values(), slices.values(), cidr());
            assert_eq!(
                (memory.wish(), memory.warnings()),
                (&fresh.services, fresh.warnings),
                "revision {revision}"
            );
        }
        for key in services.values().chain(slices.values()).map(Object::key) {
            memory.remove(&key);
        }
        assert_eq!(memory, Memory::new(cidr()), "what is gone is forgotten");
    }

    /// What deciding costs at 1,000 Services when one of them is new: printed, not asserted, because machines differ.
    #[test]
    fn cost_of_a_plan_at_1000() {
        let spec = |index: u32| json!({"clusterIP": cidr().nth(index + 1), "ports": [{"port": 80, "targetPort": 8080}]});
        let services =
            (0..1001).map(|index| aged(service(&format!("s{index}"), spec(index)), 1)).collect::<Vec<_>>();
        let endpoints = json!([{"addresses": ["10.88.0.5"]}, {"addresses": ["10.88.0.6"]}]);
        let slices: Vec<_> = (0..1001)
            .map(|index| {
                let (name, of) = (format!("e{index}"), format!("s{index}"));
                aged(slice(&name, &of, json!([{"port": 8080}]), endpoints.clone()), 1)
            })
            .collect();
        let mut memory = Memory::new(cidr());
        let started = std::time::Instant::now();
        memory.replace(&services[..1000], &slices[..1000]);
        println!("{} virtual ports in {:?}", memory.wish().0.len(), started.elapsed());
        let started = std::time::Instant::now();
        memory.put(&services[1000]);
        memory.put(&slices[1000]);
        println!("one more in {:?}", started.elapsed());
    }
}
