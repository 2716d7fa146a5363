//! The kinds the controllers know by name.

use std::sync::LazyLock;

use api::{Resource, resource_by_plural};

/// A row of the table of kinds.
pub type Kind = LazyLock<&'static Resource>;

fn row(group: &str, plural: &str) -> &'static Resource {
    let Some(resource) = resource_by_plural(group, plural) else { panic!("kind {plural} is not served") };
    resource
}

pub static PODS: Kind = LazyLock::new(|| row("", "pods"));
pub static SERVICES: Kind = LazyLock::new(|| row("", "services"));
pub static SLICES: Kind = LazyLock::new(|| row("discovery.k8s.io", "endpointslices"));
pub static REPLICASETS: Kind = LazyLock::new(|| row("apps", "replicasets"));
pub static STATEFULSETS: Kind = LazyLock::new(|| row("apps", "statefulsets"));
pub static REVISIONS: Kind = LazyLock::new(|| row("apps", "controllerrevisions"));
pub static CLAIMS: Kind = LazyLock::new(|| row("", "persistentvolumeclaims"));
pub static VOLUMES: Kind = LazyLock::new(|| row("", "persistentvolumes"));
pub static CLASSES: Kind = LazyLock::new(|| row("storage.k8s.io", "storageclasses"));
pub static NAMESPACES: Kind = LazyLock::new(|| row("", "namespaces"));
pub static NODES: Kind = LazyLock::new(|| row("", "nodes"));
pub static EVENTS: Kind = LazyLock::new(|| row("", "events"));
