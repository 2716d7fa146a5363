//! Revisions: which template a pod was made from.
//!
//! Each template a set has had is kept in a ControllerRevision of its own, named by what it holds, so that the same
//! template is the same revision: going back to one makes it the newest again. `status.updateRevision` is the set's
//! own, `currentRevision` the one rolled out before; they meet when a roll-out is complete.
//!
//! A revision's data is the patch that brings it back: `kubectl rollout undo` sends it as it is. Claim templates are
//! no part of it, for a claim cannot go back: which there were, and how, is in an annotation, so that a pod of a
//! revision gets that revision's claims, and a new claim template is a new revision, to be rolled out.
//!
//! Source: apps/v1 ControllerRevision; Kubernetes documentation, "StatefulSet Basics", "Rolling back".

use std::collections::BTreeSet;

use api::{Key, Object};
use serde_json::{Value, json};

use super::order::Template;
use crate::effect::{Call, Propagation};
use crate::hash::letters;
use crate::kinds::{REVISIONS, STATEFULSETS};
use crate::plan::Plan;
use crate::replicaset::{own, write_status};
use crate::rules::{View, selector};

/// Names a pod's revision. apps/v1.
pub const REVISION_LABEL: &str = "controller-revision-hash";
/// The hash in a revision's name, as Kubernetes labels it.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// The claim templates of a revision, as JSON.
const CLAIM_TEMPLATES: &str = "podyard.io/claim-templates";
/// Why a change was made, in people's words; `rollout history` shows it.
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
const HISTORY_LIMIT: i64 = 10;

/// The revisions of a set.
#[derive(Debug)]
pub struct Revisions {
    /// Rolled out before.
    pub current: String,
    /// Being rolled out, or the same.
    pub update: String,
    current_template: Value,
    current_claims: Vec<Value>,
    update_template: Value,
    update_claims: Vec<Value>,
}

impl Revisions {
    /// The pod template, its claim templates, and the name of the revision.
    pub fn of(&self, template: Template) -> (&Value, &[Value], &str) {
        match template {
            Template::Current => (&self.current_template, &self.current_claims, &self.current),
            Template::Update => (&self.update_template, &self.update_claims, &self.update),
        }
    }
}

/// The revisions of a set; none while the store has yet to be told of one, which the plan then does.
pub fn look(view: &View<'_>, set: &Object, plan: &mut Plan) -> Option<Revisions> {
    adopt(view, set, plan);
    if !plan.is_empty() {
        return None;
    }
    let history = history(view, set);
    let newest = history.last().map_or(0, |revision| number(revision));
    let (data, claims) = (data(set), set.get_array("spec.volumeClaimTemplates"));
    let is_same = |revision: &&&Object| {
        revision.get("data") == Some(&data) && names(&claims_of(revision)) == names(claims)
    };
    let Some(update) = history.iter().rev().find(is_same) else {
        plan.call(create(view, set, data, newest + 1));
        return None;
    };
    if number(update) < newest {
        // Rolled back to.
        let mut object = (*update).clone();
        object.set("revision", newest + 1);
        plan.call(Call::Update { object, part: api::Part::Main });
        return None;
    }
    let current = set.get_str("status.currentRevision");
    let current = history.iter().find(|it| Some(it.name()) == current).unwrap_or(update);
    // Claims follow the set as far as it still has them: sizes, labels.
    let current_claims = claims_of(current).into_iter().map(|template| {
        let of_set = claims.iter().find(|it| it["metadata"]["name"] == template["metadata"]["name"]);
        of_set.cloned().unwrap_or(template)
    });
    Some(Revisions {
        current: current.name().into(),
        update: update.name().into(),
        current_template: template_of(current),
        current_claims: current_claims.collect(),
        update_template: set.0["spec"]["template"].clone(),
        update_claims: claims.to_vec(),
    })
}

/// The set's own revisions, from the oldest.
fn history<'a>(view: &View<'a>, set: &Object) -> Vec<&'a Object> {
    let owned = view.cache.dependents(set.uid()).filter(|it| it.kind() == REVISIONS.kind);
    let ours = owned.filter(|it| crate::pod::manager(it) == Some(set.uid()) && !it.is_deleting());
    let mut history: Vec<&Object> = ours.map(AsRef::as_ref).collect();
    history.sort_by_key(|revision| (number(revision), revision.creation_timestamp(), revision.name()));
    history
}

