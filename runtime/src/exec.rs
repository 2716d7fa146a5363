//! One more process in a running container.
//!
//! Its own straight line, beside init.rs: no mounts are made, all namespaces exist. What differs
//! in trust: the container's processes are running, and the root is theirs, so every path is
//! looked up below a root fixed by descriptor, and the new process cannot be traced until it has
//! given up its rights.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::attributes;
use crate::birth::{Birth, Born, Script};
use crate::cgroup::{self, Cgroup};
use crate::console;
use crate::container::{Parent, StartGate, introduce};
use crate::error::{Call, Error, Kind, Result, Step};
use crate::init::join_cgroups;
use crate::mounts;
use crate::namespaces;
use crate::pidfd;
pub use crate::pidfd::pid_of;
pub use crate::process::ProcessPlan;

use crate::process::{Settling, Stdio};
use crate::protocol::{Ask, Channel, Order, Report, above_stdio};
use crate::seccomp::Filter;
use crate::state::{Identity, Status};
use crate::sys;

/// Everything an exec is made from.
#[derive(Debug)]
pub struct ExecRequest {
    /// Names a process of the container, whose namespaces are joined: its first, as a rule.
    pub target: OwnedFd,
    /// What to run.
    pub process: ProcessPlan,
    /// The container's filter.
    pub seccomp: Option<Filter>,
    /// Standard streams or a terminal.
    pub stdio: Stdio,
    /// The container's cgroup.
    pub cgroup: Option<Cgroup>,
    /// Whose child the process is.
    pub parent: Parent,
    /// What the agent of its filter is told of the container.
    pub identity: Identity,
}

/// A process running its program.
#[derive(Debug)]
pub struct Executed {
    /// In the caller's PID namespace.
    pub pid: i32,
    /// Names the process for good.
    pub pidfd: OwnedFd,
    /// The terminal's master end, if one was asked for.
    pub console: Option<OwnedFd>,
    /// What was asked for and could be done in part only.
    pub warnings: Vec<String>,
}

struct Entering<'a> {
    target: OwnedFd,
    /// Its root, if it has no mount namespace of its own.
    root: Option<OwnedFd>,
    /// `CLONE_NEW*` bits of those namespaces of its that are not ours already.
    kinds: i32,
    process: &'a ProcessPlan,
    seccomp: Option<&'a Filter>,
    stdio: Stdio,
    cgroups: Vec<OwnedFd>,
}

/// Runs a process in the namespaces, root and cgroup of a container. Returns once its program
/// runs. Must be called from a single-threaded process; blocks.
///
/// # Errors
/// The failing step and the kernel's answer; `exec <path>: ENOENT` and the like for the program.
/// The process is gone then.
///
/// # Panics
/// If the calling process has more than one thread.
pub fn exec(request: ExecRequest) -> Result<Executed> {
    let ExecRequest { target, process, seccomp, stdio, cgroup, parent, identity } = request;
    let target = above_stdio(target)?;
    let stdio = match stdio {
        Stdio::Fds([a, b, c]) => Stdio::Fds([above_stdio(a)?, above_stdio(b)?, above_stdio(c)?]),
        terminal => terminal,
    };
    let kinds = namespaces_to_join(&target)?;
    let birth = Birth { flags: 0, cgroup: cgroup.as_ref(), pid_namespace: Some(target.as_fd()), parent };
    let entering = Entering {
        target: rustix::io::fcntl_dupfd_cloexec(&target, 3).call(|| "fcntl(F_DUPFD)".into())?,
        kinds,
        process: &process,
        seccomp: seccomp.as_ref(),
        stdio,
        root: root_in_ours(&target)?,
        cgroups: cgroup::tasks_files(&cgroup.as_ref().map_or(Vec::new(), Cgroup::v1_places))?,
    };
    let limited = std::cell::RefCell::new(Vec::new());
    let serve = |what: &Ask, pid, pidfd: &OwnedFd| match what {
        Ask::Begin => Ok(None),
        Ask::Limits => {
            limited.borrow_mut().extend(process.limit_child(pid)?);
            Ok(None)
        }
        Ask::Listener(fd) => {
            introduce(seccomp.as_ref(), (pid, pidfd, *fd), &identity, Status::Running).map(|()| None)
        }
        other => Err(Error::new(Kind::Internal, format!("an exec asks for {other:?}"))),
    };
    let initial = process.attributes.initial_cpus.as_deref();
    let born = attributes::on_cpus(initial, || birth.give(entering, serve))?;
    let Born { pid, pidfd, channel, mut warnings, console } = born;
    warnings.extend(limited.take());
    match StartGate::from_fd(channel.into_fd()).start() {
        Ok(()) => Ok(Executed { pid, pidfd, console, warnings }),
        Err(error) => {
            birth.bury(&pidfd);
            Err(error)
        }
    }
}

