//! Rules of single kinds that need more than the object: neighbours, allocations, the index.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use api::{Cause, Error, Key, Object, RESOURCES};
use rand::Rng;
use serde_json::{Value, json};
use store::{Expect, Op, Store};

use crate::draft::{After, Draft};
use crate::index::{is_finished, pod_claims};
use crate::{PERMANENT_NAMESPACES, Registry};

/// Marks the class of claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// Keeps a claim while pods use it.
pub(crate) const PROTECTION: &str = "kubernetes.io/pvc-protection";

impl<S: Store> Registry<S> {
    /// Completes the draft of a new object.
    pub(crate) fn rules_of_creation(&self, draft: &mut Draft) -> Result<(), Error> {
        let After::Is(object) = &mut draft.after else { return Ok(()) };
        if draft.key.resource.namespaced {
            draft.along.push(self.namespace_stays(&draft.key)?);
        }
        match (draft.key.resource.group, draft.key.resource.plural) {
            ("", "namespaces") => {
                object.set("spec.finalizers", json!(["kubernetes"]));
                set_label(object, "kubernetes.io/metadata.name", &draft.key.name);
            }
            ("", "persistentvolumeclaims") => {
                add_finalizer(object, PROTECTION);
                // An empty name is a wish too: no class at all.
                if object.get("spec.storageClassName").is_none()
                    && let Some(class) = self.default_storage_class()
                {
                    object.set("spec.storageClassName", class);
                }
            }
            ("", "services") => self.allocate_virtual_ip(None, draft)?,
            ("", "events") => {
                let surplus = self.index(|index| index.surplus_events(self.events_max));
                let delete = |key| Op::Delete { key, expect: Expect::Any };
                draft.along.extend(surplus.into_iter().map(delete));
            }
            _ => {}
        }
        Ok(())
    }

    /// The class of claims that name none: the newest one that says so. Source: Kubernetes, "Default StorageClass".
    fn default_storage_class(&self) -> Option<String> {
        let (_, records) =
            self.store.list(api::resource_by_plural("storage.k8s.io", "storageclasses")?, None);
        let classes = records.iter().map(store::Record::object);
        let is_default = |class: &Object| class.annotation(DEFAULT_CLASS) == Some("true");
        let newest = classes
            .filter(is_default)
            .max_by_key(|class| (class.creation_timestamp(), class.name().to_owned()));
        newest.map(|class| class.name().to_owned())
    }

    /// Completes the draft of a changed object.
    pub(crate) fn rules_of_update(&self, old: &Object, draft: &mut Draft) -> Result<(), Error> {
        let After::Is(object) = &mut draft.after else { return Ok(()) };
        match (draft.key.resource.group, draft.key.resource.plural) {
            ("", "services") => self.allocate_virtual_ip(Some(old), draft)?,
            ("", "persistentvolumeclaims") => self.check_growth(old, object)?,
            ("", "pods") => {
                // The address was given by the scheduler; a status that does not speak of it does not take it away.
                if object.get("status.podIP").is_none() && !is_finished(object) {
                    for field in ["status.podIP", "status.podIPs"] {
                        if let Some(value) = old.get(field) {
                            object.set(field, value.clone());
                        }
                    }
                }
                self.take_pod_address(old, draft)?;
            }
            _ => {}
        }
        self.finish_deletion(draft)
    }

