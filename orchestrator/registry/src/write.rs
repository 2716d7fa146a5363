//! create, update, patch, bind.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use api::{AdmitContext, Admitted, Error, Key, Object, Part, Resource, admit_create, admit_update_with};
use serde_json::{Value, json};
use store::{Expect, Op, Record, Store};

use crate::draft::{After, Draft};
use crate::index::pod_address;
use crate::{PatchKind, Registry, WriteOptions, Written};

/// How often a generated name may be taken. As in Kubernetes.
const NAMES_MAX: usize = 8;

impl<S: Store> Registry<S> {
    /// Creates an object in `namespace`, which is empty for cluster kinds.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken, `NotFound` if the namespace is missing, `Denied` if it is going away; and
    /// whatever admission refuses.
    pub async fn create(
        &self,
        resource: &'static Resource,
        namespace: &str,
        value: Value,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let is_generated = value["metadata"]["name"].as_str().is_none_or(str::is_empty);
        let outcome = self.write(options.dry_run, || {
            let attempts = if is_generated { NAMES_MAX } else { 1 };
            let mut taken = None;
            for _ in 0..attempts {
                let context = AdmitContext {
                    now: self.now(),
                    new_uid: self.new_uid(),
                    namespace: namespace.to_owned(),
                    name_suffix: self.new_name_suffix(),
                    validation: options.validation,
                };
                let admitted = admit_create(resource, value.clone(), &context)?;
                let key = admitted.object.key();
                if self.store.get(&key).is_none() {
                    return self.decide_create(key, admitted);
                }
                taken = Some(Error::already_exists(&key));
            }
            Err(taken.unwrap_or_else(|| Error::internal("no name was tried")))
        });
        let outcome = outcome.await?;
        Ok(Written { object: outcome.object, warnings: outcome.warnings })
    }

    fn decide_create(&self, key: Key, admitted: Admitted) -> Result<Draft, Error> {
        let mut draft = Draft::new(key, None, After::Is(admitted.object));
        draft.warnings = admitted.warnings;
        self.rules_of_creation(&mut draft)?;
        Ok(draft)
    }

    /// Replaces a part of an object. If `value` carries a resource version or uid, they must be the object's.
    ///
    /// Taking the last finalizer from an object in deletion removes it.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if `value` is stale; and whatever admission refuses.
    pub async fn update(
        &self,
        key: &Key,
        value: Value,
        part: Part,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        self.change(key, part, options, |_| Ok(value.clone())).await
    }

    /// Patches a part of an object, again while others are faster, unless the patch names a resource version.
    ///
    /// # Errors
    /// As [`Registry::update`]; and what the patch cannot do.
    pub async fn patch(
        &self,
        key: &Key,
        kind: PatchKind,
        patch: &Value,
        part: Part,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        self.change(key, part, options, |object| {
            let target = if part == Part::Scale { api::scale::of(object) } else { object.0.clone() };
            match kind {
                PatchKind::Json => api::patch::json(&target, patch),
                PatchKind::Merge => api::patch::merge(&target, patch),
                PatchKind::Strategic => api::patch::strategic(key.resource, &target, patch),
            }
        })
        .await
    }

    /// Gives an object its next value, made from the present one.
    async fn change(
        &self,
        key: &Key,
        part: Part,
        options: &WriteOptions,
        next: impl Fn(&Object) -> Result<Value, Error>,
    ) -> Result<Written, Error> {
        let outcome = self.write(options.dry_run, || {
            let record = self.record(key)?;
            let old = record.object();
            let value = next(&old)?;
            check_identity(key, &record, &old, &value)?;
            let admitted = admit_update_with(key.resource, &old, value, part, options.validation)?;
            self.decide_update(record, &old, admitted)
        });
        let outcome = outcome.await?;
        Ok(Written { object: outcome.object, warnings: outcome.warnings })
    }

    fn decide_update(&self, record: Record, old: &Object, admitted: Admitted) -> Result<Draft, Error> {
        let Admitted { object, warnings, .. } = admitted;
        if old.is_deleting() {
            let old_finalizers = old.finalizers();
            if let Some(new) = object.finalizers().into_iter().find(|it| !old_finalizers.contains(it)) {
                let why = format!("no new finalizers can be added while it is being deleted: {new}");
                return Err(Error::denied(&record.key, why));
            }
        }
        let mut draft = Draft::new(record.key.clone(), Some(record), After::Is(object));
        draft.warnings = warnings;
        self.rules_of_update(old, &mut draft)?;
        Ok(draft)
    }

