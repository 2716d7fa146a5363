//! Pods, and the templates they come from.

use serde_json::Value;

use super::{Lines, annotations, date, head, labels, map, shown, text, text_or};
use crate::object::Object;
use crate::table::printable;

pub(super) fn pod(pod: &Object, lines: &mut Lines) {
    head(pod, lines);
    lines.pair(0, "Priority", text_or(pod, "spec.priority", "0"));
    lines.pair(0, "Service Account", text_or(pod, "spec.serviceAccountName", "default"));
    match (pod.get_str("spec.nodeName").unwrap_or(""), text(pod, "status.hostIP")) {
        ("", _) => lines.pair(0, "Node", "<none>"),
        (node, host) => lines.pair(0, "Node", format!("{node}/{host}")),
    }
    if let Some(start) = pod.get("status.startTime") {
        lines.pair(0, "Start Time", date(start));
    }
    labels(pod, 0, lines);
    annotations(pod, 0, lines);
    match pod.get("metadata.deletionTimestamp") {
        Some(at) => {
            lines.pair(0, "Status", format!("Terminating (since {})", date(at)));
            let grace = text(pod, "metadata.deletionGracePeriodSeconds");
            lines.pair(0, "Termination Grace Period", format!("{grace}s"));
        }
        None => lines.pair(0, "Status", text(pod, "status.phase")),
    }
    for (name, path) in [("Reason", "status.reason"), ("Message", "status.message")] {
        if pod.get(path).is_some() {
            lines.pair(0, name, text(pod, path));
        }
    }
    lines.pair(0, "IP", text(pod, "status.podIP"));
    let ips = pod.get_array("status.podIPs");
    if ips.is_empty() {
        lines.pair(0, "IPs", "<none>");
    } else {
        lines.line(0, "IPs:");
        ips.iter().for_each(|ip| lines.pair(1, "IP", shown(&ip["ip"])));
    }
    if let Some(owner) = pod.controller_owner() {
        lines.pair(0, "Controlled By", format!("{}/{}", owner.kind, owner.name));
    }
    containers(pod, "spec", lines);
    pod_conditions(pod, lines);
    volumes(pod, "spec", 0, lines);
    lines.pair(0, "QoS Class", text_or(pod, "status.qosClass", crate::qos_class(pod)));
    let selector = pod.get("spec.nodeSelector").and_then(Value::as_object);
    lines.pairs(0, "Node-Selectors", &map(selector, "="));
    let tolerations: Vec<String> = pod.get_array("spec.tolerations").iter().map(toleration).collect();
    lines.pairs(0, "Tolerations", &tolerations);
}

fn pod_conditions(pod: &Object, lines: &mut Lines) {
    let conditions = pod.get_array("status.conditions");
    if conditions.is_empty() {
        return;
    }
    lines.line(0, "Conditions:");
    lines.line(1, "Type\tStatus");
    for condition in conditions {
        lines.line(1, format!("{}\t{}", shown(&condition["type"]), shown(&condition["status"])));
    }
}

fn toleration(toleration: &Value) -> String {
    let mut text = shown(&toleration["key"]);
    let value = shown(&toleration["value"]);
    if !value.is_empty() {
        text.push_str(&format!("={value}"));
    }
    let effect = shown(&toleration["effect"]);
    if !effect.is_empty() {
        text.push_str(&format!(":{effect}"));
    }
    if toleration["operator"] == "Exists" && value.is_empty() {
        text.push_str(if text.is_empty() { "op=Exists" } else { " op=Exists" });
    }
    if let Some(secs) = toleration["tolerationSeconds"].as_i64() {
        text.push_str(&format!(" for {secs}s"));
    }
    text
}

/// Init containers and containers of the pod spec at `path`, with their status if there is one.
pub(super) fn containers(object: &Object, path: &str, lines: &mut Lines) {
    let level = usize::from(path != "spec");
    for (title, list, status) in [
        ("Init Containers", "initContainers", "status.initContainerStatuses"),
        ("Containers", "containers", "status.containerStatuses"),
    ] {
        let containers = object.get_array(&format!("{path}.{list}"));
        if containers.is_empty() {
            continue;
        }
        lines.line(level, format!("{title}:"));
        for one in containers {
            let statuses = object.get_array(status).iter();
            let status = statuses.clone().find(|s| level == 0 && s["name"] == one["name"]);
            // In templates kubectl indents by one space only.
            let indent = if level == 0 { "  " } else { "   " };
            lines.line(0, format!("{indent}{}:", shown(&one["name"])));
            container(one, status, lines);
        }
    }
}

