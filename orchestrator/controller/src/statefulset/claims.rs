//! The claims of a set's identities.

use api::{Key, Object, OwnerReference};
use serde_json::json;

use super::order::Identity;
use crate::cache::Cache;
use crate::effect::Call;
use crate::kinds::{CLAIMS, PODS};
use crate::plan::{Note, Plan};
use crate::replicaset::{disown, own};

/// A claim that an identity needs.
#[derive(Debug)]
pub struct Claim<'a> {
    /// The name of its template, which is the volume's, too.
    pub template: &'a str,
    /// Its key: template, set and ordinal.
    pub key: Key,
    body: &'a serde_json::Value,
}

/// The claims of an ordinal.
pub fn of(set: &Object, ordinal: u64) -> Vec<Claim<'_>> {
    let claims = set.get_array("spec.volumeClaimTemplates").iter().filter_map(|body| {
        let template = body["metadata"]["name"].as_str()?;
        let name = format!("{template}-{}-{ordinal}", set.name());
        Some(Claim { template, key: Key::new(*CLAIMS, set.namespace(), name), body })
    });
    claims.collect()
}

/// The ordinal whose claim that is, if it is one of the set's.
pub fn claim_ordinal(set: &Object, name: &str) -> Option<u64> {
    set.get_array("spec.volumeClaimTemplates").iter().find_map(|body| {
        let rest = name.strip_prefix(body["metadata"]["name"].as_str()?)?.strip_prefix('-')?;
        super::ordinal(set, rest)
    })
}

/// Whether the claims of an ordinal are there.
pub fn identity(cache: &Cache, set: &Object, ordinal: u64) -> Identity {
    let mut identity = Identity::Free;
    for claim in of(set, ordinal) {
        match cache.get(&claim.key) {
            None => identity = Identity::NeedsClaims,
            Some(it) if it.is_deleting() || is_doomed(cache, set, it) => return Identity::ClaimsEnding,
            Some(_) => {}
        }
    }
    identity
}

/// Whether a claim follows a pod that is not there any more: the collector is about to delete it.
fn is_doomed(cache: &Cache, set: &Object, claim: &Object) -> bool {
    claim.owner_references().iter().any(|owner| is_pod_of(set, owner) && cache.by_uid(&owner.uid).is_none())
}

fn is_pod_of(set: &Object, owner: &OwnerReference) -> bool {
    owner.kind == PODS.kind && super::ordinal(set, &owner.name).is_some()
}

/// Creates the claims of an ordinal that are missing.
pub fn create(cache: &Cache, set: &Object, ordinal: u64, plan: &mut Plan) {
    for claim in of(set, ordinal).into_iter().filter(|claim| cache.get(&claim.key).is_none()) {
        let mut object = Object(json!({
            "apiVersion": CLAIMS.api_version(),
            "kind": CLAIMS.kind,
            "metadata": {"name": claim.key.name, "namespace": claim.key.namespace},
            "spec": claim.body["spec"],
        }));
        if let Some(annotations) = claim.body["metadata"].get("annotations") {
            object.set("metadata.annotations", annotations.clone());
        }
        let mut labels = claim.body["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        let selected = set.get("spec.selector.matchLabels").and_then(serde_json::Value::as_object);
        labels.extend(selected.cloned().unwrap_or_default());
        if !labels.is_empty() {
            object.set("metadata.labels", labels);
        }
        if is_deleted_with(set) {
            object.set("metadata.ownerReferences", json!([plain(set)]));
        }
        let of = format!("create Claim {} in StatefulSet {}", claim.key.name, set.name());
        plan.told(
            Call::Create { object },
            Note::normal(set, super::COMPONENT, "SuccessfulCreate", format!("{of} success")),
            Note::warning(set, super::COMPONENT, "FailedCreate", format!("{of} failed error: ")),
        );
    }
}

fn is_deleted_with(set: &Object) -> bool {
    set.get_str("spec.persistentVolumeClaimRetentionPolicy.whenDeleted") == Some("Delete")
}

fn is_deleted_when_scaled(set: &Object) -> bool {
    set.get_str("spec.persistentVolumeClaimRetentionPolicy.whenScaled") == Some("Delete")
}

/// An owner that does not manage: claims are the user's.
fn plain(owner: &Object) -> OwnerReference {
    OwnerReference { controller: false, block_owner_deletion: false, ..owner.as_controller_owner() }
}

/// Keeps claims the set's, or not, as its retention policy says now.
pub fn retain(cache: &Cache, set: &Object, plan: &mut Plan) {
    let owner = plain(set);
    for claim in cache.list_in(*CLAIMS, set.namespace()).filter(|claim| !claim.is_deleting()) {
        let Some(ordinal) = claim_ordinal(set, claim.name()) else { continue };
        let is_owned = claim.owner_references().iter().any(|it| it.uid == set.uid());
        match (is_owned, is_deleted_with(set)) {
            (false, true) => plan.call(own(claim, Some(&owner))),
            (true, false) => plan.call(disown(claim, set.uid())),
            _ => {
                // Scaled up again before the pod was deleted: its claim stays after all.
                let rules = super::rules(set);
                let is_wanted = ordinal >= rules.start && ordinal - rules.start < rules.replicas;
                let pods = claim.owner_references();
                let pod = pods.iter().find(|it| is_pod_of(set, it)).and_then(|it| cache.by_uid(&it.uid));
                let is_kept = is_wanted || !is_deleted_when_scaled(set);
                if let Some(pod) = pod.filter(|pod| is_kept && !pod.is_deleting()) {
                    plan.call(disown(claim, pod.uid()));
                }
            }
        }
    }
}

/// Before a surplus pod goes, its claims are made to follow it, if the set says so. True if that is still to be done.
pub fn follow(cache: &Cache, set: &Object, ordinal: u64, pod: &Object, plan: &mut Plan) -> bool {
    let rules = super::rules(set);
    let is_wanted = ordinal >= rules.start && ordinal - rules.start < rules.replicas;
    if is_wanted || !is_deleted_when_scaled(set) {
        return false;
    }
    let before = plan.steps.len();
    for claim in of(set, ordinal).iter().filter_map(|claim| cache.get(&claim.key)) {
        let is_owned = claim.owner_references().iter().any(|owner| owner.uid == pod.uid());
        if !is_owned && !claim.is_deleting() {
            plan.call(own(claim, Some(&plain(pod))));
        }
    }
    plan.steps.len() > before
}
