//! The kinds of namespaces, and what a container does about each: make one, join one, share.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::libc;
use oci_spec::runtime::LinuxNamespaceType;

use crate::error::{Error, Result};

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
}

impl Kind {
    /// Every kind, in the order in which they are joined: rights first.
    pub const ALL: [Kind; 7] =
        [Kind::User, Kind::Mount, Kind::Uts, Kind::Ipc, Kind::Pid, Kind::Network, Kind::Cgroup];

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
    ///
    /// # Errors
    /// `Unsupported` for time namespaces.
    pub fn from_spec(typ: LinuxNamespaceType) -> Result<Self> {
        Ok(match typ {
            LinuxNamespaceType::User => Kind::User,
            LinuxNamespaceType::Mount => Kind::Mount,
            LinuxNamespaceType::Uts => Kind::Uts,
            LinuxNamespaceType::Ipc => Kind::Ipc,
            LinuxNamespaceType::Pid => Kind::Pid,
            LinuxNamespaceType::Network => Kind::Network,
            LinuxNamespaceType::Cgroup => Kind::Cgroup,
            LinuxNamespaceType::Time => {
                return Err(Error::unsupported("linux.namespaces: time", "time namespaces are not offered"));
            }
        })
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

/// A namespace to join.
#[derive(Debug)]
pub struct Joined {
    /// Its kind.
    pub kind: Kind,
    /// An open `/proc/<pid>/ns/…` file or a pin of one.
    pub fd: OwnedFd,
}
