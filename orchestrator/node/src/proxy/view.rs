//! What the proxy needs to know of one object. Pure.
//!
//! Source: Kubernetes API reference, Service v1 and EndpointSlice discovery.k8s.io/v1.

use std::net::Ipv4Addr;

use api::{Key, Object, Timestamp};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use netns::{Cidr, Protocol, VirtualPort};

/// The label that names an EndpointSlice's Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The label that gives a Service to another proxy, as in Kubernetes: this one leaves it alone.
pub const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceView {
    /// When it was made; the older of two keeps a disputed port.
    pub(super) created: Option<Timestamp>,
    /// Whose it is.
    pub(super) key: Key,
    /// Ports by name; none for headless Services.
    pub(super) ports: Vec<(String, VirtualPort)>,
    /// What is passed over, and why.
    pub(super) warnings: Vec<String>,
}

/// An EndpointSlice of IPv4 addresses that belongs to a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SliceView {
    /// Namespace and name of the Service.
    pub(super) service: (String, String),
    /// (name, protocol, number)
    pub(super) ports: Vec<(String, Protocol, u16)>,
    /// Ready endpoints.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// What is passed over, and why.
    pub(super) warnings: Vec<String>,
}

impl ServiceView {
    pub(super) fn of(object: &Object, service_cidr: Cidr) -> Self {
        let mut view = Self {
            created: object.creation_timestamp(),
            key: object.key(),
            ports: Vec::new(),
            warnings: Vec::new(),
        };
        if let Err(text) = view.read(object, service_cidr) {
            view.warnings.push(text);
        }
        view
    }

    fn read(&mut self, object: &Object, service_cidr: Cidr) -> Result<(), String> {
        if object.label(PROXY_NAME).is_some() {
            return Ok(());
        }
        let service: Service = object.view().map_err(|error| error.to_string())?;
        let spec = service.spec.unwrap_or_default();
        let Some(text) = spec.cluster_ip.as_deref().filter(|text| !text.is_empty() && *text != "None") else {
            return Ok(());
        };
        let address: Ipv4Addr =
            text.parse().map_err(|_| format!("spec.clusterIP: {text} is no IPv4 address"))?;
        if !service_cidr.contains(address) {
            return Err(format!("spec.clusterIP: {text} is not in the service CIDR {service_cidr}"));
        }
        if spec.session_affinity.as_deref().is_some_and(|affinity| affinity != "None") {
            self.warnings.push("spec.sessionAffinity: not kept, any endpoint may answer".into());
        }
        for port in spec.ports.unwrap_or_default() {
            match virtual_port(address, &port) {
                Ok(served) => self.ports.push((port.name.unwrap_or_default(), served)),
                Err(text) => self.warnings.push(text),
            }
        }
        Ok(())
    }
}

impl SliceView {
    /// `None` for a slice of no Service, or of another address family.
    pub(super) fn of(object: &Object, service_cidr: Cidr) -> Option<Self> {
        let service = (object.namespace().to_owned(), object.label(SERVICE_NAME)?.to_owned());
        let mut view = Self { service, ..Self::default() };
        let slice: EndpointSlice = match object.view() {
            Ok(slice) => slice,
            Err(error) => {
                view.warnings.push(error.to_string());
                return Some(view);
            }
        };
        if slice.address_type != "IPv4" {
            return None;
        }
        for port in slice.ports.unwrap_or_default() {
            if let (Some(protocol), Some(number)) =
                (protocol(port.protocol.as_deref()), port.port.and_then(number))
            {
                view.ports.push((port.name.unwrap_or_default(), protocol, number));
            }
        }
        for endpoint in slice.endpoints {
            if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
                continue;
            }
            // All addresses of an endpoint are the same endpoint: the first will do.
            let Some(text) = endpoint.addresses.first() else { continue };
            match text.parse().ok().filter(|&address| reachable(address, service_cidr)) {
                Some(address) => view.addresses.push(address),
                None => view.warnings.push(format!("endpoints: {text} is no address that a pod can have")),
            }
        }
        Some(view)
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
