//! Discovery documents: which groups, versions, kinds, verbs and subresources are served.
//!
//! Source: Kubernetes API concepts, "API Discovery"; meta/v1 APIGroupList and APIResourceList,
//! apidiscovery.k8s.io/v2 APIGroupDiscoveryList.

use serde_json::{Value, json};

use crate::resource::{RESOURCES, Resource, VERBS};

/// `GET /api`: versions of the core group.
pub fn api_versions() -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "podyard"}],
    })
}

/// `GET /apis`: the named groups.
pub fn api_group_list() -> Value {
    let groups: Vec<Value> = groups().into_iter().filter(|g| !g.is_empty()).map(group_json).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/{group}`: one group.
pub fn api_group(group: &str) -> Option<Value> {
    let group = groups().into_iter().find(|g| !g.is_empty() && *g == group)?;
    let mut document = group_json(group);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

/// `GET /api/v1` and `GET /apis/{group}/{version}`: the kinds of one version.
pub fn api_resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for resource in RESOURCES.iter().filter(|r| r.group == group && r.version == version) {
        resources.push(resource_json(resource));
        resources.extend(resource.subresources.iter().map(|sub| {
            let mut item = json!({
                "name": format!("{}/{}", resource.plural, sub.name),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (sub.group, sub.version) != (group, version) {
                item["group"] = sub.group.into();
                item["version"] = sub.version.into();
            }
            item
        }));
    }
    let group_version = join(group, version);
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version,
            "resources": resources,
        })
    })
}

/// `GET /api` and `GET /apis` when `APIGroupDiscoveryList` is accepted: everything at once.
///
/// `core` asks for the core group alone (`/api`); otherwise the named ones are listed. `version` is `v2` or `v2beta1`.
pub fn aggregated(core: bool, version: &str) -> Value {
    let items: Vec<Value> = groups()
        .into_iter()
        .filter(|group| group.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = versions(group)
                .into_iter()
                .map(|version| {
                    let resources: Vec<Value> = RESOURCES
                        .iter()
                        .filter(|r| r.group == group && r.version == version)
                        .map(aggregated_resource)
                        .collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if core { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut item = json!({
        "resource": resource.plural,
        "responseKind": kind(resource.group, resource.version, resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": VERBS,
    });
    if !resource.short_names.is_empty() {
        item["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        item["categories"] = json!(resource.categories);
    }
    if !resource.subresources.is_empty() {
        let subresources = resource.subresources.iter().map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": kind(sub.group, sub.version, sub.kind),
                "verbs": sub.verbs,
            })
        });
        item["subresources"] = Value::Array(subresources.collect());
    }
    item
}

fn resource_json(resource: &Resource) -> Value {
    let mut item = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": VERBS,
    });
    if !resource.short_names.is_empty() {
        item["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        item["categories"] = json!(resource.categories);
    }
    item
}

fn group_json(group: &str) -> Value {
    let version = |version: &str| json!({"groupVersion": join(group, version), "version": version});
    let versions = versions(group);
    json!({
        "name": group,
        "versions": versions.iter().map(|v| version(v)).collect::<Vec<_>>(),
        "preferredVersion": version(versions[0]),
    })
}

/// Groups in the order of their first row.
fn groups() -> Vec<&'static str> {
    let mut groups = Vec::new();
    for resource in RESOURCES {
        if !groups.contains(&resource.group) {
            groups.push(resource.group);
        }
    }
    groups
}

/// Versions of a group, preferred first.
fn versions(group: &str) -> Vec<&'static str> {
    let mut versions = Vec::new();
    for resource in RESOURCES.iter().filter(|r| r.group == group) {
        if !versions.contains(&resource.version) {
            versions.push(resource.version);
        }
    }
    versions
}

fn join(group: &str, version: &str) -> String {
    if group.is_empty() { version.into() } else { format!("{group}/{version}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let core = api_resource_list("", "v1").unwrap();
        let names: Vec<&str> =
            core["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"pods") && names.contains(&"pods/status") && names.contains(&"events"));
        let apps = api_resource_list("apps", "v1").unwrap();
        let scale = apps["resources"].as_array().unwrap().iter().find(|r| r["name"] == "statefulsets/scale");
        assert_eq!(scale.unwrap()["group"], "autoscaling");
        assert!(api_resource_list("apps", "v2").is_none());
        assert_eq!(api_resource_list("apps", "v1alpha1").unwrap()["resources"][0]["kind"], "PetSet");
    }

    #[test]
    fn groups_and_versions() {
        assert_eq!(api_group("apps").unwrap()["preferredVersion"]["groupVersion"], "apps/v1");
        assert_eq!(api_group("apps").unwrap()["versions"].as_array().unwrap().len(), 2);
        assert!(api_group("").is_none() && api_group("batch").is_none());
        assert_eq!(aggregated(true, "v2")["items"].as_array().unwrap().len(), 1);
        assert_eq!(aggregated(false, "v2")["items"][0]["metadata"]["name"], "discovery.k8s.io");
    }
}
