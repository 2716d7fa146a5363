//! Limits, as resources.rs plans them, and statistics, which libcgroups reads.

use std::os::fd::OwnedFd;

use libcgroups::common::CgroupManager;
use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags, mkdirat, openat};

use super::resources::{Limits, Observed, Version, Write};
use super::{Cgroup, Layout, devices, hierarchies::V1};
use crate::error::{Call, Error, Kind, Result, Step};

impl Cgroup {
    /// Sets every limit that `resources` has; those it lacks stay as they are. Returns what the host's cgroups have no
    /// such thing for, and other runtimes pass over.
    ///
    /// On v1 hierarchies this makes the directories that it needs, so it comes before the
    /// processes do.
    ///
    /// # Errors
    /// `Unsupported`, naming the field, where the host lacks the controller or file; `Invalid` or the kernel's
    /// error, naming the file, for a value it refuses.
    pub fn apply_limits(&self, resources: &LinuxResources) -> Result<Vec<String>> {
        self.apply(resources).step(format!("limit cgroup {}", self.path().display()))
    }

    fn apply(&self, resources: &LinuxResources) -> Result<Vec<String>> {
        unified_names(resources)?;
        let unified = self.tree.layout == Layout::Unified;
        let version = if unified { Version::V2 } else { Version::V1 };
        let limits = Limits::plan(resources, version, &self.observe(resources, version))?;
        if unified && let Some(rules) = resources.devices().as_ref().filter(|r| !r.is_empty()) {
            let program = devices::program(rules)?;
            crate::sys::attach_device_program(std::os::fd::AsFd::as_fd(&self.dir()?), &program)
                .step("attach device rules")?;
        }
        if let Some(most) = limits.memory_bytes_at_most {
            self.check_usage(most)?;
        }
        let mut directories = Vec::new();
        let mut refused = Vec::new();
        // Rules of devices are many writes to one file.
        let mut last = None;
        for write in &limits.writes {
            let dir = self.directory_of(write, &mut directories)?;
            match self.write_limit(dir, write, &mut last) {
                // Which of two values the kernel takes first depends on those before: memory and swap, period and
                // quota. So what does not fit now is tried again when the others are in.
                Err(e) if matches!(e.errno(), Some(Errno::EINVAL | Errno::EBUSY)) => refused.push(write),
                other => other?,
            }
        }
        for write in refused {
            self.write_limit(self.directory_of(write, &mut directories)?, write, &mut last)?;
        }
        Ok(limits.warnings)
    }

    /// A period alone must not take the quota away.
    fn observe(&self, resources: &LinuxResources, version: Version) -> Observed {
        let period_alone = |c: &oci_spec::runtime::LinuxCpu| c.period().is_some() && c.quota().is_none();
        if version == Version::V1 || !resources.cpu().as_ref().is_some_and(period_alone) {
            return Observed::default();
        }
        let text =
            self.open_file("cpu.max", OFlags::RDONLY).ok().and_then(|fd| super::tree::read_all(fd).ok());
        Observed { quota: text.and_then(|t| t.split(' ').next().map(str::to_string)) }
    }

    fn check_usage(&self, most: i64) -> Result<()> {
        let text = super::tree::read_all(self.open_file("memory.current", OFlags::RDONLY)?)
            .call(|| "read(memory.current)".into())?;
        match text.trim().parse::<i64>() {
            Ok(used) if used > most => {
                Err(Error::new(Kind::Busy, format!("linux.resources.memory.limit: {used} bytes are in use")))
            }
            _ => Ok(()),
        }
    }

