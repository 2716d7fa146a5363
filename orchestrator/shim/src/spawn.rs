//! The daemon's side of the birth of a shim, or of another process of ours.
#![forbid(unsafe_code)]

use crate::frame::{self, Decoder};
use crate::launch::LOCK_FILE;
use crate::protocol::{Failure, FailureKind, ProcessName};
use crate::sys::{self, Call};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Time from exec to ready. A shim needs two milliseconds; a machine that swaps needs more.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// The program that shims run, held by a detached read-only mount: whoever gets hold of `/proc/SHIM/exe` cannot
/// write to it (CVE-2019-5736). Open it once; it may be used from any thread.
#[derive(Debug)]
pub struct Program {
    mount: OwnedFd,
}

impl Program {
    /// Takes the binary at `path`; `/proc/self/exe` is the caller's own.
    ///
    /// # Errors
    /// `NotFound`; `Denied` without `CAP_SYS_ADMIN`.
    ///
    /// Source: open_tree(2), mount_setattr(2).
    pub fn open(path: &Path) -> Result<Program, Failure> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(rustix::fs::CWD, path, flags)
            .call(|| format!("open_tree({}, OPEN_TREE_CLONE)", path.display()))?;
        sys::seal_mount(mount.as_fd())?;
        Ok(Program { mount })
    }
}

/// A shim to be started.
#[derive(Clone, Copy, Debug)]
pub struct SpawnRequest<'a> {
    /// What it runs: `podyard`, or whatever calls [`crate::run`] when its first argument is `shim`.
    pub program: &'a Program,
    /// The pod's directory; exists, mode 0700.
    pub pod_dir: &'a Path,
    /// The pod's uid.
    pub pod_uid: &'a str,
    /// The shim's own cgroup, from the hierarchy's root and outside the pod's; made if missing.
    pub cgroup: &'a str,
}

/// A shim that serves its socket, or a program that was let run.
#[derive(Debug)]
pub struct Spawned {
    /// Its process, which is nobody's child: learn of its end by the pidfd.
    pub process: ProcessName,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
}

/// Starts a shim and waits until it listens. Blocks for a few milliseconds; callable from any thread.
///
/// # Errors
/// `AlreadyExists` if the pod has a living shim; `Timeout`; or what the shim says.
pub fn spawn(request: &SpawnRequest<'_>) -> Result<Spawned, Failure> {
    let (ours, theirs) = UnixStream::pair().call(|| "socketpair(AF_UNIX, SOCK_STREAM)".into())?;
    // The child opens this name before its close-on-exec descriptors close.
    let mut launcher = Command::new(format!("/proc/self/fd/{}", request.program.mount.as_raw_fd()))
        .arg0("podyard")
        .args(["shim".as_ref(), request.pod_dir, request.pod_uid.as_ref(), request.cgroup.as_ref()])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .call(|| "exec podyard shim".into())?;
    let ready = receive_ready(&ours);
    // It exits as soon as the shim is born, or has told us why not.
    launcher.wait().call(|| "wait4(podyard shim)".into())?;
    ready
}

/// A process of ours that is to outlive the caller, born in its cgroup.
#[derive(Clone, Copy, Debug)]
pub struct LaunchRequest<'a> {
    /// `podyard`, or whatever calls [`crate::launch`] when its first argument is `launch`; it runs as this file.
    pub binary: &'a Path,
    /// Its first words, from the program's second on.
    pub words: &'a [std::ffi::OsString],
    /// Its whole environment.
    pub environment: &'a [(std::ffi::OsString, std::ffi::OsString)],
    /// Its cgroup, from the hierarchy's root; must be without processes, and is made anew.
    pub cgroup: &'a str,
    /// Its standard error is appended to this file.
    pub log: &'a Path,
}

/// Starts a process in a session of its own and answers as soon as it is born. Blocks for a few milliseconds.
///
/// # Errors
/// `Conflict` if the cgroup has processes; what the kernel says. That the program could not be executed is in the log.
pub fn launch(request: &LaunchRequest<'_>) -> Result<Spawned, Failure> {
    let (ours, theirs) = UnixStream::pair().call(|| "socketpair(AF_UNIX, SOCK_STREAM)".into())?;
    let mut launcher = Command::new(request.binary)
        .arg0("podyard")
        .args(["launch".as_ref(), std::ffi::OsStr::new(request.cgroup), request.log.as_os_str()])
        .args(request.words)
        .env_clear()
        .envs(request.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .call(|| format!("exec {} launch", request.binary.display()))?;
    let born = receive_ready(&ours);
    launcher.wait().call(|| "wait4(podyard launch)".into())?;
    born
}

fn receive_ready(socket: &UnixStream) -> Result<Spawned, Failure> {
    let deadline = Instant::now() + READY_DEADLINE;
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(Failure::new(FailureKind::Timeout, "not ready after 10 s")),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno).call(|| "poll(shim)".into()),
        }
        let received = frame::receive(socket.as_fd(), &mut buffer).call(|| "recvmsg(shim)".into())?;
        if received.count == 0 {
            return Err(Failure::new(FailureKind::Internal, "ended before it was ready"));
        }
        decoder.feed(&buffer[..received.count], received.fds);
        let frame = decoder.next_frame::<Result<ProcessName, Failure>>();
        match frame.map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))? {
            None => {}
            Some((Ok(process), fds)) => {
                let pidfd = fds.into_iter().next();
                let pidfd = pidfd.ok_or_else(|| Failure::new(FailureKind::Internal, "no pidfd was sent"))?;
                return Ok(Spawned { process, pidfd });
            }
            Some((Err(failure), _)) => return Err(failure),
        }
    }
}

/// Whether a shim of this pod lives: whether its lock is held.
///
/// # Errors
/// The disk's answer. A pod directory without a lock has no shim.
pub fn is_alive(pod_dir: &Path) -> Result<bool, Failure> {
    let path = pod_dir.join(LOCK_FILE);
    let file = match rustix::fs::open(&path, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    {
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        other => other.call(|| format!("open({})", path.display()))?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno).call(|| format!("flock({})", path.display())),
    }
}
