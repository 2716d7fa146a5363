//! Nodes: what their conditions mean for their pods, as Kubernetes' node lifecycle controller has it.
//!
//! ```text
//!  Ready    True      False, none             Unknown               spec.unschedulable
//!  taints   –         not-ready               unreachable           unschedulable
//!                     NoSchedule, NoExecute   NoSchedule, NoExecute NoSchedule
//! ```
//! (A node that has never said anything is tainted NoSchedule alone.) What a taint drives away goes by itself only
//! where an agent is at work. A managed node that is not ready is *fenced* as soon as one of its pods is to go: all
//! that runs on it ends, and is seen to have ended, before its pods are removed; then their names, addresses and
//! volumes are free for other nodes. So is the node whose object is gone.
//!
//! Source: Kubernetes documentation, "Nodes", "Taints and Tolerations", "Pod garbage collection".

use std::collections::BTreeSet;

use api::node::{
    MOVED_ANNOTATION, NOT_READY_TAINT as NOT_READY, UNREACHABLE_TAINT as UNREACHABLE,
    UNSCHEDULABLE_TAINT as UNSCHEDULABLE, condition, is_managed,
};
use api::{Key, Object, Part};
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::effect::Call;
use crate::kinds::NODES;
use crate::plan::{Note, Plan, Step};
use crate::pod;
use crate::rules::View;
use crate::scheduler;
use crate::toleration::{NO_EXECUTE, NO_SCHEDULE};

const COMPONENT: &str = "node-controller";
/// Conditions that keep new pods away when they are true.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Pods that a refused fence is told of.
const TOLD_MAX: usize = 20;

/// What a node's Ready condition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has never said anything.
    New,
    /// `True`.
    Ready,
    /// `False`: it is known not to be.
    NotReady,
    /// `Unknown`: nothing is heard of it.
    Unreachable,
}

/// What the node's Ready condition says.
pub fn health(node: &Object) -> Health {
    match condition(node, "Ready").map(|condition| condition["status"].as_str().unwrap_or("")) {
        None => Health::New,
        Some("True") => Health::Ready,
        Some("False") => Health::NotReady,
        Some(_) => Health::Unreachable,
    }
}

/// Whether the node is known to be down.
pub fn is_down(node: &Object) -> bool {
    matches!(health(node), Health::NotReady | Health::Unreachable)
}

/// The names of the nodes that are known to be down.
pub fn down(cache: &Cache) -> BTreeSet<&str> {
    cache.list(*NODES).filter(|node| is_down(node)).map(|node| node.name()).collect()
}

