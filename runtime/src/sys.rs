//! The only unsafe code: wrappers of system calls that nix, rustix and std lack or make unsafe.
//!
//! Each sets the safe defaults itself (`CLOEXEC`), takes borrowed descriptors, returns owned ones
//! and fails like strace.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

use crate::error::{Error, Result};

/// Turns a raw return value into a result.
fn check(ret: libc::c_long, call: impl FnOnce() -> String) -> Result<libc::c_long> {
    if ret < 0 { Err(Error::sys(call(), Errno::last())) } else { Ok(ret) }
}

/// libc's own constant is of a type too narrow for it. Source: include/uapi/linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of [`clone3`] the caller is on.
pub(crate) enum Forked {
    /// The new process. It must end in [`execve`] or [`exit_now`].
    Child,
    /// The old one.
    Parent {
        /// The child's pid in the caller's PID namespace.
        pid: i32,
        /// Names the child for good.
        pidfd: OwnedFd,
    },
}

/// Makes a copy of this process. The child of a single-threaded process may allocate, but must
/// never return from its caller's frame: it ends in `execve` or [`exit_now`].
///
/// `flags` gains `CLONE_PIDFD`, and `CLONE_INTO_CGROUP` when `cgroup` is given. With
/// `CLONE_PARENT` the exit signal is left to the kernel. Without `cgroup`, clone(2) serves where clone3 is missing.
///
/// # Errors
/// Whatever clone3(2) says; `EBUSY` from a cgroup with controllers enabled for children.
///
/// Source: clone(2).
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked> {
    assert_eq!(thread_count()?, 1, "clone3 from a multi-threaded process");
    clone3_unchecked(flags, cgroup)
}

/// [`clone3`], by a process known to have one thread.
fn clone3_unchecked(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked> {
    let mut pidfd: libc::c_int = -1;
    let mut flags = flags | libc::CLONE_PIDFD as u64;
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let exit_signal = match flags & libc::CLONE_PARENT as u64 {
        0 => libc::SIGCHLD as u64,
        _ => 0,
    };
    // SAFETY: an all-zero clone_args is valid: every field is an integer.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = exit_signal;
    args.cgroup = cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: `args` and `pidfd` outlive the call and the kernel reads `size` bytes. Without
    // CLONE_VM the child has its own copy of memory, and there is only one thread, so no lock is
    // held by a thread that does not exist in the child.
    let ret =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, std::mem::size_of::<libc::clone_args>()) };
    let made = check(ret, || format!("clone3(flags={flags:#x})"));
    let pid = match made {
        Err(e) if cgroup.is_none() && matches!(e.errno(), Some(Errno::ENOSYS | Errno::EPERM)) => {
            clone_the_old_way(flags, &mut pidfd)?
        }
        other => other?,
    };
    if pid == 0 {
        return Ok(Forked::Child);
    }
    Ok(Forked::Parent {
        pid: pid as i32,
        // SAFETY: the kernel stored a new descriptor (close-on-exec) that nobody else owns.
        pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
    })
}

/// What clone3 does, for kernels and filters without it: no `CLONE_INTO_CGROUP`, no `CLONE_NEWTIME`.
///
/// Source: clone(2); `CLONE_PIDFD` since 5.2, stored where `CLONE_PARENT_SETTID` would store the pid.
fn clone_the_old_way(flags: u64, pidfd: &mut libc::c_int) -> Result<libc::c_long> {
    let call = || format!("clone(flags={flags:#x})");
    // The lowest byte is the signal at exit, which CLONE_PARENT makes the kernel ignore.
    if flags & 0xff != 0 || flags > u64::from(u32::MAX) {
        return Err(Error::sys(call(), Errno::ENOSYS));
    }
    let flags = flags as libc::c_ulong | libc::SIGCHLD as libc::c_ulong;
    // SAFETY: no stack is given and CLONE_VM is not set: the child goes on on its own copy of this one, as after
    // fork(2). `pidfd` outlives the call. The last two arguments, whose order differs between architectures, are 0.
    let ret = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, pidfd as *mut _, 0_usize, 0_usize) };
    check(ret, call)
}

/// A copy of this process that is a child of its parent's, and in the namespaces that its own children are to be in.
///
/// Source: clone(2), `CLONE_PARENT`.
pub(crate) fn clone_sibling() -> Result<Forked> {
    clone3_unchecked(libc::CLONE_PARENT as u64, None)
}

