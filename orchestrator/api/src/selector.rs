//! Label and field selectors.
//!
//! Source: Kubernetes documentation, "Labels and Selectors"; meta/v1 LabelSelector.

use std::fmt;

use serde_json::{Map, Value};

use crate::error::Error;
use crate::object::Object;

/// A conjunction of label requirements; empty matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// All must hold.
    pub requirements: Vec<Requirement>,
}

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label name.
    pub key: String,
    /// Comparison.
    pub operator: Operator,
    /// What `In` and `NotIn` compare with.
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Present, and one of the values.
    In,
    /// Absent, or none of the values.
    NotIn,
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
}

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// `BadRequest` naming what was not understood.
    pub fn parse(text: &str) -> Result<LabelSelector, Error> {
        let bad = |why: &str| Error::bad_request(format!("unable to parse requirement: {why} in {text:?}"));
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    break;
                }
                return Err(bad("found ',', expected: identifier"));
            }
            requirements.push(parse_requirement(part).ok_or_else(|| bad(&format!("found {part:?}")))?);
        }
        Ok(LabelSelector { requirements })
    }

    /// The selector in a spec: `{matchLabels, matchExpressions}`, meta/v1 LabelSelector.
    ///
    /// # Errors
    /// `BadRequest` if it is not of that form.
    pub fn from_spec(spec: &Value) -> Result<LabelSelector, Error> {
        let bad = || Error::bad_request(format!("not a label selector: {spec}"));
        let mut selector = match spec.get("matchLabels") {
            None | Some(Value::Null) => LabelSelector::default(),
            Some(labels) => LabelSelector::from_labels(labels.as_object().ok_or_else(bad)?),
        };
        for expression in spec["matchExpressions"].as_array().into_iter().flatten() {
            let values = expression["values"].as_array().into_iter().flatten();
            selector.requirements.push(Requirement {
                key: expression["key"].as_str().ok_or_else(bad)?.into(),
                operator: match expression["operator"].as_str() {
                    Some("In") => Operator::In,
                    Some("NotIn") => Operator::NotIn,
                    Some("Exists") => Operator::Exists,
                    Some("DoesNotExist") => Operator::DoesNotExist,
                    _ => return Err(bad()),
                },
                values: values.filter_map(Value::as_str).map(String::from).collect(),
            });
        }
        Ok(selector)
    }

    /// The selector in a plain map of labels, as in a service's spec.
    pub fn from_labels(labels: &Map<String, Value>) -> LabelSelector {
        let requirements = labels.iter().map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.as_str().unwrap_or("").into()],
        });
        LabelSelector { requirements: requirements.collect() }
    }

    /// Whether nothing is required.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether the labels satisfy every requirement.
    pub fn matches(&self, labels: &Map<String, Value>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key).and_then(Value::as_str);
            match requirement.operator {
                Operator::In => value.is_some_and(|value| requirement.values.iter().any(|v| v == value)),
                Operator::NotIn => value.is_none_or(|value| requirement.values.iter().all(|v| v != value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let Requirement { key, operator, values } = requirement;
            match (operator, values.as_slice()) {
                (Operator::In, [value]) => write!(f, "{key}={value}")?,
                (Operator::NotIn, [value]) => write!(f, "{key}!={value}")?,
                (Operator::In, values) => write!(f, "{key} in ({})", values.join(","))?,
                (Operator::NotIn, values) => write!(f, "{key} notin ({})", values.join(","))?,
                (Operator::Exists, _) => write!(f, "{key}")?,
                (Operator::DoesNotExist, _) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    text.split(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
    .collect()
}

fn parse_requirement(text: &str) -> Option<Requirement> {
    let one = |key: &str, operator, value: &str| {
        let value = value.trim();
        is_label_value(value).then(|| Requirement {
            key: key.trim().into(),
            operator,
            values: vec![value.into()],
        })
    };
    let requirement = if let Some(key) = text.strip_prefix('!') {
        Requirement { key: key.trim().into(), operator: Operator::DoesNotExist, values: vec![] }
    } else if let Some((key, value)) = text.split_once("!=") {
        one(key, Operator::NotIn, value)?
    } else if let Some((key, value)) = text.split_once('=') {
        one(key, Operator::In, value.strip_prefix('=').unwrap_or(value))?
    } else if let Some((head, list)) = text.split_once('(') {
        let (key, operator) = match head.trim().rsplit_once(char::is_whitespace)? {
            (key, "in") => (key, Operator::In),
            (key, "notin") => (key, Operator::NotIn),
            _ => return None,
        };
        let values: Vec<String> = list.strip_suffix(')')?.split(',').map(|v| v.trim().into()).collect();
        if !values.iter().all(|value| is_label_value(value)) {
            return None;
        }
        Requirement { key: key.trim().into(), operator, values }
    } else {
        Requirement { key: text.into(), operator: Operator::Exists, values: vec![] }
    };
    is_label_key(&requirement.key).then_some(requirement)
}

/// Whether a text may name a label: an optional DNS prefix and a name of at most 63 characters.
pub fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty()
        && is_label_value(name)
        && prefix.is_none_or(|p| !p.is_empty() && p.len() <= 253 && crate::selector::is_dns_subdomain(p))
}

/// Whether a text may be a label's value: empty, or at most 63 of `[A-Za-z0-9._-]` with alphanumeric ends.
pub fn is_label_value(value: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
}

pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(plain)
                && bytes.last().is_some_and(plain)
                && bytes.iter().all(|b| plain(b) || *b == b'-')
        })
}

