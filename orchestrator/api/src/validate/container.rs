//! Containers, and what they ask for.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{Causes, Tree, items, names, pod, text, texts, tree};
use crate::quantity::Quantity;

/// Paths of the downward API that the agent resolves; labels and annotations one at a time.
const FIELD_PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Signals that may ask a container to end. Source: Kubernetes, API reference, Lifecycle; without the real-time ones.
const STOP_SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGKILL",
    "SIGPIPE",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

pub(super) fn container(container: &Tree, path: &str, volumes: &HashMap<&str, &Tree>, causes: &mut Causes) {
    let name = text(container, "name");
    if name.is_empty() {
        causes.required(format!("{path}.name"));
    } else {
        causes.name(format!("{path}.name"), name, names::dns_label);
    }
    let image = text(container, "image");
    if image.is_empty() {
        causes.required(format!("{path}.image"));
    } else if image.trim() != image {
        causes.invalid(format!("{path}.image"), image, "must not have leading or trailing whitespace");
    }
    for (field, known) in [
        ("imagePullPolicy", &["Always", "IfNotPresent", "Never"][..]),
        ("terminationMessagePolicy", &["File", "FallbackToLogsOnError"][..]),
    ] {
        if container.contains_key(field) {
            causes.one_of(format!("{path}.{field}"), text(container, field), known);
        }
    }
    ports(container, path, causes);
    environment(container, path, causes);
    mounts(container, path, volumes, causes);
    if let Some(resources_) = tree(container, "resources") {
        resources(resources_, &format!("{path}.resources"), causes);
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(item) = tree(container, field) {
            probe(item, &format!("{path}.{field}"), field, causes);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = tree(container, "lifecycle").and_then(|hooks| tree(hooks, hook)) {
            lifecycle_handler(handler, &format!("{path}.lifecycle.{hook}"), causes);
        }
    }
    if let Some(signal) = tree(container, "lifecycle").and_then(|hooks| hooks.get("stopSignal")) {
        let signal = signal.as_str().unwrap_or_default();
        causes.one_of(format!("{path}.lifecycle.stopSignal"), signal, STOP_SIGNALS);
    }
    if let Some(context) = tree(container, "securityContext") {
        security(context, &format!("{path}.securityContext"), causes);
    }
}

fn ports(container: &Tree, path: &str, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (path, port) in items(container, path, "ports") {
        let name = text(port, "name");
        if !name.is_empty() {
            causes.name(format!("{path}.name"), name, names::port_name);
            if !seen.insert(name) {
                causes.duplicate(format!("{path}.name"), name);
            }
        }
        match port.get("containerPort") {
            None => causes.required(format!("{path}.containerPort")),
            number => causes.in_range(format!("{path}.containerPort"), number, 1, 65_535),
        }
        causes.in_range(format!("{path}.hostPort"), port.get("hostPort"), 0, 65_535);
        causes.one_of(format!("{path}.protocol"), text(port, "protocol"), &["TCP", "UDP", "SCTP"]);
    }
}

fn environment(container: &Tree, path: &str, causes: &mut Causes) {
    for (path, variable) in items(container, path, "env") {
        let name = text(variable, "name");
        if name.is_empty() {
            causes.required(format!("{path}.name"));
        } else {
            causes.name(format!("{path}.name"), name, names::variable);
        }
        let Some(from) = tree(variable, "valueFrom") else { continue };
        if !text(variable, "value").is_empty() {
            causes.invalid(format!("{path}.valueFrom"), "", "may not be specified when `value` is not empty");
        }
        if from.len() != 1 {
            causes.invalid(format!("{path}.valueFrom"), "", "must have exactly one source");
        }
        if let Some(field) = tree(from, "fieldRef") {
            let asked = text(field, "fieldPath");
            let subscript = ["metadata.labels['", "metadata.annotations['"]
                .iter()
                .any(|prefix| asked.strip_prefix(prefix).is_some_and(|rest| rest.ends_with("']")));
            if asked.is_empty() {
                causes.required(format!("{path}.valueFrom.fieldRef.fieldPath"));
            } else if !subscript {
                causes.one_of(format!("{path}.valueFrom.fieldRef.fieldPath"), asked, FIELD_PATHS);
            }
        }
    }
}

fn mounts(container: &Tree, path: &str, volumes: &HashMap<&str, &Tree>, causes: &mut Causes) {
    for (path, mount) in items(container, path, "volumeMounts") {
        let name = text(mount, "name");
        if name.is_empty() {
            causes.required(format!("{path}.name"));
        } else if !volumes.contains_key(name) {
            causes.not_found(format!("{path}.name"), name);
        }
        let target = text(mount, "mountPath");
        if target.is_empty() {
            causes.required(format!("{path}.mountPath"));
        }
        let below = text(mount, "subPath");
        if below.starts_with('/') {
            causes.invalid(format!("{path}.subPath"), below, "must be a relative path");
        }
        pod::backsteps(below, &format!("{path}.subPath"), causes);
    }
}

/// Limits and requests.
pub(super) fn resources(resources: &Tree, path: &str, causes: &mut Causes) {
    let empty = Tree::new();
    let limits = tree(resources, "limits").unwrap_or(&empty);
    let requests = tree(resources, "requests").unwrap_or(&empty);
    for (kind, list) in [("limits", limits), ("requests", requests)] {
        for (name, value) in list {
            let at = format!("{path}.{kind}[{name}]");
            let parsed = quantity(value, &at, causes);
            match name.as_str() {
                "cpu" | "memory" => {}
                "podyard.io/pids" => {
                    if parsed.is_some_and(|q| !q.is_whole() || q == Quantity::from_units(0)) {
                        causes.invalid(&at, value.clone(), "must be a whole number above 0");
                    }
                    if kind == "limits" {
                        let hint = "use the pod's annotation podyard.io/pids-limit";
                        causes.warn(format!("not implemented yet: {at}; {hint}"));
                    }
                }
                "ephemeral-storage" => causes.warn(format!("not implemented yet: {at}")),
                other if other.starts_with("hugepages-") => {
                    causes.warn(format!("not implemented yet: {at}"));
                }
                other if other.contains('/') => {
                    causes.forbidden(&at, "no device or extended resource of that name is served");
                }
                other => causes.invalid(
                    format!("{path}.{kind}[{other}]"),
                    other,
                    "must be a standard resource type or fully qualified",
                ),
            }
        }
    }
    let parse = |value: &Value| value.as_str().and_then(|text| text.parse::<Quantity>().ok());
    for (name, request) in requests {
        if let (Some(request_), Some(limit)) = (parse(request), limits.get(name).and_then(parse))
            && request_ > limit
        {
            let limit = &limits[name];
            let why =
                format!("must be less than or equal to {name} limit of {}", limit.as_str().unwrap_or(""));
            causes.invalid(format!("{path}.requests"), request.clone(), why);
        }
    }
}

/// Refuses a negative quantity; gives it otherwise.
pub(super) fn quantity(value: &Value, path: &str, causes: &mut Causes) -> Option<Quantity> {
    let quantity = value.as_str()?.parse::<Quantity>().ok()?;
    if quantity.is_negative() {
        causes.invalid(path, value.clone(), "must be greater than or equal to 0");
        return None;
    }
    Some(quantity)
}

fn probe(probe: &Tree, path: &str, field: &str, causes: &mut Causes) {
    one_handler(probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], causes);
    for (field, low) in [
        ("initialDelaySeconds", 0),
        ("timeoutSeconds", 1),
        ("periodSeconds", 1),
        ("successThreshold", 1),
        ("failureThreshold", 1),
    ] {
        causes.in_range(format!("{path}.{field}"), probe.get(field), low, i32::MAX.into());
    }
    if field != "readinessProbe" && probe.get("successThreshold").is_some_and(|n| n.as_i64() != Some(1)) {
        causes.invalid(format!("{path}.successThreshold"), probe["successThreshold"].clone(), "must be 1");
    }
    if field == "readinessProbe" && probe.contains_key("terminationGracePeriodSeconds") {
        causes.forbidden(
            format!("{path}.terminationGracePeriodSeconds"),
            "must not be set for readinessProbes",
        );
    }
    actions(probe, path, causes);
}

