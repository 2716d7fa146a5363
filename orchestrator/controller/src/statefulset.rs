//! StatefulSet (PetSet): pets. These very pods, each with its own name and storage.
//!
//! Guarantees: (1) one pod object per identity: `web-0` is created only when no object of that name is known, and
//! the registry refuses a second; an object stays until its agent has seen the last process die; (2) its claims
//! are there before it; (3) `OrderedReady`: an identity is created, updated or removed only when what must come
//! before is as it must be; (4) claims outlive pods unless the set says otherwise.
//!
//! `snapshot` (what is) → `order` (what to do, pure) → calls.
//!
//! Source: Kubernetes documentation, "StatefulSets", "StatefulSet Basics"; KEP-961, 1847, 2599, 3335.

mod claims;
mod order;
mod revision;

use std::collections::BTreeMap;

use api::{Key, Object};
use serde_json::{Value, json};

pub use claims::claim_ordinal;

use crate::effect::Call;
use crate::kinds::PODS;
use crate::plan::{Note, Plan};
use crate::pod::{self, Availability};
use crate::replicaset::{delete, own, write_status};
use crate::rules::{View, selector};
use order::{Identity, Pet, Rules, Step, Template};
use revision::{REVISION_LABEL, Revisions};

const COMPONENT: &str = "statefulset-controller";
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";
/// The first PetSets' switch: `"false"` on a pod holds everything behind it.
const INITIALIZED: &str = "pod.alpha.kubernetes.io/initialized";

/// The ordinal in a pod's name.
fn ordinal(set: &Object, name: &str) -> Option<u64> {
    let ordinal = name.strip_prefix(set.name())?.strip_prefix('-')?;
    let is_canonical = ordinal == "0" || !ordinal.starts_with(['0', '+']);
    ordinal.parse().ok().filter(|_| is_canonical)
}

fn pod_key(set: &Object, ordinal: u64) -> Key {
    Key::new(*PODS, set.namespace(), format!("{}-{ordinal}", set.name()))
}

/// Looks at a set.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = view.cache.get(key) else { return plan };
    let revisions = Revisions::of(set);
    let pods = pods(view, set);
    if !set.is_deleting() {
        adopt(view, set, &mut plan);
        if plan.is_empty() {
            claims::retain(view.cache, set, &mut plan);
        }
        if plan.is_empty() {
            revision::remember(set, &revisions, &mut plan);
            let pets = pods.values().map(|pod| pet(set, &revisions, pod, view, &mut plan.wake)).collect();
            let identity = |ordinal| identity(view, set, ordinal);
            for step in order::order(&rules(set), &pets, &identity) {
                carry_out(view, set, &revisions, step, &mut plan);
            }
        }
    }
    if plan.is_empty() {
        let status = status(set, &revisions, &pods, view, &mut plan.wake);
        if set.get("status") != Some(&status) {
            plan.call(write_status(set, status));
        }
    }
    plan
}

/// The set's own pods, by ordinal.
fn pods<'a>(view: &View<'a>, set: &Object) -> BTreeMap<u64, &'a Object> {
    let owned = view.cache.dependents(set.uid()).filter(|it| it.kind() == PODS.kind);
    let ours = owned.filter(|pod| pod::manager(pod) == Some(set.uid()));
    ours.filter_map(|pod| Some((ordinal(set, pod.name())?, pod.as_ref()))).collect()
}

/// Pods with our names and labels that nobody manages become ours.
fn adopt(view: &View<'_>, set: &Object, plan: &mut Plan) {
    let Some(selector) = selector(set) else { return };
    let owner = set.as_controller_owner();
    for pod in view.cache.list_in(*PODS, set.namespace()) {
        let is_named = ordinal(set, pod.name()).is_some();
        // One that has ended, too: it has the name, and is replaced.
        if is_named && pod::manager(pod).is_none() && !pod.is_deleting() && selector.matches(pod.labels()) {
            plan.call(own(pod, Some(&owner)));
        }
    }
}

