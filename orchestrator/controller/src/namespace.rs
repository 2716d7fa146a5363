//! Namespaces: one that is deleted is emptied, then ended.
//!
//! Its contents are deleted like anything else is, each with its own grace and finalizers; nothing is forced.

use api::{Key, Part};

use crate::effect::{Call, Propagation};
use crate::kinds::EVENTS;
use crate::plan::Plan;
use crate::rules::View;

/// Most objects deleted in one go.
const BURST: usize = 100;

/// Looks at a namespace.
pub fn look(view: &View<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(namespace) = view.cache.get(key).filter(|namespace| namespace.is_deleting()) else {
        return plan;
    };
    let inside = || view.cache.all().filter(|(it, _)| it.namespace == key.name);
    // Events tell of the rest: they go last.
    let (mut is_empty, mut has_events) = (true, false);
    for (it, object) in inside() {
        if it.resource == *EVENTS {
            has_events = true;
            continue;
        }
        is_empty = false;
        if !object.is_deleting() && plan.steps.len() < BURST {
            plan.call(delete(it, object.uid()));
        }
    }
    if is_empty && has_events {
        let events = inside().filter(|(it, event)| it.resource == *EVENTS && !event.is_deleting());
        events.take(BURST).for_each(|(it, event)| plan.call(delete(it, event.uid())));
    } else if is_empty {
        let mut object = (**namespace).clone();
        object.set("spec.finalizers", Vec::<String>::new());
        plan.call(Call::Update { object, part: Part::Main });
    }
    plan
}

fn delete(key: &Key, uid: &str) -> Call {
    Call::Delete { key: key.clone(), uid: uid.into(), propagation: Propagation::Background }
}

#[cfg(test)]
mod tests {
    use api::Object;
    use serde_json::json;

    use crate::testing::{look, pod, summary, with};

    fn namespace(is_deleting: bool) -> Object {
        let base = Object(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "n", "uid": "n", "resourceVersion": "1"}, "spec": {"finalizers": ["kubernetes"]}}));
        let time = if is_deleting { json!("1970-01-01T00:00:00Z") } else { json!(null) };
        with(&base, json!({"metadata": {"deletionTimestamp": time}}))
    }

    fn event() -> Object {
        Object(json!({"apiVersion": "v1", "kind": "Event",
            "metadata": {"name": "e", "namespace": "n", "uid": "e", "resourceVersion": "1"}}))
    }

    #[track_caller]
    fn check(is_deleting: bool, contents: &[Object], expect: &[&str]) {
        let namespace = namespace(is_deleting);
        let all = contents.iter().cloned().chain([namespace.clone()]);
        assert_eq!(summary(&look(super::look, &namespace.key(), all)), expect);
    }

    #[test]
    fn one_that_stays_is_left_alone() {
        check(false, &[pod("a", json!({}))], &[]);
    }

    #[test]
    fn contents_are_deleted_each_once_and_events_last() {
        let ending = pod("b", json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        check(true, &[pod("a", json!({})), ending.clone(), event()], &["delete a"]);
        check(true, &[ending, event()], &[]);
        check(true, &[event()], &["delete e"]);
    }

    #[test]
    fn an_empty_one_is_ended() {
        check(true, &[], &["update n"]);
    }

    #[test]
    fn other_namespaces_are_not_touched() {
        check(true, &[pod("a", json!({"metadata": {"namespace": "other"}}))], &["update n"]);
    }
}
