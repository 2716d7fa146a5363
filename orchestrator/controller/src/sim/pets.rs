//! Sets of pets in the simulated world: what people ask of them, and the laws of their order.
//!
//! The laws read a set's wishes with their own eyes, from the state that the controllers had been told of when they
//! asked for a call: what has been changed since is not held against them.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::{Key, Object, Part};
use rand::Rng;
use serde_json::{Value, json};

use super::Violation;
use super::checks::{Checker, broken};
use super::world::World;
use crate::cache::Cache;
use crate::kinds::{CLAIMS, NAMESPACES, PODS, REVISIONS, STATEFULSETS, VOLUMES};
use crate::pod;

/// Sizes that claims are asked to have, in Gi.
const SIZES: [u32; 4] = [1, 2, 3, 4];

impl World {
    /// One change of mind about a set of pets.
    pub(super) fn act_on_pets(&mut self, set: &Key) {
        match self.rng.random_range(0..6) {
            0 | 1 => self.change_strategy(set),
            2 => self.reserve_ordinals(set),
            3 => self.grow_claims(set),
            4 => self.change_claim_templates(set),
            _ => self.lose_some_volume(),
        }
    }

    fn change_strategy(&mut self, set: &Key) {
        let strategy = match self.rng.random_range(0..6) {
            0 => json!({"type": "OnDelete", "rollingUpdate": null}),
            1 | 2 => json!({"type": "Recreate", "rollingUpdate": null}),
            n => {
                let partition = if n == 3 { self.rng.random_range(0..3) } else { 0 };
                let max = [json!(1), json!(2), json!("50%"), json!("100%")];
                let max = max[self.rng.random_range(0..max.len())].clone();
                json!({"type": "RollingUpdate", "rollingUpdate": {"partition": partition, "maxUnavailable": max}})
            }
        };
        self.patch(set, json!({"spec": {"updateStrategy": strategy}}), Part::Main);
    }

    fn reserve_ordinals(&mut self, set: &Key) {
        let reserved: Vec<String> =
            (0..5).filter(|_| self.rng.random_ratio(1, 4)).map(|ordinal: u32| ordinal.to_string()).collect();
        let value = if reserved.is_empty() { Value::Null } else { reserved.join(",").into() };
        let annotations = json!({api::RESERVED_ORDINALS: value});
        self.patch(set, json!({"metadata": {"annotations": annotations}}), Part::Main);
    }

    fn grow_claims(&mut self, set: &Key) {
        let Ok(object) = self.registry.get(set) else { return };
        let mut templates = object.get_array("spec.volumeClaimTemplates").to_vec();
        let larger = SIZES[self.rng.random_range(0..SIZES.len())];
        for template in &mut templates {
            let size = &mut template["spec"]["resources"]["requests"]["storage"];
            if gibibytes(size) < larger {
                *size = format!("{larger}Gi").into();
            }
        }
        self.patch(set, json!({"spec": {"volumeClaimTemplates": templates}}), Part::Main);
    }

    /// A second claim for each pet, or none any more.
    fn change_claim_templates(&mut self, set: &Key) {
        let Ok(object) = self.registry.get(set) else { return };
        let mut templates = object.get_array("spec.volumeClaimTemplates").to_vec();
        let Some(first) = templates.first().cloned() else { return };
        let mut containers = object.get("spec.template.spec.containers").cloned().unwrap_or_default();
        let mut mounts = vec![json!({"name": "data", "mountPath": "/data"})];
        if templates.len() == 1 {
            let mut log = first;
            log["metadata"]["name"] = "log".into();
            templates.push(log);
            mounts.push(json!({"name": "log", "mountPath": "/log"}));
        } else {
            templates.truncate(1);
        }
        containers[0]["volumeMounts"] = mounts.into();
        let spec =
            json!({"volumeClaimTemplates": templates, "template": {"spec": {"containers": containers}}});
        self.patch(set, json!({"spec": spec}), Part::Main);
    }

    /// A volume goes under its claim: somebody takes the protection away and deletes it.
    fn lose_some_volume(&mut self) {
        if let Some(key) = self.some(&VOLUMES) {
            self.patch(&key, json!({"metadata": {"finalizers": null}}), Part::Main);
            self.delete(&key, None);
        }
    }

    /// What would hold an update back for ever is mended.
    pub(super) fn mend_pets(&mut self, set: &Key) {
        let Ok(object) = self.registry.get(set) else { return };
        if object.get_str("spec.updateStrategy.type") != Some("Recreate") {
            let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}});
            self.patch(set, json!({"spec": {"updateStrategy": strategy}}), Part::Main);
        }
    }
}

fn gibibytes(size: &Value) -> u32 {
    size.as_str().and_then(|text| text.strip_suffix("Gi")?.parse().ok()).unwrap_or(0)
}

