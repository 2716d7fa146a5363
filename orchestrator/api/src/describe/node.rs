//! Nodes, and what runs on them.

use serde_json::Value;

use super::{Lines, Related, annotations, date, labels, shown, text};
use crate::object::Object;
use crate::quantity::Quantity;
use crate::time;

pub(super) fn node(node: &Object, related: &Related<'_>, lines: &mut Lines) {
    lines.pair(0, "Name", node.name());
    let roles: Vec<&str> =
        node.labels().keys().filter_map(|key| key.strip_prefix("node-role.kubernetes.io/")).collect();
    lines.pair(0, "Roles", if roles.is_empty() { "<none>".into() } else { roles.join(",") });
    labels(node, 0, lines);
    annotations(node, 0, lines);
    lines.pair(0, "CreationTimestamp", date(&node.0["metadata"]["creationTimestamp"]));
    let taints = node.get_array("spec.taints").iter().map(|taint| {
        let value = match shown(&taint["value"]) {
            value if value.is_empty() => String::new(),
            value => format!("={value}"),
        };
        format!("{}{value}:{}", shown(&taint["key"]), shown(&taint["effect"]))
    });
    lines.pairs(0, "Taints", &taints.collect::<Vec<_>>());
    let unschedulable = node.get_bool("spec.unschedulable").unwrap_or(false);
    lines.pair(0, "Unschedulable", unschedulable.to_string());
    if crate::node::is_managed(node) {
        lines.pair(0, "Power", if crate::node::is_off(node) { "off" } else { "on" });
        lines.pair(0, "Fabric", if crate::node::is_cut(node) { "cut" } else { "up" });
    }
    conditions(node, lines);
    lines.line(0, "Addresses:");
    for address in node.get_array("status.addresses") {
        lines.pair(1, &shown(&address["type"]), shown(&address["address"]));
    }
    for (title, path) in [("Capacity", "status.capacity"), ("Allocatable", "status.allocatable")] {
        if let Some(resources) = node.get(path).and_then(Value::as_object) {
            lines.line(0, format!("{title}:"));
            resources.iter().for_each(|(name, value)| lines.pair(1, name, shown(value)));
        }
    }
    lines.line(0, "System Info:");
    for (title, field) in [
        ("Machine ID", "machineID"),
        ("System UUID", "systemUUID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Kubelet Version", "kubeletVersion"),
    ] {
        lines.pair(1, title, text(node, &format!("status.nodeInfo.{field}")));
    }
    if node.get("spec.podCIDR").is_some() {
        lines.pair(0, "PodCIDR", text(node, "spec.podCIDR"));
    }
    pods(related, lines);
}

fn conditions(node: &Object, lines: &mut Lines) {
    lines.line(0, "Conditions:");
    lines.line(1, "Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage");
    lines.line(1, "----\t------\t-----------------\t------------------\t------\t-------");
    for condition in node.get_array("status.conditions") {
        let cell = |field: &str| shown(&condition[field]);
        let (heartbeat, change) = (&condition["lastHeartbeatTime"], &condition["lastTransitionTime"]);
        lines.line(
            1,
            format!(
                "{}\t{}\t{}\t{}\t{}\t{}",
                cell("type"),
                cell("status"),
                date(heartbeat),
                date(change),
                cell("reason"),
                cell("message")
            ),
        );
    }
}

fn pods(related: &Related<'_>, lines: &mut Lines) {
    let is_live = |pod: &&Object| !matches!(pod.get_str("status.phase"), Some("Succeeded" | "Failed"));
    let live: Vec<&Object> = related.pods.iter().filter(is_live).collect();
    lines.line(0, format!("Non-terminated Pods:\t({} in total)", live.len()));
    lines.line(1, "Namespace\tName\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge");
    lines.line(1, "---------\t----\t------------\t----------\t---------------\t-------------\t---");
    let wanted = [("requests", "cpu"), ("limits", "cpu"), ("requests", "memory"), ("limits", "memory")];
    let mut totals = [Quantity::from_units(0); 4];
    for pod in live {
        let sums = wanted.map(|(list, name)| sum(pod, list, name));
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = total.saturating_add(sum);
        }
        let age = time::age(pod.creation_timestamp(), related.now);
        let [a, b, c, d] = sums;
        lines.line(1, format!("{}\t{}\t{a}\t{b}\t{c}\t{d}\t{age}", pod.namespace(), pod.name()));
    }
    lines.line(0, "Allocated resources:");
    lines.line(1, "Resource\tRequests\tLimits");
    lines.line(1, "--------\t--------\t------");
    lines.line(1, format!("cpu\t{}\t{}", totals[0], totals[1]));
    lines.line(1, format!("memory\t{}\t{}", totals[2], totals[3]));
}

fn sum(pod: &Object, list: &str, name: &str) -> Quantity {
    let containers = pod.get_array("spec.containers").iter();
    let each = containers.filter_map(|c| c["resources"][list][name].as_str()?.parse::<Quantity>().ok());
    each.fold(Quantity::from_units(0), Quantity::saturating_add)
}
