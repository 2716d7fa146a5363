//! What may not change after creation. (New finalizers in deletion are the registry's to refuse.)
//!
//! Source: Kubernetes API reference: fields described as immutable or not updatable.

use serde_json::Value;

use super::Causes;
use crate::object::Object;
use crate::quantity;

/// Checks the step from `old` to `new`, both of the stored kind `kind`.
pub(crate) fn change(kind: &str, old: &Object, new: &Object, causes: &mut Causes) {
    match kind {
        "Pod" => pod(old, new, causes),
        "Service" => service(old, new, causes),
        "ReplicaSet" => fixed(old, new, "spec.selector", causes),
        "StatefulSet" => {
            only(
                old,
                new,
                "statefulset spec",
                &[
                    "replicas",
                    "ordinals",
                    "template",
                    "updateStrategy",
                    "revisionHistoryLimit",
                    "persistentVolumeClaimRetentionPolicy",
                    "minReadySeconds",
                    "volumeClaimTemplates",
                ],
                causes,
            );
            claim_templates(old, new, causes);
        }
        "ControllerRevision" => fixed(old, new, "data", causes),
        "PersistentVolumeClaim" => claim(old, new, causes),
        "PersistentVolume" => {
            for source in ["hostPath", "local", "csi", "nfs"] {
                fixed(old, new, &format!("spec.{source}"), causes);
            }
            fixed(old, new, "spec.volumeMode", causes);
            if old.get("spec.nodeAffinity").is_some() {
                fixed(old, new, "spec.nodeAffinity", causes);
            }
        }
        "StorageClass" => {
            for field in ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"] {
                fixed(old, new, field, causes);
            }
        }
        "EndpointSlice" => fixed(old, new, "addressType", causes),
        "Event" => {
            for field in ["involvedObject", "reason"] {
                fixed(old, new, field, causes);
            }
        }
        _ => {}
    }
}

fn pod(old: &Object, new: &Object, causes: &mut Causes) {
    let mut allowed = old.clone();
    for list in ["containers", "initContainers"] {
        let images = new.get_array(&format!("spec.{list}")).iter().map(|c| c["image"].clone());
        for (index, image) in images.enumerate() {
            let path = format!("spec.{list}.{index}");
            if old.get(&path).is_some() && !image.is_null() {
                if old.get(&format!("{path}.image")) != Some(&image) {
                    causes
                        .warn(format!("not implemented yet: change of spec.{list}[{index}].image in place"));
                }
                allowed.set(&format!("{path}.image"), image);
            }
        }
    }
    copy(new, &mut allowed, "spec.activeDeadlineSeconds");
    let (was, is) = (old.get_array("spec.tolerations"), new.get_array("spec.tolerations"));
    if was.iter().all(|toleration| is.contains(toleration)) {
        copy(new, &mut allowed, "spec.tolerations");
    }
    if allowed.get("spec") != new.get("spec") {
        causes.forbidden(
            "spec",
            format!(
                "pod updates may change only containers' images, activeDeadlineSeconds and added tolerations; \
                 changed: {}",
                differences(allowed.get("spec"), new.get("spec"))
            ),
        );
    }
}

fn service(old: &Object, new: &Object, causes: &mut Causes) {
    let (was, is) =
        (old.get_str("spec.clusterIP").unwrap_or(""), new.get_str("spec.clusterIP").unwrap_or(""));
    if !was.is_empty() && was != is && new.get_str("spec.type") != Some("ExternalName") {
        causes.invalid("spec.clusterIP", is, "field is immutable");
    }
}