/// What a set asks for, as the documentation has it.
struct Wish {
    start: i64,
    replicas: i64,
    reserved: BTreeSet<i64>,
    is_ordered: bool,
    strategy: String,
    partition: i64,
    max_unavailable: i64,
}

impl Wish {
    fn of(set: &Object) -> Wish {
        let number = |path: &str, or: i64| set.get_i64(path).unwrap_or(or);
        let text = |path: &str| set.get_str(path).unwrap_or_default();
        let replicas = number("spec.replicas", 1);
        let max_unavailable = match set.get("spec.updateStrategy.rollingUpdate.maxUnavailable") {
            Some(Value::String(share)) => {
                replicas * share.trim_end_matches('%').parse::<i64>().unwrap_or(0) / 100
            }
            other => other.and_then(Value::as_i64).unwrap_or(1),
        };
        let reserved = set.annotation(api::RESERVED_ORDINALS).unwrap_or_default();
        Wish {
            start: number("spec.ordinals.start", 0),
            replicas,
            reserved: reserved.split(',').filter_map(|word| word.parse().ok()).collect(),
            is_ordered: text("spec.podManagementPolicy") == "OrderedReady",
            strategy: text("spec.updateStrategy.type").into(),
            partition: number("spec.updateStrategy.rollingUpdate.partition", 0),
            max_unavailable: max_unavailable.max(1),
        }
    }

    fn ordinals(&self) -> BTreeSet<i64> {
        let free = (self.start..).filter(|ordinal| !self.reserved.contains(ordinal));
        free.take(usize::try_from(self.replicas).unwrap_or(0)).collect()
    }
}

fn ordinal(name: &str) -> i64 {
    name.rsplit_once('-').and_then(|(_, ordinal)| ordinal.parse().ok()).unwrap_or(-1)
}

fn is_healthy(pod: &Object) -> bool {
    pod::is_active(pod) && pod::is_ready(pod)
}

fn revision(pod: &Object) -> Option<&str> {
    pod.label("controller-revision-hash")
}

impl Checker {
    /// The set of a pod as it was when the controllers were last told of it, unless it or its namespace is going.
    fn asked(&self, pod: &Object, told: &Cache) -> Option<Arc<Object>> {
        let owner = pod.controller_owner().filter(|owner| owner.kind == STATEFULSETS.kind)?;
        let key = Key::new(*STATEFULSETS, pod.namespace(), &owner.name);
        let is_ending = |key: &Key| self.get(key).is_none_or(|it| it.is_deleting());
        if is_ending(&key) || is_ending(&Key::new(*NAMESPACES, "", pod.namespace())) {
            return None;
        }
        let known = told.get(&key).filter(|set| set.uid() == owner.uid)?;
        self.at(known.resource_version()?, &key)
    }

    /// A pet is created where one was asked for, in order, and under `Recreate` only when the old ones are gone.
    pub(super) fn creation_of_pet(&self, pod: &Object, told: &Cache) -> Result<(), Violation> {
        let Some(set) = self.asked(pod, told) else { return Ok(()) };
        let (wish, number) = (Wish::of(&set), ordinal(pod.name()));
        let ordinals = wish.ordinals();
        if !ordinals.contains(&number) {
            return broken("only the ordinals asked for are made", format!("{} of {ordinals:?}", pod.name()));
        }
        for before in ordinals.range(..number).filter(|_| wish.is_ordered) {
            let name = format!("{}-{before}", set.name());
            let before = told.get(&Key::new(*PODS, set.namespace(), &name));
            if !before.is_some_and(|pod| is_healthy(pod)) {
                return broken("lower ordinals come first", format!("{} before {name}", pod.name()));
            }
        }
        if wish.strategy == "Recreate" {
            let mut others = pets(&set, told);
            if let Some(old) = others.find(|old| revision(old) != revision(pod)) {
                return broken(
                    "Recreate runs one revision at a time",
                    format!("{} comes while {} is there", pod.name(), old.name()),
                );
            }
        }
        Ok(())
    }

