//! The claim binder: a PersistentVolume for each PersistentVolumeClaim.
//!
//! ```text
//!  claim ── volume with our uid in claimRef ──► spec.volumeName ──► status Bound
//!             ▲ a free one that fits, taken by one update at its resource version
//!             ▲ or a new one of class `podyard.io/host`, named after the claim's uid
//! ```
//! The volume's claimRef is the lock: it holds the claim's uid, and only one update of a free volume can win. Storage
//! therefore never has two owners, and a claim deleted and made again is another owner.
//!
//! Source: Kubernetes documentation, "Persistent Volumes".

use api::quantity::parse_bytes;
use api::{Key, LabelSelector, Object, Part};
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::effect::Call;
use crate::gc::without_finalizer;
use crate::kinds::{CLAIMS, CLASSES, PODS, VOLUMES};
use crate::plan::{Note, Plan};
use crate::pod;
use crate::replicaset::write_status;
use crate::rules::View;
use crate::volume;

const COMPONENT: &str = "persistentvolume-controller";
/// The provisioner of volumes on the host, and the driver name in them.
pub const HOST: &str = "podyard.io/host";
/// Kubernetes' own: keeps a claim while pods use it.
const PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Kubernetes' own: the binder has given the claim its volume; one that people name is theirs to make.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// The claim a volume is for, if it says.
pub fn of_volume(volume: &Object) -> Option<Key> {
    let name = volume.get_str("spec.claimRef.name")?;
    Some(Key::new(*CLAIMS, volume.get_str("spec.claimRef.namespace").unwrap_or(""), name))
}

/// Claims that have no volume yet.
pub fn unbound(cache: &Cache) -> impl Iterator<Item = Key> {
    cache.list(*CLAIMS).filter(|claim| claim.get_str("spec.volumeName").is_none()).map(|claim| claim.key())
}

/// Looks at a claim.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(claim) = view.cache.get(key) else { return plan };
    if claim.is_deleting() {
        let is_protected = claim.finalizers().contains(&PROTECTION);
        if is_protected && !is_used(view.cache, key) {
            plan.call(without_finalizer(claim, PROTECTION));
        }
        return plan;
    }
    match claim.get_str("spec.volumeName").filter(|name| !name.is_empty()) {
        Some(name) => confirm(view, claim, name, &mut plan),
        None => bind(view, claim, &mut plan),
    }
    plan
}

/// Whether a pod that may still run mounts it.
fn is_used(cache: &Cache, key: &Key) -> bool {
    let mut pods = cache.list_in(*PODS, &key.namespace).filter(|pod| !pod::is_terminal(pod));
    pods.any(|pod| pod::claims(pod).any(|name| name == key.name))
}

/// A claim that names its volume: the volume must agree.
fn confirm(view: &View<'_>, claim: &Object, name: &str, plan: &mut Plan) {
    let key = Key::new(*VOLUMES, "", name);
    let Some(volume) = view.cache.get(&key) else {
        // Bound once, and the volume is gone: say so, and touch nothing.
        if was_bound(claim) {
            plan.call(write_status(claim, json!({"phase": "Lost"})));
        }
        return;
    };
    if is_reserved_for(volume, claim) {
        if volume.get_str("spec.claimRef.uid") != Some(claim.uid()) {
            plan.call(volume::give(volume, claim));
        } else if !claim.finalizers().contains(&PROTECTION) {
            plan.call(Call::Update { object: protected(claim.clone()), part: Part::Main });
        } else {
            let mut status = json!({
                "phase": "Bound",
                "accessModes": volume.0["spec"]["accessModes"],
                "capacity": volume.0["spec"]["capacity"],
            });
            let conditions = conditions(claim, volume, view.now);
            if !conditions.is_empty() {
                status["conditions"] = conditions.into();
            }
            if claim.get("status") != Some(&status) {
                plan.call(write_status(claim, status));
            }
        }
    } else if of_volume(volume).is_none() && fits(claim, volume, &class_name(view.cache, claim)) {
        plan.call(volume::give(volume, claim));
    } else if was_bound(claim) {
        plan.call(write_status(claim, json!({"phase": "Lost"})));
    }
}

/// Whether a claim has had its volume, though its status may not say so yet; and is not known to have lost it.
fn was_bound(claim: &Object) -> bool {
    match claim.get_str("status.phase") {
        Some("Bound") => true,
        Some("Lost") => false,
        _ => claim.annotation(BIND_COMPLETED) == Some("yes"),
    }
}

