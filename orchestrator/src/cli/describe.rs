//! `describe`: one object for people, with the events about it.
//!
//! Pods have a page of their own; everything else is shown field by field, as it is: nothing hidden.

use std::fmt::Write as _;

use api::{Object, Resource, time};
use client::ListOptions;
use serde_json::Value;

use super::context::Context;
use super::error::{Error, Outcome};
use super::events;
use super::get::{Selection, key};
use super::merge::LAST_APPLIED;
use super::print::printable;
use super::target::{self, Target};

/// Where values begin.
const VALUE_COLUMN: usize = 18;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to describe: TYPE, TYPE NAME…, or TYPE/NAME…
    #[arg(value_name = "TYPE[/NAME] [NAME…]")]
    words: Vec<String>,
    #[command(flatten)]
    selection: Selection,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let mut errors = Vec::new();
    let mut is_first = true;
    for target in target::parse(&args.words)? {
        let objects = match &target {
            Target::Object(resource, name) => match context.client.get(&key(context, resource, name)).await {
                Ok(object) => vec![object],
                Err(error) => {
                    errors.push(error.into());
                    continue;
                }
            },
            Target::Kind(resource) => {
                context
                    .client
                    .list(resource, args.selection.namespace(context), &args.selection.list())
                    .await?
                    .items
            }
        };
        for object in objects {
            if !std::mem::take(&mut is_first) {
                context.text("\n\n")?;
            }
            let events = about(context, &object).await?;
            context.text(&page(context, target.resource(), &object, &events))?;
        }
    }
    if is_first && errors.is_empty() {
        context.note("No resources found");
    }
    Error::gather(errors).map(|()| 0)
}

/// The events about an object, oldest first.
async fn about(context: &Context, object: &Object) -> Result<Vec<Object>, Error> {
    let events = api::Key::core("events", "", "").resource;
    let mut fields = vec![format!("involvedObject.name={}", object.name())];
    if !object.uid().is_empty() {
        fields.push(format!("involvedObject.uid={}", object.uid()));
    }
    let options = ListOptions { fields: Some(fields.join(",")), ..ListOptions::default() };
    let namespace = Some(object.namespace()).filter(|namespace| !namespace.is_empty());
    let mut items = context.client.list(events, namespace, &options).await?.items;
    items.sort_by_key(events::last_seen);
    Ok(items)
}

fn page(context: &Context, resource: &Resource, object: &Object, events: &[Object]) -> String {
    let mut text = String::new();
    line(&mut text, 0, "Name", object.name());
    if resource.namespaced {
        line(&mut text, 0, "Namespace", object.namespace());
    }
    if resource.kind != "Pod" {
        line(&mut text, 0, "Kind", &format!("{} ({})", object.kind(), object.api_version()));
    }
    if let Some(created) = object.creation_timestamp() {
        line(
            &mut text,
            0,
            "Age",
            &format!("{} ({})", time::age(Some(created), context.now()), time::seconds(created)),
        );
    }
    if let Some(gone) = object.deletion_timestamp() {
        let grace = object.deletion_grace_period_secs().unwrap_or(0);
        line(&mut text, 0, "Terminating", &format!("until {} (grace period {grace}s)", time::seconds(gone)));
    }
    map(&mut text, "Labels", &Value::from(object.labels().clone()));
    let mut annotations = object.annotations().clone();
    annotations.remove(LAST_APPLIED);
    map(&mut text, "Annotations", &Value::from(annotations));
    for owner in object.owner_references() {
        let name = if owner.controller { "Controlled By" } else { "Owned By" };
        line(&mut text, 0, name, &format!("{}/{}", owner.kind, owner.name));
    }
    match resource.kind {
        "Pod" => pod(&mut text, object),
        _ => {
            let known = ["apiVersion", "kind", "metadata"];
            for (name, value) in object.0.as_object().into_iter().flatten() {
                if !known.contains(&name.as_str()) {
                    tree(&mut text, 0, &heading(name), value);
                }
            }
        }
    }
    event_lines(context, &mut text, events);
    text
}

/// `podManagementPolicy` as `Pod Management Policy`.
fn heading(field: &str) -> String {
    let mut words = String::new();
    let mut before_is_lower = false;
    for (index, letter) in field.chars().enumerate() {
        if index == 0 {
            words.extend(letter.to_uppercase());
        } else {
            if letter.is_uppercase() && before_is_lower {
                words.push(' ');
            }
            words.push(letter);
        }
        before_is_lower = letter.is_lowercase();
    }
    words
}

fn line(text: &mut String, indent: usize, name: &str, value: &str) {
    let width = VALUE_COLUMN.saturating_sub(indent);
    _ = writeln!(text, "{:indent$}{:<width$}{}", "", format!("{name}: "), printable(value));
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn map(text: &mut String, name: &str, value: &Value) {
    let lines: Vec<String> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", scalar(value)))
        .collect();
    match lines.split_first() {
        None => line(text, 0, name, "<none>"),
        Some((first, rest)) => {
            line(text, 0, name, first);
            for other in rest {
                _ = writeln!(text, "{:VALUE_COLUMN$}{}", "", printable(other));
            }
        }
    }
}

/// Anything, indented.
fn tree(text: &mut String, indent: usize, name: &str, value: &Value) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            _ = writeln!(text, "{:indent$}{name}:", "");
            for (name, value) in map {
                tree(text, indent + 2, &heading(name), value);
            }
        }
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            line(text, indent, name, &items.iter().map(scalar).collect::<Vec<_>>().join(", "));
        }
        Value::Array(items) => {
            _ = writeln!(text, "{:indent$}{name}:", "");
            for (index, item) in items.iter().enumerate() {
                let title = ["name", "type"].iter().find_map(|field| item[*field].as_str());
                tree(text, indent + 2, &title.map_or_else(|| format!("[{index}]"), printable), item);
            }
        }
        other => line(text, indent, name, &scalar(other)),
    }
}

