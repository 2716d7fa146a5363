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
