//! Processes named for good: across a wait, a pid may come to mean another one.
//!
//! The name is a pidfd. Where the kernel has none, or a filter around us denies it, it is the process's directory in
//! `/proc`: what is opened below that is the same process's, or `ESRCH`. That names a process as well, but for one
//! step: `kill` takes a number, and between the look and the signal the number could be given away.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open as open_file, openat};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::error::{Call, Error, Kind, Result};

/// Names process `pid`; `None` if there is none.
///
/// # Errors
/// The kernel's.
///
/// Source: pidfd_open(2), since 5.3.
pub fn open(pid: i32) -> Result<Option<OwnedFd>> {
    let Some(named) = Pid::from_raw(pid.max(0)) else {
        return Ok(None);
    };
    match rustix::process::pidfd_open(named, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(e) if missing(e) => directory(pid),
        other => other.map(Some).call(|| format!("pidfd_open({pid})")),
    }
}

fn directory(pid: i32) -> Result<Option<OwnedFd>> {
    let path = format!("/proc/{pid}");
    match open_file(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => Ok(None),
        other => other.map(Some).call(|| format!("open({path:?})")),
    }
}

/// Sends a signal.
///
/// # Errors
/// `NotFound` for a process that is gone.
///
/// Source: pidfd_send_signal(2), since 5.1.
pub fn send_signal(process: impl AsFd, signal: Signal) -> Result<()> {
    match rustix::process::pidfd_send_signal(&process, signal) {
        Err(e) if missing(e) => {}
        other => return other.call(|| format!("pidfd_send_signal({})", signal.as_raw())),
    }
    let pid = pid_of(process)?;
    let named = Pid::from_raw(pid).ok_or_else(|| Error::new(Kind::NotFound, "the process is gone"))?;
    rustix::process::kill_process(named, signal).call(|| format!("kill({pid}, {})", signal.as_raw()))
}

/// Waits for a child to exit, and reaps it: its exit code, or 128 and the signal that ended it.
///
/// # Errors
/// `ECHILD` if it is no child of ours, or was reaped.
///
/// Source: waitid(2), `P_PIDFD` since 5.4.
pub fn wait(process: impl AsFd) -> Result<i32> {
    let (code, signal) = wait_status(process)?;
    Ok(code.unwrap_or(128 + signal))
}

/// As [`wait`]: the exit code, or none and the signal.
pub(crate) fn wait_status(process: impl AsFd) -> Result<(Option<i32>, i32)> {
    let code = |exit: Option<i32>, signal: Option<i32>| (exit, signal.unwrap_or(0));
    loop {
        match rustix::process::waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => return Ok(code(status.exit_status(), status.terminating_signal())),
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) => return Err(Error::new(Kind::Internal, "waitid returned nothing")),
            Err(e) if missing(e) || matches!(e, rustix::io::Errno::INVAL | rustix::io::Errno::BADF) => break,
            Err(e) => return Err(e).call(|| "waitid(P_PIDFD)".into()),
        }
    }
    // A child's number stays its own until it is reaped.
    let pid = pid_of(process)?;
    loop {
        use nix::sys::wait::{WaitStatus, waitpid};
        match waitpid(nix::unistd::Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, exit)) => return Ok(code(Some(exit), None)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(code(None, Some(signal as i32))),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::sys(format!("waitpid({pid})"), e)),
        }
    }
}

/// Waits until the process exits, or for `timeout`. A directory of `/proc` tells nothing of that: then the time
/// passes, and the caller looks again.
///
/// # Errors
/// The kernel's.
pub fn wait_exit(process: impl AsFd, timeout: Duration) -> Result<bool> {
    let limit = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    let fds = if is_directory(process.as_fd())? { &mut [][..] } else { &mut fds[..] };
    match poll(fds, limit) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(e) => Err(Error::sys("poll(pidfd)", e)),
    }
}

