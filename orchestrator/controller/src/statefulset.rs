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

use api::{Key, Object, RESERVED_ORDINALS, Timestamp, parse_ordinals};
use jiff::SignedDuration;
use serde_json::{Value, json};

pub use claims::set_names as sets_of_claim;
pub use revision::set_of as set_of_revision;

use crate::effect::Call;
use crate::kinds::PODS;
use crate::plan::{Note, Plan};
use crate::pod::{self, Availability};
use crate::replicaset::{delete, own, write_status};
use crate::rules::{View, selector};
use claims::Claim;
use order::{Alive, Health, Identity, Pet, Rules, Step, Strategy, Template};
use revision::{REVISION_LABEL, Revisions};

const COMPONENT: &str = "statefulset-controller";
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";
/// The first PetSets' switch: `"false"` on a pod holds everything behind it.
const INITIALIZED: &str = "pod.alpha.kubernetes.io/initialized";
/// So long unready, and of a revision that is not wanted, a pod is not expected to come back by itself.
const BROKEN_AFTER_SECS: i64 = 10;

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
    let (rules, pods) = (rules(set), pods(view, set));
    if set.is_deleting() {
        let revision = |path: &str| set.get_str(path).unwrap_or_default().to_owned();
        let last = (&*revision("status.currentRevision"), &*revision("status.updateRevision"));
        tell_status(set, last, &pods, view, &mut plan);
        return plan;
    }
    adopt(view, set, &mut plan);
    if plan.is_empty() {
        claims::retain(view.cache, set, &rules, &mut plan);
    }
    if !plan.is_empty() {
        return plan;
    }
    let Some(revisions) = revision::look(view, set, &mut plan) else { return plan };
    let pets = pods.values().map(|pod| pet(set, &revisions, pod, view, &mut plan.wake)).collect();
    let of_set = Own { view, set, rules: &rules, revisions: &revisions };
    for step in order::order(&rules, &pets, &|ordinal| of_set.identity(ordinal)) {
        of_set.carry_out(step, &mut plan);
    }
    // As soon as it can be told: a claim may be gone in the moment its pod is.
    for ordinal in pods.keys().filter(|ordinal| rules.wants(**ordinal)) {
        claims::announce(view.cache, set, &of_set.claims(*ordinal), &mut plan);
    }
    if plan.is_empty() {
        let all = pods.values().copied();
        revision::forget(view, set, &revisions, all, &mut plan);
        tell_status(set, (&revisions.current, &revisions.update), &pods, view, &mut plan);
    }
    // Beside the rest: a claim that cannot grow holds up nobody.
    claims::grow(view.cache, set, &rules, &mut plan);
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
    let replicas = number("spec.replicas").unwrap_or(1);
    let strategy = match set.get_str("spec.updateStrategy.type") {
        Some("OnDelete") => Strategy::OnDelete,
        Some("Recreate") => Strategy::Recreate,
        _ => Strategy::Rolling {
            partition: number("spec.updateStrategy.rollingUpdate.partition").unwrap_or(0),
            max_unavailable: max_unavailable(
                set.get("spec.updateStrategy.rollingUpdate.maxUnavailable"),
                replicas,
            ),
        },
    };
    Rules {
        start: number("spec.ordinals.start").unwrap_or(0),
        replicas,
        // One that cannot be read was refused when it was written.
        reserved: set.annotation(RESERVED_ORDINALS).and_then(parse_ordinals).unwrap_or_default(),
        is_parallel: set.get_str("spec.podManagementPolicy") == Some("Parallel"),
        strategy,
    }
}

/// A number, or a percentage of the replicas rounded down; at least 1.
fn max_unavailable(value: Option<&Value>, replicas: u64) -> u64 {
    let number = match value {
        Some(Value::String(text)) => {
            let percent = text.strip_suffix('%').and_then(|number| number.parse::<u64>().ok());
            percent.map(|percent| replicas.saturating_mul(percent) / 100)
        }
        value => value.and_then(Value::as_u64),
    };
    number.unwrap_or(1).max(1)
}

fn pet(
    set: &Object,
    revisions: &Revisions,
    pod: &Object,
    view: &View<'_>,
    wake: &mut Option<Timestamp>,
) -> (u64, Pet) {
    let is_at = |revision: &str| pod.label(REVISION_LABEL) == Some(revision);
    let (is_updated, is_current) = (is_at(&revisions.update), is_at(&revisions.current));
    let pet = if pod.is_deleting() {
        Pet::Ending { is_updated }
    } else if pod::is_terminal(pod) {
        Pet::Ended { is_updated }
    } else {
        let (health, from) = health(set, pod, view.now);
        // When it counts as broken matters only to what may be replaced.
        if health == Health::Young || !is_updated || !is_current {
            sooner(wake, from);
        }
        let is_started = pod.get_str("status.phase") == Some("Running");
        Pet::Alive(Alive { is_updated, is_current, health, is_started })
    };
    (ordinal(set, pod.name()).unwrap_or(0), pet)
}

fn sooner(wake: &mut Option<Timestamp>, time: Option<Timestamp>) {
    *wake = (*wake).into_iter().chain(time).min();
}

