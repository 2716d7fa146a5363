//! Which nodes do for a pod, rule by rule; the first rule that refuses a node says why.
//!
//! Source: Kubernetes documentation, "Assigning Pods to Nodes"; the words are kube-scheduler's.

use std::fmt;

use api::Object;
use api::quantity::{parse_bytes, parse_millicpu};
use serde_json::json;

use super::affinity;
use super::neighbours::Neighbours;
use super::scene::{Scene, Site};
use super::spread::Spread;
use crate::ledger::Amount;
use crate::toleration::{NO_SCHEDULE, untolerated};

/// Pods a node takes if it does not say.
const PODS_MAX: u64 = 110;

/// Why a node does not do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    Unschedulable,
    Leaving,
    Taint(String),
    Affinity,
    Cpu,
    Memory,
    Pods,
    Addresses,
    SpreadLabel,
    Spread,
    PodAffinity,
    PodAntiAffinity,
    OthersAntiAffinity,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Unschedulable => "node(s) were unschedulable",
            Refusal::Leaving => "node(s) were being deleted",
            Refusal::Taint(taint) => return write!(f, "node(s) had untolerated taint {{{taint}}}"),
            Refusal::Affinity => "node(s) didn't match Pod's node affinity/selector",
            Refusal::Cpu => "Insufficient cpu",
            Refusal::Memory => "Insufficient memory",
            Refusal::Pods => "Too many pods",
            Refusal::Addresses => "node(s) had no free pod address",
            Refusal::SpreadLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Refusal::Spread => "node(s) didn't match pod topology spread constraints",
            Refusal::PodAffinity => "node(s) didn't match pod affinity rules",
            Refusal::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Refusal::OthersAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
        })
    }
}

/// The rules, prepared for one pod.
#[derive(Debug)]
pub struct Filter<'a> {
    pod: &'a Object,
    amount: Amount,
    tolerates_cordons: bool,
    spread: Spread<'a>,
    neighbours: Neighbours<'a>,
}

impl<'a> Filter<'a> {
    /// The rules for the scene's pod, which asks for `amount`.
    pub fn new(scene: &Scene<'a>, amount: Amount) -> Filter<'a> {
        let cordon = json!({"key": api::node::UNSCHEDULABLE_TAINT, "effect": NO_SCHEDULE});
        Filter {
            pod: scene.pod,
            amount,
            tolerates_cordons: untolerated(scene.pod, [&cordon]).is_none(),
            spread: Spread::required(scene),
            neighbours: Neighbours::required(scene),
        }
    }

    /// Why a node does not do; nothing if it does.
    pub fn refuse(&self, site: &Site<'_>) -> Vec<Refusal> {
        let one = |refusal| vec![refusal];
        if site.node.get_bool("spec.unschedulable") == Some(true) && !self.tolerates_cordons {
            return one(Refusal::Unschedulable);
        }
        if site.node.is_deleting() {
            return one(Refusal::Leaving);
        }
        if let Some(taint) = untolerated(self.pod, repelling(site)) {
            let text = |field: &str| taint[field].as_str().unwrap_or("");
            return one(Refusal::Taint(format!("{}: {}", text("key"), text("value"))));
        }
        if !affinity::is_match(self.pod, site.node) {
            return one(Refusal::Affinity);
        }
        let lacks = self.lacks(site);
        if !lacks.is_empty() {
            return lacks;
        }
        let last = self.spread.refuse(site).or_else(|| self.neighbours.refuse(site));
        last.into_iter().collect()
    }

    fn lacks(&self, site: &Site<'_>) -> Vec<Refusal> {
        let (wanted, used) = (self.amount, site.used);
        let exceeds = |wanted: u64, used: u64, most: u64| wanted > 0 && used.saturating_add(wanted) > most;
        let mut lacks = Vec::new();
        if exceeds(wanted.pods, used.pods, pods_max(site.node)) {
            lacks.push(Refusal::Pods);
        }
        if exceeds(wanted.millicpu, used.millicpu, allocatable(site.node, "cpu", parse_millicpu)) {
            lacks.push(Refusal::Cpu);
        }
        if exceeds(wanted.memory_bytes, used.memory_bytes, allocatable(site.node, "memory", parse_bytes)) {
            lacks.push(Refusal::Memory);
        }
        lacks
    }
}

/// The taints that keep pods away.
pub fn repelling<'a>(site: &'a Site<'_>) -> impl Iterator<Item = &'a serde_json::Value> {
    site.taints.iter().filter(|taint| taint["effect"] != "PreferNoSchedule")
}

/// What a node has to give; all one could wish for if it does not say.
pub fn allocatable<E>(node: &Object, resource: &str, parse: fn(&str) -> Result<u64, E>) -> u64 {
    let amount = node.get("status.allocatable").and_then(|it| it[resource].as_str());
    amount.and_then(|text| parse(text).ok()).unwrap_or(u64::MAX)
}

/// Pods a node takes.
pub fn pods_max(node: &Object) -> u64 {
    match allocatable(node, "pods", parse_bytes) {
        u64::MAX => PODS_MAX,
        pods => pods,
    }
}
