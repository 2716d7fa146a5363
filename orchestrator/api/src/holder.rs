//! Who holds a claim, as annotations of the PersistentVolumeClaim; and the proof that a holder before is gone.
//!
//! A claim that is neither ReadWriteMany nor ReadOnlyMany has one holder at a time. It is written before the
//! holder's first container is made and removed after nothing of the holder runs: by its agent, or by a fence.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::Object;

/// Which pod, by uid, holds a claim.
pub const HOLDER_ANNOTATION: &str = "podyard.io/holder";
/// The node on which the holder runs.
pub const HOLDER_NODE_ANNOTATION: &str = "podyard.io/holder-node";
/// Since when it is held. RFC 3339.
pub const HELD_SINCE_ANNOTATION: &str = "podyard.io/held-since";
/// Counts the incarnations that held a claim.
pub const EPOCH_ANNOTATION: &str = "podyard.io/epoch";
/// The last [`Proof`], as JSON.
pub const FENCED_ANNOTATION: &str = "podyard.io/fenced";

/// That nothing of a claim's last holder runs: what was killed, and seen empty.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// The node that was fenced.
    pub node: String,
    /// The cgroup that was killed as one, and whose `cgroup.events` then said `populated 0`.
    pub cgroup: String,
    /// When it was seen empty. RFC 3339.
    pub time: String,
    /// Processes that were in it when it was killed.
    pub killed: usize,
    /// Microseconds from the kill to `populated 0`.
    pub waited_micros: u64,
    /// The pod, by uid, that held the claim.
    pub holder: String,
    /// The epoch at which it held the claim.
    pub epoch: u64,
}

impl Proof {
    /// The proof that a claim carries, if it carries one that can be read.
    pub fn of(claim: &Object) -> Option<Proof> {
        serde_json::from_str(claim.annotation(FENCED_ANNOTATION)?).ok()
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let Proof { node, cgroup, time, killed, waited_micros, holder, epoch } = self;
        format!(
            "node {node} at {time}: cgroup {cgroup} killed ({killed} processes), populated 0 after {waited_micros} µs; \
             held by pod {holder} at epoch {epoch}"
        )
    }
}

/// The pod, by uid, that holds the claim.
pub fn holder(claim: &Object) -> Option<&str> {
    claim.annotation(HOLDER_ANNOTATION).filter(|uid| !uid.is_empty())
}

/// The node on which the holder runs.
pub fn holder_node(claim: &Object) -> Option<&str> {
    claim.annotation(HOLDER_NODE_ANNOTATION).filter(|node| !node.is_empty())
}

/// The incarnations that held the claim so far.
pub fn epoch(claim: &Object) -> u64 {
    claim.annotation(EPOCH_ANNOTATION).and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}

/// Gives the claim to a pod, as the next epoch.
pub fn hold(claim: &mut Object, uid: &str, node: &str, since: &str) {
    let epoch = epoch(claim) + 1;
    change(claim, |annotations| {
        annotations.insert(HOLDER_ANNOTATION.into(), uid.into());
        annotations.insert(HOLDER_NODE_ANNOTATION.into(), node.into());
        annotations.insert(HELD_SINCE_ANNOTATION.into(), since.into());
        annotations.insert(EPOCH_ANNOTATION.into(), epoch.to_string().into());
    });
}

/// Takes the claim from its holder. The epoch and the last proof stay.
pub fn let_go(claim: &mut Object) {
    change(claim, |annotations| {
        for name in [HOLDER_ANNOTATION, HOLDER_NODE_ANNOTATION, HELD_SINCE_ANNOTATION] {
            annotations.remove(name);
        }
    });
}

/// Takes the claim from a holder that is proved gone, and keeps the proof.
pub fn fence(claim: &mut Object, proof: &Proof) {
    let_go(claim);
    let text = serde_json::json!(proof).to_string();
    change(claim, |annotations| drop(annotations.insert(FENCED_ANNOTATION.into(), text.into())));
}

fn change(claim: &mut Object, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let mut annotations = claim.annotations().clone();
    change(&mut annotations);
    claim.set("metadata.annotations", Value::Object(annotations));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn held_fenced_and_held_again() {
        let mut claim = Object(json!({"metadata": {"name": "c", "annotations": {"theirs": "kept"}}}));
        assert_eq!((holder(&claim), epoch(&claim)), (None, 0));
        hold(&mut claim, "u1", "n1", "2026-01-01T00:00:00Z");
        assert_eq!((holder(&claim), holder_node(&claim), epoch(&claim)), (Some("u1"), Some("n1"), 1));
        let proof = Proof {
            node: "n1".into(),
            cgroup: "/podyard/nodes/n1".into(),
            time: "2026-01-01T00:00:01Z".into(),
            killed: 3,
            waited_micros: 900,
            holder: "u1".into(),
            epoch: 1,
        };
        fence(&mut claim, &proof);
        assert_eq!((holder(&claim), holder_node(&claim), epoch(&claim)), (None, None, 1));
        hold(&mut claim, "u2", "n2", "2026-01-01T00:00:02Z");
        assert_eq!((holder(&claim), epoch(&claim)), (Some("u2"), 2));
        assert_eq!(Proof::of(&claim), Some(proof), "the proof stays until the next one");
        let_go(&mut claim);
        assert_eq!(claim.annotation("theirs"), Some("kept"));
        assert_eq!(claim.annotations().len(), 3);
    }
}
