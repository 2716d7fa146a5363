//! What to do next for one pod: a pure function of what is wanted and what is there.
//!
//! ```text
//! start     record ─ cgroups ─ volumes ─ shim ─ network ─┬─ prepare ─ create ─ start   container a
//!                                                        └─ prepare ─ create ─ start   container b
//! restart   delete-container ─ prepare ─ create ─ start                   after its back-off
//! lost      fence ─ bury ─ detach ─ delete-container…                      the shim died: pod death
//! stop      pre-stop … terminate … kill                                             until all have ended
//! teardown  delete-container… ─ shutdown-shim ─ fence ─ bury ─ detach ─ remove-cgroups
//!           ─ remove-snapshots ─ remove-volumes ─ unrecord ─ finish
//! ```
//!
//! Every step is idempotent, and leaves a legal world if nothing follows it. The order is the law: the
//! record comes first and goes last; storage is let go only after the pod's cgroup was seen empty.

use std::time::Duration;

use jiff::Timestamp;

use crate::desired::{Container, Desired, RestartPolicy, Role, Wanted};
use crate::observed::{Attempt, Exit, Observed, PreStop, Shim, State, Volumes};

/// The longest pause between two restarts.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A run this long ends the series of failures.
pub const BACKOFF_RESET: Duration = Duration::from_secs(600);
/// How often an unanswered kill is repeated.
const KILL_RETRY: Duration = Duration::from_secs(1);
/// What a program has to end in when its hook took the whole grace period. As Kubernetes.
const HOOK_EXTENSION: Duration = Duration::from_secs(2);

/// One idempotent step.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Write down that the pod is to be here.
    Record,
    /// Make its cgroup, with its limits.
    Cgroups,
    /// Prepare its volumes and hold its claims.
    Volumes,
    /// Start its shim.
    Shim,
    /// Make its network namespace and link, and hand it to the shim, which makes the others.
    Network,
    /// Resolve the image and prepare the writable layer.
    Prepare(Run),
    /// Create the container: namespaces joined, mounts made, its process waiting.
    Create(Run),
    /// Let its process run.
    Start(Run),
    /// Call the hook of a run that is to end.
    PreStop(Run),
    /// Send SIGTERM to a run that its liveness or startup probe gave up, or whose hook was called.
    TerminateContainer(Run),
    /// Send SIGKILL to it.
    KillContainer(Run),
    /// Send SIGTERM to what runs.
    Terminate,
    /// Send SIGKILL to what runs.
    Kill,
    /// Forget a run in the shim; remove its cgroup and writable layer.
    DeleteContainer(Run),
    /// End the shim.
    ShutdownShim,
    /// Kill the pod's cgroup and see it empty.
    Fence,
    /// Write down that the shim is gone, and runs whose end nobody saw.
    Bury,
    /// Take its link and address from the node.
    Detach,
    /// Remove its cgroups.
    RemoveCgroups,
    /// Remove its writable layers.
    RemoveSnapshots,
    /// Let its claims go; remove its emptyDirs.
    RemoveVolumes,
    /// Remove its directory.
    Unrecord,
    /// Tell the API that it is gone.
    Finish,
}

/// One run of one container.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Run {
    /// The container.
    pub container: String,
    /// 0 for the first.
    pub attempt: u32,
}

/// Which sequence a step belongs to; faults are aimed at (verb, number).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Making the pod.
    Start,
    /// Taking it away.
    Delete,
}

