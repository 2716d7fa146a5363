//! Making containers: `create`, `start` and both in one, `run`.

use std::borrow::Cow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::runtime::Spec;
use runtime::cgroup::{Cgroup, Hierarchies};
use runtime::container::{CreateRequest, HostRoot, Parent, Root, StartGate, Stdio, create as make, start_at};
use runtime::hooks::{self, Hooks};
use runtime::namespaces;
use runtime::state::{Directory, Identity, State, Status, Verb, process_start};
use runtime::{Error, Kind, Plan, Result};

use crate::end::{destroy, run_poststop_hooks};
use crate::log::{Log, rfc3339};
use crate::options::Command;
use crate::relay::{self, Signals};
use crate::store::{
    cgroup_of, filters, find, hand_over, io, listening, own_stdio, parse_document, preserved, read,
    write_pid_file,
};

/// A container created, and what only its creator has.
pub struct Made {
    directory: Directory,
    pid: i32,
    after: Hooks,
    identity: Identity,
    cgroup: Cgroup,
    host_root: Option<HostRoot>,
    pidfd: OwnedFd,
    /// Kept open: the first process takes its closing for the end of its creator.
    start: StartGate,
    console: Option<OwnedFd>,
}

/// `create`: everything but the program.
pub fn create(command: &Command, log: &Log) -> Result<Made> {
    let bundle = command.bundle();
    let bundle = std::fs::canonicalize(&bundle).map_err(io(&bundle))?;
    let config = read(&bundle.join("config.json"))?;
    let spec: Spec = parse_document(&bundle.join("config.json"), &config, log)?;
    let root = spec.root().as_ref().map(|r| bundle.join(r.path())).unwrap_or_default();
    let mut plan = Plan::from_spec_cached(with_listening(command, &spec)?.as_ref(), &filters(command))?;
    plan.identity.id = command.id()?.to_string();
    plan.identity.bundle = bundle.clone();
    let (after, identity) = (plan.hooks.clone(), plan.identity.clone());
    let console = command.has("--console-socket");
    if command.has("--detach") && plan.process.terminal && !console {
        return Err(Error::invalid("--console-socket", "is needed for a detached terminal"));
    }
    if console && !plan.process.terminal {
        return Err(Error::invalid("--console-socket", "is of no use without process.terminal"));
    }
    let directory = Directory::of(&command.root(), command.id()?)?;
    directory.create().map_err(|e| match e.kind() {
        Kind::AlreadyExists => {
            Error::new(Kind::AlreadyExists, format!("container with id {} already exists", directory.name()))
        }
        _ => e,
    })?;
    let made = create_reserved(command, log, plan, root, &config, bundle, &directory);
    if made.is_err() {
        // The id is ours, so what is there is of this attempt. What cannot be undone stays on record, for `delete`.
        undo(&directory).unwrap_or_else(|e| log.warning(&e.within("undo create").to_string()));
        run_poststop_hooks(&after, &identity, log);
    }
    made
}

fn undo(directory: &Directory) -> Result<()> {
    match directory.state() {
        Ok(state) => destroy(&cgroup_of(&state)?, state.host_root.as_ref())?,
        // Nothing was made yet: it is recorded first.
        Err(e) if e.kind() == Kind::NotFound => {}
        Err(e) => return Err(e),
    }
    directory.remove()
}

/// What the first process is told of the sockets it is handed. Source: sd_listen_fds(3).
fn with_listening<'a>(command: &Command, spec: &'a Spec) -> Result<Cow<'a, Spec>> {
    let count = listening(command)?;
    let (1.., Some(process)) = (count, spec.process()) else {
        return Ok(Cow::Borrowed(spec));
    };
    let mut process = process.clone();
    let mut env = process.env().clone().unwrap_or_default();
    env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_string()]);
    env.extend(std::env::var("LISTEN_FDNAMES").ok().map(|names| format!("LISTEN_FDNAMES={names}")));
    process.set_env(Some(env));
    let mut spec = spec.clone();
    spec.set_process(Some(process));
    Ok(Cow::Owned(spec))
}

