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
    let ours = owned.filter(|pod| pod.controller_owner().is_some_and(|owner| owner.uid == set.uid()));
    ours.filter_map(|pod| Some((ordinal(set, pod.name())?, pod.as_ref()))).collect()
}

/// Pods with our names and labels that nobody manages become ours.
fn adopt(view: &View<'_>, set: &Object, plan: &mut Plan) {
    let Some(selector) = selector(set) else { return };
    let owner = set.as_controller_owner();
    for pod in view.cache.list_in(*PODS, set.namespace()) {
        let is_named = ordinal(set, pod.name()).is_some();
        // One that has ended, too: it has the name, and is replaced.
        if is_named
            && pod.controller_owner().is_none()
            && !pod.is_deleting()
            && selector.matches(pod.labels())
        {
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
    let is_ours = |pod: &Object| pod.controller_owner().is_some_and(|owner| owner.uid == set.uid());
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
