//! Paths: which resource, object and subresource a request names.
//!
//! ```text
//! /api/v1/[namespaces/{ns}/]{plural}[/{name}[/{subresource}]]
//! /apis/{group}/{version}/[namespaces/{ns}/]{plural}[/{name}[/{subresource}]]
//! /podyard/v1/{info|namespaces|services|trace/{ns}/{pod}|step/{ns}/{pod}|plan|pod-plan|nodes/{node}/heartbeat}
//! ```
//! Source: Kubernetes documentation, "Resource URIs". A trailing slash is allowed: kr8s sends one.

use api::{Key, Resource};

use crate::query::decode;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// `/version`
    Version,
    /// `/healthz`, `/livez`, `/readyz`
    Health,
    /// `/api`: versions of the core group.
    CoreVersions,
    /// `/apis`: groups.
    Groups,
    /// `/apis/{group}`
    Group(String),
    /// `/api/v1` or `/apis/{group}/{version}`: the resources in it.
    Resources {
        /// Empty for the core group.
        group: String,
        /// As `v1`.
        version: String,
    },
    /// All objects of a kind, in one namespace or in all.
    Collection {
        /// The kind as the path names it; perhaps an alias.
        resource: &'static Resource,
        /// `None` for all, and for kinds outside namespaces.
        namespace: Option<String>,
    },
    /// One object, or a part of it.
    Object {
        /// The kind as the path names it; perhaps an alias.
        resource: &'static Resource,
        /// The object, as it is stored.
        key: Key,
        /// As `status`.
        subresource: Option<String>,
    },
    /// A path of our own.
    Yard(Yard),
}

/// A path of our own, beneath `/podyard/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Yard {
    /// `info`
    Info,
    /// `namespaces`
    Namespaces,
    /// What stands behind virtual ports.
    Services,
    /// `trace/{ns}/{pod}`
    Trace(String, String),
    /// `step/{ns}/{pod}`
    Step(String, String),
    /// `plan`
    Plan,
    /// `pod-plan`: of one admitted pod, asked of its node
    PodPlan,
    /// `volumes`, and what is done to them: `volumes/{undelete|empty}`
    Volumes(Option<String>),
    /// `nodes/{node}/heartbeat`
    Heartbeat(String),
}

impl Route {
    /// Reads a path; `None` if nothing lives there.
    pub fn parse(path: &str) -> Option<Route> {
        let pieces: Vec<String> =
            path.trim_matches('/').split('/').map(|piece| decode(piece, false)).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        match pieces.as_slice() {
            ["version"] => Some(Route::Version),
            ["healthz" | "livez" | "readyz", ..] => Some(Route::Health),
            ["api"] => Some(Route::CoreVersions),
            ["apis"] => Some(Route::Groups),
            ["api", version] => resources("", version),
            ["apis", group] => api::RESOURCES
                .iter()
                .any(|resource| !group.is_empty() && resource.group == *group)
                .then(|| Route::Group((*group).to_string())),
            ["apis", group, version] => resources(group, version),
            ["api", version, rest @ ..] => object("", version, rest),
            ["apis", group, version, rest @ ..] if !group.is_empty() => object(group, version, rest),
            ["podyard", "v1", rest @ ..] => yard(rest).map(Route::Yard),
            _ => None,
        }
    }
}

fn resources(group: &str, version: &str) -> Option<Route> {
    let known = api::RESOURCES.iter().any(|resource| resource.group == group && resource.version == version);
    known.then(|| Route::Resources { group: group.to_string(), version: version.to_string() })
}

