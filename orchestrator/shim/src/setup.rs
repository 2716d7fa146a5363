//! The pod's namespaces, held by descriptors.
#![forbid(unsafe_code)]

use crate::protocol::{Failure, FailureKind, Namespace, ProcessName, Setup};
use crate::sys::{self, Call, Forked, Result};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The namespaces that all containers of the pod join. A kind not held is the host's, or each container's own.
#[derive(Debug, Default)]
pub(crate) struct Held {
    ready: bool,
    net: Option<OwnedFd>,
    uts: Option<OwnedFd>,
    ipc: Option<OwnedFd>,
    pid: Option<OwnedFd>,
    pause: Option<Pause>,
}

/// The init process of a shared PID namespace.
#[derive(Debug)]
pub(crate) struct Pause {
    pub process: ProcessName,
    pidfd: OwnedFd,
}

impl Held {
    /// Makes the namespaces. Done already: nothing is done.
    pub(crate) fn setup(&mut self, setup: &Setup, net: Option<OwnedFd>) -> Result<()> {
        if self.ready {
            return Ok(());
        }
        if let Some(net) = &net {
            let kind = sys::namespace_type(net.as_fd())?;
            if kind != CloneFlags::CLONE_NEWNET.bits() {
                let text =
                    format!("the descriptor given is a namespace of type {kind:#x}, not a network namespace");
                return Err(Failure::new(FailureKind::Invalid, text));
            }
        }
        self.net = net;
        let (uts, ipc) = make_uts_ipc(setup)?;
        (self.uts, self.ipc) = (Some(uts), ipc);
        if setup.share_pid {
            let pause = self.start_pause(&setup.pause_cgroup)?;
            self.pid = Some(open_namespace(pause.process.pid, "pid")?);
            self.pause = Some(pause);
        }
        self.ready = true;
        Ok(())
    }

    /// Whether [`Held::setup`] has been done, and its PID namespace, if shared, still lives.
    pub(crate) fn check_ready(&self) -> Result<()> {
        if !self.ready {
            return Err(Failure::new(
                FailureKind::Conflict,
                "the pod has no namespaces yet: Setup comes first",
            ));
        }
        if self.pid.is_some() && self.pause.is_none() {
            return Err(Failure::new(FailureKind::Conflict, "the pod's shared PID namespace has ended"));
        }
        Ok(())
    }

    /// Kind and descriptor of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        [("net", &self.net), ("uts", &self.uts), ("ipc", &self.ipc), ("pid", &self.pid)]
            .into_iter()
            .filter_map(|(kind, fd)| Some((kind, fd.as_ref()?.as_fd())))
    }

    /// Kind and inode number of each.
    pub(crate) fn describe(&self) -> Result<Vec<Namespace>> {
        self.iter()
            .map(|(kind, fd)| {
                let stat = rustix::fs::fstat(fd).call(|| format!("fstat({kind} namespace)"))?;
                Ok(Namespace { kind: kind.to_owned(), inode: stat.st_ino })
            })
            .collect()
    }

    pub(crate) fn pause(&self) -> Option<&Pause> {
        self.pause.as_ref()
    }

    /// Forgets the pause process if `pid` was it: it has been reaped.
    pub(crate) fn reaped(&mut self, pid: i32) -> bool {
        let it_was = self.pause.as_ref().is_some_and(|pause| pause.process.pid == pid);
        if it_was {
            self.pause = None;
        }
        it_was
    }

    /// Ends the shared PID namespace with everything in it.
    pub(crate) fn teardown(&mut self) {
        if let Some(pause) = self.pause.take() {
            // ESRCH is success.
            let _ = rustix::process::pidfd_send_signal(&pause.pidfd, rustix::process::Signal::KILL);
        }
    }

    fn start_pause(&self, cgroup: &str) -> Result<Pause> {
        if cgroup.is_empty() {
            return Err(Failure::new(FailureKind::Invalid, "pauseCgroup: is required with sharePid"));
        }
        let cgroup = crate::cgroup::fresh_cgroup(cgroup)?;
        let dir = cgroup.dir()?;
        // The pause process joins the others before it gives up its rights.
        let joins: Vec<_> = self.iter().map(|(_, fd)| fd).collect();
        match sys::fork(CloneFlags::CLONE_NEWPID.bits(), Some(dir.as_fd()))? {
            Forked::Parent { pid, pidfd } => Ok(Pause { process: ProcessName::of(pid)?, pidfd }),
            Forked::Child => {
                let code = match pause(&joins) {
                    Ok(never) => match never {},
                    Err(failure) => {
                        eprintln!("pause: {failure}");
                        1
                    }
                };
                sys::exit_now(code)
            }
        }
    }
}