/// How a pod does, and when time alone will change that.
fn health(set: &Object, pod: &Object, now: Timestamp) -> (Health, Option<Timestamp>) {
    let min_ready = set.get_i64("spec.minReadySeconds").unwrap_or(0);
    match pod::availability(pod, min_ready, now) {
        Availability::Available if pod.annotation(INITIALIZED) == Some("false") => (Health::Young, None),
        Availability::Available => (Health::Well, None),
        Availability::From(time) => (Health::Young, Some(time)),
        Availability::Unready => {
            let since = pod::unready_since(pod).or_else(|| pod.creation_timestamp()).unwrap_or(now);
            match since.saturating_add(SignedDuration::from_secs(BROKEN_AFTER_SECS)) {
                Ok(from) if from > now => (Health::Faltering, Some(from)),
                _ => (Health::Broken, None),
            }
        }
    }
}

/// A set, and what is known of it.
struct Own<'a> {
    view: &'a View<'a>,
    set: &'a Object,
    rules: &'a Rules,
    revisions: &'a Revisions,
}

impl Own<'_> {
    /// The pod of an ordinal, whoever's it is.
    fn pod(&self, ordinal: u64) -> Option<&Object> {
        self.view.cache.get(&pod_key(self.set, ordinal)).map(AsRef::as_ref)
    }

    /// The claims that the pod of an ordinal mounts, or that a new one will.
    fn claims(&self, ordinal: u64) -> Vec<Claim<'_>> {
        let of = |template| claims::of(self.set, self.revisions.of(template).1, ordinal);
        match self.pod(ordinal) {
            None => of(self.rules.template(ordinal)),
            Some(pod) => {
                let mut all = of(Template::Update);
                let before = of(Template::Current);
                all.extend(before.into_iter().filter(|claim| {
                    let update = self.revisions.of(Template::Update).1;
                    !update.iter().any(|template| template["metadata"]["name"] == claim.template)
                }));
                claims::mounted(all, pod)
            }
        }
    }

    /// What stands in the way of a pod.
    fn identity(&self, ordinal: u64) -> Identity {
        let is_ours = |pod: &Object| pod::manager(pod) == Some(self.set.uid());
        if self.pod(ordinal).is_some_and(|pod| !is_ours(pod)) {
            // Somebody else's pod, or one of a set of the same name before: never a second one.
            return Identity::Taken;
        }
        claims::identity(self.view.cache, self.set, &self.claims(ordinal))
    }

    fn carry_out(&self, step: Step, plan: &mut Plan) {
        let (cache, set) = (self.view.cache, self.set);
        match step {
            Step::Claims(ordinal) => {
                claims::create(cache, set, &self.claims(ordinal), self.pod(ordinal), plan);
            }
            Step::Forsake(ordinal) => claims::forsake(cache, set, &self.claims(ordinal), plan),
            Step::Await(ordinal) => claims::announce(cache, set, &self.claims(ordinal), plan),
            Step::Create(ordinal, template) => {
                let pod = self.new_pod(ordinal, template);
                let of = format!("create Pod {} in StatefulSet {}", pod.name(), set.name());
                plan.told(
                    Call::Create { object: pod },
                    Note::normal(set, COMPONENT, "SuccessfulCreate", format!("{of} successful")),
                    Note::warning(set, COMPONENT, "FailedCreate", format!("{of} failed error: ")),
                );
            }
            Step::Delete(ordinal) => {
                let Some(pod) = self.pod(ordinal) else { return };
                if claims::follow(cache, set, self.rules, ordinal, pod, plan) {
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
    fn new_pod(&self, ordinal: u64, template: Template) -> Object {
        let set = self.set;
        let (body, templates, revision) = self.revisions.of(template);
        let key = pod_key(set, ordinal);
        let mut pod = pod::from_template(body, &key, &set.as_controller_owner());
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
        let claims = claims::of(set, templates, ordinal);
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
}

fn tell_status(
    set: &Object,
    revisions: (&str, &str),
    pods: &BTreeMap<u64, &Object>,
    view: &View<'_>,
    plan: &mut Plan,
) {
    let status = status(set, revisions, pods, view.now, &mut plan.wake);
    if set.get("status") != Some(&status) {
        plan.call(write_status(set, status));
    }
}

fn status(
    set: &Object,
    (current, update): (&str, &str),
    pods: &BTreeMap<u64, &Object>,
    now: Timestamp,
    wake: &mut Option<Timestamp>,
) -> Value {
    let min_ready = set.get_i64("spec.minReadySeconds").unwrap_or(0);
    let live: Vec<&&Object> = pods.values().filter(|pod| pod::is_active(pod)).collect();
    let at = |revision: &str| live.iter().filter(|pod| pod.label(REVISION_LABEL) == Some(revision)).count();
    let mut available = 0;
    for pod in &live {
        match pod::availability(pod, min_ready, now) {
            Availability::Available => available += 1,
            Availability::From(time) => sooner(wake, Some(time)),
            Availability::Unready => {}
        }
    }
    let ready = live.iter().filter(|pod| pod::is_ready(pod)).count();
    let replicas = usize::try_from(set.get_i64("spec.replicas").unwrap_or(1)).unwrap_or(usize::MAX);
    let is_complete = at(update) == replicas && ready == replicas && pods.len() == replicas;
    let current = if is_complete { update } else { current };
    let mut status = json!({
        "observedGeneration": set.generation(),
        "replicas": pods.len(),
        "availableReplicas": available,
        "currentRevision": current,
        "updateRevision": update,
        "collisionCount": set.get_i64("status.collisionCount").unwrap_or(0),
    });
    let counts =
        [("readyReplicas", ready), ("currentReplicas", at(current)), ("updatedReplicas", at(update))];
    for (field, count) in counts {
        if count > 0 {
            status[field] = count.into();
        }
    }
    status
}

#[cfg(test)]
#[path = "statefulset/tests.rs"]
mod tests;
