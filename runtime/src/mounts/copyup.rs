//! `tmpcopyup`: a new tmpfs starts with what it covers.
//!
//! Read through the descriptor of the covered directory, which no mount hides from it, and written through that of the
//! mount: no path is followed on either side.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, fstat,
    mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};

use crate::error::{Call, Error, Kind, Result};

/// Deepest tree that is copied: each level holds two descriptors.
const DEPTH_MAX: usize = 200;

/// Copies all that is in `from` to `to`, with `from`'s own mode and owner: files, directories, links, FIFOs, device
/// nodes. Owners that mean nothing in this user namespace become this process's.
///
/// # Errors
/// The name of what could not be copied; a copy half made goes with the container.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let read = |fd: &OwnedFd| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(fd, ".", flags, Mode::empty()).call(|| "openat(\".\")".into())
    };
    directory(&read(from)?, &read(to)?, DEPTH_MAX)
}

fn directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<()> {
    if depth == 0 {
        return Err(Error::new(Kind::Invalid, format!("directories are nested deeper than {DEPTH_MAX}")));
    }
    let entries = Dir::read_from(from).call(|| "opendir(source)".into())?;
    for entry in entries {
        let entry = entry.call(|| "readdir(source)".into())?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            one(from, to, name, depth).map_err(|e| e.within(format!("copy {name:?}")))?;
        }
    }
    let stat = fstat(from).call(|| "fstat(source)".into())?;
    // By the directory's own descriptor: `.` is in it.
    keep(to, OsStr::new("."), &stat)
}

fn one(from: &OwnedFd, to: &OwnedFd, name: &OsStr, depth: usize) -> Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).call(|| "fstatat(source)".into())?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    // Until it has its owner nobody else may use it.
    let mode = Mode::from_raw_mode(0o600);
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind {
        FileType::Directory => {
            mkdirat(to, name, Mode::from_raw_mode(0o700)).call(|| "mkdirat(copy)".into())?;
            let flags = flags | OFlags::RDONLY | OFlags::DIRECTORY;
            let inner = openat(from, name, flags, Mode::empty()).call(|| "openat(source)".into())?;
            let copy = openat(to, name, flags, Mode::empty()).call(|| "openat(copy)".into())?;
            return directory(&inner, &copy, depth - 1);
        }
        FileType::RegularFile => {
            let source = openat(from, name, flags | OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
                .call(|| "openat(source)".into())?;
            let how = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let copy = openat(to, name, how, mode).call(|| "openat(copy)".into())?;
            let (mut source, mut copy) = (std::fs::File::from(source), std::fs::File::from(copy));
            std::io::copy(&mut source, &mut copy).call(|| "copy_file_range(source, copy)".into())?;
        }
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new()).call(|| "readlinkat(source)".into())?;
            symlinkat(target.as_c_str(), to, name).call(|| "symlinkat(copy)".into())?;
        }
        FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice | FileType::Socket => {
            mknodat(to, name, kind, mode, stat.st_rdev).call(|| "mknodat(copy)".into())?;
        }
        FileType::Unknown => return Err(Error::new(Kind::Unsupported, "a file of an unknown kind")),
    }
    keep(to, name, &stat)
}

/// Owner, mode and times, in an order in which none undoes another.
fn keep(dir: &OwnedFd, name: &OsStr, stat: &Stat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match chownat(dir.as_fd(), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        // Not mapped here, which is what the source shows as the overflow IDs.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
        Err(e) => return Err(e).call(|| "fchownat(copy)".into()),
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        chmodat(dir, name, mode, AtFlags::empty()).call(|| "fchmodat(copy)".into())?;
    }
    let time = |secs: i64, nanos: u64| Timespec { tv_sec: secs, tv_nsec: nanos as _ };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW).call(|| "utimensat(copy)".into())
}
