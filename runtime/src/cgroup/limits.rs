//! Limits and statistics, through libcgroups; directories and device rules are ours.

use std::os::fd::OwnedFd;
use std::path::Path;

use libcgroups::common::{CgroupManager, ControllerOpt};
use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags, openat};

use super::{Cgroup, Layout, devices, hierarchies::V1};
use crate::error::{Call, Error, Kind, Result, Step};

impl Cgroup {
    /// Sets every limit that `resources` has; those it lacks stay as they are.
    ///
    /// On v1 hierarchies this makes the directories that it needs, so it comes before the
    /// processes do.
    ///
    /// # Errors
    /// `Unsupported`, naming the controller, where the host lacks it; `Invalid` or the kernel's
    /// error, naming the file, for a value it refuses.
    pub fn apply_limits(&self, resources: &LinuxResources) -> Result<()> {
        let step = format!("limit cgroup {}", self.path().display());
        if let Some(rdma) = resources.rdma()
            && !rdma.is_empty()
        {
            return Err(Error::unsupported("linux.resources.rdma", "not offered").within(step));
        }
        let applied = match self.tree.layout {
            Layout::Unified => self.apply_unified(resources),
            Layout::Hybrid | Layout::Legacy => self.apply_v1(resources),
        };
        applied.step(step)
    }

    /// Makes the v1 directories that [`Cgroup::stats`] reads, so that processes started from now
    /// on are counted. Nothing to do on the unified layout.
    ///
    /// # Errors
    /// The kernel's, naming the directory.
    pub fn account(&self) -> Result<()> {
        for hierarchy in &self.tree.v1 {
            let counts = |c: &String| STATISTICS.contains(&c.as_str());
            if hierarchy.controllers.iter().any(counts) {
                self.make_v1(hierarchy)?;
            }
        }
        Ok(())
    }

    /// What its processes use.
    ///
    /// # Errors
    /// `Unsupported` on v1 hierarchies without [`Cgroup::account`].
    pub fn stats(&self) -> Result<super::Stats> {
        let step = || format!("read statistics of cgroup {}", self.path().display());
        let wrap = |e: &dyn std::fmt::Display| Error::new(Kind::Internal, e.to_string()).within(step());
        match self.tree.layout {
            Layout::Unified => self.unified_manager()?.stats().map_err(|e| wrap(&e)),
            Layout::Hybrid | Layout::Legacy => {
                let there = |c: &&str| {
                    let at = |h: &V1| h.path.join(&self.path).exists();
                    self.tree.v1(c).is_none_or(at)
                };
                if !STATISTICS.iter().all(there) {
                    return Err(Error::unsupported(step(), "this cgroup keeps no accounts"));
                }
                self.v1_manager()?.stats().map_err(|e| wrap(&e))
            }
        }
    }

    fn apply_unified(&self, resources: &LinuxResources) -> Result<()> {
        if let Some(rules) = resources.devices().as_ref().filter(|r| !r.is_empty()) {
            let program = devices::program(rules)?;
            crate::sys::attach_device_program(std::os::fd::AsFd::as_fd(&self.dir()?), &program)
                .step("attach device rules")?;
        }
        self.unified_manager()?.apply(&options(resources)).map_err(|e| self.explain(&e, resources))
    }

    fn apply_v1(&self, resources: &LinuxResources) -> Result<()> {
        if resources.unified().as_ref().is_some_and(|u| !u.is_empty()) {
            return Err(Error::unsupported("linux.resources.unified", "this host's limits are in cgroup v1"));
        }
        let needed = v1_controllers(resources);
        if needed.is_empty() {
            return Ok(());
        }
        // libcgroups writes its default device rules whenever it is asked for anything.
        for (controller, field) in needed.iter().chain(&[("devices", "devices")]) {
            let Some(hierarchy) = self.tree.v1(controller) else {
                return Err(Error::unsupported(
                    format!("linux.resources.{field}"),
                    format!("this host has no cgroup controller {controller}"),
                ));
            };
            self.make_v1(hierarchy)?;
        }
        self.v1_manager()?.apply(&options(resources)).map_err(|e| self.explain(&e, resources))
    }

    fn unified_manager(&self) -> Result<libcgroups::v2::manager::Manager> {
        libcgroups::v2::manager::Manager::new(self.tree.root_path.clone(), self.path())
            .map_err(|e| Error::new(Kind::Internal, e.to_string()))
    }

    fn v1_manager(&self) -> Result<libcgroups::v1::Manager> {
        libcgroups::v1::Manager::new(&self.path()).map_err(|e| Error::new(Kind::Internal, e.to_string()))
    }

