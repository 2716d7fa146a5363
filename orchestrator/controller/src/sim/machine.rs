//! Simulated nodes: power, the link to the others, the agent's process; and the daemon's part in them.
//!
//! ```text
//!  killed ──► its processes die ──► seen at once: Ready False ─┐
//!  cut ──► its agent sees nothing, what runs runs on ──► seen after a while: Ready Unknown ─┤
//!                                                                                           ▼
//!  agent made anew ◄── pods removed ◄── claims let go ◄── seen empty ◄── all killed ◄── Call::Fence
//! ```
//! Every arrow of the fence is an event of its own, and the daemon may die between any two; then the fence is
//! forgotten, and what it has done stays. node-0 lives in the daemon: it is never killed, cut or fenced.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Error, Key, Kind, Object, Part, holder, node as words};
use rand::Rng;
use registry::{DeleteOptions, WriteOptions};
use serde_json::json;
use store::Store;

use super::agent::outcome;
use super::faults::happens;
use super::mutant::Mutant;
use super::now;
use super::world::{Event, World};
use crate::kinds::{CLAIMS, NODES, PODS};
use crate::node::{Health, health};
use crate::pod;

/// Most nodes in a world.
pub const NODES_MAX: usize = 4;
/// Milliseconds without a word until a node counts as unreachable.
const GRACE: i64 = 4_000;
/// Milliseconds a fence waits for processes to die.
const DEADLINE: i64 = 5_000;

/// One node.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// People have removed its power.
    pub is_off: bool,
    /// Its link is severed.
    pub is_cut: bool,
    /// Its agent is dead.
    pub is_agent_dead: bool,
    /// Until when the agent cannot be made anew.
    pub agent_back_at: i64,
    /// Counts its agents.
    pub agent: u64,
    /// What the agent saw last: all it knows while the link is severed.
    pub memory: BTreeMap<Key, Arc<Object>>,
    /// Since when nothing is heard of it.
    pub silent_since: Option<i64>,
    /// The daemon is fencing it: nobody else touches it.
    pub fence: Option<Fence>,
}

/// A fence under way.
#[derive(Clone, Debug)]
pub struct Fence {
    life: u64,
    id: u64,
    began: i64,
}

/// What a fence does next.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// Looks whether anything still runs.
    Observe,
    /// Lets one claim go.
    Release,
    /// Removes one pod.
    Remove,
}

impl World {
    /// A node that is there, other than node-0.
    fn some_machine(&mut self) -> Option<usize> {
        (self.nodes > 1).then(|| self.rng.random_range(1..self.nodes))
    }

    /// People remove a node's power, sever its link, or give both back.
    pub fn act_on_machine(&mut self) {
        let Some(node) = self.some_machine() else { return };
        match self.rng.random_range(0..4) {
            0 => self.kill_machine(node),
            1 => self.cut_machine(node),
            _ => return self.heal_machine(node),
        }
        // Somebody cannot wait for the pet, and reaches for its data.
        if self.rng.random_bool(0.5)
            && let Some(claim) = self.held_on(node)
        {
            self.apply_guest(&claim.key());
        }
    }

    /// A claim that a pod of the node holds.
    fn held_on(&self, node: usize) -> Option<Object> {
        let name = self.node_name(node);
        let (_, records) = self.registry.store().list(*CLAIMS, None);
        let claims = records.iter().map(store::Record::object);
        claims.into_iter().find(|it| holder::holder_node(it) == Some(name.as_str()))
    }

    /// A node loses its power: agent and pods die; those that cannot, later.
    pub fn kill_machine(&mut self, node: usize) {
        self.say(format_args!("{} is killed", self.node_name(node)));
        self.machines[node].is_off = true;
        self.machines[node].is_agent_dead = true;
        self.kill_all(node);
        self.schedule(self.time, Event::Manage(node));
    }

    /// A node's link is severed.
    pub fn cut_machine(&mut self, node: usize) {
        self.say(format_args!("{} is cut", self.node_name(node)));
        self.machines[node].is_cut = true;
        self.schedule(self.time, Event::Manage(node));
    }

