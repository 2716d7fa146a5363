//! How a process comes into the world: cloned, in its cgroup, and heard of until it is ready.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

use crate::cgroup::Cgroup;
use crate::container::Parent;
use crate::error::{Call, Error, Kind, Result, Step};
use crate::pidfd;
use crate::protocol::{Ask, Channel, Order, Report};
use crate::sys::{self, Forked};

/// Where and whose a new process is.
pub(crate) struct Birth<'a> {
    /// `CLONE_NEW*`.
    pub(crate) flags: u64,
    pub(crate) cgroup: Option<&'a Cgroup>,
    /// The PID namespace it is born in, if not a new one or the caller's.
    pub(crate) pid_namespace: Option<BorrowedFd<'a>>,
    pub(crate) parent: Parent,
}

/// What the child does.
pub(crate) trait Script {
    /// The files in which it writes `0` to join cgroups.
    fn cgroups(&mut self) -> &mut Vec<OwnedFd>;

    /// Runs in the child, having read Go.
    fn run(self, channel: &Channel) -> Result<Infallible>;
}

/// A process that is ready and waits for Start.
pub(crate) struct Born {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) channel: Channel,
    pub(crate) warnings: Vec<String>,
    pub(crate) console: Option<OwnedFd>,
}

/// Why a child is not ready.
enum Trouble {
    /// It died before it read Go: before it did anything.
    Stillborn,
    /// It said, or we found, what is wrong.
    Failed(Error),
}

impl Birth<'_> {
    /// Makes the process, and returns when it is ready. `serve` does what it asks for, given its pid and pidfd, and may make a descriptor for it; first of all,
    /// before Go, what comes at the beginning.
    ///
    /// The child is born in its cgroup. Where the kernel cannot do that it moves there itself, first of all: before
    /// 5.7, and also from about 6.14 on if the destination, or the caller's own cgroup, was once killed by
    /// `cgroup.kill`. Such kernels compare the kill counters of the two, take the child for one that a kill has
    /// missed, and kill it.
    ///
    /// Source: clone(2); kernel/cgroup/cgroup.c, `kill_seq`, seen on 6.18.
    pub(crate) fn give<S: Script>(
        &self,
        mut script: S,
        serve: impl Fn(&Ask, i32, &OwnedFd) -> Result<Option<OwnedFd>>,
    ) -> Result<Born> {
        // A process of a container must not be traced by others there while it is half made. Source: CVE-2016-9962.
        nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".into())?;
        let step = || match self.cgroup {
            Some(cgroup) => format!("create a process in cgroup {}", cgroup.path().display()),
            None => "create a process".to_string(),
        };
        let mut into = self.cgroup;
        loop {
            let (ours, theirs) = Channel::pair()?;
            let trouble = match self.clone_process(into) {
                Ok(Forked::Child) => {
                    // Or the child would hold the parent's end open, and not see it close.
                    drop(ours);
                    live(script, &theirs)
                }
                Ok(Forked::Parent { pid, pidfd }) => {
                    drop(theirs);
                    let mut child = (pid, pidfd);
                    let heard = greet(&ours, &mut child, &serve);
                    let (pid, pidfd) = child;
                    match heard {
                        Ok((warnings, console)) => {
                            return Ok(Born { pid, pidfd, channel: ours, warnings, console });
                        }
                        Err(trouble) => {
                            self.bury(&pidfd);
                            trouble
                        }
                    }
                }
                Err(e) if cannot_be_born_there(&e) => Trouble::Stillborn,
                Err(e) => return Err(e.within(step())),
            };
            match (trouble, into.take()) {
                (Trouble::Failed(error), _) => return Err(error),
                (Trouble::Stillborn, Some(cgroup)) => script.cgroups().push(cgroup.procs()?),
                (Trouble::Stillborn, None) => {
                    let text = "clone is refused, or the process died at once (killed, or out of memory)";
                    return Err(Error::new(Kind::Unsupported, text).within(step()));
                }
            }
        }
    }

    fn clone_process(&self, into: Option<&Cgroup>) -> Result<Forked> {
        let mut flags = self.flags;
        if self.parent == Parent::Sibling {
            flags |= libc::CLONE_PARENT as u64;
        }
        let dir = into.map(Cgroup::dir).transpose()?;
        let own = self.pid_namespace.map(|_| own_pid_namespace()).transpose()?;
        if let Some(target) = self.pid_namespace {
            // Children only: this process stays where it is.
            pidfd::join_namespaces(target, libc::CLONE_NEWPID).step("join the pid namespace")?;
        }
        let cloned = sys::clone3(flags, dir.as_ref().map(AsFd::as_fd));
        if let (Some(own), false) = (own, matches!(cloned, Ok(Forked::Child))) {
            sys::setns(own.as_fd(), libc::CLONE_NEWPID).step("return to the pid namespace")?;
        }
        cloned
    }

    /// Kills a half-made process, and reaps it if it is ours.
    pub(crate) fn bury(&self, pidfd: &OwnedFd) {
        match pidfd::send_signal(pidfd, rustix::process::Signal::KILL) {
            // NotFound: it exited by itself, having reported why.
            Ok(()) | Err(_) => {}
        }
        if self.parent == Parent::Caller {
            match pidfd::wait(pidfd) {
                // ECHILD: somebody else reaped it.
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// Too old for `CLONE_INTO_CGROUP`, or a filter around us denies clone3.
fn cannot_be_born_there(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM))
}

/// Reaps one that has exited, or is about to. Gone already is what a caller that ignores SIGCHLD sees.
fn reap(pidfd: &OwnedFd) -> Result<()> {
    match pidfd::wait(pidfd) {
        Err(e) if e.errno() == Some(Errno::ECHILD) => Ok(()),
        other => other.map(drop),
    }
}

fn own_pid_namespace() -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .call(|| "open(\"/proc/self/ns/pid\")".into())
}

