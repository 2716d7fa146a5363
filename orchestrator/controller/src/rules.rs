//! The rules: which there are, whom a change concerns, who looks at what.
//!
//! A rule looks at one key at a time and answers with a [`Plan`]; it knows the present only. Why it was asked is not
//! told. Adding a rule is one file and one arm in each function here.

use std::sync::Arc;

use api::{Key, LabelSelector, Object, Timestamp};

use crate::cache::Cache;
use crate::kinds;
use crate::plan::Plan;
use crate::scheduler::Assumed;
use crate::{
    claim, endpoints, eviction, gc, namespace, node, pod, replicaset, scheduler, statefulset, volume,
};

/// One of the controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// ReplicaSet: keeps so many pods.
    ReplicaSet,
    /// StatefulSet: keeps these very pods.
    StatefulSet,
    /// PersistentVolumeClaim: gives it a volume.
    Claim,
    /// PersistentVolume: says whose it is, reclaims it.
    Volume,
    /// Service: lists the pods behind it.
    Endpoints,
    /// Any object with owners, or that owns and is deleted.
    Collect,
    /// Namespace: empties it when it is deleted.
    Namespace,
    /// Node: its taints say what its conditions say, and which addresses it carries for other nodes.
    Taint,
    /// Node: nothing of a dead one runs on, and its pods go.
    Fence,
    /// Pod: leaves a node that it does not tolerate.
    Evict,
    /// Pod: gives it a node and an address.
    Schedule,
}

/// A rule and the key it is to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    /// Which rule.
    pub rule: Rule,
    /// At what.
    pub key: Key,
}

/// What a rule may look at.
pub struct View<'a> {
    /// What is known.
    pub cache: &'a Cache,
    /// What is being bound.
    pub assumed: &'a Assumed,
    /// The time.
    pub now: Timestamp,
}

/// Looks at an item.
pub fn look(view: &View<'_>, item: &Item) -> Plan {
    let look = match item.rule {
        Rule::ReplicaSet => replicaset::look,
        Rule::StatefulSet => statefulset::look,
        Rule::Claim => claim::look,
        Rule::Volume => volume::look,
        Rule::Endpoints => endpoints::look,
        Rule::Collect => gc::look,
        Rule::Namespace => namespace::look,
        Rule::Taint => node::look,
        Rule::Fence => node::look_at_fence,
        Rule::Evict => eviction::look,
        Rule::Schedule => scheduler::look,
    };
    look(view, &item.key)
}

/// Calls `add` with every item that a change of one object concerns. Naming too many is waste, too few is a bug.
pub fn concerned(
    cache: &Cache,
    key: &Key,
    old: Option<&Arc<Object>>,
    new: Option<&Arc<Object>>,
    add: &mut dyn FnMut(Item),
) {
    let states = || old.into_iter().chain(new);
    let resource = key.resource;
    let mut item = |rule, key: Key| add(Item { rule, key });

    if resource == *kinds::REPLICASETS {
        item(Rule::ReplicaSet, key.clone());
    } else if resource == *kinds::STATEFULSETS {
        item(Rule::StatefulSet, key.clone());
    } else if resource == *kinds::SERVICES {
        item(Rule::Endpoints, key.clone());
    } else if resource == *kinds::NAMESPACES {
        item(Rule::Namespace, key.clone());
        // Its labels say whose neighbours its pods are.
        scheduler::unplaced_choosy(cache).for_each(|pod| item(Rule::Schedule, pod));
    } else if resource == *kinds::SLICES {
        for service in states().filter_map(|slice| slice.label(endpoints::SERVICE_LABEL)) {
            item(Rule::Endpoints, Key::new(*kinds::SERVICES, &key.namespace, service));
        }
    } else if resource == *kinds::CLAIMS {
        item(Rule::Claim, key.clone());
        for pod in cache.list_in(*kinds::PODS, &key.namespace) {
            if pod::claims(pod).any(|name| name == key.name) {
                item(Rule::Schedule, pod.key());
            }
        }
        for volume in states().filter_map(|claim| claim.get_str("spec.volumeName")) {
            item(Rule::Volume, Key::new(*kinds::VOLUMES, "", volume));
        }
        for set in statefulset::sets_of_claim(&key.name) {
            let set = Key::new(*kinds::STATEFULSETS, &key.namespace, set);
            if cache.get(&set).is_some() {
                item(Rule::StatefulSet, set);
            }
        }
    } else if resource == *kinds::REVISIONS {
        let owners = states().filter_map(|state| state.controller_owner());
        for owner in owners.filter(|owner| owner.kind == kinds::STATEFULSETS.kind) {
            item(Rule::StatefulSet, Key::new(*kinds::STATEFULSETS, &key.namespace, owner.name));
        }
        statefulset::set_of_revision(key).into_iter().for_each(|set| item(Rule::StatefulSet, set));
    } else if resource == *kinds::VOLUMES {
        item(Rule::Volume, key.clone());
        for state in states() {
            match claim::of_volume(state) {
                Some(claim) => item(Rule::Claim, claim),
                None => claim::unbound(cache).for_each(|claim| item(Rule::Claim, claim)),
            }
        }
    } else if resource == *kinds::CLASSES {
        // Its claims may grow now.
        cache.list(*kinds::STATEFULSETS).for_each(|set| item(Rule::StatefulSet, set.key()));
        claim::unbound(cache).for_each(|claim| item(Rule::Claim, claim));
    } else if resource == *kinds::NODES {
        item(Rule::Taint, key.clone());
        item(Rule::Fence, key.clone());
        scheduler::unplaced(cache).for_each(|pod| item(Rule::Schedule, pod));
        concerned_by_health(cache, key, old, new, &mut item);
    } else if resource == *kinds::PODS {
        concerned_by_pod(cache, key, old, new, &mut item);
    }

    concerned_by_ownership(cache, key, old, new, &mut item);
}

