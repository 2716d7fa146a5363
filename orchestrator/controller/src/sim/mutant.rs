//! Worlds with one part broken, to see that the checks see.

use api::{Object, Part};
use serde_json::json;

use crate::effect::Call;
use crate::kinds::{PODS, STATEFULSETS, VOLUMES};

/// One broken part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Controllers that end pods themselves instead of waiting for the agent: they take `Terminating` for gone.
    Impatient,
    /// Controllers that take every set for a Parallel one.
    Unordered,
    /// Controllers that take every roll-out for one that may stop all.
    Greedy,
    /// Controllers that take `Recreate` for a roll-out.
    Mixed,
    /// Controllers that do not see which ordinals are reserved.
    Forward,
    /// Controllers that draw a fresh random name for every pod.
    Nameless,
    /// A scheduler that gives everybody one address.
    OneAddress,
    /// A binder that takes released volumes for free ones.
    Scavenger,
    /// A collector that takes what it does not know for gone, without asking.
    Hasty,
    /// Controllers that are not told of deletions.
    Deaf,
    /// Controllers that write each status twice, once wrongly: they never rest.
    Restless,
    /// An agent that says a pod is gone when it has asked it to go.
    Unfenced,
    /// Agents that start pods of other nodes, too.
    Everywhere,
    /// A fence that does not look whether anything still runs, nor kills it.
    Blind,
    /// A fence that lets claims go before it kills.
    Early,
    /// A fence that leaves the agent alive.
    Immortal,
    /// Controllers that remove pods of nodes that are down without a fence.
    Forceful,
    /// Controllers whose fences do nothing.
    Helpless,
    /// Controllers that drive pods away that tolerate what is the matter with their node.
    Intolerant,
    /// Agents that take whoever holds a claim on another node for dead.
    Presuming,
}

impl Mutant {
    /// Every one.
    pub const ALL: [Mutant; 20] = [
        Mutant::Impatient,
        Mutant::Unordered,
        Mutant::Greedy,
        Mutant::Mixed,
        Mutant::Forward,
        Mutant::Nameless,
        Mutant::OneAddress,
        Mutant::Scavenger,
        Mutant::Hasty,
        Mutant::Deaf,
        Mutant::Restless,
        Mutant::Unfenced,
        Mutant::Everywhere,
        Mutant::Blind,
        Mutant::Early,
        Mutant::Immortal,
        Mutant::Forceful,
        Mutant::Helpless,
        Mutant::Intolerant,
        Mutant::Presuming,
    ];

    /// What broken controllers take an object for.
    pub fn see(self, object: &mut Object) {
        match self {
            Mutant::Unordered if object.kind() == STATEFULSETS.kind => {
                object.set("spec.podManagementPolicy", "Parallel");
            }
            Mutant::Greedy if object.get("spec.updateStrategy.rollingUpdate").is_some() => {
                object.set("spec.updateStrategy.rollingUpdate.maxUnavailable", "100%");
            }
            Mutant::Mixed if object.get_str("spec.updateStrategy.type") == Some("Recreate") => {
                object.set("spec.updateStrategy.type", "RollingUpdate");
            }
            Mutant::Forward if object.annotation(api::RESERVED_ORDINALS).is_some() => {
                object.set("metadata.annotations", json!({}));
            }
            Mutant::Intolerant if object.kind() == PODS.kind => object.remove("spec.tolerations"),
            Mutant::Scavenger
                if object.kind() == VOLUMES.kind && object.get_str("status.phase") == Some("Released") =>
            {
                object.remove("spec.claimRef");
            }
            _ => {}
        }
    }

    /// What broken controllers call instead.
    pub fn call(self, call: &mut Call, fresh: u64) {
        match (self, call) {
            (Mutant::Nameless, Call::Create { object })
                if object.controller_owner().is_some_and(|owner| owner.kind == "ReplicaSet") =>
            {
                let name = format!("{}-{fresh:x}", object.name());
                object.set("metadata.name", name);
            }
            (Mutant::OneAddress, Call::Bind { pod_ip, .. }) => *pod_ip = Some([10, 1, 0, 9].into()),
            (Mutant::Restless, Call::Update { object, part: Part::Status })
                if object.kind() == "ReplicaSet" =>
            {
                object.set("status.observedGeneration", json!(fresh % 1000 + 1000));
            }
            _ => {}
        }
    }
}