impl Step {
    /// Stable name, as `trace` shows it.
    pub fn name(&self) -> &'static str {
        match self {
            Step::Record => "record",
            Step::Cgroups => "cgroups",
            Step::Volumes => "volumes",
            Step::Shim => "shim",
            Step::Network => "network",
            Step::Prepare(_) => "prepare",
            Step::Create(_) => "create",
            Step::Start(_) => "start",
            Step::PreStop(_) => "pre-stop",
            Step::TerminateContainer(_) => "terminate-container",
            Step::KillContainer(_) => "kill-container",
            Step::Terminate => "terminate",
            Step::Kill => "kill",
            Step::DeleteContainer(_) => "delete-container",
            Step::ShutdownShim => "shutdown-shim",
            Step::Fence => "fence",
            Step::Bury => "bury",
            Step::Detach => "detach",
            Step::RemoveCgroups => "remove-cgroups",
            Step::RemoveSnapshots => "remove-snapshots",
            Step::RemoveVolumes => "remove-volumes",
            Step::Unrecord => "unrecord",
            Step::Finish => "finish",
        }
    }

    /// The run it is about, if it is about one.
    pub fn run(&self) -> Option<&Run> {
        match self {
            Step::Prepare(run)
            | Step::Create(run)
            | Step::Start(run)
            | Step::PreStop(run)
            | Step::TerminateContainer(run)
            | Step::KillContainer(run)
            | Step::DeleteContainer(run) => Some(run),
            _ => None,
        }
    }

    /// The sequence it belongs to.
    pub fn verb(&self) -> Verb {
        match self {
            Step::Record
            | Step::Cgroups
            | Step::Volumes
            | Step::Shim
            | Step::Network
            | Step::Prepare(_)
            | Step::Create(_)
            | Step::Start(_) => Verb::Start,
            _ => Verb::Delete,
        }
    }

    /// Whether it only asks processes to end: that they have ended is another event.
    pub fn is_signal(&self) -> bool {
        matches!(
            self,
            Step::Terminate
                | Step::Kill
                | Step::PreStop(_)
                | Step::TerminateContainer(_)
                | Step::KillContainer(_)
        )
    }

    /// What it does to the kernel, in words for people.
    pub fn effect(&self) -> &'static str {
        match self {
            Step::Record => {
                "mkdir the pod's run directory; write who it is, so that a crash leaves a name to sweep"
            }
            Step::Cgroups => "mkdir the pod's cgroup in every hierarchy; write its limits",
            Step::Volumes => "mkdir emptyDirs, mount tmpfs ones; check and hold claims",
            Step::Shim => "exec the shim in its own session and cgroup; it listens on a 0600 socket",
            Step::Network => {
                "unshare(CLONE_NEWNET); veth into it, /32 address, routes; the shim adds uts and ipc namespaces"
            }
            Step::Prepare(_) => "resolve the image to read-only layers; mkdir upper and work of its overlay",
            Step::Create(_) => {
                "clone3 into the container's cgroup; join the pod's namespaces; mount, pivot_root, drop privileges"
            }
            Step::Start(_) => "release the waiting process: execve",
            Step::PreStop(_) => "call the container's preStop hook, and go on when it is over",
            Step::TerminateContainer(_) => "pidfd_send_signal(SIGTERM) to the container's first process",
            Step::KillContainer(_) => "write 1 to the container's cgroup.kill",
            Step::Terminate => "pidfd_send_signal(SIGTERM) to each container's first process",
            Step::Kill => "write 1 to each container's cgroup.kill",
            Step::DeleteContainer(_) => "reap; rmdir the container's cgroup; remove its writable layer",
            Step::ShutdownShim => "ask the shim to exit: the last holder of the pod's namespaces lets go",
            Step::Fence => "write 1 to cgroup.kill; see `populated 0` in cgroup.events",
            Step::Bury => {
                "note that the shim is gone, and ContainerStatusUnknown for runs whose end nobody saw"
            }
            Step::Detach => "delete the node's end of the veth pair: address and route go with it",
            Step::RemoveCgroups => "rmdir the pod's cgroups in every hierarchy",
            Step::RemoveSnapshots => "remove upper and work directories",
            Step::RemoveVolumes => "let claims go; unmount tmpfs volumes, remove emptyDirs",
            Step::Unrecord => "remove the pod's run directory",
            Step::Finish => "delete the object, by uid, with grace period 0",
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.run() {
            Some(run) => write!(f, "{} {}.{}", self.name(), run.container, run.attempt),
            None => f.write_str(self.name()),
        }
    }
}

/// What to do now, and when to look again though nothing happened.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Plan {
    /// In order. Steps of different containers do not wait for each other.
    pub steps: Vec<Step>,
    /// Look again then, at the latest.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// What to do next for one pod.
pub fn plan(desired: &Desired, observed: &Observed, now: Timestamp) -> Plan {
    match desired.wanted {
        Wanted::Present if observed.shim == Shim::Dead => lost(observed),
        Wanted::Present if desired.finished || outcome(desired, observed).is_some() => {
            // Sidecars outlive the main containers; a pod that is called finished may run: neither for long.
            let runs = matches!(observed.shim, Shim::Alive { .. }) && living(observed).next().is_some();
            if runs { kill(now) } else { release(observed) }
        }
        Wanted::Present => start(desired, observed, now),
        Wanted::Stopping { kill_at } => stop(desired, observed, kill_at, now),
        Wanted::Gone => stop(desired, observed, now, now),
    }
}

/// How a pod ended that will not run again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Every main container ended with 0.
    Succeeded,
    /// One did not.
    Failed,
}

/// Whether the pod has run its course, and how.
pub fn outcome(desired: &Desired, observed: &Observed) -> Option<Outcome> {
    let exit = |container: &Container| match observed.last(&container.name).map(|last| &last.state) {
        Some(State::Exited(exit)) => Some(exit),
        _ => None,
    };
    let of_role = |role| desired.containers.iter().filter(move |container| container.role == role);
    let failed_init = of_role(Role::Init)
        .any(|init| exit(init).is_some_and(|exit| !exit.success() && init.restart == RestartPolicy::Never));
    if failed_init {
        return Some(Outcome::Failed);
    }
    let mut outcome = Outcome::Succeeded;
    for main in of_role(Role::Main) {
        let exit = exit(main)?;
        if restarts(main, exit) {
            return None;
        }
        if !exit.success() {
            outcome = Outcome::Failed;
        }
    }
    Some(outcome)
}