fn rules(set: &Object) -> Rules {
    let number = |path: &str| set.get_i64(path).and_then(|n| u64::try_from(n).ok());
    Rules {
        start: number("spec.ordinals.start").unwrap_or(0),
        replicas: number("spec.replicas").unwrap_or(1),
        is_parallel: set.get_str("spec.podManagementPolicy") == Some("Parallel"),
        updates_from: match set.get_str("spec.updateStrategy.type") {
            Some("OnDelete") => None,
            _ => Some(number("spec.updateStrategy.rollingUpdate.partition").unwrap_or(0)),
        },
    }
}

fn pet(
    set: &Object,
    revisions: &Revisions,
    pod: &Object,
    view: &View<'_>,
    wake: &mut Option<jiff::Timestamp>,
) -> (u64, Pet) {
    let min_ready = set.get_i64("spec.minReadySeconds").unwrap_or(0);
    let pet = if pod.is_deleting() {
        Pet::Ending
    } else if pod::is_terminal(pod) {
        Pet::Ended
    } else {
        let is_updated = pod.label(REVISION_LABEL) == Some(&revisions.update);
        let is_held = pod.annotation(INITIALIZED) == Some("false");
        let is_well = match pod::availability(pod, min_ready, view.now) {
            Availability::Available => !is_held,
            Availability::From(time) => {
                *wake = Some(wake.map_or(time, |wake| wake.min(time)));
                false
            }
            Availability::Unready => false,
        };
        // Ready, but not for long enough, blocks what follows and yet is not broken.
        let is_started = pod.get_str("status.phase") == Some("Running");
        Pet::Alive { is_updated, is_well, is_ready: pod::is_ready(pod), is_started }
    };
    (ordinal(set, pod.name()).unwrap_or(0), pet)
}

/// What stands in the way of a pod.
fn identity(view: &View<'_>, set: &Object, ordinal: u64) -> Identity {
    let is_ours = |pod: &Object| pod::manager(pod) == Some(set.uid());
    if view.cache.get(&pod_key(set, ordinal)).is_some_and(|pod| !is_ours(pod)) {
        // Somebody else's pod, or one of a set of the same name before: never a second one.
        return Identity::Taken;
    }
    claims::identity(view.cache, set, ordinal)
}

fn carry_out(view: &View<'_>, set: &Object, revisions: &Revisions, step: Step, plan: &mut Plan) {
    match step {
        Step::Claims(ordinal) => claims::create(view.cache, set, ordinal, plan),
        Step::Create(ordinal, template) => {
            let pod = new_pod(set, revisions, ordinal, template);
            let name = pod.name().to_owned();
            let of = format!("create Pod {name} in StatefulSet {}", set.name());
            plan.told(
                Call::Create { object: pod },
                Note::normal(set, COMPONENT, "SuccessfulCreate", format!("{of} successful")),
                Note::warning(set, COMPONENT, "FailedCreate", format!("{of} failed error: ")),
            );
        }
        Step::Delete(ordinal) => {
            let Some(pod) = view.cache.get(&pod_key(set, ordinal)) else { return };
            if claims::follow(view.cache, set, ordinal, pod, plan) {
                return;
            }
            let of = format!("delete Pod {} in StatefulSet {}", pod.name(), set.name());
            plan.told(
                delete(pod),
                Note::normal(set, COMPONENT, "SuccessfulDelete", format!("{of} successful")),
                Note::warning(set, COMPONENT, "FailedDelete", format!("{of} failed error: ")),
            );
        }
        Step::Blocked(ordinal) => plan.notes.push(Note::warning(
            set,
            COMPONENT,
            "FailedCreate",
            format!("create Pod {}-{ordinal}: a pod of that name is not this set's", set.name()),
        )),
    }
}

