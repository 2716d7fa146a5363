//! Client-side apply: what was applied last, what is to be applied now, and what is there make the next state.
//!
//! ```text
//!   last applied ─┐ fields that left the file are removed
//!   file ─────────┼─► next state ──► merge patch against what is there
//!   present ──────┘ what others have set stays
//! ```
//! Lists whose items have an identity are merged by it; others are replaced.
//! Source: Kubernetes documentation, "Declarative Management of Kubernetes Objects Using Configuration Files".

use serde_json::{Map, Value};

/// Where the last applied configuration is kept; kubectl's own, so that both tools understand each other.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The state after applying `wanted`, given what was applied `last` and what is `present`.
pub fn three_way(last: &Value, wanted: &Value, present: &Value) -> Value {
    merge("", last, wanted, present)
}

fn merge(field: &str, last: &Value, wanted: &Value, present: &Value) -> Value {
    match (wanted, present) {
        (Value::Object(wanted), Value::Object(present)) => {
            Value::Object(merge_maps(last.as_object(), wanted, present))
        }
        (Value::Array(wanted), Value::Array(present)) if keys(field).is_some() => {
            merge_lists(field, last.as_array().map_or(&[][..], Vec::as_slice), wanted, present)
        }
        _ => wanted.clone(),
    }
}

fn merge_maps(
    last: Option<&Map<String, Value>>,
    wanted: &Map<String, Value>,
    present: &Map<String, Value>,
) -> Map<String, Value> {
    let mut next = present.clone();
    for key in last.into_iter().flat_map(Map::keys).filter(|key| !wanted.contains_key(*key)) {
        next.remove(key);
    }
    for (key, value) in wanted {
        if value.is_null() {
            next.remove(key);
            continue;
        }
        let before = last.and_then(|last| last.get(key)).unwrap_or(&Value::Null);
        let there = present.get(key).unwrap_or(&Value::Null);
        next.insert(key.clone(), merge(key, before, value, there));
    }
    next
}

/// Items in the file's order, each merged with its namesake; then those that others have added.
fn merge_lists(field: &str, last: &[Value], wanted: &[Value], present: &[Value]) -> Value {
    let Some(keys) = keys(field) else { return Value::Array(wanted.to_vec()) };
    let namesake = |items: &[Value], item: &Value| {
        items.iter().find(|other| same(keys, item, other)).cloned().unwrap_or(Value::Null)
    };
    let mut next: Vec<Value> =
        wanted.iter().map(|item| merge("", &namesake(last, item), item, &namesake(present, item))).collect();
    let others = present.iter().filter(|item| {
        let is_in = |items: &[Value]| items.iter().any(|other| same(keys, item, other));
        !is_in(wanted) && !is_in(last)
    });
    next.extend(others.cloned());
    Value::Array(next)
}

/// What tells the items of a list apart, by the list's name. Source: the `patchMergeKey` of Kubernetes' types;
/// ports are told apart by protocol too, as server-side apply does. An absent key is its default.
fn keys(field: &str) -> Option<&'static [&'static str]> {
    match field {
        "containers" | "initContainers" | "ephemeralContainers" | "volumes" | "env" | "imagePullSecrets" => {
            Some(&["name"])
        }
        "volumeMounts" => Some(&["mountPath"]),
        "volumeDevices" => Some(&["devicePath"]),
        "ports" => Some(&["containerPort", "port", "protocol"]),
        "hostAliases" => Some(&["ip"]),
        "conditions" => Some(&["type"]),
        "ownerReferences" => Some(&["uid"]),
        _ => None,
    }
}

fn same(keys: &[&str], a: &Value, b: &Value) -> bool {
    let default = |key: &str| if key == "protocol" { Value::from("TCP") } else { Value::Null };
    let part = |item: &Value, key: &str| item.get(key).cloned().unwrap_or_else(|| default(key));
    keys.iter().all(|key| part(a, key) == part(b, key))
}

