//! `PetSet` is another name of the one stored `StatefulSet`: the tree is the same, `apiVersion` and `kind` differ.

use serde_json::Value;

use crate::object::Object;
use crate::resource::Resource;

/// Renames an object of the kind `from` (as asked) to its stored kind.
pub fn to_stored(from: &'static Resource, object: &mut Value) {
    rename(from, from.stored(), object);
}

/// Renames a stored object to the kind `to` (as asked).
pub fn from_stored(to: &'static Resource, object: &mut Value) {
    rename(to.stored(), to, object);
}

/// The stored object as the kind that was asked for.
pub fn as_asked(to: &'static Resource, mut object: Object) -> Object {
    from_stored(to, &mut object.0);
    object
}

fn rename(from: &'static Resource, to: &'static Resource, object: &mut Value) {
    if from == to {
        return;
    }
    let Value::Object(map) = object else { return };
    // Only what names the old kind: anything else is a mismatch, and admission refuses it.
    if map.get("kind").and_then(Value::as_str) == Some(from.kind) {
        map.insert("kind".into(), to.kind.into());
    }
    if map.get("apiVersion").and_then(Value::as_str) == Some(&from.api_version()) {
        map.insert("apiVersion".into(), to.api_version().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::resource_for_kind;
    use serde_json::json;

    #[test]
    fn petset() {
        let pets = resource_for_kind("apps/v1alpha1", "PetSet").unwrap();
        let asked = json!({"apiVersion": "apps/v1alpha1", "kind": "PetSet", "spec": {"replicas": 1}});
        let stored = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {"replicas": 1}});
        let mut object = asked.clone();
        to_stored(pets, &mut object);
        assert_eq!(object, stored);
        from_stored(pets, &mut object);
        assert_eq!(object, asked);
        let mut other = json!({"apiVersion": "v1", "kind": "Pod"});
        to_stored(pets, &mut other);
        assert_eq!(other["kind"], "Pod");
    }
}