/// The pod of an identity: the template, with its name, labels, hostname and claims.
fn new_pod(set: &Object, revisions: &Revisions, ordinal: u64, template: Template) -> Object {
    let (body, revision) = match template {
        Template::Current => revisions.current_template(set),
        Template::Update => (set.0["spec"]["template"].clone(), revisions.update.as_str()),
    };
    let key = pod_key(set, ordinal);
    let mut pod = pod::from_template(&body, &key, &set.as_controller_owner());
    let labels = [
        (POD_NAME_LABEL, key.name.clone()),
        (POD_INDEX_LABEL, ordinal.to_string()),
        (REVISION_LABEL, revision.to_owned()),
    ];
    let mut all = pod.labels().clone();
    all.extend(labels.map(|(name, value)| (name.to_owned(), Value::String(value))));
    pod.set("metadata.labels", all);
    pod.set("spec.hostname", key.name.as_str());
    if let Some(service) = set.get_str("spec.serviceName").filter(|name| !name.is_empty()) {
        pod.set("spec.subdomain", service);
    }
    let claims = claims::of(set, ordinal);
    let mut volumes = pod.get_array("spec.volumes").to_vec();
    volumes.retain(|volume| !claims.iter().any(|claim| volume["name"] == claim.template));
    volumes.extend(claims.into_iter().map(
        |claim| json!({"name": claim.template, "persistentVolumeClaim": {"claimName": claim.key.name}}),
    ));
    if !volumes.is_empty() {
        pod.set("spec.volumes", volumes);
    }
    pod
}

