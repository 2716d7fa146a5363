use super::*;
use serde_json::json;

#[test]
fn json_patches() {
    let check = |patch: Value, expect: Option<Value>| {
        let target = json!({"a": {"b": [1, 2]}});
        assert_eq!(super::json(&target, &patch).ok(), expect, "{patch}");
    };
    check(json!([]), Some(json!({"a": {"b": [1, 2]}})));
    check(json!([{"op": "add", "path": "/a/b/-", "value": 3}]), Some(json!({"a": {"b": [1, 2, 3]}})));
    check(json!([{"op": "remove", "path": "/a/b/0"}]), Some(json!({"a": {"b": [2]}})));
    check(json!([{"op": "test", "path": "/a/b/0", "value": 2}]), None);
    check(json!([{"op": "replace", "path": "/x/y", "value": 2}]), None);
    check(json!({"op": "add"}), None);
    check(json!([{"op": "shred", "path": "/a"}]), None);
}

#[test]
fn kinds_of_refusals() {
    let check = |patch: Value, expect: Kind| {
        assert_eq!(super::json(&json!({}), &patch).unwrap_err().kind(), expect, "{patch}");
    };
    check(json!(3), Kind::BadRequest);
    check(json!([{"op": "remove", "path": "/a"}]), Kind::Invalid);
    let many = vec![json!({"op": "add", "path": "/a", "value": 1}); OPERATIONS_MAX + 1];
    check(Value::Array(many), Kind::BadRequest);
}

#[test]
fn copies_cannot_explode() {
    let mut operations = vec![json!({"op": "add", "path": "/a", "value": ["0123456789"]})];
    for _ in 0..60 {
        operations.push(json!({"op": "copy", "from": "/a", "path": "/a/-"}));
    }
    let error = super::json(&json!({}), &Value::Array(operations)).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
}

/// A small generator: the same seed gives the same run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn tree(&mut self, depth: u64) -> Value {
        match self.roll(if depth == 0 { 3 } else { 6 }) {
            0 => Value::from(self.roll(4)),
            1 => Value::from(["x", "y", "z"][self.roll(3) as usize]),
            2 => Value::Bool(self.roll(2) == 0),
            3 => Value::Array((0..self.roll(4)).map(|_| self.tree(depth - 1)).collect()),
            _ => self.object(depth - 1),
        }
    }

    fn object(&mut self, depth: u64) -> Value {
        let count = self.roll(4);
        let mut map = serde_json::Map::new();
        for _ in 0..count {
            let name = ["a", "b", "c", "metadata", "spec", "containers"][self.roll(6) as usize];
            let value = self.tree(depth);
            map.insert(name.into(), value);
        }
        Value::Object(map)
    }
}

/// The merge patch that leads from one tree to another, by the text of RFC 7386.
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (from, to) else { return to.clone() };
    let mut patch = serde_json::Map::new();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in new {
        match old.get(name) {
            Some(before) if before == value => {}
            // A map that replaces something else has to be merged into nothing.
            Some(before) if before.is_object() == value.is_object() => {
                patch.insert(name.clone(), difference(before, value));
            }
            _ => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

#[test]
fn merge_patches_lead_where_they_say() {
    for seed in 0..2000 {
        let mut dice = Dice(seed);
        let (from, to) = (dice.object(3), dice.object(3));
        let patch = difference(&from, &to);
        assert_eq!(merge(&from, &patch).unwrap(), to, "seed {seed}: {from} + {patch}");
        // For trees without merged lists a strategic merge patch is a merge patch.
        let config = crate::resource_by_any_name("sc").unwrap();
        assert_eq!(strategic(config, &from, &patch).unwrap(), to, "seed {seed}");
    }
}

/// Whatever is thrown at them, they answer.
#[test]
fn nothing_panics() {
    let pods = crate::resource_by_any_name("pods").unwrap();
    for seed in 0..2000 {
        let mut dice = Dice(seed);
        let (target, patch) = (dice.object(4), dice.tree(4));
        let _ = super::json(&target, &patch);
        let _ = merge(&target, &patch);
        let _ = strategic(pods, &target, &patch);
        let context = crate::AdmitContext {
            now: jiff::Timestamp::UNIX_EPOCH,
            new_uid: "u".into(),
            namespace: "default".into(),
            name_suffix: "abcde".into(),
            validation: crate::FieldValidation::Warn,
        };
        for resource in crate::RESOURCES {
            let _ = crate::admit_create(resource, target.clone(), &context);
        }
    }
}
