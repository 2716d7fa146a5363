//! The strict walk: one pass over an object along the schema table.
//!
//! Finds unknown fields, wrong types, duplicate items and what is not implemented, each by path; drops nulls
//! (they mean absent), writes numbers given for quantities as texts, fills in the table's defaults.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::error::Cause;
use crate::quantity::Quantity;
use crate::schema::{Field, FieldKind, List, Message, SCHEMA, Shape};
use crate::support::Support;

/// Deepest nesting walked; no served kind nests deeper than half of it.
const DEPTH_MAX: usize = 40;

/// List items that may repeat: Kubernetes takes them, though apply would not.
const MAY_REPEAT: &[(&str, &str)] = &[
    ("Container", "env"),
    ("Container", "ports"),
    ("PodSpec", "imagePullSecrets"),
    ("PodSpec", "hostAliases"),
    ("PodSpec", "topologySpreadConstraints"),
    ("PodStatus", "podIPs"),
    ("PodStatus", "hostIPs"),
];

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Paths of fields nobody knows; they have been removed.
    pub unknown: Vec<String>,
    /// Sentences about wrong types.
    pub mistyped: Vec<String>,
    /// Broken rules: duplicates, refused fields.
    pub causes: Vec<Cause>,
    /// Warnings: fields not implemented yet, repeated items.
    pub warnings: Vec<String>,
}

/// One step of a path.
#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

struct Walk<'a> {
    path: Vec<Step<'a>>,
    findings: Findings,
}

/// Walks `object` as the message named `root`.
pub(crate) fn walk(root: &str, object: &mut Value) -> Findings {
    let Some(message) = SCHEMA.message(root) else {
        return Findings { mistyped: vec![format!("no schema for {root}")], ..Findings::default() };
    };
    // Names live outside the walked tree: steps borrow from the table, or from keys taken out for the visit.
    let mut walk = Walk { path: Vec::new(), findings: Findings::default() };
    walk.message(message, object);
    walk.findings
}

impl Walk<'_> {
    fn message(&mut self, message: &Message, value: &mut Value) {
        let Value::Object(map) = value else { return self.mistyped("an object", value) };
        if self.path.len() > DEPTH_MAX {
            return self.findings.mistyped.push(format!("{}: nested too deeply", self.at()));
        }
        let mut strays = Vec::new();
        for (name, value) in map.iter_mut() {
            match SCHEMA.field(message, name) {
                None => strays.push(name.clone()),
                Some(_) if value.is_null() => strays.push(name.clone()),
                Some(field) => {
                    self.path.push(Step::Field(field.name));
                    self.field(message, field, value);
                    self.path.pop();
                }
            }
        }
        for name in strays {
            if map.remove(&name).is_some_and(|value| !value.is_null())
                || SCHEMA.field(message, &name).is_none()
            {
                let path = self.below(&name);
                self.findings.unknown.push(path);
            }
        }
        for (name, default) in SCHEMA.defaults(message) {
            if !map.contains_key(name) {
                map.insert(name.into(), default.clone());
            }
        }
    }
}