    /// Gives a pod its node and its address. Repeating it changes nothing.
    ///
    /// `pod_ip` is `None` for a pod that is to have no address yet; a pod of the host's network may share one.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if the pod is another one by that name, is being deleted, has another node or address,
    /// uses a claim that is missing or going away, or if another pod has the address.
    pub async fn bind(
        &self,
        pod: &Key,
        uid: Option<&str>,
        node: &str,
        pod_ip: Option<IpAddr>,
    ) -> Result<Written, Error> {
        let outcome = self.write(false, || {
            let record = self.record(pod)?;
            let old = record.object();
            check_uid(pod, &old, uid)?;
            if old.is_deleting() {
                return Err(Error::conflict(pod, "the pod is being deleted"));
            }
            let mut object = old.clone();
            match old.get_str("spec.nodeName").filter(|it| !it.is_empty()) {
                Some(other) if other != node => {
                    let why = format!("the pod is already assigned to node {other:?}");
                    return Err(Error::conflict(pod, why));
                }
                _ => object.set("spec.nodeName", node),
            }
            if let Some(address) = pod_ip {
                match old.get_str("status.podIP") {
                    Some(other) if other.parse() != Ok(address) => {
                        return Err(Error::conflict(pod, format!("the pod already has the address {other}")));
                    }
                    _ => {
                        object.set("status.podIP", address.to_string());
                        object.set("status.podIPs", json!([{"ip": address.to_string()}]));
                    }
                }
            }
            if object != old {
                set_scheduled(&mut object, &api::time::seconds(self.now()));
            }
            let mut draft = Draft::new(pod.clone(), Some(record), After::Is(object));
            self.check_claims(&old, &mut draft)?;
            // The node stays while this commits: see `check_vacant`. Its heartbeat is no reason to decide again.
            let node = Key::core("nodes", "", node);
            if self.store.get(&node).is_some() {
                draft.along.push(Op::Check { key: node, expect: Expect::Present });
            }
            self.take_pod_address(&old, &mut draft)?;
            Ok(draft)
        });
        let outcome = outcome.await?;
        Ok(Written { object: outcome.object, warnings: outcome.warnings })
    }

    /// Reserves the address of the draft's pod if the pod did not have it before.
    pub(crate) fn take_pod_address(&self, old: &Object, draft: &mut Draft) -> Result<(), Error> {
        let After::Is(pod) = &draft.after else { return Ok(()) };
        let Some(address) = pod_address(pod).filter(|address| Some(*address) != pod_address(old)) else {
            return Ok(());
        };
        let now = self.now();
        self.index(|index| {
            if let Some(holder) = index.holder(address, now).filter(|holder| **holder != draft.key) {
                return Err(Error::conflict(&draft.key, format!("{address} is the address of {holder}")));
            }
            index.reserve(address, &draft.key);
            Ok(())
        })?;
        draft.address = Some(address);
        Ok(())
    }

    /// The record under `key`.
    pub(crate) fn record(&self, key: &Key) -> Result<Record, Error> {
        self.store.get(key).ok_or_else(|| Error::not_found(key))
    }
}

/// Refuses a value meant for another object, or for another state of this one.
fn check_identity(key: &Key, record: &Record, old: &Object, value: &Value) -> Result<(), Error> {
    let metadata = &value["metadata"];
    let text = |field: &str| metadata[field].as_str().filter(|text| !text.is_empty());
    if text("name").is_some_and(|name| name != key.name) {
        return Err(Error::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            metadata["name"], key.name
        )));
    }
    if key.resource.namespaced && text("namespace").is_some_and(|namespace| namespace != key.namespace) {
        return Err(Error::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    check_uid(key, old, text("uid"))?;
    match text("resourceVersion") {
        Some(version) if version != record.revision.to_string() => Err(Error::modified(key)),
        _ => Ok(()),
    }
}

/// Refuses to act on another object of the same name.
pub(crate) fn check_uid(key: &Key, object: &Object, uid: Option<&str>) -> Result<(), Error> {
    match uid {
        Some(uid) if uid != object.uid() => {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object.uid()
            );
            Err(Error::conflict(key, why))
        }
        _ => Ok(()),
    }
}

/// Sets the condition `PodScheduled`.
fn set_scheduled(pod: &mut Object, now: &str) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now});
    let mut conditions = pod.get_array("status.conditions").to_vec();
    match conditions.iter_mut().find(|it| it["type"] == "PodScheduled") {
        Some(old) if old["status"] == "True" => return,
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
    pod.set("status.conditions", conditions);
}
