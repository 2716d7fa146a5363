//! What the shim does for each request, up to the point where a worker takes over.
#![forbid(unsafe_code)]

use crate::container::Container;
use crate::job::{Ask, Job};
use crate::protocol::{
    ContainerId, Create, Exec, Failure, FailureKind, Namespace, Reply, Status, Target, VERSION, Verb,
};
use crate::record;
use crate::server::{CONTAINERS_MAX, EXECS_MAX, Shim};
use crate::sys::{Call, Result};
use rustix::process::{Signal, pidfd_send_signal};
use std::os::fd::{AsFd, OwnedFd};

/// Reply and descriptors, or none when a worker will answer.
type Now = Result<Option<(Reply, Vec<OwnedFd>)>>;

impl Shim {
    pub(crate) fn handle(&mut self, ask: Ask, verb: Verb, fds: Vec<OwnedFd>) {
        match self.perform(ask, verb, fds) {
            Ok(None) => {}
            Ok(Some((reply, fds))) => self.answer(ask, Ok(reply), fds),
            Err(failure) => self.answer(ask, Err(failure), Vec::new()),
        }
    }

    fn perform(&mut self, ask: Ask, verb: Verb, mut fds: Vec<OwnedFd>) -> Now {
        self.check_greeted(ask, &verb)?;
        match verb {
            Verb::Hello { version } => {
                if version != VERSION {
                    let text = format!("the shim speaks version {VERSION} of the protocol, not {version}");
                    return Err(Failure::new(FailureKind::Unsupported, text));
                }
                if let Some(connection) = self.connections.get_mut(&ask.connection) {
                    connection.greeted = true;
                }
                let pod_uid = self.pod_uid.clone();
                now(Reply::Hello { version: VERSION, pod_uid, process: self.me.clone() })
            }
            Verb::Setup(setup) => {
                self.held.setup(&setup, fds.pop())?;
                now(Reply::State(self.state()?))
            }
            Verb::Create(create) => self.create(ask, *create),
            Verb::Start(id) => self.start_container(ask, id),
            Verb::Kill { target, signal } => self.kill(&target, signal),
            Verb::Delete(id) => self.delete(ask, id),
            Verb::Exec(exec) => self.exec(ask, *exec, fds),
            Verb::State => now(Reply::State(self.state()?)),
            Verb::Subscribe => {
                if let Some(connection) = self.connections.get_mut(&ask.connection) {
                    connection.subscribed = true;
                }
                now(Reply::State(self.state()?))
            }
            Verb::Namespaces => {
                let names: Vec<Namespace> = self.held.describe()?;
                let fds = self.held.iter().map(|(_, fd)| duplicate(fd)).collect::<Result<Vec<_>>>()?;
                Ok(Some((Reply::Namespaces(names), fds)))
            }
            Verb::Pidfd(id) => {
                let pidfd = self.find(&id)?.pidfd.as_ref().map(|fd| duplicate(fd.as_fd()));
                match pidfd {
                    Some(copy) => Ok(Some((Reply::Done, vec![copy?]))),
                    None => {
                        Err(Failure::new(FailureKind::Conflict, format!("container {id} has no process")))
                    }
                }
            }
            Verb::Shutdown => {
                if let Some(container) = self.containers.values().find(|container| !container.has_exited()) {
                    return Err(Failure::new(
                        FailureKind::Busy,
                        format!("container {} has not exited", container.id),
                    ));
                }
                if self.workers.iter().any(|(_, job)| job.is_some()) {
                    return Err(Failure::new(FailureKind::Busy, "a worker is under way"));
                }
                self.stopping = true;
                now(Reply::Done)
            }
        }
    }

    fn check_greeted(&self, ask: Ask, verb: &Verb) -> Result<()> {
        let greeted = self.connections.get(&ask.connection).is_some_and(|connection| connection.greeted);
        if greeted || matches!(verb, Verb::Hello { .. }) {
            return Ok(());
        }
        Err(Failure::new(FailureKind::Conflict, "Hello comes first"))
    }

    fn create(&mut self, ask: Ask, create: Create) -> Now {
        self.held.check_ready()?;
        let id = &create.container;
        check_name(&id.name)?;
        if let Some(container) = self.containers.get_mut(id).filter(|container| container.stuck) {
            container.stuck = false;
            let text = format!("container {id}: its last creation is still being cleaned up");
            self.undo(id, ask, Failure::new(FailureKind::Busy, text));
            return Ok(None);
        }
        if self.containers.len() >= CONTAINERS_MAX {
            return Err(Failure::new(
                FailureKind::Busy,
                format!("{CONTAINERS_MAX} containers; delete ended ones"),
            ));
        }
        for other in self.containers.values().filter(|other| other.id.name == id.name) {
            if other.id.attempt >= id.attempt {
                let (kind, text) = match (other.id.attempt == id.attempt, &other.status) {
                    (true, Status::Creating) => (FailureKind::Busy, "is being created"),
                    (true, _) => (FailureKind::AlreadyExists, "exists"),
                    (false, _) => (FailureKind::AlreadyExists, "is later than the one asked for"),
                };
                return Err(Failure::new(kind, format!("container {} {text}", other.id)));
            }
            if !other.has_exited() {
                return Err(Failure::new(
                    FailureKind::Conflict,
                    format!("container {} has not exited", other.id),
                ));
            }
        }
        if let Some(last) = record::last_attempt(&self.pod_dir, &id.name)?.filter(|last| *last >= id.attempt)
        {
            let text = format!("container {}.{last} has an exit record", id.name);
            return Err(Failure::new(FailureKind::AlreadyExists, text));
        }
        let (container, output) = Container::new(id.clone(), create.cgroup.clone(), &create.log)?;
        self.containers.insert(id.clone(), container);
        // The worker's copies are all that is left of the writing ends once this returns.
        self.start(Job::Create { create: Box::new(create), ask }, vec![output.stdout, output.stderr]);
        Ok(None)
    }

