//! The world: a queue of events in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use api::{Error, Kind, Object, Timestamp};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use registry::{Config, Registry};
use store::{EventKind, Memory, Scope, Store, Watch};

use super::agent::outcome;
use super::checks::Checker;
use super::faults::{Faults, happens, misreading, refusal};
use super::kernel::Kernel;
use super::machine::{Machine, NODES_MAX, Phase};
use super::mutant::Mutant;
use super::{Outcome, Violation, now};
use crate::controllers::Controllers;
use crate::driver::perform;
use crate::effect::{Call, Effect, Input};
use crate::pod;

/// When people stop and faults end, in virtual milliseconds.
const FAULTS_END: i64 = 60_000;
/// By when all must be quiet after that.
const QUIET_BY: i64 = FAULTS_END + 30 * 60_000;
/// Most events of a world; a world that needs more never rests. Healthy ones need at most some 10,000.
const EVENTS_MAX: u64 = 16_000;
/// Start of time, in seconds.
const EPOCH: i64 = 1_700_000_000;

/// Something that is going to happen.
#[derive(Debug)]
pub enum Event {
    /// The controllers' watch tells what it has.
    Tell,
    /// A call reaches the registry.
    Make { life: u64, id: u64, call: Call, view: BTreeMap<String, u64> },
    /// Its answer reaches the controllers.
    Answer { life: u64, id: u64, result: Result<Option<Object>, Error> },
    /// A wish of `WakeAt` is due.
    Wake { life: u64 },
    /// Somebody finds out that the watch is not what it should be.
    Relist { life: u64 },
    /// A list that was read earlier reaches the controllers.
    List { life: u64, number: u64, objects: Vec<Arc<Object>>, revision: u64 },
    /// The controllers start.
    Start,
    /// An agent looks around.
    Agent(usize),
    /// The daemon looks at a node.
    Manage(usize),
    /// A fence of a node takes its next step.
    Fence(usize, Phase),
    /// Somebody changes something.
    User,
    /// Nothing goes wrong any more.
    Mend,
}

