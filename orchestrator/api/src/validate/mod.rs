//! Rules that an object of each kind keeps. Every broken one is named by field, in Kubernetes' reasons.
//!
//! Runs after the strict walk and the defaults: types are right, defaulted fields are there.

mod change;
mod container;
mod labels;
mod meta;
mod names;
mod placement;
mod pod;
mod service;
mod storage;
mod workload;

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::error::Cause;
use crate::object::Object;

pub(crate) use change::change;
pub(crate) use meta::precondition;

type Tree = Map<String, Value>;

/// Broken rules and warnings, collected.
#[derive(Debug, Default)]
pub(crate) struct Causes {
    pub list: Vec<Cause>,
    pub warnings: Vec<String>,
}

impl Causes {
    fn add(&mut self, field: impl Display, reason: &str, message: String) {
        self.list.push(Cause { reason: reason.into(), message, field: field.to_string() });
    }

    fn required(&mut self, field: impl Display) {
        self.add(field, "FieldValueRequired", "Required value".into());
    }

    pub(crate) fn required_because(&mut self, field: impl Display, why: &str) {
        self.add(field, "FieldValueRequired", format!("Required value: {why}"));
    }

    fn invalid(&mut self, field: impl Display, value: impl Into<Value>, why: impl Display) {
        self.add(field, "FieldValueInvalid", format!("Invalid value: {}: {why}", value.into()));
    }

    fn duplicate(&mut self, field: impl Display, value: impl Into<Value>) {
        self.add(field, "FieldValueDuplicate", format!("Duplicate value: {}", value.into()));
    }

    fn forbidden(&mut self, field: impl Display, why: impl Display) {
        self.add(field, "FieldValueForbidden", format!("Forbidden: {why}"));
    }

    fn not_found(&mut self, field: impl Display, value: impl Into<Value>) {
        self.add(field, "FieldValueNotFound", format!("Not found: {}", value.into()));
    }

    fn too_long(&mut self, field: impl Display, max: usize) {
        self.add(field, "FieldValueTooLong", format!("Too long: may not be more than {max} bytes"));
    }

    fn warn(&mut self, warning: impl Display) {
        self.warnings.push(warning.to_string());
    }

    /// Refuses a value that is none of `known`.
    fn one_of(&mut self, field: impl Display, value: &str, known: &[&str]) {
        if !known.contains(&value) {
            let list: Vec<String> = known.iter().map(|known| format!("{known:?}")).collect();
            let message = format!("Unsupported value: {value:?}: supported values: {}", list.join(", "));
            self.add(field, "FieldValueNotSupported", message);
        }
    }

    /// Refuses a number outside `low..=high`, if there is one.
    fn in_range(&mut self, field: impl Display, value: Option<&Value>, low: i64, high: i64) {
        if let Some(number) = value.and_then(Value::as_i64)
            && !(low..=high).contains(&number)
        {
            let why = if high == i64::MAX {
                format!("must be greater than or equal to {low}")
            } else {
                format!("must be between {low} and {high}, inclusive")
            };
            self.invalid(field, number, why);
        }
    }

    /// Refuses a name that `rule` refuses, with its reason.
    fn name(&mut self, field: impl Display, name: &str, rule: names::Rule) {
        if let Err(why) = rule(name) {
            self.invalid(field, name, why);
        }
    }
}

/// Checks an object of the stored kind `kind`.
pub(crate) fn object(kind: &str, object: &Object, causes: &mut Causes) {
    meta::metadata(kind, object, causes);
    let Some(root) = object.0.as_object() else { return };
    let empty = Tree::new();
    let spec = tree(root, "spec").unwrap_or(&empty);
    match kind {
        "Pod" => {
            pod::spec(spec, "spec", causes);
            pids_limit(object, causes);
        }
        "Service" => service::spec(spec, causes),
        "EndpointSlice" => service::endpoint_slice(root, causes),
        "ReplicaSet" => workload::replica_set(spec, causes),
        "StatefulSet" => {
            workload::stateful_set(spec, causes);
            workload::reserved_ordinals(object, causes);
        }
        "ControllerRevision" => workload::revision(root, causes),
        "PersistentVolumeClaim" => storage::claim(spec, "spec", causes),
        "PersistentVolume" => storage::volume(spec, causes),
        "StorageClass" => storage::class(root, causes),
        "Node" => placement::node(spec, causes),
        "Event" => event(object, causes),
        _ => {}
    }
}

/// The limit of processes of each container, which Kubernetes has no field for.
fn pids_limit(pod: &Object, causes: &mut Causes) {
    const NAME: &str = "podyard.io/pids-limit";
    if let Some(text) = pod.annotation(NAME)
        && !text.parse::<i64>().is_ok_and(|limit| limit > 0)
    {
        causes.invalid(format!("metadata.annotations[{NAME}]"), text, "must be a whole number above 0");
    }
}

fn event(event: &Object, causes: &mut Causes) {
    let involved = event.get_str("involvedObject.namespace").unwrap_or("");
    let expect = if involved.is_empty() { "default" } else { involved };
    if event.namespace() != expect && !(involved.is_empty() && event.namespace() == "kube-system") {
        causes.invalid("involvedObject.namespace", involved, "does not match event.namespace");
    }
}

fn tree<'a>(tree: &'a Tree, field: &str) -> Option<&'a Tree> {
    tree.get(field)?.as_object()
}

fn text<'a>(tree: &'a Tree, field: &str) -> &'a str {
    tree.get(field).and_then(Value::as_str).unwrap_or("")
}

/// Items of a list, with their paths.
fn items<'a>(tree: &'a Tree, path: &'a str, field: &'static str) -> impl Iterator<Item = (String, &'a Tree)> {
    let list = tree.get(field).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_object).enumerate().map(move |(i, item)| (join(path, field, i), item))
}

fn join(path: &str, field: &str, index: usize) -> String {
    if path.is_empty() { format!("{field}[{index}]") } else { format!("{path}.{field}[{index}]") }
}

fn texts<'a>(tree: &'a Tree, field: &str) -> impl Iterator<Item = &'a str> {
    tree.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}
