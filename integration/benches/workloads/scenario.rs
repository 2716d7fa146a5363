//! What every workload must bear, in one order, with a writer at work all the time.

use crate::PROGRAM;
use crate::store::Workload;
use crate::writer::{Pause, Writer, now, read_from};
use integration::harness::{Yard, first_status, is_ready, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// Nodes that may be killed; node-0 takes no pets.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// More than any blow may cost: a quorum is kept, or a pet is back.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// A node that is silent for so long is taken for lost: the daemon's default; and where the others carry on, longer than
/// they need for that on a busy machine, so that it is seen to be them.
pub const GRACE: Duration = Duration::from_secs(4);
const GRACE_OF_QUORUM: Duration = Duration::from_secs(10);
/// Acknowledged writes between two blows.
const CALM: usize = 100;

/// A yard of three nodes with the workload's pets on them, all ready.
struct Stage {
    yard: Yard,
    workload: &'static Workload,
}

/// A yard of three nodes that are ready, and of node-0, which takes no pets.
pub fn yard(name: &str, grace: Duration) -> Yard {
    let mut yard = Yard::prepare(PROGRAM, name);
    yard.daemon_args(&[&format!("--node-grace-period={}s", grace.as_secs())]);
    yard.start_daemon();
    for node in NODES {
        yard.ok(&["node", "add", node]);
    }
    yard.ok(&["node", "cordon", "node-0"]);
    NODES.iter().for_each(|node| await_node(&yard, node));
    yard
}

impl Stage {
    fn set(workload: &'static Workload) -> Stage {
        let yard = yard(workload.name, grace(workload));
        let stage = Stage { yard, workload };
        let begun = Instant::now();
        stage.yard.apply(workload.manifest);
        stage.ready(workload.replicas);
        let pets: Vec<String> = stage.pets().iter().map(placed).collect();
        println!("{}: {} ready after {:.1} s", workload.name, pets.join(", "), begun.elapsed().as_secs_f64());
        stage
    }

    fn pets(&self) -> Vec<Value> {
        let mut pets = self.yard.list(&["pods", "-l", &format!("app={}", self.workload.name)]);
        pets.sort_by_key(|pet| pet["metadata"]["name"].to_string());
        pets
    }

    fn ready(&self, count: usize) {
        self.yard.ready_count(&format!("app={}", self.workload.name), count);
    }

    fn set_object(&self) -> Value {
        self.yard.get(&["statefulset", self.workload.name]).expect("the set is there")
    }

    /// What the pet's claim says of the last fence that released it.
    fn proof(&self, pet: &str) -> Value {
        let claim = self.yard.get(&["pvc", &format!("data-{pet}")]).expect("the claim is there");
        let text = claim["metadata"]["annotations"]["podyard.io/fenced"].as_str().expect("it was fenced");
        serde_json::from_str(text).expect("the proof is JSON")
    }

    fn node_of(&self, pet: &str) -> String {
        let pod = self.yard.get(&["pod", pet]).expect("the pet is there");
        pod["spec"]["nodeName"].as_str().expect("it is on a node").to_owned()
    }
}

fn placed(pet: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("nowhere").to_owned();
    format!("{} on {}", text(&pet["metadata"]["name"]), text(&pet["spec"]["nodeName"]))
}

fn await_node(yard: &Yard, node: &str) {
    until(&format!("node {node} is ready"), || match yard.get(&["node", node]) {
        Some(object) if is_ready(&object) => Ok(()),
        other => Err(other.map(|node| node["status"]["conditions"].clone())),
    });
}

/// Everything.
pub fn run(workload: &'static Workload) {
    let stage = Stage::set(workload);
    let writer = Writer::start(&stage.yard, workload);
    writer.progress(CALM);
    pet_killed(&stage, &writer);
    node_lost(&stage, &writer, Loss::Kill);
    node_lost(&stage, &writer, Loss::Cut);
    updated(&stage, &writer);
    scaled(&stage, &writer);
    let written = writer.stop();
    read_back(&stage, &written);
    println!("{}: passed", workload.name);
}

fn told(what: &str, pause: Pause, since: u64) {
    let after = Duration::from_micros(pause.ended.saturating_sub(since));
    println!(
        "  {what}: longest time without an acknowledged write {} ms, over {} ms after it began",
        pause.length.as_millis(),
        after.as_millis()
    );
    assert!(pause.length < PAUSE_MAX, "writes stopped for {:?}", pause.length);
}

/// SIGKILL for every process of the pet that matters most.
fn pet_killed(stage: &Stage, writer: &Writer) {
    let pet = (stage.workload.leader)(&stage.yard);
    let pod = stage.yard.ready(&pet);
    let restarts = first_status(&pod)["restartCount"].as_u64().unwrap_or(0);
    let pids = stage.yard.pids(&pet);
    assert!(!pids.is_empty(), "{pet} has processes");
    let blow = now();
    for pid in &pids {
        match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
            // Its parent went first, and took it along.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => panic!("kill {pid}: {error}"),
        }
    }
    stage.yard.pod_until(&pet, "was restarted", |pod| {
        first_status(pod)["restartCount"].as_u64() > Some(restarts) && is_ready(pod)
    });
    writer.progress_after(now());
    told(&format!("{pet} killed ({} processes)", pids.len()), writer.longest_pause(blow), blow);
    writer.progress(CALM);
}

