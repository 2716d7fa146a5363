//! Simulated node agents: pods into processes, and back into status.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Object, Part, holder};
use rand::Rng;
use registry::{DeleteOptions, WriteOptions};
use serde_json::{Value, json};

use super::faults::happens;
use super::kernel::Process;
use super::mutant::Mutant;
use super::user::is_broken;
use super::world::{Event, World};
use super::{Violation, now};
use crate::kinds::{CLAIMS, PODS, VOLUMES};
use crate::pod;

impl World {
    /// One agent looks at its pods and at what runs, and takes the next step for each.
    pub fn agent(&mut self, node: usize) -> Result<(), Violation> {
        if self.machines[node].is_agent_dead {
            return Ok(());
        }
        if happens(&mut self.rng, self.faults.agent) {
            // Dies here; what it had in mind is lost, what runs runs on.
            let back = self.time + self.rng.random_range(500..8_000);
            self.machines[node].is_agent_dead = true;
            self.machines[node].agent_back_at = back;
            self.schedule(self.time, Event::Manage(node));
            self.say(format_args!("{} agent down", self.node_name(node)));
            return Ok(());
        }
        let (name, is_greedy) = (self.node_name(node), self.mutant == Some(Mutant::Everywhere));
        let is_cut = self.machines[node].is_cut;
        if !is_cut {
            let pods = self.checker.objects().filter(|it| it.kind() == PODS.kind);
            let mine = pods.filter(|pod| is_greedy || pod::node(pod) == Some(name.as_str()));
            self.machines[node].memory = mine.map(|pod| (pod.key(), Arc::clone(pod))).collect();
        }
        let pods: Vec<Arc<Object>> = self.machines[node].memory.values().cloned().collect();
        for pod in &pods {
            self.tend(node, pod)?;
        }
        // What runs without an object: an orphan, to be ended. Not if it cannot be known.
        if !is_cut && !is_greedy {
            let known: Vec<&str> = pods.iter().map(|pod| pod.uid()).collect();
            let orphans = self.kernel.on(node).into_iter().filter(|uid| !known.contains(&uid.as_str()));
            for uid in orphans.collect::<Vec<String>>() {
                self.kill(node, &uid);
            }
        }
        Ok(())
    }

    fn tend(&mut self, node: usize, pod: &Object) -> Result<(), Violation> {
        let (key, uid) = (pod.key(), pod.uid());
        if pod.is_deleting() {
            let is_dead = self.kill(node, uid);
            if self.machines[node].is_cut {
                return Ok(());
            }
            if is_dead && !self.let_go(pod) {
                let later = self.time + 100;
                self.alarm(later, node);
                return Ok(());
            }
            if is_dead || self.mutant == Some(Mutant::Unfenced) {
                let word = DeleteOptions {
                    grace_period_secs: Some(0),
                    uid: Some(uid.into()),
                    ..DeleteOptions::default()
                };
                let answer = now(self.registry.delete(&key, &word));
                self.say(format_args!("{} says {key} is gone: {}", self.node_name(node), outcome(&answer)));
            }
            return Ok(());
        }
        if pod::is_terminal(pod) || pod::address(pod).is_none() {
            return Ok(());
        }
        match self.kernel.get(uid).filter(|process| process.node == node) {
            None => self.run_pod(node, pod),
            // Told to die when the node lost its power: it starts anew after that.
            Some(Process { dead_at: Some(at), .. }) => {
                let at = *at;
                self.alarm(at, node);
                Ok(())
            }
            Some(process) => {
                let is_ready = process.ready_at.is_some_and(|at| at <= self.time);
                if is_ready && happens(&mut self.rng, self.faults.exit) {
                    self.exit(node, pod);
                } else if is_ready != pod::is_ready(pod) || pod.get_str("status.phase") != Some("Running") {
                    self.report(node, pod, "Running", is_ready);
                }
                Ok(())
            }
        }
    }