/// Whether a container that ended so is started again.
pub fn restarts(container: &Container, exit: &Exit) -> bool {
    match container.restart {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => !exit.success(),
        RestartPolicy::Never => false,
    }
}

/// Pause before the next run: none after the first failure, then base, 2·base, 4·base … capped.
///
/// A run of [`BACKOFF_RESET`] or longer begins a new series. Source: Kubernetes, "Pod Lifecycle",
/// container restart policy.
pub fn backoff(attempts: &[Attempt], base: Duration) -> Duration {
    let short = |attempt: &&Attempt| match &attempt.state {
        State::Exited(exit) => exit.started_at.is_none_or(|started| {
            exit.finished_at.duration_since(started)
                < jiff::SignedDuration::from_secs(BACKOFF_RESET.as_secs() as i64)
        }),
        _ => true,
    };
    let failures = attempts.iter().rev().take_while(short).count();
    match failures {
        0 | 1 => Duration::ZERO,
        n => base.saturating_mul(1 << (n - 2).min(16)).min(BACKOFF_MAX),
    }
}

/// When a container that ended may run again.
pub fn restart_at(attempts: &[Attempt], exit: &Exit, base: Duration) -> Timestamp {
    exit.finished_at.saturating_add(backoff(attempts, base)).unwrap_or(Timestamp::MAX)
}

fn start(desired: &Desired, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if desired.pod_ip.is_none() {
        // Bound by hand: the scheduler gives it an address, and that is news.
        return plan;
    }
    let mut need = |missing: bool, step: Step| {
        if missing {
            plan.steps.push(step);
        }
    };
    need(!observed.recorded, Step::Record);
    need(!observed.cgroups, Step::Cgroups);
    need(observed.volumes != Volumes::Ready, Step::Volumes);
    need(observed.shim == Shim::Absent, Step::Shim);
    need(observed.shim != Shim::Alive { set_up: true }, Step::Network);
    for container in &desired.containers {
        let state = observed.last(&container.name).map(|last| &last.state);
        match (container.role, state) {
            // Succeeded: the next one's turn.
            (Role::Init, Some(State::Exited(exit))) if exit.success() => continue,
            (Role::Init, _) => {
                run_container(container, desired, observed, now, &mut plan);
                return plan;
            }
            (Role::Sidecar, Some(State::Running { .. })) => {
                run_container(container, desired, observed, now, &mut plan);
            }
            (Role::Sidecar, Some(State::Exited(_))) if main_ran(desired, observed) => {
                run_container(container, desired, observed, now, &mut plan);
            }
            (Role::Sidecar, _) => {
                run_container(container, desired, observed, now, &mut plan);
                return plan;
            }
            (Role::Main, _) => run_container(container, desired, observed, now, &mut plan),
        }
    }
    plan
}

/// Whether the main containers had their start already.
fn main_ran(desired: &Desired, observed: &Observed) -> bool {
    desired.containers.iter().any(|c| c.role == Role::Main && observed.last(&c.name).is_some())
}

fn run_container(
    container: &Container,
    desired: &Desired,
    observed: &Observed,
    now: Timestamp,
    plan: &mut Plan,
) {
    let attempts = observed.attempts.get(&container.name).map_or(&[][..], Vec::as_slice);
    let run = |attempt| Run { container: container.name.clone(), attempt };
    let from_scratch =
        |attempt| [Step::Prepare(run(attempt)), Step::Create(run(attempt)), Step::Start(run(attempt))];
    let Some(last) = attempts.last() else {
        plan.steps.extend(from_scratch(0));
        return;
    };
    match &last.state {
        State::Recorded => plan.steps.extend(from_scratch(last.number)),
        State::Created => plan.steps.push(Step::Start(run(last.number))),
        State::Running { .. } => {
            let Some(since) = last.unhealthy_since else { return };
            let kill_at = since.saturating_add(desired.grace).unwrap_or(Timestamp::MAX);
            if now >= kill_at {
                plan.steps.push(Step::KillContainer(run(last.number)));
                plan.wake(now.saturating_add(KILL_RETRY).unwrap_or(Timestamp::MAX));
            } else {
                plan.steps.extend(ask(container.pre_stop, last, run(last.number)));
                plan.wake(kill_at);
            }
        }
        State::Exited(exit) if restarts(container, exit) => {
            let due = restart_at(attempts, exit, desired.backoff_base);
            if due > now {
                plan.wake(due);
                return;
            }
            if !last.deleted {
                plan.steps.push(Step::DeleteContainer(run(last.number)));
            }
            plan.steps.extend(from_scratch(last.number + 1));
        }
        State::Exited(_) => {}
    }
}

