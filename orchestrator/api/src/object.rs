//! One object: a canonical JSON tree, with accessors for what every kind has.

use std::sync::LazyLock;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::key::Key;
use crate::resource::{Resource, resource_for_kind};

static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// One object of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(pub Value);

/// Who an object belongs to. meta/v1 OwnerReference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// `apps/v1`.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Uid of the owner; only this identifies it.
    pub uid: String,
    /// Whether the owner manages the object; at most one does.
    #[serde(skip_serializing_if = "is_false")]
    pub controller: bool,
    /// Whether foreground deletion of the owner waits for the object.
    #[serde(skip_serializing_if = "is_false")]
    pub block_owner_deletion: bool,
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl Object {
    /// The object in a JSON text.
    ///
    /// # Errors
    /// `BadRequest` if it is not a JSON object.
    pub fn from_slice(bytes: &[u8]) -> Result<Object, Error> {
        match serde_json::from_slice(bytes) {
            Ok(value @ Value::Object(_)) => Ok(Object(value)),
            Ok(_) => Err(Error::bad_request("couldn't get version/kind; json parse error: not an object")),
            Err(error) => Err(Error::bad_request(format!("json parse error: {error}"))),
        }
    }

    /// Canonical JSON: keys sorted, no spaces.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).unwrap_or_default()
    }

    /// `apiVersion`; empty if missing.
    pub fn api_version(&self) -> &str {
        self.0["apiVersion"].as_str().unwrap_or("")
    }

    /// `kind`; empty if missing.
    pub fn kind(&self) -> &str {
        self.0["kind"].as_str().unwrap_or("")
    }

    /// The served kind it is of.
    pub fn resource(&self) -> Option<&'static Resource> {
        resource_for_kind(self.api_version(), self.kind())
    }

    /// Its identity.
    ///
    /// # Panics
    /// If its kind is not served: admitted objects always are.
    pub fn key(&self) -> Key {
        let Some(resource) = self.resource() else {
            panic!("kind {} {} is not served", self.api_version(), self.kind())
        };
        Key::new(resource, self.namespace(), self.name())
    }

    /// `metadata.name`; empty if missing.
    pub fn name(&self) -> &str {
        self.meta("name")
    }

    /// `metadata.namespace`; empty if missing.
    pub fn namespace(&self) -> &str {
        self.meta("namespace")
    }

    /// `metadata.uid`; empty if missing.
    pub fn uid(&self) -> &str {
        self.meta("uid")
    }

    fn meta(&self, field: &str) -> &str {
        self.0["metadata"][field].as_str().unwrap_or("")
    }

    /// `metadata.resourceVersion`.
    pub fn resource_version(&self) -> Option<u64> {
        self.meta("resourceVersion").parse().ok()
    }

    /// Sets `metadata.resourceVersion`; `None` removes it.
    pub fn set_resource_version(&mut self, revision: Option<u64>) {
        match revision {
            Some(revision) => self.set("metadata.resourceVersion", revision.to_string()),
            None => self.remove("metadata.resourceVersion"),
        }
    }

    /// `metadata.generation`; 0 if missing.
    pub fn generation(&self) -> i64 {
        self.0["metadata"]["generation"].as_i64().unwrap_or(0)
    }

    /// `metadata.labels`; empty if missing.
    pub fn labels(&self) -> &Map<String, Value> {
        self.0["metadata"]["labels"].as_object().unwrap_or(&EMPTY)
    }

    /// One label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels().get(name)?.as_str()
    }

    /// `metadata.annotations`; empty if missing.
    pub fn annotations(&self) -> &Map<String, Value> {
        self.0["metadata"]["annotations"].as_object().unwrap_or(&EMPTY)
    }

    /// One annotation.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations().get(name)?.as_str()
    }

    /// `metadata.ownerReferences`; unreadable ones are left out.
    pub fn owner_references(&self) -> Vec<OwnerReference> {
        let references = self.0["metadata"]["ownerReferences"].as_array();
        references.into_iter().flatten().filter_map(|r| OwnerReference::deserialize(r).ok()).collect()
    }

    /// The owner that manages it.
    pub fn controller_owner(&self) -> Option<OwnerReference> {
        self.owner_references().into_iter().find(|owner| owner.controller)
    }

    /// A reference to this object as the managing owner of another.
    pub fn as_controller_owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version().into(),
            kind: self.kind().into(),
            name: self.name().into(),
            uid: self.uid().into(),
            controller: true,
            block_owner_deletion: true,
        }
    }

    /// `metadata.creationTimestamp`.
    pub fn creation_timestamp(&self) -> Option<Timestamp> {
        self.meta("creationTimestamp").parse().ok()
    }

    /// `metadata.deletionTimestamp`: when it is to be gone.
    pub fn deletion_timestamp(&self) -> Option<Timestamp> {
        self.meta("deletionTimestamp").parse().ok()
    }

    /// Whether deletion has begun.
    pub fn is_deleting(&self) -> bool {
        !self.meta("deletionTimestamp").is_empty()
    }

    /// `metadata.deletionGracePeriodSeconds`.
    pub fn deletion_grace_period_secs(&self) -> Option<i64> {
        self.get_i64("metadata.deletionGracePeriodSeconds")
    }

    /// `metadata.finalizers`.
    pub fn finalizers(&self) -> Vec<&str> {
        let finalizers = self.0["metadata"]["finalizers"].as_array();
        finalizers.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The value at a dotted path, as in `spec.nodeName` or `spec.containers.0.name`.
    pub fn get(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.0, |value, part| match value {
            Value::Object(map) => map.get(part),
            Value::Array(items) => items.get(part.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// The string at a dotted path.
    pub fn get_str(&self, path: &str) -> Option<&str> {
        self.get(path)?.as_str()
    }

    /// The integer at a dotted path.
    pub fn get_i64(&self, path: &str) -> Option<i64> {
        self.get(path)?.as_i64()
    }

    /// The boolean at a dotted path.
    pub fn get_bool(&self, path: &str) -> Option<bool> {
        self.get(path)?.as_bool()
    }

    /// The list at a dotted path; empty if missing.
    pub fn get_array(&self, path: &str) -> &[Value] {
        self.get(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Sets the value at a dotted path, making maps on the way. Lists must exist up to the index.
    pub fn set(&mut self, path: &str, value: impl Into<Value>) {
        let mut at = &mut self.0;
        for part in path.split('.') {
            at = match at {
                Value::Array(items) => match part.parse::<usize>().ok().and_then(|i| items.get_mut(i)) {
                    Some(item) => item,
                    None => return,
                },
                other => {
                    if !other.is_object() {
                        *other = Value::Object(Map::new());
                    }
                    &mut other[part]
                }
            };
        }
        *at = value.into();
    }

    /// Removes the value at a dotted path of maps, if there.
    pub fn remove(&mut self, path: &str) {
        let (parent, last) = path.rsplit_once('.').unwrap_or(("", path));
        let mut parts = parent.split('.').filter(|part| !part.is_empty());
        let at = parts.try_fold(&mut self.0, |at, part| at.get_mut(part));
        if let Some(map) = at.and_then(Value::as_object_mut) {
            map.remove(last);
        }
    }

    /// The object decoded as a typed view, such as `k8s_openapi::api::core::v1::Pod`.
    ///
    /// # Errors
    /// `Internal` if it does not fit: admitted objects do.
    pub fn view<T: DeserializeOwned>(&self) -> Result<T, Error> {
        T::deserialize(&self.0).map_err(|error| {
            Error::internal(format!("decode {} {}/{}: {error}", self.kind(), self.namespace(), self.name()))
        })
    }

    /// The object a typed view encodes to.
    ///
    /// # Errors
    /// `Internal` if it encodes to something else than an object.
    pub fn from_view<T: Serialize>(view: &T) -> Result<Object, Error> {
        match serde_json::to_value(view) {
            Ok(value @ Value::Object(_)) => Ok(Object(value)),
            Ok(_) => Err(Error::internal("encode view: not an object")),
            Err(error) => Err(Error::internal(format!("encode view: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let mut object = Object(json!({"spec": {"containers": [{"name": "a"}]}}));
        assert_eq!(object.get_str("spec.containers.0.name"), Some("a"));
        assert_eq!(object.get("spec.containers.1"), None);
        object.set("spec.containers.0.name", "b");
        object.set("status.phase", "Running");
        object.remove("spec.nothing.here");
        assert_eq!(
            object.0,
            json!({"spec": {"containers": [{"name": "b"}]}, "status": {"phase": "Running"}})
        );
        object.remove("status");
        assert_eq!(object.get("status"), None);
    }

    #[test]
    fn views() {
        let object = Object(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}));
        let pod: k8s_openapi::api::core::v1::Pod = object.view().unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("a"));
        assert_eq!(Object::from_view(&pod).unwrap(), object);
    }
}