/// The conditions of a bound claim: `Resizing` from when it asks for more than its volume has until it has it, and what
/// whoever makes the volume larger says meanwhile. Source: Kubernetes API reference, PersistentVolumeClaimCondition.
fn conditions(claim: &Object, volume: &Object, now: jiff::Timestamp) -> Vec<Value> {
    const OF_GROWTH: [&str; 2] = ["Resizing", "FileSystemResizePending"];
    let mut conditions = claim.get_array("status.conditions").to_vec();
    let is_dynamic = volume.get_str("spec.csi.driver") == Some(HOST);
    if is_dynamic && wanted(claim) > capacity(volume) {
        if !conditions.iter().any(|condition| condition["type"] == OF_GROWTH[0]) {
            let now = api::time::seconds(now);
            conditions.push(json!({"type": OF_GROWTH[0], "status": "True", "lastTransitionTime": now}));
        }
    } else {
        conditions.retain(|condition| !OF_GROWTH.iter().any(|it| condition["type"] == **it));
    }
    conditions
}

/// A claim that names no volume: one that is its own, else one that fits, else a new one.
fn bind(view: &View<'_>, claim: &Object, plan: &mut Plan) {
    let class = class_name(view.cache, claim);
    let volumes = || view.cache.list(*VOLUMES).filter(|volume| !volume.is_deleting());
    let own = volumes().filter(|volume| is_reserved_for(volume, claim));
    // The one that has our uid already, before one that is only reserved by name.
    if let Some(volume) = own.min_by_key(|volume| volume.get_str("spec.claimRef.uid") != Some(claim.uid())) {
        if volume.get_str("spec.claimRef.uid") != Some(claim.uid()) {
            return plan.call(volume::give(volume, claim));
        }
        let mut object = protected(claim.clone());
        object.set("spec.volumeName", volume.name());
        object.set("metadata.annotations", annotated(claim, BIND_COMPLETED, "yes"));
        return plan.call(Call::Update { object, part: Part::Main });
    }
    let free = volumes().filter(|volume| of_volume(volume).is_none() && fits(claim, volume, &class));
    if let Some(volume) = free.min_by_key(|volume| (capacity(volume), volume.name().to_owned())) {
        return plan.call(volume::give(volume, claim));
    }
    let class = Key::new(*CLASSES, "", class);
    match view.cache.get(&class).filter(|class| class.get_str("provisioner") == Some(HOST)) {
        Some(class) => {
            let volume = volume::provision(claim, class);
            let done = format!("Successfully provisioned volume {}", volume.name());
            plan.told(
                Call::Create { object: volume },
                Note::normal(claim, COMPONENT, "ProvisioningSucceeded", done),
                Note::warning(claim, COMPONENT, "ProvisioningFailed", "failed to provision volume: ".into()),
            );
        }
        None => plan.notes.push(Note::normal(
            claim,
            COMPONENT,
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class that makes them is set"
                .into(),
        )),
    }
    if claim.get_str("status.phase").is_none() {
        plan.call(write_status(claim, json!({"phase": "Pending"})));
    }
}

fn protected(mut claim: Object) -> Object {
    if !claim.finalizers().contains(&PROTECTION) {
        let mut finalizers = claim.get_array("metadata.finalizers").to_vec();
        finalizers.push(PROTECTION.into());
        claim.set("metadata.finalizers", finalizers);
    }
    claim
}

fn annotated(object: &Object, name: &str, value: &str) -> Value {
    let mut annotations = object.annotations().clone();
    annotations.insert(name.into(), value.into());
    Value::Object(annotations)
}

/// Whether a volume is for this claim: by uid, or, if it has none, by name.
fn is_reserved_for(volume: &Object, claim: &Object) -> bool {
    match volume.get_str("spec.claimRef.uid").filter(|uid| !uid.is_empty()) {
        Some(uid) => uid == claim.uid(),
        None => of_volume(volume).is_some_and(|key| key == claim.key()),
    }
}

/// The class asked for; the default one if none was. The empty name asks for volumes made by hand.
fn class_name(cache: &Cache, claim: &Object) -> String {
    if let Some(class) = claim.get_str("spec.storageClassName") {
        return class.into();
    }
    let is_default = |class: &&std::sync::Arc<Object>| class.annotation(DEFAULT_CLASS) == Some("true");
    cache.list(*CLASSES).find(is_default).map(|class| class.name().into()).unwrap_or_default()
}

