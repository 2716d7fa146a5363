//! Paths below a container's root, resolved by the kernel: a symlink of the image's leads inside
//! the root or nowhere (CVE-2021-30465, CVE-2024-45310).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};

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
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if links == Links::Refuse {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut attempts = 0..ATTEMPTS_MAX;
    loop {
        match openat2(root.as_fd(), path, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) if attempts.next().is_some() => {}
            other => return other.call(|| format!("openat2(root, {path:?}, IN_ROOT)")),
        }
    }
}

/// The directory at `path` below `root`, made where missing.
pub(crate) fn ensure_directory(root: impl AsFd, path: &Path, links: Links) -> Result<OwnedFd> {
    match locate(root.as_fd(), path, links) {
        Ok(fd) => return directory(fd, path),
        Err(e) if e.kind() == Kind::NotFound => {}
        Err(e) => return Err(e),
    }
    // Each step is resolved from the root again, so that links mean what they mean inside.
    let mut so_far = std::path::PathBuf::from("/");
    let mut parent = locate(root.as_fd(), &so_far, links)?;
    for component in path.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e).call(|| format!("mkdirat({so_far:?}, {name:?})")),
        }
        so_far.push(name);
        parent = directory(locate(root.as_fd(), &so_far, links)?, &so_far)?;
    }
    Ok(parent)
}

/// The file (anything but a directory) at `path` below `root`, made empty where missing.
pub(crate) fn ensure_file(root: impl AsFd, path: &Path, links: Links) -> Result<OwnedFd> {
    match locate(root.as_fd(), path, links) {
        Ok(fd) => return Ok(fd),
        Err(e) if e.kind() == Kind::NotFound => {}
        Err(e) => return Err(e),
    }
    let (parent, name) = ensure_parent(root.as_fd(), path, links)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e).call(|| format!("openat({path:?}, O_CREAT|O_EXCL)")),
    }
    locate(root, path, links)
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

fn directory(fd: OwnedFd, path: &Path) -> Result<OwnedFd> {
    let stat = rustix::fs::fstat(&fd).call(|| format!("fstat({path:?})"))?;
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Directory => Ok(fd),
        _ => Err(Error::sys(format!("open {path:?}"), nix::errno::Errno::ENOTDIR)),
    }
}
