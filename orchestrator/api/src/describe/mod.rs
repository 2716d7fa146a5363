//! What `kubectl describe` prints, from an object and what belongs to it. Pure.
//!
//! Layout and field names as kubectl 1.33 prints them, so that habits and scripts carry over.

mod node;
mod pod;
mod service;
mod storage;
mod tabs;
mod workload;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::object::Object;
use crate::table::{event_source, printable};
use crate::time;
use tabs::Lines;

/// What belongs to the object described.
#[derive(Clone, Copy, Debug)]
pub struct Related<'a> {
    /// Events whose `involvedObject` it is, in any order.
    pub events: &'a [Object],
    /// Pods: of a set (by selector and owner), on a node, or using a claim.
    pub pods: &'a [Object],
    /// Endpoint slices of a service (by label `kubernetes.io/service-name`).
    pub endpoint_slices: &'a [Object],
    /// The volume of a claim.
    pub volume: Option<&'a Object>,
    /// For ages.
    pub now: Timestamp,
}

impl Related<'_> {
    /// Nothing belongs to it.
    pub fn none(now: Timestamp) -> Related<'static> {
        Related { events: &[], pods: &[], endpoint_slices: &[], volume: None, now }
    }
}

/// Describes an object of any kind.
pub fn describe(object: &Object, related: &Related<'_>) -> String {
    let mut lines = Lines::default();
    match object.kind() {
        "Pod" => pod::pod(object, &mut lines),
        "Service" => service::service(object, related, &mut lines),
        "ReplicaSet" => workload::replica_set(object, related, &mut lines),
        "StatefulSet" | "PetSet" => workload::stateful_set(object, related, &mut lines),
        "ControllerRevision" => workload::revision(object, &mut lines),
        "PersistentVolumeClaim" => storage::claim(object, related, &mut lines),
        "PersistentVolume" => storage::volume(object, &mut lines),
        "StorageClass" => storage::class(object, &mut lines),
        "Node" => node::node(object, related, &mut lines),
        _ => any(object, &mut lines),
    }
    events(related, &mut lines);
    lines.finish()
}

/// The pod template of a set, or of the data of a revision, as `rollout history --revision` prints it.
pub fn describe_template(owner: &Object) -> String {
    let mut lines = Lines::default();
    workload::template(owner, &mut lines);
    lines.finish()
}

/// Name, namespace, labels and annotations.
fn head(object: &Object, lines: &mut Lines) {
    lines.pair(0, "Name", object.name());
    if !object.namespace().is_empty() {
        lines.pair(0, "Namespace", object.namespace());
    }
}

fn labels(object: &Object, level: usize, lines: &mut Lines) {
    lines.pairs(level, "Labels", &map(Some(object.labels()), "="));
}

fn annotations(object: &Object, level: usize, lines: &mut Lines) {
    let mut annotations = object.annotations().clone();
    // What was applied is the object again.
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    lines.pairs(level, "Annotations", &map(Some(&annotations), ": "));
}

fn map(tree: Option<&Map<String, Value>>, join: &str) -> Vec<String> {
    tree.into_iter()
        .flatten()
        .map(|(key, value)| format!("{}{join}{}", printable(key), shown(value)))
        .collect()
}

/// A scalar as text of one line.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

fn text(object: &Object, path: &str) -> String {
    object.get(path).map(shown).unwrap_or_default()
}

fn text_or(object: &Object, path: &str, word: &str) -> String {
    object.get(path).map(shown).filter(|text| !text.is_empty()).unwrap_or_else(|| word.into())
}

/// `Mon, 02 Jan 2006 15:04:05 +0000`.
fn date(value: &Value) -> String {
    match time::parse(value) {
        Some(time) => time.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string(),
        None => "<unset>".into(),
    }
}

fn conditions(object: &Object, lines: &mut Lines) {
    let conditions = object.get_array("status.conditions");
    if conditions.is_empty() {
        return;
    }
    lines.line(0, "Conditions:");
    lines.line(1, "Type\tStatus\tReason\tMessage");
    lines.line(1, "----\t------\t------\t-------");
    for condition in conditions {
        let cell = |field: &str| shown(&condition[field]);
        lines.line(
            1,
            format!("{}\t{}\t{}\t{}", cell("type"), cell("status"), cell("reason"), cell("message")),
        );
    }
}

fn events(related: &Related<'_>, lines: &mut Lines) {
    if related.events.is_empty() {
        return lines.pair(0, "Events", "<none>");
    }
    let at = |event: &Object, path: &str| event.get(path).and_then(time::parse);
    let first = |event: &Object| {
        let first = at(event, "firstTimestamp").or_else(|| at(event, "eventTime"));
        first.or_else(|| event.creation_timestamp())
    };
    let last = |event: &Object| {
        let last = at(event, "series.lastObservedTime").or_else(|| at(event, "lastTimestamp"));
        last.or_else(|| first(event))
    };
    let mut sorted: Vec<&Object> = related.events.iter().collect();
    sorted.sort_by_key(|event| last(event));
    lines.line(0, "Events:");
    lines.line(1, "Type\tReason\tAge\tFrom\tMessage");
    lines.line(1, "----\t------\t----\t----\t-------");
    for event in sorted {
        let count = event.get_i64("series.count").or_else(|| event.get_i64("count")).unwrap_or(1);
        let mut age = time::age(last(event), related.now);
        if count > 1 {
            age = format!("{age} (x{count} over {})", time::age(first(event), related.now));
        }
        let cell = |path: &str| text(event, path);
        let from = event_source(event);
        let from = from.split(", ").next().unwrap_or("");
        lines.line(
            1,
            format!("{}\t{}\t{age}\t{from}\t{}", cell("type"), cell("reason"), cell("message").trim_end()),
        );
    }
}

/// Any other kind: its tree, names spelled out.
fn any(object: &Object, lines: &mut Lines) {
    head(object, lines);
    labels(object, 0, lines);
    annotations(object, 0, lines);
    lines.pair(0, "API Version", object.api_version());
    lines.pair(0, "Kind", object.kind());
    if let Some(created) = object.get("metadata.creationTimestamp") {
        lines.pair(0, "Created", date(created));
    }
    for (name, value) in object.0.as_object().into_iter().flatten() {
        if !["metadata", "apiVersion", "kind"].contains(&name.as_str()) {
            tree(name, value, 0, lines);
        }
    }
}

fn tree(name: &str, value: &Value, level: usize, lines: &mut Lines) {
    let title = title(name);
    match value {
        Value::Object(members) => {
            lines.line(level, format!("{title}:"));
            members.iter().for_each(|(name, value)| tree(name, value, level + 1, lines));
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            lines.line(level, format!("{title}:"));
            for item in items.iter().filter_map(Value::as_object) {
                item.iter().for_each(|(name, value)| tree(name, value, level + 1, lines));
            }
        }
        Value::Array(items) => lines.pairs(level, &title, &items.iter().map(shown).collect::<Vec<_>>()),
        scalar => lines.pair(level, &title, shown(scalar)),
    }
}

/// `addressType` as `Address Type`.
fn title(name: &str) -> String {
    let mut title = String::new();
    let mut was_lower = false;
    for (index, c) in name.chars().enumerate() {
        if was_lower && c.is_uppercase() {
            title.push(' ');
        }
        was_lower = c.is_lowercase();
        title.push(if index == 0 { c.to_ascii_uppercase() } else { c });
    }
    title
}

#[cfg(test)]
mod tests;
