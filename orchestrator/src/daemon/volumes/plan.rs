//! What is to be done for a volume of ours. Pure.

use api::{Object, quantity};
use node::volumes::DRIVER;
use std::time::Duration;

/// Keeps the object until its data is in the trash.
pub(super) const FINALIZER: &str = "podyard.io/volume";
/// Kubernetes' own: keeps the object while its claim is there.
const PROTECTION: &str = "kubernetes.io/pv-protection";

/// What is to be done for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing.
    Nothing,
    /// There must be data on disk for its claim, and the object says what enforces its size.
    Have,
    /// Its claim wants this many bytes, more than it has.
    Grow(u64),
    /// Its data goes to the trash, then the object goes.
    Trash,
    /// The object goes, the data stays as nobody's.
    Keep,
}

/// What is to be done for a volume whose claim, if that is still there, is this.
pub(super) fn work(volume: &Object, claim: Option<&Object>) -> Work {
    if volume.get_str("spec.csi.driver") != Some(DRIVER) {
        return Work::Nothing;
    }
    let uid = volume.get_str("spec.claimRef.uid").filter(|uid| !uid.is_empty());
    if volume.is_deleting() {
        let finalizers = volume.finalizers();
        if finalizers.contains(&PROTECTION) || !finalizers.contains(&FINALIZER) {
            return Work::Nothing;
        }
        let is_doomed = volume.get_str("spec.persistentVolumeReclaimPolicy") == Some("Delete");
        return if is_doomed { Work::Trash } else { Work::Keep };
    }
    let Some(uid) = uid else { return Work::Nothing };
    let wanted = claim.filter(|claim| claim.uid() == uid && !claim.is_deleting()).map(requested).unwrap_or(0);
    if wanted > capacity(volume) { Work::Grow(wanted) } else { Work::Have }
}

/// Bytes that a claim asks for.
pub(super) fn requested(claim: &Object) -> u64 {
    bytes(claim, "spec.resources.requests.storage")
}

/// Bytes that a volume says it has.
pub(super) fn capacity(volume: &Object) -> u64 {
    bytes(volume, "spec.capacity.storage")
}

fn bytes(object: &Object, path: &str) -> u64 {
    object.get_str(path).and_then(|text| quantity::parse_bytes(text).ok()).unwrap_or(0)
}

/// How long its data stays in the trash, if its class says so.
pub(super) fn grace(volume: &Object) -> Option<Duration> {
    api::storage::duration(volume.get_str("spec.csi.volumeAttributes.trashGrace")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(patch: &Value) -> Object {
        let volume = json!({
            "metadata": {"name": "v", "finalizers": [FINALIZER]},
            "spec": {"capacity": {"storage": "1Gi"}, "csi": {"driver": DRIVER, "volumeHandle": "v"},
                "claimRef": {"uid": "c"}, "persistentVolumeReclaimPolicy": "Delete"},
        });
        Object(api::patch::merge(&volume, patch).unwrap())
    }

    fn claim(uid: &str, size: &str) -> Object {
        Object(json!({"metadata": {"uid": uid}, "spec": {"resources": {"requests": {"storage": size}}}}))
    }

    #[test]
    fn work_follows_from_the_objects() {
        let going = json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}});
        let bound = json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z",
            "finalizers": [PROTECTION, FINALIZER]}});
        let retained = json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"persistentVolumeReclaimPolicy": "Retain"}});
        for (patch, claim, expect) in [
            (json!({}), Some(claim("c", "1Gi")), Work::Have),
            (json!({}), Some(claim("c", "1Mi")), Work::Have),
            (json!({}), Some(claim("c", "2Gi")), Work::Grow(2 << 30)),
            (json!({}), Some(claim("another", "2Gi")), Work::Have),
            (json!({}), None, Work::Have),
            (json!({"spec": {"claimRef": null}}), None, Work::Nothing),
            (json!({"spec": {"csi": {"driver": "x"}}}), None, Work::Nothing),
            (going, None, Work::Trash),
            (bound, None, Work::Nothing),
            (retained, None, Work::Keep),
        ] {
            assert_eq!(work(&volume(&patch), claim.as_ref()), expect, "{patch}");
        }
    }
}
