//! `exec`: one more process in a running container.

use oci_spec::runtime::{Capability, LinuxCapabilitiesBuilder, Process, Spec};
use runtime::cgroup::Cgroup;
use runtime::container::{Parent, Stdio};
use runtime::exec::{ExecRequest, ProcessPlan, exec as execute};
use runtime::state::{Status, Verb};
use runtime::{Error, Kind, Result};

use crate::log::Log;
use crate::options::Command;
use crate::relay::{self, Signals};
use crate::store::{filters, find, hand_over, load_document, own_stdio, preserved, write_pid_file};

/// Runs it; its exit code, or 0 if detached.
pub fn exec(command: &Command, log: &Log) -> Result<u8> {
    let (directory, state) = find(command)?;
    match directory.status(&state)? {
        // The process would be born frozen, and nobody would hear of it.
        Status::Paused if !command.has("--ignore-paused") => {
            return Err(Error::new(Kind::Busy, "cannot exec in a paused container"));
        }
        status => status.permits(Verb::Exec)?,
    }
    let spec = directory.spec()?;
    let mut process = plan(command, &spec, log)?;
    process.preserved_fds = preserved(command)?;
    let terminal = process.terminal;
    let console = command.has("--console-socket");
    process.relayed = !console;
    if command.has("--detach") && terminal && !console {
        return Err(Error::invalid("--console-socket", "is needed for a detached terminal"));
    }
    let target =
        state.process()?.ok_or_else(|| Error::new(Kind::NotFound, "the container has just stopped"))?;
    let seccomp = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    let signals = Signals::block()?;
    let executed = execute(ExecRequest {
        target,
        process,
        seccomp: seccomp.map(|s| filters(command).filter(s, &mut Vec::new())).transpose()?,
        stdio: match terminal {
            true => Stdio::Terminal(None),
            false => Stdio::Fds(own_stdio()?),
        },
        cgroup: Some(cgroup(command, &state.cgroup)?),
        parent: Parent::Caller,
        identity: state.identity(&spec),
    })?;
    executed.warnings.iter().for_each(|warning| log.warning(warning));
    write_pid_file(command, executed.pid)?;
    let console = hand_over(command, executed.console)?;
    match command.has("--detach") {
        true => Ok(0),
        false => relay::wait(&executed.pidfd, console, signals),
    }
}

/// The container's cgroup, or one below it that `--cgroup` names.
fn cgroup(command: &Command, own: &std::path::Path) -> Result<Cgroup> {
    match command.value("--cgroup") {
        None => Cgroup::open(own),
        Some(text) if text.contains(':') => {
            Err(Error::unsupported("--cgroup", "one place for all controllers is what there is"))
        }
        Some(text) => Cgroup::open(own.join(text.trim_start_matches('/'))),
    }
}

/// The container's own process with another command and the options' changes, or a process file.
fn plan(command: &Command, spec: &Spec, log: &Log) -> Result<ProcessPlan> {
    let mut process: Process = match command.path("--process") {
        Some(path) => load_document(path, log)?,
        None => {
            let mut process = spec.process().clone().unwrap_or_default();
            process.set_args(Some(command.args[1..].to_vec()));
            process.set_terminal(Some(false));
            process
        }
    };
    if command.has("--tty") {
        process.set_terminal(Some(true));
    }
    if let Some(cwd) = command.value("--cwd") {
        process.set_cwd(cwd.into());
    }
    set_user(command, &mut process)?;
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(command.values("--env").map(str::to_string));
    process.set_env(Some(env));
    if command.has("--no-new-privs") {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(label) = command.value("--process-label") {
        process.set_selinux_label(Some(label.to_string()));
    }
    if let Some(profile) = command.value("--apparmor") {
        process.set_apparmor_profile(Some(profile.to_string()));
    }
    add_capabilities(command, &mut process)?;
    let plan = ProcessPlan::from_spec(&process)?;
    match spec.linux() {
        Some(linux) => plan.within(linux),
        None => Ok(plan),
    }
}

fn set_user(command: &Command, process: &mut Process) -> Result<()> {
    let number = |option: &str, text: &str| {
        text.parse::<u32>().map_err(|_| Error::invalid(option, format!("{text:?} is not a number")))
    };
    let mut user = process.user().clone();
    if let Some(text) = command.value("--user") {
        let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
        user.set_uid(number("--user", uid)?);
        user.set_gid(number("--user", gid)?);
    }
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for text in command.values("--additional-gids") {
        groups.push(number("--additional-gids", text)?);
    }
    user.set_additional_gids(Some(groups));
    process.set_user(user);
    Ok(())
}

/// As runc does it: what `--cap` names is added to every set but the inheritable one, and to the ambient one where the
/// container has something to inherit.
fn add_capabilities(command: &Command, process: &mut Process) -> Result<()> {
    let named: Vec<Capability> = command
        .values("--cap")
        .map(|text| {
            serde_json::from_value(text.into())
                .map_err(|_| Error::invalid("--cap", format!("unknown {text:?}")))
        })
        .collect::<Result<_>>()?;
    if named.is_empty() {
        return Ok(());
    }
    let own = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<oci_spec::runtime::Capabilities>| {
        set.iter()
            .flatten()
            .cloned()
            .chain(named.iter().cloned())
            .collect::<oci_spec::runtime::Capabilities>()
    };
    let built = LinuxCapabilitiesBuilder::default()
        .bounding(with(own.bounding()))
        .effective(with(own.effective()))
        .permitted(with(own.permitted()))
        .ambient(match own.inheritable().iter().flatten().next() {
            Some(_) => with(own.ambient()),
            None => own.ambient().clone().unwrap_or_default(),
        })
        .inheritable(own.inheritable().clone().unwrap_or_default())
        .build();
    process.set_capabilities(Some(built.map_err(|e| Error::invalid("--cap", e))?));
    Ok(())
}
