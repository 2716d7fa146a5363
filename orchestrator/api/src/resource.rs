//! The table of served kinds: one row each.
//!
//! Names, verbs, short names and subresources as Kubernetes' API reference lists them.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

/// One served kind. Equality and order are by group and plural.
#[derive(Debug)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// Name in paths, as in `pods`.
    pub plural: &'static str,
    /// Name in messages, as in `pod`.
    pub singular: &'static str,
    /// Kind, as in `Pod`.
    pub kind: &'static str,
    /// Abbreviations that clients accept, as in `po`.
    pub short_names: &'static [&'static str],
    /// Groupings that clients accept, as in `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Subresources, as in `status`.
    pub subresources: &'static [Subresource],
    /// Plural of the kind that is stored when this row is only another name of it.
    pub stored_as: Option<&'static str>,
    /// Root message in the schema table, as in `Pod`.
    pub schema: &'static str,
}

/// A subresource of a kind.
#[derive(Debug)]
pub struct Subresource {
    /// Last path segment.
    pub name: &'static str,
    /// Group of the kind it speaks; empty for core.
    pub group: &'static str,
    /// Version of the kind it speaks.
    pub version: &'static str,
    /// Kind it speaks.
    pub kind: &'static str,
    /// Verbs it answers.
    pub verbs: &'static [&'static str],
}

/// Verbs that every stored kind answers.
pub const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

const GET_WRITE: &[&str] = &["get", "patch", "update"];

const fn status(group: &'static str, version: &'static str, kind: &'static str) -> Subresource {
    Subresource { name: "status", group, version, kind, verbs: GET_WRITE }
}

const SCALE: Subresource =
    Subresource { name: "scale", group: "autoscaling", version: "v1", kind: "Scale", verbs: GET_WRITE };

const fn stream(name: &'static str, kind: &'static str) -> Subresource {
    Subresource { name, group: "", version: "v1", kind, verbs: &["create", "get"] }
}

const CORE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "",
    singular: "",
    kind: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    stored_as: None,
    schema: "",
};

/// Every served kind.
pub static RESOURCES: &[Resource] = &[
    Resource {
        plural: "pods",
        singular: "pod",
        kind: "Pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            status("", "v1", "Pod"),
            Subresource { name: "binding", group: "", version: "v1", kind: "Binding", verbs: &["create"] },
            Subresource {
                name: "eviction",
                group: "policy",
                version: "v1",
                kind: "Eviction",
                verbs: &["create"],
            },
            Subresource { name: "log", group: "", version: "v1", kind: "Pod", verbs: &["get"] },
            stream("exec", "PodExecOptions"),
            stream("attach", "PodAttachOptions"),
            stream("portforward", "PodPortForwardOptions"),
        ],
        schema: "Pod",
        ..CORE
    },
    Resource {
        plural: "services",
        singular: "service",
        kind: "Service",
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[status("", "v1", "Service")],
        schema: "Service",
        ..CORE
    },
    Resource {
        group: "discovery.k8s.io",
        plural: "endpointslices",
        singular: "endpointslice",
        kind: "EndpointSlice",
        schema: "EndpointSlice",
        ..CORE
    },
    Resource {
        group: "apps",
        plural: "replicasets",
        singular: "replicaset",
        kind: "ReplicaSet",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[status("apps", "v1", "ReplicaSet"), SCALE],
        schema: "ReplicaSet",
        ..CORE
    },
    Resource {
        group: "apps",
        plural: "statefulsets",
        singular: "statefulset",
        kind: "StatefulSet",
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[status("apps", "v1", "StatefulSet"), SCALE],
        schema: "StatefulSet",
        ..CORE
    },
    Resource {
        group: "apps",
        version: "v1alpha1",
        plural: "petsets",
        singular: "petset",
        kind: "PetSet",
        short_names: &["pet"],
        subresources: &[status("apps", "v1alpha1", "PetSet"), SCALE],
        stored_as: Some("statefulsets"),
        schema: "StatefulSet",
        ..CORE
    },
    Resource {
        group: "apps",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        kind: "ControllerRevision",
        schema: "ControllerRevision",
        ..CORE
    },
    Resource {
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        kind: "PersistentVolumeClaim",
        short_names: &["pvc"],
        subresources: &[status("", "v1", "PersistentVolumeClaim")],
        schema: "PersistentVolumeClaim",
        ..CORE
    },
    Resource {
        plural: "persistentvolumes",
        singular: "persistentvolume",
        kind: "PersistentVolume",
        short_names: &["pv"],
        namespaced: false,
        subresources: &[status("", "v1", "PersistentVolume")],
        schema: "PersistentVolume",
        ..CORE
    },
    Resource {
        group: "storage.k8s.io",
        plural: "storageclasses",
        singular: "storageclass",
        kind: "StorageClass",
        short_names: &["sc"],
        namespaced: false,
        schema: "StorageClass",
        ..CORE
    },
    Resource {
        plural: "namespaces",
        singular: "namespace",
        kind: "Namespace",
        short_names: &["ns"],
        namespaced: false,
        subresources: &[
            status("", "v1", "Namespace"),
            Subresource { name: "finalize", group: "", version: "v1", kind: "Namespace", verbs: &["update"] },
        ],
        schema: "Namespace",
        ..CORE
    },
    Resource {
        plural: "nodes",
        singular: "node",
        kind: "Node",
        short_names: &["no"],
        namespaced: false,
        subresources: &[status("", "v1", "Node")],
        schema: "Node",
        ..CORE
    },
    Resource {
        plural: "events",
        singular: "event",
        kind: "Event",
        short_names: &["ev"],
        schema: "Event",
        ..CORE
    },
];

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The row under which objects are stored: itself, unless this row is an alias.
    pub fn stored(&'static self) -> &'static Resource {
        match self.stored_as {
            None => self,
            Some(plural) => resource_by_plural(self.group, plural).unwrap_or(self),
        }
    }

    /// `pods`, or `statefulsets.apps` outside the core group; Kubernetes' words in error messages.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.into() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Pod`, or `StatefulSet.apps` outside the core group.
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.into() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    /// Whether status is written apart from the rest.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.plural) == (other.group, other.plural)
    }
}

