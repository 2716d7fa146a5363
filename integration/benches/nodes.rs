//! The figures about nodes in `integration/README.md`: `cargo bench -p integration --bench nodes [-- WORD…]`.
//!
//! Downtime is what a client on the host sees that asks the pet's virtual IP every 3 ms: the longest time between two
//! answers around the blow.

use integration::caller::Caller;
use integration::harness::{Yard, until};
use integration::torture::{manifest, processes};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");
const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if !integration::harness::is_root("the benchmarks") {
        return;
    }
    let benches: [(&str, fn()); 5] = [
        ("kill", || failover("kill", 100)),
        ("cut", || failover("cut", 20)),
        ("hundred", hundred_pods),
        ("restart", restart_with_200_pods),
        ("idle", idle),
    ];
    for (name, bench) in benches {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            bench();
        }
    }
}

fn yard(test: &str, nodes: &[&str]) -> Yard {
    let mut yard = Yard::prepare(PROGRAM, test);
    yard.daemon_args(&["--node-grace-period=2s"]);
    yard.start_daemon();
    for node in nodes {
        yard.ok(&["node", "add", node]);
    }
    yard
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    format!(
        "p50 {:.0} ms, min {:.0}, p90 {:.0}, p99 {:.0}, max {:.0} (n = {})",
        at(0.5),
        at(0.0),
        at(0.9),
        at(0.99),
        at(1.0),
        times.len()
    )
}

/// A trivial pet loses its node so many times.
fn failover(verb: &str, times: u32) {
    let yard = yard("bench", &NODES);
    yard.apply(&manifest(1));
    yard.ready_count("app=ledger", 1);
    let caller =
        Caller::start(yard.run_dir().join("netns/host"), yard.vip("ledger-0").parse().expect("an address"));
    let mut gaps = Vec::new();
    for _ in 0..times {
        let answered = |more: u64| {
            let known = caller.record().answered;
            until("the pet answers", || {
                let record = caller.record();
                if record.answered >= known + more { Ok(()) } else { Err(record) }
            });
        };
        answered(20);
        let pod = yard.ready("ledger-0");
        let node = pod["spec"]["nodeName"].as_str().expect("its node").to_owned();
        caller.begin_gap();
        yard.ok(&["node", verb, &node]);
        yard.pod_until("ledger-0", "is another incarnation, ready", |now| {
            now["metadata"]["uid"] != pod["metadata"]["uid"] && integration::harness::is_ready(now)
        });
        answered(20);
        gaps.push(caller.record().gap);
        yard.ok(&["node", "heal", &node]);
        until("the node is back", || match yard.get(&["node", &node]) {
            Some(object) if integration::harness::is_ready(&object) => Ok(()),
            other => Err(other),
        });
    }
    let lost = caller.end().lost;
    println!(
        "{verb}: node {verb} to the pet's next answer: {}; counts lost: {}",
        quantiles(gaps),
        lost.len()
    );
}

fn replicas(count: usize) -> String {
    format!(
        "
apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: many}}
spec:
  replicas: {count}
  selector: {{matchLabels: {{app: many}}}}
  template:
    metadata: {{labels: {{app: many}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: main, image: podyard.local/toolbox, command: [sleep, infinity]}}]
"
    )
}

fn hundred_pods() {
    let mut times = Vec::new();
    for round in 0..4 {
        let yard = yard("bench", &NODES[..2]);
        let begun = Instant::now();
        yard.apply(&replicas(100));
        yard.ready_count("app=many", 100);
        // The first round fills the page cache.
        if round > 0 {
            times.push(begun.elapsed());
        }
    }
    println!("hundred: 100 pods over node-0 and 2 more, apply to all ready: {}", quantiles(times));
}

fn restart_with_200_pods() {
    let mut yard = yard("bench", &NODES[..2]);
    yard.apply(&replicas(200));
    yard.ready_count("app=many", 200);
    let uids = |yard: &Yard| {
        let pods = yard.list(&["pods"]);
        let one = |pod: &serde_json::Value| (pod["metadata"]["uid"].to_string(), pod["status"].to_string());
        pods.iter().map(one).collect::<std::collections::BTreeSet<_>>()
    };
    let before = uids(&yard);
    let mut times = Vec::new();
    for _ in 0..5 {
        yard.kill_daemon();
        let begun = Instant::now();
        yard.start_daemon();
        // An exec needs the pod's shim: it is adopted.
        for pod in yard.list(&["pods"]).iter().step_by(40) {
            let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
            until("the pod is adopted", || {
                let ran = yard.podyard(&["exec", &name, "--", "true"]);
                if ran.code == 0 { Ok(()) } else { Err(ran) }
            });
        }
        times.push(begun.elapsed());
    }
    assert_eq!(before, uids(&yard), "no pod was touched");
    println!(
        "restart: daemon started until it answers and 5 of 200 pods over all nodes take an exec: {}",
        quantiles(times)
    );
}

/// Bytes written by a process. proc_pid_io(5).
fn written(pid: i32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("a process's io");
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    line.and_then(|rest| rest.trim().parse().ok()).expect("write_bytes")
}

fn idle() {
    let yard = yard("bench", &NODES);
    yard.apply(&manifest(3));
    yard.ready_count("app=ledger", 3);
    let store = yard.data_dir().join("store");
    let all = || {
        let agents = processes(&format!("/podyard-{}/nodes", yard.name()));
        let processes = agents.into_iter().chain([yard.daemon_pid()]);
        processes.map(|pid| (pid, written(pid))).collect::<std::collections::BTreeMap<_, _>>()
    };
    let bytes = || -> u64 {
        let files = std::fs::read_dir(&store).expect("the store").flatten();
        files.map(|file| file.metadata().map_or(0, |found| found.len())).sum()
    };
    until("the start-up is over", || {
        let before = all();
        std::thread::sleep(Duration::from_secs(5)); // The measurement itself: nothing is waited for.
        if all() == before { Ok(()) } else { Err("busy") }
    });
    let (before, store_before) = (all(), bytes());
    std::thread::sleep(Duration::from_secs(60)); // The measurement itself: nothing is waited for.
    let after = all();
    let sum: u64 = after.iter().map(|(pid, bytes)| bytes - before.get(pid).copied().unwrap_or(0)).sum();
    println!(
        "idle: 3 nodes, 3 pets, 60 s: {sum} bytes written to disk by {} processes of the yard, the store grew by {}",
        after.len(),
        bytes() - store_before
    );
}
