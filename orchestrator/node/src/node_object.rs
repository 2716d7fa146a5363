//! The Node object: what this node has to offer.
//!
//! Written when the agent starts and when it changes. There is no heartbeat: on one host the death of an agent is
//! observable, and idle means idle.

use api::Object;
use jiff::Timestamp;
use serde_json::json;

use crate::host::Host;
use crate::status::time;

/// Pods that fit, as kubelets have it.
const PODS: &str = "110";

/// This node's object.
pub fn node(host: &Host, now: Timestamp) -> Object {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let resources = json!({
        "cpu": cpus.to_string(),
        "memory": format!("{}Ki", memory_kib()),
        "pods": PODS,
    });
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let architecture = match text(uname.machine()).as_str() {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let name = &host.node;
    let cidr = host.network.net().pod_cidr.to_string();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": time(now),
        })
    };
    Object(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": architecture,
            },
        },
        "spec": { "podCIDR": cidr, "podCIDRs": [cidr] },
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [
                { "type": "InternalIP", "address": host.address.to_string() },
                { "type": "Hostname", "address": name },
            ],
            "conditions": [
                condition("Ready", "True", "AgentReady", "the node's agent is at work"),
                condition("MemoryPressure", "False", "NotObserved", "memory pressure is not observed yet"),
                condition("DiskPressure", "False", "NotObserved", "disk pressure is not observed yet"),
                condition("PIDPressure", "False", "NotObserved", "pid pressure is not observed yet"),
            ],
            "nodeInfo": {
                "machineID": read("/etc/machine-id"),
                "systemUUID": read("/sys/class/dmi/id/product_uuid"),
                "bootID": crate::boot::boot_id().unwrap_or_default(),
                "kernelVersion": text(uname.release()),
                "osImage": os_name(),
                "containerRuntimeVersion": format!("podyard://{}", env!("CARGO_PKG_VERSION")),
                "kubeletVersion": format!("podyard-{}", env!("CARGO_PKG_VERSION")),
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": architecture,
            },
        },
    }))
}

fn memory_kib() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn os_name() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map(|name| name.trim_matches('"').to_owned()).unwrap_or_else(|| "Linux".into())
}
