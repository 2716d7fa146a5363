//! What the controllers know: the newest state of every object they were told of.
//!
//! News is ordered by resource version. An object that is not here is taken in only if it is newer than the last
//! deletion of its kind that the watch told of: the answer to our own `create` may come after the watch has told of
//! both the creation and the deletion, and must not raise the dead.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::{Key, Object, Resource};

use crate::kinds::{PODS, VOLUMES};
use crate::ledger::Ledger;
use crate::pod;

/// The objects, and the ways to find them.
#[derive(Debug, Default)]
pub struct Cache {
    objects: BTreeMap<Key, Arc<Object>>,
    by_uid: BTreeMap<String, Key>,
    /// Uid of an owner, or of a volume's claim, to those that name it.
    dependents: BTreeMap<String, BTreeSet<Key>>,
    /// The pods bound to each node.
    on_node: BTreeMap<String, BTreeSet<Key>>,
    /// Owners that are known to be gone. A uid never comes back; forgotten with their last dependent.
    gone: BTreeSet<String>,
    /// Volumes that the store has said it does not have.
    absent: BTreeSet<Key>,
    /// The newest deletion the watch told of, by kind.
    deleted: BTreeMap<&'static Resource, u64>,
    /// Which nodes and addresses the pods hold.
    pub ledger: Ledger,
}

impl Cache {
    /// The object of that key.
    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// The object of that uid.
    pub fn by_uid(&self, uid: &str) -> Option<&Arc<Object>> {
        self.objects.get(self.by_uid.get(uid)?)
    }

    /// The objects of a kind, in order of namespace and name.
    pub fn list(&self, resource: &'static Resource) -> impl Iterator<Item = &Arc<Object>> {
        let first = Key { resource, namespace: String::new(), name: String::new() };
        self.objects
            .range(first..)
            .take_while(move |(key, _)| key.resource == resource)
            .map(|(_, object)| object)
    }

    /// The objects of a kind in a namespace, in order of name.
    pub fn list_in<'a>(
        &'a self,
        resource: &'static Resource,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        let first = Key { resource, namespace: namespace.into(), name: String::new() };
        let inside = move |key: &Key| key.resource == resource && key.namespace == namespace;
        self.objects.range(first..).take_while(move |(key, _)| inside(key)).map(|(_, object)| object)
    }

    /// Every object, in order of key.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Arc<Object>)> {
        self.objects.iter()
    }

    /// The objects that name `uid` as an owner, or as a volume's claim.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    /// The pods bound to a node, ended ones too.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.on_node.get(node).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    /// Forgets which deletions were told of: a list follows.
    pub fn forget_deletions(&mut self) {
        self.deleted.clear();
        self.absent.clear();
    }

    /// Whether the store was asked for that volume and did not have it. Not being here is not enough: news may be
    /// late.
    pub fn is_absent(&self, volume: &Key) -> bool {
        self.absent.contains(volume)
    }

    /// Notes that the store does not have that object. Kept for volumes alone, which data hangs on.
    pub fn mark_absent(&mut self, key: &Key) {
        if key.resource == *VOLUMES {
            self.absent.insert(key.clone());
        }
    }

    /// Whether the owner `uid` is known to be gone. Not being here is not enough: news may be late.
    pub fn is_gone(&self, uid: &str) -> bool {
        self.gone.contains(uid)
    }

    /// Notes that the owner `uid` is gone.
    pub fn mark_gone(&mut self, uid: &str) {
        if self.dependents.contains_key(uid) {
            self.gone.insert(uid.into());
        }
    }

    /// Whether it cannot be told if this state is news: the key is not known, and the watch has told of a later
    /// deletion of the kind, though perhaps not of this object's.
    pub fn is_doubtful(&self, key: &Key, object: &Object) -> bool {
        let revision = object.resource_version().unwrap_or(0);
        !self.objects.contains_key(key) && revision <= self.last_deletion(key.resource)
    }

    /// Takes in the state of an object. `None` if that is no news; else what was known of the key before.
    pub fn put(&mut self, key: &Key, object: Arc<Object>) -> Option<Option<Arc<Object>>> {
        let revision = object.resource_version().unwrap_or(0);
        match self.objects.get(key) {
            Some(known) if known.resource_version().unwrap_or(0) >= revision => return None,
            None if self.is_doubtful(key, &object) => return None,
            _ => {}
        }
        Some(self.insert(key, object))
    }

    /// Takes in an object that is there for sure, and not known. Returns what was known of the key before.
    pub fn insert(&mut self, key: &Key, object: Arc<Object>) -> Option<Arc<Object>> {
        let old = self.take(key);
        self.absent.remove(key);
        self.by_uid.insert(object.uid().into(), key.clone());
        for uid in references(&object) {
            self.dependents.entry(uid).or_default().insert(key.clone());
        }
        if *key.resource == **PODS {
            self.ledger.put(key, &object);
            if let Some(node) = pod::node(&object) {
                self.on_node.entry(node.into()).or_default().insert(key.clone());
            }
        }
        self.objects.insert(key.clone(), object);
        old
    }

    /// The newest deletion of a kind that the watch told of.
    pub fn last_deletion(&self, resource: &'static Resource) -> u64 {
        self.deleted.get(resource).copied().unwrap_or(0)
    }

    /// Takes in that the incarnation `uid` is gone, at `revision` if the watch said so. `None` if that is no news.
    pub fn remove(&mut self, key: &Key, uid: &str, revision: Option<u64>) -> Option<Arc<Object>> {
        if let Some(revision) = revision {
            let deleted = self.deleted.entry(key.resource).or_insert(0);
            *deleted = (*deleted).max(revision);
        }
        let known = self.objects.get(key)?;
        if known.uid() != uid {
            return None;
        }
        let old = self.take(key);
        self.mark_gone(uid);
        old
    }

    /// Takes in that nothing is known of a key any more.
    pub fn drop(&mut self, key: &Key) {
        self.take(key);
    }

    fn take(&mut self, key: &Key) -> Option<Arc<Object>> {
        let old = self.objects.remove(key)?;
        self.by_uid.remove(old.uid());
        for uid in references(&old) {
            if let Some(keys) = self.dependents.get_mut(&uid) {
                keys.remove(key);
                if keys.is_empty() {
                    self.dependents.remove(&uid);
                    self.gone.remove(&uid);
                }
            }
        }
        if *key.resource == **PODS {
            self.ledger.remove(key);
            if let Some(node) = pod::node(&old)
                && let Some(keys) = self.on_node.get_mut(node)
            {
                keys.remove(key);
                if keys.is_empty() {
                    self.on_node.remove(node);
                }
            }
        }
        Some(old)
    }
}

