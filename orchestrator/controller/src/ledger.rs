//! What the pods hold: room on nodes, and addresses.
//!
//! A fold over the pods, kept up to date pod by pod. A pod that has ended holds nothing; one that is ending holds all
//! until it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::{AddAssign, SubAssign};

use api::quantity::{parse_bytes, parse_millicpu};
use api::{Key, Object};
use serde_json::Value;

use crate::pod;
use crate::scheduler;

/// An amount of what nodes have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Thousandths of a CPU.
    pub millicpu: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Pods.
    pub pods: u64,
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        self.millicpu = self.millicpu.saturating_add(other.millicpu);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.pods = self.pods.saturating_add(other.pods);
    }
}

impl SubAssign for Amount {
    fn sub_assign(&mut self, other: Amount) {
        self.millicpu = self.millicpu.saturating_sub(other.millicpu);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.pods = self.pods.saturating_sub(other.pods);
    }
}

/// What a pod asks for: the sum over its containers, or what one init container needs if that is more.
pub fn requests(pod: &Object) -> Amount {
    let of = |container: &Value| {
        let requests = &container["resources"]["requests"];
        Amount {
            millicpu: requests["cpu"].as_str().and_then(|text| parse_millicpu(text).ok()).unwrap_or(0),
            memory_bytes: requests["memory"].as_str().and_then(|text| parse_bytes(text).ok()).unwrap_or(0),
            pods: 0,
        }
    };
    let mut sum = Amount::default();
    for container in pod.get_array("spec.containers") {
        sum += of(container);
    }
    for container in pod.get_array("spec.initContainers") {
        let one = of(container);
        if container["restartPolicy"] == "Always" {
            sum += one;
        } else {
            sum.millicpu = sum.millicpu.max(one.millicpu);
            sum.memory_bytes = sum.memory_bytes.max(one.memory_bytes);
        }
    }
    Amount { pods: 1, ..sum }
}

#[derive(Debug, Default)]
struct Entry {
    node: Option<String>,
    address: Option<IpAddr>,
    amount: Amount,
    is_unplaced: bool,
    is_social: bool,
}

/// Which pod holds what.
#[derive(Debug, Default)]
pub struct Ledger {
    pods: BTreeMap<Key, Entry>,
    nodes: BTreeMap<String, Amount>,
    addresses: BTreeMap<IpAddr, BTreeSet<Key>>,
    unplaced: BTreeSet<Key>,
    social: BTreeSet<Key>,
}

impl Ledger {
    /// Notes a pod, which must not be noted yet.
    pub fn put(&mut self, key: &Key, object: &Object) {
        if pod::is_terminal(object) {
            return;
        }
        let entry = Entry {
            node: pod::node(object).map(str::to_owned),
            address: pod::address(object),
            amount: requests(object),
            is_unplaced: scheduler::is_unplaced(object),
            is_social: scheduler::is_social(object),
        };
        if entry.is_unplaced {
            self.unplaced.insert(key.clone());
        }
        if entry.is_social {
            self.social.insert(key.clone());
        }
        if let Some(node) = &entry.node {
            *self.nodes.entry(node.clone()).or_default() += entry.amount;
        }
        if let Some(address) = entry.address {
            self.addresses.entry(address).or_default().insert(key.clone());
        }
        self.pods.insert(key.clone(), entry);
    }

    /// Forgets a pod.
    pub fn remove(&mut self, key: &Key) {
        let Some(entry) = self.pods.remove(key) else { return };
        if entry.is_unplaced {
            self.unplaced.remove(key);
        }
        if entry.is_social {
            self.social.remove(key);
        }
        if let Some(node) = entry.node
            && let Some(amount) = self.nodes.get_mut(&node)
        {
            *amount -= entry.amount;
            if *amount == Amount::default() {
                self.nodes.remove(&node);
            }
        }
        if let Some(address) = entry.address
            && let Some(keys) = self.addresses.get_mut(&address)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.addresses.remove(&address);
            }
        }
    }

    /// What the pods of a node hold.
    pub fn used(&self, node: &str) -> Amount {
        self.nodes.get(node).copied().unwrap_or_default()
    }

    /// Pods that wait for a node or an address.
    pub fn unplaced(&self) -> impl Iterator<Item = &Key> {
        self.unplaced.iter()
    }

    /// Pods that say whom they want near them, or not.
    pub fn social(&self) -> impl Iterator<Item = &Key> {
        self.social.iter()
    }

    /// Whether some pod holds the address.
    pub fn is_taken(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(phase: &str) -> Object {
        Object(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n"},
            "spec": {"nodeName": "node-0",
                "containers": [{"resources": {"requests": {"cpu": "250m", "memory": "1Mi"}}}, {}],
                "initContainers": [{"resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": phase, "podIP": "10.0.0.2"},
        }))
    }

    #[test]
    fn requests_are_the_larger_of_sum_and_init() {
        let expect = Amount { millicpu: 1000, memory_bytes: 1 << 20, pods: 1 };
        assert_eq!(requests(&pod("Running")), expect);
    }

    #[test]
    fn what_is_put_is_what_is_removed() {
        let key = Key::core("pods", "n", "a");
        let mut ledger = Ledger::default();
        ledger.put(&key, &pod("Running"));
        assert_eq!(ledger.used("node-0").pods, 1);
        assert!(ledger.is_taken("10.0.0.2".parse().unwrap()));
        ledger.remove(&key);
        assert_eq!(ledger.used("node-0"), Amount::default());
        assert!(!ledger.is_taken("10.0.0.2".parse().unwrap()));
    }

    #[test]
    fn a_pod_that_has_ended_holds_nothing() {
        let key = Key::core("pods", "n", "a");
        let mut ledger = Ledger::default();
        ledger.put(&key, &pod("Failed"));
        assert_eq!(ledger.used("node-0"), Amount::default());
    }
}
