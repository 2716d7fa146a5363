//! The words by which a Node object says what is wished of it, and the questions asked of them.
//!
//! ```text
//! labels       podyard.io/managed: "true"     a node that `podyard node` made; node-0 lives in the daemon and is not
//! annotations  podyard.io/power:   "off"      `node kill`: its processes are killed and stay dead until `node heal`
//!              podyard.io/fabric:  "cut"      `node cut`: its link to the other nodes is severed until `node heal`
//! finalizers   podyard.io/node                agent, processes, cgroups, links and directories go first
//! conditions   Ready                          True; False (its processes are gone); Unknown (not heard of)
//! ```

use serde_json::Value;

use crate::object::Object;

/// A node that `podyard node add` made, with the value `true`.
pub const MANAGED_LABEL: &str = "podyard.io/managed";
/// Keeps a managed Node object until nothing of the node is left.
pub const FINALIZER: &str = "podyard.io/node";
/// `off`: the node has no power.
pub const POWER_ANNOTATION: &str = "podyard.io/power";
/// The value of [`POWER_ANNOTATION`] that means something.
pub const POWER_OFF: &str = "off";
/// `cut`: the node's link to the other nodes is severed.
pub const FABRIC_ANNOTATION: &str = "podyard.io/fabric";
/// The value of [`FABRIC_ANNOTATION`] that means something.
pub const FABRIC_CUT: &str = "cut";

/// Addresses of other nodes' blocks that pods of this node keep, with commas between. Every node routes each of them
/// there.
pub const MOVED_ANNOTATION: &str = "podyard.io/moved-addresses";

/// The taint of a node whose Ready condition is False.
pub const NOT_READY_TAINT: &str = "node.kubernetes.io/not-ready";
/// The taint of a node whose Ready condition is Unknown.
pub const UNREACHABLE_TAINT: &str = "node.kubernetes.io/unreachable";
/// The taint of a node with `spec.unschedulable`.
pub const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// Reason of Ready=False: the kernel says that nothing of the node runs.
pub const DIED: &str = "NodeDied";
/// Reason of Ready=Unknown: the node was not heard of in time. Kubernetes' word.
pub const STATUS_UNKNOWN: &str = "NodeStatusUnknown";

/// Whether the daemon makes and removes this node, unlike node-0.
pub fn is_managed(node: &Object) -> bool {
    node.label(MANAGED_LABEL) == Some("true")
}

/// Whether the node's power is wished off.
pub fn is_off(node: &Object) -> bool {
    node.annotation(POWER_ANNOTATION) == Some(POWER_OFF)
}

/// Whether the node's link is wished severed.
pub fn is_cut(node: &Object) -> bool {
    node.annotation(FABRIC_ANNOTATION) == Some(FABRIC_CUT)
}

/// The addresses in [`MOVED_ANNOTATION`].
pub fn moved(node: &Object) -> impl Iterator<Item = std::net::Ipv4Addr> {
    let list = node.annotation(MOVED_ANNOTATION).unwrap_or("").split(',');
    list.filter_map(|address| address.parse().ok())
}

/// The node's condition of this type.
pub fn condition<'a>(node: &'a Object, kind: &str) -> Option<&'a Value> {
    node.get_array("status.conditions").iter().find(|condition| condition["type"] == kind)
}

/// The status of the node's Ready condition: `True`, `False` or `Unknown`; empty before the first.
pub fn ready(node: &Object) -> &str {
    condition(node, "Ready").and_then(|ready| ready["status"].as_str()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wishes_and_conditions() {
        let node = Object(json!({
            "metadata": {
                "labels": {"podyard.io/managed": "true"},
                "annotations": {"podyard.io/power": "off", "podyard.io/fabric": "healed"},
            },
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]},
        }));
        assert!(is_managed(&node) && is_off(&node) && !is_cut(&node));
        assert_eq!(ready(&node), "Unknown");
        assert_eq!(ready(&Object(json!({}))), "");
    }
}