/// A copy of this process in the same namespaces, for another program: the child ends in [`execve`] or [`exit_now`].
/// Where a container's filter hides clone3, as Docker's does, it is made the old way.
///
/// The caller has one thread. A container without procfs cannot be asked; its first process has one by descent.
///
/// Source: clone(2), fork(2), pidfd_open(2).
pub(crate) fn fork() -> Result<Forked> {
    if let Ok(count) = thread_count() {
        assert_eq!(count, 1, "fork from a multi-threaded process");
    }
    clone3_unchecked(0, None)
}

/// Threads of this process, from the link count of its task directory.
fn thread_count() -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata("/proc/self/task").map_err(|e| {
        Error::sys("stat(\"/proc/self/task\")", Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
    })?;
    Ok(meta.nlink().saturating_sub(2))
}

/// Ends this process at once, running nothing on the way.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Replaces this process. Returns only on failure.
pub(crate) fn execve(path: &CStr, args: &[CString], env: &[CString]) -> Errno {
    match nix::unistd::execve(path, args, env) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Every signal back to its default action, and none blocked: what a new program may expect. The
/// Rust runtime ignores SIGPIPE, and an ignored signal stays ignored across execve.
pub(crate) fn reset_signals() -> Result<()> {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no function of ours. EINVAL for SIGKILL, SIGSTOP and the two
        // signals glibc keeps is expected.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::sigprocmask(
        nix::sys::signal::SigmaskHow::SIG_SETMASK,
        Some(&nix::sys::signal::SigSet::empty()),
        None,
    )
    .map_err(|errno| Error::sys("sigprocmask(SIG_SETMASK, [])", errno))
}

/// Changes to a mount, as mount_setattr(2) takes them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear first.
    pub(crate) clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0.
    pub(crate) propagation: u64,
    /// The user namespace of `MOUNT_ATTR_IDMAP`.
    pub(crate) userns_fd: u64,
}

/// Changes a mount's attributes and propagation, and with `recursive` those of the mounts below it.
///
/// Source: mount_setattr(2), since 5.12.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: MountAttr) -> Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a NUL-terminated constant; the kernel reads `size` bytes of `attr`.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            std::mem::size_of::<MountAttr>(),
        )
    };
    let MountAttr { set, clear, propagation, .. } = attr;
    check(ret, || format!("mount_setattr(set={set:#x}, clear={clear:#x}, propagation={propagation:#x})"))
        .map(drop)
}

/// Whether this process may use the mount API. Asked with flags that every kernel refuses (`EINVAL`): `ENOSYS` is the
/// answer of a kernel before 5.12, `EPERM` or `EACCES` that of a filter around us.
///
/// Source: fsopen(2), open_tree(2), move_mount(2), mount_setattr(2).
pub(crate) fn has_mount_api() -> bool {
    let path = c"".as_ptr();
    let flags = libc::c_uint::MAX;
    // SAFETY: each is refused for its flags before anything is done; the paths are NUL-terminated constants and the
    // attributes' size is 0.
    let answers = unsafe {
        [
            (libc::syscall(libc::SYS_fsopen, path, flags), Errno::last()),
            (libc::syscall(libc::SYS_open_tree, -1, path, flags), Errno::last()),
            (libc::syscall(libc::SYS_move_mount, -1, path, -1, path, flags), Errno::last()),
            (libc::syscall(libc::SYS_mount_setattr, -1, path, flags, path, 0usize), Errno::last()),
        ]
    };
    !answers.iter().any(|(_, errno)| matches!(errno, Errno::ENOSYS | Errno::EPERM | Errno::EACCES))
}

/// Marks every descriptor from `first` on close-on-exec. `proc` as for [`close_all_but`].
///
/// Source: close_range(2), `CLOSE_RANGE_CLOEXEC` since 5.11.
pub(crate) fn close_range_cloexec(first: u32, proc: Option<BorrowedFd<'_>>) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: only flags of descriptors change; no descriptor is closed here.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    match check(ret, || format!("close_range({first}, ~0, CLOEXEC)")) {
        Err(e) if range_missing(&e) => {}
        other => return other.map(drop),
    }
    for fd in open_descriptors(proc)?.into_iter().filter(|fd| *fd >= first) {
        // SAFETY: only flags of the descriptor change.
        let ret = unsafe { libc::fcntl(fd as RawFd, libc::F_SETFD, libc::FD_CLOEXEC) };
        match check(ret.into(), || format!("fcntl({fd}, F_SETFD, FD_CLOEXEC)")) {
            // The list's own.
            Err(e) if e.errno() == Some(Errno::EBADF) => {}
            other => _ = other?,
        }
    }
    Ok(())
}