/// What a container is told after its start, or before its end.
fn lifecycle_handler(handler: &Tree, path: &str, causes: &mut Causes) {
    one_handler(handler, path, &["exec", "httpGet", "tcpSocket", "sleep"], causes);
    actions(handler, path, causes);
    if let Some(sleep) = tree(handler, "sleep") {
        causes.in_range(format!("{path}.sleep.seconds"), sleep.get("seconds"), 0, i32::MAX.into());
    }
}

fn one_handler(tree: &Tree, path: &str, known: &[&str], causes: &mut Causes) {
    let handlers: Vec<&&str> = known.iter().filter(|handler| tree.contains_key(**handler)).collect();
    match handlers.as_slice() {
        [] => causes.required_because(path, "must specify a handler type"),
        [_] => {}
        [_, second, ..] => {
            causes.forbidden(format!("{path}.{second}"), "may not specify more than 1 handler type")
        }
    }
}

/// The actions that probes and hooks have in common.
fn actions(probe: &Tree, path: &str, causes: &mut Causes) {
    if tree(probe, "exec").is_some_and(|exec| texts(exec, "command").next().is_none()) {
        causes.required(format!("{path}.exec.command"));
    }
    for handler in ["httpGet", "tcpSocket"] {
        let Some(tree_) = tree(probe, handler) else { continue };
        let at = format!("{path}.{handler}.port");
        match tree_.get("port") {
            None => causes.required(at),
            Some(Value::String(name)) => causes.name(at, name, names::port_name),
            number => causes.in_range(at, number, 1, 65_535),
        }
    }
    if let Some(get) = tree(probe, "httpGet") {
        causes.one_of(format!("{path}.httpGet.scheme"), text(get, "scheme"), &["HTTP", "HTTPS"]);
        if text(get, "scheme") == "HTTPS" {
            causes.warn(format!("not implemented yet: {path}.httpGet.scheme HTTPS: it will fail"));
        }
    }
}

