//! What DNS has understood of all objects, kept so that a change costs the reading of one Service. Pure.
//!
//! A function of the objects alone: the order in which they came does not matter.
//!
//! Source: Kubernetes API reference, Service v1 and EndpointSlice discovery.k8s.io/v1.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use api::{Key, Object};
use hickory_proto::rr::Name;
use serde_json::Value;

/// The label that names an EndpointSlice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name of a Service.
pub type ServiceName = (String, String);

/// A Service and what is behind it, as DNS tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What its name stands for.
    pub target: Target,
    /// The Service's own ports.
    pub ports: Vec<Port>,
    /// What may be told of, each address and label once.
    pub endpoints: Vec<Endpoint>,
}

/// What the name of a Service stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One virtual address.
    Address(Ipv4Addr),
    /// The addresses of the endpoints.
    Headless,
    /// Another name.
    External(Name),
}

/// A port with its name; unnamed ones have an empty name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// In lower case.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Its number.
    pub number: u16,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its label below the Service's name: its hostname, or its address with dashes.
    pub label: String,
    /// Whether the label is a hostname, which its address points back to.
    pub named: bool,
    /// Where it is.
    pub address: Ipv4Addr,
    /// Its ports, which may differ from the Service's.
    pub ports: Arc<[Port]>,
}

/// An EndpointSlice.
#[derive(Clone, Debug)]
struct Slice {
    of: ServiceName,
    /// With whether each is ready.
    endpoints: Vec<(Endpoint, bool)>,
}

/// A Service without its endpoints.
#[derive(Clone, Debug)]
struct Front {
    target: Target,
    ports: Vec<Port>,
    publish_unready: bool,
}

/// All Services and EndpointSlices.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    services: BTreeMap<ServiceName, Front>,
    slices: BTreeMap<Key, Slice>,
    /// Service → keys of its slices.
    of_service: BTreeMap<ServiceName, BTreeSet<Key>>,
}

impl Memory {
    /// Takes in a new or changed object. Answers the Services to look at again.
    pub fn put(&mut self, object: &Object) -> Vec<ServiceName> {
        match object.kind() {
            "Service" => {
                let name = (object.namespace().to_owned(), object.name().to_owned());
                match Front::of(object) {
                    Some(front) => drop(self.services.insert(name.clone(), front)),
                    None => drop(self.services.remove(&name)),
                }
                vec![name]
            }
            "EndpointSlice" => {
                let key = object.key();
                let mut touched = self.remove(&key);
                if let Some(slice) = Slice::of(object) {
                    self.of_service.entry(slice.of.clone()).or_default().insert(key.clone());
                    touched.push(slice.of.clone());
                    self.slices.insert(key, slice);
                }
                touched.dedup();
                touched
            }
            _ => Vec::new(),
        }
    }

    /// Forgets an object. Answers the Services to look at again.
    pub fn remove(&mut self, key: &Key) -> Vec<ServiceName> {
        if let Some(slice) = self.slices.remove(key) {
            if let Some(keys) = self.of_service.get_mut(&slice.of) {
                keys.remove(key);
                if keys.is_empty() {
                    self.of_service.remove(&slice.of);
                }
            }
            return vec![slice.of];
        }
        let name = (key.namespace.clone(), key.name.clone());
        if key.resource.kind == "Service" && self.services.remove(&name).is_some() {
            return vec![name];
        }
        Vec::new()
    }

    /// What is to be told of a Service; `None` if its name stands for nothing.
    pub fn service(&self, name: &ServiceName) -> Option<Service> {
        let front = self.services.get(name)?;
        let slices = self.of_service.get(name).into_iter().flatten();
        let known = slices.filter_map(|key| self.slices.get(key)).flat_map(|slice| &slice.endpoints);
        let mut met = BTreeSet::new();
        let endpoints = known
            .filter(|(_, ready)| *ready || front.publish_unready)
            .filter(|(endpoint, _)| {
                met.insert((endpoint.label.clone(), endpoint.address, Arc::clone(&endpoint.ports)))
            })
            .map(|(endpoint, _)| endpoint.clone())
            .collect();
        Some(Service { target: front.target.clone(), ports: front.ports.clone(), endpoints })
    }

    /// The names of all Services.
    pub fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// The keys of all slices.
    pub fn slices(&self) -> impl Iterator<Item = &Key> {
        self.slices.keys()
    }
}

impl Front {
    /// `None` for a Service that has no name to tell yet, or a broken one.
    fn of(object: &Object) -> Option<Front> {
        let target = match object.get_str("spec.type") {
            Some("ExternalName") => {
                let mut name = Name::from_ascii(object.get_str("spec.externalName")?).ok()?;
                name.set_fqdn(true);
                Target::External(name)
            }
            _ => match object.get_str("spec.clusterIP")? {
                "None" => Target::Headless,
                text => Target::Address(text.parse().ok()?),
            },
        };
        Some(Front {
            target,
            ports: ports(object.get_array("spec.ports")),
            publish_unready: object.get_bool("spec.publishNotReadyAddresses").unwrap_or(false),
        })
    }
}

impl Slice {
    /// `None` for a slice of no Service, or of another address family.
    fn of(object: &Object) -> Option<Slice> {
        if object.get_str("addressType") != Some("IPv4") {
            return None;
        }
        let of = (object.namespace().to_owned(), object.label(SERVICE_NAME)?.to_owned());
        let ports: Arc<[Port]> = ports(object.get_array("ports")).into();
        let endpoint = |value: &Value| {
            let addresses = value["addresses"].as_array().into_iter().flatten();
            let hostname = value["hostname"].as_str().filter(|name| !name.is_empty());
            let ready = value["conditions"]["ready"].as_bool().unwrap_or(true);
            let endpoints = addresses.filter_map(|text| text.as_str()?.parse().ok()).map(|address| {
                let label = hostname.map_or_else(|| dashed(address), str::to_ascii_lowercase);
                (Endpoint { label, named: hostname.is_some(), address, ports: Arc::clone(&ports) }, ready)
            });
            endpoints.collect::<Vec<_>>()
        };
        let endpoints = object.get_array("endpoints").iter().flat_map(endpoint).collect();
        Some(Slice { of, endpoints })
    }
}

fn ports(list: &[Value]) -> Vec<Port> {
    let port = |value: &Value| {
        Some(Port {
            name: value["name"].as_str().unwrap_or("").to_ascii_lowercase(),
            protocol: value["protocol"].as_str().unwrap_or("TCP").to_ascii_lowercase(),
            number: u16::try_from(value["port"].as_u64()?).ok()?,
        })
    };
    list.iter().filter_map(port).collect()
}

/// `10-244-0-3`
pub fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}
