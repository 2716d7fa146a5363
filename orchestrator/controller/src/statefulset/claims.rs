//! The claims of a set's identities.
//!
//! ```text
//!  template ──► claim data-web-0 ──► volume
//!    larger       grows                        one that is not there, or whose volume is gone, is made again
//!    new          made before the pet's next start
//!    removed      stays: it is the user's
//! ```

use std::collections::BTreeSet;

use api::quantity::parse_bytes;
use api::{Key, Object, OwnerReference, Part};
use serde_json::{Value, json};

use super::order::{Identity, Rules};
use crate::cache::Cache;
use crate::effect::{Call, Propagation};
use crate::kinds::{CLAIMS, CLASSES, PODS, VOLUMES};
use crate::plan::{Note, Plan};
use crate::pod;
use crate::replicaset::{disown, own};

/// What a claim asks for.
pub const SIZE: &str = "spec.resources.requests.storage";

/// A claim that an identity needs.
#[derive(Debug)]
pub struct Claim<'a> {
    /// The name of its template, which is the volume's, too.
    pub template: &'a str,
    /// Its key: template, set and ordinal.
    pub key: Key,
    body: &'a Value,
}

/// The claims of an ordinal, from claim templates.
pub fn of<'a>(set: &Object, templates: &'a [Value], ordinal: u64) -> Vec<Claim<'a>> {
    let claims = templates.iter().filter_map(|body| {
        let template = body["metadata"]["name"].as_str()?;
        let name = format!("{template}-{}-{ordinal}", set.name());
        Some(Claim { template, key: Key::new(*CLAIMS, set.namespace(), name), body })
    });
    claims.collect()
}

/// Those of the claims that a pod mounts.
pub fn mounted<'a>(claims: Vec<Claim<'a>>, pod: &Object) -> Vec<Claim<'a>> {
    let mounts: BTreeSet<&str> = pod::claims(pod).collect();
    claims.into_iter().filter(|claim| mounts.contains(claim.key.name.as_str())).collect()
}

/// The set whose claim that may be, by its name.
pub fn set_names(claim: &str) -> impl Iterator<Item = &str> {
    // Template, set and ordinal have dashes between them, and may have some inside.
    let set = claim.rsplit_once('-').map_or("", |(set, _)| set);
    set.match_indices('-').map(move |(at, _)| &set[at + 1..])
}

/// The template and the ordinal of a claim, if it is of one of the set's templates.
fn template_of<'a>(set: &'a Object, name: &str) -> Option<(&'a Value, u64)> {
    set.get_array("spec.volumeClaimTemplates").iter().find_map(|body| {
        let rest = name.strip_prefix(body["metadata"]["name"].as_str()?)?.strip_prefix('-')?;
        Some((body, super::ordinal(set, rest)?))
    })
}

