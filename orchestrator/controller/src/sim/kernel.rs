//! What really runs, on all nodes. It knows no objects, survives every crash, and checks what must never be.

use std::collections::BTreeMap;

use api::Key;

use super::Violation;

/// The processes of one pod.
#[derive(Clone, Debug)]
pub struct Process {
    /// The pod's name.
    pub key: Key,
    /// Its node.
    pub node: usize,
    /// The node's agent that started it, counted.
    pub agent: u64,
    /// Volumes it has open.
    pub volumes: Vec<String>,
    /// When it becomes ready; never, for a broken image.
    pub ready_at: Option<i64>,
    /// When the last process is dead, once it has been told to die.
    pub dead_at: Option<i64>,
}

/// All processes, by pod uid, and whose data is in which volume.
#[derive(Debug, Default)]
pub struct Kernel {
    pods: BTreeMap<String, Process>,
    /// Volume to the uid of the claim whose data it holds.
    data: BTreeMap<String, String>,
    /// The last agent of each node that was fenced.
    fenced: BTreeMap<usize, u64>,
}

impl Kernel {
    /// The processes of a pod.
    pub fn get(&self, uid: &str) -> Option<&Process> {
        self.pods.get(uid)
    }

    /// The processes of a pod.
    pub fn get_mut(&mut self, uid: &str) -> Option<&mut Process> {
        self.pods.get_mut(uid)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&String, &Process)> {
        self.pods.iter()
    }

    /// Time passes: what was to die has died, whoever looks.
    pub fn advance(&mut self, now: i64) {
        self.pods.retain(|_, process| process.dead_at.is_none_or(|at| at > now));
    }

    /// The pods, by uid, that run on a node.
    pub fn on(&self, node: usize) -> Vec<String> {
        let here = self.pods.iter().filter(|(_, process)| process.node == node);
        here.map(|(uid, _)| uid.clone()).collect()
    }

    /// From now on nothing starts on a node that this agent of it, or one before, wants started.
    pub fn fence(&mut self, node: usize, agent: u64) {
        self.fenced.insert(node, agent);
    }

    /// What does not die does so by then.
    pub fn release_the_unkillable(&mut self, by: i64) {
        for at in self.pods.values_mut().filter_map(|process| process.dead_at.as_mut()) {
            *at = (*at).min(by);
        }
    }

    /// Whether something runs under that name.
    pub fn named(&self, key: &Key) -> Option<&str> {
        self.pods.iter().find(|(_, process)| process.key == *key).map(|(uid, _)| uid.as_str())
    }

    /// Who has a volume open.
    pub fn holder(&self, volume: &str) -> Option<&str> {
        let holds = |process: &Process| process.volumes.iter().any(|it| it == volume);
        self.pods.iter().find(|(_, process)| holds(process)).map(|(uid, _)| uid.as_str())
    }

    /// Starts a pod. `claims` names each volume with the uid of the claim it is mounted for.
    pub fn start(
        &mut self,
        uid: &str,
        process: Process,
        claims: &BTreeMap<String, String>,
    ) -> Result<(), Violation> {
        if let Some(other) = self.named(&process.key) {
            return Err(Violation {
                law: "an identity runs at most once",
                detail: format!("{} starts as {uid} while {other} runs", process.key),
            });
        }
        if self.fenced.get(&process.node).is_some_and(|agent| process.agent <= *agent) {
            return Err(Violation {
                law: "nothing starts on a fenced node before its agent is new",
                detail: format!("{} starts as {uid} on node-{}", process.key, process.node),
            });
        }
        for (volume, claim) in claims {
            if let Some(holder) = self.holder(volume) {
                return Err(Violation {
                    law: "storage never changes owner unfenced",
                    detail: format!("{volume} is opened by {uid} while {holder} has it open"),
                });
            }
            let owner = self.data.entry(volume.clone()).or_insert_with(|| claim.clone());
            if owner != claim {
                return Err(Violation {
                    law: "data never changes owner",
                    detail: format!("{volume} of claim {owner} is opened for claim {claim}"),
                });
            }
        }
        self.pods.insert(uid.into(), process);
        Ok(())
    }

    /// The last process is dead, and its group seen empty.
    pub fn reap(&mut self, uid: &str) {
        self.pods.remove(uid);
    }
}