/// The pods of a node whose health or taints changed, and who sends them packets.
fn concerned_by_health(
    cache: &Cache,
    key: &Key,
    old: Option<&Arc<Object>>,
    new: Option<&Arc<Object>>,
    item: &mut dyn FnMut(Rule, Key),
) {
    let judged = |node: Option<&Arc<Object>>| node.map(|node| (node::health(node), node::taints(node)));
    if judged(old) == judged(new) {
        return;
    }
    for pod in cache.pods_on(&key.name) {
        item(Rule::Evict, pod.key());
        services(cache, pod).for_each(|service| item(Rule::Endpoints, service));
    }
}

/// The services that a pod is behind.
fn services<'a>(cache: &'a Cache, pod: &'a Object) -> impl Iterator<Item = Key> {
    let services = cache.list_in(*kinds::SERVICES, pod.namespace());
    let selects = |service: &&Arc<Object>| {
        endpoints::selector(service).is_some_and(|selector| selector.matches(pod.labels()))
    };
    services.filter(selects).map(|service| service.key())
}

fn concerned_by_pod(
    cache: &Cache,
    key: &Key,
    old: Option<&Arc<Object>>,
    new: Option<&Arc<Object>>,
    item: &mut dyn FnMut(Rule, Key),
) {
    let states = || old.into_iter().chain(new);
    item(Rule::Schedule, key.clone());
    item(Rule::Evict, key.clone());
    for node in states().filter_map(|pod| pod::node(pod)) {
        item(Rule::Fence, Key::new(*kinds::NODES, "", node));
    }
    for node in states().filter(|pod| scheduler::keeps(pod)).filter_map(|pod| pod::node(pod)) {
        item(Rule::Taint, Key::new(*kinds::NODES, "", node));
    }
    // Room or an address became free; or somebody came, went or changed whom others want near them, or not.
    let neighbour = |pod: Option<&Arc<Object>>| {
        pod.map(|pod| (pod::node(pod).map(str::to_owned), pod.is_deleting(), pod.labels().clone()))
    };
    if old.is_some() && new.is_none_or(|pod| pod::is_terminal(pod)) {
        scheduler::unplaced(cache).for_each(|pod| item(Rule::Schedule, pod));
    } else if neighbour(old) != neighbour(new) {
        scheduler::unplaced_choosy(cache).for_each(|pod| item(Rule::Schedule, pod));
    }
    for state in states() {
        for claim in pod::claims(state) {
            item(Rule::Claim, Key::new(*kinds::CLAIMS, &key.namespace, claim));
        }
        if let Some(owner) = state.controller_owner() {
            if owner.kind == kinds::REPLICASETS.kind {
                item(Rule::ReplicaSet, Key::new(*kinds::REPLICASETS, &key.namespace, owner.name));
            } else if owner.kind == kinds::STATEFULSETS.kind {
                item(Rule::StatefulSet, Key::new(*kinds::STATEFULSETS, &key.namespace, owner.name));
            }
            continue;
        }
        for set in cache.list_in(*kinds::REPLICASETS, &key.namespace) {
            if selects(set, state) {
                item(Rule::ReplicaSet, set.key());
            }
        }
        for set in cache.list_in(*kinds::STATEFULSETS, &key.namespace) {
            if selects(set, state) {
                item(Rule::StatefulSet, set.key());
            }
        }
    }
    // A name that was taken is free: whoever wants it is told, whatever its labels were.
    if new.is_none()
        && let Some((set, _)) = key.name.rsplit_once('-')
    {
        item(Rule::StatefulSet, Key::new(*kinds::STATEFULSETS, &key.namespace, set));
    }
    for state in states() {
        services(cache, state).for_each(|service| item(Rule::Endpoints, service));
    }
}

fn concerned_by_ownership(
    cache: &Cache,
    key: &Key,
    old: Option<&Arc<Object>>,
    new: Option<&Arc<Object>>,
    item: &mut dyn FnMut(Rule, Key),
) {
    if new.is_some_and(|new| gc::is_concern(new)) {
        item(Rule::Collect, key.clone());
    }
    // An owner that waits for its dependents waits for this one, too.
    for state in old.into_iter().chain(new) {
        for owner in state.owner_references() {
            if let Some(owner) = cache.by_uid(&owner.uid).filter(|owner| owner.is_deleting()) {
                item(Rule::Collect, owner.key());
            }
        }
    }
    let went = new.is_none_or(|new| new.is_deleting());
    if let Some(uid) = old.or(new).map(|state| state.uid()).filter(|_| went) {
        for dependent in cache.dependents(uid) {
            let key = dependent.key();
            let rule = if key.resource == *kinds::VOLUMES { Rule::Volume } else { Rule::Collect };
            item(rule, key);
        }
    }
    let namespace = Key::new(*kinds::NAMESPACES, "", &key.namespace);
    if cache.get(&namespace).is_some_and(|namespace| namespace.is_deleting()) {
        item(Rule::Namespace, namespace);
    }
}

fn selects(set: &Object, pod: &Object) -> bool {
    selector(set).is_some_and(|selector| selector.matches(pod.labels()))
}

/// A set's selector; none if it selects nothing or cannot be read.
pub fn selector(set: &Object) -> Option<LabelSelector> {
    let selector = LabelSelector::from_spec(set.get("spec.selector")?).ok()?;
    (!selector.is_empty()).then_some(selector)
}