fn pod(text: &mut String, pod: &Object) {
    let field = |path: &str| pod.get_str(path).unwrap_or("<none>").to_string();
    line(
        text,
        0,
        "Node",
        &format!("{} {}", field("spec.nodeName"), pod.get_str("status.hostIP").unwrap_or("")),
    );
    if let Some(started) = pod.get_str("status.startTime") {
        line(text, 0, "Start Time", started);
    }
    line(text, 0, "Status", &field("status.phase"));
    for name in ["reason", "message"] {
        if let Some(value) = pod.get_str(&format!("status.{name}")) {
            line(text, 0, &heading(name), value);
        }
    }
    line(text, 0, "IP", &field("status.podIP"));
    for (title, list, statuses) in [
        ("Init Containers", "spec.initContainers", "status.initContainerStatuses"),
        ("Containers", "spec.containers", "status.containerStatuses"),
    ] {
        let containers = pod.get_array(list);
        if containers.is_empty() {
            continue;
        }
        _ = writeln!(text, "{title}:");
        for container in containers {
            let status = pod.get_array(statuses).iter().find(|status| status["name"] == container["name"]);
            one_container(text, container, status);
        }
    }
    let conditions = pod.get_array("status.conditions");
    if !conditions.is_empty() {
        _ = writeln!(text, "Conditions:");
        for condition in conditions {
            let part = |name: &str| condition[name].as_str().unwrap_or("");
            let why = [part("reason"), part("message")].into_iter().filter(|part| !part.is_empty());
            line(
                text,
                2,
                part("type"),
                &format!("{}  {}", part("status"), why.collect::<Vec<_>>().join(": ")),
            );
        }
    }
    for name in ["volumes", "nodeSelector", "tolerations"] {
        if let Some(value) = pod.get(&format!("spec.{name}")) {
            tree(text, 0, &heading(name), value);
        }
    }
}

fn one_container(text: &mut String, container: &Value, status: Option<&Value>) {
    _ = writeln!(text, "  {}:", printable(container["name"].as_str().unwrap_or("")));
    let none = Value::Null;
    let status = status.unwrap_or(&none);
    if let Some(id) = status["containerID"].as_str() {
        line(text, 4, "Container ID", id);
    }
    for (name, value) in container.as_object().into_iter().flatten() {
        if name != "name" {
            tree(text, 4, &heading(name), value);
        }
    }
    for (title, state) in [("State", &status["state"]), ("Last State", &status["lastState"])] {
        for (state, details) in state.as_object().into_iter().flatten() {
            line(text, 4, title, &heading(state));
            for (name, value) in details.as_object().into_iter().flatten() {
                line(text, 6, &heading(name), &scalar(value));
            }
        }
    }
    if status.is_object() {
        line(text, 4, "Ready", if status["ready"] == true { "True" } else { "False" });
        line(text, 4, "Restart Count", &status["restartCount"].to_string());
    }
}

fn event_lines(context: &Context, text: &mut String, events: &[Object]) {
    if events.is_empty() {
        line(text, 0, "Events", "<none>");
        return;
    }
    _ = writeln!(text, "Events:");
    let rows = events.iter().map(|event| {
        let part = |path: &str| printable(event.get_str(path).unwrap_or(""));
        let from = event.get_str("source.component").or(event.get_str("reportingComponent")).unwrap_or("");
        vec![part("type"), part("reason"), events::age(context, event), printable(from), part("message")]
    });
    let table = super::print::columns(&["Type", "Reason", "Age", "From", "Message"], rows.collect());
    for row in table.lines() {
        _ = writeln!(text, "  {row}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn headings() {
        assert_eq!(heading("podManagementPolicy"), "Pod Management Policy");
        assert_eq!(heading("clusterIP"), "Cluster IP");
        assert_eq!(heading("hostIPC"), "Host IPC");
    }

    #[test]
    fn a_pod_is_told_with_its_containers_states() {
        let object = Object(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n"},
            "spec": {"nodeName": "node-0", "containers": [{"name": "c", "image": "i", "command": ["sh", "-c", "x\u{1b}y"]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [
                {"name": "c", "ready": true, "restartCount": 2, "state": {"running": {"startedAt": "t"}}}]},
        }));
        let context = Context::new(&super::super::Globals { socket: "/x".into(), namespace: None });
        let text = page(&context, object.resource().unwrap(), &object, &[]);
        for expect in [
            "Name:             a\n",
            "Node:             node-0",
            "  c:\n",
            "    Command:      sh, -c, x y\n",
            "    State:        Running\n",
            "      Started At: t\n",
            "    Restart Count: 2\n",
            "Events:           <none>\n",
        ] {
            assert!(text.contains(expect), "{expect:?} in\n{text}");
        }
    }
}