impl<'a> Walk<'a> {
    fn field(&mut self, message: &Message, field: &'a Field, value: &mut Value) {
        // Status is written by those who act on it.
        if !matches!(self.path.first(), Some(Step::Field("status"))) && !is_empty(value) {
            match field.support {
                Support::Full => {}
                Support::Later => {
                    let warning = format!("not implemented yet: {}", self.at());
                    self.findings.warnings.push(warning);
                }
                Support::Refused(why) => self.cause("FieldValueForbidden", format!("Forbidden: {why}")),
            }
        }
        match (field.shape, value) {
            (Shape::One, value) => self.one(field, value),
            (Shape::List, Value::Array(items)) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.path.push(Step::Index(index));
                    self.one(field, item);
                    self.path.pop();
                }
                self.duplicates(message, field, items);
            }
            (Shape::List, value) => self.mistyped("a list", value),
            (Shape::Map, Value::Object(map)) => self.map(field, map),
            (Shape::Map, value) => self.mistyped("an object", value),
        }
    }

    fn map(&mut self, field: &Field, map: &mut Map<String, Value>) {
        for (key, value) in map.iter_mut() {
            // A null in a map of texts is an empty text, as in Go.
            if value.is_null() && field.kind == FieldKind::String {
                *value = "".into();
            }
            // Scalars only: no served kind maps to messages, so the key need not stay on the path.
            let mut inner = Walk { path: self.path.clone(), findings: Findings::default() };
            inner.path.push(Step::Key(key));
            inner.one(field, value);
            self.findings.mistyped.append(&mut inner.findings.mistyped);
        }
    }

    fn one(&mut self, field: &Field, value: &mut Value) {
        let integer =
            |value: &Value, low: i64, high: i64| value.as_i64().is_some_and(|n| (low..=high).contains(&n));
        let (good, expected) = match field.kind {
            FieldKind::Message(index) => return self.message(SCHEMA.at(index), value),
            FieldKind::Any => return,
            FieldKind::String | FieldKind::Duration => (value.is_string(), "a string"),
            FieldKind::Bytes => (value.as_str().is_some_and(is_base64), "a base64 string"),
            FieldKind::Bool => (value.is_boolean(), "a boolean"),
            FieldKind::Int32 => (integer(value, i32::MIN.into(), i32::MAX.into()), "an integer of 32 bits"),
            FieldKind::Uint32 => (integer(value, 0, u32::MAX.into()), "an unsigned integer of 32 bits"),
            FieldKind::Int64 => (value.is_i64(), "an integer of 64 bits"),
            FieldKind::Double => (value.is_number(), "a number"),
            FieldKind::Time | FieldKind::MicroTime => {
                let time = value.as_str().is_some_and(|text| text.parse::<Timestamp>().is_ok());
                (time, "a time such as 2006-01-02T15:04:05Z")
            }
            FieldKind::Quantity => {
                if let Value::Number(number) = value {
                    *value = number.to_string().into();
                }
                let quantity = value.as_str().is_some_and(|text| text.parse::<Quantity>().is_ok());
                (quantity, "a quantity such as 500m or 128Mi")
            }
            FieldKind::IntOrString => (
                value.is_string() || integer(value, i32::MIN.into(), i32::MAX.into()),
                "an integer or a string",
            ),
        };
        if !good {
            self.mistyped(expected, value);
        }
    }

    fn duplicates(&mut self, message: &Message, field: &'a Field, items: &[Value]) {
        let in_status = matches!(self.path.first(), Some(Step::Field("status")));
        if in_status || items.len() < 2 {
            return;
        }
        // The key is a list of members: quadratic only up to a bound that no served list reaches in earnest.
        let mut seen: std::collections::HashSet<String> = std::collections::HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let (key, shown) = match &field.list {
                List::Atomic => return,
                List::Set => (item.to_string(), item.to_string()),
                List::Keys(names) => {
                    let mut key = String::new();
                    for name in names {
                        let _ = write!(key, "{},", item.get(name).unwrap_or(&Value::Null));
                    }
                    let shown = match names.as_slice() {
                        [one] => item.get(one).unwrap_or(&Value::Null).to_string(),
                        _ => format!("[{}]", key.trim_end_matches(',')),
                    };
                    (key, shown)
                }
            };
            if seen.insert(key) {
                continue;
            }
            self.path.push(Step::Index(index));
            match &field.list {
                List::Keys(names) if names.len() == 1 => self.path.push(Step::Field(names[0])),
                _ => {}
            }
            if MAY_REPEAT.contains(&(message.name, field.name)) {
                let warning = format!("{}: repeats {shown}: only one of them counts", self.at());
                self.findings.warnings.push(warning);
            } else {
                self.cause("FieldValueDuplicate", format!("Duplicate value: {shown}"));
            }
            let depth = self.path.iter().rposition(|step| matches!(step, Step::Index(_))).unwrap_or(0);
            self.path.truncate(depth);
        }
    }

    fn mistyped(&mut self, expected: &str, found: &Value) {
        let found = match found {
            Value::Null => "null".to_string(),
            Value::Bool(_) => "a boolean".into(),
            Value::Number(number) => format!("the number {number}"),
            Value::String(text) if text.len() <= 40 => format!("the string {text:?}"),
            Value::String(_) => "a string".into(),
            Value::Array(_) => "a list".into(),
            Value::Object(_) => "an object".into(),
        };
        let sentence = format!("{}: expected {expected}, found {found}", self.at());
        self.findings.mistyped.push(sentence);
    }

    fn cause(&mut self, reason: &str, message: String) {
        let cause = Cause { reason: reason.into(), message, field: self.at() };
        self.findings.causes.push(cause);
    }

    fn at(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            let _ = match step {
                Step::Field(name) if text.is_empty() => write!(text, "{name}"),
                Step::Field(name) => write!(text, ".{name}"),
                Step::Index(index) => write!(text, "[{index}]"),
                Step::Key(key) => write!(text, "[{key}]"),
            };
        }
        text
    }

    fn below(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.at()) }
    }
}

