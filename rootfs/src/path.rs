//! Paths that others chose, resolved beneath a root.
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::{Error, Kind};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

/// Longest path taken from outside, in bytes (`PATH_MAX`).
const PATH_BYTES_MAX: usize = 4096;

/// Opens `path` as `O_PATH`, following symbolic links as if `root` were `/`.
///
/// The answer lies beneath `root` whatever the links inside say, also when they change meanwhile.
///
/// # Errors
/// `NotFound`; `Invalid` for an over-long path; `Denied` for a magic link.
///
/// Source: openat2(2), `RESOLVE_IN_ROOT`, `RESOLVE_NO_MAGICLINKS`.
pub fn resolve(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Error> {
    open_in(root, path, OFlags::PATH)
}

/// Like [`resolve`], making missing directories on the way, with mode 0755.
///
/// # Errors
/// As [`resolve`]; `Invalid` if `path` has a `..` or a component is no directory.
pub fn resolve_or_create(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Error> {
    let mut at = openat(root, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context(|| "openat(root, \".\", O_PATH)".into())?;
    let mut walked = std::path::PathBuf::new();
    for component in path.components() {
        let name: &OsStr = match component {
            Component::Normal(name) => name,
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::new(Kind::Invalid, format!("path {} contains ..", path.display())));
            }
        };
        match mkdirat(at.as_fd(), name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => {
                return Err(errno).context(|| format!("mkdirat({}, {name:?}, 0755)", walked.display()));
            }
        }
        walked.push(name);
        // From the root each time: an existing component may be a link to elsewhere beneath it.
        at = open_in(root, &walked, OFlags::PATH | OFlags::DIRECTORY)?;
    }
    Ok(at)
}

/// Opens a directory that we trust by its path, as `O_PATH`.
///
/// # Errors
/// As openat(2).
pub fn open_dir(path: &Path) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("open({}, O_PATH|O_DIRECTORY)", path.display()))
}

fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
    if path.as_os_str().len() >= PATH_BYTES_MAX {
        return Err(Error::new(Kind::Invalid, "path longer than 4095 bytes"));
    }
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // EAGAIN: the tree was renamed under the walk; the kernel asks for another try.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::LOOP) => {
                return Err(Error::new(
                    Kind::Denied,
                    format!("{} has a link loop or a magic link", path.display()),
                ));
            }
            answer => return answer.context(|| format!("openat2({}, RESOLVE_IN_ROOT)", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("podyard-path-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn real(fd: &OwnedFd) -> std::path::PathBuf {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn links_never_leave_the_root() {
        let dir = scratch("escape");
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        std::fs::write(dir.join("etc/shadow"), "inside").unwrap();
        symlink("/etc/shadow", dir.join("absolute")).unwrap();
        symlink("../../../../etc/shadow", dir.join("relative")).unwrap();
        symlink("/proc/self/root", dir.join("magic")).unwrap();
        let root = open_dir(&dir).unwrap();
        for path in ["absolute", "relative", "/etc/shadow", "../../etc/shadow"] {
            assert_eq!(
                real(&resolve(root.as_fd(), Path::new(path)).unwrap()),
                dir.join("etc/shadow"),
                "{path}"
            );
        }
        assert_eq!(resolve(root.as_fd(), Path::new("magic")).unwrap_err().kind(), Kind::NotFound);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn creates_through_links_beneath_the_root_only() {
        let dir = scratch("create");
        std::fs::create_dir_all(dir.join("real")).unwrap();
        symlink("/real", dir.join("link")).unwrap();
        symlink("/../../tmp", dir.join("out")).unwrap();
        let root = open_dir(&dir).unwrap();
        let made = resolve_or_create(root.as_fd(), Path::new("link/a/b")).unwrap();
        assert_eq!(real(&made), dir.join("real/a/b"));
        assert!(
            resolve_or_create(root.as_fd(), Path::new("out/x")).is_err(),
            "dangling link is not followed out"
        );
        assert_eq!(resolve_or_create(root.as_fd(), Path::new("a/../b")).unwrap_err().kind(), Kind::Invalid);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
