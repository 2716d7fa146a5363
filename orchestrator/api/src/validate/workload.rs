//! Replica sets and stateful sets.

use serde_json::Value;

use super::{Causes, Tree, items, labels, names, pod, storage, text, tree};

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
        causes.one_of("spec.updateStrategy.type", kind, &["RollingUpdate", "OnDelete"]);
        if let Some(rolling) = tree(strategy, "rollingUpdate") {
            if kind == "OnDelete" {
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
    for (path, claim) in items(spec, "spec", "volumeClaimTemplates") {
        let name = tree(claim, "metadata").map_or("", |meta| text(meta, "name"));
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

fn counts(spec: &Tree, fields: &[&str], causes: &mut Causes) {
    for field in fields {
        causes.in_range(format!("spec.{field}"), spec.get(*field), 0, i32::MAX.into());
    }
}
