//! The only unsafe code.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use nix::libc;

/// Loads a kernel module. Source: finit_module(2).
pub fn load_module(file: &std::fs::File) -> nix::Result<()> {
    let options = c"";
    // SAFETY: the options are a NUL-terminated constant, the descriptor is open.
    let ret = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), options.as_ptr(), 0) };
    nix::errno::Errno::result(ret).map(drop)
}

/// Switches the machine off. Returns only on failure. Source: reboot(2).
pub fn power_off() -> nix::errno::Errno {
    // SAFETY: takes integers only; nothing of this process matters afterwards.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    nix::errno::Errno::last()
}
