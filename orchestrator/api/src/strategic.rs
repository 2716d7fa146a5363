//! Strategic merge patch: a merge patch that knows, from the schema table, which lists merge and by which key.
//!
//! ```text
//! {"containers": [{"name": "a", "image": "new"}]}     merges into the item named a
//! {"containers": [{"name": "a", "$patch": "delete"}]} removes it
//! {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}   orders
//! {"$deleteFromPrimitiveList/finalizers": ["x"]}      removes scalars
//! {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}      drops other members
//! ```
//!
//! Source: Kubernetes documentation, "Update API Objects in Place Using kubectl patch"; the directives in
//! contributors/devel/sig-api-machinery/strategic-merge-patch.md.

use serde_json::{Map, Value};

use crate::error::Error;
use crate::schema::{Field, FieldKind, Message, PatchStrategy, SCHEMA, Shape};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

type Tree = Map<String, Value>;

/// Merges `patch` into `target`, both of the message `root`.
pub(crate) fn merge(root: &str, target: &mut Value, patch: &Value) -> Result<(), Error> {
    let (Value::Object(target), Value::Object(patch)) = (target, patch) else {
        return Err(bad("a strategic merge patch is a JSON object"));
    };
    map(SCHEMA.message(root), target, patch)
}

fn bad(why: &str) -> Error {
    Error::bad_request(format!("error decoding patch: {why}"))
}

fn map(message: Option<&Message>, target: &mut Tree, patch: &Tree) -> Result<(), Error> {
    match patch.get(PATCH).map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => target.clear(),
        Some(Some("delete")) => {
            target.clear();
            return Ok(());
        }
        Some(_) => return Err(bad("$patch is none of merge, replace and delete")),
    }
    if let Some(keys) = patch.get(RETAIN) {
        let keys = keys.as_array().ok_or_else(|| bad("$retainKeys is no list"))?;
        target.retain(|name, _| keys.iter().any(|key| key == name));
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix(DELETE) {
            let gone = value.as_array().ok_or_else(|| bad("$deleteFromPrimitiveList is no list"))?;
            if let Some(Value::Array(items)) = target.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    for (name, value) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
        if value.is_null() {
            target.remove(name);
            continue;
        }
        let field = message.and_then(|message| SCHEMA.field(message, name));
        member(field, target.entry(name.as_str()).or_insert(Value::Null), value)?;
    }
    for (name, order) in patch {
        if let Some(list) = name.strip_prefix(ORDER) {
            let order = order.as_array().ok_or_else(|| bad("$setElementOrder is no list"))?;
            let key = message.and_then(|m| SCHEMA.field(m, list)).and_then(merge_key);
            if let Some(Value::Array(items)) = target.get_mut(list) {
                sort(items, order, key);
            }
        }
    }
    Ok(())
}

fn merge_key(field: &Field) -> Option<&'static str> {
    match field.patch {
        PatchStrategy::Merge { key, .. } => key,
        PatchStrategy::Replace => None,
    }
}

fn member(field: Option<&Field>, target: &mut Value, patch: &Value) -> Result<(), Error> {
    let message = field.and_then(|field| match field.kind {
        FieldKind::Message(index) => Some(SCHEMA.at(index)),
        _ => None,
    });
    match patch {
        Value::Object(patch) => {
            if !target.is_object() {
                *target = Value::Object(Tree::new());
            }
            let Value::Object(target) = target else { return Ok(()) };
            map(message, target, patch)
        }
        Value::Array(patch) => {
            let strategy = field.filter(|field| field.shape == Shape::List).map(|field| field.patch);
            match (strategy, target) {
                (Some(PatchStrategy::Merge { key: Some(key), .. }), target) => {
                    if !target.is_array() {
                        *target = Value::Array(Vec::new());
                    }
                    let Value::Array(target) = target else { return Ok(()) };
                    keyed(message, key, target, patch)
                }
                (Some(PatchStrategy::Merge { key: None, .. }), Value::Array(target)) => {
                    for item in patch {
                        if !target.contains(item) {
                            target.push(item.clone());
                        }
                    }
                    Ok(())
                }
                (_, target) => {
                    *target = Value::Array(patch.iter().map(plain).collect());
                    Ok(())
                }
            }
        }
        scalar => {
            *target = scalar.clone();
            Ok(())
        }
    }
}

/// A list whose items are known by a key.
fn keyed(
    message: Option<&Message>,
    key: &'static str,
    target: &mut Vec<Value>,
    patch: &[Value],
) -> Result<(), Error> {
    let is_bare = |item: &Value| item.as_object().is_some_and(|item| item.len() == 1);
    if patch.iter().any(|item| item[PATCH] == "replace" && is_bare(item)) {
        target.clear();
    }
    for item in patch {
        let Value::Object(tree) = item else { return Err(bad("an item of a merged list is no object")) };
        if item[PATCH] == "replace" && is_bare(item) {
            continue;
        }
        let Some(name) = tree.get(key) else {
            return Err(bad(&format!("an item of a merged list lacks its key {key:?}")));
        };
        let found = target.iter().position(|other| &other[key] == name);
        match (found, tree.get(PATCH).and_then(Value::as_str)) {
            (found, Some("delete")) => {
                if found.is_some() {
                    target.retain(|other| &other[key] != name);
                }
            }
            (Some(at), _) => {
                if let Value::Object(old) = &mut target[at] {
                    map(message, old, tree)?;
                }
            }
            (None, _) => {
                let mut fresh = Tree::new();
                map(message, &mut fresh, tree)?;
                target.push(Value::Object(fresh));
            }
        }
    }
    Ok(())
}

