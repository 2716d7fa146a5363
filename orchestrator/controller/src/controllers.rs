//! The loop: inputs to news, news to items, items to plans, plans to calls.
//!
//! ```text
//!  Changed, Deleted ──► cache ── concerned() ──► queue ── look() ──► Plan ──► Effect::Call
//!        Done(object) ────┘                        ▲                             │
//!        Done(error) ── in doubt: Call::Read ──────┴──── all answered ◄──────────┘
//! ```
//! An item stays in hand until each of its calls is answered, and what the answers say is taken in before it is
//! looked at again: no plan is made from a state that our own writes have made old. An error may hide a success, so
//! after one the object is read from the store before anything else is planned for the item.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::{Error, Key, Kind, Object, Timestamp};
use rand::RngCore;

use crate::cache::Cache;
use crate::effect::{Call, Effect, Input};
use crate::kinds::EVENTS;
use crate::ledger::requests;
use crate::plan::{Note, Step};
use crate::queue::Queue;
use crate::rules::{Item, View, concerned, look};
use crate::scheduler::{Assumed, Binding};

/// Times a doubtful object is read before the item waits its turn again.
const READS_MAX: u32 = 3;

/// A call that is not answered yet.
#[derive(Debug)]
struct Flight {
    /// Whose call it is; none for Events, which nothing waits for.
    item: Option<Item>,
    call: Call,
    note: Option<Note>,
    complaints: Vec<Note>,
    /// Pods that a fence removes: those known on its node when it was asked for.
    fenced: Vec<(Key, String)>,
    reads: u32,
    /// The last deletion of the kind that was told of before it was made.
    last_deletion: u64,
    /// A list began after it was made: what its answer shows may be older than the list, or newer.
    is_stale: bool,
}

impl Flight {
    fn new(call: Call) -> Flight {
        Flight {
            item: None,
            call,
            note: None,
            complaints: Vec::new(),
            fenced: Vec::new(),
            reads: 0,
            last_deletion: 0,
            is_stale: false,
        }
    }
}

/// The calls of an item in hand.
#[derive(Debug, Default)]
struct Batch {
    open: usize,
    is_failed: bool,
}

/// All controllers and the scheduler: one deterministic machine without clock, randomness or I/O of its own.
///
/// Everything in it is rebuilt from a list; what is lost with it is only when to try again.
#[derive(Debug, Default)]
pub struct Controllers {
    cache: Cache,
    queue: Queue<Item>,
    flights: BTreeMap<u64, Flight>,
    batches: BTreeMap<Item, Batch>,
    assumed: Assumed,
    last_id: u64,
    /// False while a list is under way.
    is_synced: bool,
    /// What the list under way has named.
    listed: BTreeSet<Key>,
    /// Answers that came while a list was under way.
    deferred: Vec<(u64, Result<Option<Object>, Error>)>,
    /// What was last asked for by [`Effect::WakeAt`].
    wake: Option<Timestamp>,
}

impl Controllers {
    /// Controllers that know nothing yet and wait for the first list.
    pub fn new() -> Controllers {
        Controllers::default()
    }

    /// What is known.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Nothing is to be done and no answer is awaited; delays may still run.
    pub fn is_idle(&self) -> bool {
        self.is_synced && self.queue.is_idle() && self.flights.is_empty()
    }

