//! Claims, volumes, classes.

use serde_json::Value;

use super::{Lines, Related, annotations, conditions, head, labels, map, pod, text, text_or};
use crate::holder;
use crate::object::Object;
use crate::table::access_modes;

pub(super) fn claim(claim: &Object, related: &Related<'_>, lines: &mut Lines) {
    head(claim, lines);
    lines.pair(0, "StorageClass", text(claim, "spec.storageClassName"));
    lines.pair(0, "Status", status(claim));
    lines.pair(0, "Volume", text(claim, "spec.volumeName"));
    labels(claim, 0, lines);
    annotations(claim, 0, lines);
    finalizers(claim, lines);
    let bound = !text(claim, "spec.volumeName").is_empty();
    lines.pair(0, "Capacity", if bound { text(claim, "status.capacity.storage") } else { String::new() });
    let modes = if bound { access_modes(claim, "status.accessModes") } else { String::new() };
    lines.pair(0, "Access Modes", modes);
    lines.pair(0, "VolumeMode", text(claim, "spec.volumeMode"));
    if let Some(enforcement) =
        related.volume.and_then(|it| it.annotation(crate::storage::ENFORCEMENT_ANNOTATION))
    {
        lines.pair(0, "Size enforced by", enforcement);
    }
    let uses = |pod: &&Object| {
        let volumes = pod.get_array("spec.volumes").iter();
        volumes.map(|v| &v["persistentVolumeClaim"]["claimName"]).any(|name| name == claim.name())
    };
    let users: Vec<String> = related.pods.iter().filter(uses).map(|pod| pod.name().into()).collect();
    lines.pairs(0, "Used By", &users);
    held(claim, related, lines);
    conditions(claim, lines);
}

/// Who holds the claim, and the proof that the last holder is gone.
fn held(claim: &Object, related: &Related<'_>, lines: &mut Lines) {
    let now = holder::holder(claim).map(|uid| {
        let pod = related.pods.iter().find(|pod| pod.uid() == uid);
        let name = pod.map_or(String::new(), |pod| format!("{} ", pod.name()));
        let node = holder::holder_node(claim).map_or(String::new(), |node| format!(" on {node}"));
        format!("{name}({uid}){node}")
    });
    lines.pair(0, "Holder", now.as_deref().unwrap_or("<none>"));
    if now.is_some() {
        let since = claim.annotation(holder::HELD_SINCE_ANNOTATION).and_then(|since| since.parse().ok());
        lines.pair(0, "Held since", since.map_or("<unknown>".into(), crate::time::seconds));
    }
    lines.pair(0, "Epoch", holder::epoch(claim).to_string());
    lines.pair(0, "Fenced", holder::Proof::of(claim).map_or("<never>".into(), |proof| proof.summary()));
}

pub(super) fn volume(volume: &Object, lines: &mut Lines) {
    lines.pair(0, "Name", volume.name());
    labels(volume, 0, lines);
    annotations(volume, 0, lines);
    finalizers(volume, lines);
    lines.pair(0, "StorageClass", text(volume, "spec.storageClassName"));
    lines.pair(0, "Status", status(volume));
    let claim = match volume.get_str("spec.claimRef.name") {
        Some(name) => format!("{}/{name}", text(volume, "spec.claimRef.namespace")),
        None => String::new(),
    };
    lines.pair(0, "Claim", claim);
    lines.pair(0, "Reclaim Policy", text(volume, "spec.persistentVolumeReclaimPolicy"));
    lines.pair(0, "Access Modes", access_modes(volume, "spec.accessModes"));
    lines.pair(0, "VolumeMode", text(volume, "spec.volumeMode"));
    lines.pair(0, "Capacity", text(volume, "spec.capacity.storage"));
    lines.pair(0, "Message", text(volume, "status.message"));
    lines.line(0, "Source:");
    pod::source(&volume.0["spec"], lines);
}

pub(super) fn class(class: &Object, lines: &mut Lines) {
    lines.pair(0, "Name", class.name());
    let is_default = class.annotation("storageclass.kubernetes.io/is-default-class") == Some("true");
    lines.pair(0, "IsDefaultClass", if is_default { "Yes" } else { "No" });
    annotations(class, 0, lines);
    lines.pair(0, "Provisioner", text(class, "provisioner"));
    let parameters = map(class.get("parameters").and_then(Value::as_object), "=");
    lines.pair(0, "Parameters", if parameters.is_empty() { "<none>".into() } else { parameters.join(",") });
    lines.pair(0, "AllowVolumeExpansion", text_or(class, "allowVolumeExpansion", "<unset>"));
    lines.pair(0, "ReclaimPolicy", text(class, "reclaimPolicy"));
    lines.pair(0, "VolumeBindingMode", text(class, "volumeBindingMode"));
}

fn status(object: &Object) -> String {
    if object.is_deleting() { "Terminating".into() } else { text(object, "status.phase") }
}

fn finalizers(object: &Object, lines: &mut Lines) {
    lines.pair(0, "Finalizers", format!("[{}]", object.finalizers().join(" ")));
}
