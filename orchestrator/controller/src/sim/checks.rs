//! The laws, checked from outside: on the store's whole history, on the kernel, and on what the controllers ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::{Key, Object};
use store::{EventKind, Memory, Scope, Store, Watch};

use super::Violation;
use super::kernel::Kernel;
use super::user::is_broken;
use crate::cache::Cache;
use crate::effect::Call;
use crate::kinds::{CLAIMS, NAMESPACES, NODES, PODS, REPLICASETS, SERVICES, SLICES, STATEFULSETS, VOLUMES};
use crate::toleration::{Stay, stay};
use crate::{endpoints, node, pod};

pub(super) fn broken(law: &'static str, detail: String) -> Result<(), Violation> {
    Err(Violation { law, detail })
}

/// Sees every change of the store, in order.
#[derive(Debug)]
pub struct Checker {
    watch: Watch,
    objects: BTreeMap<Key, Arc<Object>>,
    /// Every state there ever was, so that each is parsed once.
    history: BTreeMap<(u64, Key), Arc<Object>>,
    /// For each ReplicaSet, by uid: what it asked for, and since which revision.
    replicas: BTreeMap<String, Vec<(u64, i64)>>,
}

impl Checker {
    /// One that has seen nothing yet.
    pub fn new(store: &Memory) -> Checker {
        let watch = store.watch(Scope::default(), 0).unwrap_or_else(|error| panic!("{error}"));
        Checker { watch, objects: BTreeMap::new(), history: BTreeMap::new(), replicas: BTreeMap::new() }
    }

    /// Looks at what has happened since. `view` is what the controllers knew of each set when they asked for what
    /// was just done.
    pub fn step(&mut self, kernel: &Kernel, view: &BTreeMap<String, u64>) -> Result<(), Violation> {
        while let Some(event) = self.watch.try_next() {
            let key = event.record.key.clone();
            let object = Arc::new(event.record.object());
            self.history.insert((event.revision, key.clone()), Arc::clone(&object));
            let old = match event.kind {
                EventKind::Deleted => self.objects.remove(&key),
                EventKind::Created | EventKind::Updated => {
                    self.objects.insert(key.clone(), Arc::clone(&object))
                }
            };
            let is_gone = event.kind == EventKind::Deleted;
            if key.resource == *PODS {
                self.pod(&key, &object, old.as_deref(), is_gone, kernel, view)?;
            } else if key.resource == *REPLICASETS {
                let replicas = if is_gone { i64::MAX } else { object.get_i64("spec.replicas").unwrap_or(1) };
                self.replicas.entry(object.uid().into()).or_default().push((event.revision, replicas));
            } else if key.resource == *SERVICES {
                self.service(&key)?;
            } else if key.resource == *VOLUMES && !is_gone {
                let uid = |volume: &Object| volume.get_str("spec.claimRef.uid").map(str::to_owned);
                let before = old.as_deref().and_then(uid);
                if before.is_some() && before != uid(&object) {
                    return broken(
                        "a volume never changes owner",
                        format!("{key}: {before:?} {:?}", uid(&object)),
                    );
                }
            }
        }
        Ok(())
    }

    fn pod(
        &self,
        key: &Key,
        pod: &Object,
        old: Option<&Object>,
        is_gone: bool,
        kernel: &Kernel,
        view: &BTreeMap<String, u64>,
    ) -> Result<(), Violation> {
        if is_gone {
            return match kernel.get(pod.uid()) {
                Some(_) => broken("a pod object outlives its processes", format!("{key} {}", pod.uid())),
                None => Ok(()),
            };
        }
        if old.is_none() {
            if let Some(uid) = kernel.named(key) {
                return broken("a name is free only when nothing runs under it", format!("{key}: {uid}"));
            }
            self.count(key, pod, view)?;
        }
        let holds = |pod: &Object| pod::address(pod).filter(|_| !pod::is_terminal(pod));
        if let Some(address) = holds(pod) {
            let mut pods = self.objects.iter().filter(|(other, _)| other.resource == *PODS && *other != key);
            if let Some((other, _)) = pods.find(|(_, it)| holds(it) == Some(address)) {
                return broken("an address has one pod", format!("{address}: {key} and {other}"));
            }
        }
        Ok(())
    }

    /// A ReplicaSet has at most as many live pods as it asked for since the state its controller knew.
    fn count(&self, key: &Key, pod: &Object, view: &BTreeMap<String, u64>) -> Result<(), Violation> {
        let Some(owner) = pod.controller_owner().filter(|owner| owner.kind == REPLICASETS.kind) else {
            return Ok(());
        };
        let Some(wishes) = self.replicas.get(&owner.uid) else { return Ok(()) };
        let known = view.get(&owner.uid).copied().unwrap_or(0);
        let first = wishes.iter().rposition(|(revision, _)| *revision <= known).unwrap_or(0);
        let most = wishes[first..].iter().map(|(_, replicas)| *replicas).max().unwrap_or(0);
        let is_live = |it: &&Object| {
            it.controller_owner().is_some_and(|other| other.uid == owner.uid) && pod::is_active(it)
        };
        let live = self.of(&PODS).filter(is_live).count();
        if i64::try_from(live).unwrap_or(i64::MAX) > most {
            return broken("no more pods than asked for", format!("{key} is number {live} of {most}"));
        }
        Ok(())
    }

