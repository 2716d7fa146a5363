//! The kinds of namespaces, and what a container does about each: make one, join one, share.
//!
//! A namespace belongs to the user namespace it was made in, and joining it takes rights over that one. So where a user
//! namespace comes in, there is an order, and [`Entry`] is that order: first what the caller may join, then the
//! user namespace, then what only its owner may join, then what is new and is to belong to it.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::libc;
use oci_spec::runtime::LinuxNamespaceType;

use crate::error::{Call, Kind as ErrorKind, Result, Step};
use crate::plan::IdMap;
use crate::protocol::{Ask, Channel};
use crate::sys;

/// A kind of namespace. Source: namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Users, groups and capabilities.
    User,
    /// Mounts.
    Mount,
    /// Host and domain name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Process ids.
    Pid,
    /// Network devices, addresses, routes, ports.
    Network,
    /// The root of the cgroup tree as seen from inside.
    Cgroup,
    /// The monotonic and the boot-time clock.
    Time,
}

/// libc lacks it for some C libraries. Source: include/uapi/linux/sched.h.
const CLONE_NEWTIME: i32 = 0x80;

impl Kind {
    /// Every kind, in the order in which they are joined: rights first.
    pub const ALL: [Kind; 8] =
        [Kind::User, Kind::Mount, Kind::Uts, Kind::Ipc, Kind::Pid, Kind::Network, Kind::Cgroup, Kind::Time];

    /// The `CLONE_NEW*` bit.
    pub fn flag(self) -> i32 {
        match self {
            Kind::User => libc::CLONE_NEWUSER,
            Kind::Mount => libc::CLONE_NEWNS,
            Kind::Uts => libc::CLONE_NEWUTS,
            Kind::Ipc => libc::CLONE_NEWIPC,
            Kind::Pid => libc::CLONE_NEWPID,
            Kind::Network => libc::CLONE_NEWNET,
            Kind::Cgroup => libc::CLONE_NEWCGROUP,
            Kind::Time => CLONE_NEWTIME,
        }
    }

    /// The name under `/proc/<pid>/ns`.
    pub fn file_name(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Mount => "mnt",
            Kind::Uts => "uts",
            Kind::Ipc => "ipc",
            Kind::Pid => "pid",
            Kind::Network => "net",
            Kind::Cgroup => "cgroup",
            Kind::Time => "time",
        }
    }

    /// Its name in the OCI spec.
    pub fn spec_name(self) -> &'static str {
        match self {
            Kind::Mount => "mount",
            Kind::Network => "network",
            other => other.file_name(),
        }
    }

    /// The kind that the OCI spec names.
    pub fn from_spec(typ: LinuxNamespaceType) -> Self {
        match typ {
            LinuxNamespaceType::User => Kind::User,
            LinuxNamespaceType::Mount => Kind::Mount,
            LinuxNamespaceType::Uts => Kind::Uts,
            LinuxNamespaceType::Ipc => Kind::Ipc,
            LinuxNamespaceType::Pid => Kind::Pid,
            LinuxNamespaceType::Network => Kind::Network,
            LinuxNamespaceType::Cgroup => Kind::Cgroup,
            LinuxNamespaceType::Time => Kind::Time,
        }
    }
}

/// What a container does about one kind of namespace. A kind not mentioned is shared with the
/// process that creates the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A namespace of its own.
    New,
    /// The one that this file names, for example `/proc/42/ns/net`.
    Path(PathBuf),
}

/// How a first process gets into namespaces after it was born.
#[derive(Debug)]
pub(crate) struct Entry {
    /// To join, but for the PID namespace, in which the process is born, and the user namespace.
    pub(crate) join: Vec<(Kind, OwnedFd)>,
    /// Its user namespace, if that is another than its maker's.
    pub(crate) user: Option<UserNamespace>,
    /// `CLONE_NEW*` bits of those to make once in the user namespace, so that they belong to it.
    pub(crate) make: i32,
}

