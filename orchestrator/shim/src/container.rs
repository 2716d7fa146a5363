//! One container attempt in the shim's memory.
#![forbid(unsafe_code)]

use crate::clock;
use crate::log::{Lines, Log, Stream};
use crate::protocol::{ContainerId, ContainerState, ExitRecord, Failure, FailureKind, ProcessName, Status};
use crate::sys::{Call, Result};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Most bytes taken from one stream per turn of the loop.
const TURN_BYTES_MAX: usize = 64 << 10;
/// Most bytes taken from one stream when its container has ended: more than any pipe holds by default.
const DRAIN_BYTES_MAX: usize = 2 << 20;

/// What happens to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    /// Its worker has made it.
    Made,
    /// Its program runs.
    Started,
    /// It has ended and its record is in its file.
    Ended(ExitRecord),
}

/// Status after `happening`; refused where the kernel could not have done that.
pub(crate) fn next(status: &Status, happening: Happening) -> Result<Status> {
    match (status, happening) {
        (Status::Creating, Happening::Made) => Ok(Status::Created),
        (Status::Created, Happening::Started) => Ok(Status::Running),
        (Status::Creating | Status::Created | Status::Running, Happening::Ended(record)) => {
            Ok(Status::Exited(record))
        }
        (from, happening) => {
            Err(Failure::new(FailureKind::Conflict, format!("illegal transition: {from:?}, {happening:?}")))
        }
    }
}

/// The reading end of a container's output.
#[derive(Debug)]
struct Pump {
    pipe: OwnedFd,
    lines: Lines,
}

/// One container attempt.
#[derive(Debug)]
pub(crate) struct Container {
    pub id: ContainerId,
    pub cgroup: String,
    pub status: Status,
    pub process: Option<ProcessName>,
    pub pidfd: Option<OwnedFd>,
    /// What lets the program run; dropping it before makes the init process end.
    pub gate: Option<OwnedFd>,
    pub started_at_ns: Option<u64>,
    /// A request is at work on it.
    pub busy: bool,
    /// Its creation failed, and so did cleaning up.
    pub stuck: bool,
    log: Log,
    pumps: [Option<Pump>; 2],
}

/// The writing ends of a container's output.
#[derive(Debug)]
pub(crate) struct Output {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Container {
    /// A container that is about to be made, and what its output goes to.
    pub(crate) fn new(id: ContainerId, cgroup: String, log: &Path) -> Result<(Container, Output)> {
        let log = Log::open(log)?;
        let (out_read, stdout) = pipe()?;
        let (err_read, stderr) = pipe()?;
        let pump = |pipe, stream| Some(Pump { pipe, lines: Lines::new(stream) });
        let container = Container {
            id,
            cgroup,
            status: Status::Creating,
            process: None,
            pidfd: None,
            gate: None,
            started_at_ns: None,
            busy: true,
            stuck: false,
            log,
            pumps: [pump(out_read, Stream::Stdout), pump(err_read, Stream::Stderr)],
        };
        Ok((container, Output { stdout, stderr }))
    }

    pub(crate) fn state(&self) -> ContainerState {
        ContainerState {
            container: self.id.clone(),
            status: self.status.clone(),
            process: self.process.clone(),
            cgroup: self.cgroup.clone(),
            started_at_ns: self.started_at_ns,
        }
    }

    pub(crate) fn has_exited(&self) -> bool {
        matches!(self.status, Status::Exited(_))
    }

    /// The pipes to poll, with their numbers for [`Container::pump`].
    pub(crate) fn pipes(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.pumps.iter().enumerate().filter_map(|(n, pump)| Some((n, pump.as_ref()?.pipe.as_fd())))
    }

    /// Takes output from its terminal instead of the pipes.
    pub(crate) fn pump_terminal(&mut self, master: OwnedFd) {
        if let Err(errno) = rustix::io::ioctl_fionbio(&master, true) {
            eprintln!("{}: ioctl(terminal, FIONBIO): {errno}", self.id);
        }
        self.pumps = [Some(Pump { pipe: master, lines: Lines::new(Stream::Stdout) }), None];
    }

    /// Moves what a pipe holds into the log, a bounded amount.
    pub(crate) fn pump(&mut self, number: usize) {
        self.pump_up_to(number, TURN_BYTES_MAX);
    }

    /// Moves all that the pipes hold into the log. Processes that still hold them may write more.
    pub(crate) fn drain(&mut self) {
        (0..self.pumps.len()).for_each(|number| self.pump_up_to(number, DRAIN_BYTES_MAX));
    }

    fn pump_up_to(&mut self, number: usize, bytes_max: usize) {
        let mut buffer = [0; 16 << 10];
        let mut taken = 0;
        while taken < bytes_max {
            let Some(pump) = self.pumps.get_mut(number).and_then(Option::as_mut) else { return };
            let mut out = Vec::new();
            let ended = match rustix::io::read(&pump.pipe, &mut buffer) {
                Ok(0) => true,
                Ok(count) => {
                    taken += count;
                    pump.lines.push(&buffer[..count], clock::now_ns(), &mut out);
                    false
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                Err(_) => true,
            };
            if ended {
                pump.lines.finish(clock::now_ns(), &mut out);
                self.pumps[number] = None;
            }
            if let Err(failure) = self.log.append(&out) {
                eprintln!("{}: log lines lost: {failure}", self.id);
            }
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).call(|| "pipe2(O_CLOEXEC)".into())?;
    // The reading end only: a container expects its output to block.
    rustix::io::ioctl_fionbio(&read, true).call(|| "ioctl(FIONBIO)".into())?;
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_moves_forward_only() {
        let record = ExitRecord {
            container: ContainerId { name: "a".into(), attempt: 0 },
            code: 0,
            signal: 0,
            oom_killed: false,
            started_at_ns: None,
            finished_at_ns: 1,
            process: ProcessName { pid: 1, start_time: 1, boot_id: String::new() },
        };
        let exited = Status::Exited(record.clone());
        let all = [Status::Creating, Status::Created, Status::Running, exited.clone()];
        for (happening, allowed, after) in [
            (Happening::Made, &all[..1], Status::Created),
            (Happening::Started, &all[1..2], Status::Running),
            (Happening::Ended(record), &all[..3], exited),
        ] {
            for status in &all {
                let expect = allowed.contains(status).then(|| after.clone());
                assert_eq!(next(status, happening.clone()).ok(), expect, "{status:?} {happening:?}");
            }
        }
    }
}
