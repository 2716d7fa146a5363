//! The scheduler: a node and an address for each pod, in one write.
//!
//! What is taken is what the known pods hold plus what is being bound now; no other state. Two yards' worth of
//! mistakes cannot give one address twice: the registry refuses the second write, and the pod is looked at again.
//!
//! Source: Kubernetes documentation, "Assigning Pods to Nodes", "Taints and Tolerations".

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use api::quantity::{parse_bytes, parse_millicpu};
use api::{Key, Object};
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::effect::Call;
use crate::hash::hash;
use crate::ipam::Block;
use crate::kinds::{CLAIMS, NODES, PODS};
use crate::ledger::{Amount, requests};
use crate::plan::{Note, Plan};
use crate::pod;
use crate::replicaset::write_status;
use crate::rules::View;
use crate::toleration::untolerated;

const COMPONENT: &str = "default-scheduler";
/// Pods a node takes if it does not say.
const PODS_MAX: u64 = 110;

/// Bindings that are not answered yet, by pod.
pub type Assumed = BTreeMap<Key, Binding>;

/// What a binding gives.
#[derive(Clone, Debug)]
pub struct Binding {
    /// The node.
    pub node: String,
    /// The address.
    pub address: Option<IpAddr>,
    /// What it takes of the node.
    pub amount: Amount,
}

/// Why a node does not do, in Kubernetes' words. Counted, so ordered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    Unschedulable,
    NotReady,
    Taint(String),
    Selector,
    Cpu,
    Memory,
    Pods,
    Addresses,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Unschedulable => f.write_str("node(s) were unschedulable"),
            Refusal::NotReady => f.write_str("node(s) were not ready"),
            Refusal::Taint(taint) => write!(f, "node(s) had untolerated taint {{{taint}}}"),
            Refusal::Selector => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Refusal::Cpu => f.write_str("Insufficient cpu"),
            Refusal::Memory => f.write_str("Insufficient memory"),
            Refusal::Pods => f.write_str("Too many pods"),
            Refusal::Addresses => f.write_str("node(s) had no free pod address"),
        }
    }
}

/// Pods that wait for a node or an address.
pub fn unplaced(cache: &Cache) -> impl Iterator<Item = Key> {
    cache.list(*PODS).filter(|pod| is_unplaced(pod)).map(|pod| pod.key())
}

fn is_unplaced(pod: &Object) -> bool {
    let is_addressed = pod::address(pod).is_some() || pod::is_host_network(pod);
    pod::is_active(pod) && !(pod::node(pod).is_some() && is_addressed)
}