fn claim(old: &Object, new: &Object, causes: &mut Causes) {
    let mut allowed = old.clone();
    for field in ["volumeName", "storageClassName"] {
        let path = format!("spec.{field}");
        if old.get_str(&path).unwrap_or("").is_empty() {
            copy(new, &mut allowed, &path);
        }
    }
    let size = |object: &Object| object.get_str("spec.resources.requests.storage").map(String::from);
    let (was, is) = (size(old), size(new));
    if let (Some(was), Some(is)) = (&was, &is)
        && quantity::compare(is, was).is_some_and(|order| order.is_lt())
    {
        causes.forbidden("spec.resources.requests.storage", "field can not be less than previous value");
    }
    if let Some(is) = is {
        if was.as_ref() != Some(&is) && old.get_str("spec.volumeName").unwrap_or("").is_empty() {
            causes.forbidden("spec.resources.requests.storage", "the claim is not bound yet");
        }
        allowed.set("spec.resources.requests.storage", is);
    }
    if allowed.get("spec") != new.get("spec") {
        let changed = differences(allowed.get("spec"), new.get("spec"));
        let why = format!("spec is immutable after creation except resources.requests; changed: {changed}");
        causes.forbidden("spec", why);
    }
}

/// Claim templates may grow, be added, and be removed once no container mounts them; the claims stay. What a claim
/// that is there cannot follow is refused.
fn claim_templates(old: &Object, new: &Object, causes: &mut Causes) {
    const SIZE: &str = "resources.requests.storage";
    let name = |template: &Value| template["metadata"]["name"].as_str().map(String::from);
    let before = old.get_array("spec.volumeClaimTemplates");
    for (index, template) in new.get_array("spec.volumeClaimTemplates").iter().enumerate() {
        let Some(was) = before.iter().find(|was| name(was) == name(template)) else { continue };
        let path = format!("spec.volumeClaimTemplates[{index}].spec");
        let (was, is) = (Object(was["spec"].clone()), Object(template["spec"].clone()));
        let size = |spec: &Object| spec.get(SIZE).map(quantity_text);
        if let (Some(was), Some(is)) = (size(&was), size(&is))
            && quantity::compare(&is, &was).is_some_and(|order| order.is_lt())
        {
            causes.forbidden(format!("{path}.{SIZE}"), "field can not be less than previous value");
        }
        let mut allowed = was.clone();
        copy(&is, &mut allowed, SIZE);
        for field in members(&allowed.0, &is.0) {
            if allowed.get(&field) != is.get(&field) {
                let why = "field is immutable; only resources.requests.storage of a claim template may grow";
                causes.invalid(format!("{path}.{field}"), is.get(&field).cloned().unwrap_or_default(), why);
            }
        }
    }
}

/// A quantity as text: JSON has numbers, too.
fn quantity_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// Refuses changes of `spec` outside `free`.
fn only(old: &Object, new: &Object, what: &str, free: &[&str], causes: &mut Causes) {
    let mut allowed = old.clone();
    for field in free {
        copy(new, &mut allowed, &format!("spec.{field}"));
    }
    if allowed.get("spec") != new.get("spec") {
        let changed = differences(allowed.get("spec"), new.get("spec"));
        let why = format!(
            "updates to {what} for fields other than {} are forbidden; changed: {changed}",
            free.iter().map(|field| format!("'{field}'")).collect::<Vec<_>>().join(", ")
        );
        causes.forbidden("spec", why);
    }
}

fn fixed(old: &Object, new: &Object, path: &str, causes: &mut Causes) {
    let value = new.get(path);
    if value != old.get(path) {
        causes.invalid(path, value.cloned().unwrap_or_default(), "field is immutable");
    }
}

fn copy(from: &Object, to: &mut Object, path: &str) {
    match from.get(path) {
        Some(value) => to.set(path, value.clone()),
        None => to.remove(path),
    }
}

/// Names of the members in which two trees differ.
fn differences(left: Option<&Value>, right: Option<&Value>) -> String {
    let (left, right) = (left.unwrap_or(&Value::Null), right.unwrap_or(&Value::Null));
    let mut names = members(left, right);
    names.retain(|name| left.get(name) != right.get(name));
    names.join(", ")
}

/// Names of the members of two trees.
fn members(left: &Value, right: &Value) -> Vec<String> {
    let trees = [left, right].into_iter().filter_map(Value::as_object);
    let mut names: Vec<String> = trees.flat_map(|tree| tree.keys().cloned()).collect();
    names.sort_unstable();
    names.dedup();
    names
}
