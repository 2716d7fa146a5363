//! ReplicaSet: cattle. So many pods, any of which will do.
//!
//! A pod's name is a hash of the set's uid and the lowest slot whose name is free, so the same knowledge leads to the
//! same names: a repeated or misjudged creation collides with itself instead of making one pod too many.
//! One look takes one kind of step: first ownership, then number, then status.
//!
//! Source: Kubernetes documentation, "ReplicaSet"; apps/v1 ReplicaSetStatus.

use std::collections::BTreeSet;

use api::{Key, Object, OwnerReference, Part, Timestamp};
use serde_json::{Value, json};

use crate::effect::{Call, Propagation};
use crate::hash::letters;
use crate::kinds::PODS;
use crate::plan::{Note, Plan};
use crate::pod::{self, Availability};
use crate::rules::{View, selector};

const COMPONENT: &str = "replicaset-controller";
/// Most pods created or deleted in one go; the rest follow when these are answered.
const BURST: usize = 100;
/// Ended pods that are kept to be looked at.
const ENDED_MAX: usize = 10;

/// What to do about a set's pods.
#[derive(Debug, PartialEq)]
pub enum Action<'a> {
    /// Make this pod one of ours.
    Adopt(&'a Object),
    /// This pod is no longer one of ours.
    Release(&'a Object),
    /// One more pod, of that name.
    Create(String),
    /// One pod less.
    Delete(&'a Object),
}

/// What to do about the pods of the set's namespace, one kind of step at a time. Empty: all is well.
pub fn plan<'a>(set: &Object, pods: &[&'a Object]) -> Vec<Action<'a>> {
    let Some(selector) = selector(set) else { return Vec::new() };
    if set.is_deleting() {
        return Vec::new();
    }
    let is_ours = |pod: &Object| pod::manager(pod) == Some(set.uid());

    let mut ownership = Vec::new();
    for pod in pods.iter().copied().filter(|pod| !pod.is_deleting()) {
        match (is_ours(pod), selector.matches(pod.labels())) {
            (true, false) => ownership.push(Action::Release(pod)),
            (false, true) if pod::manager(pod).is_none() && !pod::is_terminal(pod) => {
                ownership.push(Action::Adopt(pod));
            }
            _ => {}
        }
    }
    if !ownership.is_empty() {
        return ownership;
    }

    let ours: Vec<&Object> = pods.iter().copied().filter(|pod| is_ours(pod)).collect();
    let active: Vec<&Object> = ours.iter().copied().filter(|pod| pod::is_active(pod)).collect();
    let replicas = replicas(set);
    if active.len() < replicas {
        let taken: BTreeSet<&str> = pods.iter().map(|pod| pod.name()).collect();
        let free = (0_u64..).map(|slot| name(set, slot)).filter(|name| !taken.contains(name.as_str()));
        return free.take((replicas - active.len()).min(BURST)).map(Action::Create).collect();
    }
    if active.len() > replicas {
        let mut ranked = active;
        ranked.sort_by_key(|pod| rank(pod));
        let surplus = ranked.len() - replicas;
        return ranked.into_iter().take(surplus.min(BURST)).map(Action::Delete).collect();
    }
    let mut ended: Vec<&Object> =
        ours.into_iter().filter(|pod| pod::is_terminal(pod) && !pod.is_deleting()).collect();
    ended.sort_by_key(|pod| (pod.creation_timestamp(), pod.name().to_owned()));
    let surplus = ended.len().saturating_sub(ENDED_MAX);
    ended.into_iter().take(surplus).map(Action::Delete).collect()
}

/// The name of the pod in a slot. Kubernetes' own length: names stay valid as hostnames.
fn name(set: &Object, slot: u64) -> String {
    let base: String = set.name().chars().take(57).collect();
    format!("{base}-{}", letters(&[set.uid(), &slot.to_string()], 5))
}

/// Whom to delete first: the least useful, then the cheapest by annotation, then the newest.
fn rank(pod: &Object) -> impl Ord + use<> {
    let cost = pod.annotation("controller.kubernetes.io/pod-deletion-cost");
    (
        pod::node(pod).is_some(),
        pod.get_str("status.phase") == Some("Running"),
        pod::is_ready(pod),
        cost.and_then(|cost| cost.parse().ok()).unwrap_or(0_i64),
        std::cmp::Reverse(pod.creation_timestamp()),
        pod.name().to_owned(),
    )
}

fn replicas(set: &Object) -> usize {
    usize::try_from(set.get_i64("spec.replicas").unwrap_or(1)).unwrap_or(0)
}

