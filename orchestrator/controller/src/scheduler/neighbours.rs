//! Pod affinity and anti-affinity: which pods a pod wants near it, and which it does not.
//!
//! Near means in the same domain of a topology: on nodes whose label of that key has the same value. Each decision
//! turns all terms, the pod's own and those of the pods there, into sets of domains; a node is then judged by its
//! labels alone.
//!
//! Source: Kubernetes documentation, "Inter-pod affinity and anti-affinity"; core/v1 PodAffinityTerm.

use std::collections::{BTreeMap, BTreeSet};

use api::{LabelSelector, Object};
use serde_json::Value;

use super::filter::Refusal;
use super::scene::{Scene, Site};
use crate::cache::Cache;
use crate::kinds::NAMESPACES;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
/// What a required term of a pod that is there weighs for one that comes. Kubernetes' default.
const HARD_WEIGHT: i64 = 1;

/// Whether a pod says whom it wants near it, or not.
pub fn is_social(pod: &Object) -> bool {
    pod.get("spec.affinity.podAffinity").is_some() || pod.get("spec.affinity.podAntiAffinity").is_some()
}

/// A topology and a value in it.
type Domain<'a> = (&'a str, &'a str);

/// One term: pods of some kind, near by some topology.
#[derive(Debug)]
struct Term<'a> {
    topology: &'a str,
    selector: LabelSelector,
    /// `None`: all.
    namespaces: Option<BTreeSet<&'a str>>,
    weight: i64,
}

impl Term<'_> {
    fn matches(&self, pod: &Object) -> bool {
        self.namespaces.as_ref().is_none_or(|names| names.contains(pod.namespace()))
            && self.selector.matches(pod.labels())
    }
}

/// The terms of a pod in one of its four lists. One that selects no pods is left out.
fn terms<'a>(pod: &'a Object, cache: &'a Cache, affinity: &str, list: &str) -> Vec<Option<Term<'a>>> {
    let terms = pod.get("spec.affinity").and_then(|all| all[affinity][list].as_array());
    let terms = terms.into_iter().flatten().map(|term| match &term["podAffinityTerm"] {
        Value::Null => (term, HARD_WEIGHT),
        inner => (inner, term["weight"].as_i64().unwrap_or(0)),
    });
    terms
        .map(|(term, weight)| {
            let selector = selector(term, pod)?;
            let topology = term["topologyKey"].as_str()?;
            Some(Term { topology, selector, namespaces: namespaces(term, pod, cache), weight })
        })
        .collect()
}

/// The selector of a term, narrowed by the pod's own labels where it says so; `None` selects nothing.
pub fn selector(term: &Value, pod: &Object) -> Option<LabelSelector> {
    let mut selector = LabelSelector::from_spec(term.get("labelSelector")?).ok()?;
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        let keys = term[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        for (key, value) in keys.filter_map(|key| Some((key, pod.label(key)?))) {
            let spec = serde_json::json!({"matchExpressions":
                [{"key": key, "operator": operator, "values": [value]}]});
            selector.requirements.extend(LabelSelector::from_spec(&spec).ok()?.requirements);
        }
    }
    Some(selector)
}

/// The namespaces a term looks at; `None` for all.
fn namespaces<'a>(term: &'a Value, pod: &'a Object, cache: &'a Cache) -> Option<BTreeSet<&'a str>> {
    let named = term["namespaces"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut names: BTreeSet<&str> = named.collect();
    match term.get("namespaceSelector").map(LabelSelector::from_spec) {
        Some(Ok(selector)) if selector.is_empty() => return None,
        Some(Ok(selector)) => {
            let selected = cache.list(*NAMESPACES).filter(|it| selector.matches(it.labels()));
            names.extend(selected.map(|it| it.name()));
        }
        Some(Err(_)) => {}
        None if names.is_empty() => {
            names.insert(pod.namespace());
        }
        None => {}
    }
    Some(names)
}

/// What neighbours forbid.
#[derive(Debug, Default)]
pub struct Neighbours<'a> {
    /// For each required term its topology, and the domains with a pod that all terms match.
    wanted: Vec<(&'a str, BTreeSet<&'a str>)>,
    /// No pod matches anywhere, and this one matches itself: it may be the first of its kind.
    is_first: bool,
    /// A required term selects nothing.
    is_hopeless: bool,
    /// Where pods are that it does not want near.
    shunned: BTreeSet<Domain<'a>>,
    /// Where pods are that do not want it near.
    shunning: BTreeSet<Domain<'a>>,
}