    /// The directory in which a limit is written, made on v1.
    fn directory_of<'a>(&self, write: &Write, known: &'a mut Vec<(String, OwnedFd)>) -> Result<&'a OwnedFd> {
        if let Some(at) = known.iter().position(|(controller, _)| *controller == write.controller) {
            return Ok(&known[at].1);
        }
        let dir = match self.tree.layout {
            Layout::Unified => self.dir()?,
            Layout::Hybrid | Layout::Legacy => {
                let Some(hierarchy) = self.tree.v1(&write.controller) else {
                    return Err(Error::unsupported(
                        format!("linux.resources.{}", write.field),
                        format!("this host has no cgroup controller {}", write.controller),
                    ));
                };
                self.make_v1(hierarchy)?
            }
        };
        known.push((write.controller.clone(), dir));
        Ok(&known[known.len() - 1].1)
    }

    /// Writes one value; `last` is the file written last, which may be the same.
    fn write_limit<'a>(
        &self,
        dir: &OwnedFd,
        write: &'a Write,
        last: &mut Option<(&'a str, &'a str, OwnedFd)>,
    ) -> Result<()> {
        for (file, value) in &write.ways {
            let name = (write.controller.as_str(), file.as_str());
            let fd = match last.take() {
                Some((controller, file, fd)) if (controller, file) == name => fd,
                _ => match openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
                    Err(rustix::io::Errno::NOENT) => continue,
                    other => other.call(|| format!("openat(cgroup, {file:?})"))?,
                },
            };
            let written = rustix::io::write(&fd, value.as_bytes())
                .call(|| format!("write({file:?}, {value:?})"))
                .step(format!("linux.resources.{}", write.field));
            *last = Some((name.0, name.1, fd));
            return written.map(drop);
        }
        if write.optional {
            return Ok(());
        }
        let (controller, files) = (&write.controller, write.ways.iter().map(|(file, _)| file.as_str()));
        let enabled = self.tree.layout != Layout::Unified
            || read_in(dir, "cgroup.controllers")?.split_whitespace().any(|c| c == controller);
        let reason = match enabled {
            true => format!("this kernel has no {}", files.collect::<Vec<_>>().join(" or ")),
            false => format!("the cgroup controller {controller} is not enabled here"),
        };
        Err(Error::unsupported(format!("linux.resources.{}", write.field), reason))
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

    fn unified_manager(&self) -> Result<libcgroups::v2::manager::Manager> {
        libcgroups::v2::manager::Manager::new(self.tree.root_path.clone(), self.path())
            .map_err(|e| Error::new(Kind::Internal, e.to_string()))
    }

    fn v1_manager(&self) -> Result<libcgroups::v1::Manager> {
        libcgroups::v1::Manager::new(&self.path()).map_err(|e| Error::new(Kind::Internal, e.to_string()))
    }

    /// Makes this cgroup's directory in a v1 hierarchy.
    fn make_v1(&self, hierarchy: &V1) -> Result<OwnedFd> {
        let cpuset = hierarchy.controllers.iter().any(|c| c == "cpuset");
        let mut at = hierarchy.root()?;
        for component in &self.path {
            match mkdirat(&at, component, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(e).call(|| format!("mkdirat({:?}, {component:?})", hierarchy.path)),
            }
            let child = openat(&at, component, super::DIR, Mode::empty())
                .call(|| format!("openat({:?}, {component:?})", hierarchy.path))?;
            if cpuset {
                inherit_cpuset(&at, &child)?;
            }
            at = child;
        }
        Ok(at)
    }
}

/// Each is the name of a file of the cgroup's own, and one that limits: not one that moves or ends processes.
fn unified_names(resources: &LinuxResources) -> Result<()> {
    for name in resources.unified().iter().flat_map(|unified| unified.keys()) {
        let plain = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
        if !plain
            || ["cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze"].contains(&name.as_str())
        {
            return Err(Error::invalid(
                "linux.resources.unified",
                format!("{name:?} is no limit of a cgroup"),
            ));
        }
    }
    Ok(())
}

/// The v1 controllers from which libcgroups reads statistics.
const STATISTICS: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"];

/// A new v1 cpuset has no CPUs, and no process may join it until it does.
fn inherit_cpuset(parent: &OwnedFd, child: &OwnedFd) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read_in(child, file)?.trim().is_empty() {
            let value = read_in(parent, file)?;
            openat(child, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|fd| rustix::io::write(fd, value.trim().as_bytes()))
                .call(|| format!("write({file:?}, {value:?})"))?;
        }
    }
    Ok(())
}

fn read_in(dir: &OwnedFd, name: &str) -> Result<String> {
    openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(std::io::Error::from)
        .and_then(super::tree::read_all)
        .call(|| format!("read({name:?})"))
}

/// Enables for the children of `dir` every controller that `dir` itself has.
///
/// Source: cgroup-v2.rst, "Controlling Controllers".
pub(super) fn pass_on_controllers(dir: &OwnedFd) -> Result<()> {
    let available = read_in(dir, "cgroup.controllers")?;
    let enabled = read_in(dir, "cgroup.subtree_control")?;
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
