//! What workers do: the parts of a request that may block.
#![forbid(unsafe_code)]

use crate::build;
use crate::protocol::{ContainerId, Create, Exec, ExitRecord, Failure, FailureKind};
use crate::record;
use crate::server::{HOUSEKEEPING_DEADLINE, Shim};
use crate::sys::{Call, Result};
use crate::worker::{Outcome, Work, Worker};
use runtime::cgroup::Cgroup;
use runtime::container::StartGate;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Time for a create or exec that names none.
const DEADLINE: Duration = Duration::from_secs(30);
/// Time for killed processes to end before their cgroup is removed.
const EMPTY_DEADLINE: Duration = Duration::from_secs(10);

/// Who is waiting for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub connection: u64,
    pub id: u64,
}

/// A worker's task, and what the shim needs to know when it is done.
#[derive(Debug)]
pub(crate) enum Job {
    Create {
        create: Box<Create>,
        ask: Ask,
    },
    /// Cleans up after a create that failed.
    Undo {
        container: ContainerId,
        ask: Ask,
        failure: Failure,
    },
    Start {
        container: ContainerId,
        ask: Ask,
    },
    Exec {
        exec: Box<Exec>,
        ask: Ask,
    },
    Delete {
        container: ContainerId,
        ask: Ask,
    },
    /// Ends what is left in the cgroup and writes the exit record.
    Record {
        record: ExitRecord,
        cgroup: String,
    },
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Job::Create { create, .. } => write!(f, "create {}", create.container),
            Job::Undo { container, .. } => write!(f, "undo the creation of {container}"),
            Job::Start { container, .. } => write!(f, "start {container}"),
            Job::Exec { exec, .. } => write!(f, "exec in {}", exec.container),
            Job::Delete { container, .. } => write!(f, "delete {container}"),
            Job::Record { record, .. } => write!(f, "record the exit of {}", record.container),
        }
    }
}

impl Job {
    /// Whether its worker makes a process that becomes the shim's child before the shim hears of it.
    pub(crate) fn makes_a_child(&self) -> bool {
        matches!(self, Job::Create { .. } | Job::Exec { .. })
    }

    /// Forks the worker.
    pub(crate) fn spawn(&self, shim: &mut Shim, fds: Vec<OwnedFd>) -> Result<Worker> {
        let shim = &*shim;
        match self {
            Job::Create { create, .. } => {
                let namespaces: Vec<_> = shim.held.iter().collect();
                let keep: Vec<_> =
                    namespaces.iter().map(|(_, fd)| *fd).chain(fds.iter().map(AsFd::as_fd)).collect();
                let deadline = deadline(create.deadline_ms);
                Worker::spawn(c"shim-create", deadline, &keep, || {
                    build::create(create, &shim.pod_dir, &namespaces, &fds)
                })
            }
            Job::Exec { exec, .. } => {
                let container = shim.containers.get(&exec.container);
                let (Some(cgroup), Some(target)) =
                    (container.map(|c| c.cgroup.clone()), container.and_then(|c| c.pidfd.as_ref()))
                else {
                    return Err(Failure::new(
                        FailureKind::Conflict,
                        format!("container {} has ended", exec.container),
                    ));
                };
                let keep: Vec<_> = fds.iter().map(AsFd::as_fd).chain([target.as_fd()]).collect();
                let deadline = deadline(exec.deadline_ms);
                Worker::spawn(c"shim-exec", deadline, &keep, || {
                    build::exec(exec, &shim.pod_dir, &cgroup, target.as_fd(), &fds)
                })
            }
            Job::Start { .. } => {
                let keep: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                Worker::spawn(c"shim-start", DEADLINE, &keep, || {
                    let gate =
                        fds.first().ok_or_else(|| Failure::new(FailureKind::Internal, "no start gate"))?;
                    StartGate::from_fd(gate.try_clone().call(|| "fcntl(F_DUPFD_CLOEXEC)".into())?).start()?;
                    done()
                })
            }
            Job::Undo { container, .. } | Job::Delete { container, .. } => {
                let cgroup = shim.containers.get(container).map(|container| container.cgroup.clone());
                Worker::spawn(c"shim-delete", HOUSEKEEPING_DEADLINE, &[], || {
                    build::forget_spec(&shim.pod_dir, container)?;
                    clear(cgroup.as_deref())?;
                    done()
                })
            }
            Job::Record { record, cgroup } => {
                Worker::spawn(c"shim-record", HOUSEKEEPING_DEADLINE, &[], || {
                    Ok((finish(shim, record, cgroup), Vec::new()))
                })
            }
        }
    }
}

fn done() -> Work {
    Ok((Outcome::Done, Vec::new()))
}

fn deadline(ms: u64) -> Duration {
    if ms == 0 { DEADLINE } else { Duration::from_millis(ms) }
}

/// Kills what is in the cgroup, sees it empty and removes it.
fn clear(cgroup: Option<&str>) -> Result<()> {
    let Some(path) = cgroup else { return Ok(()) };
    let cgroup = match Cgroup::open(path) {
        Err(error) if error.kind() == runtime::Kind::NotFound => return Ok(()),
        other => other?,
    };
    cgroup.kill()?;
    if !cgroup.wait_empty(EMPTY_DEADLINE)? {
        return Err(Failure::new(
            FailureKind::Busy,
            format!("cgroup {path} still has processes that were killed"),
        ));
    }
    Ok(cgroup.remove()?)
}

/// The init process is gone: so shall be the rest, which in a PID namespace of its own died with it.
fn finish(shim: &Shim, record: &ExitRecord, cgroup: &str) -> Outcome {
    let mut record = record.clone();
    match Cgroup::open(cgroup).and_then(|cgroup| {
        cgroup.kill()?;
        cgroup.oom_kills()
    }) {
        Ok(count) => record.oom_killed = count > 0,
        Err(error) => eprintln!("{}: {error}", record.container),
    }
    let stored = record::write(&shim.pod_dir, &record);
    Outcome::Recorded { record, stored }
}
