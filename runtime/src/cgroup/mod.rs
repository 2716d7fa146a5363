//! A container's cgroup: born in it, limited by it, killed by it, seen to be empty through it.
//!
//! ```text
//!   unified    /sys/fs/cgroup/<path>                         all of it
//!   hybrid     /sys/fs/cgroup/unified/<path>                 birth, kill, populated
//!              /sys/fs/cgroup/{memory,cpu,pids,…}/<path>     limits only, where asked for
//!   legacy     a private mount of cgroup2, and as hybrid
//! ```
//!
//! There is always one cgroup2 directory, and it alone says which processes belong to the
//! container: they are born there (`CLONE_INTO_CGROUP`) and `cgroup.kill` ends them together.
//! A v1 directory is made only where a limit needs it; a process joins it by writing `0` to
//! `tasks` itself, because another one's attach through `cgroup.procs` waits 6–18 ms for RCU.
//!
//! Nothing here is process-global, blocks (but [`Cgroup::wait_empty`]) or needs one thread: the
//! daemon fences pods with it.

mod devices;
mod devices_v1;
mod hierarchies;
mod limits;
mod resources;
mod tree;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{Mode, OFlags, mkdirat, openat};

pub use hierarchies::{Hierarchies, Layout};
pub use libcgroups::stats::{BlkioDeviceStat, MemoryData, Stats};

use tree::{collect_pids, read_all, read_event, read_populated, remove_tree, subdirectories};

use crate::error::{Call, Error, Kind, Result, Step};

