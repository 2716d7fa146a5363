//! What must be unique or counted across objects, kept up to date from a watch.
//!
//! The index follows the store by reading its history when it is asked something, so that the cost of a write does
//! not grow with the number of objects. Between a decision and its commit an address is *reserved*.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use api::{Key, Object, Timestamp};
use store::{EventKind, Record, Scope, Store, Watch};

/// How long the address of a write whose caller went away is kept back: the write may still happen.
const ABANDONED_SECS: i64 = 60;

#[derive(Debug)]
pub(crate) struct Index {
    watch: Option<Watch>,
    pods: HashMap<Key, PodFacts>,
    services: HashMap<Key, IpAddr>,
    addresses: HashMap<IpAddr, Key>,
    reserved: HashMap<IpAddr, Reserved>,
    claims: HashMap<Key, HashSet<Key>>,
    events: BTreeMap<u64, Key>,
    event_revisions: HashMap<Key, u64>,
}

#[derive(Debug, Default, PartialEq)]
struct PodFacts {
    address: Option<IpAddr>,
    claims: Vec<Key>,
}

#[derive(Debug)]
struct Reserved {
    key: Key,
    abandoned: Option<Timestamp>,
}

impl Index {
    pub(crate) fn new(store: &impl Store) -> Self {
        let mut index = Self {
            watch: None,
            pods: HashMap::new(),
            services: HashMap::new(),
            addresses: HashMap::new(),
            reserved: HashMap::new(),
            claims: HashMap::new(),
            events: BTreeMap::new(),
            event_revisions: HashMap::new(),
        };
        index.rebuild(store);
        index
    }

    /// Reads what has been committed since the last time.
    pub(crate) fn catch_up(&mut self, store: &impl Store) {
        let Some(mut watch) = self.watch.take() else { return self.rebuild(store) };
        while let Some(event) = watch.try_next() {
            self.apply(&event.record, event.kind == EventKind::Deleted);
        }
        match watch.end() {
            None => self.watch = Some(watch),
            Some(_) => self.rebuild(store),
        }
    }