/// Another user namespace than its maker's.
#[derive(Debug)]
pub(crate) enum UserNamespace {
    /// The new one that it was born in, with all that belongs to it.
    Own,
    /// To be made.
    New,
    /// To be joined.
    Joined(OwnedFd),
}

impl Entry {
    /// Enters them all. A PID namespace among those to make is that of children only: see [`Entry::reborn`].
    ///
    /// Source: user_namespaces(7), "Interaction of user namespaces and other types of namespaces".
    pub(crate) fn enter(&self, channel: &Channel, uids: &[IdMap], gids: &[IdMap]) -> Result<()> {
        let mut later = Vec::new();
        for (kind, fd) in &self.join {
            match sys::setns(fd.as_fd(), kind.flag()) {
                // Its owner may be the user namespace that is entered next.
                Err(e) if self.user.is_some() && e.kind() == ErrorKind::Denied => later.push((kind, fd)),
                other => other.step(format!("join the {} namespace", kind.file_name()))?,
            }
        }
        let Some(user) = &self.user else {
            return Ok(());
        };
        // While it may be: inside, setgroups may be denied, and the caller's groups would stay.
        nix::unistd::setgroups(&[]).call(|| "setgroups([])".into())?;
        match user {
            UserNamespace::Own => return become_root(uids, gids),
            UserNamespace::Joined(fd) => {
                sys::setns(fd.as_fd(), Kind::User.flag()).step("join the user namespace")?;
                become_root(&[], &[])?;
            }
            UserNamespace::New => {
                unshare(Kind::User.flag())?;
                channel.ask(Ask::MapIds)?;
                become_root(uids, gids)?;
            }
        }
        for (kind, fd) in later {
            sys::setns(fd.as_fd(), kind.flag()).step(format!("join the {} namespace", kind.file_name()))?;
        }
        if self.make != 0 { unshare(self.make) } else { Ok(()) }
    }

    /// Whether one of this kind is joined.
    pub(crate) fn joins(&self, kind: Kind) -> bool {
        self.join.iter().any(|(k, _)| *k == kind)
    }

    /// Whether the process must be born again, to be in the PID namespace that it made.
    pub(crate) fn reborn(&self) -> bool {
        self.make & Kind::Pid.flag() != 0
    }
}

/// In a user namespace: the user and group that the mounts below are made as, which is 0 unless the maps, where they are
/// known, have no 0.
pub(crate) fn become_root(uids: &[IdMap], gids: &[IdMap]) -> Result<()> {
    let (uid, gid) = (lowest(uids), lowest(gids));
    let (user, group) = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(gid));
    // Another user than 0 keeps its capabilities over this namespace only so.
    nix::sys::prctl::set_keepcaps(true).call(|| "prctl(PR_SET_KEEPCAPS, 1)".into())?;
    nix::unistd::setresgid(group, group, group).call(|| format!("setresgid({gid})"))?;
    nix::unistd::setresuid(user, user, user).call(|| format!("setresuid({uid})"))
}

fn lowest(map: &[IdMap]) -> u32 {
    map.iter().map(|line| line.inside).min().unwrap_or(0)
}

/// Makes namespaces, named by `CLONE_NEW*` bits, for this process.
pub(crate) fn unshare(kinds: i32) -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::from_bits_retain(kinds))
        .call(|| format!("unshare({kinds:#x})"))
}

/// A time namespace of its own, its clocks set. The parent sets them, which takes rights on the host; that must be done
/// before the first process is in it. `proc` is this process's own procfs.
///
/// Source: time_namespaces(7).
pub(crate) fn enter_time(proc: BorrowedFd<'_>, offsets: bool, channel: &Channel) -> Result<()> {
    use rustix::fs::{Mode, OFlags, openat};
    unshare(CLONE_NEWTIME).step("make a time namespace")?;
    if offsets {
        channel.ask(Ask::TimeOffsets)?;
    }
    // The link's target is no path, and this procfs nobody else can have touched.
    let link = "self/ns/time_for_children";
    let fd = openat(proc, link, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("openat(proc, {link:?})"))?;
    sys::setns(fd.as_fd(), CLONE_NEWTIME).step("join the time namespace")
}
