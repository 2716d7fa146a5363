//! From a container of a pod to an OCI runtime spec. Pure.
//!
//! What the spec leaves open the shim fills in: the pod's namespaces, which it holds, and the mounts of root
//! and volumes, which it makes from plain data and passes as detached mount fds.
//!
//! Defaults are the field's, but for one: a container may not gain privileges (`no_new_privs`) unless it says
//! `allowPrivilegeEscalation: true`. Our images are the host's own programs, setuid ones among them.

use api::Object;
use api::quantity::{parse_bytes, parse_millicpu};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::env;
use crate::error::{Error, Kind, Result};

/// Limits the number of processes of each of the pod's containers.
pub const PIDS_ANNOTATION: &str = "podyard.io/pids-limit";

/// What a container gets unless its securityContext says otherwise: Docker's list.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Source: capabilities(7), in the kernel's numbering.
const ALL_CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a container's spec is made from.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The pod.
    pub pod: &'a Object,
    /// The container's entry in its spec.
    pub container: &'a Value,
    /// Defaults of its image.
    pub image: &'a rootfs::Config,
    /// The node's address.
    pub host_ip: &'a str,
    /// What the container is told of Services, as variables.
    pub services: &'a [(String, String)],
    /// Where the container is born, below each hierarchy's root.
    pub cgroup: &'a str,
    /// Capabilities that this host can give: bit n is capability n. /proc/self/status, `CapBnd`.
    pub bounding: u64,
}

/// The runtime spec of one container.
///
/// # Errors
/// `Invalid` (`CreateContainerConfigError`) for what cannot be carried out as written.
pub fn spec(input: &Input<'_>) -> Result<Spec> {
    if let Some(refusal) = refusals(input.pod).into_iter().next() {
        return Err(config_error(refusal));
    }
    let context =
        Security { pod: &input.pod.0["spec"]["securityContext"], own: &input.container["securityContext"] };
    let privileged = context.own["privileged"] == true;
    let env = env::environment(
        env::Facts { pod: input.pod, host_ip: input.host_ip, services: input.services },
        input.container,
        &input.image.env,
    )?;
    let args = env::command(input.container, input.image, &env)?;
    let cwd = input.container["workingDir"].as_str().filter(|dir| !dir.is_empty());
    let cwd = cwd.map_or_else(|| input.image.cwd.display().to_string(), str::to_owned);
    let terminal = input.container["tty"] == true;
    let names = capabilities(context.own, privileged, input.bounding)?;
    let escalation = privileged
        || context.own["allowPrivilegeEscalation"] == true
        || names.iter().any(|name| name == "CAP_SYS_ADMIN");
    let empty: [&str; 0] = [];

    let mut namespaces = vec!["mount", "network", "ipc", "uts", "cgroup", "pid"];
    if privileged {
        namespaces.retain(|name| *name != "cgroup");
    }
    let mut linux = json!({
        "namespaces": namespaces.iter().map(|kind| json!({ "type": kind })).collect::<Vec<_>>(),
        "cgroupsPath": input.cgroup,
        "resources": resources(input, privileged),
        "maskedPaths": if privileged { &[][..] } else { MASKED_PATHS },
        "readonlyPaths": if privileged { &[][..] } else { READONLY_PATHS },
    });
    let sysctls = sysctls(input.pod);
    if !sysctls.is_empty() {
        linux["sysctl"] = sysctls.into();
    }
    let spec = json!({
        "ociVersion": "1.2.0",
        "root": { "path": "/", "readonly": context.own["readOnlyRootFilesystem"] == true },
        "hostname": env::hostname(input.pod),
        "process": {
            "terminal": terminal,
            "user": user(&context, input.image, input.pod)?,
            "args": args,
            "env": env,
            "cwd": if cwd.is_empty() { "/" } else { &cwd },
            "capabilities": {
                "bounding": names, "effective": names, "permitted": names,
                "inheritable": empty, "ambient": empty,
            },
            "noNewPrivileges": !escalation,
            "oomScoreAdj": oom_score_adj(input),
        },
        "mounts": mounts(privileged),
        "linux": linux,
    });
    let mut spec: Spec = serde_json::from_value(spec)
        .map_err(|error| Error::with(Kind::Internal, "make runtime spec", error))?;
    if !privileged
        && !context.unconfined()?
        && let Some(linux) = spec.linux_mut()
    {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        linux.set_seccomp(Some(runtime::seccomp::default_profile(&names)));
    }
    Ok(spec)
}

/// Parts of this pod that this node cannot carry out, and so will not start it.
pub fn refusals(pod: &Object) -> Vec<String> {
    let spec = &pod.0["spec"];
    let mut refusals = Vec::new();
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[field] == true {
            refusals.push(format!("spec.{field}: the host's namespaces cannot be joined yet"));
        }
    }
    if spec["hostUsers"] == false {
        refusals.push("spec.hostUsers: user namespaces are not supported yet".into());
    }
    let windows = |context: &Value| context.get("windowsOptions").is_some();
    if windows(&spec["securityContext"]) {
        refusals.push("spec.securityContext.windowsOptions: this is Linux".into());
    }
    refusals
}

/// A pod's and a container's security context; the container's wins.
struct Security<'a> {
    pod: &'a Value,
    own: &'a Value,
}

