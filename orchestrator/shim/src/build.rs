//! The bodies of the create and exec workers: from the request's data to the runtime's.
//!
//! The spec of each container stays on disk, `<pod dir>/specs/<container>.<attempt>.json`, until Delete: an exec
//! starts from its process, rights and filter, and the shim's memory need not hold it.
#![forbid(unsafe_code)]

use crate::cgroup::fresh_cgroup;
use crate::protocol::{ContainerId, Create, Exec, Failure, FailureKind, ProcessName, Step};
use crate::sys::{Call, Result};
use crate::worker::{Outcome, Work};
use oci_spec::runtime::Spec;
use rootfs::volume::{self, BindAccess};
use rootfs::{Access, MountedLayer};
use runtime::cgroup::Cgroup;
use runtime::container::{self, CreateRequest, DetachedMount, Parent, Root, Stdio};
use runtime::namespaces::Kind;
use runtime::{Plan, exec};
use rustix::fs::{Mode, OFlags};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Directory of specs in the pod directory.
const SPECS_DIR: &str = "specs";

/// Measures the steps of a worker, for `podyard trace`.
struct Trace {
    steps: Vec<Step>,
    last: Instant,
}

impl Trace {
    fn step(&mut self, what: impl Into<String>) {
        let now = Instant::now();
        let micros = u64::try_from((now - self.last).as_micros()).unwrap_or(u64::MAX);
        self.steps.push(Step { what: what.into(), micros });
        self.last = now;
    }
}

/// Makes the container. `namespaces` are the pod's; `output` its stdout and stderr.
pub(crate) fn create(
    create: &Create,
    pod_dir: &Path,
    namespaces: &[(&'static str, BorrowedFd<'_>)],
    output: &[OwnedFd],
) -> Work {
    let mut trace = Trace { steps: Vec::new(), last: Instant::now() };
    let held: Vec<&str> = namespaces.iter().map(|(kind, _)| *kind).collect();
    let prepared = (|| {
        let spec = complete(create, &held)?;
        let text = spec.to_string();
        let plan = plan(spec)?;
        trace.step("plan the container from its spec");
        Ok((plan, text, fresh_cgroup(&create.cgroup)?))
    })();
    let (plan, spec, cgroup) = match prepared {
        Ok(prepared) => prepared,
        // The cgroup, if there is one, is not ours to clear.
        Err(failure) => return Ok((Outcome::Refused(failure), Vec::new())),
    };
    let terminal = plan.process.terminal;
    let window = plan.process.window;
    keep_spec(pod_dir, &create.container, &spec)?;
    if let Some(resources) = &plan.resources {
        let partly = cgroup.apply_limits(resources)?;
        partly.iter().for_each(|warning| trace.step(format!("warning: {warning}")));
    }
    trace.step(format!("create cgroup {}", create.cgroup));

    let mut layers = create.root.mount()?.into_iter();
    let root =
        layers.next().ok_or_else(|| Failure::new(FailureKind::Invalid, "root.layers: is empty"))?.mount;
    let read_only = create.root.access == Access::ReadOnly;
    let mut mounts: Vec<DetachedMount> = layers
        .map(|MountedLayer { destination, mount }| DetachedMount { fd: mount, destination, read_only })
        .collect();
    trace.step(format!("mount {} overlays, detached", create.root.layers.len()));

    for (index, volume) in create.volumes.iter().enumerate() {
        let sub = volume.sub_path.as_deref();
        let bound = match (&volume.claim, sub) {
            (Some(claim), _) => volume::claimed_fd(&volume.source, claim, sub, volume.access),
            (None, None) => volume::bind_fd(&volume.source, volume.access),
            (None, Some(sub)) => volume::bind_sub_fd(&volume.source, sub, volume.access),
        };
        let fd = bound.map_err(|error| {
            let failure = Failure::from(error);
            Failure::new(failure.kind, format!("volumes[{index}]: {}", failure.message))
        })?;
        let read_only = volume.access == BindAccess::ReadOnly;
        mounts.push(DetachedMount { fd, destination: volume.destination.clone(), read_only });
    }
    if !create.volumes.is_empty() {
        trace.step(format!("mount {} volumes, detached", create.volumes.len()));
    }

    let stdio = if terminal { Stdio::Terminal(window) } else { Stdio::Fds(output_of(output)?) };
    let created = container::create(CreateRequest {
        plan,
        root: Root::Mount(root),
        mounts,
        stdio,
        namespaces: joins(namespaces)?,
        cgroup: Some(cgroup),
        parent: Parent::Sibling,
        start_listener: None,
    })?;
    trace.step(format!(
        "clone3 pid {} into its namespaces and cgroup; mount, pivot_root, drop rights",
        created.pid
    ));
    created.warnings.iter().for_each(|warning| trace.step(format!("warning: {warning}")));
    let process = ProcessName::of(created.pid)?;
    let mut fds = vec![created.pidfd, created.start.into_fd()];
    fds.extend(created.console);
    Ok((Outcome::Created { process, steps: trace.steps }, fds))
}

