//! Eviction: pods leave nodes that they do not tolerate.
//!
//! There is no default toleration of five minutes, as Kubernetes' admission adds it: here a node that is not ready can
//! be proved to be over, so its pods move at once. Who wants to wait says so with `tolerationSeconds`.
//!
//! Source: Kubernetes documentation, "Taint based Evictions".

use api::{Key, Object};
use serde_json::Value;

use crate::kinds::NODES;
use crate::node;
use crate::plan::{Note, Plan, Step};
use crate::pod;
use crate::replicaset::{delete, write_status};
use crate::rules::View;
use crate::toleration::{Stay, stay};

const COMPONENT: &str = "taint-eviction-controller";

/// Looks at a pod.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(pod) = view.cache.get(key).filter(|pod| pod::is_active(pod)) else { return plan };
    let node = pod::node(pod).and_then(|name| view.cache.get(&Key::new(*NODES, "", name)));
    let Some(node) = node else { return plan };
    match stay(pod, &node::taints(node)) {
        Stay::Until(end) if end > view.now => plan.wake = Some(end),
        Stay::No | Stay::Until(_) => return evict(pod),
        Stay::Always => {}
    }
    // It stays, perhaps runs, and its node cannot tell. Its agent says so again when it is back.
    if node::is_down(node) && pod::is_ready(pod) {
        plan.call(write_status(pod, unready(pod, view)));
    }
    plan
}

fn evict(pod: &Object) -> Plan {
    let text = format!("Marking for deletion Pod {}/{}", pod.namespace(), pod.name());
    let note = Note::normal(pod, COMPONENT, "TaintManagerEviction", text);
    let step = Step { call: delete(pod), note: Some(note), complaints: Vec::new() };
    Plan { steps: vec![step], ..Plan::default() }
}

/// The pod's status with Ready false.
fn unready(pod: &Object, view: &View<'_>) -> Value {
    let mut status = pod.get("status").cloned().unwrap_or_default();
    let conditions = status["conditions"].as_array_mut().into_iter().flatten();
    for condition in conditions.filter(|condition| condition["type"] == "Ready") {
        condition["status"] = "False".into();
        condition["reason"] = "NodeNotReady".into();
        condition["message"] = "the node of the pod is not ready".into();
        condition["lastTransitionTime"] = api::time::seconds(view.now).into();
    }
    status
}

#[cfg(test)]
mod tests {
    use api::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::effect::Call;
    use crate::testing::{NOW, look as look_with, now, pod, ready, summary, with};

    fn node(health: &str, taints: Value) -> Object {
        Object(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "node-0", "uid": "u", "resourceVersion": "1"},
            "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": health}]},
        }))
    }

    #[track_caller]
    fn check(tolerations: Value, node: &Object, expect: &[&str]) -> Plan {
        let base = with(&pod("a", ready("10.0.0.2")), json!({"spec": {"tolerations": tolerations}}));
        let plan = look_with(look, &base.key(), [base.clone(), node.clone()]);
        assert_eq!(summary(&plan), expect);
        plan
    }

    #[test]
    fn pods_leave_a_node_that_is_not_ready_at_once() {
        check(json!([]), &node("True", json!([])), &[]);
        check(json!([]), &node("False", json!([])), &["delete a"]);
        check(json!([]), &node("Unknown", json!([])), &["delete a"]);
        let other = json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]);
        check(other, &node("Unknown", json!([])), &["delete a"]);
    }

    #[test]
    fn a_taint_by_hand_drives_away_who_does_not_tolerate_it() {
        let taint = |effect: &str| json!([{"key": "k", "value": "v", "effect": effect}]);
        check(json!([]), &node("True", taint("NoExecute")), &["delete a"]);
        check(json!([]), &node("True", taint("NoSchedule")), &[]);
        check(json!([{"key": "k", "value": "v"}]), &node("True", taint("NoExecute")), &[]);
    }

    #[test]
    fn a_toleration_that_ends_is_waited_for() {
        let taint = |added: i64| {
            let time = api::time::seconds(Timestamp::from_second(added).unwrap());
            json!([{"key": "k", "effect": "NoExecute", "timeAdded": time}])
        };
        let tolerations = json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 60}]);
        let plan = check(tolerations.clone(), &node("True", taint(NOW)), &[]);
        assert_eq!(plan.wake, Timestamp::from_second(NOW + 60).ok());
        check(tolerations, &node("True", taint(NOW - 60)), &["delete a"]);
        assert_eq!(now(), Timestamp::from_second(NOW).unwrap());
    }

    #[test]
    fn who_stays_on_a_node_that_is_down_is_not_ready() {
        let all = json!([{"operator": "Exists"}]);
        let plan = check(all.clone(), &node("Unknown", json!([])), &["status a"]);
        let Call::Update { object, .. } = &plan.steps[0].call else { panic!() };
        assert!(!pod::is_ready(object));
        assert!(look_with(look, &object.key(), [object.clone(), node("Unknown", json!([]))]).is_empty());
        check(all, &node("True", json!([])), &[]);
    }
}
