//! The only unsafe code of the crate: system calls that rustix lacks.
#![allow(unsafe_code)]

use crate::SysError;
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attributes for [`mount_setattr`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`… or 0 for no change.
    pub propagation: u64,
}

/// Changes the attributes of the mount that `mount` is the root of, and of every mount beneath it.
///
/// # Errors
/// `EINVAL` if `mount` is not the root of a mount; `EPERM` without `CAP_SYS_ADMIN` or for locked attributes.
///
/// Source: mount_setattr(2), Linux 5.12.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, attributes: MountAttributes) -> Result<(), SysError> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated literal; `attr` outlives the call and the kernel reads exactly the
    // size given.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 {
        return Ok(());
    }
    let errno = std::io::Error::last_os_error().raw_os_error().map_or(Errno::INVAL, Errno::from_raw_os_error);
    Err(SysError { call: format!("mount_setattr({mount:?}, \"\", AT_RECURSIVE, {attributes:x?})"), errno })
}
