//! `plan`: what would become of manifests, and of the pods they lead to, without doing it.
//!
//! Objects are tried as dry runs, so that admission answers as it would. Pods of sets are made from their
//! templates by the rules of their controllers: names, labels, claims. The steps are the node's to tell.

use api::{Error, Key, Kind, Object, RESERVED_ORDINALS, Resource, convert, parse_ordinals};
use registry::{PatchKind, Registry, WriteOptions};
use serde_json::{Value, json};
use store::Store;

use crate::node_api::NodeApi;
use crate::yard::{ObjectPlan, Plan, PodPlan};

/// Most pods planned for one set; the steps repeat themselves.
const PODS_MAX: i64 = 100;

/// Plans a list of objects, or one.
///
/// # Errors
/// `BadRequest` if the body is neither. A refused object is part of the plan, not an error.
pub async fn plan<S: Store>(
    registry: &Registry<S>,
    node: &dyn NodeApi,
    manifests: Value,
) -> Result<Plan, Error> {
    let manifests = match manifests {
        Value::Array(list) => list,
        one @ Value::Object(_) => vec![one],
        _ => return Err(Error::bad_request("plan: the body must be a list of objects")),
    };
    let mut plan = Plan::default();
    let mut new_namespaces = Vec::new();
    for manifest in manifests {
        let object = Object(manifest);
        let Some(resource) = object.resource() else {
            plan.objects.push(refused(
                &format!("{}/{}", object.kind(), object.name()),
                format!("no matches for kind {:?} in version {:?}", object.kind(), object.api_version()),
            ));
            continue;
        };
        let title = format!("{}/{}", resource.singular, object.name());
        match dry_run(registry, resource, &object, &new_namespaces).await {
            Ok((action, admitted, mut notes)) => {
                if resource.kind == "Namespace" && action == "create" {
                    new_namespaces.push(object.name().to_string());
                }
                for pod in pods(registry, &title, action, &admitted, &mut notes) {
                    plan.pods.push(plan_pod(registry, node, &title, pod).await);
                }
                plan.objects.push(ObjectPlan { object: title, action: action.to_string(), notes });
            }
            Err(error) => plan.objects.push(refused(&title, error.message)),
        }
    }
    Ok(plan)
}

fn refused(object: &str, why: String) -> ObjectPlan {
    ObjectPlan { object: object.to_string(), action: "refuse".to_string(), notes: vec![why] }
}

/// What would become of one object: the action, the object admitted, and warnings.
async fn dry_run<S: Store>(
    registry: &Registry<S>,
    resource: &'static Resource,
    object: &Object,
    new_namespaces: &[String],
) -> Result<(&'static str, Object, Vec<String>), Error> {
    let namespace = namespace_of(object);
    let options = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let key = Key::new(resource, namespace, object.name());
    let present = registry.get(&key).ok().filter(|_| !object.name().is_empty());
    let Some(present) = present else {
        if resource.namespaced && new_namespaces.iter().any(|new| new == namespace) {
            // Its namespace is made first; admission is the same in any.
            let mut moved = object.clone();
            moved.set("metadata.namespace", "default");
            let written = registry.create(resource, "default", moved.0, &options).await?;
            let mut admitted = written.object;
            admitted.set("metadata.namespace", namespace);
            return Ok(("create", admitted, written.warnings));
        }
        let namespace = if resource.namespaced { namespace } else { "" };
        let written = registry.create(resource, namespace, object.0.clone(), &options).await?;
        return Ok(("create", written.object, written.warnings));
    };
    let mut patch = object.0.clone();
    convert::to_stored(resource, &mut patch);
    let written = registry.patch(&key, PatchKind::Merge, &patch, api::Part::Main, &options).await?;
    let same =
        written.object.get("spec") == present.get("spec") && written.object.labels() == present.labels();
    let action = if same { "unchanged" } else { "configure" };
    Ok((action, written.object, written.warnings))
}

fn namespace_of(object: &Object) -> &str {
    Some(object.namespace()).filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}

