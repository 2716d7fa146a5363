//! Addresses: of the node's block; or, for a pod that keeps it, the one that its predecessor of that name had.
//!
//! A pod whose annotation `podyard.io/keep-address` is `true` has its address written down at its controller, by its
//! name, once it has one. A later pod of that name is bound with it, on whatever node, and nobody else gets it
//! meanwhile. Nodes that carry addresses of other nodes' blocks say so (`podyard.io/moved-addresses`), and every node
//! routes those one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::{Object, Part};
use serde_json::{Value, json};

use super::filter::Refusal;
use crate::cache::Cache;
use crate::effect::Call;
use crate::hash::hash;
use crate::ipam::Block;
use crate::kinds::{REPLICASETS, STATEFULSETS};
use crate::pod;
use crate::rules::View;

/// Asks that pods of a name keep their address.
const KEEP: &str = "podyard.io/keep-address";
/// At a controller: the addresses of its pods that keep theirs, by name, as JSON.
const KEPT: &str = "podyard.io/kept-addresses";

/// Whether a pod asks to keep its address.
pub fn keeps(pod: &Object) -> bool {
    pod.annotation(KEEP) == Some("true") && !pod::is_host_network(pod)
}

/// What a controller has written down.
fn kept(owner: &Object) -> BTreeMap<String, IpAddr> {
    owner.annotation(KEPT).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Addresses as one pod may have them.
pub struct Addresses<'a> {
    view: &'a View<'a>,
    /// Its own, from before.
    own: Option<IpAddr>,
    /// What others keep.
    reserved: BTreeSet<IpAddr>,
    start: u64,
}

impl<'a> Addresses<'a> {
    /// Those of a pod.
    pub fn new(view: &'a View<'a>, pod: &Object) -> Addresses<'a> {
        let mut addresses =
            Addresses { view, own: None, reserved: BTreeSet::new(), start: hash(&[pod.uid()]) };
        let manager = pod::manager(pod);
        let owners = view.cache.list(*STATEFULSETS).chain(view.cache.list(*REPLICASETS));
        for owner in owners.filter(|owner| owner.annotation(KEPT).is_some()) {
            for (name, address) in kept(owner) {
                if manager == Some(owner.uid()) && name == pod.name() {
                    addresses.own = Some(address).filter(|_| keeps(pod));
                } else {
                    addresses.reserved.insert(address);
                }
            }
        }
        addresses
    }

    /// The one on a node.
    pub fn on(&self, node: &Object) -> Result<IpAddr, Refusal> {
        let is_taken =
            |address: IpAddr| self.view.cache.ledger.is_taken(address) || self.view.assumed.is_taken(address);
        if let Some(own) = self.own.filter(|own| !is_taken(*own)) {
            return Ok(own);
        }
        let block = node.get_str("spec.podCIDR").and_then(Block::parse).ok_or(Refusal::Addresses)?;
        let is_others = |address: IpAddr| is_taken(address) || self.reserved.contains(&address);
        block.choose(self.start, is_others).ok_or(Refusal::Addresses)
    }
}

/// Writes the address of a pod that keeps it down at its controller.
pub fn remember(cache: &Cache, pod: &Object) -> Option<Call> {
    if !keeps(pod) || !pod::is_active(pod) {
        return None;
    }
    let (address, owner) = (pod::address(pod)?, cache.by_uid(pod::manager(pod)?)?);
    let mut all = kept(owner);
    if owner.is_deleting() || all.insert(pod.name().into(), address) == Some(address) {
        return None;
    }
    let mut object = owner.as_ref().clone();
    let mut annotations = owner.annotations().clone();
    annotations.insert(KEPT.into(), json!(all).to_string().into());
    object.set("metadata.annotations", Value::Object(annotations));
    Some(Call::Update { object, part: Part::Main })
}

/// The addresses of other nodes' blocks that pods have on a node, in order.
pub fn moved(cache: &Cache, node: &Object) -> Vec<IpAddr> {
    let Some(block) = node.get_str("spec.podCIDR").and_then(Block::parse) else { return Vec::new() };
    let pods = cache.pods_on(node.name()).filter(|pod| !pod::is_terminal(pod));
    let away = pods.filter_map(|pod| pod::address(pod)).filter(|address| !block.contains(*address));
    away.collect::<BTreeSet<IpAddr>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{Assumed, place};
    use crate::testing::{cache, now, owned, pod, ready, with};

    fn node(name: &str, cidr: &str) -> Object {
        Object(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
            "spec": {"podCIDR": cidr},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }))
    }

    fn set() -> Object {
        Object(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "n", "uid": "set", "resourceVersion": "1"},
        }))
    }

    fn keeper(name: &str) -> Object {
        owned(pod(name, json!({"metadata": {"annotations": {KEEP: "true"}}})), &set())
    }

    #[test]
    fn a_pod_that_moves_keeps_its_address() {
        let there = with(&keeper("web-0"), ready("10.0.0.3"));
        let known = cache([set(), there.clone()]);
        let Some(Call::Update { object: set, part: Part::Main }) = remember(&known, &there) else { panic!() };
        let known = cache([set.clone(), there.clone()]);
        assert_eq!(remember(&known, &there), None, "once is enough");

        let address_of = |pod: &Object, others: &[Object]| {
            let all = [&[set.clone(), node("n1", "10.0.1.0/29")], others].concat();
            let (cache, assumed) = (cache(all), Assumed::new());
            let view = View { cache: &cache, assumed: &assumed, now: now() };
            place(&view, pod).unwrap().address.unwrap().to_string()
        };
        assert_eq!(address_of(&keeper("web-0"), &[]), "10.0.0.3");
        let taken = pod("other", ready("10.0.0.3"));
        assert!(address_of(&keeper("web-0"), &[taken]).starts_with("10.0.1."));
        assert!(address_of(&keeper("web-1"), &[]).starts_with("10.0.1."));
        let loose = with(&keeper("web-0"), json!({"metadata": {"annotations": {KEEP: "false"}}}));
        assert!(address_of(&loose, &[]).starts_with("10.0.1."));
    }

    #[test]
    fn nobody_gets_an_address_that_is_kept() {
        let mut set = set();
        let all: BTreeMap<String, String> =
            (2..6).map(|n| (format!("web-{n}"), format!("10.0.0.{n}"))).collect();
        set.set("metadata.annotations", json!({KEPT: json!(all).to_string()}));
        let (cache, assumed) = (cache([set, node("n0", "10.0.0.0/29")]), Assumed::new());
        let view = View { cache: &cache, assumed: &assumed, now: now() };
        let placed = place(&view, &pod("stranger", json!({}))).unwrap();
        assert_eq!(placed.address.unwrap().to_string(), "10.0.0.6");
    }

    #[test]
    fn a_node_says_which_addresses_are_not_of_its_block() {
        let on =
            |name: &str, address: &str| with(&pod(name, ready(address)), json!({"spec": {"nodeName": "n1"}}));
        let node = node("n1", "10.0.1.0/29");
        let cache = cache([node.clone(), on("a", "10.0.1.2"), on("b", "10.0.0.3"), on("c", "10.0.0.2")]);
        let said: Vec<String> = moved(&cache, &node).iter().map(ToString::to_string).collect();
        assert_eq!(said, ["10.0.0.2", "10.0.0.3"]);
    }
}
