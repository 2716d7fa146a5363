//! Environment variables that tell a container of the Services there are, as Kubernetes gives them.
//!
//! Source: Kubernetes documentation, "Accessing the Service", environment variables; those of Docker's links are among them.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use api::{Key, Object};
use serde_json::Value;
use tokio::sync::watch;

/// The Service that pods of every namespace are told of.
const API: (&str, &str) = ("default", "kubernetes");

/// Names and values.
pub type Variables = Vec<(String, String)>;

/// The Services of the cluster, as variables.
#[derive(Debug)]
pub struct Links {
    /// (namespace, name) → variables.
    services: RwLock<BTreeMap<(String, String), Variables>>,
    known: watch::Sender<bool>,
}

impl Default for Links {
    fn default() -> Links {
        Links { services: RwLock::default(), known: watch::Sender::new(false) }
    }
}

impl Links {
    /// Knows exactly these from now on; objects of other kinds are passed over.
    pub fn sync<'a>(&self, objects: impl IntoIterator<Item = &'a Object>) {
        let services = objects.into_iter().filter(|object| object.kind() == "Service");
        let services = services.map(|service| (name(service), variables(service))).collect();
        *self.services.write().unwrap_or_else(PoisonError::into_inner) = services;
        self.known.send_replace(true);
    }

    /// Waits for the first list: until then a container would be told of nothing.
    ///
    /// # Cancellation
    /// Loses nothing.
    pub async fn known(&self) {
        // The sender is here: it does not close.
        _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// Takes in a new or changed object.
    pub fn put(&self, object: &Object) {
        if object.kind() == "Service" {
            let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
            services.insert(name(object), variables(object));
        }
    }

    /// Forgets an object.
    pub fn remove(&self, key: &Key) {
        if key.resource.kind == "Service" {
            let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
            services.remove(&(key.namespace.clone(), key.name.clone()));
        }
    }

    /// What a container of `pod` that starts now is told, ordered by Service.
    pub fn of(&self, pod: &Object) -> Variables {
        let wanted = pod.get_bool("spec.enableServiceLinks").unwrap_or(true);
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        let visible = |(namespace, name): &(String, String)| {
            (namespace.as_str(), name.as_str()) == API || (wanted && namespace == pod.namespace())
        };
        services.iter().filter(|(name, _)| visible(name)).flat_map(|(_, all)| all.iter().cloned()).collect()
    }
}

fn name(service: &Object) -> (String, String) {
    (service.namespace().to_owned(), service.name().to_owned())
}

/// None for a Service without a virtual IP.
fn variables(service: &Object) -> Variables {
    let Some(address) = service.get_str("spec.clusterIP").filter(|ip| !matches!(*ip, "" | "None")) else {
        return Vec::new();
    };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(service.name());
    let ports = service.get_array("spec.ports");
    let number = |port: &Value| port["port"].as_u64().unwrap_or_default();
    let mut all = vec![(format!("{prefix}_SERVICE_HOST"), address.to_owned())];
    if let Some(first) = ports.first() {
        all.push((format!("{prefix}_SERVICE_PORT"), number(first).to_string()));
    }
    for port in ports {
        if let Some(name) = port["name"].as_str().filter(|name| !name.is_empty()) {
            all.push((format!("{prefix}_SERVICE_PORT_{}", upper(name)), number(port).to_string()));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let (number, protocol) = (number(port), port["protocol"].as_str().unwrap_or("TCP"));
        let lower = protocol.to_lowercase();
        let (long, url) =
            (format!("{prefix}_PORT_{number}_{protocol}"), format!("{lower}://{address}:{number}"));
        if index == 0 {
            all.push((format!("{prefix}_PORT"), url.clone()));
        }
        all.push((format!("{long}_PROTO"), lower));
        all.push((format!("{long}_PORT"), number.to_string()));
        all.push((format!("{long}_ADDR"), address.to_owned()));
        all.push((long, url));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(namespace: &str, name: &str, spec: Value) -> Object {
        Object(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": namespace, "name": name}, "spec": spec}))
    }

    fn told(links: &Links, spec: Value) -> Vec<String> {
        let pod = Object(json!({"metadata": {"namespace": "n", "name": "p"}, "spec": spec}));
        links.of(&pod).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn services_of_the_namespace_are_told() {
        let links = Links::default();
        let ports = json!([{"name": "sql-a", "port": 6379}, {"name": "b", "port": 53, "protocol": "UDP"}]);
        let redis = service("n", "redis-primary", json!({"clusterIP": "10.0.0.11", "ports": ports}));
        let others = [
            service("m", "other", json!({"clusterIP": "10.0.0.12", "ports": [{"port": 1}]})),
            service("n", "headless", json!({"clusterIP": "None", "ports": [{"port": 1}]})),
            service("n", "bare", json!({"clusterIP": ""})),
        ];
        links.sync(others.iter().chain([&redis]));
        let expect = [
            "REDIS_PRIMARY_SERVICE_HOST=10.0.0.11",
            "REDIS_PRIMARY_SERVICE_PORT=6379",
            "REDIS_PRIMARY_SERVICE_PORT_SQL_A=6379",
            "REDIS_PRIMARY_SERVICE_PORT_B=53",
            "REDIS_PRIMARY_PORT=tcp://10.0.0.11:6379",
            "REDIS_PRIMARY_PORT_6379_TCP_PROTO=tcp",
            "REDIS_PRIMARY_PORT_6379_TCP_PORT=6379",
            "REDIS_PRIMARY_PORT_6379_TCP_ADDR=10.0.0.11",
            "REDIS_PRIMARY_PORT_6379_TCP=tcp://10.0.0.11:6379",
            "REDIS_PRIMARY_PORT_53_UDP_PROTO=udp",
            "REDIS_PRIMARY_PORT_53_UDP_PORT=53",
            "REDIS_PRIMARY_PORT_53_UDP_ADDR=10.0.0.11",
            "REDIS_PRIMARY_PORT_53_UDP=udp://10.0.0.11:53",
        ];
        assert_eq!(told(&links, json!({})), expect);
        assert_eq!(told(&links, json!({"enableServiceLinks": true})), expect);
        assert_eq!(told(&links, json!({"enableServiceLinks": false})), [""; 0]);
        links.remove(&redis.key());
        assert_eq!(told(&links, json!({})), [""; 0]);
        links.put(&service("default", "kubernetes", json!({"clusterIP": "10.0.0.1"})));
        let api = ["KUBERNETES_SERVICE_HOST=10.0.0.1"];
        assert_eq!(told(&links, json!({"enableServiceLinks": false})), api, "everybody is told of the API");
    }
}