/// The shim died, and the pod with it. What follows is a fresh start.
fn lost(observed: &Observed) -> Plan {
    let mut steps = vec![Step::Fence, Step::Bury];
    if observed.link {
        steps.push(Step::Detach);
    }
    for (name, attempts) in &observed.attempts {
        for attempt in attempts.iter().filter(|attempt| !attempt.deleted) {
            steps.push(Step::DeleteContainer(Run { container: name.clone(), attempt: attempt.number }));
        }
    }
    Plan { steps, wake_at: None }
}

fn stop(desired: &Desired, observed: &Observed, kill_at: Timestamp, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    // Nobody to ask nicely if the shim died or is not there: the fence does it.
    if matches!(observed.shim, Shim::Alive { .. }) && living(observed).next().is_some() {
        let is_late = |attempt: &Attempt| matches!(attempt.pre_stop, PreStop::Called | PreStop::CutOff);
        if now >= kill_at {
            // A hook that took all of the time leaves the program a moment to end in.
            let extended = kill_at.saturating_add(HOOK_EXTENSION).unwrap_or(Timestamp::MAX);
            let is_extended = desired.wanted != Wanted::Gone && living(observed).any(is_late);
            if !is_extended || now >= extended {
                return kill(now);
            }
            plan.steps.extend(runs(observed).filter(|(_, it)| !it.term_sent).map(|(name, it)| {
                Step::TerminateContainer(Run { container: name.clone(), attempt: it.number })
            }));
            plan.wake(extended);
            return plan;
        }
        let hooked = |name: &str| desired.containers.iter().any(|it| it.name == name && it.pre_stop);
        if runs(observed).any(|(name, _)| hooked(name)) {
            plan.steps.extend(runs(observed).filter_map(|(name, attempt)| {
                ask(hooked(name), attempt, Run { container: name.clone(), attempt: attempt.number })
            }));
        } else if living(observed).any(|attempt| !attempt.term_sent) {
            plan.steps.push(Step::Terminate);
        }
        plan.wake(kill_at);
        return plan;
    }
    plan = release(observed);
    if observed.recorded || observed.directory {
        plan.steps.push(Step::Unrecord);
    }
    if desired.wanted != Wanted::Gone {
        plan.steps.push(Step::Finish);
    }
    plan
}

/// What asks a run to end now: its hook, then SIGTERM when that is over; nothing while it is under way.
fn ask(has_hook: bool, attempt: &Attempt, run: Run) -> Option<Step> {
    let is_running = matches!(attempt.state, State::Running { .. });
    match attempt.pre_stop {
        _ if attempt.term_sent => None,
        PreStop::Idle if has_hook && is_running => Some(Step::PreStop(run)),
        PreStop::Called => None,
        _ => Some(Step::TerminateContainer(run)),
    }
}

/// Runs that have a process, each with its container's name.
fn runs(observed: &Observed) -> impl Iterator<Item = (&String, &Attempt)> {
    let all = observed.attempts.iter().flat_map(|(name, all)| all.iter().map(move |attempt| (name, attempt)));
    all.filter(|(_, attempt)| matches!(attempt.state, State::Created | State::Running { .. }))
}

/// Runs that have a process.
fn living(observed: &Observed) -> impl Iterator<Item = &Attempt> {
    runs(observed).map(|(_, attempt)| attempt)
}

fn kill(now: Timestamp) -> Plan {
    let again = now.saturating_add(KILL_RETRY).unwrap_or(Timestamp::MAX);
    Plan { steps: vec![Step::Kill], wake_at: Some(again) }
}

/// Takes away everything but the record and the exit records.
fn release(observed: &Observed) -> Plan {
    let mut steps = Vec::new();
    if let Shim::Alive { .. } = observed.shim {
        for (name, attempts) in &observed.attempts {
            for attempt in attempts.iter().filter(|attempt| !attempt.deleted) {
                steps.push(Step::DeleteContainer(Run { container: name.clone(), attempt: attempt.number }));
            }
        }
        steps.push(Step::ShutdownShim);
    }
    let mut need = |there: bool, step: Step| {
        if there {
            steps.push(step);
        }
    };
    need(observed.holds_anything(), Step::Fence);
    need(observed.shim != Shim::Absent, Step::Bury);
    need(observed.link, Step::Detach);
    need(observed.cgroups, Step::RemoveCgroups);
    need(observed.snapshots, Step::RemoveSnapshots);
    need(observed.volumes != Volumes::None, Step::RemoveVolumes);
    Plan { steps, wake_at: None }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