/// The JSON merge patch that makes `next` of `present`; `None` if there is nothing to change. RFC 7386.
pub fn diff(present: &Value, next: &Value) -> Option<Value> {
    let (Value::Object(present), Value::Object(next)) = (present, next) else {
        return (present != next).then(|| next.clone());
    };
    let mut patch = Map::new();
    for key in present.keys().filter(|key| !next.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in next {
        match present.get(key) {
            Some(there) => {
                if let Some(change) = diff(there, value) {
                    patch.insert(key.clone(), change);
                }
            }
            None => _ = patch.insert(key.clone(), value.clone()),
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The object with its own text, as applied, in an annotation.
pub fn annotated(object: &Value) -> Value {
    let mut plain = object.clone();
    if let Some(annotations) = plain.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    let text = format!("{plain}\n");
    let metadata = &mut plain["metadata"];
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = Value::Object(Map::new());
    }
    metadata["annotations"][LAST_APPLIED] = text.into();
    plain
}

/// What was applied last, from the object's annotation; `None` if it was never applied.
pub fn last_applied(present: &Value) -> Option<Value> {
    let text = present["metadata"]["annotations"][LAST_APPLIED].as_str()?;
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(last: Value, wanted: Value, present: Value, expect: Value) {
        let next = three_way(&last, &wanted, &present);
        assert_eq!(next, expect);
        match diff(&present, &next) {
            Some(patch) => assert_eq!(api::patch::merge(&present, &patch).unwrap(), next),
            None => assert_eq!(present, next),
        }
        // Applying the same file again changes nothing.
        assert_eq!(three_way(&wanted, &wanted, &next), next);
    }

    #[test]
    fn what_others_set_stays() {
        check(json!({"a": 1}), json!({"a": 1}), json!({"a": 1, "b": 2}), json!({"a": 1, "b": 2}));
        check(
            json!({"a": 1, "b": 2}),
            json!({"a": 1}),
            json!({"a": 1, "b": 2, "c": 3}),
            json!({"a": 1, "c": 3}),
        );
        check(json!({}), json!({"a": {"x": 1}}), json!({"a": {"y": 2}}), json!({"a": {"x": 1, "y": 2}}));
    }

    #[test]
    fn items_with_names_are_merged() {
        let wanted = json!({"containers": [{"name": "b", "image": "2"}, {"name": "c"}]});
        let last = json!({"containers": [{"name": "a"}, {"name": "b", "image": "1", "tty": true}]});
        let present = json!({"containers": [
            {"name": "a"}, {"name": "b", "image": "1", "tty": true, "policy": "x"}, {"name": "sidecar"}]});
        let expect = json!({"containers": [{"name": "b", "image": "2", "policy": "x"}, {"name": "c"}, {"name": "sidecar"}]});
        check(last, wanted, present, expect);
    }

    #[test]
    fn ports_are_told_apart_by_protocol() {
        let wanted = json!({"ports": [{"port": 53}, {"port": 53, "protocol": "UDP"}]});
        let present = json!({"ports": [{"port": 53, "protocol": "TCP", "nodePort": 1}]});
        let expect = json!({"ports": [{"port": 53, "protocol": "TCP", "nodePort": 1}, {"port": 53, "protocol": "UDP"}]});
        check(json!({}), wanted, present, expect);
    }

    #[test]
    fn other_lists_are_replaced() {
        check(
            json!({"args": ["a"]}),
            json!({"args": ["b"]}),
            json!({"args": ["a", "z"]}),
            json!({"args": ["b"]}),
        );
    }

    #[test]
    fn the_annotation_does_not_hold_itself() {
        let object = json!({"kind": "Pod", "metadata": {"name": "a"}});
        let once = annotated(&object);
        assert_eq!(last_applied(&once), Some(object.clone()));
        let twice = last_applied(&annotated(&once)).unwrap();
        assert!(twice["metadata"]["annotations"].get(LAST_APPLIED).is_none());
    }
}