/// A conjunction of comparisons of fields, as in `metadata.name=a,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// All must hold.
    pub requirements: Vec<FieldRequirement>,
}

/// One comparison of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// Dotted path.
    pub field: String,
    /// Whether it must equal the value, or differ.
    pub equal: bool,
    /// What it is compared with.
    pub value: String,
}

impl FieldSelector {
    /// Parses `metadata.name=a,status.phase!=Running`.
    ///
    /// # Errors
    /// `BadRequest` if a part is no comparison.
    pub fn parse(text: &str) -> Result<FieldSelector, Error> {
        let mut requirements = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once('=') {
                (field, true, value.strip_prefix('=').unwrap_or(value))
            } else {
                let message = format!("invalid selector: '{text}'; can't understand '{part}'");
                return Err(Error::bad_request(message));
            };
            requirements.push(FieldRequirement { field: field.into(), equal, value: value.into() });
        }
        Ok(FieldSelector { requirements })
    }

    /// Refuses fields that `kind` cannot be selected by.
    ///
    /// # Errors
    /// `BadRequest` naming the field.
    pub fn check(&self, kind: &str) -> Result<(), Error> {
        let known = selectable_fields(kind);
        let good =
            |field: &str| matches!(field, "metadata.name" | "metadata.namespace") || known.contains(&field);
        match self.requirements.iter().find(|requirement| !good(&requirement.field)) {
            None => Ok(()),
            Some(bad) => Err(Error::bad_request(format!("field label not supported: {}", bad.field))),
        }
    }

    /// Whether nothing is required.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value a field must equal, if one is required.
    pub fn equals(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.field == field).map(|r| r.value.as_str())
    }

    /// Whether the object satisfies every comparison; missing fields are empty.
    pub fn matches(&self, object: &Object) -> bool {
        self.requirements.iter().all(|requirement| {
            let equal = match object.get(&requirement.field) {
                None | Some(Value::Null) => requirement.value.is_empty(),
                Some(Value::String(text)) => *text == requirement.value,
                Some(other) => requirement.value == other.to_string().as_str(),
            };
            equal == requirement.equal
        })
    }
}

/// Fields a kind can be selected by, beside name and namespace; as Kubernetes' own lists.
fn selectable_fields(kind: &str) -> &'static [&'static str] {
    match kind {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        "Service" => &["spec.clusterIP", "spec.type"],
        "Namespace" => &["status.phase"],
        "Node" => &["spec.unschedulable"],
        "ReplicaSet" => &["status.replicas"],
        "StatefulSet" | "PetSet" => &["status.successful"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels() {
        let labels = json!({"app": "web", "tier": "front"});
        let check = |text: &str, expect: Option<bool>| {
            let selector = LabelSelector::parse(text);
            assert_eq!(selector.ok().map(|s| s.matches(labels.as_object().unwrap())), expect, "{text}");
        };
        check("", Some(true));
        check("app=web", Some(true));
        check("app==web", Some(true));
        check("app = web , tier=front", Some(true));
        check("app=db", Some(false));
        check("app!=db", Some(true));
        check("none!=x", Some(true));
        check("app in (db, web)", Some(true));
        check("app in (db,web),tier notin (back)", Some(true));
        check("app notin (web)", Some(false));
        check("app", Some(true));
        check("!app", Some(false));
        check("!none", Some(true));
        check("example.com/app=x", Some(false));
        check("none=", Some(false));
        check("app in (web", None);
        check("app,,tier", None);
        check("app near (web)", None);
        check("a b", None);
        check("app=we b", None);
        check("=x", None);
    }

    #[test]
    fn from_spec() {
        let check = |spec: Value, expect: Option<&str>| {
            assert_eq!(LabelSelector::from_spec(&spec).ok().map(|s| s.to_string()).as_deref(), expect);
        };
        check(json!({"matchLabels": {"a": "b"}}), Some("a=b"));
        check(
            json!({"matchLabels": {"a": "b"}, "matchExpressions": [
                {"key": "c", "operator": "NotIn", "values": ["d", "e"]}, {"key": "f", "operator": "Exists"},
                {"key": "g", "operator": "DoesNotExist"}]}),
            Some("a=b,c notin (d,e),f,!g"),
        );
        check(json!({"matchExpressions": [{"key": "c", "operator": "Near"}]}), None);
    }

    #[test]
    fn fields() {
        let pod = Object(json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}}));
        let check = |text: &str, expect: bool| {
            assert_eq!(FieldSelector::parse(text).unwrap().matches(&pod), expect, "{text}");
        };
        check("metadata.name=a", true);
        check("metadata.name=a,spec.nodeName!=n", false);
        check("spec.nodeName=", false);
        check("status.phase!=Running", true);
        assert!(FieldSelector::parse("metadata.name").is_err());
        assert!(FieldSelector::parse("status.phase=x").unwrap().check("Pod").is_ok());
        assert!(FieldSelector::parse("spec.image=x").unwrap().check("Pod").is_err());
    }
}