/// The status that describes these pods, and when time alone will change it.
fn status(set: &Object, pods: &[&Object], now: Timestamp) -> (Value, Option<Timestamp>) {
    let min_ready = set.get_i64("spec.minReadySeconds").unwrap_or(0);
    let ours = |pod: &&&Object| pod::manager(pod) == Some(set.uid());
    let active: Vec<&&Object> = pods.iter().filter(ours).filter(|pod| pod::is_active(pod)).collect();
    let template = set.get("spec.template.metadata.labels").and_then(Value::as_object);
    let labeled = |pod: &&&&Object| {
        template.is_none_or(|labels| labels.iter().all(|(name, value)| pod.labels().get(name) == Some(value)))
    };
    let (mut available, mut wake) = (0, None);
    for pod in &active {
        match pod::availability(pod, min_ready, now) {
            Availability::Available => available += 1,
            Availability::From(time) => wake = Some(wake.map_or(time, |wake: Timestamp| wake.min(time))),
            Availability::Unready => {}
        }
    }
    let mut status = json!({"replicas": active.len(), "observedGeneration": set.generation()});
    // Zeroes are left out, as Kubernetes does.
    let counts = [
        ("fullyLabeledReplicas", active.iter().filter(labeled).count()),
        ("readyReplicas", active.iter().filter(|pod| pod::is_ready(pod)).count()),
        ("availableReplicas", available),
    ];
    for (field, count) in counts {
        if count > 0 {
            status[field] = count.into();
        }
    }
    if let Some(conditions) = set.get("status.conditions") {
        status["conditions"] = conditions.clone();
    }
    (status, wake)
}

/// Looks at a set.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = view.cache.get(key) else { return plan };
    let pods: Vec<&Object> = view.cache.list_in(*PODS, &key.namespace).map(AsRef::as_ref).collect();
    let owner = set.as_controller_owner();
    for action in self::plan(set, &pods) {
        match action {
            Action::Adopt(pod) => plan.call(own(pod, Some(&owner))),
            Action::Release(pod) => plan.call(disown(pod, set.uid())),
            Action::Create(name) => {
                let pod = pod::from_template(
                    set.get("spec.template").unwrap_or(&Value::Null),
                    &Key::new(*PODS, &key.namespace, &name),
                    &owner,
                );
                plan.told(
                    Call::Create { object: pod },
                    Note::normal(set, COMPONENT, "SuccessfulCreate", format!("Created pod: {name}")),
                    Note::warning(set, COMPONENT, "FailedCreate", "Error creating: ".into()),
                );
            }
            Action::Delete(pod) => {
                let name = pod.name();
                plan.told(
                    delete(pod),
                    Note::normal(set, COMPONENT, "SuccessfulDelete", format!("Deleted pod: {name}")),
                    Note::warning(set, COMPONENT, "FailedDelete", "Error deleting: ".into()),
                );
            }
        }
    }
    if plan.is_empty() {
        let (status, wake) = status(set, &pods, view.now);
        if set.get("status") != Some(&status) {
            plan.call(write_status(set, status));
        }
        plan.wake = wake;
    }
    plan
}

/// The deletion of this very pod, with its own grace period.
pub fn delete(pod: &Object) -> Call {
    Call::Delete { key: pod.key(), uid: pod.uid().into(), propagation: Propagation::Background }
}

/// The update that gives an object this status.
pub fn write_status(object: &Object, status: Value) -> Call {
    let mut object = object.clone();
    object.set("status", status);
    Call::Update { object, part: Part::Status }
}

/// The update that adds an owner.
pub fn own(object: &Object, owner: Option<&OwnerReference>) -> Call {
    let mut references = object.get_array("metadata.ownerReferences").to_vec();
    references.extend(owner.and_then(|owner| serde_json::to_value(owner).ok()));
    write_owners(object, references)
}

/// The update that takes an owner away.
pub fn disown(object: &Object, uid: &str) -> Call {
    let references = object.get_array("metadata.ownerReferences");
    write_owners(object, references.iter().filter(|owner| owner["uid"] != uid).cloned().collect())
}