/// The pods that an object leads to and that are not there yet.
fn pods<S: Store>(
    registry: &Registry<S>,
    title: &str,
    action: &str,
    object: &Object,
    notes: &mut Vec<String>,
) -> Vec<Object> {
    let replicas = object.get_i64("spec.replicas").unwrap_or(1);
    let namespace = namespace_of(object);
    match object.kind() {
        "Pod" if action == "create" => vec![object.clone()],
        "ReplicaSet" => {
            let owned = owned_pods(registry, object);
            let missing = replicas - owned;
            notes.push(format!("{replicas} pods wanted, {owned} there"));
            if missing < 0 {
                notes.push(format!("{} pods would be deleted, those not ready first", -missing));
            }
            (1..=missing.min(PODS_MAX))
                .map(|n| from_template(object, &format!("{}-<{n}>", object.name())))
                .collect()
        }
        "StatefulSet" | "PetSet" => {
            let first = object.get_i64("spec.ordinals.start").unwrap_or(0);
            let parallel = object.get_str("spec.podManagementPolicy") == Some("Parallel");
            notes.push(if parallel {
                format!("{replicas} pets, all at once")
            } else {
                format!("{replicas} pets, one after the other, each when the one before is ready")
            });
            for claim in object.get_array("spec.volumeClaimTemplates") {
                let name = claim["metadata"]["name"].as_str().unwrap_or("");
                notes.push(format!("each pet keeps its own claim, {name}-{}-<ordinal>", object.name()));
            }
            let reserved = object.annotation(RESERVED_ORDINALS).and_then(parse_ordinals).unwrap_or_default();
            let is_free = |ordinal: &i64| u64::try_from(*ordinal).is_ok_and(|it| !reserved.contains(&it));
            let most = usize::try_from(replicas.min(PODS_MAX)).unwrap_or(0);
            (first..)
                .filter(is_free)
                .take(most)
                .map(|ordinal| format!("{}-{ordinal}", object.name()))
                .filter(|name| registry.get(&Key::core("pods", namespace, name.as_str())).is_err())
                .map(|name| from_template(object, &name))
                .collect()
        }
        _ => {
            if title.starts_with("service/") && action == "create" {
                notes.push(match object.get_str("spec.clusterIP") {
                    Some(address) if address != "None" => {
                        format!("virtual IP {address} (chosen again when it is made)")
                    }
                    _ => "no virtual IP: clients find its pods themselves".to_owned(),
                });
            }
            Vec::new()
        }
    }
}

fn owned_pods<S: Store>(registry: &Registry<S>, owner: &Object) -> i64 {
    let pods = Key::core("pods", "", "").resource;
    let list = registry.list(pods, Some(namespace_of(owner)), &registry::ListOptions::default());
    let owned = list.iter().flat_map(registry::List::objects).filter(|pod| {
        !pod.is_deleting() && pod.controller_owner().is_some_and(|reference| reference.uid == owner.uid())
    });
    i64::try_from(owned.count()).unwrap_or(i64::MAX)
}

/// A pod as a set's controller would make it.
fn from_template(owner: &Object, name: &str) -> Object {
    let template = owner.get("spec.template").cloned().unwrap_or_default();
    let mut pod = Object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"],
    }));
    pod.set("metadata.name", name);
    pod.set("metadata.namespace", namespace_of(owner));
    let claims = owner.get_array("spec.volumeClaimTemplates").iter().map(|claim| {
        let volume = claim["metadata"]["name"].as_str().unwrap_or("");
        json!({"name": volume, "persistentVolumeClaim": {"claimName": format!("{volume}-{name}")}})
    });
    let mut volumes: Vec<Value> = pod.get_array("spec.volumes").to_vec();
    volumes.extend(claims);
    if !volumes.is_empty() {
        pod.set("spec.volumes", volumes);
    }
    pod
}

/// The steps for one pod, after admission has filled in what was left out.
async fn plan_pod<S: Store>(registry: &Registry<S>, node: &dyn NodeApi, title: &str, pod: Object) -> PodPlan {
    let name = format!("{}/{}", namespace_of(&pod), pod.name());
    let owner = if title.starts_with("pod/") { String::new() } else { title.to_string() };
    let admitted = if pod.uid().is_empty() { admit(registry, pod).await } else { Ok(pod) };
    let planned = match admitted {
        Ok(pod) => node.plan(pod).await,
        Err(error) => Err(error),
    };
    match planned {
        Ok(plan) => PodPlan { pod: name, owner, ..plan },
        Err(error) => PodPlan { pod: name, owner, steps: Vec::new(), error: Some(error.message) },
    }
}

async fn admit<S: Store>(registry: &Registry<S>, mut pod: Object) -> Result<Object, Error> {
    let (name, namespace) = (pod.name().to_string(), namespace_of(&pod).to_string());
    // `web-<1>` stands for a name that is drawn later; admission wants a real one. Any namespace admits the same.
    pod.set("metadata.name", name.replace(['<', '>'], ""));
    pod.set("metadata.namespace", "default");
    let options = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let resource = Key::core("pods", "", "").resource;
    let written = registry.create(resource, "default", pod.0, &options).await;
    let mut admitted = match written {
        Ok(written) => written.object,
        Err(error) if error.kind() == Kind::AlreadyExists => {
            return Err(Error::new(
                Kind::AlreadyExists,
                format!("the name {name} is taken by a pod of another owner"),
            ));
        }
        Err(error) => return Err(error),
    };
    admitted.set("metadata.name", name);
    admitted.set("metadata.namespace", namespace);
    Ok(admitted)
}
