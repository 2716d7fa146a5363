//! The `scale` subresource: replicas apart from the rest. autoscaling/v1 Scale.

use serde_json::{Value, json};

use crate::error::{Cause, Error};
use crate::object::Object;
use crate::selector::LabelSelector;

/// The scale view of a replica set or stateful set.
pub fn of(object: &Object) -> Value {
    let meta = &object.0["metadata"];
    let mut scale = json!({
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {"name": object.name(), "namespace": object.namespace(), "uid": object.uid()},
        "spec": {"replicas": object.get_i64("spec.replicas").unwrap_or(0)},
        "status": {"replicas": object.get_i64("status.replicas").unwrap_or(0)},
    });
    for field in ["resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta.get(field) {
            scale["metadata"][field] = value.clone();
        }
    }
    if let Some(selector) = object.get("spec.selector").and_then(|s| LabelSelector::from_spec(s).ok()) {
        scale["status"]["selector"] = selector.to_string().into();
    }
    scale
}

/// The object with the replicas of a scale view.
///
/// # Errors
/// `Invalid` if replicas is no number of at least 0.
pub fn apply(object: &Object, scale: &Value) -> Result<Object, Error> {
    let replicas = match scale["spec"].get("replicas") {
        None | Some(Value::Null) => Some(0),
        Some(value) => value.as_i64(),
    };
    let Some(replicas @ 0..=0x7fff_ffff) = replicas else {
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: format!(
                "Invalid value: {}: must be greater than or equal to 0",
                scale["spec"]["replicas"]
            ),
            field: "spec.replicas".into(),
        };
        let key = object.key();
        return Err(Error::invalid(key.resource, object.name(), vec![cause]));
    };
    let mut object = object.clone();
    object.set("spec.replicas", replicas);
    Ok(object)
}
