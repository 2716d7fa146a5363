//! One function for each verb.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use oci_spec::runtime::{Process, Spec};
use runtime::cgroup::Cgroup;
use runtime::container::{CreateRequest, Parent, Root, StartGate, Stdio, create, start_at};
use runtime::exec::{ExecRequest, ProcessPlan, exec};
use runtime::seccomp::Filter;
use runtime::state::{Directory, State, Status, Verb, process_start};
use runtime::{Error, Kind, Plan, Result};
use serde_json::json;

use crate::options::Command;
use crate::relay::{self, Signals};

/// How long `delete` waits for killed processes to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Does what the command says; the exit code.
pub fn run(command: &Command) -> Result<u8> {
    match command.verb.as_str() {
        "create" => create_container(command).map(|_| 0),
        "start" => start(command).map(|()| 0),
        "state" => state(command).map(|()| 0),
        "kill" => kill(command).map(|()| 0),
        "delete" => delete(command).map(|()| 0),
        "run" => run_container(command),
        "exec" => exec_process(command),
        "spec" => write_spec(command).map(|()| 0),
        "list" => list(command).map(|()| 0),
        other => Err(Error::unsupported(other, "no such command here")),
    }
}

/// A container created, and what only its creator has.
struct Made {
    directory: Directory,
    pidfd: OwnedFd,
    start: StartGate,
    console: Option<OwnedFd>,
}

fn create_container(command: &Command) -> Result<Made> {
    let bundle = std::fs::canonicalize(&command.bundle).map_err(io(&command.bundle))?;
    let spec: Spec = load(&bundle.join("config.json"))?;
    // The spec's paths are relative to the bundle.
    std::env::set_current_dir(&bundle).map_err(io(&bundle))?;
    let root = spec.root().as_ref().map(|r| bundle.join(r.path())).unwrap_or_default();
    let mut plan = Plan::from_spec(&spec)?;
    if command.detach && plan.process.terminal && command.console_socket.is_none() {
        return Err(Error::invalid("--console-socket", "is needed for a detached terminal"));
    }
    plan.process.terminal |= command.tty;
    let directory = Directory::of(&command.root, command.id()?)?;
    directory.create()?;
    let made = create_reserved(command, plan, root, &spec, bundle, &directory);
    if made.is_err() {
        // The id is ours, so what is there is of this attempt.
        directory.remove()?;
    }
    made
}

fn create_reserved(
    command: &Command,
    plan: Plan,
    root: PathBuf,
    spec: &Spec,
    bundle: PathBuf,
    directory: &Directory,
) -> Result<Made> {
    directory.save_spec(spec)?;
    let cgroup = Cgroup::create(cgroup_path(&plan, command.id()?)?)?;
    let made = (|| {
        if cgroup.populated()? {
            return Err(Error::new(Kind::Busy, format!("cgroup {} has processes", cgroup.path().display())));
        }
        if let Some(resources) = &plan.resources {
            cgroup.apply_limits(resources)?;
        }
        let listener = listen(&directory.start_socket())?;
        let terminal = plan.process.terminal;
        let stdio = match terminal {
            true => Stdio::Terminal(None),
            false => Stdio::Fds(own_stdio()?),
        };
        let created = create(CreateRequest {
            plan,
            root: Root::Path(root),
            mounts: Vec::new(),
            stdio,
            namespaces: Default::default(),
            cgroup: Some(cgroup.clone()),
            parent: Parent::Caller,
            start_listener: Some(listener),
        })?;
        for warning in &created.warnings {
            eprintln!("podyard-oci: warning: {warning}");
        }
        let started_ticks = process_start(created.pid)?.map_or(0, |(_, ticks)| ticks);
        directory.save_state(&State {
            id: command.id()?.to_string(),
            bundle,
            cgroup: cgroup.path(),
            pid: created.pid,
            started_ticks,
        })?;
        let console = hand_over(command, created.console)?;
        write_pid_file(command, created.pid)?;
        Ok(Made { directory: directory.clone(), pidfd: created.pidfd, start: created.start, console })
    })();
    if made.is_err() {
        destroy(&cgroup)?;
    }
    made
}

fn run_container(command: &Command) -> Result<u8> {
    let signals = Signals::block()?;
    let made = create_container(command)?;
    let outcome = start_at(&made.directory.start_socket()).and_then(|()| {
        std::fs::remove_file(made.directory.start_socket()).map_err(io(&made.directory.start_socket()))?;
        match command.detach {
            true => Ok(0),
            false => relay::wait(&made.pidfd, made.console, signals),
        }
    });
    drop(made.start);
    if outcome.is_err() || !command.detach {
        let state = made.directory.state()?;
        destroy(&Cgroup::name(&runtime::cgroup::Hierarchies::detect()?, &state.cgroup)?)?;
        made.directory.remove()?;
    }
    outcome
}