impl Script for Entering<'_> {
    fn cgroups(&mut self) -> &mut Vec<OwnedFd> {
        &mut self.cgroups
    }

    fn run(self, channel: &Channel) -> Result<Infallible> {
        sys::close_all_but(&self.descriptors(channel), None)?;
        sys::reset_signals()?;
        join_cgroups(&self.cgroups)?;
        self.process.attributes.settle_on_cpus()?;
        rustix::process::setsid().call(|| "setsid()".into())?;
        let host = mounts::proc_before_joining()?;
        pidfd::join_namespaces(self.target.as_fd(), self.kinds).step("join the container's namespaces")?;
        drop(self.target);
        // Joining a mount namespace moves root and working directory to its root: the host's, if it is that.
        if let Some(root) = &self.root {
            mounts::host::enter(root)?;
        }
        let root = open_root(Path::new("/"))?;
        let proc = host.map_or_else(mounts::private_proc, Ok)?;
        let (stdio, master) = match self.stdio {
            Stdio::Fds(fds) => (fds, None),
            Stdio::Terminal(size) => {
                let console = console::open(root.as_fd(), size.or(self.process.window))?;
                let dup = || {
                    rustix::io::fcntl_dupfd_cloexec(&console.terminal, 3)
                        .call(|| "fcntl(F_DUPFD_CLOEXEC)".into())
                };
                let (a, b) = (dup()?, dup()?);
                ([console.terminal, a, b], Some(console.master))
            }
        };
        let mut warnings = Vec::new();
        let settled = Settling {
            process: self.process,
            seccomp: self.seccomp,
            root: root.as_fd(),
            proc: proc.as_fd(),
            stdio: [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()],
            terminal: master.is_some(),
            user_namespace: self.kinds & namespaces::Kind::User.flag() != 0,
            channel,
        }
        .settle(&mut warnings)?;
        drop((stdio, root, self.cgroups));
        let waiting = [0, 1, 2, channel.as_fd().as_raw_fd(), proc.as_raw_fd()].into_iter();
        let waiting = waiting.chain(master.as_ref().map(AsRawFd::as_raw_fd));
        let kept: Vec<RawFd> = self.process.preserved().chain(waiting).collect();
        sys::close_all_but(&kept, Some(proc.as_fd()))?;
        drop(proc);
        let settled = settled.restrict()?;
        let ready = Report::ready(warnings);
        channel.send(&ready, master.as_ref().map(AsFd::as_fd))?;
        drop(master);
        match channel.receive::<Order>()? {
            Some((Order::Start, _)) => Err(settled.execute()),
            _ => Err(Error::new(Kind::Internal, "given up before start")),
        }
    }
}

impl Entering<'_> {
    /// What this process needs of what it inherited. The rest is closed before the container can
    /// look at it.
    fn descriptors(&self, channel: &Channel) -> Vec<RawFd> {
        let stdio = match &self.stdio {
            Stdio::Fds(fds) => &fds[..],
            Stdio::Terminal(_) => &[],
        };
        let owned = stdio.iter().chain(&self.cgroups).chain([&self.target]).chain(&self.root);
        let channel = channel.as_fd().as_raw_fd();
        let preserved = self.process.preserved();
        owned.map(AsRawFd::as_raw_fd).chain(preserved).chain([0, 1, 2, channel]).collect()
    }
}

fn open_root(path: &Path) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).call(|| format!("open({path:?})"))
}

/// The root of a container that shares our mount namespace.
fn root_in_ours(target: &OwnedFd) -> Result<Option<OwnedFd>> {
    let pid = pid_of(target)?;
    let namespace = |of: &str| {
        let path = format!("/proc/{of}/ns/mnt");
        std::fs::read_link(&path).call(|| format!("readlink({path:?})"))
    };
    if namespace(&pid.to_string())? != namespace("self")? {
        return Ok(None);
    }
    let root = above_stdio(open_root(Path::new(&format!("/proc/{pid}/root")))?)?;
    // The number is still its own, or this fails.
    pid_of(target)?;
    Ok(Some(root))
}

/// Joining one's own user namespace is an error, and a kernel may lack time namespaces.
fn namespaces_to_join(target: &OwnedFd) -> Result<i32> {
    let pid = pid_of(target)?;
    let mut kinds = 0;
    for kind in namespaces::Kind::ALL {
        let link = |of: &str| {
            let path = format!("/proc/{of}/ns/{}", kind.file_name());
            std::fs::read_link(&path).call(|| format!("readlink({path:?})"))
        };
        match kind {
            // It is born in it.
            namespaces::Kind::Pid => {}
            namespaces::Kind::User => {
                if link(&pid.to_string())? != link("self")? {
                    kinds |= kind.flag();
                }
            }
            namespaces::Kind::Time => {
                let own = link("self");
                if own.is_ok() && link(&pid.to_string())? != own? {
                    kinds |= kind.flag();
                }
            }
            other => kinds |= other.flag(),
        }
    }
    Ok(kinds)
}
