//! Creating a container: the parent's side.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::libc;

pub use crate::mounts::host::HostRoot;
pub use crate::mounts::{DetachedMount, Root};
pub use crate::process::Stdio;

use crate::birth::{Birth, Born};
use crate::cgroup::{self, Cgroup, Layout};
use crate::error::{Call, Error, Kind, Result, Step};
use crate::hooks;
use crate::init::{Init, InitStdio};
use crate::mounts::{CgroupView, idmap};
use crate::namespaces::{self, Entry, Source, UserNamespace};
use crate::plan::{IdMap, Plan};
use crate::protocol::{Ask, Channel, Order, Report, above_stdio};
use crate::seccomp::Filter;
use crate::state::{Identity, Status};

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
/// [`CreateRequest::start_listener`]), and removes that.
///
/// The socket goes before the order: a caller who dies in between takes the connection with it, and the container
/// exits. So while the socket is there the program does not run.
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
    std::fs::remove_file(path).call(|| format!("unlink({path:?})"))?;
    start(Channel::from_fd(socket))
}

fn start(channel: Channel) -> Result<()> {
    channel.send(&Order::Start, None).step("start")?;
    match channel.receive::<Report>()? {
        None => Ok(()),
        Some((Report::Failed(error), _)) => Err(error),
        Some((Report::Ready { .. } | Report::Ask(_) | Report::Reborn { .. }, _)) => {
            Err(Error::new(Kind::Internal, "it was ready, and is not"))
        }
    }
}

/// Makes a container: its first process, in its namespaces, cgroup and root, with every
/// restriction in place but for the program itself, which [`StartGate::start`] runs.
///
/// Blocks until the child is ready. Must be called from a single-threaded process. On failure the
/// child is gone (and reaped, if it was the caller's) and nothing is left of it.
///
/// Without a mount namespace in the plan what is mounted stays until [`HostRoot::release`].
///
/// # Errors
/// The failing step and the kernel's answer, wherever it happened.
///
/// # Panics
/// If the calling process has more than one thread.
pub fn create(request: CreateRequest) -> Result<Created> {
    let CreateRequest { plan, root, mounts, stdio, namespaces, cgroup, parent, start_listener } = request;
    let host_root = match &root {
        Root::Path(path) => HostRoot::of(&plan, path)?,
        Root::Mount(_) => None,
    };
    let mut join = open_namespaces(&plan, namespaces)?;
    let pid_namespace = take(&mut join, namespaces::Kind::Pid);
    let joins = |kind| join.iter().any(|(k, _)| *k == kind);
    let made = |kind: namespaces::Kind| {
        plan.fresh(kind) && !joins(kind) && (kind != namespaces::Kind::Pid || pid_namespace.is_none())
    };
    // The cgroup namespace is made later: its root is the cgroup the process is in by then. The time namespace too: its
    // clocks are set before anybody is in it.
    let at_birth = namespaces::Kind::ALL
        .into_iter()
        .filter(|kind| !matches!(kind, namespaces::Kind::Cgroup | namespaces::Kind::Time) && made(*kind));
    let mut flags = at_birth.fold(0, |flags, kind| flags | kind.flag());
    // Born in a new user namespace, it could join nothing of the host's; and one to be joined is left by nobody.
    let user = match take(&mut join, namespaces::Kind::User) {
        Some(fd) => Some(UserNamespace::Joined(fd)),
        None if flags & libc::CLONE_NEWUSER == 0 => None,
        None if join.is_empty() => Some(UserNamespace::Own),
        None => Some(UserNamespace::New),
    };
    let mut make = 0;
    if matches!(user, Some(UserNamespace::New | UserNamespace::Joined(_))) {
        (flags, make) = (0, flags & !libc::CLONE_NEWUSER);
        if parent == Parent::Sibling && make & libc::CLONE_NEWPID != 0 {
            let text = "a new pid namespace in it takes a process of the caller's own in between";
            return Err(Error::unsupported("linux.namespaces: user", text));
        }
    }
    let entry = Entry { join, user, make };
    let stdio = match stdio {
        Stdio::Fds([a, b, c]) => InitStdio::Fds([above_stdio(a)?, above_stdio(b)?, above_stdio(c)?]),
        Stdio::Terminal(size) => InitStdio::Terminal(size),
    };
    let user_namespace = flags & libc::CLONE_NEWUSER != 0;
    let birth = Birth {
        flags: flags as u64,
        cgroup: cgroup.as_ref(),
        pid_namespace: pid_namespace.as_ref().map(AsFd::as_fd),
        parent,
    };
    let places = cgroup.as_ref().map_or(Vec::new(), Cgroup::v1_places);
    let init = Init {
        root,
        mounts,
        entry,
        cgroups: cgroup::tasks_files(&places)?,
        cgroup_view: cgroup
            .as_ref()
            .map_or(CgroupView::None, |c| view(c, places, plan.separate(namespaces::Kind::Cgroup))),
        stdio,
        listener: start_listener,
        plan: &plan,
    };
    let limited = std::cell::RefCell::new(Vec::new());
    let serve = |what: &Ask, pid, pidfd: &OwnedFd| {
        match what {
            Ask::Begin if user_namespace => write_id_maps(pid, &plan.uid_map, &plan.gid_map)?,
            Ask::Begin => {}
            Ask::MapIds => write_id_maps(pid, &plan.uid_map, &plan.gid_map)?,
            Ask::Limits => limited.borrow_mut().extend(plan.process.limit_child(pid)?),
            Ask::Listener(fd) => {
                introduce(plan.seccomp.as_ref(), (pid, pidfd, *fd), &plan.identity, Status::Creating)?;
            }
            Ask::TimeOffsets => set_clocks(pid, &plan.time_offsets)?,
            Ask::RuntimeHooks => {
                let state = plan.identity.state(Status::Creating, Some(pid));
                let env = hooks::own_environment();
                hooks::run(&plan.hooks.prestart, &state, &env)?;
                hooks::run(&plan.hooks.create_runtime, &state, &env)?;
            }
            Ask::Source(index) => return idmap::source(&plan, (pid, pidfd), *index).map(Some),
        }
        Ok(None)
    };
    let born = birth.give(init, serve).or_else(|error| match &host_root {
        Some(host_root) => host_root.release().and(Err(error)),
        None => Err(error),
    })?;
    let Born { pid, pidfd, channel, mut warnings, console } = born;
    warnings.extend(limited.take());
    Ok(Created { pid, pidfd, start: StartGate(channel), console, warnings })
}