impl Security<'_> {
    fn id(&self, field: &str) -> Option<u32> {
        let value = self.own.get(field).or_else(|| self.pod.get(field))?;
        value.as_u64().and_then(|id| u32::try_from(id).ok())
    }

    fn unconfined(&self) -> Result<bool> {
        let profile = self.own.get("seccompProfile").or_else(|| self.pod.get("seccompProfile"));
        match profile.and_then(|profile| profile["type"].as_str()) {
            None | Some("RuntimeDefault") => Ok(false),
            Some("Unconfined") => Ok(true),
            Some(other) => Err(config_error(format!("seccompProfile.type {other:?} is not supported yet"))),
        }
    }
}

fn config_error(text: String) -> Error {
    Error::new(Kind::Invalid, text).reason("CreateContainerConfigError")
}

fn user(context: &Security<'_>, image: &rootfs::Config, pod: &Object) -> Result<Value> {
    let uid = context.id("runAsUser").unwrap_or(image.uid);
    let own_gid = if context.id("runAsUser").is_some() { 0 } else { image.gid };
    let gid = context.id("runAsGroup").unwrap_or(own_gid);
    let non_root = context.own.get("runAsNonRoot").or_else(|| context.pod.get("runAsNonRoot"));
    if non_root == Some(&Value::Bool(true)) && uid == 0 {
        return Err(config_error("container has runAsNonRoot and would run as root".into()));
    }
    let mut groups: Vec<u64> =
        pod.get_array("spec.securityContext.supplementalGroups").iter().filter_map(Value::as_u64).collect();
    groups.extend(context.pod["fsGroup"].as_u64());
    Ok(json!({ "uid": uid, "gid": gid, "additionalGids": groups }))
}

/// Names with `CAP_`, in the kernel's order.
fn capabilities(own: &Value, privileged: bool, bounding: u64) -> Result<Vec<String>> {
    let listed = |field: &str| -> Result<Vec<String>> {
        let names = own["capabilities"][field].as_array();
        let names = names.into_iter().flatten().filter_map(Value::as_str).map(str::to_ascii_uppercase);
        let names: Vec<String> = names.map(|name| name.trim_start_matches("CAP_").to_owned()).collect();
        match names.iter().find(|name| *name != "ALL" && !ALL_CAPABILITIES.contains(&name.as_str())) {
            Some(unknown) => {
                Err(config_error(format!("securityContext.capabilities.{field}: no capability {unknown:?}")))
            }
            None => Ok(names),
        }
    };
    let (add, drop) = (listed("add")?, listed("drop")?);
    let has = |list: &[String], name: &str| list.iter().any(|known| known == name);
    let all = privileged || has(&add, "ALL");
    let none = has(&drop, "ALL");
    let kept = |name: &str| {
        let base = all || (!none && DEFAULT_CAPABILITIES.contains(&name));
        (base && !has(&drop, name)) || has(&add, name)
    };
    let given = |(number, name): (usize, &&str)| {
        (kept(name) && bounding >> number & 1 == 1).then(|| format!("CAP_{name}"))
    };
    Ok(ALL_CAPABILITIES.iter().enumerate().filter_map(given).collect())
}

fn resources(input: &Input<'_>, privileged: bool) -> Value {
    let listed = |list: &str, name: &str| input.container["resources"][list][name].as_str();
    let mut resources = json!({
        "devices": [{ "allow": privileged, "access": "rwm" }],
    });
    let millis =
        |list| listed(list, "cpu").and_then(|text| parse_millicpu(text).ok()).filter(|millis| *millis > 0);
    let mut cpu = json!({});
    if let Some(request) = millis("requests").or_else(|| millis("limits")) {
        // 1024 shares are one CPU; the kernel takes 2 to 262144.
        cpu["shares"] = (request * 1024 / 1000).clamp(2, 262_144).into();
    }
    if let Some(limit) = millis("limits") {
        cpu["period"] = 100_000.into();
        // The kernel refuses less than 1 ms.
        cpu["quota"] = (limit * 100).max(1000).into();
    }
    if cpu.as_object().is_some_and(|cpu| !cpu.is_empty()) {
        resources["cpu"] = cpu;
    }
    if let Some(limit) =
        listed("limits", "memory").and_then(|text| parse_bytes(text).ok()).filter(|bytes| *bytes > 0)
    {
        resources["memory"] = json!({ "limit": limit });
    }
    if let Some(limit) = input.pod.annotation(PIDS_ANNOTATION).and_then(|text| text.parse::<i64>().ok()) {
        resources["pids"] = json!({ "limit": limit });
    }
    resources
}

/// How eagerly the kernel kills it for memory. Never below 0, which needs CAP_SYS_RESOURCE.
///
/// Source: Kubernetes, "Node-pressure Eviction", node out of memory behaviour.
fn oom_score_adj(input: &Input<'_>) -> i32 {
    let resources = &input.container["resources"];
    let request = resources["requests"]["memory"].as_str().or_else(|| resources["limits"]["memory"].as_str());
    if request.is_some() || resources["limits"].get("cpu").is_some() { 0 } else { 1000 }
}

fn sysctls(pod: &Object) -> serde_json::Map<String, Value> {
    let listed = pod.get_array("spec.securityContext.sysctls").iter();
    listed.filter_map(|sysctl| Some((sysctl["name"].as_str()?.to_owned(), sysctl["value"].clone()))).collect()
}

/// Mounts of kernel filesystems. Volumes, and files made for the pod, come from the shim.
fn mounts(privileged: bool) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let access = if privileged { "rw" } else { "ro" };
    json!([
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ])
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