    fn start_container(&mut self, ask: Ask, id: ContainerId) -> Now {
        let container = self.find(&id)?;
        check_idle(container)?;
        match container.status {
            Status::Running => return now(Reply::Done),
            Status::Created => {}
            Status::Creating | Status::Exited(_) => {
                return Err(Failure::new(
                    FailureKind::Conflict,
                    format!("container {id} is not waiting to start"),
                ));
            }
        }
        let Some(gate) = container.gate.take() else {
            return Err(Failure::new(FailureKind::Conflict, format!("container {id} is ending")));
        };
        container.busy = true;
        container.started_at_ns = Some(crate::clock::now_ns());
        self.start(Job::Start { container: id, ask }, vec![gate]);
        Ok(None)
    }

    fn kill(&mut self, target: &Target, signal: i32) -> Now {
        let named = Signal::from_named_raw(signal)
            .ok_or_else(|| Failure::new(FailureKind::Invalid, format!("{signal} is not a signal")))?;
        match target {
            Target::Container(id) => kill_container(self.find(id)?, named)?,
            Target::All => {
                self.containers.values_mut().try_for_each(|container| kill_container(container, named))?
            }
            Target::Exec(number) => match self.execs.get(number) {
                Some(exec) => send(exec.pidfd.as_fd(), named)?,
                None if *number <= self.next_number => {}
                None => {
                    return Err(Failure::new(FailureKind::NotFound, format!("exec {number} does not exist")));
                }
            },
            Target::Cgroup(id) => {
                if named != Signal::KILL {
                    return Err(Failure::new(FailureKind::Invalid, "a cgroup takes SIGKILL only"));
                }
                let cgroup = self.find(id)?.cgroup.clone();
                runtime::cgroup::Cgroup::open(&cgroup).and_then(|cgroup| cgroup.kill())?;
            }
        }
        now(Reply::Done)
    }

    fn delete(&mut self, ask: Ask, id: ContainerId) -> Now {
        let Some(container) = self.containers.get_mut(&id) else { return now(Reply::Done) };
        check_idle(container)?;
        if !container.has_exited() {
            return Err(Failure::new(FailureKind::Conflict, format!("container {id} has not exited")));
        }
        container.busy = true;
        self.start(Job::Delete { container: id, ask }, Vec::new());
        Ok(None)
    }

    fn exec(&mut self, ask: Ask, exec: Exec, fds: Vec<OwnedFd>) -> Now {
        if self.execs.len() >= EXECS_MAX {
            return Err(Failure::new(FailureKind::Busy, format!("{EXECS_MAX} programs are running")));
        }
        if !matches!(fds.len(), 0 | 3) {
            return Err(Failure::new(FailureKind::Invalid, "exec takes three descriptors or none"));
        }
        let container = self.find(&exec.container)?;
        if container.status != Status::Running {
            return Err(Failure::new(
                FailureKind::Conflict,
                format!("container {} is not running", exec.container),
            ));
        }
        self.start(Job::Exec { exec: Box::new(exec), ask }, fds);
        Ok(None)
    }
}

fn now(reply: Reply) -> Now {
    Ok(Some((reply, Vec::new())))
}

fn check_idle(container: &Container) -> Result<()> {
    if container.busy {
        return Err(Failure::new(
            FailureKind::Busy,
            format!("container {}: another request is at work", container.id),
        ));
    }
    Ok(())
}

/// Names become file and cgroup names.
fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > 100 || !name.chars().all(plain) {
        return Err(Failure::new(
            FailureKind::Invalid,
            format!("container name {name:?} is not a plain name"),
        ));
    }
    Ok(())
}

fn kill_container(container: &mut Container, signal: Signal) -> Result<()> {
    let mut signal = signal;
    if container.status == Status::Created {
        // Its program has not run: there is nothing to end with grace, and as init of a PID namespace the waiting
        // process would ignore most signals.
        container.gate = None;
        signal = Signal::KILL;
    }
    match &container.pidfd {
        Some(pidfd) => send(pidfd.as_fd(), signal),
        None => Ok(()),
    }
}

/// Gone already is success.
fn send(pidfd: std::os::fd::BorrowedFd<'_>, signal: Signal) -> Result<()> {
    match pidfd_send_signal(pidfd, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => other.call(|| format!("pidfd_send_signal({})", signal.as_raw())),
    }
}

fn duplicate(fd: std::os::fd::BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).call(|| "fcntl(F_DUPFD_CLOEXEC)".into())
}