/// Brings a filter's agent what it listens with.
pub(crate) fn introduce(
    filter: Option<&Filter>,
    process: (i32, &OwnedFd, i32),
    identity: &Identity,
    status: Status,
) -> Result<()> {
    match filter.and_then(Filter::agent) {
        Some(agent) => agent.introduce(process, identity, status),
        None => Err(Error::new(Kind::Internal, "no agent was asked for")),
    }
}

/// Opens the namespaces that the plan names by path, and adds those given by descriptor.
fn open_namespaces(
    plan: &Plan,
    given: BTreeMap<namespaces::Kind, OwnedFd>,
) -> Result<Vec<(namespaces::Kind, OwnedFd)>> {
    use rustix::fs::{Mode, OFlags, open};
    let mut join: BTreeMap<_, _> = given;
    for (kind, source) in &plan.namespaces {
        if let (Source::Path(path), false) = (source, join.contains_key(kind)) {
            let fd = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .call(|| format!("open({path:?})"))
                .step(format!("linux.namespaces: {}", kind.file_name()))?;
            join.insert(*kind, fd);
        }
    }
    if let Some(fd) = join.get(&namespaces::Kind::Mount) {
        refuse_own_mounts(fd)?;
    }
    // Joining its own is an error to the kernel, and changes nothing.
    if let Some(fd) = join.get(&namespaces::Kind::User)
        && is_own(fd, namespaces::Kind::User)?
    {
        join.remove(&namespaces::Kind::User);
    }
    join.into_iter().map(|(kind, fd)| Ok((kind, above_stdio(fd)?))).collect()
}

/// Whether `fd` names the namespace that this process is in.
fn is_own(fd: &OwnedFd, kind: namespaces::Kind) -> Result<bool> {
    let own = format!("/proc/self/ns/{}", kind.file_name());
    let own = rustix::fs::stat(&own).call(|| format!("stat({own:?})"))?;
    let found = rustix::fs::fstat(fd).call(|| format!("fstat({} namespace)", kind.file_name()))?;
    Ok((own.st_dev, own.st_ino) == (found.st_dev, found.st_ino))
}

/// A container's root becomes the root of everybody in its mount namespace: of the whole system, were it that.
fn refuse_own_mounts(fd: &OwnedFd) -> Result<()> {
    let field = "linux.namespaces: mnt";
    let found = rustix::fs::fstat(fd).call(|| "fstat(mnt namespace)".into())?;
    for (of, whose) in [("self", "runtime"), ("1", "system")] {
        let path = format!("/proc/{of}/ns/mnt");
        let own = match rustix::fs::stat(&path) {
            // Who may not look at it could not have opened it.
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) if of == "1" => continue,
            other => other.call(|| format!("stat({path:?})")).step(field)?,
        };
        if (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino) {
            return Err(Error::invalid(field, format!("is the {whose}'s own, and would be changed")));
        }
    }
    Ok(())
}

fn take(list: &mut Vec<(namespaces::Kind, OwnedFd)>, kind: namespaces::Kind) -> Option<OwnedFd> {
    let at = list.iter().position(|(k, _)| *k == kind)?;
    Some(list.remove(at).1)
}

/// Without a cgroup namespace `/proc/self/cgroup` shows a container the host's paths, and on cgroup2 it sees them all.
fn view(cgroup: &Cgroup, mut places: Vec<(String, PathBuf)>, separate: bool) -> CgroupView {
    match cgroup.layout() {
        Layout::Unified if !separate => CgroupView::Unified(cgroup.unified_root()),
        Layout::Unified => CgroupView::Unified(cgroup.unified_path()),
        Layout::Hybrid => {
            places.push(("unified".to_string(), cgroup.unified_path()));
            CgroupView::Hierarchies(places)
        }
        Layout::Legacy => CgroupView::Hierarchies(places),
    }
}

/// Source: user_namespaces(7), "Defining user and group ID mappings".
pub(crate) fn write_id_maps(pid: i32, uids: &[IdMap], gids: &[IdMap]) -> Result<()> {
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

/// Source: time_namespaces(7), "/proc/pid/timens_offsets".
fn set_clocks(pid: i32, offsets: &str) -> Result<()> {
    let path = PathBuf::from(format!("/proc/{pid}/timens_offsets"));
    std::fs::write(&path, offsets).call(|| format!("write({path:?}, {offsets:?})")).step("linux.timeOffsets")
}