    /// A claim may ask for more only if its class can give it. (Less is refused with the object's other changes.)
    /// Source: Kubernetes, "Expanding Persistent Volumes Claims".
    fn check_growth(&self, old: &Object, new: &Object) -> Result<(), Error> {
        const PATH: &str = "spec.resources.requests.storage";
        let size =
            |claim: &Object| claim.get_str(PATH).and_then(|text| api::quantity::parse_bytes(text).ok());
        if size(new) <= size(old) {
            return Ok(());
        }
        let name = new.get_str("spec.storageClassName").unwrap_or("");
        let class = api::resource_by_plural("storage.k8s.io", "storageclasses")
            .and_then(|resource| self.store.get(&Key::new(resource, "", name)))
            .map(|record| record.object());
        if class.is_some_and(|class| class.0["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        let cause = Cause {
            reason: "FieldValueForbidden".into(),
            message: format!("Forbidden: storage class {name:?} does not say allowVolumeExpansion: true"),
            field: PATH.into(),
        };
        Err(Error::invalid(new.key().resource, new.name(), vec![cause]))
    }

    /// Removes an object in deletion that waits for nothing any more.
    fn finish_deletion(&self, draft: &mut Draft) -> Result<(), Error> {
        let After::Is(object) = &draft.after else { return Ok(()) };
        if !object.is_deleting() || !object.finalizers().is_empty() {
            return Ok(());
        }
        let is_namespace = draft.key.resource.plural == "namespaces";
        let waits = match draft.key.resource.plural {
            "pods" => object.deletion_grace_period_secs() != Some(0),
            "namespaces" => !object.get_array("spec.finalizers").is_empty(),
            _ => false,
        };
        if waits {
            return Ok(());
        }
        if is_namespace {
            self.check_empty(&draft.key)?;
        }
        draft.after = After::Gone(object.clone());
        self.rules_of_removal(std::slice::from_mut(draft));
        Ok(())
    }

    /// Completes drafts of removals: claims that waited for these pods go with them.
    pub(crate) fn rules_of_removal(&self, drafts: &mut [Draft]) {
        let is_gone = |draft: &&Draft| matches!(draft.after, After::Gone(_));
        let gone: Vec<Key> = drafts.iter().filter(is_gone).map(|draft| draft.key.clone()).collect();
        let mut done: Vec<Key> = Vec::new();
        for draft in drafts {
            let After::Gone(object) = &draft.after else { continue };
            if draft.key.resource.plural != "pods" {
                continue;
            }
            for claim in pod_claims(object) {
                let Some(record) = self.store.get(&claim).filter(|_| !done.contains(&claim)) else {
                    continue;
                };
                let object = record.object();
                let waits_for_pods = object.is_deleting() && object.finalizers() == [PROTECTION];
                if waits_for_pods && !self.index(|index| index.is_claim_used(&claim, &gone)) {
                    let expect = Expect::Revision(record.revision);
                    draft.along.push(Op::Delete { key: claim.clone(), expect });
                    done.push(claim);
                }
            }
        }
    }

    /// The condition that the namespace of `key` is there to stay.
    fn namespace_stays(&self, key: &Key) -> Result<Op, Error> {
        let namespace = Key::core("namespaces", "", key.namespace.as_str());
        let record = self.record(&namespace)?;
        if record.object().is_deleting() {
            let name = &key.namespace;
            let why =
                format!("unable to create new content in namespace {name} because it is being terminated");
            return Err(Error::denied(key, why));
        }
        Ok(Op::Check { key: namespace, expect: Expect::Revision(record.revision) })
    }

    /// Refuses to remove a namespace that has something in it.
    ///
    /// Once it is seen to be terminating nothing can be added: creations check its revision in their commit.
    pub(crate) fn check_empty(&self, namespace: &Key) -> Result<(), Error> {
        for resource in RESOURCES.iter().filter(|it| it.namespaced && it.stored_as.is_none()) {
            let (_, records) = self.store.list(resource, Some(&namespace.name));
            if let Some(record) = records.first() {
                let why = format!("it still has {} objects, {} among them", records.len(), record.key);
                return Err(Error::conflict(namespace, why));
            }
        }
        Ok(())
    }

    /// Refuses to delete what must stay.
    pub(crate) fn check_deletable(key: &Key) -> Result<(), Error> {
        let is_permanent = PERMANENT_NAMESPACES.contains(&key.name.as_str());
        if key.resource.plural == "namespaces" && is_permanent {
            return Err(Error::denied(key, "this namespace may not be deleted"));
        }
        Ok(())
    }

    /// Refuses to start a pod on claims that are missing or going away.
    pub(crate) fn check_claims(&self, pod: &Object, draft: &mut Draft) -> Result<(), Error> {
        for key in pod_claims(pod) {
            let Some(record) = self.store.get(&key) else {
                return Err(Error::conflict(
                    &draft.key,
                    format!("persistentvolumeclaim {:?} not found", key.name),
                ));
            };
            if record.object().is_deleting() {
                let why = format!("persistentvolumeclaim {:?} is being deleted", key.name);
                return Err(Error::conflict(&draft.key, why));
            }
            draft.along.push(Op::Check { key, expect: Expect::Revision(record.revision) });
        }
        Ok(())
    }

    /// Gives the draft's service its virtual IP: the old one, the one it asks for, or a free one.
    ///
    /// Source: Kubernetes documentation, "Service ClusterIP allocation".
    fn allocate_virtual_ip(&self, old: Option<&Object>, draft: &mut Draft) -> Result<(), Error> {
        let After::Is(service) = &mut draft.after else { return Ok(()) };
        let kind = service.get_str("spec.type").unwrap_or("ClusterIP").to_owned();
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            let warning =
                format!("spec.type: {kind}: no port of the host is opened; only the virtual IP is served");
            draft.warnings.push(warning);
        }
        if kind == "ExternalName" {
            service.remove("spec.clusterIP");
            service.remove("spec.clusterIPs");
            return Ok(());
        }
        let old_ip = old.and_then(|old| old.get_str("spec.clusterIP")).filter(|ip| !ip.is_empty());
        let wanted = service.get_str("spec.clusterIP").filter(|ip| !ip.is_empty()).map(str::to_owned);
        let address = match (old_ip, wanted.as_deref()) {
            (Some(old), None) => old.to_owned(),
            (Some(old), Some(new)) if old == new => new.to_owned(),
            (Some(_), Some(new)) => return Err(refuse_address(service, new, "field is immutable")),
            (None, Some("None")) => "None".to_owned(),
            (None, wanted) => {
                let address = self.reserve_virtual_ip(service, wanted)?;
                draft.address = Some(address);
                address.to_string()
            }
        };
        service.set("spec.clusterIPs", json!([address]));
        service.set("spec.clusterIP", address);
        Ok(())
    }