    /// A pet that is well is deleted only if it is one too many, or of an outdated revision; a few at a time, from
    /// the highest.
    pub(super) fn deletion_of_pet(&self, key: &Key, uid: &str, told: &Cache) -> Result<(), Violation> {
        let Some(pod) = told.get(key).filter(|pod| pod.uid() == uid && is_healthy(pod)) else {
            return Ok(());
        };
        let Some(set) = self.asked(pod, told) else { return Ok(()) };
        let (wish, number) = (Wish::of(&set), ordinal(&key.name));
        let ordinals = wish.ordinals();
        let others = || pets(&set, told).filter(|it| it.name() != key.name);
        if !ordinals.contains(&number) {
            let is_above =
                |it: &&Object| ordinal(it.name()) > number && !ordinals.contains(&ordinal(it.name()));
            return match others().find(is_above).filter(|_| wish.is_ordered && wish.strategy != "Recreate") {
                Some(above) => {
                    broken("highest ordinals go first", format!("{} before {}", key.name, above.name()))
                }
                None => Ok(()),
            };
        }
        let newest = told.dependents(set.uid()).filter(|it| it.kind() == REVISIONS.kind);
        let newest = newest.max_by_key(|revision| revision.get_i64("revision"));
        let is_outdated = |pod: &Object| revision(pod) != newest.map(|revision| revision.name());
        let is_held = wish.strategy == "OnDelete" || number < wish.start + wish.partition;
        if is_held || !is_outdated(pod) {
            return broken("a pet that is well and as it should be stays", key.name.clone());
        }
        if wish.strategy == "Recreate" {
            return Ok(());
        }
        let well: Vec<&Object> =
            others().filter(|it| ordinals.contains(&ordinal(it.name())) && is_healthy(it)).collect();
        let down = wish.replicas - 1 - i64::try_from(well.len()).unwrap_or(0);
        if down >= wish.max_unavailable {
            let detail = format!("{} goes while {down} of {:?} are unwell", key.name, ordinals);
            return broken("no more pets are down for an update than maxUnavailable", detail);
        }
        let is_before = |it: &&&Object| ordinal(it.name()) > number && is_outdated(it);
        if i64::try_from(well.iter().filter(is_before).count()).unwrap_or(0) >= wish.max_unavailable {
            return broken("updates go from the highest down", key.name.clone());
        }
        Ok(())
    }

    /// A claim whose volume is gone holds nothing.
    pub(super) fn is_lost(&self, claim: &Object) -> bool {
        let volume = Key::new(*VOLUMES, "", claim.get_str("spec.volumeName").unwrap_or_default());
        claim.get_str("status.phase") == Some("Lost") && self.get(&volume).is_none()
    }

    /// What must be true of a set once all is quiet.
    pub(super) fn pets_settled(&self, set: &Object) -> Result<(), String> {
        let wish = Wish::of(set);
        let ordinals = wish.ordinals();
        // A pod by hand that has a pet's name is for people to remove.
        let is_strange = |ordinal: &i64| {
            let key = Key::new(*PODS, set.namespace(), format!("{}-{ordinal}", set.name()));
            let owner = self.get(&key).map(|pod| pod.controller_owner().map(|owner| owner.uid));
            owner.is_some_and(|owner| owner.as_deref() != Some(set.uid()))
        };
        if ordinals.iter().any(is_strange) {
            return Ok(());
        }
        let pods = self.active_pods_of(set);
        let there: BTreeSet<i64> = pods.iter().map(|pod| ordinal(pod.name())).collect();
        if there != ordinals {
            return Err(format!("wants {ordinals:?}, has {there:?}"));
        }
        let status = |field: &str| set.get_str(&format!("status.{field}"));
        let update = status("updateRevision");
        for pod in pods {
            let name = pod.name();
            if !pod::is_ready(pod) {
                return Err(format!("{name} is not ready"));
            }
            if revision(pod) != update {
                return Err(format!("{name} is at {:?}, not {update:?}", revision(pod)));
            }
            for template in set.get_array("spec.volumeClaimTemplates") {
                let claim = format!("{}-{name}", template["metadata"]["name"].as_str().unwrap_or_default());
                if !pod::claims(pod).any(|it| it == claim) {
                    return Err(format!("{name} does not mount {claim}"));
                }
                // One that was deleted under a running pet, or that lost its volume, is as it is.
                let Some(object) = self.get(&Key::new(*CLAIMS, set.namespace(), &claim)) else { continue };
                let is_whole = !object.is_deleting() && !self.is_lost(object);
                let size = |value: &Value| gibibytes(&value["spec"]["resources"]["requests"]["storage"]);
                if is_whole && size(&object.0) < size(template) {
                    return Err(format!("{claim} is smaller than its template"));
                }
            }
        }
        if status("currentRevision") != update {
            return Err(format!("{:?} and {update:?} have not met", status("currentRevision")));
        }
        let revisions = self.of(&REVISIONS);
        let ours = |it: &&Object| it.controller_owner().is_some_and(|owner| owner.uid == set.uid());
        let idle = revisions.filter(ours).filter(|it| Some(it.name()) != update).count();
        let limit = set.get_i64("spec.revisionHistoryLimit").unwrap_or(10);
        if i64::try_from(idle).unwrap_or(i64::MAX) > limit {
            return Err(format!("keeps {idle} revisions, asked for {limit}"));
        }
        match set.get_i64("status.readyReplicas").unwrap_or(0) == wish.replicas {
            true => Ok(()),
            false => Err("its status does not say so".into()),
        }
    }
}

/// The set's own pods that the controllers know of.
fn pets<'a>(set: &'a Object, told: &'a Cache) -> impl Iterator<Item = &'a Object> {
    let pods = told.list_in(*PODS, set.namespace()).map(AsRef::as_ref);
    pods.filter(|pod: &&Object| pod.controller_owner().is_some_and(|owner| owner.uid == set.uid()))
}
