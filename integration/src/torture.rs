//! Random blows at nodes, agents, shims, pets and the daemon, by seed; witnesses watch the law "at most one" throughout.
//!
//! ```text
//!   blows ──► yard of some nodes ◄── callers: one per pet, every answer is a count on its disk
//!                    ▲
//!                 watcher: /proc, and the pets' own locks on their disks
//! ```
//! In the end everything is healed, and every pet must serve, with all that was acknowledged.

use crate::caller::Caller;
use crate::harness::{PATIENCE, Yard, until};
use crate::watcher::{Seen, Watcher};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// What is done, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides every blow and every pause.
    pub seed: u64,
    /// Nodes beside the daemon's own.
    pub nodes: usize,
    /// Pets of the one set.
    pub pets: usize,
    /// Ends after so many blows,
    pub blows: u64,
    /// or after this time, whichever comes first.
    pub limit: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// How often each kind of blow fell.
    pub blows: BTreeMap<&'static str, u64>,
    /// What the watcher saw.
    pub seen: Seen,
    /// Requests that the pets answered.
    pub answered: u64,
}

/// The kinds of blows, and how likely each is.
const BLOWS: [(&str, u32); 7] = [
    ("node kill", 30),
    ("node cut", 20),
    ("node heal", 25),
    ("agent SIGKILL", 8),
    ("shim SIGKILL", 7),
    ("pet SIGKILL", 6),
    ("daemon SIGKILL", 4),
];

/// The longest pause between two blows, milliseconds.
const PAUSE_MS_MAX: u64 = 250;

/// Tortures a yard whose daemon runs. Panics if a law is broken.
pub fn run(yard: &mut Yard, plan: Plan) -> Report {
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let nodes: Vec<String> = (1..=plan.nodes).map(|n| format!("n{n}")).collect();
    for node in &nodes {
        yard.ok(&["node", "add", node]);
    }
    yard.apply(&manifest(plan.pets));
    yard.ready_count("app=ledger", plan.pets);
    let watcher = Watcher::start(format!("/podyard-{}", yard.name()));
    let callers: Vec<Caller> = (0..plan.pets)
        .map(|n| {
            let address = yard.vip(&format!("ledger-{n}")).parse().expect("a virtual IP");
            Caller::start(yard.run_dir().join("netns/host"), address)
        })
        .collect();
    let mut blows = BTreeMap::new();
    let (begun, mut fell) = (Instant::now(), 0);
    while fell < plan.blows && begun.elapsed() < plan.limit {
        let kind = draw(&mut rng);
        let node = &nodes[rng.random_range(0..nodes.len())];
        strike(yard, kind, node, &nodes, &mut rng);
        *blows.entry(kind).or_default() += 1;
        fell += 1;
        std::thread::sleep(Duration::from_millis(rng.random_range(0..=PAUSE_MS_MAX)));
    }
    for node in &nodes {
        yard.ok(&["node", "heal", node]);
    }
    yard.ready_count("app=ledger", plan.pets);
    let mut answered = 0;
    for (n, caller) in callers.into_iter().enumerate() {
        let known = caller.record().answered;
        until(&format!("ledger-{n} answers after everything (seed {})", plan.seed), || {
            let now = caller.record();
            if now.answered > known { Ok(()) } else { Err(now) }
        });
        let record = caller.end();
        assert!(record.lost.is_empty(), "seed {}: ledger-{n} lost data: {:?}", plan.seed, record.lost);
        answered += record.answered;
        let pet = format!("ledger-{n}");
        let twice = yard.podyard(&["exec", &pet, "--", "test", "-e", "/data/visits.twice"]);
        assert_eq!(twice.code, 1, "seed {}: {pet} found its disk locked by another: {twice:?}", plan.seed);
    }
    let seen = watcher.end();
    assert!(seen.violations.is_empty(), "seed {}: {:#?}", plan.seed, seen.violations);
    assert!(seen.looks > 0, "the watcher looked");
    Report { blows, seen, answered }
}