fn grace(workload: &Workload) -> Duration {
    if workload.has_quorum { GRACE_OF_QUORUM } else { GRACE }
}

/// How a node is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// It loses its power: the kernel says so at once.
    Kill,
    /// It lives, but nobody hears it: lost after [`grace`] of silence.
    Cut,
}

impl Loss {
    fn verb(self) -> &'static str {
        match self {
            Loss::Kill => "kill",
            Loss::Cut => "cut",
        }
    }
}

/// The node of the pet that matters most is lost, and later healed.
fn node_lost(stage: &Stage, writer: &Writer, loss: Loss) {
    let pet = (stage.workload.leader)(&stage.yard);
    let old = stage.yard.ready(&pet)["metadata"]["uid"].clone();
    let (blow, node) = fell(stage, &pet, loss);
    stage.ready(stage.workload.replicas);
    writer.progress_after(now());
    let to = stage.node_of(&pet);
    assert_ne!(to, node, "{pet} moved");
    let proof = stage.proof(&pet);
    assert_eq!(
        (&proof["node"], &proof["holder"]),
        (&json!(node), &old),
        "{pet}'s claim was released by a fence"
    );
    let pause = writer.longest_pause(blow);
    told(&format!("{node} lost by {}, {pet} moved to {to}", loss.verb()), pause, blow);
    if loss == Loss::Cut && stage.workload.has_quorum {
        assert!(pause.length < GRACE_OF_QUORUM, "the others carried on before {pet} moved: {pause:?}");
    }
    stage.yard.ok(&["node", "heal", &node]);
    await_node(&stage.yard, &node);
    if stage.workload.has_quorum {
        spread_again(stage, &pet, &node);
    }
    writer.progress(CALM);
}

/// Sends a pet that had to share a node back to the one that is empty now: the next node to be lost must not take two
/// members along, a majority.
fn spread_again(stage: &Stage, pet: &str, node: &str) {
    let old = stage.yard.ready(pet)["metadata"]["uid"].clone();
    stage.yard.ok(&["delete", "pod", pet]);
    stage.yard.pod_until(pet, "is back", |pod| pod["metadata"]["uid"] != old && is_ready(pod));
    assert_eq!(stage.node_of(pet), node, "{pet} prefers a node without another member");
}

/// Loses the node of a pet, and waits until the pet's pod was replaced; when that began, and the node.
fn fell(stage: &Stage, pet: &str, loss: Loss) -> (u64, String) {
    let old = stage.yard.ready(pet)["metadata"]["uid"].clone();
    let node = stage.node_of(pet);
    let blow = now();
    stage.yard.ok(&["node", loss.verb(), &node]);
    until(&format!("another {pet} takes over"), || match stage.yard.get(&["pod", pet]) {
        Some(pod) if pod["metadata"]["uid"] != old => Ok(()),
        other => Err(other.map(|pod| pod["metadata"].clone())),
    });
    (blow, node)
}

