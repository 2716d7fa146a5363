//! A pet keeps its name and its storage; order is kept; a killed daemon changes nothing.

use integration::harness::{Yard, first_status, until};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

const COUNTER: &str = "
apiVersion: v1
kind: Service
metadata: {name: counter}
spec:
  clusterIP: None
  selector: {app: counter}
  ports: [{port: 8080}]
---
apiVersion: apps/v1alpha1
kind: PetSet
metadata: {name: counter}
spec:
  serviceName: counter
  replicas: 3
  selector: {matchLabels: {app: counter}}
  template:
    metadata:
      labels: {app: counter}
      annotations: {podyard.io/restart-backoff-base: 50ms}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: podyard.local/toolbox
        command: [counter, --file, /data/visits, --port, '8080']
        ports: [{containerPort: 8080}]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      accessModes: [ReadWriteOncePod]
      resources: {requests: {storage: 16Mi}}
";

/// Visits a pet; the count it answers.
fn visit(yard: &Yard, pet: &str, path: &str) -> u64 {
    until(&format!("{pet} answers"), || {
        let Some(pod) = yard.get(&["pod", pet]) else { return Err("gone".to_owned()) };
        let url = format!("http://{}:8080{path}", pod["status"]["podIP"].as_str().unwrap_or("none"));
        let ran = yard.on_host(&["fetch", &url, "--timeout-ms", "2000"]);
        match ran.stdout.trim().strip_prefix(&format!("{pet} ")).and_then(|n| n.parse().ok()) {
            Some(count) => Ok(count),
            None => Err(format!("{ran:?}")),
        }
    })
}

#[test]
fn root_a_killed_pet_returns_under_its_name_with_its_storage() {
    let Some(yard) = Yard::start(PROGRAM, "petkill") else { return };
    yard.apply(COUNTER);
    yard.ready_count("app=counter", 3);
    for expected in 1..=3 {
        assert_eq!(visit(&yard, "counter-1", "/"), expected);
    }
    assert_eq!(visit(&yard, "counter-2", "/"), 1, "each has its own");
    let before = yard.ready("counter-1");
    let old = yard.pids("counter-1");
    assert!(!old.is_empty());
    for pid in &old {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL)
            .expect("kill the pet");
    }
    yard.pod_until("counter-1", "restarted", |pod| {
        first_status(pod)["restartCount"].as_u64() >= Some(1) && integration::harness::is_ready(pod)
    });
    assert_eq!(visit(&yard, "counter-1", "/"), 4, "its count is intact");
    let after = yard.ready("counter-1");
    let claim = |pod: &Value| {
        pod["spec"]["volumes"].as_array().and_then(|all| all.iter().find(|v| v["name"] == "data").cloned())
    };
    assert_eq!(claim(&before), claim(&after));
    assert_eq!(claim(&after).expect("a claim")["persistentVolumeClaim"]["claimName"], "data-counter-1");
}

#[test]
fn root_the_highest_leaves_first_and_the_lowest_returns_first() {
    let Some(yard) = Yard::start(PROGRAM, "petscale") else { return };
    yard.apply(COUNTER);
    yard.ready_count("app=counter", 3);
    for pet in ["counter-0", "counter-1", "counter-2"] {
        visit(&yard, pet, "/");
    }
    let mut watch = yard.spawn(&["get", "pods", "-l", "app=counter", "-w", "-o", "name"]);
    yard.ok(&["scale", "petset/counter", "--replicas", "1"]);
    // One leaves at a time: while counter-2 is there, counter-1 is not asked to go.
    until("counter-1 and counter-2 are gone", || {
        let pods = yard.list(&["pods", "-l", "app=counter"]);
        let leaving = |name: &str| {
            pods.iter().any(|pod| {
                pod["metadata"]["name"] == name && pod["metadata"]["deletionTimestamp"].is_string()
            })
        };
        assert!(!(leaving("counter-1") && leaving("counter-2")), "one at a time");
        let there = |name: &str| pods.iter().any(|pod| pod["metadata"]["name"] == name);
        assert!(!(there("counter-2") && leaving("counter-1")), "highest first");
        assert!(there("counter-0"));
        if pods.len() == 1 { Ok(()) } else { Err(pods.len()) }
    });
    assert_eq!(yard.list(&["pvc"]).len(), 3, "claims stay");
    yard.ok(&["scale", "petset/counter", "--replicas", "3"]);
    yard.ready_count("app=counter", 3);
    let created = |name: &str| {
        yard.get(&["pod", name]).expect("there")["status"]["startTime"].as_str().expect("started").to_owned()
    };
    assert!(created("counter-1") <= created("counter-2"), "lowest returns first");
    for pet in ["counter-0", "counter-1", "counter-2"] {
        assert_eq!(visit(&yard, pet, "/"), 2, "{pet} has its data");
    }
    watch.kill().expect("end the watch");
    watch.wait().expect("reap the watch");
}

#[test]
fn root_a_killed_daemon_changes_nothing_that_runs() {
    let Some(mut yard) = Yard::start(PROGRAM, "adopt") else { return };
    yard.apply(COUNTER);
    yard.ready_count("app=counter", 3);
    visit(&yard, "counter-0", "/");
    let before: Vec<_> = ["counter-0", "counter-1", "counter-2"].iter().map(|pet| yard.pids(pet)).collect();
    assert!(before.iter().all(|pids| !pids.is_empty()));
    yard.kill_daemon();
    yard.start_daemon();
    yard.ready_count("app=counter", 3);
    let after: Vec<_> = ["counter-0", "counter-1", "counter-2"].iter().map(|pet| yard.pids(pet)).collect();
    assert_eq!(before, after, "the same processes");
    for pet in ["counter-0", "counter-1", "counter-2"] {
        assert_eq!(first_status(&yard.ready(pet))["restartCount"], 0, "{pet} was not restarted");
    }
    assert_eq!(visit(&yard, "counter-0", "/"), 2);
}
