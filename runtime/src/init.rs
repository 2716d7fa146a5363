//! The first process of a new container: a straight line from clone3 to execve.
//!
//! Runs in the child. Every step either succeeds or ends the script with its name; the caller
//! sends that to the parent. Nothing here returns to the code that cloned.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::birth::Script;
use crate::console::{self, WindowSize};
use crate::error::{Call, Error, Kind, Result, Step};
use crate::mounts::beneath::{self, Links};
use crate::mounts::{self, CgroupView, DetachedMount, Root};
use crate::namespaces;
use crate::plan::Plan;
use crate::process::Settling;
use crate::protocol::{Channel, Order, Report};
use crate::sys;

/// What the first process needs, all opened before the clone.
pub(crate) struct Init<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) root: Root,
    pub(crate) mounts: Vec<DetachedMount>,
    /// Namespaces to join, but for the PID namespace, in which the child is born.
    pub(crate) join: Vec<(namespaces::Kind, OwnedFd)>,
    /// `tasks` and `cgroup.procs` files in which to write `0`.
    pub(crate) cgroups: Vec<OwnedFd>,
    pub(crate) cgroup_view: CgroupView,
    pub(crate) stdio: InitStdio,
    /// Where Start comes from, if not from the channel.
    pub(crate) listener: Option<OwnedFd>,
}

/// Standard streams of the first process.
pub(crate) enum InitStdio {
    Fds([OwnedFd; 3]),
    Terminal(Option<WindowSize>),
}

impl Script for Init<'_> {
    fn cgroups(&mut self) -> &mut Vec<OwnedFd> {
        &mut self.cgroups
    }

    fn run(self, channel: &Channel) -> Result<Infallible> {
        let plan = self.plan;
        let mut warnings = plan.warnings.clone();
        sys::close_all_but(&self.descriptors(channel))?;
        sys::reset_signals()?;
        // Before the cgroup namespace, whose root is where the process is then.
        join_cgroups(&self.cgroups)?;
        rustix::process::setsid().call(|| "setsid()".into())?;
        for (kind, fd) in &self.join {
            sys::setns(fd.as_fd(), kind.flag()).step(format!("join the {} namespace", kind.file_name()))?;
        }
        if plan.fresh(namespaces::Kind::User) {
            become_root()?;
        }
        if plan.fresh(namespaces::Kind::Cgroup) {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
                .call(|| "unshare(CLONE_NEWCGROUP)".into())?;
        }
        if plan.fresh(namespaces::Kind::Network) {
            sys::loopback_up()?;
        }
        if let Some(hostname) = &plan.hostname {
            nix::unistd::sethostname(hostname).call(|| format!("sethostname({hostname:?})"))?;
        }
        if let Some(domainname) = &plan.domainname {
            sys::setdomainname(domainname)?;
        }

        // Modes below are meant as written.
        let umask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let proc = mounts::private_proc()?;
        let root = mounts::attach_root(self.root)?;
        mounts::populate(&root, plan, self.mounts, &self.cgroup_view, &proc)?;
        let (stdio, master) = match self.stdio {
            InitStdio::Fds(fds) => (fds, None),
            InitStdio::Terminal(size) => {
                let console = console::open(root.as_fd(), size.or(plan.process.window))?;
                bind_console(&root, &console.terminal)?;
                let (a, b) = (dup(&console.terminal)?, dup(&console.terminal)?);
                ([console.terminal, a, b], Some(console.master))
            }
        };
        ensure_cwd(&root, &plan.process.cwd)?;
        mounts::protect(&root, plan)?;
        match plan.pivot {
            true => mounts::pivot(&root)?,
            false => mounts::cover(&root)?,
        }
        if let Some(propagation) = plan.root_propagation {
            sys::mount_setattr(root.as_fd(), true, 0, 0, propagation)?;
        }
        nix::sys::stat::umask(umask);

        let settled = Settling {
            process: &plan.process,
            seccomp: plan.seccomp.as_ref(),
            root: root.as_fd(),
            proc: proc.as_fd(),
            stdio: [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()],
            terminal: master.is_some(),
        }
        .settle(&mut warnings)?;
        let ready = Report::ready(warnings);
        channel.send(&ready, master.as_ref().map(AsFd::as_fd))?;
        // What it waits with is nothing of the host's, also not what the caller had open.
        drop((master, stdio, root, proc, self.join, self.cgroups));
        let listener = self.listener.as_ref().map_or(0, AsRawFd::as_raw_fd);
        let waiting = [0, 1, 2, channel.as_fd().as_raw_fd(), listener];
        let kept: Vec<RawFd> = plan.process.preserved().chain(waiting).collect();
        sys::close_all_but(&kept)?;

        let answer = wait_for_start(channel, self.listener)?;
        let error = settled.execute();
        if let Some(answer) = answer {
            // `start` of podyard-oci listens here; the process that created us is gone.
            answer.send(&Report::failed(error.clone()), None)?;
        }
        Err(error)
    }
}