/// The life of the pause process: reaps orphans of the shared PID namespace, without rights, on an empty root, so
/// that `/proc/1/root` inside the pod leads nowhere.
fn pause(joins: &[BorrowedFd<'_>]) -> Result<std::convert::Infallible> {
    for fd in joins {
        setns(fd, CloneFlags::empty()).call(|| "setns(pod namespace)".into())?;
    }
    unshare(CloneFlags::CLONE_NEWNS).call(|| "unshare(CLONE_NEWNS)".into())?;
    let root = empty_root()?;
    rustix::process::fchdir(&root).call(|| "fchdir(empty root)".into())?;
    rustix::process::chroot(".").call(|| "chroot(empty root)".into())?;
    drop(root);
    sys::close_all_but(&[])?;
    sys::set_name(c"pause")?;
    // All capabilities go with uid 0. Source: capabilities(7), "Effect of user ID changes on capabilities".
    nix::unistd::setgroups(&[]).call(|| "setgroups([])".into())?;
    let (user, group) = (nix::unistd::Uid::from_raw(65_535), nix::unistd::Gid::from_raw(65_535));
    nix::unistd::setresgid(group, group, group).call(|| "setresgid(65535)".into())?;
    nix::unistd::setresuid(user, user, user).call(|| "setresuid(65535)".into())?;
    let mut wanted = nix::sys::signal::SigSet::empty();
    wanted.add(nix::sys::signal::Signal::SIGCHLD);
    loop {
        // SIGCHLD is blocked since the shim's start, so none is lost between reaping and waiting.
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        wanted.wait().call(|| "sigwait(SIGCHLD)".into())?;
    }
}

fn empty_root() -> Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).call(|| "fsopen(tmpfs)".into())?;
    fsconfig_create(fs.as_fd()).call(|| "fsconfig(CREATE, tmpfs)".into())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).call(|| "fsmount(tmpfs)".into())
}

/// Enters new namespaces, keeps them by descriptor and goes back: the shim itself stays in the host's.
fn make_uts_ipc(setup: &Setup) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let me = std::process::id().cast_signed();
    let home = (open_namespace(me, "uts")?, open_namespace(me, "ipc")?);
    let mut flags = CloneFlags::CLONE_NEWUTS;
    if !setup.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags).call(|| "unshare(CLONE_NEWUTS|CLONE_NEWIPC)".into())?;
    let made = (|| {
        nix::unistd::sethostname(&setup.hostname).call(|| format!("sethostname({:?})", setup.hostname))?;
        if !setup.domainname.is_empty() {
            sys::set_domain_name(&setup.domainname)?;
        }
        let ipc = if setup.host_ipc { None } else { Some(open_namespace(me, "ipc")?) };
        Ok((open_namespace(me, "uts")?, ipc))
    })();
    setns(home.0, CloneFlags::CLONE_NEWUTS).call(|| "setns(own uts)".into())?;
    setns(home.1, CloneFlags::CLONE_NEWIPC).call(|| "setns(own ipc)".into())?;
    made
}

fn open_namespace(pid: i32, kind: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{kind}");
    let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open({path})"))?;
    debug_assert!(fd.as_raw_fd() > 2, "standard descriptors are taken");
    Ok(fd)
}
