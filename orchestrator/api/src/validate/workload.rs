//! Replica sets and stateful sets.

use serde_json::Value;

use super::{Causes, Tree, items, labels, names, pod, storage, text, tree};
use crate::object::Object;
use crate::ordinals::{RESERVED_ORDINALS, parse_ordinals};

pub(super) fn replica_set(spec: &Tree, causes: &mut Causes) {
    counts(spec, &["replicas", "minReadySeconds"], causes);
    labels::matches_template(spec, causes);
    pod::template(spec, causes);
}

pub(super) fn stateful_set(spec: &Tree, causes: &mut Causes) {
    counts(spec, &["replicas", "minReadySeconds", "revisionHistoryLimit"], causes);
    labels::matches_template(spec, causes);
    pod::template(spec, causes);
    let service = text(spec, "serviceName");
    if !service.is_empty() {
        causes.name("spec.serviceName", service, names::dns_1035_label);
    }
    let policies = ["OrderedReady", "Parallel"];
    causes.one_of("spec.podManagementPolicy", text(spec, "podManagementPolicy"), &policies);
    if let Some(strategy) = tree(spec, "updateStrategy") {
        let kind = text(strategy, "type");
        causes.one_of("spec.updateStrategy.type", kind, &["OnDelete", "Recreate", "RollingUpdate"]);
        if let Some(rolling) = tree(strategy, "rollingUpdate") {
            if kind != "RollingUpdate" {
                causes.invalid(
                    "spec.updateStrategy.rollingUpdate",
                    Value::Object(rolling.clone()),
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
            causes.in_range(
                "spec.updateStrategy.rollingUpdate.partition",
                rolling.get("partition"),
                0,
                i32::MAX.into(),
            );
            max_unavailable(rolling, causes);
        }
    }
    if let Some(policy) = tree(spec, "persistentVolumeClaimRetentionPolicy") {
        for field in ["whenDeleted", "whenScaled"] {
            let path = format!("spec.persistentVolumeClaimRetentionPolicy.{field}");
            causes.one_of(path, text(policy, field), &["Delete", "Retain"]);
        }
    }
    if let Some(ordinals) = tree(spec, "ordinals") {
        causes.in_range("spec.ordinals.start", ordinals.get("start"), 0, i32::MAX.into());
    }
    let mut seen = Vec::new();
    for (path, claim) in items(spec, "spec", "volumeClaimTemplates") {
        let name = tree(claim, "metadata").map_or("", |meta| text(meta, "name"));
        if !name.is_empty() && seen.contains(&name) {
            causes.duplicate(format!("{path}.metadata.name"), name);
        }
        seen.push(name);
        if name.is_empty() {
            causes.required(format!("{path}.metadata.name"));
        } else {
            causes.name(format!("{path}.metadata.name"), name, names::dns_label);
        }
        match tree(claim, "spec") {
            Some(claim) => storage::claim(claim, &format!("{path}.spec"), causes),
            None => causes.required(format!("{path}.spec")),
        }
    }
}

/// A number above 0, or a percentage up to 100%.
fn max_unavailable(rolling: &Tree, causes: &mut Causes) {
    let path = "spec.updateStrategy.rollingUpdate.maxUnavailable";
    match rolling.get("maxUnavailable") {
        Some(Value::String(text)) => {
            let number = text.strip_suffix('%').filter(|it| it.bytes().all(|byte| byte.is_ascii_digit()));
            let percent = number.and_then(|number| number.parse::<u32>().ok());
            match percent {
                Some(0) => causes.invalid(path, text.as_str(), "cannot be 0"),
                Some(1..=100) => {}
                Some(_) => causes.invalid(path, text.as_str(), "must not be greater than 100%"),
                None => causes.invalid(
                    path,
                    text.as_str(),
                    "a valid percent string must be a numeric string followed by an ending '%'",
                ),
            }
        }
        number => causes.in_range(path, number, 1, i32::MAX.into()),
    }
}

/// Ordinals that a set leaves out, which Kubernetes has no field for.
pub(super) fn reserved_ordinals(set: &Object, causes: &mut Causes) {
    if let Some(text) = set.annotation(RESERVED_ORDINALS)
        && parse_ordinals(text).is_none()
    {
        let path = format!("metadata.annotations[{RESERVED_ORDINALS}]");
        causes.invalid(path, text, "must be ordinals separated by commas, as in 1,3");
    }
}

pub(super) fn revision(revision: &Tree, causes: &mut Causes) {
    match revision.get("data") {
        None => causes.required_because("data", "data is mandatory"),
        Some(Value::Object(_)) => {}
        Some(other) => causes.invalid("data", other.clone(), "must be an object"),
    }
    causes.in_range("revision", revision.get("revision"), 0, i64::MAX);
}

fn counts(spec: &Tree, fields: &[&str], causes: &mut Causes) {
    for field in fields {
        causes.in_range(format!("spec.{field}"), spec.get(*field), 0, i32::MAX.into());
    }
}