/// Uids whose end matters to the object: its owners, and the claim of a volume.
fn references(object: &Object) -> Vec<String> {
    let mut uids: Vec<String> = object.owner_references().into_iter().map(|owner| owner.uid).collect();
    uids.extend(object.get_str("spec.claimRef.uid").map(str::to_owned));
    uids
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod_of(uid: &str, revision: u64, owner: &str) -> Arc<Object> {
        Arc::new(Object(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "n", "uid": uid, "resourceVersion": revision.to_string(),
                "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "o", "uid": owner}]},
        })))
    }

    #[test]
    fn old_news_is_none() {
        let key = Key::core("pods", "n", "a");
        let mut cache = Cache::default();
        assert_eq!(cache.put(&key, pod_of("u1", 5, "o")), Some(None));
        assert_eq!(cache.put(&key, pod_of("u1", 5, "o")), None);
        assert_eq!(cache.put(&key, pod_of("u1", 4, "o")), None);
        assert!(cache.put(&key, pod_of("u1", 6, "o")).is_some());
        assert_eq!(cache.dependents("o").count(), 1);
    }

    #[test]
    fn the_dead_are_not_raised_by_a_late_answer() {
        let key = Key::core("pods", "n", "a");
        let mut cache = Cache::default();
        cache.put(&key, pod_of("u1", 5, "o"));
        assert!(cache.remove(&key, "u1", Some(6)).is_some());
        assert_eq!(cache.put(&key, pod_of("u1", 5, "o")), None);
        assert_eq!(cache.put(&key, pod_of("u2", 7, "o")), Some(None));
        assert!(cache.remove(&key, "u1", Some(6)).is_none(), "another incarnation is not touched");
        assert_eq!(cache.get(&key).unwrap().uid(), "u2");
    }

    #[test]
    fn the_gone_are_forgotten_with_their_last_dependent() {
        let key = Key::core("pods", "n", "a");
        let mut cache = Cache::default();
        cache.mark_gone("o");
        assert!(!cache.is_gone("o"));
        cache.put(&key, pod_of("u1", 5, "o"));
        cache.mark_gone("o");
        assert!(cache.is_gone("o"));
        cache.remove(&key, "u1", Some(6));
        assert!(!cache.is_gone("o") && cache.dependents("o").next().is_none());
    }
}
