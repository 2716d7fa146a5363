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

/// Gives the calling thread a mount namespace of its own.
///
/// Source: unshare(2).
pub(crate) fn unshare_mounts() -> Result<(), SysError> {
    // SAFETY: no descriptor is unshared, only the namespace and, with it, the thread's root and directory.
    let answer = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
    answer.map_err(|errno| SysError { call: "unshare(CLONE_NEWNS)".into(), errno })
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::INVAL, Errno::from_raw_os_error)
}

/// Source: include/uapi/linux/loop.h, `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LoopInfo {
    /// The backing file's device, encoded by the kernel.
    pub device: u64,
    /// The backing file's inode.
    pub inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

// SAFETY: both are plain integers; all zeros is what the kernel calls "not given".
const NO_LOOP_INFO: LoopInfo = unsafe { std::mem::zeroed() };

/// What a loop device is bound to.
///
/// # Errors
/// `ENXIO` if it is bound to nothing.
///
/// Source: loop(4), `LOOP_GET_STATUS64`.
pub(crate) fn loop_info(device: BorrowedFd<'_>) -> Result<LoopInfo, SysError> {
    const LOOP_GET_STATUS64: u64 = 0x4c05;
    let mut info = NO_LOOP_INFO;
    // SAFETY: the kernel writes one `loop_info64` to `info`, which outlives the call.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) };
    if answer == 0 {
        return Ok(info);
    }
    Err(SysError { call: format!("ioctl({device:?}, LOOP_GET_STATUS64)"), errno: last_errno() })
}

/// The number of a loop device that was free when asked; the kernel makes one if there is none.
///
/// Source: loop(4), `LOOP_CTL_GET_FREE`.
pub(crate) fn loop_free_number(control: BorrowedFd<'_>) -> Result<u32, SysError> {
    const LOOP_CTL_GET_FREE: u64 = 0x4c82;
    // SAFETY: takes no argument.
    let answer = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    u32::try_from(answer).map_err(|_| SysError {
        call: "ioctl(/dev/loop-control, LOOP_CTL_GET_FREE)".into(),
        errno: last_errno(),
    })
}

/// Binds a free loop device to a file, with direct I/O where the file takes it, until the device's last user goes.
///
/// # Errors
/// `EBUSY` if somebody else was faster.
///
/// Source: loop(4), `LOOP_CONFIGURE` (Linux 5.8).
pub(crate) fn loop_configure(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    block_bytes: u32,
) -> Result<(), SysError> {
    const LOOP_CONFIGURE: u64 = 0x4c0a;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    const LO_FLAGS_DIRECT_IO: u32 = 16;
    let config = LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: block_bytes,
        info: LoopInfo { flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO, ..NO_LOOP_INFO },
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one `loop_config`, which outlives the call.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    if answer == 0 {
        return Ok(());
    }
    Err(SysError { call: format!("ioctl({device:?}, LOOP_CONFIGURE)"), errno: last_errno() })
}

/// Tells a loop device that its file has another size.
///
/// Source: loop(4), `LOOP_SET_CAPACITY`.
pub(crate) fn loop_set_capacity(device: BorrowedFd<'_>) -> Result<(), SysError> {
    const LOOP_SET_CAPACITY: u64 = 0x4c07;
    // SAFETY: takes no argument.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY as _, 0) };
    if answer == 0 {
        return Ok(());
    }
    Err(SysError { call: format!("ioctl({device:?}, LOOP_SET_CAPACITY)"), errno: last_errno() })
}

/// Grows a mounted ext4 filesystem to this many blocks.
///
/// # Errors
/// `EPERM` without `CAP_SYS_RESOURCE`.
///
/// Source: fs/ext4/resize.c, `ext4_resize_begin`, `ext4_resize_fs`.
pub(crate) fn ext4_resize(filesystem: BorrowedFd<'_>, blocks: u64) -> Result<(), SysError> {
    const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
    // SAFETY: the kernel reads one u64, which outlives the call.
    let answer = unsafe { libc::ioctl(filesystem.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) };
    if answer == 0 {
        return Ok(());
    }
    Err(SysError {
        call: format!("ioctl({filesystem:?}, EXT4_IOC_RESIZE_FS, {blocks})"),
        errno: last_errno(),
    })
}

