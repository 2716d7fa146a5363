//! Objects for tests, and rules applied to them.

use std::sync::Arc;

use api::{Key, Object, Timestamp};
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::effect::Call;
use crate::plan::Plan;
use crate::rules::View;
use crate::scheduler::Assumed;

/// The time in every test.
pub const NOW: i64 = 1_000_000;

pub fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

/// `base` with `patch` merged into it.
pub fn with(base: &Object, patch: Value) -> Object {
    let mut object = base.clone();
    merge(&mut object.0, patch);
    object
}

fn merge(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (name, value) in fields {
                if value.is_null() {
                    target.as_object_mut().unwrap().remove(&name);
                } else {
                    merge(&mut target[name], value);
                }
            }
        }
        other => *target = other,
    }
}

/// A pod of app `web`; its uid is `uid-` and its name.
pub fn pod(name: &str, patch: Value) -> Object {
    let base = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}"), "resourceVersion": "1",
            "labels": {"app": "web"}, "creationTimestamp": "1970-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "c"}]},
    });
    with(&Object(base), patch)
}

/// What a ready pod has beside: a node and an address.
pub fn ready(address: &str) -> Value {
    json!({
        "spec": {"nodeName": "node-0"},
        "status": {"phase": "Running", "podIP": address,
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}]},
    })
}

/// `pod` as `owner`'s.
pub fn owned(pod: Object, owner: &Object) -> Object {
    with(&pod, json!({"metadata": {"ownerReferences": [owner.as_controller_owner()]}}))
}

pub fn cache(objects: impl IntoIterator<Item = Object>) -> Cache {
    let mut cache = Cache::default();
    for object in objects {
        cache.put(&object.key(), Arc::new(object));
    }
    cache
}

/// What a rule plans for a key among these objects.
pub fn look(rule: fn(&View<'_>, &Key) -> Plan, key: &Key, objects: impl IntoIterator<Item = Object>) -> Plan {
    let (cache, assumed) = (cache(objects), Assumed::new());
    rule(&View { cache: &cache, assumed: &assumed, now: now() }, key)
}

/// The calls of a plan, one word and the key's name each.
pub fn summary(plan: &Plan) -> Vec<String> {
    plan.steps
        .iter()
        .map(|step| {
            let word = match &step.call {
                Call::Create { .. } => "create",
                Call::Update { part: api::Part::Status, .. } => "status",
                Call::Update { .. } => "update",
                Call::Delete { .. } => "delete",
                Call::Bind { .. } => "bind",
                Call::Read { .. } => "read",
                Call::Fence { .. } => "fence",
            };
            format!("{word} {}", step.call.key().name)
        })
        .collect()
}

/// Time this thread has run for: what others do does not count.
pub fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0) / 1000
}
