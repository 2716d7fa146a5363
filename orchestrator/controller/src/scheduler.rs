//! The scheduler: a node and an address for each pod, in one write.
//!
//! ```text
//!  scene: nodes, pods on them and on their way ──► filter: which do, or why not ──► score: the best ──► Bind
//! ```
//! What is taken is what the known pods hold plus what is being bound now; no other state. Two yards' worth of
//! mistakes cannot give one address twice: the registry refuses the second write, and the pod is looked at again.
//!
//! Source: Kubernetes documentation, "Assigning Pods to Nodes", "Taints and Tolerations".

mod address;
mod affinity;
mod filter;
mod neighbours;
mod scene;
mod score;
mod spread;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Object};
use serde_json::{Value, json};

pub use address::{keeps, moved};
pub use neighbours::is_social;
pub use scene::{Assumed, Binding};

use crate::cache::Cache;
use crate::effect::Call;
use crate::kinds::{CLAIMS, PODS};
use crate::ledger::requests;
use crate::plan::{Note, Plan, Step};
use crate::pod;
use crate::replicaset::write_status;
use crate::rules::View;
use address::Addresses;
use filter::{Filter, Refusal};
use scene::{Scene, Site};
use spread::is_spread;

const COMPONENT: &str = "default-scheduler";
/// Whether a pod waits for a node or an address.
pub fn is_unplaced(pod: &Object) -> bool {
    let is_addressed = pod::address(pod).is_some() || pod::is_host_network(pod);
    pod::is_active(pod) && !(pod::node(pod).is_some() && is_addressed)
}

/// Pods that wait for a node or an address.
pub fn unplaced(cache: &Cache) -> impl Iterator<Item = Key> {
    cache.ledger.unplaced().cloned()
}

/// Of those, the ones that care whom they are with: another pod's change may be what they wait for.
pub fn unplaced_choosy(cache: &Cache) -> impl Iterator<Item = Key> {
    let is_choosy = |pod: &Object| is_social(pod) || is_spread(pod);
    unplaced(cache).filter(move |key| cache.get(key).is_some_and(|pod| is_choosy(pod)))
}

/// Looks at a pod.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(pod) = view.cache.get(key) else { return plan };
    if !is_unplaced(pod) {
        plan.steps.extend(address::remember(view.cache, pod).map(Step::silent));
        return plan;
    }
    if pod.get_str("spec.schedulerName").is_some_and(|name| name != COMPONENT) && pod::node(pod).is_none() {
        return plan;
    }
    match place(view, pod) {
        Ok(binding) => {
            let to = format!("Successfully assigned {}/{} to {}", key.namespace, key.name, binding.node);
            plan.told(
                Call::Bind {
                    pod: key.clone(),
                    uid: pod.uid().into(),
                    node: binding.node,
                    pod_ip: binding.address,
                },
                Note::normal(pod, COMPONENT, "Scheduled", to),
                Note::warning(pod, COMPONENT, "FailedScheduling", "binding rejected: ".into()),
            );
        }
        Err(message) => {
            if let Some(status) = unschedulable(pod, &message, view) {
                plan.notes.push(Note::warning(pod, COMPONENT, "FailedScheduling", message));
                plan.call(write_status(pod, status));
            }
        }
    }
    plan
}

/// The best node for a pod and an address there, or why there is none.
pub fn place(view: &View<'_>, pod: &Object) -> Result<Binding, String> {
    let wanted = pod::node(pod);
    let scene = Scene::new(view, pod);
    let count = scene.sites.iter().filter(|site| wanted.is_none_or(|name| name == site.node.name())).count();
    if count == 0 {
        return Err("no nodes available to schedule pods".into());
    }
    let no_node = |why: &str| format!("0/{count} nodes are available: {why}.");
    if let Some(why) = claims_refuse(view.cache, pod) {
        return Err(no_node(&why));
    }
    let amount = requests(pod);
    let addresses = Addresses::new(view, pod);
    let address = |site: &Site<'_>| match pod::is_host_network(pod) {
        true => Ok(None),
        false => addresses.on(site.node).map(Some),
    };

    let mut refusals: BTreeMap<Refusal, usize> = BTreeMap::new();
    let mut fitting: Vec<&Site<'_>> = Vec::new();
    let mut found = Vec::new();
    // A pod that names its node is past choosing: it only wants an address.
    let filter = wanted.is_none().then(|| Filter::new(&scene, amount));
    for site in scene.sites.iter().filter(|site| wanted.is_none_or(|name| name == site.node.name())) {
        let mut refused = filter.as_ref().map(|filter| filter.refuse(site)).unwrap_or_default();
        if refused.is_empty() {
            match address(site) {
                Ok(address) => {
                    fitting.push(site);
                    found.push(address);
                }
                Err(refusal) => refused.push(refusal),
            }
        }
        refused.into_iter().for_each(|refusal| *refusals.entry(refusal).or_insert(0) += 1);
    }
    match score::best(&scene, &fitting, amount) {
        Some(best) => Ok(Binding { node: fitting[best].node.name().into(), address: found[best], amount }),
        None => {
            let mut reasons: Vec<String> =
                refusals.iter().map(|(why, count)| format!("{count} {why}")).collect();
            reasons.sort();
            Err(no_node(&reasons.join(", ")))
        }
    }
}

/// A pod starts on claims that are there to stay, and one that is for a single pod is not another's. They need not be
/// bound yet: the agent waits for that.
fn claims_refuse(cache: &Cache, pod: &Object) -> Option<String> {
    for name in pod::claims(pod) {
        let key = Key::new(*CLAIMS, pod.namespace(), name);
        let Some(claim) = cache.get(&key) else {
            return Some(format!("persistentvolumeclaim {name:?} not found"));
        };
        if claim.is_deleting() {
            return Some(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let is_single = claim.get_array("spec.accessModes").iter().any(|mode| mode == "ReadWriteOncePod");
        let holds = |other: &&Arc<Object>| {
            other.uid() != pod.uid()
                && pod::node(other).is_some()
                && !pod::is_terminal(other)
                && pod::claims(other).any(|it| it == name)
        };
        if is_single && cache.list_in(*PODS, pod.namespace()).find(holds).is_some() {
            let why = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
            return Some(why.into());
        }
    }
    None
}

/// The status that says so, unless it does already.
fn unschedulable(pod: &Object, message: &str, view: &View<'_>) -> Option<Value> {
    let mut conditions = pod.get_array("status.conditions").to_vec();
    let old = conditions.iter().position(|condition| condition["type"] == "PodScheduled");
    let mut condition = json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": api::time::seconds(view.now),
    });
    if let Some(old) = old {
        let old = conditions.remove(old);
        if old["status"] == "False" {
            if old["message"] == message {
                return None;
            }
            condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
        }
    }
    conditions.push(condition);
    let mut status = pod.get("status").cloned().unwrap_or_else(|| json!({}));
    status["conditions"] = conditions.into();
    Some(status)
}

#[cfg(test)]
mod tests;
