//! Detached mounts of volumes, for containers.
#![forbid(unsafe_code)]

use super::record::{Backing, Claim, Record};
use super::{DATA_DIR, IMAGE_FILE, Lock, check_owner, mark, open_image};
use crate::error::Context;
use crate::sys::{self, MountAttributes, mount_setattr};
use crate::{Error, Kind, ext4, loopfs, path};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree,
    unmount,
};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What a container may do with a bind mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BindAccess {
    /// Read and write.
    ReadWrite,
    /// Read only, mounts beneath included.
    ReadOnly,
}

/// A private, detached copy of the mount tree at a path that we trust: the host's `path` is not affected by
/// what the container does to its mounts, nor the other way round.
///
/// # Errors
/// `NotFound`; `Denied` without `CAP_SYS_ADMIN`.
///
/// Source: open_tree(2), mount_setattr(2).
pub fn bind_fd(path: &Path, access: BindAccess) -> Result<OwnedFd, Error> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(rustix::fs::CWD, path, flags)
        .context(|| format!("open_tree({}, OPEN_TREE_CLONE|AT_RECURSIVE)", path.display()))?;
    seal(tree, access)
}

/// As [`bind_fd`] for `sub` beneath a volume at `root`, resolved so that no link leads out; made if missing.
///
/// # Errors
/// As [`bind_fd`]; `Invalid` or `Denied` for paths that try to leave.
pub fn bind_sub_fd(root: &Path, sub: &Path, access: BindAccess) -> Result<OwnedFd, Error> {
    let root = path::open_dir(root)?;
    seal(clone_tree(beneath(root.as_fd(), Some(sub))?.as_fd())?, access)
}

/// As [`bind_sub_fd`], for the data of a claim's volume: `source` is what [`super::Volumes::ensure`] answered. Checks
/// that the volume, and what it finds inside, is the claim's.
///
/// May put the calling thread into a mount namespace of its own: call it in a process that makes one container.
///
/// # Errors
/// `Conflict` if the volume or its data is another's, or a newer epoch's; the kernel's answer.
pub fn claimed_fd(
    source: &Path,
    claim: &Claim,
    sub: Option<&Path>,
    access: BindAccess,
) -> Result<OwnedFd, Error> {
    let (home, lock, record) = claimed(source, claim)?;
    match &record.backing {
        Backing::Directory { marked, .. } | Backing::ProjectQuota { marked, .. } => {
            let root = path::open_dir(&home.join(DATA_DIR))?;
            if *marked {
                mark::check(&home.join(DATA_DIR), &claim.uid)?;
            }
            seal(clone_tree(beneath(root.as_fd(), sub)?.as_fd())?, access)
        }
        Backing::Loop { .. } => {
            let mount = mount_image(home, &record, claim)?;
            drop(lock);
            let data = path::resolve(mount.as_fd(), Path::new(ext4::DATA_DIR))?;
            let at = beneath(data.as_fd(), sub)?;
            match clone_tree(at.as_fd()) {
                Err(error) if error.kind() == Kind::Invalid => {
                    clone_attached(mount, home, sub).and_then(|tree| seal(tree, access))
                }
                other => seal(other?, access),
            }
        }
    }
}

/// A mount of a claim's image, with its limit in force. The caller holds the volume's lock.
pub(super) fn mount_image(home: &Path, record: &Record, claim: &Claim) -> Result<OwnedFd, Error> {
    let Backing::Loop { usable_blocks } = record.backing else {
        return Err(Error::new(Kind::Internal, format!("{} has no image", home.display())));
    };
    let image = open_image(home)?;
    mark::check_image(&image, &claim.uid)
        .map_err(|error| Error::caused(home.join(IMAGE_FILE).display().to_string(), error))?;
    let device = loopfs::attach(&image)?;
    let mount = device.mount()?;
    let reserve = super::reserve(usable_blocks, record.size_bytes);
    if reserve > 0 {
        // Nobody has this mount yet: there is no moment without the limit.
        device.reserve(reserve)?;
    }
    Ok(mount)
}

fn claimed<'a>(source: &'a Path, claim: &Claim) -> Result<(&'a Path, Lock, Record), Error> {
    let home = source.parent().unwrap_or(Path::new("/"));
    let lock = Lock::take(home)?;
    let record = Record::read(home)?;
    let name = home.file_name().unwrap_or_default().to_string_lossy();
    match &record.claim {
        Some(owner) => check_owner(&name, owner, claim)?,
        None => return Err(Error::new(Kind::Conflict, format!("volume {name} belongs to no claim"))),
    }
    Ok((home, lock, record))
}

/// Before Linux 6.15 a part of a mount can be cloned only if the mount is attached in the caller's namespace: it is, for
/// a moment, over the volume's own directory, in a namespace where nobody looks.
fn clone_attached(mount: OwnedFd, home: &Path, sub: Option<&Path>) -> Result<OwnedFd, Error> {
    sys::unshare_mounts()?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context(|| "mount(/, MS_REC|MS_PRIVATE)".into())?;
    move_mount(mount, "", rustix::fs::CWD, home, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context(|| format!("move_mount(image, {})", home.display()))?;
    let tree = (|| {
        let root = path::open_dir(home)?;
        let data = path::resolve(root.as_fd(), Path::new(ext4::DATA_DIR))?;
        clone_tree(beneath(data.as_fd(), sub)?.as_fd())
    })();
    unmount(home, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .context(|| format!("umount2({}, MNT_DETACH)", home.display()))?;
    tree
}

/// The directory, or `sub` beneath it, made if missing.
fn beneath(root: BorrowedFd<'_>, sub: Option<&Path>) -> Result<OwnedFd, Error> {
    let Some(sub) = sub else { return path::resolve(root, Path::new(".")) };
    match path::resolve(root, sub) {
        Err(error) if error.kind() == Kind::NotFound => path::resolve_or_create(root, sub),
        other => other,
    }
}

fn clone_tree(at: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let what = || "open_tree(volume, OPEN_TREE_CLONE|AT_RECURSIVE)".to_owned();
    match open_tree(at, "", flags) {
        Err(Errno::INVAL) => Err(Errno::INVAL).context(what).map_err(|error| error.with_kind(Kind::Invalid)),
        other => other.context(what),
    }
}

fn seal(tree: OwnedFd, access: BindAccess) -> Result<OwnedFd, Error> {
    let set = match access {
        BindAccess::ReadWrite => 0,
        BindAccess::ReadOnly => libc::MOUNT_ATTR_RDONLY,
    };
    mount_setattr(tree.as_fd(), MountAttributes { set, clear: 0, propagation: libc::MS_PRIVATE })?;
    Ok(tree)
}