fn draw(rng: &mut StdRng) -> &'static str {
    let mut left = rng.random_range(0..BLOWS.iter().map(|(_, weight)| weight).sum());
    for (kind, weight) in BLOWS {
        if left < weight {
            return kind;
        }
        left -= weight;
    }
    BLOWS[0].0
}

fn strike(yard: &mut Yard, kind: &str, node: &str, nodes: &[String], rng: &mut StdRng) {
    let beneath = format!("/podyard-{}/nodes/{node}/", yard.name());
    match kind {
        "node kill" | "node cut" | "node heal" => {
            let verb = kind.strip_prefix("node ").expect("a verb of node");
            let ran = yard.podyard(&["node", verb, node]);
            assert_eq!(ran.code, 0, "{kind} {node}: {ran:?}");
            // Somewhere the pets must be able to live.
            if verb != "heal" && nodes.iter().all(|node| is_lost(yard, node)) {
                let lucky = &nodes[rng.random_range(0..nodes.len())];
                yard.ok(&["node", "heal", lucky]);
            }
        }
        "agent SIGKILL" => kill_one(&format!("{beneath}agent"), rng),
        "shim SIGKILL" => kill_one(&format!("{beneath}shims/"), rng),
        "pet SIGKILL" => kill_one(&format!("{beneath}pods/"), rng),
        "daemon SIGKILL" => {
            yard.kill_daemon();
            std::thread::sleep(Duration::from_millis(rng.random_range(0..=PAUSE_MS_MAX)));
            yard.start_daemon();
        }
        other => panic!("no blow {other}"),
    }
}

fn is_lost(yard: &Yard, node: &str) -> bool {
    let object = yard.get(&["node", node]).expect("the node exists");
    let annotations = &object["metadata"]["annotations"];
    annotations["podyard.io/power"] == "off" || annotations["podyard.io/fabric"] == "cut"
}

/// Kills one process whose cgroup begins with `beneath`, if there is one.
fn kill_one(beneath: &str, rng: &mut StdRng) {
    let all = processes(beneath);
    if all.is_empty() {
        return;
    }
    let pid = all[rng.random_range(0..all.len())];
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Processes whose cgroup in the unified hierarchy begins with `beneath`. cgroups(7).
pub fn processes(beneath: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("list /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(cgroups) = fs::read_to_string(entry.path().join("cgroup")) else { continue };
        let is_ours = |line: &str| {
            line.strip_prefix("0::").is_some_and(|path| path.starts_with(beneath.trim_end_matches('/')))
        };
        if cgroups.lines().any(is_ours) {
            found.push(pid);
        }
    }
    found
}

/// A set of counters `ledger`, and a virtual IP `ledger-N` for each.
pub fn manifest(pets: usize) -> String {
    let mut text = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: ledger}}
spec: {{clusterIP: None, selector: {{app: ledger}}, ports: [{{port: 8080}}]}}
---
apiVersion: apps/v1alpha1
kind: PetSet
metadata: {{name: ledger}}
spec:
  serviceName: ledger
  replicas: {pets}
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: ledger}}}}
  template:
    metadata:
      labels: {{app: ledger}}
      annotations: {{podyard.io/restart-backoff-base: 20ms}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {{podyard.io/managed: 'true'}}
      containers:
      - name: main
        image: podyard.local/toolbox
        command: [counter, --file, /data/visits, --port, '8080']
        volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec:
      accessModes: [ReadWriteOncePod]
      resources: {{requests: {{storage: 16Mi}}}}
"
    );
    for n in 0..pets {
        text += &format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: ledger-{n}}}
spec:
  selector: {{statefulset.kubernetes.io/pod-name: ledger-{n}}}
  ports: [{{port: 80, targetPort: 8080}}]
"
        );
    }
    text
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blows: Vec<String> = self.blows.iter().map(|(kind, times)| format!("{kind} {times}")).collect();
        let incarnations: usize = self.seen.incarnations.values().map(std::collections::BTreeSet::len).sum();
        write!(
            f,
            "{}; {} answers, none lost; {} looks at /proc saw {incarnations} incarnations on {} disks, never two at once \
             (patience {PATIENCE:?})",
            blows.join(", "),
            self.answered,
            self.seen.looks,
            self.seen.incarnations.len(),
        )
    }
}
