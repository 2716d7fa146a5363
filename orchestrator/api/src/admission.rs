//! What is done to an object before it is stored: strict walk, metadata, defaults, validation.
//!
//! `managedFields` are dropped: they serve server-side apply, which is not served yet, and would triple every
//! object on disk.

use jiff::Timestamp;
use serde_json::Value;

use crate::convert;
use crate::defaults;
use crate::error::Error;
use crate::object::Object;
use crate::resource::Resource;
use crate::scale;
use crate::time;
use crate::validate::{self, Causes};
use crate::walk::{Findings, walk};

/// What one write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// All but status.
    Main,
    /// Status alone.
    Status,
    /// Replicas alone; the new value is a `Scale`.
    Scale,
}

/// What to do about fields nobody knows. Source: the `fieldValidation` query parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Refuse, naming each.
    #[default]
    Strict,
    /// Drop, with a warning each. `Ignore` is treated so too: nothing is dropped silently.
    Warn,
}

/// What a creation needs from outside.
#[derive(Clone, Debug)]
pub struct AdmitContext {
    /// Becomes `creationTimestamp`.
    pub now: Timestamp,
    /// Becomes `uid`.
    pub new_uid: String,
    /// Namespace of the request path; empty for cluster kinds.
    pub namespace: String,
    /// Five random characters of `[a-z0-9]`, appended to `generateName`.
    pub name_suffix: String,
    /// What to do about unknown fields.
    pub validation: FieldValidation,
}

/// An object that may be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// The object, as its stored kind, defaults filled in, without resource version.
    pub object: Object,
    /// For the client, one per `Warning` header.
    pub warnings: Vec<String>,
}

/// Metadata that clients may send, and that only the server decides.
const SERVER_METADATA: &[&str] = &[
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Admits a new object.
///
/// # Errors
/// `BadRequest` for unknown or ill-typed fields or a mismatch of kind or namespace; `Invalid` for broken rules.
pub fn admit_create(
    resource: &'static Resource,
    value: Value,
    context: &AdmitContext,
) -> Result<Admitted, Error> {
    let mut object = as_stored(resource, value)?;
    let findings = decode(resource, &mut object, context.validation)?;
    name(&mut object, context);
    namespace(resource, &mut object, &context.namespace)?;
    for field in SERVER_METADATA {
        object.remove(&format!("metadata.{field}"));
    }
    object.set("metadata.uid", context.new_uid.as_str());
    object.set("metadata.creationTimestamp", time::seconds(context.now));
    let kind = resource.stored().kind;
    defaults::fill(kind, &mut object);
    if object.get("spec").is_some() {
        object.set("metadata.generation", 1);
    }
    if let Some(status) = defaults::first_status(kind, &object) {
        object.set("status", status);
    }
    let mut causes = Causes::default();
    if object.name().is_empty() {
        causes.required_because("metadata.name", "name or generateName is required");
    } else {
        validate::object(kind, &object, &mut causes);
    }
    finish(resource, object, findings, causes)
}

/// Admits a change of `part` of `old`, with unknown fields refused.
///
/// `value` is the whole object, of which the rest is ignored (`Status`), or a `Scale`.
///
/// # Errors
/// As [`admit_create`]; `Invalid` also for changed immutable fields, `Conflict` if `value` names another uid or
/// resource version than `old` has.
pub fn admit_update(
    resource: &'static Resource,
    old: &Object,
    value: Value,
    part: Part,
) -> Result<Admitted, Error> {
    admit_update_with(resource, old, value, part, FieldValidation::Strict)
}

/// [`admit_update`] with a choice of what to do about unknown fields.
///
/// # Errors
/// As [`admit_update`].
pub fn admit_update_with(
    resource: &'static Resource,
    old: &Object,
    value: Value,
    part: Part,
    validation: FieldValidation,
) -> Result<Admitted, Error> {
    match part {
        Part::Main => update_main(resource, old, as_stored(resource, value)?, validation),
        Part::Status => update_status(resource, old, as_stored(resource, value)?, validation),
        Part::Scale => {
            validate::precondition(old, &Object(value.clone()))?;
            update_main(resource, old, scale::apply(old, &value)?, validation)
        }
    }
}

fn update_main(
    resource: &'static Resource,
    old: &Object,
    mut new: Object,
    validation: FieldValidation,
) -> Result<Admitted, Error> {
    let kind = resource.stored().kind;
    // Status is not looked at: its writers have their own part.
    if resource.has_status() {
        new.remove("status");
    }
    let findings = decode(resource, &mut new, validation)?;
    if new.name().is_empty() {
        new.set("metadata.name", old.name());
    } else if new.name() != old.name() {
        return Err(Error::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            new.name(),
            old.name()
        )));
    }
    namespace(resource, &mut new, old.namespace())?;
    validate::precondition(old, &new)?;
    for field in SERVER_METADATA {
        keep(old, &mut new, &format!("metadata.{field}"));
    }
    if resource.has_status() {
        keep(old, &mut new, "status");
    }
    if kind == "Service" {
        keep_allocations(old, &mut new);
    }
    defaults::fill(kind, &mut new);
    let mut causes = Causes::default();
    validate::object(kind, &new, &mut causes);
    validate::change(kind, old, &new, &mut causes);
    if new.get("spec") != old.get("spec") {
        new.set("metadata.generation", old.generation() + 1);
    }
    finish(resource, new, findings, causes)
}

