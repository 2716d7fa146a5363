//! The Service of the cluster's DNS: nothing that has an address is hidden.

use api::{Error, Kind, Object};
use registry::{Registry, WriteOptions};
use std::net::Ipv4Addr;
use store::Store;

/// Makes the Service that holds the DNS' address. Who deletes it gets it back at the next start. Idempotent.
///
/// # Errors
/// The store's. In a yard from before there was DNS the address may be another Service's: that is said, and no failure.
pub(super) async fn ensure<S: Store>(registry: &Registry<S>, address: Option<Ipv4Addr>) -> Result<(), Error> {
    let Some(address) = address else { return Ok(()) };
    let service = service(address);
    let key = service.key();
    match registry.create(key.resource, &key.namespace, service.0, &WriteOptions::default()).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == Kind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == Kind::Invalid => {
            tracing::warn!(%error, "delete the Service that has {address}, the DNS' own, and start again");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Its address is a local one of every node, so that it is reached without NAT: the label keeps the proxy off it.
fn service(address: Ipv4Addr) -> Object {
    Object(serde_json::json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {
                "k8s-app": "kube-dns",
                node::proxy::PROXY_NAME: "podyard-dns",
            },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address.to_string(),
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    }))
}