/// Puts an empty directory into a quota project; what is made in it follows.
///
/// Source: include/uapi/linux/fs.h, `FS_IOC_FSSETXATTR`, `FS_XFLAG_PROJINHERIT`.
pub(crate) fn set_project(directory: BorrowedFd<'_>, project: u32) -> Result<(), SysError> {
    const FS_XFLAG_PROJINHERIT: u32 = 0x200;
    let mut attributes = attributes(directory)?;
    attributes.project = project;
    attributes.flags |= FS_XFLAG_PROJINHERIT;
    const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
    // SAFETY: the kernel reads one `fsxattr`, which outlives the call.
    let answer = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR as _, &raw const attributes) };
    if answer == 0 {
        return Ok(());
    }
    let call = format!("ioctl({directory:?}, FS_IOC_FSSETXATTR, {{project: {project}}})");
    Err(SysError { call, errno: last_errno() })
}

/// Source: include/uapi/linux/fs.h, `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

fn attributes(file: BorrowedFd<'_>) -> Result<Attributes, SysError> {
    const FS_IOC_FSGETXATTR: u64 = 0x801c_581f;
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes one `fsxattr` to `attributes`, which outlives the call.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR as _, &raw mut attributes) };
    if answer == 0 {
        return Ok(attributes);
    }
    Err(SysError { call: format!("ioctl({file:?}, FS_IOC_FSGETXATTR)"), errno: last_errno() })
}

const _: () = assert!(size_of::<Attributes>() == 28 && size_of::<Dqblk>() == 72);
const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// Whether the filesystem that `file` is on enforces project quotas.
///
/// Source: quotactl(2), `Q_XGETQSTAT`, which every filesystem with quotas answers; quotactl_fd is of Linux 5.14.
pub(crate) fn enforces_projects(file: BorrowedFd<'_>) -> Result<bool, SysError> {
    const Q_XGETQSTAT: u32 = 0x5805;
    const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;
    // struct fs_quota_stat is 80 bytes: qs_version, then qs_flags at 2.
    let mut status = [0u64; 32];
    quotactl(file, Q_XGETQSTAT, 0, status.as_mut_ptr().cast())?;
    Ok((status[0] >> 16) as u16 & FS_QUOTA_PDQ_ENFD != 0)
}

/// Limit and use of a project, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProjectQuota {
    /// Hard limit; 0 for none.
    pub limit_bytes: u64,
    /// In use.
    pub used_bytes: u64,
    /// Inodes in use.
    pub used_inodes: u64,
}

/// Source: include/uapi/linux/quota.h, `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Dqblk {
    block_hard_limit_kib: u64,
    block_soft_limit_kib: u64,
    used_bytes: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    used_inodes: u64,
    block_grace: u64,
    inode_grace: u64,
    valid: u32,
}

/// Limit and use of a project.
///
/// # Errors
/// `ESRCH` if the filesystem has no project quotas.
///
/// Source: quotactl(2), `Q_GETQUOTA`.
pub(crate) fn project_quota(file: BorrowedFd<'_>, project: u32) -> Result<ProjectQuota, SysError> {
    const Q_GETQUOTA: u32 = 0x80_0007;
    let mut block = Dqblk::default();
    quotactl(file, Q_GETQUOTA, project, (&raw mut block).cast())?;
    Ok(ProjectQuota {
        limit_bytes: block.block_hard_limit_kib << 10,
        used_bytes: block.used_bytes,
        used_inodes: block.used_inodes,
    })
}

/// Limits the bytes of a project; 0 lifts the limit.
///
/// Source: quotactl(2), `Q_SETQUOTA`.
pub(crate) fn set_project_quota(
    file: BorrowedFd<'_>,
    project: u32,
    limit_bytes: u64,
) -> Result<(), SysError> {
    const Q_SETQUOTA: u32 = 0x80_0008;
    const QIF_BLIMITS: u32 = 1;
    let kib = limit_bytes.div_ceil(1024);
    let mut block =
        Dqblk { block_hard_limit_kib: kib, block_soft_limit_kib: 0, valid: QIF_BLIMITS, ..Dqblk::default() };
    quotactl(file, Q_SETQUOTA, project, (&raw mut block).cast())
}

fn quotactl(file: BorrowedFd<'_>, command: u32, id: u32, address: *mut libc::c_void) -> Result<(), SysError> {
    const PRJQUOTA: u32 = 2;
    let command = command << 8 | PRJQUOTA;
    // SAFETY: `address` is a live buffer at least as large as what each command, chosen above, reads or writes.
    let answer = unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, address) };
    if answer == 0 {
        return Ok(());
    }
    Err(SysError { call: format!("quotactl_fd({file:?}, {command:#x}, {id})"), errno: last_errno() })
}