/// The taints a node's state asks for: key and effect.
fn wanted(node: &Object) -> Vec<(&'static str, &'static str)> {
    let mut taints = match health(node) {
        Health::Ready => Vec::new(),
        Health::New => vec![(NOT_READY, NO_SCHEDULE)],
        Health::NotReady => vec![(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)],
        Health::Unreachable => vec![(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)],
    };
    if node.get_bool("spec.unschedulable") == Some(true) {
        taints.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let conditions = node.get_array("status.conditions");
    let holds = |kind: &str| conditions.iter().any(|it| it["type"] == kind && it["status"] == "True");
    taints.extend(PRESSURES.iter().filter(|(kind, _)| holds(kind)).map(|(_, key)| (*key, NO_SCHEDULE)));
    taints
}

/// Whether a taint is this controller's to set and take away.
fn is_ours(taint: &Value) -> bool {
    let key = taint["key"].as_str().unwrap_or("");
    let is_condition = [UNSCHEDULABLE].into_iter().chain(PRESSURES.map(|(_, key)| key)).any(|it| it == key);
    (is_condition && taint["effect"] == NO_SCHEDULE)
        || (matches!(key, NOT_READY | UNREACHABLE)
            && (taint["effect"] == NO_SCHEDULE || taint["effect"] == NO_EXECUTE))
}

/// The taints that count: those in the spec as far as the node's state still asks for them, and those it asks for
/// that are not written yet. A node is left alone from the moment its state is known.
pub fn taints(node: &Object) -> Vec<Value> {
    let wanted = wanted(node);
    let is = |taint: &Value, (key, effect): &(&str, &str)| taint["key"] == *key && taint["effect"] == *effect;
    let written = node.get_array("spec.taints");
    let kept = written.iter().filter(|taint| !is_ours(taint) || wanted.iter().any(|it| is(taint, it)));
    let missing = wanted.iter().filter(|it| !written.iter().any(|taint| is(taint, it)));
    let missing = missing.map(|(key, effect)| json!({"key": key, "effect": effect}));
    kept.cloned().chain(missing).collect()
}

/// Looks at a node's taints, and at the addresses of other nodes' blocks that its pods have.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = view.cache.get(key).filter(|node| !node.is_deleting()) else { return plan };
    let mut taints = taints(node);
    for taint in &mut taints {
        // Tolerations that end count from here; a taint by hand has no time.
        if taint["timeAdded"].is_null() && (is_ours(taint) || taint["effect"] == NO_EXECUTE) {
            taint["timeAdded"] = api::time::seconds(view.now).into();
        }
    }
    let moved =
        scheduler::moved(view.cache, node).iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if taints == node.get_array("spec.taints") && moved == node.annotation(MOVED_ANNOTATION).unwrap_or("") {
        return plan;
    }
    let is_told = node.get_array("spec.taints").iter().any(|it| is_ours(it) && it["effect"] == NO_EXECUTE);
    let note = condition(node, "Ready").filter(|it| it["status"] != "True" && !is_told).map(|condition| {
        let text = |field: &str| condition[field].as_str().unwrap_or("");
        let (reason, since) = (text("reason"), text("lastTransitionTime"));
        let message = format!("Node {} status is now: NodeNotReady ({reason} since {since})", key.name);
        Note::normal(node, COMPONENT, "NodeNotReady", message)
    });
    let mut object = node.as_ref().clone();
    match taints.is_empty() {
        true => object.remove("spec.taints"),
        false => object.set("spec.taints", taints),
    }
    let mut annotations = node.annotations().clone();
    match moved.is_empty() {
        true => drop(annotations.remove(MOVED_ANNOTATION)),
        false => drop(annotations.insert(MOVED_ANNOTATION.into(), moved.into())),
    }
    if &annotations != node.annotations() {
        object.set("metadata.annotations", Value::Object(annotations));
    }
    let call = Call::Update { object, part: Part::Main };
    plan.steps.push(Step { call, note, complaints: Vec::new() });
    plan
}

/// Looks at whether a node must be fenced.
pub fn look_at_fence(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let pods = || view.cache.pods_on(&key.name);
    let (uid, about) = match view.cache.get(key) {
        Some(node) if health(node) == Health::Ready || !is_managed(node) => return plan,
        Some(node) if pods().any(|pod| pod.is_deleting()) => (node.uid(), Some(node)),
        // Its pods cannot come to an end by themselves. One without an address never ran: it may wait for a node that
        // is to come.
        None if pods().any(|pod| pod.is_deleting() || pod::address(pod).is_some()) => ("", None),
        _ => return plan,
    };
    let stuck = pods().filter(|pod| pod.is_deleting()).take(TOLD_MAX);
    let complain = |about: &Object| {
        Note::warning(about, COMPONENT, "FenceFailed", format!("node {} is not fenced yet: ", key.name))
    };
    plan.steps.push(Step {
        call: Call::Fence { node: key.name.clone(), uid: uid.into() },
        note: None,
        complaints: about.into_iter().chain(stuck).map(|about| complain(about)).collect(),
    });
    plan
}

#[cfg(test)]
mod tests {
    use api::node::MANAGED_LABEL as MANAGED;

    use super::*;
    use crate::testing::{look as look_with, pod, ready, summary, with};