    /// When something is to be looked at again though nothing may have changed.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.queue.next_due()
    }

    /// Takes in one input and says what is to be done. The same inputs, times and random numbers give the same
    /// effects.
    pub fn step(&mut self, input: Input, now: Timestamp, rng: &mut dyn RngCore) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Listing => self.begin_list(),
            Input::Changed(object) => self.changed(object),
            Input::Deleted(object) => self.deleted(&object),
            Input::Synced => {
                self.end_list();
                for (id, result) in std::mem::take(&mut self.deferred) {
                    self.done(id, result, now, rng, &mut effects);
                }
            }
            Input::Done { id, result } if !self.is_synced => self.deferred.push((id, result)),
            Input::Done { id, result } => self.done(id, result, now, rng, &mut effects),
            // A timer that went off early is set again.
            Input::Tick => self.wake = None,
        }
        self.queue.advance(now);
        if self.is_synced {
            while let Some(item) = self.queue.take() {
                self.process(item, now, &mut effects);
            }
        }
        let due = self.queue.next_due();
        if due != self.wake {
            self.wake = due;
            effects.extend(due.map(Effect::WakeAt));
        }
        effects
    }

    fn begin_list(&mut self) {
        self.is_synced = false;
        self.listed.clear();
        self.cache.forget_deletions();
        for flight in self.flights.values_mut() {
            flight.is_stale = true;
        }
    }

    fn end_list(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        let unlisted = self.cache.all().map(|(key, _)| key).filter(|key| !listed.contains(key));
        let unlisted: Vec<Key> = unlisted.cloned().collect();
        // Not known any more is not known to be gone: a list may be older than what an answer has shown.
        unlisted.iter().for_each(|key| self.cache.drop(key));
        self.is_synced = true;
        // Level, not edge: everything is looked at, whatever was known before.
        self.queue.clear();
        let mut items = BTreeSet::new();
        for (key, object) in self.cache.all() {
            concerned(&self.cache, key, None, Some(object), &mut |item| {
                items.insert(item);
            });
        }
        items.into_iter().for_each(|item| self.queue.add(item));
    }

    fn changed(&mut self, object: Arc<Object>) {
        let key = object.key();
        if !self.is_synced {
            self.listed.insert(key.clone());
        }
        self.take_in(&key, object);
    }

    fn deleted(&mut self, object: &Object) {
        let key = object.key();
        let old = self.cache.remove(&key, object.uid(), object.resource_version());
        if let Some(old) = old {
            self.notify(&key, Some(&old), None);
        }
    }

    fn take_in(&mut self, key: &Key, object: Arc<Object>) {
        if let Some(old) = self.cache.put(key, Arc::clone(&object)) {
            self.notify(key, old.as_ref(), Some(&object));
            // Another incarnation under the name: the old one went unseen.
            if let Some(old) = old.filter(|old| old.uid() != object.uid()) {
                self.cache.mark_gone(old.uid());
                self.notify(key, Some(&old), None);
            }
        }
    }

    fn forget(&mut self, key: &Key, uid: &str) {
        self.cache.mark_gone(uid);
        if let Some(old) = self.cache.remove(key, uid, None) {
            self.notify(key, Some(&old), None);
        }
    }

    fn notify(&mut self, key: &Key, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        if self.is_synced {
            let queue = &mut self.queue;
            concerned(&self.cache, key, old, new, &mut |item| queue.add(item));
        }
    }

    fn process(&mut self, item: Item, now: Timestamp, effects: &mut Vec<Effect>) {
        let view = View { cache: &self.cache, assumed: &self.assumed, now };
        let plan = look(&view, &item);
        for note in plan.notes {
            self.tell(&note, now, effects);
        }
        if plan.steps.is_empty() {
            self.queue.forget(&item);
            if let Some(wake) = plan.wake {
                self.queue.add_at(item.clone(), wake);
            }
            self.queue.done(&item);
            return;
        }
        self.batches.insert(item.clone(), Batch { open: plan.steps.len(), is_failed: false });
        for Step { call, note, complaints } in plan.steps {
            let flight = Flight { item: Some(item.clone()), note, complaints, ..Flight::new(call) };
            self.launch(flight, effects);
        }
    }

    fn launch(&mut self, mut flight: Flight, effects: &mut Vec<Effect>) {
        self.last_id += 1;
        flight.last_deletion = self.cache.last_deletion(flight.call.key().resource);
        if let Call::Bind { pod, node, pod_ip, .. } = &flight.call {
            let amount = self.cache.get(pod).map(|pod| requests(pod)).unwrap_or_default();
            self.assumed.put(pod.clone(), Binding { node: node.clone(), address: *pod_ip, amount });
        }
        if let Call::Fence { node, .. } = &flight.call {
            // One with finalizers stays, without grace, until they are gone.
            let pods = self.cache.pods_on(node).filter(|pod| pod.finalizers().is_empty());
            flight.fenced = pods.map(|pod| (pod.key(), pod.uid().to_owned())).collect();
        }
        effects.push(Effect::Call { id: self.last_id, call: flight.call.clone() });
        self.flights.insert(self.last_id, flight);
    }

    /// Writes an Event, unless it is written already.
    fn tell(&mut self, note: &Note, now: Timestamp, effects: &mut Vec<Effect>) {
        let object = note.event(now);
        let key = Key::new(*EVENTS, object.namespace(), object.name());
        if self.cache.get(&key).is_none() {
            self.launch(Flight::new(Call::Create { object }), effects);
        }
    }

    fn done(
        &mut self,
        id: u64,
        result: Result<Option<Object>, Error>,
        now: Timestamp,
        rng: &mut dyn RngCore,
        effects: &mut Vec<Effect>,
    ) {
        // Answers to a former self's calls are nobody's.
        let Some(mut flight) = self.flights.remove(&id) else { return };
        let key = flight.call.key();
        if let Call::Bind { .. } = flight.call {
            self.assumed.remove(&key);
        }
        if flight.is_stale {
            return self.doubt(flight, key, effects);
        }
        let mut is_failed = result.is_err();
        match (&flight.call, result) {
            (Call::Read { uid, .. }, Ok(Some(object))) => {
                if let Some(uid) = uid.as_deref().filter(|uid| *uid != object.uid()) {
                    let uid = uid.to_owned();
                    self.forget(&key, &uid);
                }
                if !self.cache.is_doubtful(&key, &object) {
                    self.take_in(&key, Arc::new(object));
                } else if self.cache.last_deletion(key.resource) == flight.last_deletion {
                    // Nothing of the kind was deleted since we asked: it is there.
                    let object = Arc::new(object);
                    let old = self.cache.insert(&key, Arc::clone(&object));
                    self.notify(&key, old.as_ref(), Some(&object));
                } else if flight.reads < READS_MAX {
                    flight.reads += 1;
                    return self.launch(flight, effects);
                } else {
                    is_failed = true;
                }
            }
            (Call::Read { uid, .. }, Ok(None)) => {
                if let Some(uid) = uid.clone() {
                    self.forget(&key, &uid);
                }
                self.cache.mark_absent(&key);
            }
            (Call::Read { uid, .. }, Err(error)) if error.kind() == Kind::NotFound => {
                is_failed = false;
                if let Some(uid) = uid.clone() {
                    self.forget(&key, &uid);
                }
                self.cache.mark_absent(&key);
            }
            (Call::Read { .. }, Err(_)) if flight.reads < READS_MAX => {
                flight.reads += 1;
                return self.launch(flight, effects);
            }
            (Call::Read { .. }, Err(_)) => {}
            (_, Ok(object)) => {
                if let Some(note) = flight.note.take() {
                    self.tell(&note, now, effects);
                }
                match object {
                    // Made and, by what the watch told, perhaps gone again: the store knows.
                    Some(object) if flight.item.is_some() && self.cache.is_doubtful(&key, &object) => {
                        let call = Call::Read { key, uid: None };
                        return self.launch(Flight { call, ..flight }, effects);
                    }
                    Some(object) => self.take_in(&key, Arc::new(object)),
                    None => {
                        if let Call::Delete { uid, .. } = &flight.call {
                            let uid = uid.clone();
                            self.forget(&key, &uid);
                        }
                        for (pod, uid) in std::mem::take(&mut flight.fenced) {
                            self.forget(&pod, &uid);
                        }
                    }
                }
            }
            (call, Err(error)) => {
                // What does not die is tried again for ever, but people must know.
                let is_news = matches!(call, Call::Fence { .. }) && error.kind().is_transient();
                if is_news || !heals(&error) {
                    for complaint in std::mem::take(&mut flight.complaints) {
                        self.tell(&complaint.with(&error.message), now, effects);
                    }
                }
                return self.doubt(flight, key, effects);
            }
        }
        if let Some(item) = flight.item {
            self.land(item, is_failed, now, rng);
        }
    }

    /// An answer that does not say what is: the store is asked, and the item waits.
    fn doubt(&mut self, flight: Flight, key: Key, effects: &mut Vec<Effect>) {
        let Some(batch) = flight.item.as_ref().and_then(|item| self.batches.get_mut(item)) else { return };
        batch.is_failed = true;
        let uid = match flight.call {
            // Asked about an incarnation that need not be known.
            Call::Read { uid, .. } => uid,
            _ => self.cache.get(&key).map(|known| known.uid().to_owned()),
        };
        let read = Flight::new(Call::Read { key, uid });
        self.launch(Flight { item: flight.item, ..read }, effects);
    }

    /// One of the item's calls is answered; the last one gives the item back.
    fn land(&mut self, item: Item, is_failed: bool, now: Timestamp, rng: &mut dyn RngCore) {
        let Some(batch) = self.batches.get_mut(&item) else { return };
        batch.is_failed |= is_failed;
        batch.open -= 1;
        if batch.open > 0 {
            return;
        }
        let is_failed = batch.is_failed;
        self.batches.remove(&item);
        self.queue.done(&item);
        if is_failed {
            self.queue.retry(item, now, rng);
        } else {
            self.queue.forget(&item);
            self.queue.add(item);
        }
    }
}

