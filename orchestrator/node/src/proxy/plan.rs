//! Which endpoints stand behind which virtual port. Pure.
//!
//! Source: Kubernetes API reference, Service v1 and EndpointSlice discovery.k8s.io/v1.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use api::{Key, Object};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use netns::{Cidr, Endpoint, Protocol, Services, VirtualPort};

/// The label that names an EndpointSlice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What the kernel shall hold, and what of the objects it cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every virtual port, with its ready endpoints.
    pub services: Services,
    /// Ordered by object.
    pub warnings: Vec<Warning>,
}

/// A part of an object that the proxy passes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Whose part.
    pub key: Key,
    /// Which field, and why.
    pub text: String,
}

impl Warning {
    fn new(object: &Object, text: impl Into<String>) -> Self {
        Self { key: object.key(), text: text.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// (namespace, service) → its slices.
type Slices<'a> = BTreeMap<(&'a str, String), Vec<(&'a Object, EndpointSlice)>>;

/// The virtual ports of all Services. The order of the objects does not matter.
///
/// An endpoint counts as ready unless it says otherwise. Named target ports are resolved already: a slice carries numbers.
/// Services without a cluster IP (headless, `ExternalName`) have no virtual port.
pub fn plan<'a>(
    services: impl IntoIterator<Item = &'a Object>,
    slices: impl IntoIterator<Item = &'a Object>,
    service_cidr: Cidr,
) -> Plan {
    let Plan { services: mut wish, mut warnings } = Plan::default();
    let slices = group(slices, &mut warnings);
    let mut services: Vec<&Object> = services.into_iter().collect();
    // First come, first served would depend on the order of a list; ages and names do not.
    services.sort_by_key(|object| (object.creation_timestamp(), object.key()));
    for object in services {
        let (address, spec) = match cluster_ip(object, service_cidr) {
            Ok(Some(served)) => served,
            Ok(None) => continue,
            Err(text) => {
                warnings.push(Warning::new(object, text));
                continue;
            }
        };
        if spec.session_affinity.as_deref().is_some_and(|affinity| affinity != "None") {
            warnings.push(Warning::new(object, "spec.sessionAffinity: not kept, any endpoint may answer"));
        }
        let own = (object.namespace(), object.name().to_owned());
        let slices = slices.get(&own).map_or(&[][..], Vec::as_slice);
        for port in spec.ports.unwrap_or_default() {
            match virtual_port(address, &port) {
                Ok(taken) if wish.0.contains_key(&taken) => {
                    let text = format!("spec.ports: {taken} belongs to another port or Service already");
                    warnings.push(Warning::new(object, text));
                }
                Ok(free) => {
                    let endpoints = endpoints(&port, free.protocol, slices, service_cidr, &mut warnings);
                    wish.0.insert(free, endpoints);
                }
                Err(text) => warnings.push(Warning::new(object, text)),
            }
        }
    }
    warnings.sort_by(|left, right| (&left.key, &left.text).cmp(&(&right.key, &right.text)));
    warnings.dedup();
    Plan { services: wish, warnings }
}

fn group<'a>(slices: impl IntoIterator<Item = &'a Object>, warnings: &mut Vec<Warning>) -> Slices<'a> {
    let mut grouped = Slices::new();
    for object in slices {
        // Without the label it is nobody's, which is legal.
        let Some(service) = object.label(SERVICE_NAME) else { continue };
        match object.view::<EndpointSlice>() {
            // Other families are for those who speak them.
            Ok(slice) if slice.address_type != "IPv4" => {}
            Ok(slice) => {
                grouped.entry((object.namespace(), service.to_owned())).or_default().push((object, slice))
            }
            Err(error) => warnings.push(Warning::new(object, error.to_string())),
        }
    }
    grouped
}

/// The virtual IP and the spec; none for headless Services.
fn cluster_ip(object: &Object, service_cidr: Cidr) -> Result<Option<(Ipv4Addr, ServiceSpec)>, String> {
    let service: Service = object.view().map_err(|error| error.to_string())?;
    let spec = service.spec.unwrap_or_default();
    let Some(text) = spec.cluster_ip.as_deref().filter(|text| !text.is_empty() && *text != "None") else {
        return Ok(None);
    };
    match text.parse() {
        Ok(address) if service_cidr.contains(address) => Ok(Some((address, spec))),
        Ok(_) => Err(format!("spec.clusterIP: {text} is not in the service CIDR {service_cidr}")),
        Err(_) => Err(format!("spec.clusterIP: {text} is no IPv4 address")),
    }
}

fn virtual_port(address: Ipv4Addr, port: &ServicePort) -> Result<VirtualPort, String> {
    match (protocol(port.protocol.as_deref()), number(port.port)) {
        (Some(protocol), Some(port)) => Ok(VirtualPort { address, protocol, port }),
        _ => {
            Err(format!("spec.ports: {} {} is no port", port.protocol.as_deref().unwrap_or("TCP"), port.port))
        }
    }
}

fn endpoints(
    port: &ServicePort,
    protocol: Protocol,
    slices: &[(&Object, EndpointSlice)],
    service_cidr: Cidr,
    warnings: &mut Vec<Warning>,
) -> BTreeSet<Endpoint> {
    let name = port.name.as_deref().unwrap_or_default();
    let mut found = BTreeSet::new();
    for (object, slice) in slices {
        let ports = slice.ports.iter().flatten();
        let matching = ports
            .filter(|there| there.name.as_deref().unwrap_or_default() == name)
            .filter(|there| self::protocol(there.protocol.as_deref()) == Some(protocol));
        let numbers: Vec<u16> = matching.filter_map(|there| number(there.port?)).collect();
        for endpoint in &slice.endpoints {
            if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
                continue;
            }
            // All addresses of an endpoint are the same endpoint: the first will do.
            let Some(text) = endpoint.addresses.first() else { continue };
            let Some(address) = text.parse().ok().filter(|&address| reachable(address, service_cidr)) else {
                warnings.push(Warning::new(
                    object,
                    format!("endpoints: {text} is no address that a pod can have"),
                ));
                continue;
            };
            found.extend(numbers.iter().map(|&port| Endpoint { address, port }));
        }
    }
    found
}

/// Sending a client to these would reach something else than a pod: the client itself, this node, or a circle.
fn reachable(address: Ipv4Addr, service_cidr: Cidr) -> bool {
    !(address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_unspecified()
        || address.is_broadcast()
        || service_cidr.contains(address))
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|&port| port > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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
}
