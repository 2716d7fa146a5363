//! The bench's only unsafe code: the C entry point and what rustix lacks.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::ExitCode;

use nix::libc;

/// The C library's entry point, in place of the Rust runtime's.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    if crate::run() == ExitCode::SUCCESS { 0 } else { 1 }
}

/// Makes a process in the namespaces of `flags` and in `cgroup`; 0 in the child, which must exec or exit.
///
/// Source: clone(2).
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> i64 {
    // SAFETY: an all-zero clone_args is valid: every field is an integer.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` outlives the call; without CLONE_VM the child has its own memory, and there is one thread.
    unsafe { libc::syscall(libc::SYS_clone3, &raw const args, std::mem::size_of::<libc::clone_args>()) }
}

/// Ends this process at once.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit touches no memory.
    unsafe { libc::_exit(code) }
}

/// Brings `lo` up. Source: netdevice(7).
pub fn loopback_up(socket: BorrowedFd<'_>) {
    // SAFETY: an all-zero ifreq is valid: integers and a union of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
}

/// Loads a seccomp filter of 8-byte instructions. Source: seccomp(2).
pub fn seccomp(program: &[u8]) -> i64 {
    #[repr(C)]
    struct Program {
        len: libc::c_ushort,
        filter: *const u8,
    }
    let program = Program { len: (program.len() / 8) as u16, filter: program.as_ptr() };
    // SAFETY: `program` names `len` instructions that outlive the call; the kernel copies them.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) }
}

/// What a process and those it waited for have used.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// As wait(2) reports it.
    pub status: i32,
    /// User and system time, in milliseconds.
    pub cpu_ms: f64,
    /// The largest resident set among them, in kilobytes.
    pub rss_kb: i64,
}

/// Reaps `pid`, which has exited. Source: wait4(2), getrusage(2).
pub fn wait4(pid: i32) -> Option<Usage> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid: integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both outlive the call, which writes them.
    let reaped = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let ms = |t: libc::timeval| t.tv_sec as f64 * 1e3 + t.tv_usec as f64 / 1e3;
    (reaped == pid).then(|| Usage {
        status,
        cpu_ms: ms(usage.ru_utime) + ms(usage.ru_stime),
        rss_kb: usage.ru_maxrss,
    })
}
