//! What is below a cgroup directory: processes, and directories to remove.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};

use super::DIR;
use crate::error::{Call, Error, Kind, Result};

/// The `populated` line of an open `cgroup.events`. Reading it arms the notification of the next change.
pub(super) fn read_populated(events: &mut std::fs::File) -> Result<bool> {
    read_event(events, "populated")
}

/// One line of an open `cgroup.events`.
pub(super) fn read_event(events: &mut std::fs::File, name: &str) -> Result<bool> {
    use std::io::Seek;
    let mut text = String::with_capacity(256);
    let read = events.rewind().and_then(|()| events.take(4096).read_to_string(&mut text));
    match read {
        // The directory went away under the open file: nobody can be in it.
        Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(false),
        other => other.call(|| "read(cgroup.events)".into())?,
    };
    match text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')) {
        Some("0") => Ok(false),
        Some("1") => Ok(true),
        _ => Err(Error::new(Kind::Internal, format!("cgroup.events: {text:?}"))),
    }
}

/// The whole of a file opened at its start.
pub(super) fn read_all(fd: OwnedFd) -> std::io::Result<String> {
    // Room enough for the usual, or the reads begin with 32 bytes.
    let mut text = String::with_capacity(4096);
    std::fs::File::from(fd).read_to_string(&mut text)?;
    Ok(text)
}

/// The names of the cgroups directly below `dir`.
pub(super) fn subdirectories(dir: &OwnedFd) -> Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStrExt;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).call(|| "getdents(cgroup)".into())? {
        let entry = entry.call(|| "getdents(cgroup)".into())?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() == rustix::fs::FileType::Directory && name != b"." && name != b".." {
            names.push(PathBuf::from(std::ffi::OsStr::from_bytes(name)));
        }
    }
    Ok(names)
}

/// Adds the processes of `dir` and of what is below it.
pub(super) fn collect_pids(dir: &OwnedFd, pids: &mut Vec<i32>) -> Result<()> {
    let procs = match openat(dir, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.call(|| "openat(cgroup.procs)".into())?,
    };
    let text = match read_all(procs) {
        Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(()),
        other => other.call(|| "read(cgroup.procs)".into())?,
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for name in subdirectories(dir)? {
        match openat(dir, &name, DIR, Mode::empty()) {
            Ok(below) => collect_pids(&below, pids)?,
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e).call(|| format!("openat({name:?})")),
        }
    }
    Ok(())
}

/// Removes `name` in `parent`, leaves first. Not there is success.
pub(super) fn remove_tree(parent: impl AsFd, name: &Path) -> Result<()> {
    let parent = parent.as_fd();
    // The common case: no children.
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(_) => {}
    }
    let dir = match openat(parent, name, DIR, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.call(|| format!("openat({name:?})"))?,
    };
    for below in subdirectories(&dir)? {
        remove_tree(&dir, &below)?;
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(e).call(|| format!("rmdir({name:?})")),
    }
}
