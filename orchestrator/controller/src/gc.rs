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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rules::View;
    use crate::scheduler::Assumed;
    use crate::testing::{cache, now, owned, pod, summary, with};

    fn owner(uid: &str) -> Object {
        with(&pod("owner", json!({})), json!({"metadata": {"uid": uid}}))
    }

    /// What is planned for `it` among `others`, when `gone` are known to be gone.
    #[track_caller]
    fn check(it: &Object, others: &[Object], gone: &[&str], expect: &[&str]) -> Plan {
        let mut cache = cache(others.iter().cloned().chain([it.clone()]));
        gone.iter().for_each(|uid| cache.mark_gone(uid));
        let assumed = Assumed::new();
        let plan = super::look(&View { cache: &cache, assumed: &assumed, now: now() }, &it.key());
        assert_eq!(summary(&plan), expect);
        plan
    }

    fn waiting(object: &Object, finalizer: &str) -> Object {
        with(
            object,
            json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z", "finalizers": [finalizer]}}),
        )
    }

    #[test]
    fn an_owner_that_stays_keeps_it() {
        check(&owned(pod("a", json!({})), &owner("o")), &[owner("o")], &[], &[]);
    }

    #[test]
    fn an_owner_that_is_not_known_is_asked_for_before_anything_is_deleted() {
        check(&owned(pod("a", json!({})), &owner("o")), &[], &[], &["read owner"]);
    }

    #[test]
    fn an_owner_that_is_gone_takes_it_along() {
        check(&owned(pod("a", json!({})), &owner("o")), &[], &["o"], &["delete a"]);
    }

    #[test]
    fn a_namesake_is_no_owner() {
        check(&owned(pod("a", json!({})), &owner("o")), &[owner("other")], &["o"], &["delete a"]);
    }

    #[test]
    fn an_owner_in_another_namespace_is_no_owner() {
        let far = with(&owner("o"), json!({"metadata": {"namespace": "far"}}));
        check(&owned(pod("a", json!({})), &owner("o")), &[far], &[], &["delete a"]);
    }

    #[test]
    fn references_to_the_gone_are_dropped_while_another_owner_stays() {
        let mut two = owned(pod("a", json!({})), &owner("o"));
        let second = json!({"apiVersion": "v1", "kind": "Pod", "name": "second", "uid": "s"});
        two.0["metadata"]["ownerReferences"].as_array_mut().unwrap().push(second);
        let plan = check(&two, &[owner("o")], &["s"], &["update a"]);
        let Call::Update { object, .. } = &plan.steps[0].call else { panic!() };
        assert_eq!(object.owner_references().len(), 1);
    }

    #[test]
    fn in_the_foreground_dependents_go_first() {
        let owner = waiting(&owner("o"), FOREGROUND);
        let dependent = owned(pod("a", json!({})), &owner);
        check(&dependent, std::slice::from_ref(&owner), &[], &["delete a"]);
        check(&owner, &[dependent], &[], &[]);
        check(&owner, &[], &[], &["update owner"]);
    }

    #[test]
    fn in_the_foreground_a_dependent_with_dependents_waits_for_them_too() {
        let owner = waiting(&owner("o"), FOREGROUND);
        let middle = owned(pod("middle", json!({})), &owner);
        let leaf = owned(pod("leaf", json!({})), &middle);
        let plan = check(&middle, &[owner, leaf], &[], &["delete middle"]);
        let Call::Delete { propagation, .. } = plan.steps[0].call else { panic!() };
        assert_eq!(propagation, Propagation::Foreground);
    }

    #[test]
    fn orphans_lose_their_owner_before_it_goes() {
        let owner = waiting(&owner("o"), ORPHAN);
        let dependent = owned(pod("a", json!({})), &owner);
        let plan = check(&owner, &[dependent], &[], &["update a"]);
        let Call::Update { object, .. } = &plan.steps[0].call else { panic!() };
        assert_eq!(object.owner_references(), []);
        check(&owner, &[], &[], &["update owner"]);
    }

    #[test]
    fn what_nobody_owns_is_nobodys_garbage() {
        check(&pod("a", json!({})), &[], &[], &[]);
    }
}