    fn reserve_virtual_ip(&self, service: &Object, wanted: Option<&str>) -> Result<IpAddr, Error> {
        let (key, now, cidr) = (service.key(), self.now(), self.service_cidr);
        let refuse = |why: &str| refuse_address(service, wanted.unwrap_or_default(), why);
        let wanted = match wanted {
            None => None,
            Some(text) => {
                let address: Ipv4Addr =
                    text.parse().map_err(|_| refuse("must be an IPv4 address or None"))?;
                let is_inside = cidr.has_host(address);
                Some(address)
                    .filter(|_| is_inside)
                    .ok_or_else(|| refuse(&format!("the provided IP is not in the valid range: {cidr}")))?
                    .into()
            }
        };
        let start = self.dice(|rng| rng.random());
        self.index(|index| {
            let address = match wanted {
                Some(address) if index.holder(IpAddr::V4(address), now).is_some() => {
                    return Err(refuse("provided IP is already allocated"));
                }
                Some(address) => address,
                None => cidr
                    .choose(start, |address| index.is_free(address.into(), now))
                    .ok_or_else(|| Error::denied(&key, format!("every virtual IP of {cidr} is taken")))?,
            };
            index.reserve(address.into(), &key);
            Ok(address.into())
        })
    }
}

fn refuse_address(service: &Object, address: &str, why: &str) -> Error {
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {address:?}: {why}"),
        field: "spec.clusterIP".into(),
    };
    Error::invalid(service.key().resource, service.name(), vec![cause])
}

fn set_label(object: &mut Object, name: &str, value: &str) {
    let mut labels = object.labels().clone();
    labels.insert(name.to_owned(), value.into());
    object.set("metadata.labels", Value::Object(labels));
}

/// Adds a finalizer that is not there yet.
pub(crate) fn add_finalizer(object: &mut Object, finalizer: &str) {
    if !object.finalizers().contains(&finalizer) {
        let mut finalizers = object.get_array("metadata.finalizers").to_vec();
        finalizers.push(finalizer.into());
        object.set("metadata.finalizers", finalizers);
    }
}

/// Takes a finalizer away.
pub(crate) fn remove_finalizer(object: &mut Object, finalizer: &str) {
    let rest: Vec<Value> =
        object.finalizers().into_iter().filter(|it| *it != finalizer).map(Value::from).collect();
    if rest.is_empty() {
        object.remove("metadata.finalizers");
    } else {
        object.set("metadata.finalizers", rest);
    }
}