    fn run_pod(&mut self, node: usize, pod: &Object) -> Result<(), Violation> {
        // Who cannot write cannot take a claim.
        if self.machines[node].is_cut && pod::claims(pod).next().is_some() {
            return Ok(());
        }
        let mut claims = BTreeMap::new();
        for name in pod::claims(pod) {
            let Ok(claim) = self.registry.get(&Key::new(*CLAIMS, pod.namespace(), name)) else {
                return Ok(());
            };
            let Some(volume) = claim.get_str("spec.volumeName") else { return Ok(()) };
            if claim.get_str("status.phase") != Some("Bound") {
                return Ok(());
            }
            let Ok(volume) = self.registry.get(&Key::new(*VOLUMES, "", volume)) else { return Ok(()) };
            if volume.get_str("spec.claimRef.uid") != Some(claim.uid()) {
                return Ok(());
            }
            let handle = volume.get_str("spec.csi.volumeHandle").unwrap_or(volume.name()).to_owned();
            claims.insert(handle, claim.uid().to_owned());
            if !self.hold(node, pod, claim) {
                let later = self.time + 500;
                self.alarm(later, node);
                return Ok(());
            }
        }
        let is_broken = is_broken(pod);
        let ready_at = self.time + self.rng.random_range(20..2_000);
        self.say(format_args!("{} starts {} {}", self.node_name(node), pod.key(), pod.uid()));
        let process = Process {
            key: pod.key(),
            node,
            agent: self.machines[node].agent,
            volumes: claims.keys().cloned().collect(),
            ready_at: (!is_broken).then_some(ready_at),
            dead_at: None,
        };
        self.kernel.start(pod.uid(), process, &claims)?;
        self.alarm(ready_at, node);
        self.report(node, pod, "Running", false);
        Ok(())
    }

    /// Takes a claim for a pod, as agents do: whoever holds it must be gone from this node, or have let go.
    fn hold(&mut self, node: usize, pod: &Object, mut claim: Object) -> bool {
        let other = holder::holder(&claim).filter(|uid| *uid != pod.uid());
        if other.is_none() && holder::holder(&claim).is_some() {
            return true;
        }
        if let Some(other) = other {
            let is_here = holder::holder_node(&claim) == Some(self.node_name(node).as_str());
            let is_presumed_dead = !is_here && self.mutant == Some(Mutant::Presuming);
            if !(is_presumed_dead || is_here && self.kernel.get(other).is_none()) {
                return false;
            }
        }
        let since = api::time::seconds(self.now());
        holder::hold(&mut claim, pod.uid(), &self.node_name(node), &since);
        let key = claim.key();
        let answer = now(self.registry.update(&key, claim.0, Part::Main, &WriteOptions::default()));
        self.say(format_args!("{} holds {key}: {}", pod.key(), outcome(&answer)));
        answer.is_ok()
    }

    /// Lets a pod's claims go; true once it holds none.
    fn let_go(&mut self, pod: &Object) -> bool {
        for name in pod::claims(pod) {
            let key = Key::new(*CLAIMS, pod.namespace(), name);
            let Ok(mut claim) = self.registry.get(&key) else { continue };
            if holder::holder(&claim) == Some(pod.uid()) {
                holder::let_go(&mut claim);
                let answer = now(self.registry.update(&key, claim.0, Part::Main, &WriteOptions::default()));
                self.say(format_args!("{} lets {key} go: {}", pod.key(), outcome(&answer)));
                if answer.is_err() {
                    return false;
                }
            }
        }
        true
    }

    /// Tells a pod's processes to die; true once they are seen dead.
    fn kill(&mut self, node: usize, uid: &str) -> bool {
        match self.doom(uid, 3_000) {
            None => true,
            Some(dead_at) => {
                self.alarm(dead_at, node);
                false
            }
        }
    }

    /// Something exits by itself: most are restarted in place, some end the pod.
    fn exit(&mut self, node: usize, pod: &Object) {
        if self.rng.random_ratio(1, 3) {
            self.say(format_args!("{} failed", pod.key()));
            self.kernel.reap(pod.uid());
            self.report(node, pod, "Failed", false);
        } else {
            let ready_at = self.time + self.rng.random_range(10..3_000);
            if let Some(process) = self.kernel.get_mut(pod.uid()) {
                process.ready_at = Some(ready_at);
            }
            self.say(format_args!("{} restarts", pod.key()));
            self.alarm(ready_at, node);
            self.report(node, pod, "Running", false);
        }
    }

    fn report(&mut self, node: usize, pod: &Object, phase: &str, is_ready: bool) {
        if self.machines[node].is_cut {
            return;
        }
        let mut object = pod.clone();
        let old = pod.get_array("status.conditions");
        let mut conditions: Vec<Value> = old.iter().filter(|it| it["type"] != "Ready").cloned().collect();
        conditions.push(json!({
            "type": "Ready",
            "status": if is_ready { "True" } else { "False" },
            "lastTransitionTime": api::time::seconds(self.now()),
        }));
        object.set("status.phase", phase);
        object.set("status.conditions", conditions);
        let written = now(self.registry.update(&pod.key(), object.0, Part::Status, &WriteOptions::default()));
        self.say(format_args!("{} is {phase}, ready {is_ready}: {}", pod.key(), outcome(&written)));
    }
}

/// One word about an answer.
pub fn outcome<T>(answer: &Result<T, api::Error>) -> String {
    match answer {
        Ok(_) => "ok".into(),
        Err(error) => format!("{:?}", error.kind()),
    }
}