/// The pid that a name stands for, in this process's procfs.
///
/// # Errors
/// `NotFound` if the process is gone.
pub fn pid_of(process: impl AsFd) -> Result<i32> {
    let process = process.as_fd();
    let gone = || Error::new(Kind::NotFound, "the process is gone");
    if is_directory(process)? {
        let file = openat(process, "stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let file = file.call(|| "openat(process, \"stat\")".into())?;
        let mut text = String::new();
        let read = std::io::Read::read_to_string(&mut std::fs::File::from(file), &mut text);
        read.call(|| "read(stat)".into())?;
        return text.split(' ').next().and_then(|pid| pid.parse().ok()).ok_or_else(gone);
    }
    let path = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let text = std::fs::read_to_string(&path).call(|| format!("read({path:?})"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(gone)
}

/// Whether the name is a directory of `/proc`.
pub(crate) fn is_directory(process: BorrowedFd<'_>) -> Result<bool> {
    let stat = fstat(process).call(|| "fstat(process)".into())?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Joins the namespaces of `kinds` (`CLONE_NEW*` bits) of a process.
///
/// # Errors
/// The kernel's.
///
/// Source: setns(2); pidfds since 5.8.
pub(crate) fn join_namespaces(process: BorrowedFd<'_>, kinds: i32) -> Result<()> {
    if !is_directory(process)? {
        return crate::sys::setns(process, kinds);
    }
    // The user namespace last: until then this process has rights over what the container shares with the host, too.
    // All are opened before any is joined.
    let known = [
        (libc::CLONE_NEWUTS, "uts"),
        (libc::CLONE_NEWIPC, "ipc"),
        (libc::CLONE_NEWNET, "net"),
        (libc::CLONE_NEWCGROUP, "cgroup"),
        (libc::CLONE_NEWPID, "pid"),
        (libc::CLONE_NEWTIME, "time"),
        (libc::CLONE_NEWNS, "mnt"),
        (libc::CLONE_NEWUSER, "user"),
    ];
    let wanted = known.iter().filter(|(kind, _)| kinds & kind != 0);
    let opened = wanted.map(|(kind, name)| {
        let path = format!("ns/{name}");
        let fd = openat(process, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Ok((*kind, fd.call(|| format!("openat(process, {path:?})"))?))
    });
    for (kind, fd) in opened.collect::<Result<Vec<_>>>()? {
        crate::sys::setns(fd.as_fd(), kind)?;
    }
    Ok(())
}

/// An older kernel's answer, or that of a filter around us. Where `EPERM` is meant as such, the fallback gets it too.
fn missing(errno: rustix::io::Errno) -> bool {
    matches!(errno, rustix::io::Errno::NOSYS | rustix::io::Errno::PERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_proc_is_a_name_too() {
        let mut command = std::process::Command::new("/proc/self/exe");
        let mut child = command.arg("--list").stdout(std::process::Stdio::null()).spawn().unwrap();
        let pid = child.id() as i32;
        let (by_pidfd, by_directory) = (open(pid).unwrap().unwrap(), directory(pid).unwrap().unwrap());
        assert_eq!(pid_of(&by_pidfd).unwrap(), pid);
        assert_eq!(pid_of(&by_directory).unwrap(), pid);
        assert!(wait_exit(&by_pidfd, Duration::from_secs(20)).unwrap());
        assert!(!wait_exit(&by_directory, Duration::ZERO).unwrap());
        assert!(wait(&by_directory).is_ok());
        assert_eq!(pid_of(&by_pidfd).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(pid_of(&by_directory).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(send_signal(&by_directory, Signal::KILL).unwrap_err().kind(), Kind::NotFound);
        assert!(child.wait().is_err());
        assert!(open(i32::MAX).unwrap().is_none() && directory(i32::MAX).unwrap().is_none());
        assert!(open(0).unwrap().is_none() && open(-1).is_ok_and(|found| found.is_none()));
    }
}