/// Whether trying again may help without anybody doing anything.
fn heals(error: &Error) -> bool {
    error.kind().is_transient()
        || matches!(error.kind(), Kind::Conflict | Kind::AlreadyExists | Kind::NotFound | Kind::Gone)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{cpu_micros, now, with};

    /// Controllers, and what they have asked for and not been answered.
    struct Bench {
        controllers: Controllers,
        rng: SmallRng,
        time: Timestamp,
        calls: Vec<(u64, Call)>,
        wake: Option<Timestamp>,
    }

    impl Bench {
        fn new(objects: &[Object]) -> Bench {
            let (rng, controllers) = (SmallRng::seed_from_u64(1), Controllers::new());
            let mut bench = Bench { controllers, rng, time: now(), calls: Vec::new(), wake: None };
            objects.iter().for_each(|object| bench.tell(object));
            bench
        }

        fn synced(objects: &[Object]) -> Bench {
            let mut bench = Bench::new(objects);
            bench.step(Input::Synced);
            bench
        }

        fn tell(&mut self, object: &Object) {
            self.step(Input::Changed(Arc::new(object.clone())));
        }

        fn step(&mut self, input: Input) {
            for effect in self.controllers.step(input, self.time, &mut self.rng) {
                match effect {
                    Effect::Call { id, call } => self.calls.push((id, call)),
                    Effect::WakeAt(time) => self.wake = Some(time),
                }
            }
        }

        /// Answers the only call there is.
        fn answer(&mut self, result: Result<Option<Object>, Error>) {
            let [(id, _)] = self.calls[..] else { panic!("{:?}", self.calls) };
            self.calls.clear();
            self.step(Input::Done { id, result });
        }

        fn wait(&mut self) {
            let due = self.wake.take().expect("a wish to be woken");
            assert!(due > self.time);
            self.time = due;
            self.step(Input::Tick);
        }

        fn asked(&self) -> Vec<String> {
            self.calls.iter().map(|(_, call)| call.to_string()).collect()
        }
    }

    fn set(revision: u64, patch: Value) -> Object {
        let base = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web", "namespace": "n", "uid": "u", "generation": 1,
                "resourceVersion": revision.to_string()},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
            "status": {"replicas": 0, "observedGeneration": 1},
        });
        with(&Object(base), patch)
    }

    fn failure(kind: Kind) -> Error {
        Error::new(kind, "why")
    }

    /// The pod that is being created, as the registry would answer.
    fn created(bench: &Bench, revision: u64) -> Object {
        let [(_, Call::Create { object })] = &bench.calls[..] else { panic!("{:?}", bench.calls) };
        let uid = format!("p{revision}");
        with(object, json!({"metadata": {"uid": uid, "resourceVersion": revision.to_string()}}))
    }

    #[test]
    fn nothing_acts_before_the_first_list_is_complete() {
        let mut bench = Bench::new(&[set(1, json!({}))]);
        bench.step(Input::Tick);
        assert_eq!(bench.asked(), [""; 0]);
        bench.step(Input::Synced);
        assert!(bench.asked()[0].starts_with("create pods/n/web-"));
    }

    #[test]
    fn an_item_in_hand_waits_for_its_answer() {
        let mut bench = Bench::synced(&[set(1, json!({}))]);
        bench.tell(&set(2, json!({"spec": {"replicas": 5}})));
        assert_eq!(bench.calls.len(), 1);
        let pod = created(&bench, 3);
        bench.answer(Ok(Some(pod)));
        // Four more, and an Event for the first: our own write is known without the watch.
        let creations = bench.asked().iter().filter(|call| call.starts_with("create pods")).count();
        assert_eq!(creations, 4);
    }

    #[test]
    fn after_a_failure_the_store_is_asked_before_anything_is_planned() {
        let mut bench = Bench::synced(&[set(1, json!({}))]);
        let pod = created(&bench, 3);
        let name = pod.key().to_string();
        bench.answer(Err(failure(Kind::Timeout)));
        assert_eq!(bench.asked(), [format!("read {name}")]);
        // It was done after all: not done again.
        bench.answer(Ok(Some(pod)));
        bench.wait();
        assert_eq!(bench.asked().iter().filter(|call| call.starts_with("create pods")).count(), 0);
    }

    #[test]
    fn a_failure_is_repeated_under_the_same_name_after_a_while() {
        let mut bench = Bench::synced(&[set(1, json!({}))]);
        let first = bench.asked();
        bench.answer(Err(failure(Kind::Internal)));
        bench.answer(Err(failure(Kind::NotFound)));
        assert_eq!(bench.asked(), [""; 0]);
        bench.wait();
        assert_eq!(bench.asked(), first);
    }

    #[test]
    fn a_refusal_that_time_does_not_heal_is_told() {
        let mut bench = Bench::synced(&[set(1, json!({}))]);
        bench.answer(Err(failure(Kind::Denied)));
        assert!(bench.asked()[0].starts_with("create events/n/web."), "{:?}", bench.asked());
    }

    #[test]
    fn an_answer_to_a_former_self_is_nobodys() {
        let mut bench = Bench::synced(&[set(1, json!({}))]);
        bench.step(Input::Done { id: 99, result: Ok(None) });
        assert_eq!(bench.calls.len(), 1);
    }

    #[test]
    fn a_list_drops_what_it_does_not_name() {
        let mut bench = Bench::synced(&[set(1, json!({"spec": {"replicas": 0}}))]);
        bench.step(Input::Listing);
        bench.step(Input::Synced);
        assert_eq!(bench.controllers.cache().all().count(), 0);
        assert!(bench.controllers.is_idle());
    }

    #[test]
    fn an_answer_from_before_a_list_is_doubted_and_the_item_waits() {
        for is_late in [false, true] {
            let mut bench = Bench::synced(&[set(1, json!({}))]);
            let pod = created(&bench, 3);
            bench.step(Input::Listing);
            if !is_late {
                bench.answer(Ok(Some(pod.clone())));
                assert_eq!(bench.asked(), [""; 0]);
            }
            bench.tell(&set(2, json!({"spec": {"replicas": 2}})));
            bench.step(Input::Synced);
            if is_late {
                bench.answer(Ok(Some(pod.clone())));
            }
            assert_eq!(bench.asked(), [format!("read {}", pod.key())], "the list did not name it");
            bench.answer(Ok(Some(pod)));
            bench.wait();
            assert_eq!(bench.asked().iter().filter(|call| call.starts_with("create pods")).count(), 1);
        }
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let bench = Bench::synced(&[set(1, json!({"spec": {"replicas": 0}}))]);
        assert_eq!((bench.asked(), bench.wake), (vec![], None));
        assert!(bench.controllers.is_idle());
    }

    #[test]
    fn a_timer_that_went_off_early_is_set_again() {
        let mut bench = Bench::synced(&[set(1, json!({}))]);
        bench.answer(Err(failure(Kind::Internal)));
        bench.answer(Err(failure(Kind::NotFound)));
        let due = bench.wake.take();
        bench.step(Input::Tick);
        assert_eq!(bench.wake, due);
    }

    /// A bound that holds even unoptimised; release takes about a tenth. The figure is printed with `--nocapture`.
    #[test]
    fn one_change_among_a_thousand_pods_is_quick() {
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "n", "uid": "s", "resourceVersion": "1"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        let set = set(1, json!({"spec": {"replicas": 1000}}));
        let pod = |n: u32, revision: u32, phase: &str| {
            let address = format!("10.0.{}.{}", n / 250, n % 250 + 2);
            let pod = with(
                &crate::testing::pod(&format!("web-{n:04}"), json!({})),
                crate::testing::ready(&address),
            );
            let revision = revision.to_string();
            let patch = json!({"metadata": {"resourceVersion": revision}, "status": {"phase": phase}});
            crate::testing::owned(with(&pod, patch), &set)
        };
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "node-0", "uid": "node-0", "resourceVersion": "1"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let mut objects = vec![Object(service), Object(node), set.clone()];
        objects.extend((0..1000).map(|n| pod(n, 1, "Running")));
        let mut bench = Bench::synced(&objects);
        let changes = 20;
        let start = cpu_micros();
        for n in 0..changes {
            bench.tell(&pod(n, 2, "Pending"));
            // Answered, so that the next change is looked at, too; this looks once more at the same.
            for (id, _) in std::mem::take(&mut bench.calls) {
                bench.step(Input::Done { id, result: Ok(None) });
            }
        }
        let micros = (cpu_micros() - start) / u64::from(changes);
        println!("looking twice at one changed pod among 1000: {micros} µs");
        assert!(micros < 100_000, "{micros} µs");
    }
}