/// A cgroup, by its path under every hierarchy. Cheap to clone; dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Cgroup {
    tree: Arc<Hierarchies>,
    /// Relative, of normal components only.
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup and its missing parents; already there is success.
    ///
    /// On the unified layout the parents pass on every controller they have.
    ///
    /// # Errors
    /// `Invalid` for a path with `..` or without a name; `Unsupported` without cgroup2.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Self::create_in(&Hierarchies::detect()?, path)
    }

    /// [`Cgroup::create`], in hierarchies detected before.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn create_in(tree: &Arc<Hierarchies>, path: impl AsRef<Path>) -> Result<Self> {
        let cgroup = Self::name(tree, path.as_ref())?;
        let step = || format!("create cgroup {}", cgroup.path().display());
        let mut parent =
            openat(&tree.root, ".", DIR, Mode::empty()).call(|| "open(cgroup2 root)".into()).step(step())?;
        for component in &cgroup.path {
            if tree.layout == Layout::Unified {
                limits::pass_on_controllers(&parent).step(step())?;
            }
            match mkdirat(&parent, component, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(e) => {
                    return Err(e).call(|| format!("mkdirat({component:?})")).step(step());
                }
            }
            parent = openat(&parent, component, DIR, Mode::empty())
                .call(|| format!("openat({component:?})"))
                .step(step())?;
        }
        Ok(cgroup)
    }

    /// Names an existing cgroup.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let cgroup = Self::name(&Hierarchies::detect()?, path.as_ref())?;
        cgroup.dir()?;
        Ok(cgroup)
    }

    /// Names a cgroup that may or may not exist.
    ///
    /// # Errors
    /// `Invalid` for a path with `..` or without a name.
    pub fn name(tree: &Arc<Hierarchies>, path: &Path) -> Result<Self> {
        let mut relative = PathBuf::new();
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => relative.push(name),
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(Error::invalid(
                        format!("cgroup {}", path.display()),
                        "must not contain \"..\"",
                    ));
                }
            }
        }
        if relative.as_os_str().is_empty() {
            return Err(Error::invalid("cgroup", "must not be the root"));
        }
        Ok(Self { tree: Arc::clone(tree), path: relative })
    }

    /// The path from the root of every hierarchy, absolute.
    pub fn path(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// Whether its cgroup2 directory exists.
    pub fn exists(&self) -> bool {
        self.dir().is_ok()
    }

    /// Moves a process here, in the cgroup2 hierarchy alone. Costs an RCU grace period: meant for
    /// a shim at its start, not for containers, which are born in place.
    ///
    /// # Errors
    /// `NotFound` for a process that is gone.
    pub fn attach(&self, pid: i32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
            .step(format!("move {pid} to cgroup {}", self.path().display()))
    }

    /// Kills every process in it and below, even those forking. Returns before they are gone.
    ///
    /// Before Linux 5.14 they are stopped first, and then killed one by one.
    ///
    /// # Errors
    /// The kernel's; a cgroup that does not exist is success.
    ///
    /// Source: cgroup-v2.rst, "cgroup.kill", "cgroup.freeze".
    pub fn kill(&self) -> Result<()> {
        let killed = self.write("cgroup.kill", "1");
        match killed {
            Err(e) if e.kind() == Kind::NotFound && !self.exists() => Ok(()),
            // Before Linux 5.14.
            Err(e) if e.kind() == Kind::NotFound => self.kill_each(),
            other => other,
        }
        .step(format!("kill cgroup {}", self.path().display()))
    }

    /// Kills them one by one, standing still, so that none forks meanwhile.
    fn kill_each(&self) -> Result<()> {
        use rustix::process::Signal;
        self.freeze()?;
        // What cannot stop now will not fork either.
        self.wait_frozen(STANDSTILL)?;
        let mut outcome = Ok(());
        let mut named = Vec::new();
        for pid in self.pids()? {
            named.extend(crate::pidfd::open(pid)?.map(|process| (pid, process)));
        }
        // A number given away before it was named is not in this list.
        let here = self.pids()?;
        for (pid, process) in named.iter().filter(|(pid, _)| here.contains(pid)) {
            match crate::pidfd::send_signal(process, Signal::KILL) {
                Err(e) if e.kind() != Kind::NotFound => outcome = Err(e.within(format!("process {pid}"))),
                _ => {}
            }
        }
        outcome.and(self.thaw())
    }

    /// Stops every process in it and below. Returns before they stand still: [`Cgroup::wait_frozen`] tells.
    ///
    /// # Errors
    /// `Unsupported` before Linux 5.2.
    ///
    /// Source: cgroup-v2.rst, "cgroup.freeze"; it needs no controller, so it serves hybrid hosts too.
    pub fn freeze(&self) -> Result<()> {
        self.write("cgroup.freeze", "1").step(format!("freeze cgroup {}", self.path().display()))
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// As [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.write("cgroup.freeze", "0").step(format!("thaw cgroup {}", self.path().display()))
    }

    /// Whether it was asked to stand still, be it there already or not.
    ///
    /// # Errors
    /// Only if the kernel's file cannot be read; a cgroup that does not exist is not frozen.
    pub fn freezing(&self) -> Result<bool> {
        match self.open_file("cgroup.freeze", OFlags::RDONLY) {
            Ok(fd) => Ok(read_all(fd).call(|| "read(cgroup.freeze)".into())?.trim() == "1"),
            Err(e) if e.kind() == Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether a process that joins would stand still at once: asked here, above, or in a v1 freezer hierarchy.
    ///
    /// # Errors
    /// Only if the kernel's file cannot be read.
    ///
    /// Source: freezer-subsystem.rst, "freezer.state".
    pub fn freezes_newcomers(&self) -> Result<bool> {
        let place = self.tree.v1("freezer").and_then(|freezer| self.v1_place(freezer));
        let state = match place.map(|place| std::fs::read_to_string(place.join("freezer.state"))) {
            Some(Err(e)) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).call(|| "read(freezer.state)".into());
            }
            Some(Ok(state)) => state,
            _ => String::new(),
        };
        Ok(state.trim().starts_with("FR") || self.freezing()?)
    }

    /// Waits until every process in it stands still. `Ok(false)` if the deadline passes first.
    ///
    /// # Errors
    /// Only if the kernel's file cannot be read.
    pub fn wait_frozen(&self, timeout: Duration) -> Result<bool> {
        self.wait_event(timeout, |events| read_event(events, "frozen"))
    }

    /// Whether any live process is in it or below. A cgroup that does not exist has none.
    ///
    /// # Errors
    /// Only if the kernel's file cannot be read.
    pub fn populated(&self) -> Result<bool> {
        match self.open_file("cgroup.events", OFlags::RDONLY) {
            Ok(fd) => read_populated(&mut std::fs::File::from(fd)),
            Err(e) if e.kind() == Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Waits until no live process is in it or below: the proof that fencing needs. `Ok(false)`
    /// if the deadline passes first. Sleeps in poll(2); the kernel wakes it on every change.
    ///
    /// # Errors
    /// Only if the kernel's file cannot be read.
    pub fn wait_empty(&self, timeout: Duration) -> Result<bool> {
        self.wait_event(timeout, |events| read_populated(events).map(|populated| !populated))
    }

    /// Waits until `cgroup.events` fulfils `holds`; a cgroup that does not exist fulfils everything.
    fn wait_event(
        &self,
        timeout: Duration,
        holds: impl Fn(&mut std::fs::File) -> Result<bool>,
    ) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        let mut events = match self.open_file("cgroup.events", OFlags::RDONLY) {
            Ok(fd) => std::fs::File::from(fd),
            Err(e) if e.kind() == Kind::NotFound => return Ok(true),
            Err(e) => return Err(e),
        };
        loop {
            // Reading arms the notification for the next change.
            if holds(&mut events)? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::sys("poll(cgroup.events)", e)),
            }
        }
    }

    /// Names of the cgroups directly beneath it, in any hierarchy: what a collector compares with its records.
    ///
    /// # Errors
    /// Only if a directory cannot be read; a cgroup that does not exist has none.
    pub fn children(&self) -> Result<std::collections::BTreeSet<String>> {
        let mut names = std::collections::BTreeSet::new();
        let mut add = |root: &OwnedFd| match openat(root, &self.path, DIR, Mode::empty()) {
            Ok(dir) => {
                let below = subdirectories(&dir)?;
                names.extend(below.iter().map(|name| name.to_string_lossy().into_owned()));
                Ok(())
            }
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e).call(|| format!("openat({:?})", self.path)),
        };
        add(&self.tree.root)?;
        for hierarchy in &self.tree.v1 {
            add(&hierarchy.root()?)?;
        }
        Ok(names)
    }

    /// The live processes in it and below, in the reader's PID namespace. A list to look at, not
    /// to kill by.
    ///
    /// # Errors
    /// Only if the kernel's files cannot be read; a cgroup that does not exist has none.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        match self.dir() {
            Ok(dir) => collect_pids(&dir, &mut pids)?,
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(pids)
    }

    /// Removes it and everything below, in every hierarchy, leaves first. Not there is success.
    ///
    /// # Errors
    /// `Busy` while a process is left: [`Cgroup::kill`] and [`Cgroup::wait_empty`] come first.
    /// The other hierarchies are still tried; the first error is returned.
    pub fn remove(&self) -> Result<()> {
        let mut outcome = remove_tree(&self.tree.root, &self.path);
        for hierarchy in &self.tree.v1 {
            outcome = outcome.and(remove_tree(rustix::fs::CWD, &hierarchy.path.join(&self.path)));
        }
        outcome.step(format!("remove cgroup {}", self.path().display()))
    }

    /// Removes it if no process, and no cgroup, is in it: that the kernel removes its directory is the proof. `Ok(false)`
    /// leaves it as it was.
    ///
    /// # Errors
    /// As [`Cgroup::remove`].
    pub fn remove_if_empty(&self) -> Result<bool> {
        match rustix::fs::unlinkat(&self.tree.root, &self.path, rustix::fs::AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => self.remove().map(|()| true),
            Err(rustix::io::Errno::BUSY | rustix::io::Errno::NOTEMPTY) => Ok(false),
            Err(e) => Err(e).call(|| format!("rmdir({:?})", self.path)),
        }
    }

    /// How often the kernel killed something in it for want of memory.
    ///
    /// # Errors
    /// Only if the kernel's file cannot be parsed; no memory limit means 0.
    pub fn oom_kills(&self) -> Result<u64> {
        let text = match self.tree.v1("memory") {
            Some(memory) => std::fs::read_to_string(memory.path.join(&self.path).join("memory.oom_control")),
            None => match self.open_file("memory.events", OFlags::RDONLY) {
                Ok(fd) => read_all(fd),
                Err(_) => return Ok(0),
            },
        };
        let text = text.unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.map_or(Ok(0), |n| {
            n.trim().parse().map_err(|_| Error::new(Kind::Internal, format!("memory events: {text:?}")))
        })
    }

    /// The cgroup2 directory, for `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// `NotFound` if it does not exist.
    pub fn dir(&self) -> Result<OwnedFd> {
        openat(&self.tree.root, &self.path, DIR, Mode::empty())
            .call(|| format!("openat(cgroup2, {:?})", self.path))
    }

    /// Its `cgroup.procs`, to which a process writes `0` to move itself where the kernel refuses
    /// `CLONE_INTO_CGROUP`.
    pub(crate) fn procs(&self) -> Result<OwnedFd> {
        self.open_file("cgroup.procs", OFlags::WRONLY)
    }

    /// In each v1 hierarchy the nearest of this cgroup and its parents that exists, because a
    /// limit was set on it: where a process of this cgroup belongs, and what it may see.
    pub(crate) fn v1_places(&self) -> Vec<(String, PathBuf)> {
        let named = |h: &hierarchies::V1| Some((h.controllers.join(","), self.v1_place(h)?));
        self.tree.v1.iter().filter_map(named).collect()
    }

    fn v1_place(&self, hierarchy: &hierarchies::V1) -> Option<PathBuf> {
        let paths = self.path.ancestors().filter(|p| !p.as_os_str().is_empty());
        let cpuset = hierarchy.controllers.iter().any(|controller| controller == "cpuset");
        // One without CPUs, as a new one is, limits nobody and takes nobody. Source: cpusets(7), "ENOSPC".
        let takes = |place: &PathBuf| match cpuset {
            true => {
                std::fs::read_to_string(place.join("cpuset.cpus")).is_ok_and(|cpus| !cpus.trim().is_empty())
            }
            false => place.exists(),
        };
        paths.map(|p| hierarchy.path.join(p)).find(takes)
    }

    /// Its cgroup2 directory, as mounted; meaningless on the legacy layout.
    pub(crate) fn unified_path(&self) -> PathBuf {
        self.tree.root_path.join(&self.path)
    }

    /// Where the cgroup2 hierarchy is mounted; meaningless on the legacy layout.
    pub(crate) fn unified_root(&self) -> PathBuf {
        self.tree.root_path.clone()
    }

    /// How the host arranges its cgroups.
    pub fn layout(&self) -> Layout {
        self.tree.layout
    }

    fn open_file(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        openat(&self.tree.root, self.path.join(name), flags | OFlags::CLOEXEC, Mode::empty())
            .call(|| format!("openat(cgroup2, {:?})", self.path.join(name)))
    }

    fn write(&self, name: &str, value: &str) -> Result<()> {
        let fd = self.open_file(name, OFlags::WRONLY)?;
        rustix::io::write(fd, value.as_bytes())
            .call(|| format!("write({:?}, {value:?})", self.path.join(name)))
            .map(drop)
    }
}

/// How long processes about to be killed one by one may take to stand still.
const STANDSTILL: Duration = Duration::from_secs(2);

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// The `tasks` files of [`Cgroup::v1_places`], to which a process writes `0`.
pub(crate) fn tasks_files(places: &[(String, PathBuf)]) -> Result<Vec<OwnedFd>> {
    let open = |(_, place): &(String, PathBuf)| {
        let file = place.join("tasks");
        rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .call(|| format!("open({file:?})"))
    };
    places.iter().map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        let Ok(tree) = Hierarchies::detect() else {
            eprintln!("SKIP: no cgroups here");
            return;
        };
        let path = |p: &str| Cgroup::name(&tree, Path::new(p)).map(|c| c.path());
        assert_eq!(path("/a/./b").unwrap(), Path::new("/a/b"));
        assert_eq!(path("a").unwrap(), Path::new("/a"));
        assert_eq!(path("/a/../b").unwrap_err().kind(), Kind::Invalid);
        assert_eq!(path("/").unwrap_err().kind(), Kind::Invalid);
    }
}