fn container(container: &Value, status: Option<&Value>, lines: &mut Lines) {
    if let Some(status) = status {
        lines.pair(2, "Container ID", shown(&status["containerID"]));
    }
    lines.pair(2, "Image", shown(&container["image"]));
    if let Some(status) = status {
        lines.pair(2, "Image ID", shown(&status["imageID"]));
    }
    let ports = container["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let list = |field: &str| {
        let shown = ports.iter().map(|port| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            format!("{}/{protocol}", port[field].as_i64().unwrap_or(0))
        });
        if ports.is_empty() { "<none>".to_string() } else { shown.collect::<Vec<_>>().join(", ") }
    };
    let plural = if ports.len() > 1 { "s" } else { "" };
    lines.pair(2, &format!("Port{plural}"), list("containerPort"));
    lines.pair(2, &format!("Host Port{plural}"), list("hostPort"));
    for (title, field) in [("Command", "command"), ("Args", "args")] {
        if let Some(words) = container[field].as_array().filter(|words| !words.is_empty()) {
            lines.line(2, format!("{title}:"));
            for word in words {
                // A script keeps its lines.
                let word = word.as_str().unwrap_or("");
                word.lines().for_each(|line| lines.line(3, printable(&line.replace('\t', "    "))));
            }
        }
    }
    if let Some(status) = status {
        state("State", &status["state"], lines);
        if status["lastState"].as_object().is_some_and(|state| !state.is_empty()) {
            state("Last State", &status["lastState"], lines);
        }
        lines.pair(2, "Ready", if status["ready"] == true { "True" } else { "False" });
        lines.pair(2, "Restart Count", shown(&status["restartCount"]));
    }
    for (title, field) in [("Limits", "limits"), ("Requests", "requests")] {
        if let Some(list) = container["resources"][field].as_object().filter(|list| !list.is_empty()) {
            lines.line(2, format!("{title}:"));
            list.iter().for_each(|(name, value)| lines.pair(3, name, shown(value)));
        }
    }
    for (title, field) in
        [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")]
    {
        if let Some(tree) = container.get(field) {
            lines.pair(2, title, probe(tree));
        }
    }
    environment(container, lines);
    mounts(container, lines);
}

fn state(title: &str, state: &Value, lines: &mut Lines) {
    if let Some(running) = state.get("running") {
        lines.pair(2, title, "Running");
        lines.pair(3, "Started", date(&running["startedAt"]));
    } else if let Some(ended) = state.get("terminated") {
        lines.pair(2, title, "Terminated");
        for (name, field) in [("Reason", "reason"), ("Message", "message")] {
            if let Some(value) = ended.get(field) {
                lines.pair(3, name, shown(value));
            }
        }
        lines.pair(3, "Exit Code", shown(&ended["exitCode"]));
        if ended["signal"].as_i64().is_some_and(|signal| signal > 0) {
            lines.pair(3, "Signal", shown(&ended["signal"]));
        }
        lines.pair(3, "Started", date(&ended["startedAt"]));
        lines.pair(3, "Finished", date(&ended["finishedAt"]));
    } else {
        lines.pair(2, title, "Waiting");
        for (name, field) in [("Reason", "reason"), ("Message", "message")] {
            if let Some(value) = state["waiting"].get(field) {
                lines.pair(3, name, shown(value));
            }
        }
    }
}

fn probe(probe: &Value) -> String {
    let handler = if let Some(exec) = probe.get("exec") {
        let words: Vec<String> = exec["command"].as_array().into_iter().flatten().map(shown).collect();
        format!("exec [{}]", words.join(" "))
    } else if let Some(get) = probe.get("httpGet") {
        let scheme = get["scheme"].as_str().unwrap_or("HTTP").to_ascii_lowercase();
        format!("http-get {scheme}://{}:{}{}", shown(&get["host"]), shown(&get["port"]), shown(&get["path"]))
    } else if let Some(tcp) = probe.get("tcpSocket") {
        format!("tcp-socket {}:{}", shown(&tcp["host"]), shown(&tcp["port"]))
    } else {
        "unknown".into()
    };
    let number = |field: &str| probe[field].as_i64().unwrap_or(0);
    format!(
        "{handler} delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds"),
        number("timeoutSeconds"),
        number("periodSeconds"),
        number("successThreshold"),
        number("failureThreshold")
    )
}

