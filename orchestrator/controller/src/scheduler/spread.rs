//! Topology spread: pods of a kind evenly over the domains of a topology.
//!
//! ```text
//!  skew of a domain = pods of the kind in it, with this one, less those in the emptiest domain
//!  DoNotSchedule: skew ≤ maxSkew, or the node does not do     ScheduleAnyway: the fewer the better
//! ```
//! Domains are those of nodes that have every key the pod spreads by and that the pod may be on at all
//! (`nodeAffinityPolicy`, `nodeTaintsPolicy`). Pods that are ending do not count.
//!
//! Source: Kubernetes documentation, "Pod Topology Spread Constraints"; core/v1 TopologySpreadConstraint.

use std::collections::BTreeMap;

use api::{LabelSelector, Object};
use serde_json::Value;

use super::affinity;
use super::filter::{Refusal, repelling};
use super::neighbours::selector;
use super::scene::{Scene, Site};
use crate::toleration::untolerated;

/// Whether a pod says how it is spread.
pub fn is_spread(pod: &Object) -> bool {
    !constraints(pod).is_empty()
}

fn constraints(pod: &Object) -> &[Value] {
    pod.get_array("spec.topologySpreadConstraints")
}

/// One constraint, and the pods of its kind in each domain.
#[derive(Debug)]
struct Constraint<'a> {
    topology: &'a str,
    skew_max: i64,
    domains_min: i64,
    /// The pod is of the kind itself.
    counts_itself: bool,
    counts: BTreeMap<&'a str, i64>,
}

/// The constraints of a pod of one strictness.
#[derive(Debug, Default)]
pub struct Spread<'a>(Vec<Constraint<'a>>);

impl<'a> Spread<'a> {
    /// Those that must hold.
    pub fn required(scene: &Scene<'a>) -> Spread<'a> {
        Spread::new(scene, "DoNotSchedule")
    }

    /// Those that should.
    pub fn preferred(scene: &Scene<'a>) -> Spread<'a> {
        Spread::new(scene, "ScheduleAnyway")
    }

    fn new(scene: &Scene<'a>, when: &str) -> Spread<'a> {
        let pod = scene.pod;
        let is_strict = |it: &&Value| it["whenUnsatisfiable"].as_str().unwrap_or("DoNotSchedule") == when;
        let wanted: Vec<&Value> = constraints(pod).iter().filter(is_strict).collect();
        let keys: Vec<&str> = wanted.iter().filter_map(|it| it["topologyKey"].as_str()).collect();
        let of = |it: &'a Value| {
            let topology = it["topologyKey"].as_str()?;
            let selector: Option<LabelSelector> = selector(it, pod);
            let matches = |pod: &Object| selector.as_ref().is_some_and(|it| it.matches(pod.labels()));
            let counts_node = |site: &Site<'_>| {
                keys.iter().all(|key| site.domain(key).is_some())
                    && (it["nodeAffinityPolicy"] == "Ignore" || affinity::is_match(pod, site.node))
                    && (it["nodeTaintsPolicy"] != "Honor" || untolerated(pod, repelling(site)).is_none())
            };
            let counted: Vec<&str> =
                scene.sites.iter().filter(|site| counts_node(site)).map(|site| site.node.name()).collect();
            let is_counted = |site: &Site<'_>| counted.contains(&site.node.name());
            let mut counts: BTreeMap<&'a str, i64> = BTreeMap::new();
            for site in scene.sites.iter().filter(|site| is_counted(site)) {
                counts.entry(site.domain(topology)?).or_insert(0);
            }
            let others = scene.placed_in(pod.namespace());
            for (_, site) in
                others.filter(|(other, site)| !other.is_deleting() && matches(other) && is_counted(site))
            {
                *counts.entry(site.domain(topology)?).or_insert(0) += 1;
            }
            Some(Constraint {
                topology,
                skew_max: it["maxSkew"].as_i64().unwrap_or(1),
                domains_min: it["minDomains"].as_i64().unwrap_or(1),
                counts_itself: matches(pod),
                counts,
            })
        };
        Spread(wanted.into_iter().filter_map(of).collect())
    }

    /// Why a node does not do.
    pub fn refuse(&self, site: &Site<'_>) -> Option<Refusal> {
        for constraint in &self.0 {
            let Some(domain) = site.domain(constraint.topology) else { return Some(Refusal::SpreadLabel) };
            let domains = i64::try_from(constraint.counts.len()).unwrap_or(i64::MAX);
            let least = match domains < constraint.domains_min {
                true => 0,
                false => constraint.counts.values().copied().min().unwrap_or(0),
            };
            let here = constraint.counts.get(domain).copied().unwrap_or(0);
            if here + i64::from(constraint.counts_itself) - least > constraint.skew_max {
                return Some(Refusal::Spread);
            }
        }
        None
    }

    /// How crowded the node's domains are, in hundredths of the skew allowed; `None` if it lacks a key.
    pub fn crowd(&self, site: &Site<'_>) -> Option<i64> {
        let crowd = |it: &Constraint<'_>| {
            let here = it.counts.get(site.domain(it.topology)?).copied().unwrap_or(0);
            Some(here * 100 / it.skew_max.max(1))
        };
        self.0.iter().map(crowd).sum()
    }
}
