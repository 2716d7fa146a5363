//! The garbage collector: what becomes of dependents when their owners go.
//!
//! ```text
//!  owners of an object          it
//!  one stays                    stays; references to owners that are gone are dropped
//!  none stays, one waits        is deleted in the foreground: that owner waits for it
//!  all are gone                 is deleted
//! ```
//! An owner is gone when the watch said so or the store was asked: not being in the cache may mean late news, and a
//! wrong guess deletes data. Identity is the uid; a namesake is nobody's owner.
//!
//! Source: Kubernetes documentation, "Garbage Collection", "Use Cascading Deletion".

use api::{Key, Object, OwnerReference, Part, resource_for_kind};
use serde_json::Value;

use crate::cache::Cache;
use crate::effect::{Call, Propagation};
use crate::plan::Plan;
use crate::replicaset::disown;
use crate::rules::View;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Most dependents dealt with in one go.
const BURST: usize = 100;

/// Whether there is anything here to look at.
pub fn is_concern(object: &Object) -> bool {
    !object.get_array("metadata.ownerReferences").is_empty()
        || waits(object, FOREGROUND)
        || waits(object, ORPHAN)
}

fn waits(object: &Object, finalizer: &str) -> bool {
    object.is_deleting() && object.finalizers().contains(&finalizer)
}

/// Looks at an object.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(object) = view.cache.get(key) else { return plan };
    if object.is_deleting() {
        if waits(object, ORPHAN) {
            orphan(view.cache, object, &mut plan);
        } else if waits(object, FOREGROUND) {
            release(view.cache, object, &mut plan);
        }
    } else {
        collect(view.cache, object, &mut plan);
    }
    plan
}

/// Dependents lose this owner, then it may go.
fn orphan(cache: &Cache, owner: &Object, plan: &mut Plan) {
    for dependent in owned(cache, owner).take(BURST) {
        plan.call(disown(dependent, owner.uid()));
    }
    if plan.is_empty() {
        plan.call(without_finalizer(owner, ORPHAN));
    }
}

/// Once no dependent blocks it, it may go. Each dependent's own look deletes it.
fn release(cache: &Cache, owner: &Object, plan: &mut Plan) {
    let blocks = |dependent: &&Object| {
        let references = dependent.owner_references();
        references.iter().any(|it| it.uid == owner.uid() && it.block_owner_deletion)
    };
    if !owned(cache, owner).any(|dependent| blocks(&dependent)) {
        plan.call(without_finalizer(owner, FOREGROUND));
    }
}

fn owned<'a>(cache: &'a Cache, owner: &'a Object) -> impl Iterator<Item = &'a Object> {
    let dependents = cache.dependents(owner.uid()).map(AsRef::as_ref);
    dependents.filter(|it: &&Object| it.owner_references().iter().any(|it| it.uid == owner.uid()))
}

enum Owner<'a> {
    Stays,
    Waits,
    Gone,
    /// Not known; ask the store about this key.
    Doubtful(Option<Key>, &'a OwnerReference),
}

fn collect(cache: &Cache, object: &Object, plan: &mut Plan) {
    let owners = object.owner_references();
    let states: Vec<Owner<'_>> = owners.iter().map(|owner| judge(cache, object, owner)).collect();
    for state in &states {
        match state {
            Owner::Doubtful(Some(key), owner) => {
                plan.call(Call::Read { key: key.clone(), uid: Some(owner.uid.clone()) });
            }
            // A kind that is not served cannot be asked about: it stays in doubt, and the object with it.
            Owner::Doubtful(None, _) => return,
            _ => {}
        }
    }
    if !plan.is_empty() {
        return;
    }
    let delete = |propagation| Call::Delete { key: object.key(), uid: object.uid().into(), propagation };
    let stays = states.iter().any(|state| matches!(state, Owner::Stays));
    let waits = states.iter().any(|state| matches!(state, Owner::Waits));
    let gone: Vec<&str> = owners
        .iter()
        .zip(&states)
        .filter(|(_, state)| matches!(state, Owner::Gone))
        .map(|(owner, _)| owner.uid.as_str())
        .collect();
    if stays {
        if !gone.is_empty() {
            plan.call(without_owners(object, &gone));
        }
    } else if waits {
        let has_dependents = cache.dependents(object.uid()).next().is_some();
        plan.call(delete(if has_dependents { Propagation::Foreground } else { Propagation::Background }));
    } else if !owners.is_empty() {
        plan.call(delete(Propagation::Background));
    }
}

fn judge<'a>(cache: &Cache, object: &Object, owner: &'a OwnerReference) -> Owner<'a> {
    if let Some(known) = cache.by_uid(&owner.uid) {
        // A namespaced owner in another namespace is no owner.
        let is_near = known.namespace().is_empty() || known.namespace() == object.namespace();
        return match is_near {
            false => Owner::Gone,
            true if waits(known, FOREGROUND) && owner.block_owner_deletion => Owner::Waits,
            true => Owner::Stays,
        };
    }
    if cache.is_gone(&owner.uid) {
        return Owner::Gone;
    }
    let resource = resource_for_kind(&owner.api_version, &owner.kind);
    Owner::Doubtful(resource.map(|it| Key::new(it, object.namespace(), &owner.name)), owner)
}

fn without_owners(object: &Object, uids: &[&str]) -> Call {
    let mut object = object.clone();
    let references = object.get_array("metadata.ownerReferences").iter();
    let is_kept = |it: &&Value| !it["uid"].as_str().is_some_and(|uid| uids.contains(&uid));
    let kept: Vec<Value> = references.filter(is_kept).cloned().collect();
    object.set("metadata.ownerReferences", kept);
    Call::Update { object, part: Part::Main }
}

/// The update that takes a finalizer away.
pub fn without_finalizer(object: &Object, finalizer: &str) -> Call {
    let mut object = object.clone();
    let kept: Vec<Value> =
        object.finalizers().into_iter().filter(|it| *it != finalizer).map(Value::from).collect();
    if kept.is_empty() {
        object.remove("metadata.finalizers");
    } else {
        object.set("metadata.finalizers", kept);
    }
    Call::Update { object, part: Part::Main }
}
