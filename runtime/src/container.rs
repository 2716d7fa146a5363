//! Creating a container: the parent's side.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::libc;

pub use crate::mounts::{DetachedMount, Root};
pub use crate::process::Stdio;

use crate::birth::{Birth, Born};
use crate::cgroup::{Cgroup, Layout};
use crate::error::{Call, Error, Kind, Result, Step};
use crate::init::{Init, InitStdio};
use crate::mounts::CgroupView;
use crate::namespaces::{self, Source};
use crate::plan::{IdMap, Plan};
use crate::protocol::{Channel, Order, Report, above_stdio};

/// Everything a container is made from. The caller's descriptors are consumed.
#[derive(Debug)]
pub struct CreateRequest {
    /// What the spec says.
    pub plan: Plan,
    /// The root filesystem.
    pub root: Root,
    /// Mounts made by the caller. With any, all mounts are made in order of their depth.
    pub mounts: Vec<DetachedMount>,
    /// Standard streams or a terminal.
    pub stdio: Stdio,
    /// Namespaces to join by descriptor; they take the place of what the plan says of their kind.
    pub namespaces: BTreeMap<namespaces::Kind, OwnedFd>,
    /// An existing cgroup, limits already applied.
    pub cgroup: Option<Cgroup>,
    /// Whose child the first process is.
    pub parent: Parent,
    /// A listening `SOCK_SEQPACKET` socket from which the child takes Start instead of
    /// [`Created::start`]: for callers that exit before the container starts. See [`start_at`].
    pub start_listener: Option<OwnedFd>,
}

/// Whose child a new process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The caller's.
    Caller,
    /// The caller's parent's (`CLONE_PARENT`): a worker makes it for the shim, which reaps it,
    /// also when creating fails.
    Sibling,
}

/// A container whose first process waits to run its program.
#[derive(Debug)]
pub struct Created {
    /// In the caller's PID namespace.
    pub pid: i32,
    /// Names the first process for good.
    pub pidfd: OwnedFd,
    /// Starts it; dropped, the process exits.
    pub start: StartGate,
    /// The terminal's master end, if one was asked for.
    pub console: Option<OwnedFd>,
    /// What was asked for and could be done in part only.
    pub warnings: Vec<String>,
}

/// Makes the first process run its program, once.
#[derive(Debug)]
pub struct StartGate(Channel);

impl StartGate {
    /// Runs the program. Returns when it runs, or when it cannot.
    ///
    /// # Errors
    /// `exec <path>: ENOENT` and the like; the process has exited then.
    pub fn start(self) -> Result<()> {
        start(self.0)
    }

    /// The gate as a descriptor, to be sent to another process.
    pub fn into_fd(self) -> OwnedFd {
        self.0.into_fd()
    }

    /// The gate that another process sent.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(Channel::from_fd(fd))
    }
}

/// Starts a container that listens on the socket at `path` (see
/// [`CreateRequest::start_listener`]).
///
/// # Errors
/// As [`StartGate::start`]; `NotFound` or `ECONNREFUSED` if nobody listens.
pub fn start_at(path: &std::path::Path) -> Result<()> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .call(|| "socket(AF_UNIX, SOCK_SEQPACKET)".into())?;
    let address = SocketAddrUnix::new(path).call(|| format!("sockaddr_un({path:?})"))?;
    rustix::net::connect(&socket, &address).call(|| format!("connect({path:?})"))?;
    start(Channel::from_fd(socket))
}

fn start(channel: Channel) -> Result<()> {
    channel.send(&Order::Start, None).step("start")?;
    match channel.receive::<Report>()? {
        None => Ok(()),
        Some((Report::Failed(error), _)) => Err(error),
        Some((Report::Ready { .. }, _)) => Err(Error::new(Kind::Internal, "ready twice")),
    }
}