fn object(group: &str, version: &str, rest: &[&str]) -> Option<Route> {
    let find =
        |plural: &str| api::resource_by_plural(group, plural).filter(|resource| resource.version == version);
    match rest {
        // `namespaces/{name}/status` is a part of the namespace, not a kind inside it.
        ["namespaces", name, part @ ("status" | "finalize")] => {
            named(find("namespaces")?, "", name, Some(part))
        }
        ["namespaces", namespace, plural] => {
            let resource = find(plural).filter(|resource| resource.namespaced)?;
            Some(Route::Collection { resource, namespace: Some((*namespace).to_string()) })
        }
        ["namespaces", namespace, plural, name] => {
            named(find(plural).filter(|resource| resource.namespaced)?, namespace, name, None)
        }
        ["namespaces", namespace, plural, name, part] => {
            named(find(plural).filter(|resource| resource.namespaced)?, namespace, name, Some(part))
        }
        [plural] => Some(Route::Collection { resource: find(plural)?, namespace: None }),
        [plural, name] => named(find(plural).filter(|resource| !resource.namespaced)?, "", name, None),
        [plural, name, part] => {
            named(find(plural).filter(|resource| !resource.namespaced)?, "", name, Some(part))
        }
        _ => None,
    }
}

fn named(resource: &'static Resource, namespace: &str, name: &str, part: Option<&str>) -> Option<Route> {
    if name.is_empty() {
        return None;
    }
    let key = Key::new(resource, namespace, name);
    Some(Route::Object { resource, key, subresource: part.map(str::to_string) })
}

fn yard(rest: &[&str]) -> Option<Yard> {
    match rest {
        ["info"] => Some(Yard::Info),
        ["namespaces"] => Some(Yard::Namespaces),
        ["services"] => Some(Yard::Services),
        ["plan"] => Some(Yard::Plan),
        ["volumes"] => Some(Yard::Volumes(None)),
        ["volumes", part] => Some(Yard::Volumes(Some((*part).to_string()))),
        ["pod-plan"] => Some(Yard::PodPlan),
        ["nodes", node, "heartbeat"] => Some(Yard::Heartbeat((*node).to_string())),
        ["trace", namespace, pod] => Some(Yard::Trace((*namespace).to_string(), (*pod).to_string())),
        ["step", namespace, pod] => Some(Yard::Step((*namespace).to_string(), (*pod).to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(path: &str) -> String {
        match Route::parse(path) {
            None => "-".to_string(),
            Some(Route::Collection { resource, namespace }) => {
                format!("{} in {}", resource.plural, namespace.as_deref().unwrap_or("*"))
            }
            Some(Route::Object { resource, key, subresource }) => {
                format!(
                    "{}/{}/{} {}",
                    resource.plural,
                    key.namespace,
                    key.name,
                    subresource.unwrap_or_default()
                )
            }
            Some(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn paths_name_what_kubernetes_names() {
        let check = |path: &str, expect: &str| assert_eq!(show(path).trim_end(), expect, "{path}");
        check("/version/", "Version");
        check("/api/", "CoreVersions");
        check("/apis", "Groups");
        check("/readyz/poststarthook", "Health");
        check("/api/v1", "Resources { group: \"\", version: \"v1\" }");
        check("/api/v2", "-");
        check("/apis/apps", "Group(\"apps\")");
        check("/apis/nope", "-");
        check("/api/v1/pods", "pods in *");
        check("/api/v1/namespaces", "namespaces in *");
        check("/api/v1/namespaces/web", "namespaces//web");
        check("/api/v1/namespaces/web/status", "namespaces//web status");
        check("/api/v1/namespaces/web/pods", "pods in web");
        check("/api/v1/namespaces/web/pods/a/log", "pods/web/a log");
        check("/api/v1/namespaces/web/nodes", "-");
        check("/api/v1/nodes/node-0", "nodes//node-0");
        check("/api/v1/pods/a", "-");
        check("/apis/apps/v1/namespaces/d/statefulsets/a/scale", "statefulsets/d/a scale");
        check("/apis/apps/v1/namespaces/d/pods/a", "-");
        check("/podyard/v1/trace/default/web", "Yard(Trace(\"default\", \"web\"))");
        check("/podyard/v1/nodes/n1/heartbeat", "Yard(Heartbeat(\"n1\"))");
        check("/podyard/v1/shell", "-");
        check("/", "-");
    }
}
