//! A runtime that a container cannot overwrite (CVE-2019-5736).
//!
//! A process entering a container can be made to run `/proc/self/exe`, or be looked at through
//! `/proc/<pid>/exe`, and the host's binary is then a file the container may open for writing. So
//! the runtime runs from a read-only mount of its binary that is in no mount table: writing gets
//! `EROFS`, and nobody can find it to remount it. That costs one execve and no copy. Without the mount API, or without
//! the rights it needs, it runs from a copy in memory that is sealed against any change.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use rustix::fs::{
    CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals, fstatvfs,
    memfd_create, open,
};

use crate::error::{Call, Error, Result, Step};
use crate::mounts::api::{clone_tree, name_of};
use crate::mounts::options::READ_ONLY;
use crate::sys::{self, MountAttr};

/// How often the program may be found busy: the kernel counts a writer before it looks whether the mount is read-only, so
/// one that is refused makes it so for an instant. Source: fs/open.c, `do_dentry_open`.
const BUSY_TRIES: u32 = 1000;

/// Seals that make a file in memory immutable, for good.
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Makes this process one that runs from a detached read-only mount of its binary, and cannot be
/// traced or read by processes with fewer rights. Starts over with the same arguments and
/// environment unless that is so already; then it returns.
///
/// To be called first of all, from a single-threaded process.
///
/// # Errors
/// What the kernel says to copying or mounting the binary.
///
/// Source: open_tree(2), mount_setattr(2), execveat(2).
pub fn run_from_read_only_clone() -> Result<()> {
    let protect = || -> Result<()> {
        nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".into())?;
        let exe = open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .call(|| "open(\"/proc/self/exe\")".into())?;
        let mount = fstatvfs(&exe).call(|| "fstatvfs(exe)".into())?;
        let sealed = fcntl_get_seals(&exe).is_ok_and(|seals| seals.contains(SEALS));
        if sealed || mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Ok(());
        }
        let clone = if sys::has_mount_api() { read_only_clone()? } else { sealed_copy(exe)? };
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
        for tries in 0..=BUSY_TRIES {
            match nix::unistd::execveat(clone.as_fd(), c"", &args, &env, AtFlags::AT_EMPTY_PATH) {
                Ok(never) => match never {},
                Err(Errno::ENOSYS | Errno::EPERM) => break,
                // A container tries to write it, and is being refused.
                Err(Errno::ETXTBSY) if tries < BUSY_TRIES => {}
                Err(errno) => return Err(Error::sys("execveat(exe, AT_EMPTY_PATH)", errno)),
            }
        }
        // An older kernel, or a filter around us.
        let name = name_of(&clone)?;
        let path = strings(vec![name.clone().into()]).remove(0);
        Err(Error::sys(format!("execve({name:?})"), sys::execve(&path, &args, &env)))
    };
    protect().step("run from a read-only clone")
}

/// The binary's mount, detached and read-only.
fn read_only_clone() -> Result<OwnedFd> {
    let path = std::fs::read_link("/proc/self/exe").call(|| "readlink(\"/proc/self/exe\")".into())?;
    let clone = clone_tree(CWD, &path, false)?;
    sys::mount_setattr(clone.as_fd(), false, MountAttr { set: READ_ONLY, ..MountAttr::default() })?;
    Ok(clone)
}

/// A copy of the binary that nobody can change. Source: memfd_create(2), fcntl(2), "File Sealing".
fn sealed_copy(exe: OwnedFd) -> Result<OwnedFd> {
    let name = "podyard-oci";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Asked for by name where a policy may forbid programs in memory; before 6.3 the flag is unknown.
    let copy = match memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags),
        other => other,
    };
    let mut copy = std::fs::File::from(copy.call(|| format!("memfd_create({name:?}, ALLOW_SEALING)"))?);
    std::io::copy(&mut std::fs::File::from(exe), &mut copy).call(|| "sendfile(memfd, exe)".into())?;
    fcntl_add_seals(&copy, SEALS).call(|| "fcntl(memfd, F_ADD_SEALS)".into())?;
    // What is open for writing cannot be executed.
    let name = name_of(&copy)?;
    open(&name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).call(|| format!("open({name:?})"))
}
