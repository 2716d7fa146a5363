//! The shim's loop: one poll(2), nothing else waits.
//!
//! ```text
//!   SIGCHLD ──► reap: worker's end │ container's end ──► record worker ──► Exited event │ exec's end
//!   worker's channel ──► outcome ──► answer
//!   client ──► request ──► answered here, or by a worker
//!   pipe ──► log
//!   deadline ──► worker killed
//! ```
//!
//! Exits are never lost: SIGCHLD is blocked before the first child exists, and a container that ends before its
//! worker has reported it waits among the strays.
#![forbid(unsafe_code)]

use crate::clock;
use crate::connection::Connection;
use crate::container::{Container, Happening, next};
use crate::job::{Ask, Job};
use crate::protocol::{
    Answer, ContainerId, Event, ExitRecord, Failure, FailureKind, PodState, ProcessName, Reply, Status,
};
use crate::setup::Held;
use crate::sys::{Call, Result};
use crate::worker::{Outcome, Work, Worker};
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SocketFlags;
use rustix::process::{WaitOptions, WaitStatus};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Most clients at once: the daemon, its successor and a few tools.
const CONNECTIONS_MAX: usize = 64;
/// Most containers remembered, ended ones included, until Delete. With five descriptors each, and the limits
/// around, the usual 1024 suffice.
pub(crate) const CONTAINERS_MAX: usize = 128;
/// Most programs started by Exec at once.
pub(crate) const EXECS_MAX: usize = 128;
/// Time for a worker that only touches our own files and cgroups.
pub(crate) const HOUSEKEEPING_DEADLINE: Duration = Duration::from_secs(30);

/// A program started by Exec.
#[derive(Debug)]
pub(crate) struct Running {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Who is told of its end.
    pub connection: u64,
}

/// The shim of one pod.
#[derive(Debug)]
pub(crate) struct Shim {
    pub pod_dir: PathBuf,
    pub pod_uid: String,
    pub me: ProcessName,
    pub listener: OwnedFd,
    pub signals: SignalFd,
    pub held: Held,
    pub containers: BTreeMap<ContainerId, Container>,
    pub execs: BTreeMap<u64, Running>,
    pub connections: BTreeMap<u64, Connection>,
    pub workers: Vec<(Worker, Option<Job>)>,
    /// Children that ended before we knew whose they were.
    strays: BTreeMap<i32, WaitStatus>,
    pub next_number: u64,
    pub stopping: bool,
}

/// What a ready descriptor means.
enum Token {
    Signals,
    Listener,
    Connection(u64),
    Worker(i32),
    Pipe(ContainerId, usize),
}

impl Shim {
    pub(crate) fn new(
        pod_dir: PathBuf,
        pod_uid: String,
        listener: OwnedFd,
        signals: SignalFd,
    ) -> Result<Shim> {
        Ok(Shim {
            pod_dir,
            pod_uid,
            me: ProcessName::of(std::process::id().cast_signed())?,
            listener,
            signals,
            held: Held::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            connections: BTreeMap::new(),
            workers: Vec::new(),
            strays: BTreeMap::new(),
            next_number: 1,
            stopping: false,
        })
    }

    /// Serves until Shutdown.
    pub(crate) fn run(mut self) -> Result<()> {
        while !self.stopping {
            for (token, flags) in self.wait()? {
                match token {
                    Token::Signals => self.reap()?,
                    Token::Listener => self.accept(),
                    Token::Connection(number) => self.serve(number, flags),
                    Token::Worker(pid) => self.hear(pid),
                    Token::Pipe(id, number) => {
                        if let Some(container) = self.containers.get_mut(&id) {
                            container.pump(number);
                        }
                    }
                }
            }
            self.expire();
        }
        self.held.teardown();
        Ok(())
    }