    fn node(ready: &str, patch: Value) -> Object {
        let base = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "node-0", "uid": "u", "resourceVersion": "1", "labels": {MANAGED: "true"}},
            "status": {"conditions": [{"type": "Ready", "status": ready, "reason": "NodeDied",
                "lastTransitionTime": "1970-01-01T00:00:00Z"}]},
        });
        with(&Object(base), patch)
    }

    /// The taints written, one word each; nothing if nothing is written.
    #[track_caller]
    fn check_taints(node: &Object, expect: &[&str]) -> Plan {
        let plan = look_with(look, &node.key(), [node.clone()]);
        let written = plan.steps.iter().flat_map(|step| match &step.call {
            Call::Update { object, part: Part::Main } => object.get_array("spec.taints").to_vec(),
            other => panic!("{other:?}"),
        });
        let word = |taint: Value| {
            let text = |field: &str| taint[field].as_str().unwrap_or("").to_owned();
            let time = if taint["timeAdded"].is_null() { "" } else { "@" };
            format!("{}:{}{time}", text("key").trim_start_matches("node.kubernetes.io/"), text("effect"))
        };
        assert_eq!(written.map(word).collect::<Vec<_>>(), expect);
        plan
    }

    #[test]
    fn conditions_become_taints() {
        check_taints(&node("True", json!({})), &[]);
        let plan =
            check_taints(&node("False", json!({})), &["not-ready:NoSchedule@", "not-ready:NoExecute@"]);
        assert!(plan.steps[0].note.is_some());
        check_taints(&node("Unknown", json!({})), &["unreachable:NoSchedule@", "unreachable:NoExecute@"]);
        check_taints(&node("True", json!({"status": {"conditions": []}})), &["not-ready:NoSchedule@"]);
        check_taints(&node("True", json!({"spec": {"unschedulable": true}})), &["unschedulable:NoSchedule@"]);
        let pressed = json!({"status": {"conditions": [{"type": "Ready", "status": "True"},
            {"type": "DiskPressure", "status": "True"}]}});
        check_taints(&node("True", pressed), &["disk-pressure:NoSchedule@"]);
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let tainted = |taints: Value| json!({"spec": {"taints": taints}});
        let mine = json!({"key": "mine", "effect": "NoSchedule"});
        let not_ready = json!({"key": NOT_READY, "effect": "NoExecute", "timeAdded": "1970-01-01T00:00:00Z"});
        let both = tainted(json!([mine, not_ready]));
        check_taints(&node("True", both.clone()), &["mine:NoSchedule"]);
        let expect = ["mine:NoSchedule", "not-ready:NoExecute@", "not-ready:NoSchedule@"];
        let plan = check_taints(&node("False", both), &expect);
        let Call::Update { object, .. } = &plan.steps[0].call else { panic!() };
        assert_eq!(object.get_array("spec.taints")[1], not_ready, "its time stays");
        assert!(look_with(look, &object.key(), [object.clone()]).is_empty());
        let expect = ["mine:NoSchedule", "unreachable:NoSchedule@", "unreachable:NoExecute@"];
        check_taints(&node("Unknown", object.0["spec"]["taints"].clone().pipe(tainted)), &expect);
    }

    trait Pipe: Sized {
        fn pipe<T>(self, f: impl FnOnce(Self) -> T) -> T {
            f(self)
        }
    }
    impl Pipe for Value {}

    #[test]
    fn a_taint_by_hand_that_drives_away_gets_its_time() {
        let taint = json!({"spec": {"taints": [{"key": "mine", "effect": "NoExecute"}]}});
        check_taints(&node("True", taint), &["mine:NoExecute@"]);
    }

    #[track_caller]
    fn check_fence(node: Option<Object>, pod: Object, expect: &[&str]) {
        let key = Key::new(*NODES, "", "node-0");
        let plan = look_with(look_at_fence, &key, node.into_iter().chain([pod]));
        assert_eq!(summary(&plan), expect);
    }

    #[test]
    fn a_managed_node_that_is_not_ready_is_fenced_when_a_pod_is_to_go() {
        let stays = pod("a", ready("10.0.0.2"));
        let goes = with(&stays, json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        for health in ["False", "Unknown"] {
            check_fence(Some(node(health, json!({}))), goes.clone(), &["fence node-0"]);
            check_fence(Some(node(health, json!({}))), stays.clone(), &[]);
            let foreign = json!({"metadata": {"labels": {MANAGED: null}}});
            check_fence(Some(node(health, foreign)), goes.clone(), &[]);
        }
        check_fence(Some(node("True", json!({}))), goes.clone(), &[]);
        let elsewhere = with(&goes, json!({"spec": {"nodeName": "node-1"}}));
        check_fence(Some(node("False", json!({}))), elsewhere, &[]);
    }

    #[test]
    fn pods_of_a_node_that_is_gone_go() {
        let ran = pod("a", ready("10.0.0.2"));
        check_fence(None, ran, &["fence node-0"]);
        let waits = pod("a", json!({"spec": {"nodeName": "node-0"}}));
        check_fence(None, waits.clone(), &[]);
        let goes = with(&waits, json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        check_fence(None, goes, &["fence node-0"]);
    }

    #[test]
    fn what_does_not_die_is_told_of_node_and_pods() {
        let goes = with(
            &pod("a", ready("10.0.0.2")),
            json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}),
        );
        let node = node("False", json!({}));
        let plan = look_with(look_at_fence, &node.key(), [node.clone(), goes]);
        assert_eq!(plan.steps[0].complaints.len(), 2);
    }
}
