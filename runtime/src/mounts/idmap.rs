//! Mounts that show other owners than the files have, and sources that only the caller can reach.
//!
//! An ID-mapped mount needs rights over the filesystem, which a process in a user namespace lacks, and the paths of the
//! host may be closed to that namespace's root user. So the container's first process asks its parent (`Ask::Source`),
//! which makes the mount in the container's mount namespace: what the container has mounted so far is seen, and flags
//! that are locked there stay so.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::libc;
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::api;
use super::options::{IdMapPlan, MountKind, MountPlan};
use crate::container::write_id_maps;
use crate::error::{Call, Error, Kind, Result, Step};
use crate::plan::{IdMap, Plan};
use crate::protocol::{Ask, Channel, Order, Report};
use crate::sys::{self, Forked, MountAttr};

/// Source: include/uapi/linux/mount.h.
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// The parent's half: a detached copy of the source of the plan's mount number `index`, ID-mapped if that is asked for,
/// as it is in the mount namespace of the process that `pidfd` names.
///
/// # Errors
/// `Unsupported` without the mount API; `EINVAL` from mount_setattr for a filesystem that knows no ID mappings.
///
/// Source: mount_setattr(2), "ID-mapped mounts".
pub(crate) fn source(plan: &Plan, child: (i32, &OwnedFd), index: usize) -> Result<OwnedFd> {
    let asked = || Error::new(Kind::Internal, format!("the new process asked for mount {index}"));
    let mount = plan.mounts.get(index).ok_or_else(asked)?;
    let MountKind::Bind { source, recursive } = &mount.kind else {
        return Err(asked());
    };
    let step = format!("mount {} on {}", source.display(), mount.destination.display());
    make(mount, source, *recursive, child).step(step)
}

fn make(mount: &MountPlan, source: &Path, recursive: bool, (pid, pidfd): (i32, &OwnedFd)) -> Result<OwnedFd> {
    if !sys::has_mount_api() {
        return Err(Error::unsupported("an ID-mapped mount", "mount_setattr(2) is missing"));
    }
    // The helper's working directory is not the caller's any more.
    let path = std::path::absolute(source).call(|| format!("realpath({source:?})"))?;
    let namespace = mount.idmap.as_ref().map(|idmap| user_namespace_for(pid, idmap)).transpose()?;
    let (ours, theirs) = Channel::pair()?;
    let helper = || -> Result<OwnedFd> {
        sys::setns(pidfd.as_fd(), libc::CLONE_NEWNS)?;
        let tree = api::clone_tree(CWD, &path, recursive)?;
        if let (Some(namespace), Some(idmap)) = (&namespace, &mount.idmap) {
            let userns_fd = namespace.as_raw_fd() as u64;
            let attr = MountAttr { set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() };
            sys::mount_setattr(tree.as_fd(), idmap.recursive, attr).step("map IDs")?;
        }
        Ok(tree)
    };
    match sys::clone3(0, None).step("make a helper")? {
        Forked::Child => {
            drop(ours);
            let sent = match helper() {
                Ok(tree) => theirs.send(&Report::ready(Vec::new()), Some(tree.as_fd())),
                Err(error) => theirs.send(&Report::failed(error), None),
            };
            // If nothing was sent the other end sees the end of file.
            sys::exit_now(i32::from(sent.is_err()))
        }
        Forked::Parent { pidfd, .. } => {
            drop(theirs);
            let answer = ours.receive::<Report>();
            reap(&pidfd)?;
            match answer? {
                Some((Report::Ready { .. }, Some(tree))) => Ok(tree),
                Some((Report::Failed(error), _)) => Err(error),
                _ => Err(Error::new(Kind::Internal, "the helper died")),
            }
        }
    }
}

/// The child's half.
pub(super) fn ask(channel: &Channel, index: usize) -> Result<OwnedFd> {
    let none = || Error::new(Kind::Internal, "no mount in the answer to a mount asked for");
    channel.ask(Ask::Source(index))?.ok_or_else(none)
}

/// The user namespace whose mappings the mount takes: without any of its own, that of the container.
fn user_namespace_for(pid: i32, idmap: &IdMapPlan) -> Result<OwnedFd> {
    if !idmap.uids.is_empty() {
        return user_namespace(&idmap.uids, &idmap.gids);
    }
    let path = format!("/proc/{pid}/ns/user");
    open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).call(|| format!("open({path:?})"))
}

/// A user namespace with these mappings and no process: the one it was made with is gone when this returns.
fn user_namespace(uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd> {
    let (ours, theirs) = Channel::pair()?;
    match sys::clone3(libc::CLONE_NEWUSER as u64, None).step("make a user namespace")? {
        Forked::Child => {
            drop(ours);
            // Nothing is ever sent: the other end closes.
            match theirs.receive::<Order>() {
                Ok(_) | Err(_) => sys::exit_now(0),
            }
        }
        Forked::Parent { pid, pidfd } => {
            drop(theirs);
            let path = format!("/proc/{pid}/ns/user");
            let namespace = write_id_maps(pid, uids, gids).and_then(|()| {
                open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .call(|| format!("open({path:?})"))
            });
            drop(ours);
            reap(&pidfd)?;
            namespace
        }
    }
}

fn reap(pidfd: &OwnedFd) -> Result<()> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.call(|| "waitid(P_PIDFD)".into()).map(drop),
        }
    }
}

impl IdMapPlan {
    /// Where the mappings come from is known, and there is something to map.
    pub(super) fn check(&self, mount: &MountPlan) -> Result<()> {
        if !matches!(mount.kind, MountKind::Bind { .. }) {
            return Err(Error::invalid("uidMappings", "only bind mounts can be ID-mapped"));
        }
        if self.uids.is_empty() != self.gids.is_empty() {
            return Err(Error::invalid("uidMappings, gidMappings", "each needs the other"));
        }
        Ok(())
    }
}
