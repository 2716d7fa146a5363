//! Signals, pauses and the end of a container.

use std::time::Duration;

use runtime::cgroup::Cgroup;
use runtime::container::HostRoot;
use runtime::hooks::{self, Hooks};
use runtime::signal::{self, Signal};
use runtime::state::{Directory, Identity, State, Status, Verb};
use runtime::{Error, Kind, Result};

use crate::log::Log;
use crate::options::Command;
use crate::store::{cgroup_of, find, io};

/// How long killed processes may take to be gone, and a freeze to take hold.
const DEADLINE: Duration = Duration::from_secs(10);

/// How many execs may come in while a container is being deleted: each is one that had begun before.
const NEWCOMERS_MAX: u32 = 16;

/// How long a container may go on running when it is to be deleted, in milliseconds.
const MOMENT_MS: u8 = 100;

/// `kill`: a signal to the first process or, with `--all`, to every process. Signal 0 only asks whether there is one.
pub fn kill(command: &Command) -> Result<()> {
    let (directory, state) = find(command)?;
    let signal = match command.args.get(1).map_or("TERM", String::as_str) {
        "0" => None,
        text => Some(signal::parse(text)?),
    };
    let all = match signal {
        _ if command.has("--all") => true,
        // Or what the first process has started would live on. With runc too.
        Some(Signal::KILL) if state.shares_pids => cgroup_of(&state)?.populated()?,
        _ => false,
    };
    if all {
        return signal.map_or(Ok(()), |signal| kill_all(&state, signal));
    }
    directory.status(&state)?.permits(Verb::Kill)?;
    match (state.process()?, signal) {
        (Some(pidfd), Some(signal)) => runtime::pidfd::send_signal(&pidfd, signal),
        (Some(_), None) => Ok(()),
        // It has exited since.
        (None, _) => Status::Stopped.permits(Verb::Kill),
    }
}

/// Also of a container whose first process has exited: others may run on in a shared PID namespace.
fn kill_all(state: &State, signal: Signal) -> Result<()> {
    use rustix::process::{Pid, kill_process};
    let cgroup = cgroup_of(state)?;
    if signal == Signal::KILL {
        return cgroup.kill();
    }
    for pid in cgroup.pids()?.into_iter().filter_map(Pid::from_raw) {
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(sys(format!("kill({pid:?}, {signal:?})"), e)),
        }
    }
    Ok(())
}

fn sys(call: String, errno: rustix::io::Errno) -> Error {
    Error::sys(call, nix::errno::Errno::from_raw(errno.raw_os_error()))
}

/// `delete`: forgets a stopped container; with `--force` any, which is killed first.
pub fn delete(command: &Command, log: &Log) -> Result<()> {
    let directory = Directory::of(&command.root(), command.id()?)?;
    let state = match directory.state() {
        // A create that was cut short left a reserved id; what is not there is deleted already.
        Err(e) if e.kind() == Kind::NotFound && command.has("--force") => return directory.remove(),
        Err(e) if e.kind() == Kind::NotFound => {
            return Err(Error::new(Kind::NotFound, format!("container {} does not exist", directory.name())));
        }
        other => other.map_err(|e| e.within(format!("container {}", directory.name())))?,
    };
    if !command.has("--force") {
        if directory.status(&state)? == Status::Running {
            await_exit(&state)?;
        }
        let status = directory.status(&state)?;
        status.permits(Verb::Delete)?;
        if status == Status::Created {
            withdraw(&directory)?;
        }
    }
    // Read before it is gone; a bundle's own file may have changed or vanished.
    let spec = directory.spec_naming("poststop");
    destroy(&cgroup_of(&state)?, state.host_root.as_ref())?;
    directory.remove()?;
    let hooks = |spec| Ok((Hooks::from_spec(&spec)?, state.identity(&spec)));
    match spec.and_then(|spec| spec.map(hooks).transpose()) {
        Ok(Some((hooks, identity))) => run_poststop_hooks(&hooks, &identity, log),
        Ok(None) => {}
        // It is deleted all the same: nobody could mend what create has written.
        Err(error) => log.warning(&error.within("poststop hooks").to_string()),
    }
    Ok(())
}

/// Takes the socket from a container that waits for `start`: one of the two gets it, and a container that has been
/// started is not deleted.
fn withdraw(directory: &Directory) -> Result<()> {
    let path = directory.start_socket();
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Status::Running.permits(Verb::Delete),
        other => other.map_err(io(&path)),
    }
}

/// Who has just been killed, or has said its last, may take a moment to be gone.
fn await_exit(state: &State) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;
    let Some(pidfd) = state.process()? else {
        return Ok(());
    };
    match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], MOMENT_MS) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(Error::sys("poll(pidfd)", e)),
    }
}

/// Nothing is left of the container, whatever they say. Source: runtime-spec 1.2, runtime.md, "Lifecycle", step 13.
pub fn run_poststop_hooks(hooks: &Hooks, identity: &Identity, log: &Log) {
    let state = identity.state(Status::Stopped, None);
    let failed = hooks::run_each(&hooks.poststop, &state, &hooks::own_environment());
    failed.iter().for_each(|error| log.warning(&error.to_string()));
}

/// Kills, sees it empty, removes, and lets go of what it had mounted.
pub fn destroy(cgroup: &Cgroup, host_root: Option<&HostRoot>) -> Result<()> {
    destroy_processes(cgroup)?;
    host_root.map_or(Ok(()), HostRoot::release)
}

fn destroy_processes(cgroup: &Cgroup) -> Result<()> {
    if cgroup.remove_if_empty()? {
        return Ok(());
    }
    let mut newcomers = 0;
    loop {
        cgroup.kill()?;
        if !cgroup.wait_empty(DEADLINE)? {
            let text = format!("cgroup {} still has processes", cgroup.path().display());
            return Err(Error::new(Kind::Timeout, text));
        }
        match cgroup.remove() {
            // An exec that was on its way in has arrived since it was seen empty.
            Err(e) if e.kind() == Kind::Busy && newcomers < NEWCOMERS_MAX => newcomers += 1,
            other => return other,
        }
    }
}

/// `pause`: every process of the container stands still.
pub fn pause(command: &Command) -> Result<()> {
    let (directory, state) = find(command)?;
    directory.status(&state)?.permits(Verb::Pause)?;
    let cgroup = cgroup_of(&state)?;
    cgroup.freeze()?;
    if cgroup.wait_frozen(DEADLINE)? {
        return Ok(());
    }
    // Half frozen is neither: what cannot stop goes on.
    cgroup.thaw()?;
    Err(Error::new(Kind::Timeout, "a process did not stop; the container goes on"))
}

/// `resume`: they go on.
pub fn resume(command: &Command) -> Result<()> {
    let (directory, state) = find(command)?;
    let status = directory.status(&state)?;
    status.permits(Verb::Resume)?;
    debug_assert_eq!(status, Status::Paused);
    cgroup_of(&state)?.thaw()
}
