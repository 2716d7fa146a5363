//! `podyard shim`: from the daemon's child to a process of its own.
//!
//! ```text
//!  daemon ──exec──► launcher ──clone3(CLONE_INTO_CGROUP)──► shim ── setsid, lock, listen ──► ready + pidfd on fd 0
//!                      └── exits at once: the shim is nobody's child
//! ```
#![forbid(unsafe_code)]

use crate::cgroup::fresh_cgroup;
use crate::frame;
use crate::protocol::{Failure, FailureKind, SOCKET_FILE};
use crate::server::Shim;
use crate::sys::{self, Call, Forked, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Name of the file whose lock says that a shim lives.
pub(crate) const LOCK_FILE: &str = "shim.lock";
/// What the shim has to say, in the pod directory.
const LOG_FILE: &str = "shim.log";
/// Clients waiting to be accepted.
const BACKLOG: i32 = 64;

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    pod_dir: PathBuf,
    pod_uid: String,
    cgroup: PathBuf,
}

/// The whole of `podyard shim …`. `args` is what follows the word `shim`. Call it first of all: no thread, no
/// runtime, no argument parser before it. Fd 0 is the socket on which readiness is reported.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    sys::tune_allocator();
    // Number 0 stays taken, so that nothing else gets it before /dev/null does.
    let Ok(standard) = sys::take_fd(0) else { return ExitCode::FAILURE };
    let Ok(report) = rustix::io::fcntl_dupfd_cloexec(&standard, 3) else { return ExitCode::FAILURE };
    match parse(args).and_then(|arguments| Ok((birth(&arguments)?, arguments))) {
        Ok((Forked::Parent { .. }, _)) => ExitCode::SUCCESS,
        Ok((Forked::Child, arguments)) => sys::exit_now(live(&arguments, report)),
        Err(failure) => {
            if tell(&report, &Err(failure.clone()), None).is_err() {
                eprintln!("podyard shim: {failure}");
            }
            ExitCode::FAILURE
        }
    }
}

fn parse(args: impl Iterator<Item = OsString>) -> Result<Arguments> {
    let usage = || Failure::new(FailureKind::Invalid, "usage: podyard shim POD_DIR POD_UID CGROUP");
    let args: Vec<OsString> = args.collect();
    let [pod_dir, pod_uid, cgroup] = args.as_slice() else { return Err(usage()) };
    let pod_uid = pod_uid.to_str().ok_or_else(usage)?.to_owned();
    Ok(Arguments { pod_dir: pod_dir.into(), pod_uid, cgroup: cgroup.into() })
}

/// In the launcher: makes the shim, in its cgroup.
fn birth(arguments: &Arguments) -> Result<Forked> {
    // Another shim, or a worker of a dead one that has not been fenced.
    let cgroup = fresh_cgroup(&arguments.cgroup).map_err(|failure| match failure.kind {
        FailureKind::Conflict => Failure { kind: FailureKind::AlreadyExists, ..failure },
        _ => failure,
    })?;
    sys::fork(0, Some(cgroup.dir()?.as_fd()))
}

/// The life of the shim; its exit code.
fn live(arguments: &Arguments, report: OwnedFd) -> i32 {
    let (shim, _lock) = match prepare(arguments, &report) {
        Ok(prepared) => prepared,
        Err(failure) => {
            // The daemon gives up on a shim that it cannot hear.
            let _ = tell(&report, &Err(failure), None);
            return 1;
        }
    };
    drop(report);
    sys::trim_heap();
    let socket = arguments.pod_dir.join(SOCKET_FILE);
    match shim
        .run()
        .and_then(|()| std::fs::remove_file(&socket).call(|| format!("unlink {}", socket.display())))
    {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("shim ends: {failure}");
            1
        }
    }
}