impl<'a> Neighbours<'a> {
    /// The required terms of the scene's pod, and those of the pods there that are about it.
    pub fn required(scene: &Scene<'a>) -> Neighbours<'a> {
        let mut all = Neighbours::default();
        let (pod, cache) = (scene.pod, scene.cache);
        let near = terms(pod, cache, "podAffinity", REQUIRED);
        let far = terms(pod, cache, "podAntiAffinity", REQUIRED);
        all.is_hopeless = near.iter().any(Option::is_none);
        let near: Vec<Term<'a>> = near.into_iter().flatten().collect();
        let far: Vec<Term<'a>> = far.into_iter().flatten().collect();
        all.wanted = near.iter().map(|term| (term.topology, BTreeSet::new())).collect();
        if !near.is_empty() || !far.is_empty() {
            for (other, site) in scene.placed() {
                if !near.is_empty() && near.iter().all(|term| term.matches(other)) {
                    for (topology, domains) in &mut all.wanted {
                        domains.extend(site.domain(topology));
                    }
                }
                for term in far.iter().filter(|term| term.matches(other)) {
                    all.shunned.extend(site.domain(term.topology).map(|value| (term.topology, value)));
                }
            }
        }
        all.is_first = all.wanted.iter().all(|(_, domains)| domains.is_empty())
            && near.iter().all(|term| term.matches(pod));
        for (other, site) in scene.social() {
            for term in terms(other, cache, "podAntiAffinity", REQUIRED).into_iter().flatten() {
                if term.matches(pod) {
                    all.shunning.extend(site.domain(term.topology).map(|value| (term.topology, value)));
                }
            }
        }
        all
    }

    /// Why a node does not do.
    pub fn refuse(&self, site: &Site<'_>) -> Option<Refusal> {
        let is_in = |(topology, value): &Domain<'_>| site.domain(topology) == Some(*value);
        let is_near = |(topology, domains): &(&str, BTreeSet<&str>)| {
            site.domain(topology).is_some_and(|value| self.is_first || domains.contains(value))
        };
        if self.is_hopeless || !self.wanted.iter().all(is_near) {
            Some(Refusal::PodAffinity)
        } else if self.shunned.iter().any(is_in) {
            Some(Refusal::PodAntiAffinity)
        } else if self.shunning.iter().any(is_in) {
            Some(Refusal::OthersAntiAffinity)
        } else {
            None
        }
    }
}

/// How much each domain is preferred: by the pod, and by the pods there.
#[derive(Debug, Default)]
pub struct Preferences<'a>(BTreeMap<Domain<'a>, i64>);

impl<'a> Preferences<'a> {
    /// The preferred terms of the scene's pod, and the terms of the pods there that are about it.
    pub fn new(scene: &Scene<'a>) -> Preferences<'a> {
        let (pod, cache) = (scene.pod, scene.cache);
        let mut liked = BTreeMap::new();
        let mut add = |term: &Term<'a>, sign: i64, site: &Site<'a>| {
            if let Some(value) = site.domain(term.topology) {
                *liked.entry((term.topology, value)).or_insert(0) += sign * term.weight;
            }
        };
        let lists = [("podAffinity", PREFERRED, 1), ("podAntiAffinity", PREFERRED, -1)];
        let mut own = Vec::new();
        for (affinity, list, sign) in lists {
            let terms = terms(pod, cache, affinity, list).into_iter().flatten();
            own.extend(terms.map(|term| (term, sign)));
        }
        if !own.is_empty() {
            for (other, site) in scene.placed() {
                own.iter().filter(|(term, _)| term.matches(other)).for_each(|(term, sign)| {
                    add(term, *sign, site);
                });
            }
        }
        for (other, site) in scene.social() {
            for (affinity, list, sign) in lists.into_iter().chain([("podAffinity", REQUIRED, 1)]) {
                for term in terms(other, cache, affinity, list).into_iter().flatten() {
                    if term.matches(pod) {
                        add(&term, sign, site);
                    }
                }
            }
        }
        Preferences(liked)
    }

    /// How much a node is preferred.
    pub fn of(&self, site: &Site<'_>) -> i64 {
        let here = self.0.iter().filter(|((topology, value), _)| site.domain(topology) == Some(*value));
        here.map(|(_, weight)| *weight).sum()
    }
}
