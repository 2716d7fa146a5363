//! One worker per pod: observe, plan, apply, journal, publish; then wait for news.
//!
//! ```text
//!          ┌──────────── wish · shim event · probe · time · retry ◄───────────┐
//!          ▼                                                                  │
//!       observe ──► plan ──► steps? ──yes──► apply ──► journal ──► observe …  │
//!                             └──no───► status changed? ──► publish ──────────┘
//! ```
//!
//! The wish is a watch channel: only the latest counts. Steps of different containers run side by side. What
//! fails is tried again after a pause that doubles, and its reason stands in the status meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use api::{Key, Object};
use futures::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::desired::{Desired, Wanted};
use crate::error::{Error, Kind, Result};
use crate::fault::{Action, Moment};
use crate::gate::Gate;
use crate::host::Event;
use crate::observed::{Observed, State};
use crate::plan::{Plan, Step, Verb, plan};
use crate::pod::{Effect, Pod};
use crate::probe::Prober;
use crate::record::Record;
use crate::status::{Facts, Waiting, status};

const RETRY_MIN: Duration = Duration::from_millis(20);
/// Marks a step that was not taken because something else is wanted by now.
const INTERRUPTED: &str = "Interrupted";
/// So often may something be merely not there yet before people are told.
const PATIENCE: u32 = 5;
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Rounds of observe and plan without a wait in between: more means that a step does not do what it says.
const ROUNDS_MAX: usize = 32;

/// What is wanted of a pod.
#[derive(Clone, PartialEq, Debug)]
pub enum Wish {
    /// The object, deleted or not.
    Object(Arc<Object>),
    /// The API knows no such pod.
    Gone,
}

/// A worker's controls.
#[derive(Debug)]
pub struct Handle {
    /// The latest wish.
    pub wish: watch::Sender<Wish>,
    /// What was last seen.
    pub seen: watch::Receiver<Observed>,
    /// For stepping.
    pub gate: Arc<Gate>,
}