    /// A node has power and its link.
    pub fn heal_machine(&mut self, node: usize) {
        self.say(format_args!("{} is healed", self.node_name(node)));
        self.machines[node].is_off = false;
        self.machines[node].is_cut = false;
        self.schedule(self.time, Event::Manage(node));
    }

    /// The end of all experiments. Some nodes stay dead or cut: the others must do.
    pub fn mend_machines(&mut self) {
        self.kernel.release_the_unkillable(self.time + 3_000);
        for node in 1..self.nodes {
            match self.rng.random_range(0..5) {
                0 => self.kill_machine(node),
                1 => self.cut_machine(node),
                _ => self.heal_machine(node),
            }
        }
        for node in 0..self.nodes {
            self.machines[node].agent_back_at = 0;
            self.schedule(self.time, Event::Manage(node));
        }
    }

    /// Whether an agent is at work and heard.
    pub fn is_heard(&self, node: usize) -> bool {
        !self.machines[node].is_agent_dead && !self.machines[node].is_cut
    }

    /// All processes of a node are told to die.
    fn kill_all(&mut self, node: usize) {
        for uid in self.kernel.on(node) {
            self.doom(&uid, 500);
        }
    }

    /// A pod's processes are told to die, which they do within `millis`, unless they cannot.
    pub fn doom(&mut self, uid: &str, millis: i64) -> Option<i64> {
        let stuck = happens(&mut self.rng, self.faults.unkillable);
        let millis =
            if stuck { self.rng.random_range(5_000..40_000) } else { self.rng.random_range(1..=millis) };
        let process = self.kernel.get_mut(uid)?;
        process.ready_at = None;
        Some(*process.dead_at.get_or_insert(self.time + millis))
    }

    /// The daemon looks at a node: an agent that is dead is made anew, and the node's condition is said.
    pub fn manage(&mut self, node: usize) {
        let is_manager_up = node == 0 || self.is_daemon_up();
        let machine = &self.machines[node];
        if !is_manager_up || machine.fence.is_some() {
            return;
        }
        if machine.is_agent_dead && !machine.is_off {
            if self.time < machine.agent_back_at {
                let at = machine.agent_back_at;
                return self.schedule(at, Event::Manage(node));
            }
            let machine = &mut self.machines[node];
            machine.is_agent_dead = false;
            machine.agent += 1;
            machine.memory.clear();
            self.say(format_args!("{} has a new agent", self.node_name(node)));
            self.alarm(self.time, node);
        }
        if node > 0 {
            self.judge(node);
        }
    }

    fn judge(&mut self, node: usize) {
        let is_heard = self.is_heard(node);
        let machine = &mut self.machines[node];
        let (status, reason) = if machine.is_off {
            ("False", words::DIED)
        } else if is_heard {
            machine.silent_since = None;
            ("True", "AgentReady")
        } else {
            let since = *machine.silent_since.get_or_insert(self.time);
            if self.time < since + GRACE {
                return self.schedule(since + GRACE, Event::Manage(node));
            }
            ("Unknown", words::STATUS_UNKNOWN)
        };
        let key = self.node_key(node);
        let Ok(object) = self.registry.get(&key) else { return };
        if words::ready(&object) == status {
            return;
        }
        let condition = json!({"type": "Ready", "status": status, "reason": reason,
            "lastTransitionTime": api::time::seconds(self.now())});
        self.patch(&key, json!({"status": {"conditions": [condition]}}), Part::Status);
    }

    /// The daemon died: what it was about to do is forgotten. The one that follows looks at everything.
    pub fn forget_fences(&mut self) {
        self.machines.iter_mut().for_each(|machine| machine.fence = None);
    }

