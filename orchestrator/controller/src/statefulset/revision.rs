//! Revisions: which template a pod was made from.
//!
//! A revision is the hash of a template. `status.currentRevision` is the one rolled out before, `updateRevision` the
//! set's own; they meet when a roll-out is complete. Ordinals below a partition are made from the current template,
//! which the set no longer holds, so it is kept in an annotation, where everybody can see it.

use api::{Object, Part};
use serde_json::Value;

use crate::effect::Call;
use crate::hash::letters;
use crate::plan::Plan;

/// Names a pod's revision. apps/v1.
pub const REVISION_LABEL: &str = "controller-revision-hash";
const TEMPLATE: &str = "podyard.io/current-template";

/// The revisions of a set.
#[derive(Debug)]
pub struct Revisions {
    /// Rolled out before.
    pub current: String,
    /// Being rolled out, or the same.
    pub update: String,
}

impl Revisions {
    /// The revisions of `set` now.
    pub fn of(set: &Object) -> Revisions {
        let update = name(set, &set.0["spec"]["template"]);
        let current = set.get_str("status.currentRevision").filter(|revision| !revision.is_empty());
        Revisions { current: current.unwrap_or(&update).to_owned(), update }
    }

    /// The template of the current revision; the set's own if it is the same, or the old one is lost.
    pub fn current_template<'a>(&'a self, set: &Object) -> (Value, &'a str) {
        match kept(set).filter(|template| name(set, template) == self.current) {
            Some(template) if self.current != self.update => (template, &self.current),
            _ => (set.0["spec"]["template"].clone(), &self.update),
        }
    }
}

fn name(set: &Object, template: &Value) -> String {
    format!("{}-{}", set.name(), letters(&[&template.to_string()], 10))
}

fn kept(set: &Object) -> Option<Value> {
    serde_json::from_str(set.annotation(TEMPLATE)?).ok()
}

/// Keeps the template of a set that may later need it: one that holds back part of its updates.
pub fn remember(set: &Object, revisions: &Revisions, plan: &mut Plan) {
    let partition = set.get_i64("spec.updateStrategy.rollingUpdate.partition").unwrap_or(0);
    let template = set.0["spec"]["template"].to_string();
    if partition == 0 || revisions.current != revisions.update || set.annotation(TEMPLATE) == Some(&template)
    {
        return;
    }
    let mut object = set.clone();
    let mut annotations = set.annotations().clone();
    annotations.insert(TEMPLATE.into(), template.into());
    object.set("metadata.annotations", annotations);
    plan.call(Call::Update { object, part: Part::Main });
}