/// Runs a program in the container whose init process `target` names.
pub(crate) fn exec(
    exec: &Exec,
    pod_dir: &Path,
    cgroup: &str,
    target: BorrowedFd<'_>,
    fds: &[OwnedFd],
) -> Work {
    let spec = overlay_process(read_spec(pod_dir, &exec.container)?, &exec.process)?;
    let plan = plan(spec)?;
    let stdio = match (fds, plan.process.terminal) {
        ([stdin, stdout, stderr], false) => Stdio::Fds([copy(stdin)?, copy(stdout)?, copy(stderr)?]),
        ([], false) => Stdio::Fds([null()?, null()?, null()?]),
        ([], true) => Stdio::Terminal(plan.process.window),
        _ => return Err(Failure::new(FailureKind::Invalid, "exec takes either a terminal or descriptors")),
    };
    let executed = exec::exec(exec::ExecRequest {
        identity: Default::default(),
        target: target.try_clone_to_owned().call(|| "fcntl(F_DUPFD_CLOEXEC)".into())?,
        process: plan.process,
        seccomp: plan.seccomp,
        stdio,
        cgroup: Some(Cgroup::open(cgroup)?),
        parent: Parent::Sibling,
    })?;
    // A short program may have ended by now, and the shim, its parent, have reaped it: that is no failure of the exec.
    let process = ProcessName::of(executed.pid).or_else(|_| ProcessName::ended(executed.pid))?;
    let mut fds = vec![executed.pidfd];
    fds.extend(executed.console);
    Ok((Outcome::Executing { process }, fds))
}

/// The spec with what the shim decides: namespaces, root, cgroup. Pure.
fn complete(create: &Create, held: &[&str]) -> Result<Value> {
    let mut spec = create.spec.clone();
    let object = as_object(&mut spec, "spec")?;
    object.insert("root".into(), json!({"path": "/", "readonly": create.root.access == Access::ReadOnly}));
    // Set once for the pod, by Setup.
    object.remove("hostname");
    object.remove("domainname");
    let linux = as_object(object.entry("linux").or_insert_with(|| json!({})), "spec.linux")?;
    linux.insert("cgroupsPath".into(), json!(create.cgroup));
    let listed = linux.remove("namespaces").unwrap_or(json!([]));
    let listed = listed
        .as_array()
        .ok_or_else(|| Failure::new(FailureKind::Invalid, "linux.namespaces: is no list"))?;
    let kind_of = |entry: &Value| entry.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let shared =
        |kind: &str| matches!(kind, "network" | "uts" | "ipc") || (kind == "pid" && held.contains(&"pid"));
    // A shared kind that is not held is the host's.
    let mut namespaces: Vec<Value> =
        listed.iter().filter(|entry| !shared(&kind_of(entry))).cloned().collect();
    for kind in held {
        namespaces.push(json!({"type": if *kind == "net" { "network" } else { kind }}));
    }
    if !namespaces.iter().any(|entry| kind_of(entry) == "mount") {
        namespaces.push(json!({"type": "mount"}));
    }
    linux.insert("namespaces".into(), Value::Array(namespaces));
    Ok(spec)
}

/// The container's spec with its process changed as an exec asks. Pure.
fn overlay_process(mut spec: Value, change: &Value) -> Result<Value> {
    let change =
        change.as_object().ok_or_else(|| Failure::new(FailureKind::Invalid, "process: is no object"))?;
    if !change.contains_key("args") {
        return Err(Failure::new(FailureKind::Invalid, "process.args: is required"));
    }
    let process = as_object(&mut spec, "spec")?.get_mut("process");
    let process = as_object(
        process.ok_or_else(|| Failure::new(FailureKind::Internal, "spec without process"))?,
        "process",
    )?;
    process.insert("terminal".into(), json!(false));
    process.remove("consoleSize");
    process.extend(change.clone());
    Ok(spec)
}