fn start(command: &Command) -> Result<()> {
    let (directory, state) = find(command)?;
    directory.status(&state)?.permits(Verb::Start)?;
    let started = start_at(&directory.start_socket());
    std::fs::remove_file(directory.start_socket()).map_err(io(&directory.start_socket()))?;
    started
}

fn state(command: &Command) -> Result<()> {
    let (directory, state) = find(command)?;
    let status = directory.status(&state)?;
    let spec = directory.spec()?;
    let pid = if status == Status::Stopped { 0 } else { state.pid };
    let shown = json!({
        "ociVersion": spec.version(), "id": state.id, "status": status, "pid": pid,
        "bundle": state.bundle, "annotations": spec.annotations(),
    });
    println!("{shown:#}");
    Ok(())
}

fn kill(command: &Command) -> Result<()> {
    let (directory, state) = find(command)?;
    let signal = signal(command.args.get(1).map_or("TERM", String::as_str))?;
    let status = directory.status(&state)?;
    if command.all && signal == Signal::SIGKILL {
        return Cgroup::open(&state.cgroup).and_then(|cgroup| cgroup.kill());
    }
    status.permits(Verb::Kill)?;
    let Some(pidfd) = state.process()? else {
        return Err(Error::new(Kind::NotFound, "the container has just stopped"));
    };
    let named = rustix::process::Signal::from_named_raw(signal as i32);
    let named = named.ok_or_else(|| Error::invalid("signal", signal))?;
    rustix::process::pidfd_send_signal(&pidfd, named).map_err(|e| {
        Error::sys(format!("pidfd_send_signal({signal})"), nix::errno::Errno::from_raw(e.raw_os_error()))
    })
}

fn delete(command: &Command) -> Result<()> {
    let directory = Directory::of(&command.root, command.id()?)?;
    let state = match directory.state() {
        // A create that was cut short left a reserved id.
        Err(e) if e.kind() == Kind::NotFound && command.force => return directory.remove(),
        other => other.map_err(|e| e.within(format!("container {}", directory.name())))?,
    };
    if !command.force {
        directory.status(&state)?.permits(Verb::Delete)?;
    }
    destroy(&Cgroup::name(&runtime::cgroup::Hierarchies::detect()?, &state.cgroup)?)?;
    directory.remove()
}

/// Kills, sees it empty, removes.
fn destroy(cgroup: &Cgroup) -> Result<()> {
    cgroup.kill()?;
    if !cgroup.wait_empty(KILL_DEADLINE)? {
        return Err(Error::new(
            Kind::Timeout,
            format!("cgroup {} still has processes", cgroup.path().display()),
        ));
    }
    cgroup.remove()
}

fn exec_process(command: &Command) -> Result<u8> {
    let (directory, state) = find(command)?;
    directory.status(&state)?.permits(Verb::Exec)?;
    let spec = directory.spec()?;
    let process = exec_plan(command, &spec)?;
    let target =
        state.process()?.ok_or_else(|| Error::new(Kind::NotFound, "the container has just stopped"))?;
    let seccomp = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    let signals = Signals::block()?;
    let terminal = process.terminal;
    let executed = exec(ExecRequest {
        target,
        process,
        seccomp: seccomp.map(|s| Filter::compile(s, &mut Vec::new())).transpose()?,
        stdio: match terminal {
            true => Stdio::Terminal(None),
            false => Stdio::Fds(own_stdio()?),
        },
        cgroup: Some(Cgroup::open(&state.cgroup)?),
        parent: Parent::Caller,
    })?;
    for warning in &executed.warnings {
        eprintln!("podyard-oci: warning: {warning}");
    }
    write_pid_file(command, executed.pid)?;
    let console = hand_over(command, executed.console)?;
    match command.detach {
        true => Ok(0),
        false => relay::wait(&executed.pidfd, console, signals),
    }
}