fn environment(container: &Value, lines: &mut Lines) {
    let Some(variables) = container["env"].as_array().filter(|env| !env.is_empty()) else {
        return lines.pair(2, "Environment", "<none>");
    };
    lines.line(2, "Environment:");
    for variable in variables {
        let from = &variable["valueFrom"];
        let value = if let Some(field) = from.get("fieldRef") {
            let version = field["apiVersion"].as_str().unwrap_or("v1");
            format!(" ({version}:{})", shown(&field["fieldPath"]))
        } else if let Some(resource) = from.get("resourceFieldRef") {
            format!(" ({})", shown(&resource["resource"]))
        } else {
            shown(&variable["value"])
        };
        lines.pair(3, &shown(&variable["name"]), value);
    }
}

fn mounts(container: &Value, lines: &mut Lines) {
    let mut mounts: Vec<&Value> = container["volumeMounts"].as_array().into_iter().flatten().collect();
    if mounts.is_empty() {
        return lines.pair(2, "Mounts", "<none>");
    }
    mounts.sort_by_key(|mount| shown(&mount["mountPath"]));
    lines.line(2, "Mounts:");
    for mount in mounts {
        let access = if mount["readOnly"] == true { "ro" } else { "rw" };
        let below = match shown(&mount["subPath"]) {
            path if path.is_empty() => String::new(),
            path => format!(",path={path:?}"),
        };
        let (target, name) = (shown(&mount["mountPath"]), shown(&mount["name"]));
        lines.line(3, format!("{target} from {name} ({access}{below})"));
    }
}

pub(super) fn volumes(object: &Object, path: &str, level: usize, lines: &mut Lines) {
    let volumes = object.get_array(&format!("{path}.volumes"));
    if volumes.is_empty() {
        return lines.pair(level, "Volumes", "<none>");
    }
    lines.line(level, "Volumes:");
    for volume in volumes {
        let indent = if level == 0 { "  " } else { "   " };
        lines.line(0, format!("{indent}{}:", shown(&volume["name"])));
        source(volume, lines);
    }
}

/// Where a volume comes from; of a pod, or a persistent volume.
pub(super) fn source(volume: &Value, lines: &mut Lines) {
    if let Some(empty) = volume.get("emptyDir") {
        lines.pair(2, "Type", "EmptyDir (a directory that lives as long as the pod)");
        lines.pair(2, "Medium", shown(&empty["medium"]));
        let limit = shown(&empty["sizeLimit"]);
        lines.pair(2, "SizeLimit", if limit.is_empty() { "<unset>" } else { &limit });
    } else if let Some(host) = volume.get("hostPath") {
        lines.pair(2, "Type", "HostPath (a path of the host)");
        lines.pair(2, "Path", shown(&host["path"]));
        lines.pair(2, "HostPathType", shown(&host["type"]));
    } else if let Some(claim) = volume.get("persistentVolumeClaim") {
        lines.pair(2, "Type", "PersistentVolumeClaim (a claim in the same namespace)");
        lines.pair(2, "ClaimName", shown(&claim["claimName"]));
        lines.pair(2, "ReadOnly", if claim["readOnly"] == true { "true" } else { "false" });
    } else if let Some(local) = volume.get("local") {
        lines.pair(2, "Type", "LocalVolume (a path of one node)");
        lines.pair(2, "Path", shown(&local["path"]));
    } else if let Some(csi) = volume.get("csi") {
        lines.pair(2, "Type", "CSI (a volume of a driver)");
        lines.pair(2, "Driver", shown(&csi["driver"]));
        lines.pair(2, "VolumeHandle", shown(&csi["volumeHandle"]));
        lines.pair(2, "ReadOnly", if csi["readOnly"] == true { "true" } else { "false" });
        let attributes = csi["volumeAttributes"].as_object();
        lines.pairs(2, "VolumeAttributes", &map(attributes, "="));
    } else {
        lines.pair(2, "Type", "<unknown>");
    }
}
