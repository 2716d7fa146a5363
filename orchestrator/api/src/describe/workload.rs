//! Replica sets and stateful sets.

use serde_json::Value;

use super::{Lines, Related, annotations, conditions, date, head, labels, map, pod, shown, text};
use crate::object::Object;
use crate::table::{access_modes, selector};

pub(super) fn replica_set(set: &Object, related: &Related<'_>, lines: &mut Lines) {
    head(set, lines);
    lines.pair(0, "Selector", shown(&selector(set.get("spec.selector"))));
    labels(set, 0, lines);
    annotations(set, 0, lines);
    if let Some(owner) = set.controller_owner() {
        lines.pair(0, "Controlled By", format!("{}/{}", owner.kind, owner.name));
    }
    let count = |path: &str| set.get_i64(path).unwrap_or(0);
    let replicas = format!("{} current / {} desired", count("status.replicas"), count("spec.replicas"));
    lines.pair(0, "Replicas", replicas);
    phases(related, lines);
    template(set, lines);
    conditions(set, lines);
}

pub(super) fn stateful_set(set: &Object, related: &Related<'_>, lines: &mut Lines) {
    head(set, lines);
    lines.pair(0, "CreationTimestamp", date(&set.0["metadata"]["creationTimestamp"]));
    lines.pair(0, "Selector", shown(&selector(set.get("spec.selector"))));
    labels(set, 0, lines);
    annotations(set, 0, lines);
    let count = |path: &str| set.get_i64(path).unwrap_or(0);
    lines.pair(
        0,
        "Replicas",
        format!("{} desired | {} total", count("spec.replicas"), count("status.replicas")),
    );
    lines.pair(0, "Update Strategy", text(set, "spec.updateStrategy.type"));
    if set.get("spec.updateStrategy.rollingUpdate.partition").is_some() {
        lines.pair(1, "Partition", text(set, "spec.updateStrategy.rollingUpdate.partition"));
    }
    if set.get("spec.updateStrategy.rollingUpdate.maxUnavailable").is_some() {
        lines.pair(1, "Max Unavailable", text(set, "spec.updateStrategy.rollingUpdate.maxUnavailable"));
    }
    lines.pair(0, "Current Revision", text(set, "status.currentRevision"));
    lines.pair(0, "Update Revision", text(set, "status.updateRevision"));
    phases(related, lines);
    template(set, lines);
    claims(set, lines);
}

/// A revision: what a set's pods looked like then.
pub(super) fn revision(revision: &Object, lines: &mut Lines) {
    head(revision, lines);
    labels(revision, 0, lines);
    annotations(revision, 0, lines);
    if let Some(owner) = revision.controller_owner() {
        lines.pair(0, "Controlled By", format!("{}/{}", owner.kind, owner.name));
    }
    lines.pair(0, "Revision", text(revision, "revision"));
    if let Some(data) = revision.get("data") {
        template(&Object(data.clone()), lines);
    }
}

fn phases(related: &Related<'_>, lines: &mut Lines) {
    let count =
        |phase: &str| related.pods.iter().filter(|p| p.get_str("status.phase") == Some(phase)).count();
    let (running, waiting) = (count("Running"), count("Pending"));
    let (succeeded, failed) = (count("Succeeded"), count("Failed"));
    let shown = format!("{running} Running / {waiting} Waiting / {succeeded} Succeeded / {failed} Failed");
    lines.pair(0, "Pods Status", shown);
}

pub(super) fn template(owner: &Object, lines: &mut Lines) {
    lines.line(0, "Pod Template:");
    let meta = |field: &str| owner.get(&format!("spec.template.metadata.{field}")).and_then(Value::as_object);
    lines.pairs(1, "Labels", &map(meta("labels"), "="));
    if meta("annotations").is_some() {
        lines.pairs(1, "Annotations", &map(meta("annotations"), ": "));
    }
    pod::containers(owner, "spec.template.spec", lines);
    pod::volumes(owner, "spec.template.spec", 1, lines);
    let selector = owner.get("spec.template.spec.nodeSelector").and_then(Value::as_object);
    lines.pairs(1, "Node-Selectors", &map(selector, "="));
}

fn claims(set: &Object, lines: &mut Lines) {
    let claims = set.get_array("spec.volumeClaimTemplates");
    if claims.is_empty() {
        return lines.pair(0, "Volume Claims", "<none>");
    }
    lines.line(0, "Volume Claims:");
    for claim in claims {
        let claim = Object(claim.clone());
        lines.pair(1, "Name", claim.name());
        lines.pair(1, "StorageClass", text(&claim, "spec.storageClassName"));
        labels(&claim, 1, lines);
        annotations(&claim, 1, lines);
        lines.pair(1, "Capacity", text(&claim, "spec.resources.requests.storage"));
        lines.pair(1, "Access Modes", format!("[{}]", access_modes(&claim, "spec.accessModes")));
    }
}
