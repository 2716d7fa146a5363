//! Which cgroup hierarchies this host has, and where.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::error::{Call, Error, Result, Step};

/// How a host arranges its cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// cgroup2 alone.
    Unified,
    /// v1 for limits, and a cgroup2 tree beside it.
    Hybrid,
    /// v1 alone; the cgroup2 tree is mounted privately, out of sight.
    Legacy,
}

/// The cgroup hierarchies of this host.
#[derive(Debug)]
pub struct Hierarchies {
    pub(super) layout: Layout,
    /// The cgroup2 root.
    pub(super) root: OwnedFd,
    /// Where the cgroup2 root is mounted; empty for a private mount.
    pub(super) root_path: PathBuf,
    pub(super) v1: Vec<V1>,
}

/// A mounted v1 hierarchy.
#[derive(Debug)]
pub(crate) struct V1 {
    pub(super) controllers: Vec<String>,
    pub(super) path: PathBuf,
}

impl V1 {
    pub(super) fn root(&self) -> Result<OwnedFd> {
        open(&self.path, super::DIR, Mode::empty()).call(|| format!("open({:?})", self.path))
    }
}

const CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "net_cls",
    "net_prio",
    "hugetlb",
    "perf_event",
    "rdma",
    "misc",
];

impl Hierarchies {
    /// Reads this process's mount table.
    ///
    /// # Errors
    /// `Unsupported` where cgroup2 is neither mounted nor mountable.
    pub fn detect() -> Result<Arc<Self>> {
        let file = "/proc/self/mountinfo";
        let table = open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(super::tree::read_all)
            .call(|| format!("read({file:?})"))?;
        let (unified, v1) = parse(&table);
        let layout = match (&unified, v1.is_empty()) {
            (Some(_), true) => Layout::Unified,
            (Some(_), false) => Layout::Hybrid,
            (None, _) => Layout::Legacy,
        };
        let (root, root_path) = match unified {
            Some(path) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let root = open(&path, flags, Mode::empty()).call(|| format!("open({path:?})"))?;
                (root, path)
            }
            None => (private_mount()?, PathBuf::new()),
        };
        Ok(Arc::new(Self { layout, root, root_path, v1 }))
    }

    /// How this host arranges its cgroups.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The v1 hierarchy with this controller.
    pub(super) fn v1(&self, controller: &str) -> Option<&V1> {
        self.v1.iter().find(|h| h.controllers.iter().any(|c| c == controller))
    }
}

/// A cgroup2 mount that nobody else sees.
///
/// In the host's cgroup namespace each mount sets the flags of the whole hierarchy anew, and waits 10 ms for RCU doing
/// so (`cgroup_favor_dynmods`); in another one it does not. The root that is mounted is then the cgroup of whoever made
/// the namespace: that must be the hierarchy's own.
///
/// Source: cgroup_namespaces(7); kernel/cgroup/cgroup.c, `cgroup_get_tree`, Linux 6.18.
fn private_mount() -> Result<OwnedFd> {
    let mount = || -> rustix::io::Result<OwnedFd> {
        let fs = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&fs)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    let mounted = match in_root() {
        true => in_own_namespace(mount)?,
        false => mount(),
    };
    mounted
        .call(|| "fsmount(cgroup2)".into())
        .step("no cgroup2 is mounted, and none can be")
        .map_err(|e| Error::unsupported("cgroup", e))
}

/// Whether this thread is in the root of the cgroup2 hierarchy. Source: cgroups(7), "/proc/pid/cgroup".
fn in_root() -> bool {
    let own = std::fs::read_to_string("/proc/thread-self/cgroup").unwrap_or_default();
    own.lines().any(|line| line == "0::/")
}

/// Does something in a cgroup namespace of its own, and goes back.
fn in_own_namespace<T>(act: impl FnOnce() -> T) -> Result<T> {
    let path = "/proc/thread-self/ns/cgroup";
    let before =
        open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).call(|| format!("open({path:?})"))?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
        .call(|| "unshare(CLONE_NEWCGROUP)".into())?;
    let done = act();
    crate::sys::setns(before.as_fd(), nix::libc::CLONE_NEWCGROUP).step("return to the cgroup namespace")?;
    Ok(done)
}

/// The cgroup2 mount point and the v1 hierarchies in a mountinfo table. Of several mounts of one
/// hierarchy the first that shows its root counts.
fn parse(table: &str) -> (Option<PathBuf>, Vec<V1>) {
    let mut unified = None;
    let mut v1: Vec<V1> = Vec::new();
    for line in table.lines() {
        let Some((mount, fs)) = line.split_once(" - ") else {
            continue;
        };
        let mut mount = mount.split(' ').skip(3);
        let (Some("/"), Some(point)) = (mount.next(), mount.next()) else {
            continue;
        };
        let mut fs = fs.split(' ');
        let (fs_type, options) = (fs.next(), fs.nth(1).unwrap_or_default());
        let path = Path::new(point);
        match fs_type {
            Some("cgroup2") if unified.is_none() => unified = Some(path.to_path_buf()),
            Some("cgroup") => {
                let controllers: Vec<String> = options
                    .split(',')
                    .filter(|option| CONTROLLERS.contains(option))
                    .map(str::to_string)
                    .collect();
                let known = |h: &V1| h.controllers == controllers;
                if !controllers.is_empty() && !v1.iter().any(known) {
                    v1.push(V1 { controllers, path: path.to_path_buf() });
                }
            }
            _ => {}
        }
    }
    (unified, v1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &str, unified: Option<&str>, v1: &[(&str, &str)]) {
        let (found, hierarchies) = parse(table);
        assert_eq!(found.as_deref(), unified.map(Path::new));
        let found: Vec<(String, PathBuf)> =
            hierarchies.iter().map(|h| (h.controllers.join(","), h.path.clone())).collect();
        let expected: Vec<(String, PathBuf)> =
            v1.iter().map(|(c, p)| (c.to_string(), PathBuf::from(p))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn mount_tables() {
        check("", None, &[]);
        check(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate",
            Some("/sys/fs/cgroup"),
            &[],
        );
        check(
            "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
             31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n\
             32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             34 30 0:28 /docker/1 /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n\
             35 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
            Some("/sys/fs/cgroup/unified"),
            &[("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"), ("memory", "/sys/fs/cgroup/memory")],
        );
    }
}