fn status(
    set: &Object,
    revisions: &Revisions,
    pods: &BTreeMap<u64, &Object>,
    view: &View<'_>,
    wake: &mut Option<jiff::Timestamp>,
) -> Value {
    let min_ready = set.get_i64("spec.minReadySeconds").unwrap_or(0);
    let live: Vec<&&Object> = pods.values().filter(|pod| pod::is_active(pod)).collect();
    let at = |revision: &str| live.iter().filter(|pod| pod.label(REVISION_LABEL) == Some(revision)).count();
    let mut available = 0;
    for pod in &live {
        match pod::availability(pod, min_ready, view.now) {
            Availability::Available => available += 1,
            Availability::From(time) => *wake = Some(wake.map_or(time, |wake| wake.min(time))),
            Availability::Unready => {}
        }
    }
    let ready = live.iter().filter(|pod| pod::is_ready(pod)).count();
    let rules = rules(set);
    let replicas = usize::try_from(rules.replicas).unwrap_or(usize::MAX);
    let is_complete = rules.updates_from == Some(0)
        && at(&revisions.update) == replicas
        && ready == replicas
        && pods.len() == replicas;
    let current = if is_complete { &revisions.update } else { &revisions.current };
    let mut status = json!({
        "observedGeneration": set.generation(),
        "replicas": pods.len(),
        "availableReplicas": available,
        "currentRevision": current,
        "updateRevision": revisions.update,
        "collisionCount": 0,
    });
    let counts = [
        ("readyReplicas", ready),
        ("currentReplicas", at(current)),
        ("updatedReplicas", at(&revisions.update)),
    ];
    for (field, count) in counts {
        if count > 0 {
            status[field] = count.into();
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use api::Part;

    use super::*;
    use crate::testing::{look, owned, pod as bare, ready, summary, with};

    fn set(replicas: u64, patch: Value) -> Object {
        let base = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "n", "uid": "u", "resourceVersion": "1", "generation": 2},
            "spec": {
                "replicas": replicas, "serviceName": "front", "podManagementPolicy": "OrderedReady",
                "selector": {"matchLabels": {"app": "web"}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
            },
        });
        with(&Object(base), patch)
    }

    fn claim(ordinal: u64, patch: Value) -> Object {
        let base = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": format!("data-web-{ordinal}"), "namespace": "n", "uid": format!("c{ordinal}"),
                "resourceVersion": "1"},
        });
        with(&Object(base), patch)
    }

    /// The pet of an ordinal, well and of the set's own template.
    fn pet(set: &Object, ordinal: u64) -> Object {
        let pod = bare(&format!("web-{ordinal}"), ready(&format!("10.0.0.{}", ordinal + 2)));
        let revision = Revisions::of(set).update;
        owned(with(&pod, json!({"metadata": {"labels": {REVISION_LABEL: revision}}})), set)
    }

    fn plan_of(set: &Object, others: &[Object]) -> Plan {
        look(super::look, &set.key(), others.iter().cloned().chain([set.clone()]))
    }

    #[track_caller]
    fn check(set: &Object, others: &[Object], expect: &[&str]) {
        assert_eq!(summary(&plan_of(set, others)), expect);
    }

    const ENDING: &str = "1970-01-01T00:00:00Z";

    #[test]
    fn the_claim_is_created_then_the_pod() {
        let set = set(2, json!({}));
        check(&set, &[], &["create data-web-0"]);
        check(&set, &[claim(0, json!({}))], &["create web-0"]);
    }

    #[test]
    fn a_pet_has_its_name_labels_hostname_and_claims() {
        let plan = plan_of(&set(1, json!({})), &[claim(0, json!({}))]);
        let Call::Create { object: pod } = &plan.steps[0].call else { panic!("{plan:?}") };
        assert_eq!(pod.label(POD_NAME_LABEL), Some("web-0"));
        assert_eq!(pod.label(POD_INDEX_LABEL), Some("0"));
        assert_eq!(pod.label(REVISION_LABEL), Some(Revisions::of(&set(1, json!({}))).update.as_str()));
        assert_eq!(
            (pod.get_str("spec.hostname"), pod.get_str("spec.subdomain")),
            (Some("web-0"), Some("front"))
        );
        assert_eq!(pod::claims(pod).collect::<Vec<_>>(), ["data-web-0"]);
        assert_eq!(pod.controller_owner().unwrap().uid, "u");
    }

    #[test]
    fn a_pod_of_the_name_that_is_not_ours_is_never_doubled() {
        let set = set(1, json!({}));
        let foreign = bare("web-0", json!({"metadata": {"labels": {"app": "other"}}}));
        let before = with(&set, json!({"metadata": {"uid": "before"}}));
        let of_another = owned(bare("web-0", json!({"metadata": {"deletionTimestamp": ENDING}})), &before);
        for pod in [foreign, of_another] {
            let plan = plan_of(&set, &[claim(0, json!({})), pod]);
            assert!(!summary(&plan).iter().any(|call| call.starts_with("create")), "{plan:?}");
            assert_eq!(plan.notes.len(), 1, "it is told");
        }
    }

    #[test]
    fn a_pod_of_the_name_that_nobody_manages_is_adopted() {
        check(&set(1, json!({})), &[bare("web-0", json!({}))], &["update web-0"]);
        check(
            &set(1, json!({})),
            &[bare("web-0", json!({"status": {"phase": "Failed"}}))],
            &["update web-0"],
        );
    }

    #[test]
    fn a_claim_that_is_going_is_waited_for() {
        let going = claim(0, json!({"metadata": {"deletionTimestamp": ENDING}}));
        check(&set(1, json!({})), &[going], &["status web"]);
    }

    #[test]
    fn claims_are_kept_unless_the_set_says_otherwise() {
        let keeping = set(0, json!({}));
        check(&keeping, &[claim(0, json!({})), pet(&keeping, 0)], &["delete web-0"]);
        let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}});
        let leaving = set(0, policy.clone());
        let pod = pet(&leaving, 0);
        check(&leaving, &[claim(0, json!({})), pod.clone()], &["update data-web-0"]);
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": pod.uid()});
        let following = claim(0, json!({"metadata": {"ownerReferences": [owner]}}));
        check(&leaving, &[following.clone(), pod.clone()], &["delete web-0"]);
        // Scaled up again in time: the claim stays. Too late: it goes, and a new one comes after it.
        let back = set(1, policy);
        let pod = with(&pod, json!({"metadata": {"labels": {REVISION_LABEL: Revisions::of(&back).update}}}));
        check(&back, &[following.clone(), pod], &["update data-web-0"]);
        check(&back, &[following], &["status web"]);
    }

    #[test]
    fn claims_belong_to_the_set_if_they_shall_go_with_it() {
        let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}});
        let set = set(1, policy);
        check(&set, &[claim(0, json!({})), pet(&set, 0)], &["update data-web-0"]);
        let Call::Create { object } = &plan_of(&set, &[]).steps[0].call else { panic!() };
        assert_eq!(object.owner_references()[0].uid, "u");
        let keeping = self::set(1, json!({}));
        let owned = with(object, json!({"metadata": {"uid": "c0", "resourceVersion": "1"}}));
        check(&keeping, &[owned, pet(&keeping, 0)], &["update data-web-0"]);
    }

    #[test]
    fn the_first_petsets_switch_holds_what_follows() {
        let set = set(2, json!({}));
        let held = with(&pet(&set, 0), json!({"metadata": {"annotations": {INITIALIZED: "false"}}}));
        check(&set, &[claim(0, json!({})), held], &["status web"]);
    }

    #[test]
    fn the_current_template_is_kept_for_those_below_a_partition() {
        let partition = json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 1}}}});
        let first = set(2, partition);
        let plan =
            plan_of(&first, &[claim(0, json!({})), pet(&first, 0), claim(1, json!({})), pet(&first, 1)]);
        let Call::Update { object: kept, part: Part::Main } = &plan.steps[0].call else { panic!("{plan:?}") };
        let current = Revisions::of(&first).update;
        let new_template = json!({
            "spec": {"template": {"spec": {"containers": [{"name": "new"}]}}},
            "status": {"currentRevision": current},
        });
        let updated = with(kept, new_template);
        let plan = plan_of(&updated, &[claim(0, json!({})), claim(1, json!({})), pet(&first, 1)]);
        let Call::Create { object: pod } = &plan.steps[0].call else { panic!("{plan:?}") };
        assert_eq!((pod.name(), pod.get_str("spec.containers.0.name")), ("web-0", Some("c")));
        assert_eq!(pod.label(REVISION_LABEL), Some(current.as_str()));
    }

    #[test]
    fn revisions_meet_when_the_roll_out_is_complete() {
        let first = set(1, json!({}));
        let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "new"}]}}},
            "status": {"currentRevision": Revisions::of(&first).update}});
        let updated = with(&first, change);
        let status = |pod: Object| {
            let plan = plan_of(&updated, &[claim(0, json!({})), pod]);
            let Call::Update { object, part: Part::Status } = &plan.steps[0].call else { panic!("{plan:?}") };
            object.0["status"].clone()
        };
        check(&updated, &[claim(0, json!({})), pet(&first, 0)], &["delete web-0"]);
        let done = status(pet(&updated, 0));
        assert_eq!(done["currentRevision"], done["updateRevision"]);
        assert_eq!((&done["readyReplicas"], &done["updatedReplicas"]), (&json!(1), &json!(1)));
        let unready = with(&pet(&updated, 0), json!({"status": {"conditions": []}}));
        let waiting = status(unready);
        assert_ne!(waiting["currentRevision"], waiting["updateRevision"]);
    }

    #[test]
    fn ordinals_are_read_strictly() {
        let set = set(1, json!({}));
        let check = |name: &str, expect: Option<u64>| assert_eq!(ordinal(&set, name), expect, "{name}");
        check("web-0", Some(0));
        check("web-10", Some(10));
        for odd in ["web-01", "web-", "web", "web-a", "web-+1", "web-0-0", "other-0", "web--1"] {
            check(odd, None);
        }
        assert_eq!(claim_ordinal(&set, "data-web-3"), Some(3));
        assert_eq!(claim_ordinal(&set, "log-web-3"), None);
    }
}