/// Everything before the first client, and the word that it is done.
fn prepare(arguments: &Arguments, report: &OwnedFd) -> Result<(Shim, OwnedFd)> {
    rustix::process::setsid().call(|| "setsid".into())?;
    rustix::process::chdir("/").call(|| "chdir(/)".into())?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::become_shim(c"podyard-shim")?;
    // Without CAP_SYS_RESOURCE the shim is as likely to be chosen by the kernel as any process of its size.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
    sys::close_all_but(&[report.as_raw_fd()])?;
    redirect_stdio(&arguments.pod_dir)?;
    let signals = block_signals()?;
    let lock = lock(&arguments.pod_dir)?;
    let listener = listen(&arguments.pod_dir)?;
    let shim = Shim::new(arguments.pod_dir.clone(), arguments.pod_uid.clone(), listener, signals)?;
    let me = rustix::process::getpid();
    let pidfd = rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty())
        .call(|| format!("pidfd_open({})", me.as_raw_nonzero()))?;
    tell(report, &Ok(shim.me.clone()), Some(&pidfd))?;
    Ok((shim, lock))
}

/// One frame: the new process's name, or why there is none.
pub(crate) fn tell(
    report: &OwnedFd,
    result: &Result<crate::protocol::ProcessName>,
    pidfd: Option<&OwnedFd>,
) -> Result<()> {
    let fds: Vec<_> = pidfd.iter().map(|fd| fd.as_fd()).collect();
    let bytes = frame::encode(result, fds.len())
        .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
    frame::send_all(report.as_fd(), &bytes, &fds).call(|| "sendmsg(ready)".into())
}

fn redirect_stdio(pod_dir: &Path) -> Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .call(|| "open(/dev/null)".into())?;
    let path = pod_dir.join(LOG_FILE);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let log = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
        .call(|| format!("open({})", path.display()))?;
    nix::unistd::dup2_stdin(&null).call(|| "dup2(/dev/null, 0)".into())?;
    nix::unistd::dup2_stdout(&null).call(|| "dup2(/dev/null, 1)".into())?;
    nix::unistd::dup2_stderr(&log).call(|| "dup2(shim.log, 2)".into())
}

/// Blocks every signal that could end the shim by accident; SIGCHLD arrives by descriptor.
fn block_signals() -> Result<SignalFd> {
    SigSet::all().thread_set_mask().call(|| "sigprocmask(SIG_SETMASK, all)".into())?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .call(|| "signalfd(SIGCHLD)".into())
}

fn lock(pod_dir: &Path) -> Result<OwnedFd> {
    let path = pod_dir.join(LOCK_FILE);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
        .call(|| format!("open({})", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let text = format!("another shim holds {}", path.display());
            Err(Failure::new(FailureKind::AlreadyExists, text))
        }
        other => other.call(|| format!("flock({})", path.display())).map(|()| file),
    }
}

/// Binds the socket in the pod directory; the lock is held, so what is there is a dead shim's.
fn listen(pod_dir: &Path) -> Result<OwnedFd> {
    let path = pod_dir.join(SOCKET_FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).call(|| format!("unlink {}", path.display()));
        }
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .call(|| "socket(AF_UNIX, SOCK_STREAM)".into())?;
    // From inside: a socket address holds 107 bytes of path, and the pod directory may be longer.
    let dir = rustix::fs::open(pod_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open({})", pod_dir.display()))?;
    let address = format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd());
    let address = SocketAddrUnix::new(address).call(|| "sockaddr_un".into())?;
    rustix::net::bind(&socket, &address).call(|| format!("bind({})", path.display()))?;
    rustix::fs::chmod(&path, Mode::from_raw_mode(0o600))
        .call(|| format!("chmod({}, 0600)", path.display()))?;
    rustix::net::listen(&socket, BACKLOG).call(|| "listen".into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_three() {
        let parse = |args: &[&str]| parse(args.iter().map(OsString::from));
        let expect = Arguments { pod_dir: "/r/p".into(), pod_uid: "u".into(), cgroup: "/c".into() };
        assert_eq!(parse(&["/r/p", "u", "/c"]).unwrap(), expect);
        assert_eq!(parse(&["/r/p", "u"]).unwrap_err().kind, FailureKind::Invalid);
    }
}