/// A changed template, pet by pet.
fn updated(stage: &Stage, writer: &Writer) {
    let before: BTreeSet<String> = uids(stage);
    let begun = now();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"workloads/round": "2"}}}}});
    stage.yard.ok(&["patch", "statefulset", stage.workload.name, "-p", &patch.to_string()]);
    until("every pet is of the new revision, and ready", || {
        let set = stage.set_object();
        let status = &set["status"];
        let replicas = stage.workload.replicas as u64;
        let all = |field: &str| status[field].as_u64() == Some(replicas);
        let seen = status["observedGeneration"] == set["metadata"]["generation"];
        if seen && all("updatedReplicas") && all("readyReplicas") && uids(stage).is_disjoint(&before) {
            Ok(())
        } else {
            Err(status.clone())
        }
    });
    let took = Duration::from_micros(now() - begun);
    writer.progress(CALM);
    told(
        &format!("rolling update of {} pets in {:.1} s", stage.workload.replicas, took.as_secs_f64()),
        writer.longest_pause(begun),
        begun,
    );
}

fn uids(stage: &Stage) -> BTreeSet<String> {
    stage.pets().iter().map(|pet| pet["metadata"]["uid"].to_string()).collect()
}

/// Smaller and larger, as the workload says.
fn scaled(stage: &Stage, writer: &Writer) {
    let name = stage.workload.name;
    let mut size = stage.workload.replicas;
    for wanted in stage.workload.scales {
        let begun = now();
        for leaving in (*wanted..size).rev() {
            (stage.workload.leave)(&stage.yard, &format!("{name}-{leaving}"));
        }
        stage.yard.ok(&["scale", &format!("statefulset/{name}"), "--replicas", &wanted.to_string()]);
        stage.ready(*wanted);
        for joined in size..*wanted {
            (stage.workload.joined)(&stage.yard, &format!("{name}-{joined}"));
        }
        let took = Duration::from_micros(now() - begun);
        writer.progress(CALM);
        let what = format!("scaled from {size} to {wanted} in {:.1} s", took.as_secs_f64());
        told(&what, writer.longest_pause(begun), begun);
        size = *wanted;
    }
}

/// No acknowledged write is missing, on any pet.
fn read_back(stage: &Stage, written: &BTreeSet<u64>) {
    let last = written.len() as u64;
    for pet in stage.pets() {
        let name = pet["metadata"]["name"].as_str().expect("a name").to_owned();
        let begun = Instant::now();
        let read = until(&format!("{name} has all {last} acknowledged writes"), || {
            let read = read_from(&stage.yard, stage.workload, &name)?;
            let missing: Vec<u64> = written.difference(&read).copied().take(10).collect();
            if missing.is_empty() { Ok(read) } else { Err(format!("missing: {missing:?} …")) }
        });
        // One more may have been written, and its answer not awaited.
        assert!(read.iter().all(|number| (1..=last + 1).contains(number)), "nothing was made up");
        println!(
            "  {name}: all {last} acknowledged writes read back after {} ms",
            begun.elapsed().as_millis()
        );
    }
}

/// Kills the node of the leader again and again; how long writes stopped. The times are added to those of `file`.
pub fn failover(workload: &'static Workload, kills: usize, file: Option<&Path>) {
    let stage = Stage::set(workload);
    let writer = Writer::start(&stage.yard, workload);
    let mut times = Vec::new();
    for round in 1..=kills {
        writer.progress(CALM);
        let pet = (workload.leader)(&stage.yard);
        let (blow, node) = fell(&stage, &pet, Loss::Kill);
        // The new pod is made after the old one is proved gone: this write is the new one's.
        writer.progress_after(now());
        let pause = writer.longest_pause(blow);
        let time = Duration::from_micros(pause.ended - blow);
        times.push(time);
        stage.yard.ok(&["node", "heal", &node]);
        await_node(&stage.yard, &node);
        stage.ready(workload.replicas);
        let to = stage.node_of(&pet);
        println!(
            "  {round}: {node} killed: {} ms until a write succeeds; {pet} is on {to}",
            time.as_millis()
        );
    }
    let written = writer.stop();
    read_back(&stage, &written);
    if let Some(file) = file {
        times.extend(known(file));
        let text: String = times.iter().map(|time| format!("{}\n", time.as_micros())).collect();
        std::fs::write(file, text).expect("keep the times");
    }
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_millis();
    println!(
        "{}: node killed to next acknowledged write: p50 {} ms, p90 {}, p99 {}, most {} (n = {})",
        workload.name,
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        times.len()
    );
}

/// Times of runs before, in microseconds, one a line; none if there is no such file.
fn known(file: &Path) -> Vec<Duration> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| Duration::from_micros(line.parse().expect("microseconds"))).collect()
}