/// Whether a value says no more than its absence would.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(_) | Value::Bool(true) | Value::Number(_) => false,
    }
}

fn is_base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    text.len().is_multiple_of(4)
        && text.len() - body.len() <= 2
        && body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null}, "spec": spec})
    }

    #[test]
    fn unknown_fields_by_path() {
        let check = |spec: Value, expect: &[&str]| {
            let mut pod = pod(spec);
            assert_eq!(walk("Pod", &mut pod).unknown, expect);
            assert!(walk("Pod", &mut pod).unknown.is_empty(), "they are gone");
        };
        check(json!({"containers": [{"name": "a", "image": "b"}]}), &[]);
        check(
            json!({"containers": [{"name": "a", "imagee": "b"}], "foo": 1}),
            &["spec.containers[0].imagee", "spec.foo"],
        );
        check(
            json!({"volumes": [{"volumeSource": {}}], "nul": null}),
            &["spec.volumes[0].volumeSource", "spec.nul"],
        );
    }

    #[test]
    fn nulls_and_numbers() {
        let mut value = pod(json!({"nodeName": null, "containers": [{"resources": {"limits": {"cpu": 1}}}]}));
        let findings = walk("Pod", &mut value);
        assert!(findings.unknown.is_empty() && findings.mistyped.is_empty(), "{findings:?}");
        assert_eq!(value["spec"], json!({"containers": [{"resources": {"limits": {"cpu": "1"}}}]}));
        assert_eq!(value["metadata"], json!({"name": "a"}));
    }

    #[test]
    fn wrong_types() {
        let check = |spec: Value, expect: &str| {
            assert_eq!(walk("Pod", &mut pod(spec)).mistyped, [expect]);
        };
        check(json!([]), "spec: expected an object, found a list");
        check(json!({"containers": {}}), "spec.containers: expected a list, found an object");
        check(
            json!({"containers": [{"env": [{"name": "A", "value": 5}]}]}),
            "spec.containers[0].env[0].value: expected a string, found the number 5",
        );
        check(
            json!({"containers": [{"ports": [{"containerPort": 3_000_000_000_i64}]}]}),
            "spec.containers[0].ports[0].containerPort: expected an integer of 32 bits, found the number 3000000000",
        );
        check(
            json!({"containers": [{"resources": {"limits": {"memory": "1MB"}}}]}),
            "spec.containers[0].resources.limits[memory]: expected a quantity such as 500m or 128Mi, found the \
             string \"1MB\"",
        );
        check(json!({"containers": [null]}), "spec.containers[0]: expected an object, found null");
        check(
            json!({"nodeSelector": {"a": 1}}),
            "spec.nodeSelector[a]: expected a string, found the number 1",
        );
    }

    #[test]
    fn duplicates_and_support() {
        let mut value = pod(json!({
            "hostNetwork": true, "hostPID": false, "priority": 1,
            "containers": [{"name": "a", "env": [{"name": "X"}, {"name": "X"}]}, {"name": "a"}],
        }));
        let findings = walk("Pod", &mut value);
        let fields: Vec<&str> = findings.causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(fields, ["spec.containers[1].name", "spec.hostNetwork"]);
        assert_eq!(
            findings.warnings,
            [
                "spec.containers[0].env[1].name: repeats \"X\": only one of them counts",
                "not implemented yet: spec.priority",
            ]
        );
    }

    #[test]
    fn depth_is_bounded_by_the_schema() {
        let mut value = json!({});
        for _ in 0..100 {
            value = json!({"spec": value});
        }
        assert_eq!(walk("Pod", &mut value).unknown, ["spec.spec"]);
    }
}