/// Closes every descriptor but these. For a process made by [`clone3`], whose copies of its
/// maker's descriptors no variable of its own stands for. `proc` is a procfs that can be trusted; none means `/proc`,
/// which can be until a namespace is joined.
///
/// Source: close_range(2), since 5.9.
pub(crate) fn close_all_but(kept: &[RawFd], proc: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| *fd as u32).collect();
    kept.sort_unstable();
    kept.dedup();
    let mut first = 0;
    for last in kept.iter().copied().map(Some).chain([None]) {
        let end = last.map_or(u32::MAX, |fd| fd.saturating_sub(1));
        if last != Some(0) && first <= end {
            // SAFETY: the caller vouches that no value still in use owns one of these.
            let ret = unsafe { libc::syscall(libc::SYS_close_range, first, end, 0) };
            match check(ret, || format!("close_range({first}, {end})")) {
                Err(e) if range_missing(&e) => return close_one_by_one(&kept, proc),
                other => other?,
            };
        }
        first = last.map_or(u32::MAX, |fd| fd.max(first.saturating_sub(1)) + 1);
    }
    Ok(())
}

/// `kept` is sorted.
fn close_one_by_one(kept: &[u32], proc: Option<BorrowedFd<'_>>) -> Result<()> {
    for fd in open_descriptors(proc)?.into_iter().filter(|fd| kept.binary_search(fd).is_err()) {
        // SAFETY: the caller vouches that no value still in use owns it. EBADF is the list's own descriptor.
        unsafe { libc::close(fd as RawFd) };
    }
    Ok(())
}

/// An older kernel's answer, or that of a filter around us; `EINVAL` before `CLOSE_RANGE_CLOEXEC`.
fn range_missing(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL))
}

/// The descriptors of this process, and that of the list itself, which is closed by then.
fn open_descriptors(proc: Option<BorrowedFd<'_>>) -> Result<Vec<u32>> {
    use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
    let (dir, path) = proc.map_or((CWD, "/proc/self/fd"), |proc| (proc, "self/fd"));
    let shown =
        |e: rustix::io::Errno| Error::sys(format!("list({path:?})"), Errno::from_raw(e.raw_os_error()));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let list = Dir::new(openat(dir, path, flags, Mode::empty()).map_err(shown)?).map_err(shown)?;
    let mut found = Vec::new();
    for entry in list {
        found.extend(
            entry.map_err(shown)?.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()),
        );
    }
    Ok(found)
}

/// One instruction of classic BPF, as seccomp(2) takes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if true.
    pub jt: u8,
    /// Instructions to skip if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Installs a seccomp filter on this thread.
///
/// # Errors
/// `EACCES` without no_new_privs and without `CAP_SYS_ADMIN`.
///
/// Source: seccomp(2).
pub(crate) fn seccomp_set_filter(program: &[Instruction], flags: u32) -> Result<()> {
    seccomp(program, flags).map(drop)
}

/// As [`seccomp_set_filter`], and returns what an agent listens with.
///
/// Source: seccomp(2), `SECCOMP_FILTER_FLAG_NEW_LISTENER` since 5.0.
pub(crate) fn seccomp_new_listener(program: &[Instruction], flags: u32) -> Result<OwnedFd> {
    const NEW_LISTENER: u32 = 1 << 3;
    let fd = seccomp(program, flags | NEW_LISTENER)?;
    // SAFETY: the kernel returned a new close-on-exec descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn seccomp(program: &[Instruction], flags: u32) -> Result<libc::c_long> {
    #[repr(C)]
    struct Program {
        len: libc::c_ushort,
        filter: *const Instruction,
    }
    let len = u16::try_from(program.len()).expect("the compiler bounds its output");
    let prog = Program { len, filter: program.as_ptr() };
    // SAFETY: `prog` points at `len` instructions that outlive the call; the kernel copies them.
    let ret =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const prog) };
    check(ret, || format!("seccomp(SET_MODE_FILTER, flags={flags:#x}, {len} instructions)"))
}

/// What sched_setattr(2) takes. Source: include/uapi/linux/sched/types.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SchedAttr {
    /// `SCHED_*`.
    pub(crate) policy: u32,
    /// `SCHED_FLAG_*`.
    pub(crate) flags: u64,
    /// From -20 to 19.
    pub(crate) nice: i32,
    /// From 1 to 99, for the real-time policies.
    pub(crate) priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) runtime: u64,
    /// Nanoseconds.
    pub(crate) deadline: u64,
    /// Nanoseconds.
    pub(crate) period: u64,
}