/// The worker of one pod.
pub struct Worker {
    pod: Arc<Pod>,
    wishes: watch::Receiver<Wish>,
    seen: watch::Sender<Observed>,
    gate: Arc<Gate>,
    prober: Prober,
    faults: BTreeMap<String, Waiting>,
    /// The status last written, and the resource version it got.
    published: Option<(Value, u64)>,
    failures: u32,
    start_steps: AtomicU32,
    delete_steps: AtomicU32,
    last_event: Option<(&'static str, String)>,
}

/// A container's, or everybody's, steps with their numbers.
type Group<'a> = (Option<&'a str>, Vec<(&'a Step, u32)>);

/// What became of steps; of which container, if they were one's.
type Outcome<'a> = (Option<&'a str>, Result<(), (Step, Error)>);

/// Whether what all containers need has failed.
fn failed(outcomes: &[Outcome<'_>]) -> bool {
    outcomes.iter().any(|(container, outcome)| container.is_none() && outcome.is_err())
}

/// What a round left.
enum Next {
    /// Look again when something happens, or then.
    Wait(Option<Timestamp>),
    /// Nothing is left of the pod.
    Done,
}

impl Worker {
    /// A worker for `pod`, and its controls.
    pub fn new(pod: Arc<Pod>, wish: Wish) -> (Worker, Handle) {
        let (wish, wishes) = watch::channel(wish);
        let (seen, seeing) = watch::channel(Observed::default());
        let gate = Arc::new(Gate::default());
        let worker = Worker {
            prober: Prober::new(Arc::clone(&pod)),
            pod,
            wishes,
            seen,
            gate: Arc::clone(&gate),
            faults: BTreeMap::new(),
            published: None,
            failures: 0,
            start_steps: AtomicU32::new(0),
            delete_steps: AtomicU32::new(0),
            last_event: None,
        };
        (worker, Handle { wish, seen: seeing, gate })
    }

    /// Until nothing is left of the pod, or nobody wishes any more. Answers the wish that it fulfilled.
    pub async fn run(mut self) -> Wish {
        loop {
            let wish = self.wishes.borrow_and_update().clone();
            let (object, desired) = self.wanted(&wish);
            let wait = match self.round(&object, &desired).await {
                Ok(Next::Done) => return wish,
                Ok(Next::Wait(at)) => {
                    self.failures = 0;
                    at.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default())
                }
                Err(error) => {
                    let pause = RETRY_MIN.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
                    self.failures += 1;
                    tracing::warn!(pod = %desired.display_name(), error = %error.chain(), ?pause, "pod");
                    self.publish(&object, &desired).await;
                    Some(pause)
                }
            };
            if self.wait(&object, &desired, wait).await.is_err() {
                return wish;
            }
        }
    }

    /// What a wish comes to.
    fn wanted(&self, wish: &Wish) -> (Arc<Object>, Desired) {
        match wish {
            Wish::Object(object) => (Arc::clone(object), Desired::from_object(object)),
            Wish::Gone => {
                let record = self.pod.record().unwrap_or_default();
                (Arc::new(Object(json!({}))), leftover(self.pod.paths().uid(), record))
            }
        }
    }

    /// Waits for news that matter. An error: nobody wishes any more.
    async fn wait(&mut self, object: &Object, desired: &Desired, pause: Option<Duration>) -> Result<(), ()> {
        let failing = self.failures > 0;
        let bell = Arc::clone(&self.pod.bell);
        let alarm = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(alarm);
        loop {
            tokio::select! {
                changed = self.wishes.changed() => {
                    changed.map_err(|_| ())?;
                    let news = match &*self.wishes.borrow() {
                        Wish::Gone => true,
                        Wish::Object(new) => self.matters(object, desired, new),
                    };
                    if news {
                        return Ok(());
                    }
                }
                // While something fails, only time and a new wish count: the bell may ring because of the failure.
                () = bell.notified(), if !failing => return Ok(()),
                () = &mut alarm => return Ok(()),
            }
        }
    }

    /// Whether a new version of the object is more than the echo of what we wrote.
    fn matters(&self, old: &Object, desired: &Desired, new: &Object) -> bool {
        let written_over = match &self.published {
            Some((status, revision)) => {
                new.resource_version().is_some_and(|new| new > *revision) && new.get("status") != Some(status)
            }
            None => true,
        };
        written_over
            || Desired::from_object(new) != *desired
            || new.get("spec") != old.get("spec")
            || new.annotations() != old.annotations()
    }

    async fn round(&mut self, object: &Arc<Object>, desired: &Desired) -> Result<Next> {
        for _ in 0..ROUNDS_MAX {
            let observed = self.pod.observe().await?;
            let Plan { steps, wake_at } = plan(desired, &observed, Timestamp::now());
            self.seen.send_replace(observed);
            if steps.is_empty() {
                self.gate.done();
                if desired.wanted == Wanted::Gone {
                    self.end(desired);
                    return Ok(Next::Done);
                }
                self.faults.clear();
                self.publish(object, desired).await;
                return Ok(Next::Wait(wake_at));
            }
            let last = steps.last().cloned();
            self.take(&steps, object, desired).await?;
            if last == Some(Step::Finish) {
                self.end(desired);
                return Ok(Next::Done);
            }
            if steps.iter().all(Step::is_signal) {
                // What was signalled rings when it ends.
                return Ok(Next::Wait(wake_at));
            }
            if self.wishes.has_changed().unwrap_or(true) && desired.wanted == Wanted::Present {
                // A newer wish may want less.
                return Ok(Next::Wait(Some(Timestamp::now())));
            }
        }
        Err(Error::new(Kind::Internal, format!("steps of {} come back for ever", desired.display_name())))
    }

    fn end(&mut self, desired: &Desired) {
        self.pod.host().journal.gone(&desired.uid);
    }

    /// Takes steps in order; what does not need each other side by side: volumes, shim with network, and images
    /// while a pod is made, then the containers.
    async fn take(&mut self, steps: &[Step], object: &Arc<Object>, desired: &Desired) -> Result<()> {
        let numbered: Vec<(Step, u32)> = steps.iter().map(|step| (step.clone(), self.number(step))).collect();
        let common = numbered.iter().take_while(|(step, _)| step.run().is_none()).count();
        let (first, rest) = numbered.split_at(common);
        let of_containers = rest.iter().take_while(|(step, _)| step.run().is_some()).count();
        let (middle, last) = rest.split_at(of_containers);
        let mut by_container: BTreeMap<&str, VecDeque<(&Step, u32)>> = BTreeMap::new();
        for (step, number) in middle {
            let container = step.run().map_or("", |run| run.container.as_str());
            by_container.entry(container).or_default().push_back((step, *number));
        }
        let mut outcomes: Vec<Outcome<'_>> = Vec::new();
        let apart = |step: &Step| matches!(step, Step::Volumes | Step::Shim | Step::Network);
        let (apart, before): (Vec<_>, Vec<_>) = first
            .iter()
            .map(|(step, number)| (step, *number))
            .partition(|(step, _)| !desired.step_mode && apart(step));
        outcomes.push((None, self.sequence(before, object, desired).await));
        if !failed(&outcomes) && !apart.is_empty() {
            let (volumes, sandbox): (Vec<_>, Vec<_>) =
                apart.into_iter().partition(|(step, _)| **step == Step::Volumes);
            let mut groups = vec![(None, volumes), (None, sandbox)];
            for (container, steps) in &mut by_container {
                if matches!(steps.front(), Some((Step::Prepare(_), _))) {
                    groups.push((Some(*container), steps.pop_front().into_iter().collect()));
                }
            }
            outcomes.extend(self.side_by_side(groups, object, desired).await);
        }
        if !failed(&outcomes) {
            // A container whose image is missing does not keep the others from running.
            let fit = by_container.into_iter().filter(|(container, _)| {
                !outcomes.iter().any(|(at, outcome)| *at == Some(*container) && outcome.is_err())
            });
            let groups: Vec<_> = fit.map(|(container, steps)| (Some(container), steps.into())).collect();
            if desired.step_mode {
                for (container, steps) in groups {
                    outcomes.push((container, self.sequence(steps, object, desired).await));
                }
            } else {
                outcomes.extend(self.side_by_side(groups, object, desired).await);
            }
        }
        for container in
            outcomes.iter().filter_map(|(container, outcome)| outcome.is_ok().then_some(*container)?)
        {
            self.faults.remove(container);
        }
        let mut outcome = Ok(());
        for (container, result) in outcomes {
            if let Err((step, error)) = result {
                self.blame(container, &step, &error, object, desired);
                outcome = outcome.and(Err(error));
            }
        }
        outcome?;
        for (step, number) in last {
            if let Err(error) = self.step(step, *number, object, desired).await {
                self.blame(None, step, &error, object, desired);
                return Err(error);
            }
        }
        self.pod.host().journal.save(&desired.uid, &self.pod.paths().trace_file());
        self.tell(steps, object, desired);
        Ok(())
    }

    async fn side_by_side<'a>(
        &self,
        groups: Vec<Group<'a>>,
        object: &Arc<Object>,
        desired: &Desired,
    ) -> Vec<Outcome<'a>> {
        let groups = groups.into_iter().map(|(container, steps)| async move {
            (container, self.sequence(steps, object, desired).await)
        });
        join_all(groups).await
    }

    async fn sequence(
        &self,
        steps: Vec<(&Step, u32)>,
        object: &Arc<Object>,
        desired: &Desired,
    ) -> Result<(), (Step, Error)> {
        for (step, number) in steps {
            self.step(step, number, object, desired).await.map_err(|error| (step.clone(), error))?;
        }
        Ok(())
    }

    /// One step, with its entry in the journal and, in tests, its fault.
    async fn step(&self, step: &Step, number: u32, object: &Arc<Object>, desired: &Desired) -> Result<()> {
        let name = step.to_string();
        if desired.step_mode && step.verb() == Verb::Start {
            self.pause(&name, object, desired).await?;
        }
        self.strike(step.verb(), number, Moment::Before).await?;
        let journal = &self.pod.host().journal;
        let begun = Instant::now();
        let result = self.pod.apply(step, object, desired).await;
        let took = begun.elapsed();
        let pod = desired.display_name();
        match &result {
            Ok(effects) => {
                let (timed, plain): (Vec<&Effect>, Vec<&Effect>) =
                    effects.iter().partition(|effect| effect.took.is_some());
                for effect in timed {
                    journal.add(
                        &pod,
                        &desired.uid,
                        &name,
                        &effect.what,
                        effect.took.unwrap_or_default(),
                        None,
                    );
                }
                let plain: Vec<&str> = plain.iter().map(|effect| effect.what.as_str()).collect();
                let effect = if plain.is_empty() { step.effect().to_owned() } else { plain.join("; ") };
                journal.add(&pod, &desired.uid, &name, &effect, took, None);
            }
            Err(error) => journal.add(&pod, &desired.uid, &name, step.effect(), took, Some(error.chain())),
        }
        result?;
        if desired.step_mode {
            self.gate.took(&name);
        }
        self.strike(step.verb(), number, Moment::After).await
    }

    /// Waits to be let go on; a wish for something else ends the wait.
    async fn pause(&self, step: &str, object: &Object, desired: &Desired) -> Result<()> {
        let mut wishes = self.wishes.clone();
        let other = async {
            loop {
                if wishes.changed().await.is_err() {
                    return;
                }
                let other = match &*wishes.borrow() {
                    Wish::Gone => true,
                    Wish::Object(new) => {
                        Desired::from_object(new) != *desired || new.annotations() != object.annotations()
                    }
                };
                if other {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.gate.pass(step) => Ok(()),
            () = other => Err(Error::new(Kind::Conflict, "another wish came while the pod was paused").reason(INTERRUPTED)),
        }
    }

    fn number(&self, step: &Step) -> u32 {
        let counter = match step.verb() {
            Verb::Start => &self.start_steps,
            Verb::Delete => &self.delete_steps,
        };
        counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    async fn strike(&self, verb: Verb, number: u32, moment: Moment) -> Result<()> {
        let host = self.pod.host();
        let Some(action) = host.fault.strike(verb, number, moment) else {
            return Ok(());
        };
        tracing::warn!(?action, ?verb, number, "a fault strikes");
        if matches!(action, Action::KillShim | Action::KillBoth) {
            host.fence(&self.pod.paths().shim_cgroup()).await?;
        }
        if action == Action::KillContainers {
            host.fence(&self.pod.paths().cgroup()).await?;
        }
        if matches!(action, Action::KillDaemon | Action::KillBoth) {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL)
                .map_err(|errno| Error::io("kill(self)", errno))?;
        }
        Ok(())
    }

    /// Puts the reason of a failure into the status, and tells people.
    fn blame(
        &mut self,
        container: Option<&str>,
        step: &Step,
        error: &Error,
        object: &Arc<Object>,
        desired: &Desired,
    ) {
        if error.waiting_reason() == Some(INTERRUPTED) {
            return;
        }
        let reason = error.waiting_reason().unwrap_or(match (step, container) {
            (Step::Create(_) | Step::Prepare(_), _) => "CreateContainerError",
            (Step::Start(_), _) => "RunContainerError",
            _ => "ContainerCreating",
        });
        let fault = Waiting { reason: reason.to_owned(), message: error.chain() };
        match container {
            Some(container) => {
                self.faults.insert(container.to_owned(), fault);
            }
            None => {
                for container in &desired.containers {
                    self.faults.insert(container.name.clone(), fault.clone());
                }
            }
        }
        let word = match step {
            Step::Volumes => "FailedMount",
            Step::Record | Step::Cgroups | Step::Shim | Step::Network => "FailedCreatePodSandBox",
            Step::Fence => "FailedFencing",
            _ if step.verb() == Verb::Delete => "FailedKillPod",
            _ => "Failed",
        };
        // A claim that is about to be bound, an address that is about to be given: not worth an Event.
        if error.kind() != Kind::Busy || self.failures >= PATIENCE {
            self.event(object, false, word, format!("{step}: {}", error.chain()));
        }
    }

    /// Tells people of steps that were taken.
    fn tell(&mut self, steps: &[Step], object: &Arc<Object>, desired: &Desired) {
        let fenced = steps.contains(&Step::Fence);
        let died = steps.contains(&Step::Bury) && desired.wanted == Wanted::Present;
        let is_pet = object.controller_owner().is_some_and(|owner| owner.kind == "StatefulSet");
        if fenced && (died || is_pet) {
            let text = format!(
                "cgroups {} and {} were seen empty (populated 0): nothing of this pod runs",
                self.pod.paths().shim_cgroup(),
                self.pod.paths().cgroup()
            );
            self.event(object, true, "Fenced", text);
        }
        for step in steps {
            match step {
                Step::Start(run) => {
                    self.event(object, true, "Started", format!("Started container {}", run.container));
                }
                Step::Terminate => {
                    let names: Vec<&str> = desired.containers.iter().map(|c| c.name.as_str()).collect();
                    self.event(object, true, "Killing", format!("Stopping containers {}", names.join(", ")));
                }
                Step::TerminateContainer(run) => {
                    let text = format!(
                        "Container {} failed its liveness or startup probe, will be restarted",
                        run.container
                    );
                    self.event(object, true, "Killing", text);
                }
                _ => {}
            }
        }
    }

    fn event(&mut self, object: &Arc<Object>, normal: bool, reason: &'static str, message: String) {
        // The same again says nothing new.
        if object.uid().is_empty() || self.last_event.as_ref() == Some(&(reason, message.clone())) {
            return;
        }
        self.last_event = Some((reason, message.clone()));
        self.pod.host().upstream.event(Event { about: Arc::clone(object), normal, reason, message });
    }

    /// Writes the status, if it changed. A failure is not the pod's: the next round tries again.
    async fn publish(&mut self, object: &Arc<Object>, desired: &Desired) {
        let observed = self.seen.borrow().clone();
        self.prober.sync(object, &observed);
        let failing = !self.faults.is_empty();
        let over = desired.finished && !observed.recorded;
        if object.uid().is_empty() || over || (desired.wanted != Wanted::Present && !failing) {
            return;
        }
        // The newest version that we know of: others write conditions too, and ours may not have come back yet.
        let mut base = match &*self.wishes.borrow() {
            Wish::Object(latest) if latest.uid() == object.uid() => Object::clone(latest),
            _ => Object::clone(object),
        };
        if let Some((status, revision)) = &self.published
            && base.resource_version().is_none_or(|known| known <= *revision)
        {
            base.set("status", status.clone());
        }
        let facts = Facts {
            health: self.prober.health(),
            faults: self.faults.clone(),
            host_ip: Some(self.pod.host().address.to_string()),
        };
        let status = status(&base, desired, &observed, &facts, Timestamp::now());
        if base.get("status") == Some(&status) {
            return;
        }
        self.crash_loop(object, &status);
        let key = Key::core("pods", &*desired.namespace, &*desired.name);
        match self.pod.host().upstream.status(key, desired.uid.clone(), status.clone()).await {
            Ok(revision) => self.published = Some((status, revision)),
            Err(error) if matches!(error.kind(), api::Kind::NotFound | api::Kind::Conflict) => {
                tracing::debug!(pod = %desired.display_name(), %error, "status not taken");
            }
            Err(error) => {
                tracing::warn!(pod = %desired.display_name(), %error, "write status");
                self.pod.bell.notify_one();
            }
        }
    }

    fn crash_loop(&mut self, object: &Arc<Object>, status: &Value) {
        for container in status["containerStatuses"].as_array().into_iter().flatten() {
            let waiting = &container["state"]["waiting"];
            if waiting["reason"] == "CrashLoopBackOff" {
                let text = waiting["message"].as_str().unwrap_or("").to_owned();
                self.event(object, false, "BackOff", text);
            }
        }
    }
}

/// Whether a container runs, for those who follow its log.
pub fn is_running(observed: &Observed, container: &str, attempt: u32) -> bool {
    observed
        .attempts
        .get(container)
        .and_then(|attempts| attempts.iter().find(|known| known.number == attempt))
        .is_some_and(|known| matches!(known.state, State::Running { .. } | State::Created | State::Recorded))
}

/// What is wanted of a pod that the API does not know: nothing of it.
fn leftover(uid: &str, record: Record) -> Desired {
    Desired {
        uid: uid.to_owned(),
        namespace: record.namespace,
        name: record.name,
        wanted: Wanted::Gone,
        containers: vec![],
        backoff_base: Duration::ZERO,
        pod_ip: record.pod_ip,
        claims: record.held.into_iter().map(|held| held.claim).collect(),
        grace: Duration::ZERO,
        finished: false,
        step_mode: false,
    }
}