    fn service(&self, key: &Key) -> Result<(), Violation> {
        let ip = |service: &Object| {
            service.get_str("spec.clusterIP").filter(|ip| *ip != "None").map(str::to_owned)
        };
        let mut seen = BTreeSet::new();
        for address in self.of(&SERVICES).filter_map(ip) {
            if !seen.insert(address.clone()) {
                return broken("a service has a virtual IP of its own", format!("{key}: {address}"));
            }
        }
        Ok(())
    }

    pub(super) fn of(&self, resource: &'static api::Resource) -> impl Iterator<Item = &Object> {
        self.objects
            .iter()
            .filter(move |(key, _)| key.resource == resource)
            .map(|(_, object)| object.as_ref())
    }

    /// Every object as it is.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    /// An object as it is.
    pub(super) fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key).map(AsRef::as_ref)
    }

    /// The state of an object that a revision made.
    pub fn at(&self, revision: u64, key: &Key) -> Option<Arc<Object>> {
        self.history.get(&(revision, key.clone())).cloned()
    }

    /// What the controllers ask for must be right by what they were told.
    pub fn call(&self, call: &Call, told: &Cache) -> Result<(), Violation> {
        match call {
            Call::Create { object } if object.kind() == PODS.kind => self.creation_of_pet(object, told),
            Call::Delete { key, uid, .. } if key.resource == *PODS => {
                self.stays_who_tolerates(key, uid)?;
                // A node that drives its pods away takes them as they come.
                match told.get(key).filter(|pod| self.stay(pod, told) != Stay::Always) {
                    Some(_) => Ok(()),
                    None => self.deletion_of_pet(key, uid, told),
                }
            }
            Call::Delete { key, uid, .. } if key.resource == *CLAIMS => self.no_data_lost(key, uid),
            _ => Ok(()),
        }
    }

    /// How long a pod may stay where it is, by what the controllers were told of its node.
    fn stay(&self, pod: &Object, told: &Cache) -> Stay {
        let node = pod::node(pod).and_then(|name| told.get(&Key::new(*NODES, "", name)));
        node.map_or(Stay::Always, |node| stay(pod, &node::taints(node)))
    }

    /// Nobody's pod that tolerates everything is deleted by controllers only when its namespace goes.
    fn stays_who_tolerates(&self, key: &Key, uid: &str) -> Result<(), Violation> {
        let Some(pod) = self.objects.get(key).filter(|pod| pod.uid() == uid) else { return Ok(()) };
        let namespace = self.objects.get(&Key::new(*NAMESPACES, "", &key.namespace));
        let is_ending = namespace.is_none_or(|it| it.is_deleting());
        if !is_ending && pod.owner_references().is_empty() && !pod.get_array("spec.tolerations").is_empty() {
            return broken("who tolerates a taint is not driven away", key.to_string());
        }
        Ok(())
    }

    /// Controllers delete a claim only when one of its owners is gone, or its namespace goes, or its volume is gone.
    fn no_data_lost(&self, key: &Key, uid: &str) -> Result<(), Violation> {
        let Some(claim) = self.objects.get(key).filter(|claim| claim.uid() == uid) else { return Ok(()) };
        let namespace = self.objects.get(&Key::new(*NAMESPACES, "", &key.namespace));
        let is_ending = namespace.is_none_or(|it| it.is_deleting());
        let stays = |owner: &api::OwnerReference| {
            self.objects.values().any(|it| it.uid() == owner.uid && !it.is_deleting())
        };
        if !is_ending && !self.is_lost(claim) && claim.owner_references().iter().all(stays) {
            return broken("no claim is deleted while its owners stay", key.to_string());
        }
        Ok(())
    }

    /// What must be true once all is quiet.
    pub fn settled(&self, kernel: &Kernel) -> Result<(), Violation> {
        let broken = |detail: String| broken("after the faults the world becomes what was asked for", detail);
        for (key, object) in &self.objects {
            if object.is_deleting() && !self.is_in_use(key) {
                return broken(format!("{key} is still being deleted"));
            }
            let owners = object.owner_references();
            let is_there = |uid: &str| self.objects.values().any(|it| it.uid() == uid);
            if !owners.is_empty() && !owners.iter().any(|owner| is_there(&owner.uid)) {
                return broken(format!("{key} has lost its owners and is still there"));
            }
        }
        for set in self.of(&REPLICASETS) {
            let pods = self.active_pods_of(set);
            let ready = pods.iter().filter(|pod| pod::is_ready(pod)).count();
            // One made just before the template was mended stays broken: a ReplicaSet does not roll. One adopted
            // without its claim does not start.
            let claims_stay = |pod: &Object| {
                let mut claims = pod::claims(pod).map(|name| Key::new(*CLAIMS, pod.namespace(), name));
                claims.all(|key| self.objects.get(&key).is_some_and(|claim| !claim.is_deleting()))
            };
            let is_stuck = |pod: &Object| !pod::is_ready(pod) && (is_broken(pod) || !claims_stay(pod));
            let stuck = pods.iter().filter(|pod| is_stuck(pod)).count();
            let replicas = usize::try_from(set.get_i64("spec.replicas").unwrap_or(1)).unwrap_or(0);
            let told = usize::try_from(set.get_i64("status.readyReplicas").unwrap_or(0)).unwrap_or(0);
            let counts = (pods.len(), ready + stuck, told);
            if counts != (replicas, replicas, ready) {
                return broken(format!("{} wants {replicas}, has {counts:?}", set.key()));
            }
        }
        for set in self.of(&STATEFULSETS) {
            self.pets_settled(set).or_else(|why| broken(format!("{}: {why}", set.key())))?;
        }
        for claim in self.of(&CLAIMS).filter(|claim| !claim.is_deleting() && !self.is_lost(claim)) {
            let volume = claim.get_str("spec.volumeName").unwrap_or("");
            let volume = self.objects.get(&Key::new(*VOLUMES, "", volume));
            let is_ours = volume.is_some_and(|it| it.get_str("spec.claimRef.uid") == Some(claim.uid()));
            if claim.get_str("status.phase") != Some("Bound") || !is_ours {
                return broken(format!("{} is not bound", claim.key()));
            }
        }
        for volume in self.of(&VOLUMES) {
            let uid = volume.get_str("spec.claimRef.uid").unwrap_or("");
            let claim = self.of(&CLAIMS).find(|claim| claim.uid() == uid);
            let is_bound = claim.is_some_and(|it| it.get_str("spec.volumeName") == Some(volume.name()));
            let is_kept = volume.get_str("spec.persistentVolumeReclaimPolicy") == Some("Retain");
            let phase = volume.get_str("status.phase").unwrap_or("");
            if !matches!((is_bound, is_kept, phase), (true, _, "Bound") | (false, true, "Released")) {
                return broken(format!("{} is {phase}, bound {is_bound}", volume.key()));
            }
        }
        for pod in self.of(&PODS).filter(|pod| pod::is_active(pod)) {
            let node = pod::node(pod).and_then(|name| self.objects.get(&Key::new(*NODES, "", name)));
            if let Some(node) = node
                && (stay(pod, &node::taints(node)) != Stay::Always
                    || node::is_down(node) && pod::is_ready(pod))
            {
                return broken(format!("{} stays on {}, and is taken for well", pod.key(), node.name()));
            }
        }
        for service in self.of(&SERVICES) {
            self.endpoints_settled(service).or_else(|why| broken(format!("{}: {why}", service.key())))?;
        }
        for (uid, process) in kernel.all() {
            if self.objects.get(&process.key).is_none_or(|pod| pod.uid() != uid) {
                return broken(format!("{} {uid} runs without an object", process.key));
            }
        }
        Ok(())
    }

    /// A claim that is deleted under a running pod waits for the pod; under one that is not a pet, for people.
    fn is_in_use(&self, key: &Key) -> bool {
        let is_pet = |pod: &Object| pod.controller_owner().is_some_and(|it| it.kind == STATEFULSETS.kind);
        let stays = |pod: &Object| pod::is_ready(pod) || !is_pet(pod);
        let mut pods = self.of(&PODS).filter(|pod| pod.namespace() == key.namespace && stays(pod));
        key.resource == *CLAIMS && pods.any(|pod| pod::claims(pod).any(|name| name == key.name))
    }

    pub(super) fn active_pods_of(&self, set: &Object) -> Vec<&Object> {
        let owned = |pod: &&Object| pod.controller_owner().is_some_and(|owner| owner.uid == set.uid());
        self.of(&PODS).filter(owned).filter(|pod| pod::is_active(pod)).collect()
    }

    fn endpoints_settled(&self, service: &Object) -> Result<(), String> {
        let Some(selector) = endpoints::selector(service) else { return Ok(()) };
        let near = |it: &&Object| it.namespace() == service.namespace();
        let ready =
            |pod: &&Object| pod::is_active(pod) && pod::is_ready(pod) && selector.matches(pod.labels());
        let pods: BTreeSet<String> = self
            .of(&PODS)
            .filter(near)
            .filter(ready)
            .filter_map(pod::address)
            .map(|ip| ip.to_string())
            .collect();
        let slices = self.of(&SLICES).filter(near);
        let slices = slices.filter(|it| it.label(endpoints::SERVICE_LABEL) == Some(service.name()));
        let endpoints = slices.flat_map(|slice| slice.get_array("endpoints"));
        let listed: BTreeSet<String> = endpoints
            .filter(|it| it["conditions"]["ready"] == true)
            .filter_map(|it| it["addresses"][0].as_str().map(str::to_owned))
            .collect();
        if pods == listed { Ok(()) } else { Err(format!("ready are {pods:?}, listed {listed:?}")) }
    }
}