    /// Sleeps until something is ready or a deadline passes.
    fn wait(&self) -> Result<Vec<(Token, PollFlags)>> {
        let mut tokens = vec![Token::Signals, Token::Listener];
        let mut fds =
            vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        for (number, connection) in &self.connections {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, connection.has_outgoing());
            tokens.push(Token::Connection(*number));
            fds.push(PollFd::from_borrowed_fd(connection.socket(), flags));
        }
        for (worker, _) in self.workers.iter().filter(|(_, job)| job.is_some()) {
            tokens.push(Token::Worker(worker.pid));
            fds.push(PollFd::from_borrowed_fd(worker.channel(), PollFlags::IN));
        }
        for container in self.containers.values() {
            for (number, pipe) in container.pipes() {
                tokens.push(Token::Pipe(container.id.clone(), number));
                fds.push(PollFd::from_borrowed_fd(pipe, PollFlags::IN));
            }
        }
        let timeout = self.workers.iter().filter_map(|(worker, _)| worker.deadline).min().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).call(|| "poll".into()),
        }
        let ready = tokens.into_iter().zip(&fds).map(|(token, fd)| (token, fd.revents()));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Errors here are the client's (gone again) or pass (no descriptors left).
        let Ok(socket) = rustix::net::accept_with(&self.listener, flags) else { return };
        if self.connections.len() >= CONNECTIONS_MAX {
            eprintln!("client refused: {CONNECTIONS_MAX} are connected");
            return;
        }
        match Connection::new(socket) {
            Ok(connection) => {
                let number = self.number();
                self.connections.insert(number, connection);
            }
            Err(failure) => eprintln!("client refused: {failure}"),
        }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn serve(&mut self, number: u64, flags: PollFlags) {
        if let Err(failure) = self.try_serve(number, flags) {
            eprintln!("client dropped: {failure}");
            self.connections.remove(&number);
        }
    }

    fn try_serve(&mut self, number: u64, flags: PollFlags) -> Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        if flags.contains(PollFlags::OUT) {
            connection.flush()?;
        }
        let alive =
            !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) || connection.read()?;
        while let Some(connection) = self.connections.get_mut(&number) {
            let Some((request, fds)) = connection.next_request()? else { break };
            self.handle(Ask { connection: number, id: request.id }, request.verb, fds);
        }
        if !alive {
            self.connections.remove(&number);
        }
        Ok(())
    }

    /// Answers a request. A client that is gone, or does not read, is dropped.
    pub(crate) fn answer(&mut self, ask: Ask, result: Result<Reply>, fds: Vec<OwnedFd>) {
        self.push(ask.connection, &Answer::Reply { id: ask.id, result }, fds);
    }

    fn push(&mut self, number: u64, answer: &Answer, fds: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if let Err(failure) = connection.push(answer, fds) {
            eprintln!("client dropped: {failure}");
            self.connections.remove(&number);
        }
    }

    pub(crate) fn state(&self) -> Result<PodState> {
        Ok(PodState {
            namespaces: self.held.describe()?,
            pause: self.held.pause().map(|pause| pause.process.clone()),
            containers: self.containers.values().map(Container::state).collect(),
        })
    }

    /// Takes every ended child.
    fn reap(&mut self) -> Result<()> {
        // Drained first: a child that ends after the last wait below raises the signal again.
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.ended(pid.as_raw_nonzero().get(), status),
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).call(|| "wait4(-1, WNOHANG)".into()),
            }
        }
    }

    fn ended(&mut self, pid: i32, status: WaitStatus) {
        if let Some(index) = self.workers.iter().position(|(worker, _)| worker.pid == pid) {
            // What it sent may still be in the channel.
            self.hear(pid);
            let (_, job) = self.workers.remove(index);
            if let Some(job) = job {
                let text = match status.terminating_signal() {
                    Some(signal) => format!("worker was killed by signal {signal}"),
                    None => "worker ended without a word; see shim.log".into(),
                };
                self.finish(job, Err(Failure::new(FailureKind::Internal, text)));
            }
            if !self.child_expected() {
                self.strays.clear();
            }
            return;
        }
        let of_container = |container: &&Container| {
            !container.has_exited() && container.process.as_ref().is_some_and(|process| process.pid == pid)
        };
        if let Some(id) = self.containers.values().find(of_container).map(|container| container.id.clone()) {
            return self.container_ended(&id, status);
        }
        if let Some(exec) = self.execs.iter().find(|(_, exec)| exec.pid == pid).map(|(number, _)| *number) {
            return self.exec_ended(exec, status);
        }
        if self.held.reaped(pid) {
            eprintln!("the pod's shared PID namespace has ended");
            return;
        }
        // Somebody we shall soon hear of; otherwise an orphan of a container in the host's PID namespace.
        if self.child_expected() {
            self.strays.insert(pid, status);
        }
    }

    /// Whether a worker may have made a child of ours that it has not reported yet.
    fn child_expected(&self) -> bool {
        self.workers.iter().any(|(_, job)| job.as_ref().is_some_and(Job::makes_a_child))
    }

    fn container_ended(&mut self, id: &ContainerId, status: WaitStatus) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(process) = container.process.clone() else { return };
        container.drain();
        container.gate = None;
        container.pidfd = None;
        let (code, signal) = exit_code(status);
        let record = ExitRecord {
            container: id.clone(),
            code,
            signal,
            oom_killed: false,
            started_at_ns: container.started_at_ns,
            finished_at_ns: clock::now_ns(),
            process,
        };
        let cgroup = container.cgroup.clone();
        self.start(Job::Record { record, cgroup }, Vec::new());
    }

    fn exec_ended(&mut self, number: u64, status: WaitStatus) {
        let Some(exec) = self.execs.remove(&number) else { return };
        let event = Event::ExecExited { exec: number, code: exit_code(status).0 };
        self.push(exec.connection, &Answer::Event(event), Vec::new());
    }

    /// Forks a worker for `job`; `fds` are the client's, for its program.
    pub(crate) fn start(&mut self, job: Job, fds: Vec<OwnedFd>) {
        match job.spawn(self, fds) {
            Ok(worker) => self.workers.push((worker, Some(job))),
            Err(failure) => self.finish(job, Err(failure)),
        }
    }

    /// Reads a worker's outcome, if it is there, and acts on it.
    fn hear(&mut self, pid: i32) {
        let Some((worker, job)) = self.workers.iter_mut().find(|(worker, _)| worker.pid == pid) else {
            return;
        };
        let Some(work) = worker.receive() else { return };
        // It has said its last word; what remains is to reap it.
        worker.deadline = None;
        if let Some(job) = job.take() {
            self.finish(job, work);
        }
    }

    /// Kills workers past their deadline.
    fn expire(&mut self) {
        let now = Instant::now();
        let mut expired = Vec::new();
        for (worker, job) in &mut self.workers {
            if worker.deadline.is_some_and(|deadline| deadline <= now) {
                worker.kill();
                expired.extend(job.take());
            }
        }
        for job in expired {
            let failure = Failure::new(FailureKind::Timeout, format!("{job}: deadline exceeded"));
            self.finish(job, Err(failure));
        }
    }

    /// What a job's end means for the pod and for whoever asked.
    fn finish(&mut self, job: Job, work: Work) {
        match job {
            Job::Create { create, ask } => self.created(&create.container, ask, work),
            Job::Undo { container, ask, failure } => {
                match work {
                    Ok(_) => drop(self.containers.remove(&container)),
                    // Its processes may live: the entry stays, and another create first tries this again.
                    Err(cleanup) => {
                        eprintln!("{container}: clean up after {failure}: {cleanup}");
                        self.set_stuck(&container);
                    }
                }
                self.answer(ask, Err(failure), Vec::new());
            }
            Job::Start { container, ask } => {
                let result = self.started(&container, work.map(drop));
                self.answer(ask, result.map(|()| Reply::Done), Vec::new());
            }
            Job::Exec { ask, .. } => self.executing(ask, work),
            Job::Delete { container, ask } => {
                match &work {
                    Ok(_) => drop(self.containers.remove(&container)),
                    Err(_) => self.set_busy(&container, false),
                }
                self.answer(ask, work.map(|_| Reply::Done), Vec::new());
            }
            Job::Record { record, .. } => self.recorded(record, work),
        }
    }

    fn created(&mut self, id: &ContainerId, ask: Ask, work: Work) {
        let (process, steps, mut fds) = match work {
            Ok((Outcome::Created { process, steps }, fds)) if (2..=3).contains(&fds.len()) => {
                (process, steps, fds)
            }
            Ok((Outcome::Refused(failure), _)) => {
                self.containers.remove(id);
                return self.answer(ask, Err(failure), Vec::new());
            }
            Ok(_) => return self.undo(id, ask, wrong_outcome()),
            Err(failure) => return self.undo(id, ask, failure),
        };
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(master) = fds.drain(2..).next() {
            container.pump_terminal(master);
        }
        container.gate = fds.pop();
        let pidfd = fds.pop();
        let copy: Vec<_> = pidfd.iter().filter_map(|fd| fd.try_clone().ok()).collect();
        container.pidfd = pidfd;
        container.busy = false;
        let pid = process.pid;
        container.process = Some(process.clone());
        match next(&container.status, Happening::Made) {
            Ok(status) => container.status = status,
            Err(failure) => eprintln!("{id}: {failure}"),
        }
        self.answer(ask, Ok(Reply::Created { process, steps }), copy);
        if let Some(status) = self.strays.remove(&pid) {
            self.container_ended(id, status);
        }
    }

    pub(crate) fn undo(&mut self, id: &ContainerId, ask: Ask, failure: Failure) {
        self.start(Job::Undo { container: id.clone(), ask, failure }, Vec::new());
    }

    fn started(&mut self, id: &ContainerId, work: Result<()>) -> Result<()> {
        self.set_busy(id, false);
        let container = self.find(id)?;
        container.gate = None;
        work?;
        if container.status == Status::Created {
            container.status = next(&container.status, Happening::Started)?;
        }
        Ok(())
    }

    fn executing(&mut self, ask: Ask, work: Work) {
        let (process, mut fds) = match work {
            Ok((Outcome::Executing { process }, fds)) if (1..=2).contains(&fds.len()) => (process, fds),
            Ok(_) => return self.answer(ask, Err(wrong_outcome()), Vec::new()),
            Err(failure) => return self.answer(ask, Err(failure), Vec::new()),
        };
        let pidfd = fds.remove(0);
        match pidfd.try_clone() {
            Ok(copy) => fds.insert(0, copy),
            Err(error) => return self.answer(ask, Err(error).call(|| "fcntl(F_DUPFD)".into()), Vec::new()),
        }
        let exec = self.number();
        let pid = process.pid;
        self.answer(ask, Ok(Reply::Executing { exec, process }), fds);
        self.execs.insert(exec, Running { pid, pidfd, connection: ask.connection });
        if let Some(status) = self.strays.remove(&pid) {
            self.exec_ended(exec, status);
        }
    }

    fn recorded(&mut self, record: ExitRecord, work: Work) {
        let record = match work {
            Ok((Outcome::Recorded { record, stored }, _)) => {
                if let Err(failure) = stored {
                    eprintln!("{}: exit record not written: {failure}", record.container);
                }
                record
            }
            // Better late and here than never: no worker could be made, or it was killed.
            Ok(_) | Err(_) => {
                if let Err(failure) = crate::record::write(&self.pod_dir, &record) {
                    eprintln!("{}: exit record not written: {failure}", record.container);
                }
                record
            }
        };
        if let Some(container) = self.containers.get_mut(&record.container) {
            container.drain();
            match next(&container.status, Happening::Ended(record.clone())) {
                Ok(status) => container.status = status,
                Err(failure) => eprintln!("{}: {failure}", record.container),
            }
        }
        let told: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.subscribed)
            .map(|(n, _)| *n)
            .collect();
        for number in told {
            self.push(number, &Answer::Event(Event::Exited(record.clone())), Vec::new());
        }
        crate::sys::trim_heap();
    }

    pub(crate) fn find(&mut self, id: &ContainerId) -> Result<&mut Container> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("container {id} does not exist")))
    }

    fn set_stuck(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get_mut(id) {
            container.stuck = true;
        }
    }

    pub(crate) fn set_busy(&mut self, id: &ContainerId, busy: bool) {
        if let Some(container) = self.containers.get_mut(id) {
            container.busy = busy;
        }
    }
}

fn wrong_outcome() -> Failure {
    Failure::new(FailureKind::Internal, "worker reported the wrong outcome")
}

/// As a shell reports it, and the signal. Source: POSIX, Shell Command Language, 2.8.2.
fn exit_code(status: WaitStatus) -> (i32, i32) {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code, 0),
        (None, Some(signal)) => (128 + signal, signal),
        (None, None) => (255, 0),
    }
}