/// Looks at a pod.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(pod) = view.cache.get(key).filter(|pod| is_unplaced(pod)) else { return plan };
    if pod.get_str("spec.schedulerName").is_some_and(|name| name != COMPONENT) && pod::node(pod).is_none() {
        return plan;
    }
    match claims_stay(view.cache, pod).and_then(|()| place(view, pod)) {
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

/// A pod starts on claims that are there to stay. They need not be bound yet: the agent waits for that.
fn claims_stay(cache: &Cache, pod: &Object) -> Result<(), String> {
    for name in pod::claims(pod) {
        match cache.get(&Key::new(*CLAIMS, pod.namespace(), name)) {
            None => return Err(format!("persistentvolumeclaim {name:?} not found")),
            Some(claim) if claim.is_deleting() => {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The best node for a pod and an address there, or why there is none.
pub fn place(view: &View<'_>, pod: &Object) -> Result<Binding, String> {
    let wanted = pod::node(pod);
    let nodes: Vec<&Object> = view
        .cache
        .list(*NODES)
        .map(AsRef::as_ref)
        .filter(|node: &&Object| wanted.is_none_or(|name| name == node.name()))
        .collect();
    let amount = requests(pod);
    let owner = pod::manager(pod);

    let mut refusals: BTreeMap<Refusal, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    for node in &nodes {
        let used = used(view, node.name());
        // A pod that names its node is past choosing: it only wants an address.
        let refusal = if wanted.is_some() { None } else { refuse(pod, node, amount, used) };
        let address = if pod::is_host_network(pod) { Ok(None) } else { address(view, pod, node).map(Some) };
        match (refusal, address) {
            (None, Ok(address)) => fitting.push((node, used, address)),
            (Some(refusal), _) | (None, Err(refusal)) => *refusals.entry(refusal).or_insert(0) += 1,
        }
    }
    // Fewest siblings first, then fewest pods, then by name.
    let siblings = |node: &str| {
        let siblings = owner.into_iter().flat_map(|uid| view.cache.dependents(uid));
        siblings.filter(|sibling| pod::node(sibling) == Some(node) && pod::is_active(sibling)).count()
    };
    let best = fitting.into_iter().min_by_key(|(node, used, _)| {
        let free = allocatable(node, "cpu", parse_millicpu).saturating_sub(used.millicpu);
        (siblings(node.name()), used.pods, Reverse(free), node.name().to_owned())
    });
    match best {
        Some((node, _, address)) => Ok(Binding { node: node.name().into(), address, amount }),
        None => {
            let reasons: Vec<String> = refusals.iter().map(|(why, count)| format!("{count} {why}")).collect();
            let reasons = if reasons.is_empty() { "no nodes".into() } else { reasons.join(", ") };
            Err(format!("0/{} nodes are available: {reasons}.", nodes.len()))
        }
    }
}

fn used(view: &View<'_>, node: &str) -> Amount {
    let mut used = view.cache.ledger.used(node);
    for (pod, binding) in view.assumed.iter().filter(|(_, binding)| binding.node == node) {
        // Known already, though not answered: counted once.
        if view.cache.get(pod).is_none_or(|pod| pod::node(pod).is_none()) {
            used += binding.amount;
        }
    }
    used
}

fn refuse(pod: &Object, node: &Object, amount: Amount, used: Amount) -> Option<Refusal> {
    let conditions = node.get_array("status.conditions");
    let is_ready = conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True");
    if node.get_bool("spec.unschedulable") == Some(true) {
        return Some(Refusal::Unschedulable);
    }
    if node.is_deleting() || !is_ready {
        return Some(Refusal::NotReady);
    }
    let taints = node.get_array("spec.taints").iter().filter(|taint| taint["effect"] != "PreferNoSchedule");
    if let Some(taint) = untolerated(pod, taints) {
        let text = |field: &str| taint[field].as_str().unwrap_or("").to_owned();
        return Some(Refusal::Taint(format!("{}: {}", text("key"), text("value"))));
    }
    let selector = pod.get("spec.nodeSelector").and_then(Value::as_object);
    if selector
        .is_some_and(|labels| labels.iter().any(|(name, value)| node.labels().get(name) != Some(value)))
    {
        return Some(Refusal::Selector);
    }
    if used.millicpu + amount.millicpu > allocatable(node, "cpu", parse_millicpu) && amount.millicpu > 0 {
        return Some(Refusal::Cpu);
    }
    if used.memory_bytes + amount.memory_bytes > allocatable(node, "memory", parse_bytes)
        && amount.memory_bytes > 0
    {
        return Some(Refusal::Memory);
    }
    let pods_max = match allocatable(node, "pods", parse_bytes) {
        u64::MAX => PODS_MAX,
        pods => pods,
    };
    (used.pods + amount.pods > pods_max).then_some(Refusal::Pods)
}

/// What a node has to give; all one could wish for if it does not say.
fn allocatable<E>(node: &Object, resource: &str, parse: fn(&str) -> Result<u64, E>) -> u64 {
    let amount = node.get("status.allocatable").and_then(|it| it[resource].as_str());
    amount.and_then(|text| parse(text).ok()).unwrap_or(u64::MAX)
}

fn address(view: &View<'_>, pod: &Object, node: &Object) -> Result<IpAddr, Refusal> {
    let block = node.get_str("spec.podCIDR").and_then(Block::parse).ok_or(Refusal::Addresses)?;
    let is_taken = |address: IpAddr| {
        view.cache.ledger.is_taken(address)
            || view.assumed.values().any(|binding| binding.address == Some(address))
    };
    block.choose(hash(&[pod.uid()]), is_taken).ok_or(Refusal::Addresses)
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
mod tests {
    use super::*;
    use crate::testing::{cache, look, now, pod, ready, with};

    fn node(name: &str, patch: Value) -> Object {
        let base = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": {"disk": "ssd"}},
            "spec": {"podCIDR": "10.0.0.0/29"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "allocatable": {"cpu": "1", "memory": "1Gi", "pods": "3"}},
        });
        with(&Object(base), patch)
    }

    #[track_caller]
    fn check(wanting: Object, others: &[Object], expect: &str) {
        let key = wanting.key();
        let plan = look(super::look, &key, others.iter().cloned().chain([wanting]));
        let said = plan.steps.iter().map(|step| match &step.call {
            Call::Bind { node, pod_ip, .. } => match pod_ip {
                Some(address) => format!("{node} {address}"),
                None => node.clone(),
            },
            Call::Update { object, .. } => object.0["status"]["conditions"][0]["message"].to_string(),
            other => format!("{other:?}"),
        });
        assert_eq!(said.collect::<Vec<_>>().join("; ").replace('"', ""), expect);
    }

    fn wanting(patch: Value) -> Object {
        pod("w", patch)
    }

    #[test]
    fn node_and_address_come_in_one_write() {
        check(wanting(json!({})), &[node("node-0", json!({}))], "node-0 10.0.0.5");
    }

    #[test]
    fn no_address_is_given_twice() {
        let taken = pod("a", ready("10.0.0.5"));
        check(wanting(json!({})), &[node("node-0", json!({})), taken], "node-0 10.0.0.6");
        let ended = pod("a", with(&Object(ready("10.0.0.5")), json!({"status": {"phase": "Failed"}})).0);
        check(wanting(json!({})), &[node("node-0", json!({})), ended], "node-0 10.0.0.5");
    }

    #[test]
    fn what_is_being_bound_is_taken() {
        let cache = cache([node("node-0", json!({})), wanting(json!({}))]);
        let amount = Amount { millicpu: 0, memory_bytes: 0, pods: 1 };
        let binding = Binding { node: "node-0".into(), address: Some("10.0.0.5".parse().unwrap()), amount };
        let assumed = Assumed::from([(Key::core("pods", "n", "other"), binding)]);
        let view = View { cache: &cache, assumed: &assumed, now: now() };
        let placed = place(&view, &wanting(json!({}))).unwrap();
        assert_eq!(placed.address, Some("10.0.0.6".parse().unwrap()));
    }

    #[test]
    fn a_pod_that_names_its_node_gets_an_address_there() {
        let nodes = [node("node-0", json!({})), node("node-1", json!({"spec": {"podCIDR": "10.0.1.0/29"}}))];
        check(wanting(json!({"spec": {"nodeName": "node-1"}})), &nodes, "node-1 10.0.1.5");
    }

    #[test]
    fn a_node_must_be_ready_schedulable_tolerated_selected() {
        let none = "0/1 nodes are available: 1";
        let check = |pod: Value, patch: Value, expect: &str| check(wanting(pod), &[node("n", patch)], expect);
        let why = |why: &str| format!("{none} {why}.");
        let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        check(json!({}), not_ready, &why("node(s) were not ready"));
        check(json!({}), json!({"spec": {"unschedulable": true}}), &why("node(s) were unschedulable"));
        let ssd = json!({"spec": {"nodeSelector": {"disk": "ssd"}}});
        check(ssd, json!({}), "n 10.0.0.5");
        let hdd = json!({"spec": {"nodeSelector": {"disk": "hdd"}}});
        check(hdd, json!({}), &why("node(s) didn't match Pod's node affinity/selector"));
        let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
        check(json!({}), taint.clone(), &why("node(s) had untolerated taint {k: v}"));
        for toleration in [json!({"operator": "Exists"}), json!({"key": "k", "value": "v"})] {
            check(json!({"spec": {"tolerations": [toleration]}}), taint.clone(), "n 10.0.0.5");
        }
        let wrong = json!({"key": "k", "value": "w"});
        let untolerated = why("node(s) had untolerated taint {k: v}");
        check(json!({"spec": {"tolerations": [wrong]}}), taint, &untolerated);
    }

    #[test]
    fn a_node_must_have_room() {
        let asks = |cpu: &str, memory: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]});
        let used = pod("a", json!({"spec": asks("600m", "512Mi")}));
        let used = with(&used, json!({"spec": {"nodeName": "n"}}));
        let check = |spec: Value, expect: &str| {
            check(wanting(json!({"spec": spec})), &[node("n", json!({})), used.clone()], expect);
        };
        check(asks("400m", "512Mi"), "n 10.0.0.5");
        check(asks("401m", "0"), "0/1 nodes are available: 1 Insufficient cpu.");
        check(asks("0", "513Mi"), "0/1 nodes are available: 1 Insufficient memory.");
        super::tests::check(wanting(json!({})), &[], "0/0 nodes are available: no nodes.");
        let three: Vec<Object> = ["a", "b", "c"]
            .map(|name| pod(name, json!({"spec": {"nodeName": "n"}})))
            .into_iter()
            .chain([node("n", json!({}))])
            .collect();
        super::tests::check(wanting(json!({})), &three, "0/1 nodes are available: 1 Too many pods.");
    }

    #[test]
    fn no_address_left_is_said() {
        let full: Vec<Object> = (2..7)
            .map(|n| pod(&format!("p{n}"), json!({"status": {"podIP": format!("10.0.0.{n}")}})))
            .chain([node("n", json!({}))])
            .collect();
        check(wanting(json!({})), &full, "0/1 nodes are available: 1 node(s) had no free pod address.");
    }

    #[test]
    fn a_claim_must_be_there_to_stay_but_not_bound() {
        let pod = wanting(json!({"spec": {"volumes": [
            {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}}));
        let claim = Object(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": "n", "uid": "c", "resourceVersion": "1"}}));
        let going = with(&claim, json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        let node = node("n", json!({}));
        check(pod.clone(), std::slice::from_ref(&node), "persistentvolumeclaim \\data\\ not found");
        check(pod.clone(), &[node.clone(), going], "persistentvolumeclaim \\data\\ is being deleted");
        check(pod, &[node, claim], "n 10.0.0.5");
    }

    #[test]
    fn siblings_spread() {
        let owner = pod("owner", json!({}));
        let sibling = crate::testing::owned(pod("a", ready("10.0.0.2")), &owner);
        let nodes = [node("node-0", json!({})), node("node-1", json!({"spec": {"podCIDR": "10.0.1.0/29"}}))];
        let others: Vec<Object> = nodes.into_iter().chain([sibling]).collect();
        check(crate::testing::owned(wanting(json!({})), &owner), &others, "node-1 10.0.1.5");
    }

    #[test]
    fn what_is_said_already_is_not_said_again() {
        let message = "0/0 nodes are available: no nodes.";
        let status = json!({"status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}});
        check(wanting(status), &[], "");
    }
}
