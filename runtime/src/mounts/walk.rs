//! Paths below a root resolved by hand, one component at a time, where openat2(2) is missing or something on the way
//! is to be made.
//!
//! Every directory on the way stays open, and `..` goes back to the one it was reached from, so that no link and no
//! rename leads above the root.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::errno::Errno;
use rustix::fs::{FileType, Mode, OFlags, fstat, mkdirat, openat, readlinkat};

use super::api;
use super::beneath::Links;
use crate::error::{Call, Error, Result};

/// What to make where nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Nothing: it is an error.
    Fail,
    /// Directories.
    Directory,
    /// Directories, and an empty file as the last.
    File,
}

/// How many links one path may lead through. Source: path_resolution(7).
const LINKS_MAX: usize = 40;

const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens what is at `path` below `root` with `flags`.
pub(super) fn open(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    links: Links,
    missing: Missing,
) -> Result<OwnedFd> {
    let refused = |errno| Error::sys(format!("open(root, {path:?})"), errno);
    let root = root.as_fd().try_clone_to_owned().call(|| "fcntl(F_DUPFD_CLOEXEC)".into())?;
    let mut way = vec![root];
    let mut rest: VecDeque<OsString> = names(path).collect();
    let mut followed = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            // Above the root is the root.
            way.truncate((way.len() - 1).max(1));
            continue;
        }
        let dir = &way[way.len() - 1];
        let last = rest.is_empty();
        let place = match openat(dir, &name, PLACE, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) if missing != Missing::Fail => {
                make(dir, &name, last && missing == Missing::File)?;
                openat(dir, &name, PLACE, Mode::empty())
            }
            other => other,
        };
        let place = place.call(|| format!("openat({path:?}: {name:?}, O_PATH)"))?;
        match kind(&place)? {
            FileType::Symlink => {
                followed += 1;
                if links == Links::Refuse || followed > LINKS_MAX || is_magic(&place, dir)? {
                    return Err(refused(Errno::ELOOP));
                }
                let target =
                    readlinkat(&place, "", Vec::new()).call(|| format!("readlink({path:?}: {name:?})"))?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                if target.is_absolute() {
                    way.truncate(1);
                }
                for name in names(target).rev() {
                    rest.push_front(name);
                }
            }
            FileType::Directory => way.push(place),
            _ if !last || flags.contains(OFlags::DIRECTORY) => return Err(refused(Errno::ENOTDIR)),
            _ if flags.contains(OFlags::PATH) => return Ok(place),
            // If it was replaced by a link since, this fails.
            _ => {
                return openat(dir, &name, flags | OFlags::NOFOLLOW, Mode::empty())
                    .call(|| format!("openat({path:?}, {flags:?})"));
            }
        }
    }
    let reached = way.swap_remove(way.len() - 1);
    if flags.contains(OFlags::PATH) {
        return Ok(reached);
    }
    openat(&reached, ".", flags, Mode::empty()).call(|| format!("openat({path:?}, {flags:?})"))
}

/// Makes one component. One that appeared meanwhile is as good.
fn make(dir: &OwnedFd, name: &OsStr, file: bool) -> Result<()> {
    if !file {
        return match mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(e) => Err(e).call(|| format!("mkdirat({name:?})")),
        };
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(dir, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(e) => Err(e).call(|| format!("openat({name:?}, O_CREAT|O_EXCL)")),
    }
}

/// Links of procfs lead to files and directories of processes, whatever they read as, but for those in its root.
fn is_magic(link: &OwnedFd, dir: &OwnedFd) -> Result<bool> {
    Ok(api::is_proc(link)? && api::identity(dir)?.stx_ino != api::PROC_ROOT_INO)
}

fn kind(fd: &OwnedFd) -> Result<FileType> {
    let stat = fstat(fd).call(|| "fstat(place)".into())?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// What a path says to do, step by step.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_os_string()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// A root whose links try to lead out, beside a file that is outside.
    fn tree() -> (std::path::PathBuf, OwnedFd) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let top = std::env::temp_dir().join(format!("podyard-walk-{}-{count}", std::process::id()));
        let root = top.join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(top.join("outside"), "").unwrap();
        std::fs::write(root.join("a/file"), "").unwrap();
        symlink("../..", root.join("a/up")).unwrap();
        symlink("/a/b", root.join("absolute")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/new/deep", root.join("dangling")).unwrap();
        symlink("../../outside", root.join("a/out")).unwrap();
        let fd = rustix::fs::open(&root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (top, fd)
    }

    #[test]
    fn paths_end_below_the_root() {
        let (top, fd) = tree();
        let at = |path: &str, links| {
            let found = open(&fd, Path::new(path), OFlags::PATH, links, Missing::Fail);
            found.map(|fd| api::identity(&fd).unwrap().stx_ino).map_err(|e| e.errno().unwrap())
        };
        let inode = |path: &str| std::fs::metadata(top.join("root").join(path)).unwrap().ino();
        for (path, there) in [
            ("/", "."),
            ("..", "."),
            ("/../../a", "a"),
            ("a/b/../file", "a/file"),
            ("a/up", "."),
            ("a/up/../a/up/a/file", "a/file"),
            ("absolute", "a/b"),
            ("absolute/../file", "a/file"),
        ] {
            assert_eq!(at(path, Links::Follow), Ok(inode(there)), "{path}");
        }
        for (path, links, errno) in [
            ("a/out", Links::Follow, Errno::ENOENT),
            ("dangling", Links::Follow, Errno::ENOENT),
            ("loop", Links::Follow, Errno::ELOOP),
            ("absolute", Links::Refuse, Errno::ELOOP),
            ("a/file/..", Links::Follow, Errno::ENOTDIR),
            ("a/file/x", Links::Follow, Errno::ENOTDIR),
        ] {
            assert_eq!(at(path, links), Err(errno), "{path}");
        }
        std::fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn what_is_missing_is_made_below_the_root() {
        let (top, fd) = tree();
        let make = |path: &str, links, missing| {
            open(&fd, Path::new(path), OFlags::PATH, links, missing).map(drop).map_err(|e| e.errno().unwrap())
        };
        assert_eq!(make("dangling/x", Links::Refuse, Missing::Directory), Err(Errno::ELOOP));
        assert_eq!(make("dangling/x", Links::Follow, Missing::Directory), Ok(()));
        assert_eq!(make("a/out", Links::Follow, Missing::File), Ok(()));
        assert_eq!(make("../../../n/f", Links::Follow, Missing::File), Ok(()));
        let root = top.join("root");
        assert!(root.join("new/deep/x").is_dir());
        assert!(root.join("outside").is_file(), "where the link leads inside");
        assert!(root.join("n/f").is_file());
        assert_eq!(std::fs::read_dir(&top).unwrap().count(), 2);
        std::fs::remove_dir_all(top).unwrap();
    }
}
