//! What the store holds and what it tells: records and events.
#![forbid(unsafe_code)]

use std::sync::Arc;

use api::{Key, Object, Resource};
use serde_json::Value;

/// One object as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name it is stored under.
    pub key: Key,
    /// The revision of its last change: `metadata.resourceVersion`.
    pub revision: u64,
    /// The object as JSON, without `metadata.resourceVersion`.
    pub bytes: Arc<[u8]>,
}

impl Record {
    /// The object, with its `metadata.resourceVersion`. Bytes that are no JSON object, which the registry never
    /// writes, give a null object.
    #[must_use]
    pub fn object(&self) -> Object {
        let mut value: Value = serde_json::from_slice(&self.bytes).unwrap_or(Value::Null);
        set_resource_version(&mut value, self.revision);
        Object(value)
    }

    /// The object as JSON text with its `metadata.resourceVersion`, made without parsing it into a tree.
    #[must_use]
    pub fn json(&self) -> Vec<u8> {
        let Some(at) = metadata_start(&self.bytes) else {
            return serde_json::to_vec(&self.object().0).unwrap_or_default();
        };
        let (head, tail) = self.bytes.split_at(at);
        let separator = if tail.trim_ascii_start().starts_with(b"}") { "" } else { "," };
        let field = format!("\"resourceVersion\":\"{}\"{separator}", self.revision);
        [head, field.as_bytes(), tail].concat()
    }
}

fn set_resource_version(object: &mut Value, revision: u64) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
}

/// The offset just inside the braces of the top-level member `metadata`.
fn metadata_start(json: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while at < json.len() {
        match json[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                let end = string_end(json, at)?;
                let rest = &json[end..];
                if depth == 1 && &json[at..end] == b"\"metadata\"" && rest.starts_with(b":{") {
                    return Some(end + 2);
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The offset after the string that opens at `start`.
fn string_end(json: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match json.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// What happened to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was not there before.
    Created,
    /// It was there, with other bytes or the same.
    Updated,
    /// It is gone.
    Deleted,
}

/// One change of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision of the change.
    pub revision: u64,
    /// What happened.
    pub kind: EventKind,
    /// The record after the change; for [`EventKind::Deleted`] its last bytes, under the revision of the deletion.
    pub record: Record,
    /// The record before the change.
    pub previous: Option<Record>,
}

/// Which records a watch is about. The default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// One resource only.
    pub resource: Option<&'static Resource>,
    /// One namespace only.
    pub namespace: Option<String>,
}

impl Scope {
    /// Whether `key` is in the scope.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.resource.is_none_or(|resource| resource.stored() == key.resource)
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::key;

    #[test]
    fn the_resource_version_is_spliced_in_where_it_belongs() {
        for bytes in [
            r#"{"kind":"Pod","metadata":{"name":"a"}}"#,
            r#"{"data":{"metadata":{"x":"}\"{"}},"metadata":{}}"#,
            r#"{"metadata":{"labels":{"a":"\\"}},"spec":{"metadata":{"name":"no"}}}"#,
            r#"{"a":"\"metadata\":{","metadata": {"name":"spaced"}}"#,
        ] {
            let record = Record { key: key("a"), revision: 7, bytes: bytes.as_bytes().into() };
            let spliced: Value = serde_json::from_slice(&record.json()).unwrap();
            assert_eq!(spliced["metadata"]["resourceVersion"], "7", "{bytes}");
            assert_eq!(spliced, record.object().0, "{bytes}");
        }
    }
}
