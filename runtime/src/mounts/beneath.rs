//! Paths below a container's root, resolved by the kernel: a symlink of the image's leads inside
//! the root or nowhere (CVE-2021-30465, CVE-2024-45310).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::api;
use super::walk::{self, Missing};
use crate::error::{Call, Error, Kind, Result};

/// Whether symlinks of the image are followed (inside the root) or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// As the container itself would see the path.
    Follow,
    /// For places that the runtime writes to or that protect something: `/proc -> /evil` is
    /// refused.
    Refuse,
}

/// How often a path is resolved anew because a rename elsewhere made the kernel doubt its answer.
const ATTEMPTS_MAX: u32 = 128;

/// Opens what is at `path` below `root`, as a place and not for its content.
pub(crate) fn locate(root: impl AsFd, path: &Path, links: Links) -> Result<OwnedFd> {
    open(root, path, OFlags::PATH, links)
}

/// Opens what is at `path` below `root` with `flags` and close-on-exec. Links of procfs that lead to what a process has
/// open are refused.
pub(crate) fn open(root: impl AsFd, path: &Path, flags: OFlags, links: Links) -> Result<OwnedFd> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if links == Links::Refuse {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    let flags = flags | OFlags::CLOEXEC;
    let mut attempts = 0..ATTEMPTS_MAX;
    loop {
        match openat2(root.as_fd(), path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if attempts.next().is_some() => {}
            Err(e) if is_missing(e) => return walk::open(root, path, flags, links, Missing::Fail),
            other => return other.call(|| format!("openat2(root, {path:?}, IN_ROOT)")),
        }
    }
}

/// Opens a file of the procfs that `proc` is the root of: not a link, and not what another mount shows.
pub(crate) fn open_proc(proc: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::CLOEXEC;
    match openat2(proc.as_fd(), path, flags, Mode::empty(), resolve) {
        Err(e) if is_missing(e) => {}
        other => return other.call(|| format!("openat2(proc, {path:?}, BENEATH|NO_SYMLINKS|NO_XDEV)")),
    }
    let mount = api::identity(proc.as_fd())?.stx_mnt_id;
    let mut opened = None;
    // First as a place: opening for good may have effects.
    for flags in [OFlags::PATH | OFlags::CLOEXEC, flags] {
        let fd = walk::open(proc.as_fd(), path, flags, Links::Refuse, Missing::Fail)?;
        if api::identity(&fd)?.stx_mnt_id != mount {
            return Err(Error::new(Kind::Denied, format!("something is mounted on {path:?} of procfs")));
        }
        opened = Some(fd);
    }
    Ok(opened.expect("opened twice"))
}

/// Before 5.6, or denied by a filter around us: openat2(2) itself has no such answer to the flags used here.
fn is_missing(errno: Errno) -> bool {
    matches!(errno, Errno::NOSYS | Errno::PERM)
}

/// The directory at `path` below `root`, made where missing, also where a dangling link leads.
pub(crate) fn ensure_directory(root: impl AsFd, path: &Path, links: Links) -> Result<OwnedFd> {
    let place = match locate(root.as_fd(), path, links) {
        Err(e) if e.kind() == Kind::NotFound => {
            walk::open(root, path, OFlags::PATH | OFlags::CLOEXEC, links, Missing::Directory)
        }
        other => other,
    };
    directory(place?, path)
}

/// The file (anything but a directory) at `path` below `root`, made empty where missing.
pub(crate) fn ensure_file(root: impl AsFd, path: &Path, links: Links) -> Result<OwnedFd> {
    match locate(root.as_fd(), path, links) {
        Err(e) if e.kind() == Kind::NotFound => {
            walk::open(root, path, OFlags::PATH | OFlags::CLOEXEC, links, Missing::File)
        }
        other => other,
    }
}

/// The directory that `path` is in, made where missing, and its name there.
pub(crate) fn ensure_parent(
    root: impl AsFd,
    path: &Path,
    links: Links,
) -> Result<(OwnedFd, &std::ffi::OsStr)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::invalid(path.display(), "has no name"));
    };
    Ok((ensure_directory(root, parent, links)?, name))
}

/// `fd`, if it is a directory.
pub(super) fn directory(fd: OwnedFd, path: &Path) -> Result<OwnedFd> {
    let stat = rustix::fs::fstat(&fd).call(|| format!("fstat({path:?})"))?;
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Directory => Ok(fd),
        _ => Err(Error::sys(format!("open {path:?}"), nix::errno::Errno::ENOTDIR)),
    }
}