/// The container's own process with another command, or a process file.
fn exec_plan(command: &Command, spec: &Spec) -> Result<ProcessPlan> {
    let mut process: Process = match &command.process {
        Some(path) => load(path)?,
        None => {
            let mut process = spec.process().clone().unwrap_or_default();
            process.set_args(Some(command.args[1..].to_vec()));
            process.set_terminal(Some(command.tty));
            process
        }
    };
    if let Some(cwd) = &command.cwd {
        process.set_cwd(cwd.into());
    }
    if let Some(user) = &command.user {
        let number =
            |text: &str| text.parse::<u32>().map_err(|_| Error::invalid("--user", "must be UID[:GID]"));
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        let mut user = process.user().clone();
        user.set_uid(number(uid)?);
        user.set_gid(number(gid)?);
        process.set_user(user);
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(command.env.iter().cloned());
    process.set_env(Some(env));
    ProcessPlan::from_spec(&process)
}

fn write_spec(command: &Command) -> Result<()> {
    let path = command.bundle.join("config.json");
    let text = format!("{:#}\n", crate::spec::default_spec());
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path).map_err(io(&path))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(io(&path))
}

fn list(command: &Command) -> Result<()> {
    let entries = match std::fs::read_dir(&command.root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io(&command.root))?,
    };
    for entry in entries {
        let name = entry.map_err(io(&command.root))?.file_name().to_string_lossy().into_owned();
        let directory = Directory::of(&command.root, &name)?;
        if let Ok(state) = directory.state() {
            println!("{name}\t{}\t{:?}\t{}", state.pid, directory.status(&state)?, state.bundle.display());
        }
    }
    Ok(())
}

fn find(command: &Command) -> Result<(Directory, State)> {
    let directory = Directory::of(&command.root, command.id()?)?;
    match directory.state() {
        Err(e) if e.kind() == Kind::NotFound => {
            Err(Error::new(Kind::NotFound, format!("container {} does not exist", directory.name())))
        }
        other => other.map(|state| (directory, state)),
    }
}

/// Source: runtime-spec, config-linux.md, "Cgroups Path".
fn cgroup_path(plan: &Plan, id: &str) -> Result<PathBuf> {
    match &plan.cgroups_path {
        Some(path) if path.to_string_lossy().matches(':').count() == 2 => {
            Err(Error::unsupported("linux.cgroupsPath", "slices are systemd's, and it is not asked"))
        }
        Some(path) if path.is_absolute() => Ok(path.clone()),
        Some(path) if !path.as_os_str().is_empty() => Ok(Path::new("/podyard-oci").join(path)),
        // Flat, so that deleting leaves no parent behind.
        _ => Ok(PathBuf::from(format!("/podyard-oci-{id}"))),
    }
}

fn listen(path: &Path) -> Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let made = || -> nix::Result<OwnedFd> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&fd, Backlog::new(1)?)?;
        Ok(fd)
    };
    made().map_err(|errno| Error::sys(format!("listen on {}", path.display()), errno))
}

/// Sends the terminal to whoever listens on the console socket.
fn hand_over(command: &Command, console: Option<OwnedFd>) -> Result<Option<OwnedFd>> {
    let (Some(path), Some(master)) = (&command.console_socket, &console) else {
        return Ok(console);
    };
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let socket = std::os::unix::net::UnixStream::connect(path).map_err(io(path))?;
    let name = b"/dev/ptmx";
    let data = [std::io::IoSlice::new(name)];
    let fds = [master.as_fd().as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_raw_fd(), &data, &control, MsgFlags::empty(), None)
        .map_err(|errno| Error::sys("sendmsg(console socket)", errno))?;
    Ok(None)
}

fn own_stdio() -> Result<[OwnedFd; 3]> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned().map_err(|e| Error::new(Kind::Internal, format!("dup(stdio): {e}")))
    };
    Ok([copy(std::io::stdin().as_fd())?, copy(std::io::stdout().as_fd())?, copy(std::io::stderr().as_fd())?])
}

/// Written whole: who watches for it may read it at once.
fn write_pid_file(command: &Command, pid: i32) -> Result<()> {
    let Some(path) = &command.pid_file else {
        return Ok(());
    };
    let new = path.with_extension("new");
    std::fs::write(&new, pid.to_string()).and_then(|()| std::fs::rename(&new, path)).map_err(io(path))
}

/// A signal by number or name, with or without SIG.
fn signal(text: &str) -> Result<Signal> {
    let unknown = || Error::invalid("signal", format!("unknown {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).map_err(|_| unknown());
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    format!("SIG{name}").parse().map_err(|_| unknown())
}

fn load<T: for<'a> serde::Deserialize<'a>>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::invalid(path.display(), e))
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let shown = path.display().to_string();
    move |e| match e.raw_os_error() {
        Some(raw) => Error::sys(shown.clone(), nix::errno::Errno::from_raw(raw)),
        None => Error::new(Kind::Internal, format!("{shown}: {e}")),
    }
}