/// Sets a thread's scheduling policy; 0 is this one.
///
/// # Errors
/// `EPERM` without `CAP_SYS_NICE`; `EBUSY` if there is no room for a deadline.
pub(crate) fn sched_setattr(pid: i32, attr: &SchedAttr) -> Result<()> {
    #[repr(C)]
    struct Raw {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
        util_min: u32,
        util_max: u32,
    }
    let SchedAttr { policy, flags, nice, priority, runtime, deadline, period } = *attr;
    let size = std::mem::size_of::<Raw>() as u32;
    let raw =
        Raw { size, policy, flags, nice, priority, runtime, deadline, period, util_min: 0, util_max: 0 };
    // SAFETY: `raw` outlives the call and the kernel reads `size` bytes of it.
    let ret = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const raw, 0) };
    check(ret, || format!("sched_setattr({pid}, {attr:?})")).map(drop)
}

/// Lets this thread run on every CPU that its cpuset has.
///
/// Source: sched_setaffinity(2).
pub(crate) fn run_anywhere() -> Result<()> {
    // As many as any kernel is built for; it ignores what it has not.
    let all = [u64::MAX; 128];
    // SAFETY: `all` outlives the call, and its size is given.
    let ret =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, std::mem::size_of_val(&all), all.as_ptr()) };
    check(ret, || "sched_setaffinity(0, all)".into()).map(drop)
}

/// Sets a process's I/O class and level, as ioprio_set(2) takes them; 0 is this one.
pub(crate) fn ioprio_set(pid: i32, priority: u32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: ioprio_set takes integers only.
    let ret = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, priority) };
    check(ret, || format!("ioprio_set(IOPRIO_WHO_PROCESS, {pid}, {priority:#x})")).map(drop)
}

/// Sets a limit of a process's, if given one, and returns what it was; 0 is this one.
///
/// Source: getrlimit(2).
pub(crate) fn prlimit(
    pid: i32,
    resource: nix::sys::resource::Resource,
    new: Option<(u64, u64)>,
) -> Result<(u64, u64), Errno> {
    let new = new.map(|(soft, hard)| libc::rlimit64 { rlim_cur: soft, rlim_max: hard });
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both structures have the kernel's layout and outlive the call.
    let ret = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource as libc::c_int, new, &raw mut old) };
    Errno::result(ret).map(|_| (old.rlim_cur, old.rlim_max))
}

/// Sets where this thread's memory comes from.
///
/// Source: set_mempolicy(2).
pub(crate) fn set_mempolicy(mode: u32, nodes: &[u32]) -> Result<()> {
    let mut mask = [0_u64; 16];
    nodes.iter().for_each(|node| mask[*node as usize / 64] |= 1 << (node % 64));
    let (pointer, bits) = match nodes {
        [] => (std::ptr::null(), 0),
        // The kernel reads one bit less than it is told.
        _ => (mask.as_ptr(), mask.len() * 64 + 1),
    };
    // SAFETY: `mask` outlives the call and holds the bits that the kernel reads.
    let ret = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) };
    check(ret, || format!("set_mempolicy({mode:#x}, {nodes:?})")).map(drop)
}

/// Gives this process a session keyring of its own, so that keys of its maker's are not found from it.
///
/// Source: keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`.
pub(crate) fn join_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; nothing is read.
    let ret = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    check(ret, || "keyctl(KEYCTL_JOIN_SESSION_KEYRING, NULL)".into()).map(drop)
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program of 64-bit instructions and attaches it to
/// `cgroup`, beside programs already there. It lives as long as the cgroup.
///
/// Source: bpf(2); `BPF_CGROUP_DEVICE` since 4.15.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, program: &[u64]) -> Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: the pointers in `load` outlive the call and `insn_cnt` is the slice's length.
    let ret =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, std::mem::size_of::<Load>()) };
    let fd = check(ret, || format!("bpf(BPF_PROG_LOAD, CGROUP_DEVICE, {} instructions)", program.len()))?;
    // SAFETY: BPF_PROG_LOAD returned a new close-on-exec descriptor that nobody else owns.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let attach = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: loaded.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` outlives the call; both descriptors are open.
    let ret = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, std::mem::size_of::<Attach>())
    };
    check(ret, || "bpf(BPF_PROG_ATTACH, BPF_CGROUP_DEVICE)".to_string()).map(drop)
}

