//! The first process of a new container: a straight line from clone3 to execve.
//!
//! Runs in the child. Every step either succeeds or ends the script with its name; the caller
//! sends that to the parent. Nothing here returns to the code that cloned.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::attributes;
use crate::birth::Script;
use crate::console::{self, WindowSize};
use crate::error::{Call, Error, Kind, Result, Step};
use crate::hooks;
use crate::labels;
use crate::mounts::beneath::{self, Links};
use crate::mounts::{self, CgroupView, DetachedMount, Root};
use crate::namespaces::{self, Entry, UserNamespace};
use crate::plan::Plan;
use crate::process::{Settled, Settling};
use crate::protocol::{Ask, Channel, Order, Report};
use crate::state::Status;
use crate::sys::{self, Forked};

/// What the first process needs, all opened before the clone.
pub(crate) struct Init<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) root: Root,
    pub(crate) mounts: Vec<DetachedMount>,
    /// The namespaces that it was not born in.
    pub(crate) entry: Entry,
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
        sys::close_all_but(&self.descriptors(channel), None)?;
        sys::reset_signals()?;
        // Before the cgroup namespace, whose root is where the process is then.
        join_cgroups(&self.cgroups)?;
        attributes::forget_the_callers()?;
        self.entry.enter(channel, &plan.uid_map, &plan.gid_map)?;
        if self.entry.reborn() {
            be_reborn(channel)?;
        }
        rustix::process::setsid().call(|| "setsid()".into())?;
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
        let umask = sys::umask(0);
        let proc = mounts::private_proc()?;
        if plan.fresh(namespaces::Kind::Time) && !self.entry.joins(namespaces::Kind::Time) {
            namespaces::enter_time(proc.as_fd(), !plan.time_offsets.is_empty(), channel)?;
        }
        if plan.mount_label.is_some() && !labels::selinux(proc.as_fd())? {
            return Err(Error::unsupported("linux.mountLabel", "this kernel runs without SELinux"));
        }
        let root = mounts::attach_root(self.root, plan)?;
        let later = mounts::populate(&root, plan, self.mounts, &self.cgroup_view, &proc, channel)?;
        run_create_hooks(plan, &root, channel)?;
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
        mounts::late::apply(&root, &later)?;
        drop(later);
        mounts::protect(&root, plan)?;
        match plan.pivot {
            _ if !plan.separate(namespaces::Kind::Mount) => mounts::host::enter(&root)?,
            true => mounts::pivot(&root)?,
            false => mounts::cover(&root)?,
        }
        mounts::propagate(plan)?;
        sys::umask(umask);

        let settled = Settling {
            process: &plan.process,
            seccomp: plan.seccomp.as_ref(),
            root: root.as_fd(),
            proc: proc.as_fd(),
            stdio: [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()],
            terminal: master.is_some(),
            user_namespace: self.entry.user.is_some(),
            channel,
        }
        .settle(&mut warnings)?;
        // What it waits with is nothing of the host's, also not what the caller had open.
        drop((stdio, root, self.entry, self.cgroups));
        let own = [self.listener.as_ref(), master.as_ref()].into_iter().flatten().map(AsRawFd::as_raw_fd);
        let waiting = own.chain([0, 1, 2, channel.as_fd().as_raw_fd(), proc.as_raw_fd()]);
        let kept: Vec<RawFd> = plan.process.preserved().chain(waiting).collect();
        sys::close_all_but(&kept, Some(proc.as_fd()))?;
        drop(proc);
        let mut settled = settled.restrict()?;
        let ready = Report::ready(warnings);
        channel.send(&ready, master.as_ref().map(AsFd::as_fd))?;
        drop(master);

        let answer = wait_for_start(channel, self.listener)?;
        let error = match run_start_hooks(plan, &mut settled) {
            Ok(()) => settled.execute(),
            Err(error) => error,
        };
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
        let owned = owned.chain(self.entry.join.iter().map(|(_, fd)| fd)).chain(&self.cgroups);
        let user = match &self.entry.user {
            Some(UserNamespace::Joined(fd)) => Some(fd),
            _ => None,
        };
        let owned = owned.chain(user).chain(root).chain(stdio).chain(&self.listener);
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

/// A process does not enter the PID namespace that it makes; its children do. The child is its sibling, so that it has
/// the parent that it would have had.
fn be_reborn(channel: &Channel) -> Result<()> {
    match sys::clone_sibling().step("make the process of the pid namespace")? {
        Forked::Child => Ok(()),
        Forked::Parent { pid, pidfd } => {
            channel.send(&Report::Reborn { pid }, Some(pidfd.as_fd()))?;
            sys::exit_now(0)
        }
    }
}

/// `/dev/console` is the terminal, bound by descriptor.
fn bind_console(root: &OwnedFd, terminal: &OwnedFd) -> Result<()> {
    let bind = || -> Result<()> {
        let place = beneath::ensure_file(root, Path::new("/dev/console"), Links::Refuse)?;
        mounts::api::bind(terminal, Path::new(""), false)?.attach(root, &place).map(drop)
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

/// Those outside first, then those inside: in all the container's namespaces, with its mounts made, and with the
/// host's files still in sight, where their programs are.
fn run_create_hooks(plan: &Plan, root: &OwnedFd, channel: &Channel) -> Result<()> {
    if !plan.hooks.prestart.is_empty() || !plan.hooks.create_runtime.is_empty() {
        channel.ask(Ask::RuntimeHooks)?;
    }
    if plan.hooks.create_container.is_empty() {
        return Ok(());
    }
    rustix::process::fchdir(root).call(|| "fchdir(root)".into())?;
    let state = plan.identity.state(Status::Creating, Some(own_pid()));
    hooks::run(&plan.hooks.create_container, &state, &[])
}

/// As the program will be: its user, its rights, its filter, its root and, unless they have one, its environment.
fn run_start_hooks(plan: &Plan, settled: &mut Settled<'_>) -> Result<()> {
    if plan.hooks.start_container.is_empty() {
        return Ok(());
    }
    settled.load_filter()?;
    let state = plan.identity.state(Status::Created, Some(own_pid()));
    hooks::run(&plan.hooks.start_container, &state, settled.environment())
}

/// As the container numbers it.
fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
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
