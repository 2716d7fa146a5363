//! What is fed: everything that reads a document or a message of somebody else's.

use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxResources, Process, Spec};
use runtime::Plan;
use runtime::cgroup::Cgroup;
use runtime::container::StartGate;
use runtime::exec::ProcessPlan;
use runtime::seccomp::Filter;
use runtime::state::{Directory, State};
use serde_json::Value;

use crate::seeds;

pub struct Target {
    pub name: &'static str,
    pub seeds: fn() -> Vec<Value>,
    /// Takes the input, or says why not.
    pub run: fn(&[u8]) -> Result<(), String>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "config", seeds: seeds::configs, run: config },
    Target { name: "process", seeds: seeds::processes, run: process },
    Target { name: "state", seeds: seeds::states, run: state },
    Target { name: "resources", seeds: seeds::resources, run: resources },
    Target { name: "protocol", seeds: seeds::reports, run: protocol },
    Target { name: "seccomp", seeds: seeds::profiles, run: seccomp },
];

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// config.json, up to the plan that a child would follow.
fn config(input: &[u8]) -> Result<(), String> {
    let spec: Spec = serde_json::from_slice(input).map_err(text)?;
    let plan = Plan::from_spec(&spec).map_err(text)?;
    // What was promised about it.
    let inside =
        |path: &std::path::Path| path.is_absolute() && !path.components().any(|c| c.as_os_str() == "..");
    for path in plan.masked_paths.iter().chain(&plan.read_only_paths) {
        assert!(inside(path), "{path:?}");
    }
    for mount in &plan.mounts {
        assert!(inside(&mount.destination), "{:?}", mount.destination);
    }
    for device in &plan.devices {
        assert!(inside(&device.path), "{:?}", device.path);
    }
    for (path, _) in &plan.sysctls {
        assert!(path.is_relative() && !path.components().any(|c| c.as_os_str() == ".."), "{path:?}");
    }
    Ok(())
}

/// `exec --process`.
fn process(input: &[u8]) -> Result<(), String> {
    let process: Process = serde_json::from_slice(input).map_err(text)?;
    ProcessPlan::from_spec(&process).map(drop).map_err(text)
}

/// state.json, and the questions asked of it.
fn state(input: &[u8]) -> Result<(), String> {
    let state: State = serde_json::from_slice(input).map_err(text)?;
    let directory = Directory::of(std::path::Path::new("/nowhere"), "fuzz").map_err(text)?;
    directory.status(&state).map(drop).map_err(text)
}

/// `update --resources`, applied to a cgroup that nobody is in.
fn resources(input: &[u8]) -> Result<(), String> {
    let resources: LinuxResources = serde_json::from_slice(input).map_err(text)?;
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let cgroup = Cgroup::create(format!("/podyard-test-fuzz-{}", std::process::id())).map_err(text)?;
    let applied = cgroup.apply_limits(&resources).map(drop).map_err(text);
    cgroup.remove().expect("an empty cgroup goes away");
    applied
}

/// What a child says, as the parent that starts it hears it.
fn protocol(input: &[u8]) -> Result<(), String> {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    // Longer than a packet may be is cut by whoever sends it.
    let input = &input[..input.len().min(200_000)];
    if input.is_empty() || send(theirs.as_raw_fd(), input, MsgFlags::MSG_DONTWAIT).is_err() {
        return Ok(());
    }
    let answer: Result<(), runtime::Error> = StartGate::from_fd(ours).start();
    drop::<OwnedFd>(theirs);
    match answer {
        // A failure is what the seeds report.
        Err(error) if error.to_string().starts_with("decode") => Err(text(error)),
        _ => Ok(()),
    }
}

/// A seccomp profile, compiled.
fn seccomp(input: &[u8]) -> Result<(), String> {
    let profile = serde_json::from_slice(input).map_err(text)?;
    let filter = Filter::compile(&profile, &mut Vec::new()).map_err(text)?;
    assert!((1..=4096).contains(&filter.program().len()), "{} instructions", filter.program().len());
    Ok(())
}
