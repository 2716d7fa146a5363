//! Columns and cells of each kind, as `kubectl get` names and orders them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, pod};
use crate::object::Object;
use crate::resource::resource_for_kind;
use crate::selector::LabelSelector;
use crate::time;

type Cells = fn(&Object, Timestamp) -> Vec<Value>;

const fn text(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0 }
}

const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 1 }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: "integer", format: "", priority: 0 }
}

const NAME: Column = Column { name: "Name", kind: "string", format: "name", priority: 0 };
const AGE: Column = text("Age");

const POD: &[Column] = &[
    NAME,
    text("Ready"),
    text("Status"),
    text("Restarts"),
    AGE,
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];
const SERVICE: &[Column] =
    &[NAME, text("Type"), text("Cluster-IP"), text("External-IP"), text("Port(s)"), AGE, wide("Selector")];
const ENDPOINT_SLICE: &[Column] = &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE];
const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    AGE,
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];
const STATEFUL_SET: &[Column] = &[NAME, text("Ready"), AGE, wide("Containers"), wide("Images")];
const REVISION: &[Column] = &[NAME, text("Controller"), text("Revision"), AGE];
const CLAIM: &[Column] = &[
    NAME,
    text("Status"),
    text("Volume"),
    text("Capacity"),
    text("Access Modes"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    AGE,
    wide("VolumeMode"),
];
const VOLUME: &[Column] = &[
    NAME,
    text("Capacity"),
    text("Access Modes"),
    text("Reclaim Policy"),
    text("Status"),
    text("Claim"),
    text("StorageClass"),
    text("VolumeAttributesClass"),
    text("Reason"),
    AGE,
    wide("VolumeMode"),
];
const CLASS: &[Column] = &[
    NAME,
    text("Provisioner"),
    text("ReclaimPolicy"),
    text("VolumeBindingMode"),
    text("AllowVolumeExpansion"),
    AGE,
];
const NAMESPACE: &[Column] = &[NAME, text("Status"), AGE];
const NODE: &[Column] = &[
    NAME,
    text("Status"),
    text("Roles"),
    AGE,
    text("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];
const EVENT: &[Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    wide("Count"),
    Column { name: "Name", kind: "string", format: "name", priority: 1 },
];

/// Columns of a stored kind, and what fills them.
pub(super) fn of(kind: &str) -> (&'static [Column], Cells) {
    match kind {
        "Pod" => (POD, pod_cells),
        "Service" => (SERVICE, service),
        "EndpointSlice" => (ENDPOINT_SLICE, endpoint_slice),
        "ReplicaSet" => (REPLICA_SET, replica_set),
        "StatefulSet" => (STATEFUL_SET, stateful_set),
        "ControllerRevision" => (REVISION, revision),
        "PersistentVolumeClaim" => (CLAIM, claim),
        "PersistentVolume" => (VOLUME, volume),
        "StorageClass" => (CLASS, class),
        "Namespace" => (NAMESPACE, |o, now| vec![name(o), some(o, "status.phase"), age(o, now)]),
        "Node" => (NODE, node),
        "Event" => (EVENT, event),
        _ => (&[NAME, AGE], |o, now| vec![name(o), age(o, now)]),
    }
}

fn name(object: &Object) -> Value {
    object.name().into()
}

fn age(object: &Object, now: Timestamp) -> Value {
    time::age(object.creation_timestamp(), now).into()
}

/// The text at a path; empty without one.
fn some(object: &Object, path: &str) -> Value {
    object.get_str(path).unwrap_or("").into()
}

/// The text at a path; `word` without one.
fn or(object: &Object, path: &str, word: &str) -> Value {
    object.get_str(path).filter(|text| !text.is_empty()).unwrap_or(word).into()
}

fn integer(object: &Object, path: &str) -> i64 {
    object.get_i64(path).unwrap_or(0)
}

fn joined<'a>(items: impl Iterator<Item = &'a str>) -> String {
    items.collect::<Vec<_>>().join(",")
}

fn pod_cells(pod: &Object, now: Timestamp) -> Vec<Value> {
    let summary = pod::summary(pod);
    let gates = pod.get_array("spec.readinessGates");
    let gates_text = if gates.is_empty() {
        "<none>".to_string()
    } else {
        let is_true = |gate: &&Value| {
            let kind = gate["conditionType"].as_str().unwrap_or("");
            pod::condition(pod, kind).is_some_and(|condition| condition["status"] == "True")
        };
        format!("{}/{}", gates.iter().filter(is_true).count(), gates.len())
    };
    vec![
        name(pod),
        summary.ready_text().into(),
        summary.status.clone().into(),
        summary.restarts_text(now).into(),
        age(pod, now),
        or(pod, "status.podIP", "<none>"),
        or(pod, "spec.nodeName", "<none>"),
        or(pod, "status.nominatedNodeName", "<none>"),
        gates_text.into(),
    ]
}

fn service(service: &Object, now: Timestamp) -> Vec<Value> {
    let kind = service.get_str("spec.type").unwrap_or("ClusterIP");
    let externals = joined(service.get_array("spec.externalIPs").iter().filter_map(Value::as_str));
    let external = match kind {
        "ExternalName" => service.get_str("spec.externalName").unwrap_or("").to_string(),
        "LoadBalancer" if externals.is_empty() => "<pending>".into(),
        _ if externals.is_empty() => "<none>".into(),
        _ => externals,
    };
    let ports = service.get_array("spec.ports").iter().map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        match port["nodePort"].as_i64() {
            Some(node) => format!("{}:{node}/{protocol}", port["port"]),
            None => format!("{}/{protocol}", port["port"]),
        }
    });
    let ports: Vec<String> = ports.collect();
    vec![
        name(service),
        kind.into(),
        or(service, "spec.clusterIP", "<none>"),
        external.into(),
        none_if_empty(ports.join(",")),
        age(service, now),
        plain_selector(service.get("spec.selector")),
    ]
}

