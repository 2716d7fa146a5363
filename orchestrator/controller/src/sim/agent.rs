//! Simulated node agents: pods into processes, and back into status.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Object, Part};
use rand::Rng;
use registry::{DeleteOptions, WriteOptions};
use serde_json::{Value, json};

use super::faults::happens;
use super::kernel::Process;
use super::mutant::Mutant;
use super::user::is_broken;
use super::world::World;
use super::{Violation, now};
use crate::kinds::{CLAIMS, PODS, VOLUMES};
use crate::pod;

/// Nodes in a world.
pub const NODES: usize = 2;

/// A node's name.
pub fn node_name(node: usize) -> String {
    format!("node-{node}")
}

impl World {
    /// One agent looks at its pods and at what runs, and takes the next step for each.
    pub fn agent(&mut self, node: usize) -> Result<(), Violation> {
        if self.time < self.agents_down_until[node] {
            return Ok(());
        }
        if happens(&mut self.rng, self.faults.agent) {
            // Dies here; what it had in mind is lost, what runs runs on.
            let back = self.time + self.rng.random_range(500..5_000);
            self.agents_down_until[node] = back;
            self.alarm(back, node);
            self.say(format_args!("{} agent down", node_name(node)));
            return Ok(());
        }
        let pods: Vec<Arc<Object>> =
            self.checker.objects().filter(|it| it.kind() == PODS.kind).cloned().collect();
        let is_greedy = self.mutant == Some(Mutant::Everywhere);
        let mine = |pod: &&Arc<Object>| is_greedy || pod::node(pod) == Some(node_name(node).as_str());
        for pod in pods.iter().filter(mine) {
            self.tend(node, pod)?;
        }
        // What runs without an object: an orphan, to be fenced.
        let known: Vec<&str> = pods.iter().map(|pod| pod.uid()).collect();
        let orphans = self.kernel.all().filter(|(uid, it)| it.node == node && !known.contains(&uid.as_str()));
        let orphans: Vec<String> = orphans.map(|(uid, _)| uid.clone()).collect();
        for uid in orphans {
            self.kill(node, &uid);
        }
        Ok(())
    }

    fn tend(&mut self, node: usize, pod: &Object) -> Result<(), Violation> {
        let (key, uid) = (pod.key(), pod.uid());
        if pod.is_deleting() {
            let is_dead = self.kill(node, uid);
            if is_dead || self.mutant == Some(Mutant::Unfenced) {
                let word = DeleteOptions {
                    grace_period_secs: Some(0),
                    uid: Some(uid.into()),
                    ..DeleteOptions::default()
                };
                let answer = now(self.registry.delete(&key, &word));
                self.say(format_args!("{} says {key} is gone: {}", node_name(node), outcome(&answer)));
            }
            return Ok(());
        }
        if pod::is_terminal(pod) || pod::address(pod).is_none() {
            return Ok(());
        }
        match self.kernel.get(uid).filter(|process| process.node == node) {
            None => self.run_pod(node, pod),
            Some(process) => {
                let is_ready = process.ready_at.is_some_and(|at| at <= self.time);
                if is_ready && happens(&mut self.rng, self.faults.exit) {
                    self.exit(node, pod);
                } else if is_ready != pod::is_ready(pod) || pod.get_str("status.phase") != Some("Running") {
                    self.report(pod, "Running", is_ready);
                }
                Ok(())
            }
        }
    }

    fn run_pod(&mut self, node: usize, pod: &Object) -> Result<(), Violation> {
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
            if self.kernel.holder(&handle).is_some() {
                let later = self.time + 500;
                self.alarm(later, node);
                return Ok(());
            }
            claims.insert(handle, claim.uid().to_owned());
        }
        let is_broken = is_broken(pod);
        let ready_at = self.time + self.rng.random_range(20..2_000);
        self.say(format_args!("{} starts {} {}", node_name(node), pod.key(), pod.uid()));
        let process = Process {
            key: pod.key(),
            node,
            volumes: claims.keys().cloned().collect(),
            ready_at: (!is_broken).then_some(ready_at),
            dead_at: None,
        };
        self.kernel.start(pod.uid(), process, &claims)?;
        self.alarm(ready_at, node);
        self.report(pod, "Running", false);
        Ok(())
    }

    /// Tells a pod's processes to die; true once they are seen dead.
    fn kill(&mut self, node: usize, uid: &str) -> bool {
        let dies = self.time + self.rng.random_range(10..3_000);
        let Some(process) = self.kernel.get_mut(uid) else { return true };
        let dead_at = *process.dead_at.get_or_insert(dies);
        process.ready_at = None;
        if dead_at <= self.time {
            self.kernel.reap(uid);
            return true;
        }
        self.alarm(dead_at, node);
        false
    }

    /// Something exits by itself: most are restarted in place, some end the pod.
    fn exit(&mut self, node: usize, pod: &Object) {
        if self.rng.random_ratio(1, 3) {
            self.say(format_args!("{} failed", pod.key()));
            self.kernel.reap(pod.uid());
            self.report(pod, "Failed", false);
        } else {
            let ready_at = self.time + self.rng.random_range(10..3_000);
            if let Some(process) = self.kernel.get_mut(pod.uid()) {
                process.ready_at = Some(ready_at);
            }
            self.say(format_args!("{} restarts", pod.key()));
            self.alarm(ready_at, node);
            self.report(pod, "Running", false);
        }
    }

    fn report(&mut self, pod: &Object, phase: &str, is_ready: bool) {
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