fn plan(spec: Value) -> Result<Plan> {
    let spec: Spec = serde_json::from_value(spec)
        .map_err(|error| Failure::new(FailureKind::Invalid, format!("spec: {error}")))?;
    let mut plan = Plan::from_spec(&spec)?;
    // A program that is missing is a container that does not start, and not one that cannot be created.
    plan.process.program_first = false;
    Ok(plan)
}

fn as_object<'a>(value: &'a mut Value, what: &str) -> Result<&'a mut Map<String, Value>> {
    value.as_object_mut().ok_or_else(|| Failure::new(FailureKind::Invalid, format!("{what}: is no object")))
}

fn joins(namespaces: &[(&'static str, BorrowedFd<'_>)]) -> Result<BTreeMap<Kind, OwnedFd>> {
    namespaces
        .iter()
        .map(|(name, fd)| {
            let kind = match *name {
                "net" => Kind::Network,
                "uts" => Kind::Uts,
                "ipc" => Kind::Ipc,
                _ => Kind::Pid,
            };
            Ok((kind, fd.try_clone_to_owned().call(|| "fcntl(F_DUPFD_CLOEXEC)".into())?))
        })
        .collect()
}

fn output_of(output: &[OwnedFd]) -> Result<[OwnedFd; 3]> {
    let [stdout, stderr] = output else {
        return Err(Failure::new(FailureKind::Internal, "a container has two output pipes"));
    };
    Ok([null()?, copy(stdout)?, copy(stderr)?])
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().call(|| "fcntl(F_DUPFD_CLOEXEC)".into())
}

fn null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .call(|| "open(/dev/null)".into())
}

fn spec_path(pod_dir: &Path, container: &ContainerId) -> PathBuf {
    pod_dir.join(SPECS_DIR).join(format!("{container}.json"))
}

fn keep_spec(pod_dir: &Path, container: &ContainerId, spec: &str) -> Result<()> {
    let path = spec_path(pod_dir, container);
    let dir = pod_dir.join(SPECS_DIR);
    match std::fs::create_dir(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).call(|| format!("mkdir {}", dir.display()));
        }
        _ => {}
    }
    // Not durable: it is of use only while this shim lives.
    std::fs::write(&path, spec).call(|| format!("write {}", path.display()))
}

fn read_spec(pod_dir: &Path, container: &ContainerId) -> Result<Value> {
    let path = spec_path(pod_dir, container);
    let bytes = std::fs::read(&path).call(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("parse {}: {error}", path.display())))
}

/// Removes the spec; absent already is success.
pub(crate) fn forget_spec(pod_dir: &Path, container: &ContainerId) -> Result<()> {
    let path = spec_path(pod_dir, container);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.call(|| format!("unlink {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(spec: Value) -> Create {
        Create {
            container: ContainerId { name: "web".into(), attempt: 0 },
            spec,
            root: rootfs::RootPlan { layers: Vec::new(), access: Access::ReadOnly },
            volumes: Vec::new(),
            cgroup: "/p/web.0".into(),
            log: "/x".into(),
            deadline_ms: 0,
        }
    }

    fn kinds(held: &[&str], listed: &[&str]) -> Vec<String> {
        let listed: Vec<_> = listed.iter().map(|kind| json!({"type": kind})).collect();
        let spec =
            complete(&request(json!({"hostname": "x", "linux": {"namespaces": listed}})), held).unwrap();
        assert_eq!(spec.get("hostname"), None);
        assert_eq!(spec["root"]["readonly"], json!(true));
        let list = spec["linux"]["namespaces"].as_array().unwrap().clone();
        list.iter().map(|entry| entry["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_pod_decides_on_shared_namespaces() {
        assert_eq!(
            kinds(&["net", "uts", "ipc"], &["pid", "network"]),
            ["pid", "network", "uts", "ipc", "mount"]
        );
        assert_eq!(kinds(&["uts"], &["network", "ipc", "mount"]), ["mount", "uts"], "the host's net and ipc");
        assert_eq!(kinds(&["uts", "pid"], &["pid", "mount"]), ["mount", "uts", "pid"]);
    }

    #[test]
    fn an_exec_starts_from_the_container() {
        let spec = json!({"process": {"args": ["a"], "env": ["A=1"], "terminal": true, "user": {"uid": 7, "gid": 7}}});
        let spec = overlay_process(spec, &json!({"args": ["b"]})).unwrap();
        let expect = json!({"args": ["b"], "env": ["A=1"], "terminal": false, "user": {"uid": 7, "gid": 7}});
        assert_eq!(spec["process"], expect);
        assert!(overlay_process(json!({"process": {}}), &json!({})).is_err(), "args are required");
    }
}