fn endpoint_slice(slice: &Object, now: Timestamp) -> Vec<Value> {
    let ports = slice.get_array("ports").iter().map(|port| port["port"].to_string()).collect::<Vec<_>>();
    let addresses = slice.get_array("endpoints").iter().flat_map(|e| e["addresses"].as_array()).flatten();
    let addresses: Vec<&str> = addresses.filter_map(Value::as_str).collect();
    let shown = match addresses.len() {
        0 => "<unset>".to_string(),
        1..=3 => addresses.join(","),
        more => format!("{} + {} more...", addresses[..3].join(","), more - 3),
    };
    let ports = if ports.is_empty() { "<unset>".to_string() } else { ports.join(",") };
    vec![name(slice), some(slice, "addressType"), ports.into(), shown.into(), age(slice, now)]
}

fn replica_set(set: &Object, now: Timestamp) -> Vec<Value> {
    let (containers, images) = template(set);
    vec![
        name(set),
        integer(set, "spec.replicas").into(),
        integer(set, "status.replicas").into(),
        integer(set, "status.readyReplicas").into(),
        age(set, now),
        containers,
        images,
        selector(set.get("spec.selector")),
    ]
}

fn stateful_set(set: &Object, now: Timestamp) -> Vec<Value> {
    let (containers, images) = template(set);
    let ready = format!("{}/{}", integer(set, "status.readyReplicas"), integer(set, "spec.replicas"));
    vec![name(set), ready.into(), age(set, now), containers, images]
}

fn revision(revision: &Object, now: Timestamp) -> Vec<Value> {
    let controller = match revision.controller_owner() {
        Some(owner) => {
            let resource = resource_for_kind(&owner.api_version, &owner.kind);
            let kind = resource.map_or(owner.kind.to_ascii_lowercase(), |it| {
                if it.group.is_empty() { it.singular.into() } else { format!("{}.{}", it.singular, it.group) }
            });
            format!("{kind}/{}", owner.name)
        }
        None => "<none>".into(),
    };
    vec![name(revision), controller.into(), integer(revision, "revision").into(), age(revision, now)]
}

fn template(owner: &Object) -> (Value, Value) {
    let containers = owner.get_array("spec.template.spec.containers");
    let field = |field: &'static str| joined(containers.iter().filter_map(move |c| c[field].as_str()));
    (field("name").into(), field("image").into())
}

fn claim(claim: &Object, now: Timestamp) -> Vec<Value> {
    let bound = !claim.get_str("spec.volumeName").unwrap_or("").is_empty();
    let status = match claim.is_deleting() {
        true => "Terminating".into(),
        false => some(claim, "status.phase"),
    };
    let when_bound = |text: Value| if bound { text } else { "".into() };
    vec![
        name(claim),
        status,
        some(claim, "spec.volumeName"),
        when_bound(some(claim, "status.capacity.storage")),
        when_bound(access_modes(claim, "status.accessModes").into()),
        some(claim, "spec.storageClassName"),
        or(claim, "spec.volumeAttributesClassName", "<unset>"),
        age(claim, now),
        or(claim, "spec.volumeMode", "<unset>"),
    ]
}

