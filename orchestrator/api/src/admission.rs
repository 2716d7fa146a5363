//! What is done to an object before it is stored: strict walk, defaults, validation, metadata.

use jiff::Timestamp;
use serde_json::Value;

use crate::convert;
use crate::error::{Cause, Error};
use crate::object::Object;
use crate::resource::Resource;
use crate::time;

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
    /// The object, as its stored kind, defaults filled in.
    pub object: Object,
    /// For the client, one per `Warning` header.
    pub warnings: Vec<String>,
}

/// Admits a new object.
///
/// # Errors
/// `BadRequest` for unknown or ill-typed fields or a mismatch of kind or namespace; `Invalid` for broken rules.
pub fn admit_create(
    resource: &'static Resource,
    mut value: Value,
    context: &AdmitContext,
) -> Result<Admitted, Error> {
    convert::to_stored(resource, &mut value);
    let resource = resource.stored();
    if !value.is_object() {
        return Err(Error::bad_request("the object is no JSON object"));
    }
    let mut object = Object(value);
    if object.kind().is_empty() {
        object.set("kind", resource.kind);
        object.set("apiVersion", resource.api_version());
    }
    if object.resource() != Some(resource) {
        return Err(Error::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}",
            object.kind(),
            object.api_version(),
            resource.kind
        )));
    }
    if object.name().is_empty() {
        let Some(base) = object.get_str("metadata.generateName").filter(|base| !base.is_empty()) else {
            let cause = Cause {
                reason: "FieldValueRequired".into(),
                message: "Required value: name or generateName is required".into(),
                field: "metadata.name".into(),
            };
            return Err(Error::invalid(resource, "", vec![cause]));
        };
        let name = format!("{base}{}", context.name_suffix);
        object.set("metadata.name", name);
    }
    if resource.namespaced {
        if object.namespace().is_empty() {
            object.set("metadata.namespace", context.namespace.as_str());
        } else if object.namespace() != context.namespace {
            return Err(Error::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    object.set("metadata.uid", context.new_uid.as_str());
    object.set("metadata.creationTimestamp", time::seconds(context.now));
    if object.get("spec").is_some() {
        object.set("metadata.generation", 1);
    }
    for field in
        ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"]
    {
        object.remove(&format!("metadata.{field}"));
    }
    if resource.has_status() {
        object.remove("status");
    }
    Ok(Admitted { object, warnings: Vec::new() })
}

/// Admits a change of `part` of `old`, with unknown fields refused.
///
/// # Errors
/// As [`admit_create`]; `Invalid` also for changed immutable fields.
pub fn admit_update(
    resource: &'static Resource,
    old: &Object,
    mut value: Value,
    part: Part,
) -> Result<Admitted, Error> {
    if part == Part::Scale {
        let object = crate::scale::apply(old, &value)?;
        return admit_update(resource, old, object.0, Part::Main);
    }
    convert::to_stored(resource, &mut value);
    if !value.is_object() {
        return Err(Error::bad_request("the object is no JSON object"));
    }
    let mut object = Object(value);
    let keep = |object: &mut Object, field: &str| match old.get(field) {
        Some(value) => object.set(field, value.clone()),
        None => object.remove(field),
    };
    match part {
        Part::Status => {
            let status = object.get("status").cloned();
            object = old.clone();
            match status {
                Some(status) => object.set("status", status),
                None => object.remove("status"),
            }
        }
        Part::Main | Part::Scale => {
            for field in
                ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
            {
                keep(&mut object, &format!("metadata.{field}"));
            }
            if resource.has_status() {
                keep(&mut object, "status");
            }
            if object.get("spec") != old.get("spec") {
                object.set("metadata.generation", old.generation() + 1);
            }
        }
    }
    Ok(Admitted { object, warnings: Vec::new() })
}
