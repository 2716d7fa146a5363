//! A Service: one virtual IP that spreads requests over the ready replicas, from pods and from the host.

use integration::harness::{Yard, until};
use std::collections::BTreeMap;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

const WEB: &str = "
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: podyard.local/toolbox
        command: [serve, --port, '8080']
        ports: [{name: http, containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
";

/// Who answers `times` requests to a virtual IP, as the host sees it.
fn spread(yard: &Yard, times: u32) -> BTreeMap<String, u32> {
    let url = format!("http://{}/", yard.vip("web"));
    let ran = yard.on_host(&["fetch", &url, "--times", &times.to_string(), "--timeout-ms", "3000"]);
    let mut seen = BTreeMap::new();
    for name in ran.stdout.lines() {
        *seen.entry(name.to_owned()).or_default() += 1;
    }
    seen
}

#[test]
fn root_the_virtual_ip_spreads_over_all_replicas() {
    let Some(yard) = Yard::start(PROGRAM, "spread") else { return };
    yard.apply(WEB);
    let pods = yard.ready_count("app=web", 3);
    let seen = until("all three answer the host", || {
        let seen = spread(&yard, 60);
        if seen.len() == 3 { Ok(seen) } else { Err(seen) }
    });
    assert!(seen.values().all(|count| *count >= 5), "uniform choice out of 3, 60 times: {seen:?}");
    // From a pod, one that is itself an endpoint included.
    let name = pods[0]["metadata"]["name"].as_str().expect("a name");
    let url = format!("http://{}/", yard.vip("web"));
    let answers = yard.ok(&["exec", name, "--", "fetch", &url, "--times", "40"]);
    let who: std::collections::BTreeSet<&str> = answers.lines().collect();
    assert_eq!(who.len(), 3, "{answers}");
}

#[test]
fn root_only_ready_replicas_answer_and_scaling_changes_them() {
    let Some(yard) = Yard::start(PROGRAM, "scale") else { return };
    yard.apply(WEB);
    yard.ready_count("app=web", 3);
    for count in [1_usize, 4] {
        yard.ok(&["scale", "rs/web", "--replicas", &count.to_string()]);
        yard.ready_count("app=web", count);
        until(&format!("{count} endpoints answer"), || {
            let seen = spread(&yard, 20 * count as u32);
            if seen.len() == count { Ok(()) } else { Err(seen) }
        });
    }
    yard.ok(&["scale", "rs/web", "--replicas", "0"]);
    yard.ready_count("app=web", 0);
    until("no endpoint answers", || {
        let seen = spread(&yard, 1);
        if seen.is_empty() { Ok(()) } else { Err(seen) }
    });
}

#[test]
fn root_a_replica_that_dies_is_replaced() {
    let Some(yard) = Yard::start(PROGRAM, "replace") else { return };
    yard.apply(WEB);
    let pods = yard.ready_count("app=web", 3);
    let name = pods[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    yard.ok(&["delete", "pod", &name]);
    let after = yard.ready_count("app=web", 3);
    assert!(
        after.iter().all(|pod| pod["metadata"]["name"] != name.as_str()),
        "a replica has no name to keep"
    );
    // A deleted set takes its pods with it; nothing else does.
    yard.ok(&["delete", "rs", "web"]);
    until("its pods are collected", || {
        let left = yard.list(&["pods", "-l", "app=web"]);
        if left.is_empty() { Ok(()) } else { Err(left.len()) }
    });
    assert!(yard.get(&["service", "web"]).is_some());
}