/// Makes a container: its first process, in its namespaces, cgroup and root, with every
/// restriction in place but for the program itself, which [`StartGate::start`] runs.
///
/// Blocks until the child is ready. Must be called from a single-threaded process. On failure the
/// child is gone (and reaped, if it was the caller's) and nothing is left of it.
///
/// # Errors
/// The failing step and the kernel's answer, wherever it happened.
///
/// # Panics
/// If the calling process has more than one thread.
pub fn create(request: CreateRequest) -> Result<Created> {
    let CreateRequest { plan, root, mounts, stdio, namespaces, cgroup, parent, start_listener } = request;
    let mut join = open_namespaces(&plan, namespaces)?;
    let pid_namespace = take(&mut join, namespaces::Kind::Pid);
    let mut flags = 0;
    for (kind, source) in &plan.namespaces {
        let joined = join.iter().any(|(k, _)| k == kind)
            || (*kind == namespaces::Kind::Pid && pid_namespace.is_some());
        // The cgroup namespace is made later: its root is the cgroup the process is in by then.
        if *source == Source::New && !joined && *kind != namespaces::Kind::Cgroup {
            flags |= kind.flag() as u64;
        }
    }
    let stdio = match stdio {
        Stdio::Fds([a, b, c]) => InitStdio::Fds([above_stdio(a)?, above_stdio(b)?, above_stdio(c)?]),
        Stdio::Terminal(size) => InitStdio::Terminal(size),
    };
    let user_namespace = flags & libc::CLONE_NEWUSER as u64 != 0;
    let birth = Birth {
        flags,
        cgroup: cgroup.as_ref(),
        pid_namespace: pid_namespace.as_ref().map(AsFd::as_fd),
        parent,
    };
    let init = Init {
        root,
        mounts,
        join,
        cgroups: cgroup.as_ref().map_or(Ok(Vec::new()), Cgroup::v1_tasks)?,
        cgroup_view: cgroup.as_ref().map_or(CgroupView::None, view),
        stdio,
        listener: start_listener,
        plan: &plan,
    };
    let map_ids = |pid| match user_namespace {
        true => write_id_maps(pid, &plan.uid_map, &plan.gid_map),
        false => Ok(()),
    };
    let Born { pid, pidfd, channel, warnings, console } = birth.give(init, map_ids)?;
    Ok(Created { pid, pidfd, start: StartGate(channel), console, warnings })
}

/// Opens the namespaces that the plan names by path, and adds those given by descriptor.
fn open_namespaces(
    plan: &Plan,
    given: BTreeMap<namespaces::Kind, OwnedFd>,
) -> Result<Vec<(namespaces::Kind, OwnedFd)>> {
    use rustix::fs::{Mode, OFlags, open};
    for kind in [namespaces::Kind::Mount, namespaces::Kind::User] {
        if given.contains_key(&kind) {
            return Err(Error::unsupported(
                format!("join a {} namespace", kind.file_name()),
                "a new container has its own",
            ));
        }
    }
    let mut join: BTreeMap<_, _> = given;
    for (kind, source) in &plan.namespaces {
        if let (Source::Path(path), false) = (source, join.contains_key(kind)) {
            let fd = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .call(|| format!("open({path:?})"))
                .step(format!("linux.namespaces: {}", kind.file_name()))?;
            join.insert(*kind, fd);
        }
    }
    join.into_iter().map(|(kind, fd)| Ok((kind, above_stdio(fd)?))).collect()
}

fn take(list: &mut Vec<(namespaces::Kind, OwnedFd)>, kind: namespaces::Kind) -> Option<OwnedFd> {
    let at = list.iter().position(|(k, _)| *k == kind)?;
    Some(list.remove(at).1)
}

fn view(cgroup: &Cgroup) -> CgroupView {
    match cgroup.layout() {
        Layout::Unified => CgroupView::Unified(cgroup.unified_path()),
        Layout::Hybrid => {
            let mut views = cgroup.v1_places();
            views.push(("unified".to_string(), cgroup.unified_path()));
            CgroupView::Hierarchies(views)
        }
        Layout::Legacy => CgroupView::Hierarchies(cgroup.v1_places()),
    }
}

/// Source: user_namespaces(7), "Defining user and group ID mappings".
fn write_id_maps(pid: i32, uids: &[IdMap], gids: &[IdMap]) -> Result<()> {
    for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
        let lines: String =
            maps.iter().map(|m| format!("{} {} {}\n", m.inside, m.outside, m.count)).collect();
        let path = PathBuf::from(format!("/proc/{pid}/{file}"));
        std::fs::write(&path, &lines)
            .call(|| format!("write({path:?}, {lines:?})"))
            .step("map user and group IDs")?;
    }
    Ok(())
}
