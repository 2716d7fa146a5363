//! A container's terminal.
//!
//! The pair comes from the container's own devpts, so that `tty` works inside. What the image or
//! a process in the container puts at those paths is not trusted: the multiplexer is verified to
//! be one, and the terminal end is opened from the master (`TIOCGPTPEER`), never by path
//! (CVE-2025-52565).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat, fstatfs, major, minor};

use crate::error::{Call, Error, Kind, Result, Step};
use crate::mounts::beneath::{self, Links};
use crate::sys;

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Both ends of a pseudo-terminal.
pub(crate) struct Console {
    pub(crate) master: OwnedFd,
    pub(crate) terminal: OwnedFd,
}

/// Source: include/uapi/linux/magic.h.
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// A new pseudo-terminal of the devpts mounted on `/dev/pts` below `root`.
pub(crate) fn open(root: BorrowedFd<'_>, size: Option<WindowSize>) -> Result<Console> {
    open_master(root)
        .and_then(|master| {
            let terminal = sys::pty_peer(master.as_fd())?;
            if let Some(size) = size {
                sys::set_window_size(master.as_fd(), size.rows, size.columns)?;
            }
            Ok(Console { master, terminal })
        })
        .step("open a terminal")
}

fn open_master(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
    let master = beneath::open(root, Path::new("dev/pts/ptmx"), flags, Links::Refuse)?;
    let stat = fstat(&master).call(|| "fstat(ptmx)".into())?;
    let fs = fstatfs(&master).call(|| "fstatfs(ptmx)".into())?;
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !character || device != (5, 2) || fs.f_type as i64 != DEVPTS_SUPER_MAGIC {
        return Err(Error::new(Kind::Denied, "/dev/pts/ptmx is not a terminal multiplexer"));
    }
    // Opened without blocking on a FIFO; used blocking.
    let flags = rustix::fs::fcntl_getfl(&master).call(|| "fcntl(ptmx, F_GETFL)".into())?;
    rustix::fs::fcntl_setfl(&master, flags - OFlags::NONBLOCK).call(|| "fcntl(ptmx, F_SETFL)".into())?;
    Ok(master)
}