fn capacity(volume: &Object) -> u64 {
    volume.get_str("spec.capacity.storage").and_then(|text| parse_bytes(text).ok()).unwrap_or(0)
}

fn wanted(claim: &Object) -> u64 {
    claim.get_str("spec.resources.requests.storage").and_then(|text| parse_bytes(text).ok()).unwrap_or(0)
}

/// Whether a volume gives what a claim asks for.
fn fits(claim: &Object, volume: &Object, class: &str) -> bool {
    let is_large = wanted(claim) <= capacity(volume);
    let modes = volume.get_array("spec.accessModes");
    let is_accessible = claim.get_array("spec.accessModes").iter().all(|mode| modes.contains(mode));
    let is_class = volume.get_str("spec.storageClassName").unwrap_or("") == class;
    let mode = |object: &Object| object.get_str("spec.volumeMode").unwrap_or("Filesystem").to_owned();
    let selector = claim.get("spec.selector").map(LabelSelector::from_spec);
    let is_selected = match selector {
        None => true,
        Some(Ok(selector)) => selector.matches(volume.labels()),
        Some(Err(_)) => false,
    };
    is_large && is_accessible && is_class && is_selected && mode(claim) == mode(volume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{look, pod, summary, with};

    pub(super) fn claim(patch: Value) -> Object {
        let base = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": "n", "uid": "c", "resourceVersion": "1",
                "finalizers": [PROTECTION]},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
                "volumeMode": "Filesystem"},
            "status": {"phase": "Pending"},
        });
        with(&Object(base), patch)
    }

    fn volume(name: &str, patch: Value) -> Object {
        let base = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": "/x"}, "volumeMode": "Filesystem"},
        });
        with(&Object(base), patch)
    }

    fn class(name: &str, is_default: bool) -> Object {
        Object(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": HOST,
            "reclaimPolicy": "Delete",
            "metadata": {"name": name, "uid": name, "resourceVersion": "1",
                "annotations": {DEFAULT_CLASS: is_default.to_string()}},
        }))
    }

    fn of(uid: &str) -> Value {
        json!({"spec": {"claimRef": {"namespace": "n", "name": "data", "uid": uid}}})
    }

    #[track_caller]
    fn check(claim: Object, others: &[Object], expect: &[&str]) -> Plan {
        let plan = look(super::look, &claim.key(), others.iter().cloned().chain([claim.clone()]));
        assert_eq!(summary(&plan), expect);
        plan
    }

    #[test]
    fn a_volume_is_made_under_a_name_from_the_uid() {
        let plan = check(claim(json!({})), &[class("host", true)], &["create pvc-c"]);
        let Call::Create { object } = &plan.steps[0].call else { panic!() };
        assert_eq!(object.get_str("spec.csi.volumeHandle"), Some("pvc-c"));
        assert_eq!(object.get_str("spec.claimRef.uid"), Some("c"));
        assert_eq!(object.get_str("spec.persistentVolumeReclaimPolicy"), Some("Delete"));
    }

    #[test]
    fn no_class_means_the_default_one_and_the_empty_class_means_by_hand() {
        check(claim(json!({})), &[class("host", false)], &[]);
        let by_hand = claim(json!({"spec": {"storageClassName": ""}}));
        assert_eq!(check(by_hand, &[class("host", true)], &[]).notes.len(), 1);
        let named = claim(json!({"spec": {"storageClassName": "other"}}));
        check(named.clone(), &[class("other", false), class("host", true)], &["create pvc-c"]);
        check(named, &[class("host", true)], &[]);
    }

    #[test]
    fn the_smallest_free_volume_that_fits_is_taken() {
        let large = volume("a", json!({"spec": {"capacity": {"storage": "9Gi"}}}));
        let fitting = volume("b", json!({}));
        check(claim(json!({})), &[large.clone(), fitting], &["update b"]);
        check(claim(json!({})), &[large], &["update a"]);
    }

    #[test]
    fn a_volume_must_fit() {
        for patch in [
            json!({"spec": {"capacity": {"storage": "1Mi"}}}),
            json!({"spec": {"accessModes": ["ReadOnlyMany"]}}),
            json!({"spec": {"storageClassName": "other"}}),
            json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}),
        ] {
            check(claim(json!({})), &[volume("a", patch)], &[]);
        }
        let choosy = claim(json!({"spec": {"selector": {"matchLabels": {"disk": "ssd"}}}}));
        check(choosy.clone(), &[volume("a", json!({}))], &[]);
        check(choosy, &[volume("a", json!({"metadata": {"labels": {"disk": "ssd"}}}))], &["update a"]);
    }

    #[test]
    fn a_volume_of_another_claim_is_never_taken_not_even_of_one_of_that_name_before() {
        check(claim(json!({})), &[volume("a", of("before"))], &[]);
        let released = with(&volume("a", of("before")), json!({"status": {"phase": "Released"}}));
        check(claim(json!({})), std::slice::from_ref(&released), &[]);
        let naming = claim(json!({"spec": {"volumeName": "a"}}));
        check(naming, &[released], &[]);
    }

    #[test]
    fn binding_goes_volume_claim_status() {
        let reserved = json!({"spec": {"claimRef": {"namespace": "n", "name": "data"}}});
        check(claim(json!({})), &[volume("a", reserved)], &["update a"]);
        let ours = volume("a", of("c"));
        check(claim(json!({})), std::slice::from_ref(&ours), &["update data"]);
        let named = claim(json!({"spec": {"volumeName": "a"}}));
        let plan = check(named, std::slice::from_ref(&ours), &["status data"]);
        let Call::Update { object, .. } = &plan.steps[0].call else { panic!() };
        check(object.clone(), &[ours], &[]);
    }

    #[test]
    fn a_claim_that_asks_for_more_says_so_until_it_has_it() {
        let spec = json!({"csi": {"driver": HOST, "volumeHandle": "a"}, "hostPath": null});
        let small = with(&volume("a", of("c")), json!({"spec": spec}));
        let grown =
            claim(json!({"spec": {"volumeName": "a", "resources": {"requests": {"storage": "2Gi"}}}}));
        let plan = check(grown, std::slice::from_ref(&small), &["status data"]);
        let Call::Update { object, .. } = &plan.steps[0].call else { panic!() };
        assert_eq!(object.get_str("status.capacity.storage"), Some("1Gi"));
        assert_eq!(object.get_str("status.conditions.0.type"), Some("Resizing"));
        check(object.clone(), std::slice::from_ref(&small), &[]);
        let pending = json!({"type": "FileSystemResizePending", "status": "True"});
        let waiting =
            with(object, json!({"status": {"conditions": [object.0["status"]["conditions"][0], pending]}}));
        check(waiting.clone(), std::slice::from_ref(&small), &[]);
        let large = with(&small, json!({"spec": {"capacity": {"storage": "2Gi"}}}));
        let plan = check(waiting, &[large], &["status data"]);
        let Call::Update { object, .. } = &plan.steps[0].call else { panic!() };
        assert_eq!(object.get_str("status.capacity.storage"), Some("2Gi"));
        assert_eq!(object.get("status.conditions"), None);
    }

    #[test]
    fn a_claim_that_names_a_free_volume_gets_it() {
        check(claim(json!({"spec": {"volumeName": "a"}})), &[volume("a", json!({}))], &["update a"]);
    }

    #[test]
    fn a_claim_whose_volume_is_gone_is_lost() {
        let bound = claim(json!({"spec": {"volumeName": "a"}, "status": {"phase": "Bound"}}));
        let plan = check(bound, &[], &["status data"]);
        let Call::Update { object, .. } = &plan.steps[0].call else { panic!() };
        assert_eq!(object.get_str("status.phase"), Some("Lost"));
        // It went before the claim's status told of it. One that people have named may still come.
        let named = claim(json!({"spec": {"volumeName": "a"}}));
        check(named.clone(), &[], &[]);
        let completed = with(&named, json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}}));
        check(completed.clone(), &[], &["status data"]);
        check(with(&completed, json!({"status": {"phase": "Lost"}})), &[], &[]);
    }

    #[test]
    fn a_claim_stays_while_a_pod_may_use_it() {
        let going = claim(json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        let user = pod(
            "p",
            json!({"spec": {"volumes": [
            {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}}),
        );
        check(going.clone(), std::slice::from_ref(&user), &[]);
        check(going.clone(), &[with(&user, json!({"status": {"phase": "Succeeded"}}))], &["update data"]);
        check(going, &[], &["update data"]);
    }
}