/// A value without directives and nulls.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(tree) => {
            let kept = tree.iter().filter(|(name, value)| !name.starts_with('$') && !value.is_null());
            Value::Object(kept.map(|(name, value)| (name.clone(), plain(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(plain).collect()),
        scalar => scalar.clone(),
    }
}

/// Puts the items that `order` names into its order; the others stay behind their former predecessors.
fn sort(items: &mut Vec<Value>, order: &[Value], key: Option<&str>) {
    let place = |item: &Value| {
        order.iter().position(|wanted| match key {
            Some(key) => wanted[key] == item[key],
            None => wanted == item,
        })
    };
    let (mut named, others): (Vec<_>, Vec<_>) = items
        .drain(..)
        .enumerate()
        .map(|(at, item)| (at, place(&item), item))
        .partition(|(_, p, _)| p.is_some());
    named.sort_by_key(|(_, place, _)| *place);
    let mut named = named.into_iter().peekable();
    for (at, _, item) in others {
        while let Some((_, _, before)) = named.next_if(|(named_at, _, _)| *named_at < at) {
            items.push(before);
        }
        items.push(item);
    }
    items.extend(named.map(|(_, _, item)| item));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(root: &str, target: Value, patch: Value, expect: Value) {
        let mut result = target.clone();
        merge(root, &mut result, &patch).unwrap();
        assert_eq!(result, expect, "{target} + {patch}");
    }

    #[test]
    fn lists_by_key() {
        let pod = |containers: Value| json!({"spec": {"containers": containers}});
        let two = pod(json!([{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}]));
        check(
            "Pod",
            two.clone(),
            pod(json!([{"name": "a", "image": "2", "args": ["y"]}, {"name": "c", "image": null}])),
            pod(json!([{"name": "a", "image": "2", "args": ["y"]}, {"name": "b"}, {"name": "c"}])),
        );
        check(
            "Pod",
            two.clone(),
            pod(json!([{"name": "a", "$patch": "delete"}])),
            pod(json!([{"name": "b"}])),
        );
        check(
            "Pod",
            two.clone(),
            pod(json!([{"$patch": "replace"}, {"name": "z"}])),
            pod(json!([{"name": "z"}])),
        );
        check(
            "Pod",
            two,
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
                "containers": [{"name": "b", "image": "3"}]}}),
            pod(json!([{"name": "b", "image": "3"}, {"name": "a", "image": "1", "args": ["x"]}])),
        );
    }

    #[test]
    fn directives() {
        check(
            "Pod",
            json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c", "b"],
                "labels": {"x": null, "z": "3"}}}),
            json!({"metadata": {"finalizers": ["b", "c"], "labels": {"y": "2", "z": "3"}}}),
        );
        check(
            "StatefulSet",
            json!({"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}}),
            json!({"spec": {"updateStrategy": {"$retainKeys": ["type"], "type": "OnDelete"}}}),
            json!({"spec": {"updateStrategy": {"type": "OnDelete"}}}),
        );
        check(
            "Pod",
            json!({"spec": {"nodeSelector": {"a": "b"}}}),
            json!({"spec": {"nodeSelector": {"$patch": "replace", "c": "d"}}}),
            json!({"spec": {"nodeSelector": {"c": "d"}}}),
        );
        check(
            "Pod",
            json!({"spec": {"tolerations": [{"key": "a"}]}}),
            json!({"spec": {"tolerations": [{"key": "b", "value": null}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}]}}),
        );
        check(
            "Service",
            json!({}),
            json!({"spec": {"ports": [{"port": 1}]}}),
            json!({"spec": {"ports": [{"port": 1}]}}),
        );
    }

    #[test]
    fn refusals() {
        let check = |patch: Value| {
            assert!(merge("Pod", &mut json!({"spec": {"containers": []}}), &patch).is_err(), "{patch}");
        };
        check(json!([]));
        check(json!({"spec": {"containers": [{"image": "x"}]}}));
        check(json!({"spec": {"containers": ["x"]}}));
        check(json!({"spec": {"$patch": "shred"}}));
        check(json!({"spec": {"$retainKeys": "x"}}));
    }

    #[test]
    fn order_keeps_what_it_does_not_name() {
        let check = |items: &[i64], order: &[i64], expect: &[i64]| {
            let values = |list: &[i64]| list.iter().map(|n| Value::from(*n)).collect::<Vec<_>>();
            let mut result = values(items);
            sort(&mut result, &values(order), None);
            assert_eq!(result, values(expect), "{items:?} by {order:?}");
        };
        check(&[1, 2, 3], &[3, 2, 1], &[3, 2, 1]);
        check(&[1, 9, 2], &[2, 1], &[9, 2, 1]);
        check(&[1, 9, 2], &[1, 2], &[1, 9, 2]);
        check(&[9, 1], &[1], &[9, 1]);
        check(&[1, 2], &[], &[1, 2]);
    }
}