fn create_reserved(
    command: &Command,
    log: &Log,
    mut plan: Plan,
    root: PathBuf,
    config: &[u8],
    bundle: PathBuf,
    directory: &Directory,
) -> Result<Made> {
    plan.pivot = !command.has("--no-pivot");
    plan.process.relayed = !command.has("--console-socket");
    plan.process.new_keyring = !command.has("--no-new-keyring");
    plan.process.preserved_fds = preserved(command)?;
    let (after, identity) = (plan.hooks.clone(), plan.identity.clone());
    directory.save_config(config)?;
    let tree = Hierarchies::detect()?;
    let cgroup = Cgroup::name(&tree, &cgroup_path(&plan, command.id()?)?)?;
    // Another's: whatever fails later must not touch it.
    if cgroup.populated()? {
        let text = format!("container's cgroup is not empty: {}", cgroup.path().display());
        return Err(Error::new(Kind::Busy, text));
    }
    if cgroup.freezes_newcomers()? {
        // Waiting for the first process would not end.
        let text = format!("container's cgroup unexpectedly frozen: {}", cgroup.path().display());
        return Err(Error::new(Kind::Busy, text));
    }
    let mut state = State {
        id: command.id()?.to_string(),
        bundle,
        rootfs: root.clone(),
        cgroup: cgroup.path(),
        pid: 0,
        started_ticks: 0,
        created: rfc3339(SystemTime::now()),
        shares_pids: !plan.fresh(namespaces::Kind::Pid),
        host_root: HostRoot::of(&plan, &root)?,
    };
    // Recorded, then made: what is left of a create cut short is found by `delete --force`.
    directory.save_state(&state)?;
    let cgroup = Cgroup::create_in(&tree, cgroup.path())?;
    if let Some(resources) = &plan.resources {
        cgroup.apply_limits(resources)?.iter().for_each(|warning| log.warning(warning));
    }
    // On v1 hierarchies only what has a cgroup is counted, which a caller that manages cgroups will ask for, and shown,
    // which a container with users of its own looks for. Others are spared the price.
    if plan.cgroups_path.is_some() || (plan.shows_host_cgroups() && plan.separate(namespaces::Kind::User)) {
        cgroup.account()?;
    }
    // `run` starts it itself, by the channel that it has.
    let separate = command.verb == "create";
    let start_listener = separate.then(|| listen(&directory.start_socket())).transpose()?;
    let stdio = match plan.process.terminal {
        true => Stdio::Terminal(None),
        false => Stdio::Fds(own_stdio()?),
    };
    let request = CreateRequest {
        plan,
        root: Root::Path(root),
        mounts: Vec::new(),
        stdio,
        namespaces: Default::default(),
        cgroup: Some(cgroup.clone()),
        parent: Parent::Caller,
        start_listener,
    };
    // The spec's paths are relative to the bundle; the options' to where the caller is.
    let created = in_directory(&state.bundle, || make(request))?;
    created.warnings.iter().for_each(|warning| log.warning(warning));
    state.pid = created.pid;
    state.started_ticks = process_start(created.pid)?.map_or(0, |(_, ticks)| ticks);
    directory.save_state(&state)?;
    let console = hand_over(command, created.console)?;
    write_pid_file(command, created.pid)?;
    Ok(Made {
        directory: directory.clone(),
        pid: created.pid,
        after,
        identity,
        cgroup,
        host_root: state.host_root,
        pidfd: created.pidfd,
        start: created.start,
        console,
    })
}

/// Does something in another working directory, and comes back.
fn in_directory<T>(directory: &Path, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = std::env::current_dir();
    std::env::set_current_dir(directory).map_err(io(directory))?;
    let done = act();
    // A caller whose directory is gone gave no relative path that meant anything.
    if let Ok(before) = before {
        std::env::set_current_dir(&before).map_err(io(&before))?;
    }
    done
}

/// `run`: creates, starts, and unless detached waits and deletes.
pub fn run(command: &Command, log: &Log) -> Result<u8> {
    let signals = Signals::block()?;
    let made = create(command, log)?;
    let detach = command.has("--detach");
    let outcome = made.start.start().and_then(|()| {
        run_poststart_hooks(&made.after, &made.identity, made.pid, log);
        match detach {
            true => Ok(0),
            false => relay::wait(&made.pidfd, made.console, signals),
        }
    });
    if outcome.is_err() || !(detach || command.has("--keep")) {
        destroy(&made.cgroup, made.host_root.as_ref())?;
        made.directory.remove()?;
        run_poststop_hooks(&made.after, &made.identity, log);
    }
    outcome
}

/// `start`: the program.
pub fn start(command: &Command, log: &Log) -> Result<()> {
    let (directory, state) = find(command)?;
    directory.status(&state)?.permits(Verb::Start)?;
    start_at(&directory.start_socket())?;
    if let Some(spec) = directory.spec_naming("poststart")? {
        run_poststart_hooks(&Hooks::from_spec(&spec)?, &state.identity(&spec), state.pid, log);
    }
    Ok(())
}

/// The program runs, whatever they say. Source: runtime-spec 1.2, runtime.md, "Lifecycle", step 9.
fn run_poststart_hooks(hooks: &Hooks, identity: &Identity, pid: i32, log: &Log) {
    let state = identity.state(Status::Running, Some(pid));
    let failed = hooks::run_each(&hooks.poststart, &state, &hooks::own_environment());
    failed.iter().for_each(|error| log.warning(&error.to_string()));
}

/// Source: runtime-spec, config-linux.md, "Cgroups Path".
fn cgroup_path(plan: &Plan, id: &str) -> Result<PathBuf> {
    match &plan.cgroups_path {
        Some(path) if path.to_string_lossy().matches(':').count() == 2 => {
            Err(Error::unsupported("linux.cgroupsPath", "slices are systemd's, and it is not asked"))
        }
        Some(path) if path.is_absolute() => Ok(path.clone()),
        Some(path) if !path.as_os_str().is_empty() => Ok(Path::new("/podyard-oci").join(path)),
        // As runc and crun do; flat, so that deleting leaves no parent behind.
        _ => Ok(Path::new("/").join(id)),
    }
}

fn listen(path: &Path) -> Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let made = || -> nix::Result<OwnedFd> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        // The file that bind makes has the socket's mode.
        nix::sys::stat::fchmod(&fd, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&fd, Backlog::new(1)?)?;
        Ok(fd)
    };
    made().map_err(|errno| Error::sys(format!("listen on {}", path.display()), errno))
}