fn number(revision: &Object) -> i64 {
    revision.get_i64("revision").unwrap_or(0)
}

/// The set that a revision's name says it is of.
pub fn set_of(revision: &Key) -> Option<Key> {
    let (set, _) = revision.name.rsplit_once('-')?;
    Some(Key::new(*STATEFULSETS, &revision.namespace, set))
}

/// Revisions of a set of this name that was deleted and left them become this one's.
fn adopt(view: &View<'_>, set: &Object, plan: &mut Plan) {
    let Some(selector) = selector(set) else { return };
    for revision in view.cache.list_in(*REVISIONS, set.namespace()) {
        let is_named = set_of(&revision.key()).is_some_and(|key| key.name == set.name());
        let is_free = crate::pod::manager(revision).is_none() && !revision.is_deleting();
        if is_named && is_free && selector.matches(revision.labels()) {
            plan.call(own(revision, Some(&set.as_controller_owner())));
        }
    }
}

/// The patch that gives the set its template as it is now.
fn data(set: &Object) -> Value {
    let mut template = set.0["spec"]["template"].clone();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

fn template_of(revision: &Object) -> Value {
    let mut template = revision.0["data"]["spec"]["template"].clone();
    if let Some(template) = template.as_object_mut() {
        template.remove("$patch");
    }
    template
}

fn claims_of(revision: &Object) -> Vec<Value> {
    let text = revision.annotation(CLAIM_TEMPLATES).unwrap_or_default();
    serde_json::from_str(text).unwrap_or_default()
}

fn names(claims: &[Value]) -> BTreeSet<&str> {
    claims.iter().filter_map(|claim| claim["metadata"]["name"].as_str()).collect()
}

/// Makes the revision of the set's template; or counts a collision, if its name is something else's.
fn create(view: &View<'_>, set: &Object, data: Value, number: i64) -> Call {
    let claims = Value::from(set.get_array("spec.volumeClaimTemplates"));
    let collisions = set.get_i64("status.collisionCount").unwrap_or(0);
    let names: Vec<&str> = names(set.get_array("spec.volumeClaimTemplates")).into_iter().collect();
    let hash = letters(&[&data.to_string(), &names.join(","), &collisions.to_string()], 10);
    let key = Key::new(*REVISIONS, set.namespace(), format!("{}-{hash}", set.name()));
    if view.cache.get(&key).is_some() {
        let mut status = set.0["status"].clone();
        status["collisionCount"] = (collisions + 1).into();
        return write_status(set, status);
    }
    let mut labels = set.get("spec.template.metadata.labels").cloned().unwrap_or_else(|| json!({}));
    labels[HASH_LABEL] = hash.into();
    let mut annotations = json!({CLAIM_TEMPLATES: claims.to_string()});
    if let Some(cause) = set.annotation(CHANGE_CAUSE) {
        annotations[CHANGE_CAUSE] = cause.into();
    }
    let object = Object(json!({
        "apiVersion": REVISIONS.api_version(),
        "kind": REVISIONS.kind,
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [set.as_controller_owner()],
        },
        "data": data,
        "revision": number,
    }));
    Call::Create { object }
}

/// Deletes the oldest revisions that no pod is of, beyond as many as the set keeps.
pub fn forget<'a>(
    view: &View<'_>,
    set: &Object,
    revisions: &Revisions,
    pods: impl Iterator<Item = &'a Object>,
    plan: &mut Plan,
) {
    let mut live: BTreeSet<&str> = pods.filter_map(|pod| pod.label(REVISION_LABEL)).collect();
    live.extend([revisions.current.as_str(), revisions.update.as_str()]);
    let history = history(view, set);
    let idle: Vec<&Object> = history.into_iter().filter(|it| !live.contains(it.name())).collect();
    let limit = set.get_i64("spec.revisionHistoryLimit").unwrap_or(HISTORY_LIMIT);
    let surplus = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for revision in idle.into_iter().take(surplus) {
        let uid = revision.uid().into();
        plan.call(Call::Delete { key: revision.key(), uid, propagation: Propagation::Background });
    }
}
