//! What one decision is made from: the nodes, and which pods are on them or on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::{Key, Object};

use crate::cache::Cache;
use crate::kinds::{NODES, PODS};
use crate::ledger::Amount;
use crate::node;
use crate::pod;
use crate::rules::View;

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

/// Bindings that are not answered yet.
#[derive(Clone, Debug, Default)]
pub struct Assumed {
    bindings: BTreeMap<Key, Binding>,
    addresses: BTreeSet<IpAddr>,
}

impl Assumed {
    /// None.
    #[cfg(test)]
    pub fn new() -> Assumed {
        Assumed::default()
    }

    /// Notes a binding.
    pub fn put(&mut self, pod: Key, binding: Binding) {
        self.remove(&pod);
        self.addresses.extend(binding.address);
        self.bindings.insert(pod, binding);
    }

    /// Forgets a binding: it is answered.
    pub fn remove(&mut self, pod: &Key) {
        if let Some(address) = self.bindings.remove(pod).and_then(|binding| binding.address) {
            self.addresses.remove(&address);
        }
    }

    /// Whether an address is being given away.
    pub fn is_taken(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }
}

/// A node, as a place for pods.
#[derive(Debug)]
pub struct Site<'a> {
    /// The node.
    pub node: &'a Object,
    /// The taints that count.
    pub taints: Vec<serde_json::Value>,
    /// What its pods hold.
    pub used: Amount,
}

impl<'a> Site<'a> {
    /// The domain of a topology that the node is in.
    pub fn domain(&self, topology: &str) -> Option<&'a str> {
        self.node.label(topology)
    }
}

/// What a decision about one pod is made from.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The pod that wants a place.
    pub pod: &'a Object,
    /// All nodes, by name.
    pub sites: Vec<Site<'a>>,
    /// What is known.
    pub cache: &'a Cache,
    by_name: BTreeMap<&'a str, usize>,
    /// Pods on their way, with their nodes.
    coming: Vec<(&'a Object, usize)>,
}

impl<'a> Scene<'a> {
    /// The scene of a pod.
    pub fn new(view: &View<'a>, pod: &'a Object) -> Scene<'a> {
        let site = |node: &'a Object| Site {
            node,
            taints: node::taints(node),
            used: view.cache.ledger.used(node.name()),
        };
        let mut sites: Vec<Site<'a>> = view.cache.list(*NODES).map(|node| site(node)).collect();
        let names = sites.iter().enumerate().map(|(index, site)| (site.node.name(), index));
        let by_name: BTreeMap<&str, usize> = names.collect();
        let mut coming = Vec::new();
        for (key, binding) in &view.assumed.bindings {
            let Some(index) = by_name.get(binding.node.as_str()) else { continue };
            match view.cache.get(key) {
                // Known already, though not answered: counted once.
                Some(known) if pod::node(known).is_some() => {}
                known => {
                    sites[*index].used += binding.amount;
                    coming.extend(known.map(|known| (known.as_ref(), *index)));
                }
            }
        }
        Scene { pod, sites, cache: view.cache, by_name, coming }
    }

    /// The pods on the nodes and on their way there; not those that have ended, nor this one.
    pub fn placed(&self) -> impl Iterator<Item = (&'a Object, &Site<'a>)> {
        self.sited(self.cache.list(*PODS).map(AsRef::as_ref))
    }

    /// Of those, the ones in a namespace.
    pub fn placed_in(&self, namespace: &'a str) -> impl Iterator<Item = (&'a Object, &Site<'a>)> {
        let pods = self.cache.list_in(*PODS, namespace).map(AsRef::as_ref);
        self.sited(pods).filter(move |(pod, _)| pod.namespace() == namespace)
    }

    /// Of those, the ones that care whom they are with.
    pub fn social(&self) -> impl Iterator<Item = (&'a Object, &Site<'a>)> {
        let pods = self.cache.ledger.social().filter_map(|key| self.cache.get(key)).map(AsRef::as_ref);
        self.sited(pods)
    }

    /// Of those, the ones of a controller, with their nodes' names.
    pub fn of_owner(&self, owner: &'a str) -> impl Iterator<Item = (&'a Object, &'a str)> {
        let pods = self.sited(self.cache.dependents(owner).map(AsRef::as_ref));
        pods.filter(move |(pod, _)| pod::manager(pod) == Some(owner))
            .map(|(pod, site)| (pod, site.node.name()))
    }

    fn sited(&self, pods: impl Iterator<Item = &'a Object>) -> impl Iterator<Item = (&'a Object, &Site<'a>)> {
        let here = pods.filter(|pod: &&Object| !pod::is_terminal(pod)).filter_map(|pod| {
            let index = self.by_name.get(pod::node(pod)?)?;
            Some((pod, *index))
        });
        let all = here.chain(self.coming.iter().copied());
        all.filter(|(pod, _)| pod.uid() != self.pod.uid()).map(|(pod, index)| (pod, &self.sites[index]))
    }
}