/// One simulated world.
pub struct World {
    pub(super) rng: SmallRng,
    pub(super) time: i64,
    pub(super) registry: Registry<Memory>,
    pub(super) kernel: Kernel,
    pub(super) faults: Faults,
    pub(super) mutant: Option<Mutant>,
    /// How many nodes there are.
    pub(super) nodes: usize,
    pub(super) machines: Vec<Machine>,
    seed: u64,
    clock: Arc<AtomicI64>,
    queue: BTreeMap<(i64, u64), Event>,
    sequence: u64,
    pub(super) checker: Checker,
    trace: String,
    controllers: Option<Controllers>,
    controllers_rng: SmallRng,
    /// Counts the controllers' processes: answers to an earlier one's calls reach nobody.
    life: u64,
    /// Counts the lists read.
    lists: u64,
    watch: Option<Watch>,
    is_telling: bool,
    /// When agents will look around.
    agent_alarms: BTreeSet<(i64, usize)>,
    /// Told before, to be told again.
    old: VecDeque<Input>,
    /// Held back, to be told after the next.
    held: Option<Input>,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, mutant: Option<Mutant>) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let clock = Arc::new(AtomicI64::new(0));
        let of_registry = Arc::clone(&clock);
        let config = Config {
            clock: Box::new(move || timestamp(of_registry.load(Ordering::Relaxed))),
            rng: Box::new(SmallRng::seed_from_u64(seed ^ 0x5eed)),
            ..Config::default()
        };
        let registry = now(Registry::open(Memory::new(), config)).unwrap_or_else(|error| panic!("{error}"));
        let faults = Faults::draw(&mut rng);
        // One in eight has no other node to go to.
        let nodes = if rng.random_ratio(1, 8) { 1 } else { rng.random_range(2..=NODES_MAX) };
        let mut world = World {
            time: 0,
            kernel: Kernel::default(),
            mutant,
            nodes,
            machines: vec![Machine { agent: 1, ..Machine::default() }; nodes],
            seed,
            clock,
            queue: BTreeMap::new(),
            sequence: 0,
            checker: Checker::new(registry.store()),
            trace: String::new(),
            controllers: None,
            controllers_rng: SmallRng::seed_from_u64(seed ^ 0xc0),
            life: 0,
            lists: 0,
            watch: None,
            is_telling: false,
            agent_alarms: BTreeSet::new(),
            old: VecDeque::new(),
            held: None,
            rng,
            registry,
            faults,
        };
        world.say(format_args!("seed {seed}, {nodes} nodes, mutant {mutant:?}, {:?}", world.faults.clone()));
        world
    }

    /// Runs until silence.
    pub fn run(mut self) -> Outcome {
        self.set_up();
        self.schedule(0, Event::Start);
        self.schedule(FAULTS_END, Event::Mend);
        let actions = self.rng.random_range(5..40);
        for _ in 0..actions {
            let at = self.rng.random_range(100..FAULTS_END);
            self.schedule(at, Event::User);
        }
        let mut events = 0;
        let verdict = loop {
            let Some(((time, _), event)) = self.queue.pop_first() else {
                break self.checker.settled(&self.kernel);
            };
            events += 1;
            if events > EVENTS_MAX || time > QUIET_BY {
                let next: String = format!("{event:?}").chars().take(200).collect();
                let detail = format!("{events} events, {time} ms, next {next}");
                break Err(Violation { law: "after the faults the world falls silent", detail });
            }
            self.time = time;
            self.clock.store(time, Ordering::Relaxed);
            self.kernel.advance(time);
            if let Err(violation) = self.happen(event) {
                break Err(violation);
            }
        };
        if let Err(violation) = &verdict {
            self.say(format_args!("BROKEN {violation}"));
        }
        Outcome { seed: self.seed, trace: self.trace, events, millis: self.time, verdict }
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        let revision = self.registry.store().revision();
        let mut view = BTreeMap::new();
        match event {
            Event::Tell => self.tell()?,
            Event::Make { life, id, call, view: seen } => {
                view = seen;
                self.make(life, id, call);
            }
            Event::Answer { life, id, result } => {
                if life == self.life {
                    self.step(Input::Done { id, result })?;
                }
            }
            Event::Wake { life } => {
                if life == self.life {
                    self.step(Input::Tick)?;
                }
            }
            Event::Relist { life } => {
                if life == self.life {
                    self.relist()?;
                }
            }
            Event::List { life, number, objects, revision } => {
                // A list begun later makes this one pointless.
                if life == self.life && number == self.lists {
                    self.list(objects, revision)?;
                }
            }
            Event::Start => self.start()?,
            Event::Agent(node) => {
                self.agent_alarms.remove(&(self.time, node));
                self.agent(node)?;
            }
            Event::Manage(node) => self.manage(node),
            Event::Fence(node, phase) => self.fence(node, phase),
            Event::User => self.act(),
            Event::Mend => {
                self.say(format_args!("the faults end"));
                self.faults = Faults::default();
                self.mend();
                self.mend_machines();
                self.checker.step(&self.kernel, &view)?;
                self.relist()?;
                (0..self.nodes).for_each(|node| self.alarm(self.time, node));
            }
        }
        self.checker.step(&self.kernel, &view)?;
        if self.registry.store().revision() != revision {
            self.spread();
        }
        Ok(())
    }

    /// Something was written: all who watch will hear of it.
    fn spread(&mut self) {
        if !self.is_telling && self.watch.is_some() {
            self.is_telling = true;
            let at = self.time + self.rng.random_range(1..30);
            self.schedule(at, Event::Tell);
        }
        for node in 0..self.nodes {
            // One that looks soon anyway need not be called.
            let soon = (self.time, 0)..(self.time + 50, 0);
            if !self.agent_alarms.range(soon).any(|(_, it)| *it == node) {
                let at = self.time + self.rng.random_range(1..50);
                self.alarm(at, node);
            }
        }
    }

    /// The controllers' process starts, knowing nothing.
    fn start(&mut self) -> Result<(), Violation> {
        self.life += 1;
        self.controllers = Some(Controllers::new());
        self.forget_fences();
        (0..self.nodes).for_each(|node| self.schedule(self.time, Event::Manage(node)));
        self.relist()
    }

    /// Everything is read now, and told later.
    fn relist(&mut self) -> Result<(), Violation> {
        if self.controllers.is_none() {
            return Ok(());
        }
        self.step(Input::Listing)?;
        let revision = self.registry.store().revision();
        let objects = self.checker.objects().cloned().collect();
        self.watch = None;
        self.old.clear();
        self.held = None;
        let at = self.time + self.rng.random_range(1..200);
        self.lists += 1;
        let (life, number) = (self.life, self.lists);
        self.schedule(at, Event::List { life, number, objects, revision });
        Ok(())
    }

    fn list(&mut self, objects: Vec<Arc<Object>>, revision: u64) -> Result<(), Violation> {
        self.say(format_args!("list of {} at {revision}", objects.len()));
        for object in objects {
            self.step(Input::Changed(self.seen(object)))?;
        }
        self.watch = self.registry.store().watch(Scope::default(), revision).ok();
        self.is_telling = false;
        self.step(Input::Synced)?;
        self.spread();
        Ok(())
    }

    /// What the controllers take an object for.
    fn seen(&self, mut object: Arc<Object>) -> Arc<Object> {
        if let Some(mutant) = self.mutant {
            mutant.see(Arc::make_mut(&mut object));
        }
        object
    }

    /// Tells some of what the watch has, with all that can go wrong on the way.
    fn tell(&mut self) -> Result<(), Violation> {
        self.is_telling = false;
        if happens(&mut self.rng, self.faults.relist) {
            self.say(format_args!("the watch breaks"));
            return self.relist();
        }
        let most = self.rng.random_range(1..20);
        for told in 0.. {
            let Some(event) = self.watch.as_mut().and_then(Watch::try_next) else { break };
            let Some(object) = self.checker.at(event.revision, &event.record.key) else { continue };
            let object = self.seen(object);
            let input = match event.kind {
                EventKind::Deleted => Input::Deleted(object),
                EventKind::Created | EventKind::Updated => Input::Changed(object),
            };
            if self.mutant == Some(Mutant::Deaf) && matches!(input, Input::Deleted(_)) {
                continue;
            }
            if happens(&mut self.rng, self.faults.lost) {
                // Whoever loses an event finds out, sooner or later.
                self.say(format_args!("lost: {} {}", event.revision, event.record.key));
                let at = self.time + self.rng.random_range(10..3_000);
                self.schedule_relist(at);
                continue;
            }
            if self.held.is_none() && happens(&mut self.rng, self.faults.swapped) {
                let at = self.time + self.rng.random_range(10..3_000);
                self.schedule_relist(at);
                self.held = Some(input);
                continue;
            }
            self.old.push_back(input.clone());
            if self.old.len() > 20 {
                self.old.pop_front();
            }
            if happens(&mut self.rng, self.faults.twice) {
                self.step(input.clone())?;
            }
            self.step(input)?;
            if let Some(held) = self.held.take() {
                self.step(held)?;
            }
            if happens(&mut self.rng, self.faults.stale) && !self.old.is_empty() {
                let index = self.rng.random_range(0..self.old.len());
                let stale = self.old[index].clone();
                let at = self.time + self.rng.random_range(10..3_000);
                self.schedule_relist(at);
                self.step(stale)?;
            }
            if self.watch.is_none() {
                return Ok(());
            }
            if told >= most {
                self.spread();
                break;
            }
        }
        Ok(())
    }

    fn schedule_relist(&mut self, at: i64) {
        self.schedule(at, Event::Relist { life: self.life });
    }

    /// One step of the controllers, and what comes of it.
    fn step(&mut self, input: Input) -> Result<(), Violation> {
        let now = self.now();
        let Some(controllers) = &mut self.controllers else { return Ok(()) };
        let effects = controllers.step(input, now, &mut self.controllers_rng);
        let is_calling = effects.iter().any(|effect| matches!(effect, Effect::Call { .. }));
        let view: BTreeMap<String, u64> = match is_calling {
            false => BTreeMap::new(),
            true => {
                let sets = controllers.cache().list(*crate::kinds::REPLICASETS);
                sets.map(|set| (set.uid().to_owned(), set.resource_version().unwrap_or(0))).collect()
            }
        };
        let (mut made, mut wakes) = (Vec::new(), Vec::new());
        for effect in effects {
            match effect {
                Effect::Call { id, mut call } => {
                    if let Some(mutant) = self.mutant {
                        mutant.call(&mut call, self.rng.random());
                    }
                    self.checker.call(&call, controllers.cache())?;
                    made.push((id, call));
                }
                Effect::WakeAt(time) => {
                    // The world counts in milliseconds: a fraction is rounded up.
                    wakes.push(time.as_millisecond() - EPOCH * 1000 + 1);
                }
            }
        }
        let life = self.life;
        wakes.into_iter().for_each(|at| self.schedule(at, Event::Wake { life }));
        // A crash comes between any two effects: the rest never happens.
        let survivors = match is_calling && happens(&mut self.rng, self.faults.crash) {
            true => Some(self.rng.random_range(0..=made.len())),
            false => None,
        };
        for (id, call) in made.into_iter().take(survivors.unwrap_or(usize::MAX)) {
            let at = self.time + self.rng.random_range(0..20);
            self.schedule(at, Event::Make { life, id, call, view: view.clone() });
        }
        if survivors.is_some() {
            self.say(format_args!("the controllers crash"));
            self.controllers = None;
            self.watch = None;
            self.forget_fences();
            let back = self.time + self.rng.random_range(10..5_000);
            self.schedule(back, Event::Start);
        }
        Ok(())
    }

    /// A call reaches the registry, or does not.
    fn make(&mut self, life: u64, id: u64, call: Call) {
        // What a dead process had asked for may have been on its way, or not.
        let is_dead = life != self.life || self.controllers.is_none();
        if is_dead && (matches!(call, Call::Fence { .. }) || self.rng.random_bool(0.5)) {
            return;
        }
        if self.mutant == Some(Mutant::Helpless) && matches!(call, Call::Fence { .. }) {
            return self.answer(life, id, Ok(None));
        }
        let text = call.to_string();
        let result = if happens(&mut self.rng, self.faults.refused) {
            Err(refusal(&mut self.rng))
        } else if let Call::Fence { node, uid } = &call {
            match self.begin_fence(life, id, node, uid) {
                Some(result) => result,
                None => return self.say(format_args!("{text}: begins")),
            }
        } else {
            let result = self.perform(call);
            match result {
                Ok(_) if happens(&mut self.rng, self.faults.misread) => Err(misreading(&mut self.rng)),
                result => result,
            }
        };
        self.say(format_args!("{text}: {}", outcome(&result)));
        self.answer(life, id, result);
    }

    /// An answer is on its way.
    pub(super) fn answer(&mut self, life: u64, id: u64, result: Result<Option<Object>, Error>) {
        let at = self.time + self.rng.random_range(0..50);
        self.schedule(at, Event::Answer { life, id, result });
    }

    /// Whether the daemon's process is there: controllers and node manager in one.
    pub(super) fn is_daemon_up(&self) -> bool {
        self.controllers.is_some()
    }

    /// Counts the daemon's processes.
    pub(super) fn life(&self) -> u64 {
        self.life
    }

    fn perform(&mut self, call: Call) -> Result<Option<Object>, Error> {
        let is_hurried = match (self.mutant, &call) {
            (Some(Mutant::Impatient), Call::Delete { .. }) => true,
            // Takes what is on a node that is down for gone.
            (Some(Mutant::Forceful), Call::Delete { key, .. }) => self.is_on_node_that_is_down(key),
            _ => false,
        };
        if let (true, Call::Delete { key, uid, .. }) = (is_hurried, &call) {
            let options = registry::DeleteOptions {
                grace_period_secs: Some(0),
                uid: Some(uid.clone()),
                ..registry::DeleteOptions::default()
            };
            return now(self.registry.delete(key, &options)).map(|it| (!it.is_gone).then_some(it.object));
        }
        if let (Some(Mutant::Hasty), Call::Read { key, .. }) = (self.mutant, &call) {
            return Err(Error::not_found(key));
        }
        let result = now(perform(&self.registry, call))
            .map(|object| object.map(|object| Arc::unwrap_or_clone(self.seen(Arc::new(object)))));
        if let Err(error) = &result {
            let is_bug = matches!(error.kind(), Kind::Invalid | Kind::BadRequest | Kind::Unsupported);
            assert!(!is_bug || self.mutant.is_some(), "seed {}: {error}", self.seed);
        }
        result
    }

    fn is_on_node_that_is_down(&self, pod: &api::Key) -> bool {
        let Ok(pod) = self.registry.get(pod) else { return false };
        let node = pod::node(&pod).map(|node| api::Key::new(*crate::kinds::NODES, "", node));
        node.and_then(|node| self.registry.get(&node).ok()).is_some_and(|node| crate::node::is_down(&node))
    }

    /// Adds an event, after all others of its time.
    pub(super) fn schedule(&mut self, at: i64, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.time), self.sequence), event);
    }

    /// Lets an agent look around then, once.
    pub(super) fn alarm(&mut self, at: i64, node: usize) {
        let at = at.max(self.time);
        if self.agent_alarms.insert((at, node)) {
            self.schedule(at, Event::Agent(node));
        }
    }

    /// Adds a line to the trace.
    pub(super) fn say(&mut self, line: fmt::Arguments<'_>) {
        let _ = writeln!(self.trace, "{:>8} {line}", self.time);
    }

    /// The time as objects have it.
    pub(super) fn now(&self) -> Timestamp {
        timestamp(self.time)
    }
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(EPOCH * 1000 + millis).unwrap_or(Timestamp::MAX)
}
