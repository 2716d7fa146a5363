//! The program that a process will run: looked for before the process says that it is ready, so that a container whose
//! program is missing is never created, and engines hear of it from `create`, as they do with runc.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{Access, AtFlags, CWD, FileType};

use crate::error::{Error, Result};

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file that `name` means to a process with this environment, working directory and user: those of the caller.
///
/// # Errors
/// `exec <name>: ENOENT`, and `EACCES` for what is there but is not a file or may not be executed.
///
/// Source: execvp(3), which goes on after `EACCES` and tells of it only if there is nothing better.
pub(crate) fn find(name: &CStr, env: &[CString]) -> Result<CString> {
    let shown = name.to_string_lossy();
    if name.to_bytes().contains(&b'/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(errno) => Err(Error::sys(format!("exec {shown}"), errno)),
        };
    }
    let path =
        env.iter().find_map(|e| e.to_bytes().strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH.as_bytes());
    let mut answer = Errno::ENOENT;
    for dir in path.split(|b| *b == b':') {
        // An empty element is the working directory.
        let dir = if dir.is_empty() { b"." } else { dir };
        let full = Path::new(OsStr::from_bytes(dir)).join(OsStr::from_bytes(name.to_bytes()));
        let Ok(full) = CString::new(full.into_os_string().into_encoded_bytes()) else {
            continue;
        };
        match executable(&full) {
            Ok(()) => return Ok(full),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::EACCES) => answer = Errno::EACCES,
            Err(other) => return Err(Error::sys(format!("exec {shown}"), other)),
        }
    }
    let path = String::from_utf8_lossy(path);
    Err(match answer {
        Errno::ENOENT => {
            Error::sys(format!("exec {shown} (executable file not found in $PATH={path})"), answer)
        }
        other => Error::sys(format!("exec {shown}"), other),
    })
}

/// Whether execve may try it. A filter that is loaded already may refuse to tell; then execve does.
fn executable(path: &CStr) -> std::result::Result<(), Errno> {
    let told = |e: rustix::io::Errno| match Errno::from_raw(e.raw_os_error()) {
        Errno::EPERM | Errno::ENOSYS => Ok(()),
        errno => Err(errno),
    };
    match rustix::fs::statat(CWD, path, AtFlags::empty()) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
            return Err(Errno::EACCES);
        }
        Ok(_) => {}
        Err(e) => return told(e),
    }
    // With the effective IDs and capabilities, as execve looks.
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).or_else(told)
}
