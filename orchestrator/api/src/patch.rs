//! Patches: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and strategic merge patch, bounded.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use crate::error::{Error, Kind};
use crate::resource::Resource;
use crate::strategic;

/// Most operations in one JSON patch, as in Kubernetes.
pub const OPERATIONS_MAX: usize = 10_000;

/// Largest tree a patch may grow, counted roughly in bytes: `copy` doubles at every step.
pub const TREE_BYTES_MAX: usize = 4 << 20;

/// Applies a JSON patch to a copy of `target`.
///
/// # Errors
/// `BadRequest` if the patch is none or too long; `Invalid` if an operation does not apply or a test fails;
/// `Denied` if the result is too large.
pub fn json(target: &Value, patch: &Value) -> Result<Value, Error> {
    if patch.as_array().is_some_and(|operations| operations.len() > OPERATIONS_MAX) {
        return Err(Error::bad_request(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}"
        )));
    }
    let patch: Patch = serde_json::from_value(patch.clone())
        .map_err(|error| Error::bad_request(format!("error decoding patch: {error}")))?;
    let mut result = target.clone();
    let mut bytes = size(&result);
    for operation in &patch.0 {
        if let PatchOperation::Copy(copy) = operation {
            // Before the copy is made: the target may be `-`, which names no place afterwards.
            bytes += result.pointer(copy.from.as_str()).map_or(0, size);
            if bytes > TREE_BYTES_MAX {
                return Err(too_large());
            }
        }
        json_patch::patch(&mut result, std::slice::from_ref(operation)).map_err(|error| {
            Error::new(Kind::Invalid, format!("the server rejected our request: {error}"))
        })?;
    }
    bounded(result)
}

/// Applies a JSON merge patch to a copy of `target`: null removes, maps merge, all else replaces.
///
/// # Errors
/// `BadRequest` if the patch is no object; `Denied` if the result is too large.
pub fn merge(target: &Value, patch: &Value) -> Result<Value, Error> {
    if !patch.is_object() {
        return Err(Error::bad_request("error decoding patch: a merge patch is a JSON object"));
    }
    let mut result = target.clone();
    json_patch::merge(&mut result, patch);
    bounded(result)
}

/// Applies a strategic merge patch to a copy of `target`, an object of the kind `resource`.
///
/// # Errors
/// `BadRequest` if the patch or a directive in it is malformed; `Denied` if the result is too large.
pub fn strategic(resource: &Resource, target: &Value, patch: &Value) -> Result<Value, Error> {
    let mut result = target.clone();
    strategic::merge(resource.schema, &mut result, patch)?;
    bounded(result)
}

fn bounded(tree: Value) -> Result<Value, Error> {
    if size(&tree) > TREE_BYTES_MAX { Err(too_large()) } else { Ok(tree) }
}

fn too_large() -> Error {
    Error::new(Kind::Denied, format!("patched object is larger than {TREE_BYTES_MAX} bytes"))
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 3,
        Value::Array(items) => 2 + items.iter().map(size).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, value)| key.len() + 4 + size(value)).sum::<usize>(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 5,
    }
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