/// The child's life: ends in its program, or reports why not.
fn live<S: Script>(script: S, channel: &Channel) -> ! {
    // Read first of all: an error sent while an order lies unread would be lost with it.
    let outcome = match channel.receive::<Order>() {
        Ok(Some((Order::Go, _))) => script.run(channel),
        // The parent went away.
        _ => sys::exit_now(127),
    };
    let Err(error) = outcome;
    // If even this fails the parent sees the end of file, and says so.
    match channel.send(&Report::failed(error), None) {
        Ok(()) | Err(_) => sys::exit_now(127),
    }
}

/// The parent's half of the exchange, until Ready.
fn greet(
    channel: &Channel,
    child: &mut (i32, OwnedFd),
    serve: &impl Fn(&Ask, i32, &OwnedFd) -> Result<Option<OwnedFd>>,
) -> Result<(Vec<String>, Option<OwnedFd>), Trouble> {
    serve(&Ask::Begin, child.0, &child.1)
        .map_err(|e| if e.kind() == Kind::NotFound { Trouble::Stillborn } else { Trouble::Failed(e) })?;
    let stillborn = |e: Error| match e.errno() {
        // It went before Go was sent, or before it was read.
        Some(Errno::EPIPE | Errno::ECONNRESET) => Trouble::Stillborn,
        _ => Trouble::Failed(e),
    };
    channel.send(&Order::Go, None).map_err(stillborn)?;
    let mut heard = channel.receive::<Report>().map_err(stillborn)?;
    loop {
        match heard {
            Some((Report::Ready { warnings }, fd)) => return Ok((warnings, fd)),
            Some((Report::Failed(error), _)) => return Err(Trouble::Failed(error)),
            Some((Report::Ask(what), _)) => {
                let made = serve(&what, child.0, &child.1).map_err(Trouble::Failed)?;
                channel.send(&Order::Done, made.as_ref().map(AsFd::as_fd)).map_err(Trouble::Failed)?;
            }
            Some((Report::Reborn { pid }, Some(pidfd))) => {
                let (_, before) = std::mem::replace(child, (pid, pidfd));
                reap(&before).map_err(Trouble::Failed)?;
            }
            Some((Report::Reborn { .. }, None)) => {
                let text = "a process was born again without a descriptor";
                return Err(Trouble::Failed(Error::new(Kind::Internal, text)));
            }
            None => {
                let text = "the new process died before it was ready (killed, or out of memory)";
                return Err(Trouble::Failed(Error::new(Kind::Internal, text)));
            }
        }
        heard = channel.receive::<Report>().map_err(Trouble::Failed)?;
    }
}
