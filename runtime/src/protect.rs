//! A runtime that a container cannot overwrite (CVE-2019-5736).
//!
//! A process entering a container can be made to run `/proc/self/exe`, or be looked at through
//! `/proc/<pid>/exe`, and the host's binary is then a file the container may open for writing. So
//! the runtime runs from a read-only mount of its binary that is in no mount table: writing gets
//! `EROFS`, and nobody can find it to remount it. That costs one execve and no copy.

use std::ffi::CString;
use std::os::fd::AsFd;

use nix::fcntl::AtFlags;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, fstatvfs, open};

use crate::error::{Call, Error, Result, Step};
use crate::mounts::{clone_tree, options::READ_ONLY};
use crate::sys;

/// Makes this process one that runs from a detached read-only mount of its binary, and cannot be
/// traced or read by processes with fewer rights. Starts over with the same arguments and
/// environment unless that is so already; then it returns.
///
/// To be called first of all, from a single-threaded process.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
///
/// Source: open_tree(2), mount_setattr(2), execveat(2).
pub fn run_from_read_only_clone() -> Result<()> {
    let protect = || -> Result<()> {
        nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".into())?;
        let exe = open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .call(|| "open(\"/proc/self/exe\")".into())?;
        let mount = fstatvfs(&exe).call(|| "fstatvfs(exe)".into())?;
        if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Ok(());
        }
        let path = std::fs::read_link("/proc/self/exe").call(|| "readlink(\"/proc/self/exe\")".into())?;
        let clone = clone_tree(CWD, &path, false)?;
        sys::mount_setattr(clone.as_fd(), false, READ_ONLY, 0, 0)?;
        let strings = |list: Vec<std::ffi::OsString>| {
            list.into_iter()
                .map(|s| {
                    CString::new(s.into_encoded_bytes()).expect("the kernel's strings have no NUL inside")
                })
                .collect::<Vec<_>>()
        };
        let args = strings(std::env::args_os().collect());
        let joined = |(mut k, v): (std::ffi::OsString, std::ffi::OsString)| {
            k.push("=");
            k.push(v);
            k
        };
        let env = strings(std::env::vars_os().map(joined).collect());
        match nix::unistd::execveat(clone.as_fd(), c"", &args, &env, AtFlags::AT_EMPTY_PATH) {
            Ok(never) => match never {},
            Err(errno) => Err(Error::sys("execveat(exe, AT_EMPTY_PATH)", errno)),
        }
    };
    protect().step("run from a read-only clone")
}