impl Eq for Resource {}

impl PartialOrd for Resource {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Resource {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.group, self.plural).cmp(&(other.group, other.plural))
    }
}

impl Hash for Resource {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.group, self.plural).hash(state);
    }
}

/// The kind named by an object's `apiVersion` and `kind`.
pub fn resource_for_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    RESOURCES.iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

/// The kind named by a path; any version of the group.
pub fn resource_by_plural(group: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.plural == plural && r.group == group)
}

/// The kind a person means: plural, singular, short name or kind, in any case, with or without group suffix.
pub fn resource_by_any_name(name: &str) -> Option<&'static Resource> {
    let name = name.to_ascii_lowercase();
    let (name, group) = match name.split_once('.') {
        Some((name, group)) => (name, Some(group)),
        None => (name.as_str(), None),
    };
    RESOURCES.iter().find(|r| {
        let named = r.plural == name
            || r.singular == name
            || r.short_names.contains(&name)
            || r.kind.eq_ignore_ascii_case(name);
        // `statefulsets.apps` and `statefulsets.v1.apps` are both in use.
        named
            && group.is_none_or(|group| {
                group == r.group
                    || group
                        .strip_prefix(r.version)
                        .is_some_and(|rest| rest.strip_prefix('.').unwrap_or("") == r.group)
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |input: &str, expect: Option<&str>| {
            assert_eq!(resource_by_any_name(input).map(|r| r.kind), expect, "{input}");
        };
        check("po", Some("Pod"));
        check("Pods", Some("Pod"));
        check("petset", Some("PetSet"));
        check("pet", Some("PetSet"));
        check("sts", Some("StatefulSet"));
        check("statefulsets.apps", Some("StatefulSet"));
        check("statefulsets.v1.apps", Some("StatefulSet"));
        check("statefulsets.batch", None);
        check("sc", Some("StorageClass"));
        check("nothing", None);
    }

    #[test]
    fn petset_is_another_name() {
        let pet = resource_for_kind("apps/v1alpha1", "PetSet").unwrap();
        assert_eq!(pet.stored(), resource_for_kind("apps/v1", "StatefulSet").unwrap());
        assert!(resource_for_kind("apps/v1", "PetSet").is_none());
    }
}