fn volume(volume: &Object, now: Timestamp) -> Vec<Value> {
    let claim = match (volume.get_str("spec.claimRef.namespace"), volume.get_str("spec.claimRef.name")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => String::new(),
    };
    let status = match volume.is_deleting() {
        true => "Terminating".into(),
        false => some(volume, "status.phase"),
    };
    vec![
        name(volume),
        some(volume, "spec.capacity.storage"),
        access_modes(volume, "spec.accessModes").into(),
        some(volume, "spec.persistentVolumeReclaimPolicy"),
        status,
        claim.into(),
        some(volume, "spec.storageClassName"),
        or(volume, "spec.volumeAttributesClassName", "<unset>"),
        some(volume, "status.reason"),
        age(volume, now),
        or(volume, "spec.volumeMode", "<unset>"),
    ]
}

/// `RWO,ROX`: access modes in short.
pub(crate) fn access_modes(object: &Object, path: &str) -> String {
    let short = |mode: &'static str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        _ => "RWOP",
    };
    let all = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"];
    let has = object.get_array(path);
    joined(all.into_iter().filter(|mode| has.iter().any(|m| m == mode)).map(short))
}

fn class(class: &Object, now: Timestamp) -> Vec<Value> {
    let is_default = class.annotation("storageclass.kubernetes.io/is-default-class") == Some("true");
    let mark = if is_default { " (default)" } else { "" };
    vec![
        format!("{}{mark}", class.name()).into(),
        some(class, "provisioner"),
        or(class, "reclaimPolicy", "Delete"),
        or(class, "volumeBindingMode", "Immediate"),
        class.get_bool("allowVolumeExpansion").unwrap_or(false).into(),
        age(class, now),
    ]
}

fn node(node: &Object, now: Timestamp) -> Vec<Value> {
    let mut status = match pod::condition(node, "Ready").and_then(|condition| condition["status"].as_str()) {
        Some("True") => "Ready".to_string(),
        Some(_) => "NotReady".into(),
        None => "Unknown".into(),
    };
    if node.get_bool("spec.unschedulable") == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    let roles = node.labels().keys().filter_map(|key| key.strip_prefix("node-role.kubernetes.io/"));
    let address = |kind: &str| {
        let addresses = node.get_array("status.addresses");
        let found = addresses.iter().find(|address| address["type"] == kind);
        Value::from(found.and_then(|address| address["address"].as_str()).unwrap_or("<none>"))
    };
    vec![
        name(node),
        status.into(),
        none_if_empty(joined(roles)),
        age(node, now),
        some(node, "status.nodeInfo.kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        or(node, "status.nodeInfo.osImage", "<unknown>"),
        or(node, "status.nodeInfo.kernelVersion", "<unknown>"),
        or(node, "status.nodeInfo.containerRuntimeVersion", "<unknown>"),
    ]
}

fn event(event: &Object, now: Timestamp) -> Vec<Value> {
    let at = |path: &str| event.get(path).and_then(time::parse);
    let first = at("firstTimestamp").or_else(|| at("eventTime")).or_else(|| event.creation_timestamp());
    let last = at("series.lastObservedTime").or_else(|| at("lastTimestamp")).or(first);
    let count = event.get_i64("series.count").or_else(|| event.get_i64("count")).unwrap_or(1);
    let (kind, target) = (event.get_str("involvedObject.kind"), event.get_str("involvedObject.name"));
    let target = format!("{}/{}", kind.unwrap_or("").to_ascii_lowercase(), target.unwrap_or(""));
    vec![
        time::age(last, now).into(),
        some(event, "type"),
        some(event, "reason"),
        target.into(),
        some(event, "involvedObject.fieldPath"),
        event_source(event).into(),
        event.get_str("message").unwrap_or("").trim_end().into(),
        time::age(first, now).into(),
        count.into(),
        name(event),
    ]
}

/// Who wrote an event: component, and host if known.
pub(crate) fn event_source(event: &Object) -> String {
    let filled = |path: &str| event.get_str(path).filter(|text| !text.is_empty());
    let component = filled("source.component").or_else(|| filled("reportingComponent")).unwrap_or("");
    match filled("source.host").or_else(|| filled("reportingInstance")) {
        Some(host) => format!("{component}, {host}"),
        None => component.into(),
    }
}

fn none_if_empty(text: String) -> Value {
    if text.is_empty() { json!("<none>") } else { text.into() }
}

/// A `{matchLabels…}` selector as text.
pub(crate) fn selector(value: Option<&Value>) -> Value {
    let selector = value.and_then(|value| LabelSelector::from_spec(value).ok()).unwrap_or_default();
    none_if_empty(selector.to_string())
}

/// A plain map of labels as a selector.
pub(crate) fn plain_selector(value: Option<&Value>) -> Value {
    let labels = value.and_then(Value::as_object);
    none_if_empty(labels.map(LabelSelector::from_labels).unwrap_or_default().to_string())
}