impl Init<'_> {
    /// What this process needs of what it inherited. The rest is closed at once: in a shared
    /// PID namespace a container with CAP_SYS_PTRACE can look at this process's descriptors.
    fn descriptors(&self, channel: &Channel) -> Vec<RawFd> {
        let root = match &self.root {
            Root::Mount(fd) => Some(fd),
            Root::Path(_) => None,
        };
        let stdio = match &self.stdio {
            InitStdio::Fds(fds) => &fds[..],
            InitStdio::Terminal(_) => &[],
        };
        let owned = self.mounts.iter().map(|m| &m.fd);
        let owned = owned.chain(self.join.iter().map(|(_, fd)| fd)).chain(&self.cgroups);
        let owned = owned.chain(root).chain(stdio).chain(&self.listener);
        let channel = channel.as_fd().as_raw_fd();
        let preserved = self.plan.process.preserved();
        owned.map(AsRawFd::as_raw_fd).chain(preserved).chain([0, 1, 2, channel]).collect()
    }
}

/// Writes `0`, meaning itself, where this process is to be counted and limited.
pub(crate) fn join_cgroups(files: &[OwnedFd]) -> Result<()> {
    for file in files {
        rustix::io::write(file, b"0").call(|| "write(cgroup tasks, \"0\")".into())?;
    }
    Ok(())
}

/// In a new user namespace: user and group 0, as the mounts below need.
fn become_root() -> Result<()> {
    let (uid, gid) = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
    nix::unistd::setgroups(&[]).call(|| "setgroups([])".into())?;
    nix::unistd::setresgid(gid, gid, gid).call(|| "setresgid(0)".into())?;
    nix::unistd::setresuid(uid, uid, uid).call(|| "setresuid(0)".into())
}

/// `/dev/console` is the terminal, bound by descriptor.
fn bind_console(root: &OwnedFd, terminal: &OwnedFd) -> Result<()> {
    let bind = || -> Result<()> {
        let place = beneath::ensure_file(root, Path::new("/dev/console"), Links::Refuse)?;
        let mount = mounts::clone_tree(terminal, Path::new(""), false)?;
        mounts::attach(&mount, &place, Path::new(""))
    };
    bind().step("bind the terminal on /dev/console")
}

/// The working directory is made if the image lacks it, while the root can still be written.
fn ensure_cwd(root: &OwnedFd, cwd: &Path) -> Result<()> {
    beneath::ensure_directory(root, cwd, Links::Follow)
        .map(drop)
        .step(format!("make working directory {}", cwd.display()))
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).call(|| "fcntl(F_DUPFD_CLOEXEC)".into())
}

/// Waits for Start on the channel, or from whoever connects to the listener first; then the
/// answer goes there.
fn wait_for_start(channel: &Channel, listener: Option<OwnedFd>) -> Result<Option<Channel>> {
    let (order, answer) = match listener {
        None => (channel.receive::<Order>()?, None),
        Some(listener) => {
            let fd = rustix::net::accept_with(&listener, rustix::net::SocketFlags::CLOEXEC)
                .call(|| "accept(start socket)".into())?;
            let answer = Channel::from_fd(fd);
            (answer.receive::<Order>()?, Some(answer))
        }
    };
    match order {
        Some((Order::Start, _)) => Ok(answer),
        _ => Err(Error::new(Kind::Internal, "given up before start")),
    }
}
