//! Which endpoints stand behind which virtual port. Pure.

use std::collections::btree_map;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use api::{Key, Object};
use netns::{Cidr, Endpoint, Services, VirtualPort};

use super::view::{ServiceView, SliceView};

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
    Memory::default().plan(services, slices, service_cidr)
}

/// Objects understood before, so that a change among 1,000 costs the reading of one. Forgetting it all changes no plan.
#[derive(Debug, Default)]
pub struct Memory {
    services: Known<ServiceView>,
    slices: Known<Option<SliceView>>,
}

impl Memory {
    /// As [`plan()`].
    pub fn plan<'a>(
        &mut self,
        services: impl IntoIterator<Item = &'a Object>,
        slices: impl IntoIterator<Item = &'a Object>,
        service_cidr: Cidr,
    ) -> Plan {
        let services = self.services.look(services, |object| ServiceView::of(object, service_cidr));
        let slices = self.slices.look(slices, |object| SliceView::of(object, service_cidr));
        combine(&services, &slices)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.services.views.len() + self.slices.views.len()
    }
}

/// Views by the object's uid.
#[derive(Debug)]
struct Known<V> {
    views: HashMap<String, Entry<V>>,
    /// Counts the looks.
    turn: u64,
}

#[derive(Debug)]
struct Entry<V> {
    /// The resource version that was read.
    revision: u64,
    /// The last look that met the object.
    turn: u64,
    view: Arc<V>,
}

impl<V> Default for Known<V> {
    fn default() -> Self {
        Self { views: HashMap::new(), turn: 0 }
    }
}

impl<V> Known<V> {
    /// Views of exactly these objects, in their order; all others are forgotten.
    fn look<'a>(
        &mut self,
        objects: impl IntoIterator<Item = &'a Object>,
        read: impl Fn(&Object) -> V,
    ) -> Vec<(&'a Object, Arc<V>)> {
        self.turn += 1;
        let (turn, mut met) = (self.turn, 0);
        let mut views = Vec::with_capacity(self.views.len() + 1);
        for object in objects {
            let (uid, revision) = (object.uid(), object.resource_version().unwrap_or(0));
            let known = self.views.get_mut(uid).filter(|entry| entry.revision == revision);
            let view = if let Some(entry) = known {
                met += usize::from(entry.turn != turn);
                entry.turn = turn;
                Arc::clone(&entry.view)
            } else {
                let view = Arc::new(read(object));
                // Without either it was never stored, and nothing tells two of its states apart.
                if !uid.is_empty() && revision > 0 {
                    self.views.insert(uid.to_owned(), Entry { revision, turn, view: Arc::clone(&view) });
                    met += 1;
                }
                view
            };
            views.push((object, view));
        }
        if met != self.views.len() {
            self.views.retain(|_, entry| entry.turn == turn);
        }
        views
    }
}

type Views<'a, V> = [(&'a Object, Arc<V>)];

fn combine(services: &Views<'_, ServiceView>, slices: &Views<'_, Option<SliceView>>) -> Plan {
    let mut plan = Plan::default();
    let mut of_service: BTreeMap<(&str, &str), Vec<&SliceView>> = BTreeMap::new();
    for (object, view) in slices {
        let Some(view) = view.as_ref() else { continue };
        of_service.entry((&view.service.0, &view.service.1)).or_default().push(view);
        plan.warnings
            .extend(view.warnings.iter().map(|text| Warning { key: object.key(), text: text.clone() }));
    }
    let mut holders: BTreeMap<VirtualPort, (&ServiceView, &str)> = BTreeMap::new();
    for (_, view) in services {
        let warn = |view: &ServiceView, text: String| Warning { key: view.key.clone(), text };
        plan.warnings.extend(view.warnings.iter().map(|text| warn(view, text.clone())));
        for (name, port) in &view.ports {
            let loser = match holders.entry(*port) {
                btree_map::Entry::Vacant(free) => {
                    free.insert((view, name));
                    continue;
                }
                btree_map::Entry::Occupied(mut held) => {
                    let holder = held.get().0;
                    if (view.created, &view.key) < (holder.created, &holder.key) {
                        held.insert((view, name)).0
                    } else {
                        view
                    }
                }
            };
            let text = format!("spec.ports: {port} belongs to another port or Service already");
            plan.warnings.push(warn(loser, text));
        }
    }
    let ports = holders.into_iter().map(|(port, (view, name))| {
        let slices = of_service.get(&(view.key.namespace.as_str(), view.key.name.as_str()));
        let endpoints = slices.into_iter().flatten().flat_map(|slice| {
            let numbers =
                slice.ports.iter().filter(|(there, protocol, _)| there == name && *protocol == port.protocol);
            numbers.flat_map(|&(_, _, port)| {
                slice.addresses.iter().map(move |&address| Endpoint { address, port })
            })
        });
        (port, endpoints.collect())
    });
    plan.services.0 = ports.collect();
    plan.warnings.sort();
    plan.warnings.dedup();
    plan
}

#[cfg(test)]
mod tests {
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
        let mut memory = Memory::default();
        for revision in 0..500 {
            let (name, of) = (format!("s{}", random(6)), format!("s{}", random(6)));
            let ip = format!("10.96.0.{}", 1 + random(4));
            match random(6) {
                0 => drop(services.remove(&name)),
                1 => drop(slices.remove(&name)),
                2 | 3 => {
                    let spec = json!({"clusterIP": ip, "ports": [{"port": 80 + random(2)}]});
                    services.insert(name.clone(), aged(service(&name, spec), revision));
                }
                _ => {
                    let endpoints = json!([{"addresses": [format!("10.88.0.{}", random(9))]}]);
                    let ports = json!([{"port": 8080 + random(2)}]);
                    slices.insert(name.clone(), aged(slice(&name, &of, ports, endpoints), revision));
                }
            }
            let remembered = memory.plan(services.values(), slices.values(), cidr());
            assert_eq!(remembered, plan(services.values(), slices.values(), cidr()));
        }
        assert_eq!(memory.len(), services.len() + slices.len(), "what is gone is forgotten");
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
        let mut memory = Memory::default();
        for count in [1000, 1001] {
            let started = std::time::Instant::now();
            let plan = memory.plan(&services[..count], &slices[..count], cidr());
            println!("{} virtual ports in {:?}", plan.services.0.len(), started.elapsed());
        }
    }
}
