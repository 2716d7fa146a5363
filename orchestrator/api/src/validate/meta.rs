//! Metadata: what every kind has.

use serde_json::Value;

use super::{Causes, Tree, labels, names, text, tree};
use crate::error::{Error, Kind};
use crate::object::Object;

/// Bytes of all annotations together.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

pub(super) fn metadata(kind: &str, object: &Object, causes: &mut Causes) {
    let Some(meta) = object.0["metadata"].as_object() else { return causes.required("metadata") };
    causes.name("metadata.name", object.name(), name_rule(kind));
    if kind == "Pod" && object.name().len() > 63 {
        causes.warn("metadata.name: longer than 63 characters: the hostname will be cut");
    }
    if let Some(base) = meta.get("generateName").and_then(Value::as_str).filter(|base| !base.is_empty()) {
        causes.name("metadata.generateName", base.trim_end_matches(['-', '.']), name_rule(kind));
    }
    if !object.namespace().is_empty() {
        causes.name("metadata.namespace", object.namespace(), names::dns_label);
    }
    labels_and_annotations(meta, "metadata", causes);
    for (index, finalizer) in object.finalizers().into_iter().enumerate() {
        causes.name(format!("metadata.finalizers[{index}]"), finalizer, names::qualified);
    }
    owners(object, causes);
}

pub(super) fn labels_and_annotations(meta: &Tree, path: &str, causes: &mut Causes) {
    if let Some(map) = tree(meta, "labels") {
        labels::map(map, &format!("{path}.labels"), causes);
    }
    let mut bytes = 0;
    for (key, value) in tree(meta, "annotations").into_iter().flatten() {
        // Kubernetes accepts upper case in the prefix here.
        causes.name(format!("{path}.annotations"), &key.to_ascii_lowercase(), names::qualified);
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        causes.too_long(format!("{path}.annotations"), ANNOTATIONS_BYTES_MAX);
    }
}

fn owners(object: &Object, causes: &mut Causes) {
    let mut controllers = 0;
    for (index, owner) in object.get_array("metadata.ownerReferences").iter().enumerate() {
        let Some(owner) = owner.as_object() else { continue };
        let path = format!("metadata.ownerReferences[{index}]");
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                causes.required(format!("{path}.{field}"));
            }
        }
        controllers += usize::from(owner.get("controller") == Some(&Value::Bool(true)));
    }
    if controllers > 1 {
        causes.invalid(
            "metadata.ownerReferences",
            controllers,
            "only one reference can have controller set to true",
        );
    }
}

fn name_rule(kind: &str) -> names::Rule {
    match kind {
        "Service" => names::dns_1035_label,
        "Namespace" => names::dns_label,
        _ => names::dns_subdomain,
    }
}

/// Refuses a write meant for another incarnation (uid), or for a state that has passed (resource version).
///
/// # Errors
/// `Conflict`.
pub fn precondition(old: &Object, new: &Object) -> Result<(), Error> {
    let key = old.key();
    if !new.uid().is_empty() && new.uid() != old.uid() {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            new.uid(),
            old.uid()
        );
        return Err(Error::conflict(&key, why));
    }
    let asked = new.get_str("metadata.resourceVersion").unwrap_or("");
    if asked.is_empty() || asked == "0" {
        return Ok(());
    }
    let Ok(asked) = asked.parse::<u64>() else {
        let message = format!("metadata.resourceVersion: {asked:?} is no resource version");
        return Err(Error::about(Kind::BadRequest, &key, message));
    };
    if old.resource_version().is_some_and(|version| version != asked) {
        return Err(Error::modified(&key));
    }
    Ok(())
}