    /// Whether two indexes say the same.
    #[cfg(test)]
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        self.pods == other.pods
            && self.services == other.services
            && self.addresses == other.addresses
            && self.claims == other.claims
            && self.events == other.events
            && self.event_revisions == other.event_revisions
    }

    fn rebuild(&mut self, store: &impl Store) {
        loop {
            let revision = store.revision();
            let reserved = std::mem::take(&mut self.reserved);
            *self = Self {
                watch: store.watch(Scope::default(), revision).ok(),
                pods: HashMap::new(),
                services: HashMap::new(),
                addresses: HashMap::new(),
                reserved,
                claims: HashMap::new(),
                events: BTreeMap::new(),
                event_revisions: HashMap::new(),
            };
            // What these lists hold beyond `revision` comes again through the watch; applying twice is harmless.
            for plural in ["pods", "services", "events"] {
                let resource = Key::core(plural, "", "").resource;
                store.list(resource, None).1.iter().for_each(|record| self.apply(record, false));
            }
            if self.watch.is_some() {
                return;
            }
        }
    }

    fn apply(&mut self, record: &Record, is_gone: bool) {
        let key = &record.key;
        if !key.resource.group.is_empty() {
            return;
        }
        match key.resource.plural {
            "pods" => {
                let facts = if is_gone { PodFacts::default() } else { pod_facts(&record.object()) };
                self.set_pod(key, facts);
            }
            "services" => {
                let address = if is_gone { None } else { service_address(&record.object()) };
                let old = match address {
                    Some(address) => self.services.insert(key.clone(), address),
                    None => self.services.remove(key),
                };
                self.move_address(key, old, address);
            }
            "events" => {
                if let Some(old) = self.event_revisions.remove(key) {
                    self.events.remove(&old);
                }
                if !is_gone {
                    self.event_revisions.insert(key.clone(), record.revision);
                    self.events.insert(record.revision, key.clone());
                }
            }
            _ => {}
        }
    }

    fn set_pod(&mut self, key: &Key, facts: PodFacts) {
        let (address, claims) = (facts.address, facts.claims.clone());
        let old = match facts == PodFacts::default() {
            true => self.pods.remove(key),
            false => self.pods.insert(key.clone(), facts),
        }
        .unwrap_or_default();
        self.move_address(key, old.address, address);
        for claim in old.claims {
            if let Some(users) = self.claims.get_mut(&claim) {
                users.remove(key);
                if users.is_empty() {
                    self.claims.remove(&claim);
                }
            }
        }
        for claim in claims {
            self.claims.entry(claim).or_default().insert(key.clone());
        }
    }

    fn move_address(&mut self, key: &Key, old: Option<IpAddr>, new: Option<IpAddr>) {
        if let Some(old) = old.filter(|old| self.addresses.get(old) == Some(key)) {
            self.addresses.remove(&old);
        }
        if let Some(new) = new {
            self.addresses.insert(new, key.clone());
        }
    }

    /// Who has an address, or is about to.
    pub(crate) fn holder(&self, address: IpAddr, now: Timestamp) -> Option<&Key> {
        let is_kept = |it: &&Reserved| {
            it.abandoned.is_none_or(|since| now.as_second() - since.as_second() < ABANDONED_SECS)
        };
        let reserved = || self.reserved.get(&address).filter(is_kept).map(|it| &it.key);
        self.addresses.get(&address).or_else(reserved)
    }

    /// Whether nobody has an address, nor is about to.
    pub(crate) fn is_free(&self, address: IpAddr, now: Timestamp) -> bool {
        self.holder(address, now).is_none()
    }

    /// Keeps a free address for `key` until [`Index::release`].
    pub(crate) fn reserve(&mut self, address: IpAddr, key: &Key) {
        self.reserved.insert(address, Reserved { key: key.clone(), abandoned: None });
    }

    /// The write that reserved it has been answered, or its caller has gone away at `abandoned`.
    pub(crate) fn release(&mut self, address: IpAddr, abandoned: Option<Timestamp>) {
        match (abandoned, self.reserved.get_mut(&address)) {
            (Some(_), Some(reserved)) => reserved.abandoned = abandoned,
            _ => drop(self.reserved.remove(&address)),
        }
    }

    /// Whether a pod that is not among `gone` uses the claim.
    pub(crate) fn is_claim_used(&self, claim: &Key, gone: &[Key]) -> bool {
        self.claims.get(claim).is_some_and(|users| users.iter().any(|user| !gone.contains(user)))
    }

    /// The oldest events, as many as must go for one more to fit among `events_max`.
    pub(crate) fn surplus_events(&self, events_max: usize) -> Vec<Key> {
        let surplus = (self.events.len() + 1).saturating_sub(events_max);
        self.events.values().take(surplus).cloned().collect()
    }
}

fn pod_facts(pod: &Object) -> PodFacts {
    PodFacts { address: pod_address(pod), claims: pod_claims(pod) }
}

/// The address that is a pod's own: it is not finished, and not in the host's network.
pub(crate) fn pod_address(pod: &Object) -> Option<IpAddr> {
    let is_own = !is_finished(pod) && pod.get_bool("spec.hostNetwork") != Some(true);
    pod.get_str("status.podIP").filter(|_| is_own)?.parse().ok()
}

/// Whether a pod has run to its end.
pub(crate) fn is_finished(pod: &Object) -> bool {
    matches!(pod.get_str("status.phase"), Some("Succeeded" | "Failed"))
}

/// The claims a pod uses.
pub(crate) fn pod_claims(pod: &Object) -> Vec<Key> {
    let volumes = pod.get_array("spec.volumes").iter();
    volumes
        .filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
        .map(|name| Key::core("persistentvolumeclaims", pod.namespace(), name))
        .collect()
}

/// The virtual IP of a service that has one.
pub(crate) fn service_address(service: &Object) -> Option<IpAddr> {
    service.get_str("spec.clusterIP")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_is_a_pods_own_while_it_runs_in_its_own_network() {
        let check = |spec, status, expect: Option<&str>| {
            let pod = Object(json!({"spec": spec, "status": status}));
            assert_eq!(pod_address(&pod), expect.map(|it| it.parse().unwrap()), "{pod:?}");
        };
        check(json!({}), json!({"podIP": "10.0.0.2"}), Some("10.0.0.2"));
        check(json!({}), json!({"podIP": "10.0.0.2", "phase": "Running"}), Some("10.0.0.2"));
        check(json!({}), json!({"podIP": "10.0.0.2", "phase": "Failed"}), None);
        check(json!({"hostNetwork": true}), json!({"podIP": "10.0.0.2"}), None);
        check(json!({}), json!({}), None);
    }
}
