//! Volumes: whose they are, and what becomes of them after.
//!
//! ```text
//!  Available ── claimRef, claim is there ──► Bound ── claim is gone ──► Released ── Retain: stays, for ever its
//!                                                                          │         old owner's
//!                                                                          └ Delete: deleted; the agent sweeps
//! ```
//! A Released volume is given to nobody: its claimRef still holds the old uid. Before it is called Released the store
//! is asked: `Delete` destroys data, and late news must not.

use api::{Key, Object, Part};
use serde_json::{Value, json};

use crate::claim::{HOST, of_volume};
use crate::effect::{Call, Propagation};
use crate::gc::without_finalizer;
use crate::kinds::{CLAIMS, VOLUMES};
use crate::plan::Plan;
use crate::replicaset::write_status;
use crate::rules::View;

/// Kubernetes' own: keeps a volume while it is bound.
const PROTECTION: &str = "kubernetes.io/pv-protection";

/// Looks at a volume.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(volume) = view.cache.get(key) else { return plan };
    let uid = volume.get_str("spec.claimRef.uid").filter(|uid| !uid.is_empty());
    let phase = match (of_volume(volume), uid) {
        (Some(claim), Some(uid)) => {
            if view.cache.by_uid(uid).is_some() {
                "Bound"
            } else if view.cache.is_gone(uid) {
                "Released"
            } else {
                plan.call(Call::Read { key: claim, uid: Some(uid.into()) });
                return plan;
            }
        }
        _ => "Available",
    };
    if volume.is_deleting() {
        if phase != "Bound" && volume.finalizers().contains(&PROTECTION) {
            plan.call(without_finalizer(volume, PROTECTION));
        }
    } else if volume.get_str("status.phase") != Some(phase) {
        let mut status = volume.get("status").cloned().unwrap_or_else(|| json!({}));
        status["phase"] = phase.into();
        plan.call(write_status(volume, status));
    } else if phase == "Released" && volume.get_str("spec.persistentVolumeReclaimPolicy") == Some("Delete") {
        plan.call(Call::Delete {
            key: key.clone(),
            uid: volume.uid().into(),
            propagation: Propagation::Background,
        });
    }
    plan
}

/// The update that makes a free volume the claim's.
pub fn give(volume: &Object, claim: &Object) -> Call {
    let mut object = volume.clone();
    object.set("spec.claimRef", claim_ref(claim));
    if !object.finalizers().contains(&PROTECTION) {
        let mut finalizers = object.get_array("metadata.finalizers").to_vec();
        finalizers.push(PROTECTION.into());
        object.set("metadata.finalizers", finalizers);
    }
    Call::Update { object, part: Part::Main }
}

/// A new volume on the host for a claim. Both its name and the directory's come from the claim's uid, so that a
/// repetition collides and nobody else's data is found there.
pub fn provision(claim: &Object, class: &Object) -> Object {
    let name = format!("pvc-{}", claim.uid());
    let mut volume = Object(json!({
        "apiVersion": VOLUMES.api_version(),
        "kind": VOLUMES.kind,
        "metadata": {
            "name": name,
            "annotations": {"pv.kubernetes.io/provisioned-by": HOST},
            "finalizers": [PROTECTION],
        },
        "spec": {
            "capacity": {"storage": claim.get("spec.resources.requests.storage").cloned().unwrap_or("0".into())},
            "accessModes": claim.0["spec"]["accessModes"],
            "claimRef": claim_ref(claim),
            "persistentVolumeReclaimPolicy": class.get_str("reclaimPolicy").unwrap_or("Delete"),
            "storageClassName": class.name(),
            "volumeMode": "Filesystem",
            "csi": {"driver": HOST, "volumeHandle": name},
        },
    }));
    if let Some(parameters) =
        class.get("parameters").filter(|it| it.as_object().is_some_and(|it| !it.is_empty()))
    {
        volume.set("spec.csi.volumeAttributes", parameters.clone());
    }
    if let Some(Value::Object(labels)) = claim.get("spec.selector.matchLabels") {
        volume.set("metadata.labels", labels.clone());
    }
    volume
}

fn claim_ref(claim: &Object) -> Value {
    json!({
        "apiVersion": CLAIMS.api_version(),
        "kind": CLAIMS.kind,
        "namespace": claim.namespace(),
        "name": claim.name(),
        "uid": claim.uid(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Assumed;
    use crate::testing::{cache, now, summary, with};

    fn volume(patch: Value) -> Object {
        let base = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": "a", "uid": "a", "resourceVersion": "1", "finalizers": [PROTECTION]},
            "spec": {"persistentVolumeReclaimPolicy": "Delete",
                "claimRef": {"namespace": "n", "name": "data", "uid": "c"}},
            "status": {"phase": "Bound"},
        });
        with(&Object(base), patch)
    }

    fn claim(uid: &str) -> Object {
        Object(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": "n", "uid": uid, "resourceVersion": "1"}}))
    }

    #[track_caller]
    fn check(volume: &Object, claims: &[Object], gone: &[&str], expect: &[&str]) -> Plan {
        let mut cache = cache(claims.iter().cloned().chain([volume.clone()]));
        gone.iter().for_each(|uid| cache.mark_gone(uid));
        let assumed = Assumed::new();
        let plan = super::look(&View { cache: &cache, assumed: &assumed, now: now() }, &volume.key());
        assert_eq!(summary(&plan), expect);
        plan
    }

    #[test]
    fn it_is_bound_while_its_claim_is_there() {
        check(&volume(json!({})), &[claim("c")], &[], &[]);
        check(&volume(json!({"status": {"phase": "Pending"}})), &[claim("c")], &[], &["status a"]);
    }

    #[test]
    fn before_it_is_released_the_store_is_asked() {
        check(&volume(json!({})), &[], &[], &["read data"]);
        check(&volume(json!({})), &[claim("another")], &[], &["read data"]);
    }

    #[test]
    fn it_is_released_then_reclaimed_as_it_says() {
        let plan = check(&volume(json!({})), &[], &["c"], &["status a"]);
        let Call::Update { object: released, .. } = &plan.steps[0].call else { panic!() };
        assert_eq!(released.get_str("status.phase"), Some("Released"));
        check(released, &[], &["c"], &["delete a"]);
        let kept = with(released, json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}));
        check(&kept, &[], &["c"], &[]);
    }

    #[test]
    fn one_that_is_bound_is_not_let_go() {
        let going = volume(json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        check(&going, &[claim("c")], &[], &[]);
        check(&going, &[], &["c"], &["update a"]);
    }

    #[test]
    fn one_of_nobody_is_available() {
        let free = volume(json!({"spec": {"claimRef": null}, "status": null}));
        let plan = check(&free, &[], &[], &["status a"]);
        let Call::Update { object, .. } = &plan.steps[0].call else { panic!() };
        assert_eq!(object.get_str("status.phase"), Some("Available"));
    }
}