fn update_status(
    resource: &'static Resource,
    old: &Object,
    mut new: Object,
    validation: FieldValidation,
) -> Result<Admitted, Error> {
    validate::precondition(old, &new)?;
    let status = match &mut new.0 {
        Value::Object(map) => map.remove("status"),
        _ => None,
    };
    let mut reduced = Object(serde_json::json!({}));
    if let Some(status) = status {
        reduced.set("status", status);
    }
    let findings = decode(resource, &mut reduced, validation)?;
    let mut object = old.clone();
    keep(&reduced, &mut object, "status");
    finish(resource, object, findings, Causes::default())
}

/// The object as its stored kind; kind and version may be left out.
fn as_stored(resource: &'static Resource, mut value: Value) -> Result<Object, Error> {
    if !value.is_object() {
        return Err(Error::bad_request("the body is no JSON object"));
    }
    convert::to_stored(resource, &mut value);
    let stored = resource.stored();
    let mut object = Object(value);
    if object.0.get("kind").is_none() && object.0.get("apiVersion").is_none() {
        object.set("kind", stored.kind);
        object.set("apiVersion", stored.api_version());
    }
    if object.resource() != Some(stored) {
        return Err(Error::bad_request(format!(
            "the object is a {:?} in version {:?}, not a {} in version {:?}",
            object.kind(),
            object.api_version(),
            resource.kind,
            resource.api_version()
        )));
    }
    Ok(object)
}

/// The strict walk: refuses what cannot be understood.
fn decode(
    resource: &'static Resource,
    object: &mut Object,
    validation: FieldValidation,
) -> Result<Findings, Error> {
    let mut findings = walk(resource.schema, &mut object.0);
    let refuse = |why: String| {
        let (kind, version) = (resource.kind, resource.api_version());
        Err(Error::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}")))
    };
    if !findings.mistyped.is_empty() {
        return refuse(findings.mistyped.join(", "));
    }
    let unknown: Vec<String> =
        findings.unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    match validation {
        FieldValidation::Strict if !unknown.is_empty() => {
            return refuse(format!("strict decoding error: {}", unknown.join(", ")));
        }
        FieldValidation::Strict => {}
        FieldValidation::Warn => findings.warnings.splice(0..0, unknown).for_each(drop),
    }
    if !object.0["metadata"].is_object() {
        object.set("metadata", serde_json::json!({}));
    }
    Ok(findings)
}

fn name(object: &mut Object, context: &AdmitContext) {
    if !object.name().is_empty() {
        return;
    }
    let Some(base) = object.get_str("metadata.generateName").filter(|base| !base.is_empty()) else { return };
    // 63 characters fit a DNS label, whatever the kind.
    let cut = base.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= 58).last();
    let name = format!("{}{}", &base[..cut.unwrap_or(0)], context.name_suffix);
    object.set("metadata.name", name);
}

fn namespace(resource: &Resource, object: &mut Object, expected: &str) -> Result<(), Error> {
    if !resource.namespaced {
        object.remove("metadata.namespace");
    } else if object.namespace().is_empty() {
        object.set("metadata.namespace", expected);
    } else if object.namespace() != expected {
        return Err(Error::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// A service keeps its address when a client leaves it out, as `kubectl replace` does.
fn keep_allocations(old: &Object, new: &mut Object) {
    let external = |object: &Object| object.get_str("spec.type") == Some("ExternalName");
    if !external(old) && !external(new) && new.get_str("spec.clusterIP").unwrap_or("").is_empty() {
        keep(old, new, "spec.clusterIP");
        keep(old, new, "spec.clusterIPs");
    }
}

fn keep(from: &Object, to: &mut Object, path: &str) {
    match from.get(path) {
        Some(value) => to.set(path, value.clone()),
        None => to.remove(path),
    }
}

fn finish(
    resource: &'static Resource,
    mut object: Object,
    findings: Findings,
    mut causes: Causes,
) -> Result<Admitted, Error> {
    let mut list = findings.causes;
    list.append(&mut causes.list);
    // A duplicate may be found by the walk and by a rule.
    let mut seen = std::collections::HashSet::new();
    list.retain(|cause| seen.insert((cause.field.clone(), cause.message.clone())));
    if !list.is_empty() {
        return Err(Error::invalid(resource, object.name(), list).with_uid(object.uid()));
    }
    object.set_resource_version(None);
    let mut warnings = findings.warnings;
    warnings.append(&mut causes.warnings);
    Ok(Admitted { object, warnings })
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