/// What is with the claims of an identity.
pub fn identity(cache: &Cache, set: &Object, claims: &[Claim<'_>]) -> Identity {
    let mut identity = Identity::Free;
    for claim in claims {
        match cache.get(&claim.key) {
            Some(it) if it.is_deleting() || is_doomed(cache, set, it) => return Identity::ClaimsEnding,
            Some(it) if is_lost(it) => identity = Identity::ClaimsLost,
            None if identity == Identity::Free => identity = Identity::NeedsClaims,
            _ => {}
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

fn is_lost(claim: &Object) -> bool {
    claim.get_str("status.phase") == Some("Lost")
}

/// Creates the claims that are missing. Under a pod that waits for them they were there before: their data is new.
pub fn create(cache: &Cache, set: &Object, claims: &[Claim<'_>], pod: Option<&Object>, plan: &mut Plan) {
    for claim in claims.iter().filter(|claim| cache.get(&claim.key).is_none()) {
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
        let selected = set.get("spec.selector.matchLabels").and_then(Value::as_object);
        labels.extend(selected.cloned().unwrap_or_default());
        if !labels.is_empty() {
            object.set("metadata.labels", labels);
        }
        if is_deleted_with(set) {
            object.set("metadata.ownerReferences", json!([plain(set)]));
        }
        let of = format!("create Claim {} in StatefulSet {}", claim.key.name, set.name());
        let note = match pod {
            None => Note::normal(set, super::COMPONENT, "SuccessfulCreate", format!("{of} success")),
            Some(pod) => lost(set, claim, pod.uid(), "was missing under its pod and is made again"),
        };
        plan.told(
            Call::Create { object },
            note,
            Note::warning(set, super::COMPONENT, "FailedCreate", format!("{of} failed error: ")),
        );
    }
}

/// Tells that what a claim held is not what the next incarnation finds.
fn lost(set: &Object, claim: &Claim<'_>, uid: &str, why: &str) -> Note {
    let name = &claim.key.name;
    let pet = name.strip_prefix(claim.template).and_then(|rest| rest.strip_prefix('-')).unwrap_or(name);
    let text = format!("Claim {name} of pet {pet} ({uid}) {why}: the data of the new one is new");
    Note::warning(set, super::COMPONENT, "ClaimLost", text)
}

/// Tells of the claims that are on their way out under a pet.
pub fn announce(cache: &Cache, set: &Object, claims: &[Claim<'_>], plan: &mut Plan) {
    for claim in claims {
        let Some(object) = cache.get(&claim.key) else { continue };
        if object.is_deleting() || is_doomed(cache, set, object) {
            plan.notes.push(lost(set, claim, object.uid(), "is being deleted"));
        }
    }
}

/// Deletes the claims whose volume is gone for good, once the store has said so: not being known is not enough.
pub fn forsake(cache: &Cache, set: &Object, claims: &[Claim<'_>], plan: &mut Plan) {
    for claim in claims {
        let Some(object) = cache.get(&claim.key).filter(|it| is_lost(it) && !it.is_deleting()) else {
            continue;
        };
        let name = object.get_str("spec.volumeName").unwrap_or_default();
        let volume = Key::new(*VOLUMES, "", name);
        match cache.get(&volume) {
            // The binder is about to see that it is the claim's after all.
            Some(volume) if volume.get_str("spec.claimRef.uid") == Some(object.uid()) => {}
            None if !cache.is_absent(&volume) => plan.call(Call::Read { key: volume, uid: None }),
            _ => plan.told(
                Call::Delete {
                    key: object.key(),
                    uid: object.uid().into(),
                    propagation: Propagation::Background,
                },
                lost(set, claim, object.uid(), &format!("has lost its volume {name} and is replaced")),
                Note::warning(
                    set,
                    super::COMPONENT,
                    "FailedDelete",
                    format!("delete lost Claim {} failed error: ", object.name()),
                ),
            ),
        }
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
pub fn retain(cache: &Cache, set: &Object, rules: &Rules, plan: &mut Plan) {
    let owner = plain(set);
    for claim in cache.list_in(*CLAIMS, set.namespace()).filter(|claim| !claim.is_deleting()) {
        let ordinal = template_of(set, claim.name()).map(|(_, ordinal)| ordinal);
        let is_owned = claim.owner_references().iter().any(|it| it.uid == set.uid());
        match (is_owned, ordinal) {
            // Its template was removed: it is nobody's but the user's.
            (true, None) => plan.call(disown(claim, set.uid())),
            (false, None) => {}
            (true, Some(_)) if !is_deleted_with(set) => plan.call(disown(claim, set.uid())),
            (false, Some(_)) if is_deleted_with(set) => plan.call(own(claim, Some(&owner))),
            (_, Some(ordinal)) => {
                // Scaled up again before the pod was deleted: its claim stays after all.
                let pods = claim.owner_references();
                let pod = pods.iter().find(|it| is_pod_of(set, it)).and_then(|it| cache.by_uid(&it.uid));
                let is_kept = rules.wants(ordinal) || !is_deleted_when_scaled(set);
                if let Some(pod) = pod.filter(|pod| is_kept && !pod.is_deleting()) {
                    plan.call(disown(claim, pod.uid()));
                }
            }
        }
    }
}

/// Before a surplus pod goes, its claims are made to follow it, if the set says so. True if that is still to be done.
pub fn follow(
    cache: &Cache,
    set: &Object,
    rules: &Rules,
    ordinal: u64,
    pod: &Object,
    plan: &mut Plan,
) -> bool {
    if rules.wants(ordinal) || !is_deleted_when_scaled(set) {
        return false;
    }
    let before = plan.steps.len();
    let claims = of(set, set.get_array("spec.volumeClaimTemplates"), ordinal);
    for claim in claims.iter().filter_map(|claim| cache.get(&claim.key)) {
        let is_owned = claim.owner_references().iter().any(|owner| owner.uid == pod.uid());
        if !is_owned && !claim.is_deleting() {
            plan.call(own(claim, Some(&plain(pod))));
        }
    }
    plan.steps.len() > before
}

/// Makes the claims of the pets as large as their templates have become. Those that are not bound yet must wait.
pub fn grow(cache: &Cache, set: &Object, rules: &Rules, plan: &mut Plan) {
    for claim in cache.list_in(*CLAIMS, set.namespace()).filter(|claim| !claim.is_deleting()) {
        let Some((template, ordinal)) = template_of(set, claim.name()) else { continue };
        let Some(wanted) = template["spec"]["resources"]["requests"]["storage"].as_str() else { continue };
        let bytes = |text: &str| parse_bytes(text).ok();
        let is_small = match claim.get_str(SIZE) {
            Some(size) => bytes(size) < bytes(wanted),
            None => false,
        };
        if is_small && rules.wants(ordinal) && claim.get_str("status.phase") == Some("Bound") {
            let class = claim.get_str("spec.storageClassName").unwrap_or_default();
            let known = cache.get(&Key::new(*CLASSES, "", class));
            if known.is_none_or(|class| class.get_bool("allowVolumeExpansion") != Some(true)) {
                let text = format!(
                    "Claim {} cannot grow to {wanted}: storage class {class:?} does not say allowVolumeExpansion: true",
                    claim.name()
                );
                plan.notes.push(Note::warning(set, super::COMPONENT, "ClaimGrowthFailed", text));
                continue;
            }
            let mut object = Object::clone(claim);
            object.set(SIZE, wanted);
            let text = format!("Claim {} grows to {wanted}", claim.name());
            plan.told(
                Call::Update { object, part: Part::Main },
                Note::normal(set, super::COMPONENT, "ClaimGrows", text),
                Note::warning(
                    set,
                    super::COMPONENT,
                    "ClaimGrowthFailed",
                    format!("grow Claim {} to {wanted} failed error: ", claim.name()),
                ),
            );
        }
    }
}
