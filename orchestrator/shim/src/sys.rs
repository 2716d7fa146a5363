//! The only unsafe code of the crate: system calls that nix and rustix lack or leave unsafe.
#![allow(unsafe_code)]

use crate::protocol::{Failure, FailureKind};
use nix::libc;
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Since Linux 5.7. The libc crate's constant is an int and overflows.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What the calls in here, and everything that fails like them, answer with.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Names a failed system call as strace(1) would show it.
pub(crate) trait Call<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Call<T> for std::result::Result<T, Errno> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| failure(call(), errno.raw_os_error()))
    }
}

impl<T> Call<T> for nix::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| failure(call(), errno as i32))
    }
}

impl<T> Call<T> for std::io::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| match error.raw_os_error() {
            Some(raw) => failure(call(), raw),
            None => Failure::new(FailureKind::Internal, format!("{}: {error}", call())),
        })
    }
}

fn failure(call: String, raw: i32) -> Failure {
    let errno = nix::errno::Errno::from_raw(raw);
    let kind = match errno {
        nix::errno::Errno::ENOENT | nix::errno::Errno::ESRCH => FailureKind::NotFound,
        nix::errno::Errno::EEXIST => FailureKind::AlreadyExists,
        nix::errno::Errno::EBUSY | nix::errno::Errno::EAGAIN => FailureKind::Busy,
        nix::errno::Errno::EPERM | nix::errno::Errno::EACCES => FailureKind::Denied,
        nix::errno::Errno::ENOSYS | nix::errno::Errno::EOPNOTSUPP => FailureKind::Unsupported,
        _ => FailureKind::Internal,
    };
    Failure::new(kind, format!("{call}: {errno}"))
}

fn check(answer: libc::c_long, call: impl FnOnce() -> String) -> Result<libc::c_long> {
    if answer >= 0 {
        return Ok(answer);
    }
    Err(failure(call(), nix::errno::Errno::last_raw()))
}

/// Which side of [`fork`] the caller is on.
pub(crate) enum Forked {
    /// The new process: it ends in [`exit_now`].
    Child,
    /// The old one.
    Parent {
        /// The child.
        pid: i32,
        /// Names it for good.
        pidfd: OwnedFd,
    },
}

/// Copies this single-threaded process, with `CLONE_*` namespaces in `flags`, into `cgroup` if given.
///
/// # Errors
/// As clone3(2). Source: clone(2); `CLONE_INTO_CGROUP` since Linux 5.7.
pub(crate) fn fork(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked> {
    let mut pidfd: RawFd = -1;
    // SAFETY: every field of clone_args is an integer, so all-zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (flags | libc::CLONE_PIDFD) as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` and `pidfd` outlive the call and the kernel reads the size given. Memory is copied, not
    // shared, and the process has one thread, so no lock is held by a thread that the child lacks.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match check(answer, || format!("clone3(flags={flags:#x}, cgroup={})", cgroup.is_some()))? {
        0 => Ok(Forked::Child),
        // SAFETY: the kernel stored a new close-on-exec descriptor that nobody else owns.
        pid => Ok(Forked::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Ends this process at once: no destructors, no atexit handlers, which belong to the process it was copied from.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes no pointer and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor but the standard three and `keep`. The caller owns none of the others any more: it is
/// a fresh copy of a process whose objects it never drops, because it ends in [`exit_now`].
pub(crate) fn close_all_but(keep: &[RawFd]) -> Result<()> {
    let mut keep: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > first {
            let last = if fd == u32::MAX { u32::MAX } else { fd - 1 };
            // SAFETY: closing takes no pointer; the caller promises not to use what it closes.
            let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            check(answer, || format!("close_range({first}, {last})"))?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Takes descriptor `number`, which whoever started us put there for us.
pub(crate) fn take_fd(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer and is defined for any number.
    check(i64::from(unsafe { libc::fcntl(number, libc::F_GETFD) }), || format!("fcntl({number}, F_GETFD)"))?;
    // SAFETY: the descriptor is open, and by this crate's contract on the command line it is ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sets the process's name (15 bytes), makes it a child subreaper and forbids others to trace it.
pub(crate) fn become_shim(name: &std::ffi::CStr) -> Result<()> {
    set_name(name)?;
    prctl(libc::PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")?;
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")
}

/// Sets the process's name, cut to 15 bytes by the kernel.
pub(crate) fn set_name(name: &std::ffi::CStr) -> Result<()> {
    // SAFETY: the kernel reads at most 16 bytes of a NUL-terminated string that outlives the call.
    let answer = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    check(i64::from(answer), || "prctl(PR_SET_NAME)".into()).map(drop)
}

/// Has this process killed when its parent, `parent`, ends; fails if it has ended already.
pub(crate) fn die_with_parent(parent: i32) -> Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, "PR_SET_PDEATHSIG")?;
    if nix::unistd::getppid().as_raw() == parent {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Internal, "the shim has ended"))
}

fn prctl(option: i32, value: i32, name: &str) -> Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: these options take integers.
    let answer = unsafe { libc::prctl(option, value as libc::c_ulong, zero, zero, zero) };
    check(i64::from(answer), || format!("prctl({name}, {value})")).map(drop)
}

/// Sets the NIS domain name of this process's UTS namespace.
pub(crate) fn set_domain_name(name: &str) -> Result<()> {
    // SAFETY: the kernel reads `len` bytes of a string that outlives the call.
    let answer = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    check(i64::from(answer), || format!("setdomainname({name:?})")).map(drop)
}

/// The `CLONE_NEW*` flag of the namespace behind `fd`. Source: ioctl_nsfs(2).
pub(crate) fn namespace_type(fd: BorrowedFd<'_>) -> Result<i32> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: this ioctl takes no argument.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    check(i64::from(answer), || "ioctl(NS_GET_NSTYPE)".into()).map(|kind| kind as i32)
}

/// Makes a mount read-only, so that nobody can write to the program that runs from it.
pub(crate) fn seal_mount(mount: BorrowedFd<'_>) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated literal, and the kernel reads the size given of `attr`.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    check(answer, || "mount_setattr(MOUNT_ATTR_RDONLY)".into()).map(drop)
}

/// Keeps the heap small: free memory goes back to the kernel early, and big buffers never enter the heap.
pub(crate) fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes integers; unknown values are ignored.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_TOP_PAD, 0);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
    }
}

/// Gives free heap memory back to the kernel.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer, and the process has one thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