/// Sets the file mode creation mask, and returns the one before. The kernel never refuses; libraries panic should a filter
/// around us do, and a half-made process must not panic.
///
/// Source: umask(2).
pub(crate) fn umask(mask: u32) -> u32 {
    // SAFETY: no pointers.
    unsafe { libc::umask(mask) }
}

/// Sets the NIS domain name of this UTS namespace.
///
/// Source: setdomainname(2).
pub(crate) fn setdomainname(name: &str) -> Result<()> {
    // SAFETY: pointer and length describe `name`, which outlives the call.
    let ret = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    check(ret.into(), || format!("setdomainname({name:?})")).map(drop)
}

/// Brings `lo` of this network namespace up.
///
/// Source: netdevice(7).
pub(crate) fn loopback_up() -> Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|errno| Error::sys("socket(AF_INET, SOCK_DGRAM)", errno))?;
    // SAFETY: an all-zero ifreq is valid: integers and a union of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    check(ret.into(), || "ioctl(SIOCSIFFLAGS, lo up)".to_string()).map(drop)
}

/// Opens the terminal end of pseudo-terminal `master` without using a path.
///
/// Source: ioctl_tty(2), `TIOCGPTPEER` since 4.13.
pub(crate) fn pty_peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    let ret = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
    check(ret.into(), || "ioctl(TIOCSPTLCK, 0)".to_string())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a descriptor.
    let ret = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    let fd = check(ret.into(), || "ioctl(TIOCGPTPEER)".to_string())?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Makes `tty` the controlling terminal of this session.
pub(crate) fn set_controlling_terminal(tty: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: TIOCSCTTY takes an integer argument.
    let ret = unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, 0) };
    check(ret.into(), || "ioctl(TIOCSCTTY)".to_string()).map(drop)
}

/// Sets a terminal's size, in characters.
pub fn set_window_size(tty: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    let ret = unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    check(ret.into(), || format!("ioctl(TIOCSWINSZ, {rows}x{columns})")).map(drop)
}

/// A terminal's size.
///
/// # Errors
/// `ENOTTY` if it is none.
pub fn window_size(tty: BorrowedFd<'_>) -> Result<crate::console::WindowSize> {
    // SAFETY: an all-zero winsize is valid: integers.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one winsize, which outlives the call.
    let ret = unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    check(ret.into(), || "ioctl(TIOCGWINSZ)".to_string())?;
    Ok(crate::console::WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// Drops capability number `cap` from the bounding set; `Ok(false)` if the kernel knows no such
/// capability. The caps crate covers those known when it was written; this one the rest.
pub(crate) fn drop_bounding(cap: u32) -> Result<bool> {
    // SAFETY: PR_CAPBSET_READ takes integers only.
    if unsafe { libc::prctl(libc::PR_CAPBSET_READ, cap, 0, 0, 0) } < 0 {
        return Ok(false);
    }
    // SAFETY: PR_CAPBSET_DROP takes integers only.
    let ret = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) };
    check(ret.into(), || format!("prctl(PR_CAPBSET_DROP, {cap})")).map(|_| true)
}

/// Puts `fd` at number `target`, without close-on-exec.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, target: RawFd) -> Result<()> {
    // SAFETY: only the three standard descriptors are targets, in a process about to exec.
    let ret = unsafe { libc::dup2(fd.as_raw_fd(), target) };
    check(ret.into(), || format!("dup2({}, {target})", fd.as_raw_fd())).map(drop)
}

/// Joins the namespaces of `kinds` (`CLONE_NEW*` bits) that `fd`, a namespace or a pidfd, names.
///
/// Source: setns(2); pidfds since 5.8.
pub(crate) fn setns(fd: BorrowedFd<'_>, kinds: i32) -> Result<()> {
    nix::sched::setns(fd, nix::sched::CloneFlags::from_bits_retain(kinds))
        .map_err(|errno| Error::sys(format!("setns({kinds:#x})"), errno))
}

/// Takes ownership of a descriptor received with `SCM_RIGHTS`.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: recvmsg installed this descriptor for us alone; the caller hands it over once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A real-time signal by the kernel's number.
///
/// # Panics
/// If the number is not one of theirs.
pub(crate) fn realtime(number: i32) -> rustix::process::Signal {
    assert!((34..=64).contains(&number), "{number} is not a real-time signal");
    // SAFETY: the kernel knows it, and the C library keeps only 32 and 33 for itself.
    unsafe { rustix::process::Signal::from_raw_unchecked(number) }
}