/// A security context, of a pod or a container.
pub(super) fn security(context: &Tree, path: &str, causes: &mut Causes) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        causes.in_range(format!("{path}.{field}"), context.get(field), 0, i32::MAX.into());
    }
    let non_root = context.get("runAsNonRoot") == Some(&Value::Bool(true));
    match context.get("runAsUser").and_then(Value::as_i64) {
        Some(0) if non_root => {
            causes.invalid(format!("{path}.runAsUser"), 0, "may not be 0 when `runAsNonRoot` is set");
        }
        _ => {}
    }
    if let Some(profile) = tree(context, "seccompProfile") {
        let kinds = ["RuntimeDefault", "Unconfined", "Localhost"];
        causes.one_of(format!("{path}.seccompProfile.type"), text(profile, "type"), &kinds);
        if text(profile, "type") == "Localhost" {
            causes.forbidden(format!("{path}.seccompProfile"), "profiles from files are not implemented");
        }
    }
    if let Some(capabilities) = tree(context, "capabilities") {
        for list in ["add", "drop"] {
            for (index, name) in texts(capabilities, list).enumerate() {
                let plain = name.strip_prefix("CAP_").unwrap_or(name);
                if plain.is_empty() || !plain.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
                    let at = format!("{path}.capabilities.{list}[{index}]");
                    causes.invalid(at, name, "must be a capability such as NET_ADMIN, or ALL");
                }
            }
        }
        let grants = texts(capabilities, "add").any(|name| name.trim_start_matches("CAP_") == "SYS_ADMIN");
        if grants && context.get("allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
            let why = "cannot be false when `capabilities.add` has SYS_ADMIN";
            causes.invalid(format!("{path}.allowPrivilegeEscalation"), false, why);
        }
    }
}