    /// A refusal by libcgroups. A file that does not exist is a controller that is not enabled.
    fn explain(&self, error: &dyn std::fmt::Display, resources: &LinuxResources) -> Error {
        let text = error.to_string();
        if text.contains("os error 2") && self.exists() {
            let asked = v1_controllers(resources);
            let fields: Vec<_> = asked.iter().map(|(_, field)| *field).collect();
            return Error::unsupported(
                format!("linux.resources.{{{}}}", fields.join(",")),
                format!("a controller is missing here: {text}"),
            );
        }
        Error::new(Kind::Internal, text)
    }

    /// Makes this cgroup's directory in a v1 hierarchy.
    fn make_v1(&self, hierarchy: &V1) -> Result<()> {
        let cpuset = hierarchy.controllers.iter().any(|c| c == "cpuset");
        let mut at = hierarchy.path.clone();
        for component in &self.path {
            let parent = at.clone();
            at.push(component);
            match std::fs::create_dir(&at) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).call(|| format!("mkdir({at:?})")),
            }
            if cpuset {
                inherit_cpuset(&parent, &at)?;
            }
        }
        Ok(())
    }
}

/// The v1 controllers from which libcgroups reads statistics.
const STATISTICS: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"];

fn options(resources: &LinuxResources) -> ControllerOpt<'_> {
    ControllerOpt {
        resources,
        disable_oom_killer: resources.memory().as_ref().and_then(|m| m.disable_oom_killer()).unwrap_or(false),
        oom_score_adj: None,
        freezer_state: None,
    }
}

/// A new v1 cpuset has no CPUs, and no process may join it until it does.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), child.join(file));
        let read = |p: &Path| std::fs::read_to_string(p).call(|| format!("read({p:?})"));
        if read(&to)?.trim().is_empty() {
            let value = read(&from)?;
            std::fs::write(&to, value.trim()).call(|| format!("write({to:?}, {value:?})"))?;
        }
    }
    Ok(())
}

/// The v1 controllers that `resources` needs, each with the field that asks for it.
fn v1_controllers(resources: &LinuxResources) -> Vec<(&'static str, &'static str)> {
    let cpu = resources.cpu().as_ref();
    let cpu_time = cpu.is_some_and(|c| {
        c.shares().is_some()
            || c.quota().is_some()
            || c.period().is_some()
            || c.burst().is_some()
            || c.idle().is_some()
            || c.realtime_period().is_some()
            || c.realtime_runtime().is_some()
    });
    let cpu_set = cpu.is_some_and(|c| c.cpus().is_some() || c.mems().is_some());
    let network = resources.network().as_ref();
    [
        ("memory", "memory", resources.memory().is_some()),
        ("cpu", "cpu", cpu_time),
        ("cpuset", "cpu", cpu_set),
        ("pids", "pids", resources.pids().is_some()),
        ("blkio", "blockIO", resources.block_io().is_some()),
        ("hugetlb", "hugepageLimits", resources.hugepage_limits().as_ref().is_some_and(|l| !l.is_empty())),
        ("net_cls", "network", network.is_some_and(|n| n.class_id().is_some())),
        ("net_prio", "network", network.is_some_and(|n| n.priorities().is_some())),
        ("devices", "devices", resources.devices().as_ref().is_some_and(|d| !d.is_empty())),
    ]
    .into_iter()
    .filter(|(_, _, needed)| *needed)
    .map(|(controller, field, _)| (controller, field))
    .collect()
}

/// Enables for the children of `dir` every controller that `dir` itself has.
///
/// Source: cgroup-v2.rst, "Controlling Controllers".
pub(super) fn pass_on_controllers(dir: &OwnedFd) -> Result<()> {
    let read = |name: &str| {
        openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(super::tree::read_all)
            .call(|| format!("read({name:?})"))
    };
    let available = read("cgroup.controllers")?;
    let enabled = read("cgroup.subtree_control")?;
    for controller in available.split_whitespace() {
        if enabled.split_whitespace().any(|e| e == controller) {
            continue;
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(dir, "cgroup.subtree_control", flags, Mode::empty())
            .call(|| "openat(\"cgroup.subtree_control\")".into())?;
        // One at a time, and a refusal stands: some need conditions that a limit on another
        // controller does not (cpu with realtime tasks about). A limit that does need it is
        // refused later, by name.
        match rustix::io::write(&file, format!("+{controller}").as_bytes()) {
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}