    /// A fence begins. `Some` if it is over at once.
    pub fn begin_fence(
        &mut self,
        life: u64,
        id: u64,
        name: &str,
        uid: &str,
    ) -> Option<Result<Option<Object>, Error>> {
        let key = Key::new(*NODES, "", name);
        let node = (0..self.nodes).find(|node| self.node_name(*node) == name);
        let (Some(node), Ok(object)) = (node, self.registry.get(&key)) else {
            return Some(Err(Error::not_found(&key)));
        };
        if object.uid() != uid || health(&object) == Health::Ready || node == 0 {
            return Some(Err(Error::conflict(&key, "it is not to be fenced")));
        }
        if self.machines[node].fence.is_some() {
            return Some(Err(Error::new(Kind::Busy, "it is being fenced")));
        }
        if !self.pods_on(node).iter().any(|pod| pod.is_deleting()) {
            return Some(Ok(None));
        }
        self.machines[node].fence = Some(Fence { life, id, began: self.time });
        self.kernel.fence(node, self.machines[node].agent);
        if self.mutant == Some(Mutant::Immortal) {
            // The agent works on.
        } else {
            self.machines[node].is_agent_dead = true;
        }
        if self.mutant != Some(Mutant::Blind) {
            self.kill_all(node);
        }
        let first = match self.mutant {
            Some(Mutant::Blind) => Phase::Release,
            Some(Mutant::Early) => {
                // Claims first, then the rest.
                while self.release_one(node) {}
                Phase::Observe
            }
            _ => Phase::Observe,
        };
        self.phase(node, first);
        None
    }

    fn phase(&mut self, node: usize, phase: Phase) {
        let at = self.time + self.rng.random_range(1..100);
        self.schedule(at, Event::Fence(node, phase));
    }

    /// The next step of a fence.
    pub fn fence(&mut self, node: usize, phase: Phase) {
        // What a dead daemon was about to do does not happen.
        let Some(fence) = self.machines[node].fence.clone().filter(|fence| fence.life == self.life()) else {
            return;
        };
        match phase {
            Phase::Observe if !self.kernel.on(node).is_empty() => {
                if self.time - fence.began < DEADLINE {
                    return self.phase(node, Phase::Observe);
                }
                let names = self.kernel.on(node).join(", ");
                self.end_fence(node, Err(Error::new(Kind::Busy, format!("{names} do not die"))));
            }
            Phase::Observe => self.phase(node, Phase::Release),
            Phase::Release => {
                let next = if self.release_one(node) { Phase::Release } else { Phase::Remove };
                self.phase(node, next);
            }
            Phase::Remove => match self.pods_on(node).first().cloned() {
                Some(pod) => {
                    let word = DeleteOptions {
                        grace_period_secs: Some(0),
                        uid: Some(pod.uid().into()),
                        ..DeleteOptions::default()
                    };
                    let answer = now(self.registry.delete(&pod.key(), &word));
                    self.say(format_args!("fence removes {}: {}", pod.key(), outcome(&answer)));
                    self.phase(node, Phase::Remove);
                }
                None => self.end_fence(node, Ok(None)),
            },
        }
    }

    fn end_fence(&mut self, node: usize, result: Result<Option<Object>, Error>) {
        let Some(fence) = self.machines[node].fence.take() else { return };
        self.say(format_args!("fence of {}: {}", self.node_name(node), outcome(&result)));
        self.answer(fence.life, fence.id, result);
        let at = self.time + self.rng.random_range(1..50);
        self.schedule(at, Event::Manage(node));
    }

    /// Lets one claim go that a pod of the node holds.
    fn release_one(&mut self, node: usize) -> bool {
        let Some(mut claim) = self.held_on(node) else { return false };
        holder::let_go(&mut claim);
        let key = claim.key();
        let answer = now(self.registry.update(&key, claim.0, Part::Main, &WriteOptions::default()));
        self.say(format_args!("fence lets {key} go: {}", outcome(&answer)));
        true
    }

    fn pods_on(&self, node: usize) -> Vec<Object> {
        let name = self.node_name(node);
        let (_, records) = self.registry.store().list(*PODS, None);
        let pods = records.iter().map(store::Record::object);
        pods.filter(|it| pod::node(it) == Some(name.as_str())).collect()
    }

    /// A node's name.
    pub fn node_name(&self, node: usize) -> String {
        format!("node-{node}")
    }

    /// A node's key.
    pub fn node_key(&self, node: usize) -> Key {
        Key::new(*NODES, "", self.node_name(node))
    }
}