fn write_owners(object: &Object, references: Vec<Value>) -> Call {
    let mut object = object.clone();
    if references.is_empty() {
        object.remove("metadata.ownerReferences");
    } else {
        object.set("metadata.ownerReferences", references);
    }
    Call::Update { object, part: Part::Main }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{look, owned, pod, ready, summary, with};

    fn set(replicas: u64) -> Object {
        Object(json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web", "namespace": "n", "uid": "u", "resourceVersion": "1", "generation": 3},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}},
        }))
    }

    fn ours(name: &str, patch: Value) -> Object {
        owned(pod(name, patch), &set(0))
    }

    #[track_caller]
    fn check(replicas: u64, pods: &[Object], expect: &[&str]) {
        let pods: Vec<&Object> = pods.iter().collect();
        let actions = plan(&set(replicas), &pods).into_iter().map(|action| match action {
            Action::Adopt(pod) => format!("adopt {}", pod.name()),
            Action::Release(pod) => format!("release {}", pod.name()),
            Action::Create(name) => format!("create {name}"),
            Action::Delete(pod) => format!("delete {}", pod.name()),
        });
        assert_eq!(actions.collect::<Vec<_>>(), expect);
    }

    fn slot(n: u64) -> String {
        name(&set(0), n)
    }

    #[test]
    fn missing_pods_are_created_under_the_lowest_free_slots() {
        let create = |n| format!("create {}", slot(n));
        check(2, &[], &[&create(0), &create(1)]);
        check(3, &[ours(&slot(1), json!({}))], &[&create(0), &create(2)]);
    }

    #[test]
    fn an_ending_pod_is_replaced_at_once_under_another_name() {
        let ending = ours(&slot(0), json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        check(1, &[ending], &[&format!("create {}", slot(1))]);
    }

    #[test]
    fn an_ended_pod_is_replaced_and_kept_to_be_looked_at() {
        let ended = ours(&slot(0), json!({"status": {"phase": "Failed"}}));
        check(1, std::slice::from_ref(&ended), &[&format!("create {}", slot(1))]);
        check(0, &[ended], &[]);
        let many: Vec<Object> =
            (0..12).map(|n| ours(&format!("e{n:02}"), json!({"status": {"phase": "Failed"}}))).collect();
        check(0, &many, &["delete e00", "delete e01"]);
    }

    #[test]
    fn a_name_somebody_else_has_is_passed_over() {
        let foreign = pod(&slot(0), json!({"metadata": {"labels": {"app": "other"}}}));
        check(1, &[foreign], &[&format!("create {}", slot(1))]);
    }

    #[test]
    fn surplus_pods_go_unbound_unready_cheap_newest_first() {
        let born = |time: &str| json!({"metadata": {"creationTimestamp": time}});
        let a = ours("a", ready("10.0.0.2"));
        let b = ours("b", json!({"spec": {"nodeName": "node-0"}, "status": {"phase": "Running"}}));
        let c = ours("c", json!({}));
        check(1, &[a.clone(), b.clone(), c.clone()], &["delete c", "delete b"]);
        check(2, &[b, a.clone(), c], &["delete c"]);
        let newer = with(&ours("d", ready("10.0.0.3")), born("1970-01-02T00:00:00Z"));
        check(1, &[a.clone(), newer.clone()], &["delete d"]);
        let cheap = with(
            &a,
            json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}}),
        );
        check(1, &[cheap, newer], &["delete a"]);
    }

    #[test]
    fn orphans_that_match_are_adopted_and_ours_that_do_not_are_released() {
        let stray = ours("stray", json!({"metadata": {"labels": {"app": "other"}}}));
        let ending = pod("ending", json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        let theirs = owned(pod("theirs", json!({})), &with(&set(0), json!({"metadata": {"uid": "other"}})));
        check(1, &[pod("orphan", json!({})), stray, ending, theirs], &["adopt orphan", "release stray"]);
    }

    #[test]
    fn a_set_that_is_deleted_creates_nothing() {
        let deleting = with(&set(2), json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        assert_eq!(plan(&deleting, &[]), []);
    }

    #[test]
    fn status_is_written_when_it_differs_and_only_then() {
        let pods = [ours("a", ready("10.0.0.2")), ours("b", json!({}))];
        let all = |set: &Object| [set.clone()].into_iter().chain(pods.clone());
        let first = look(super::look, &set(2).key(), all(&set(2)));
        assert_eq!(summary(&first), ["status web"]);
        let Call::Update { object, .. } = &first.steps[0].call else { panic!("{first:?}") };
        let expect = json!({"replicas": 2, "fullyLabeledReplicas": 2, "readyReplicas": 1, "availableReplicas": 1,
            "observedGeneration": 3});
        assert_eq!(object.0["status"], expect);
        assert_eq!(summary(&look(super::look, &set(2).key(), all(object))), [""; 0]);
    }

    #[test]
    fn a_pod_is_available_only_after_min_ready_seconds() {
        let set = with(&set(1), json!({"spec": {"minReadySeconds": 2_000_000}}));
        let pod = ours("a", ready("10.0.0.2"));
        let (status, wake) = status(&set, &[&pod], crate::testing::now());
        assert_eq!(status.get("availableReplicas"), None);
        assert_eq!(wake, Some(Timestamp::from_second(2_000_000).unwrap()));
    }
}
