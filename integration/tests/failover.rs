//! Pets that lose their node serve on elsewhere, with their disk, and never twice.

use integration::harness::{Yard, is_ready, is_root, until};
use integration::torture::{Plan, manifest, run};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

/// Blows of the bounded run; `cargo torture --blows 3000` goes on for longer.
const BLOWS: u64 = 60;

#[test]
fn root_no_pet_runs_twice_whatever_is_killed_or_cut() {
    let test = "torture";
    if !is_root(test) {
        return;
    }
    let seed = std::env::var("PODYARD_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut yard = Yard::prepare(PROGRAM, test);
    yard.daemon_args(&["--node-grace-period=2s"]);
    yard.start_daemon();
    let plan = Plan { seed, nodes: 3, pets: 3, blows: BLOWS, limit: Duration::from_secs(60) };
    let report = run(&mut yard, plan);
    println!("seed {seed}: {report}");
    assert!(report.blows.contains_key("node kill") && report.blows.contains_key("node cut"), "{report}");
    assert!(report.answered > 0, "{report}");
}

#[test]
fn root_a_pet_that_moves_may_keep_its_address() {
    let test = "keepaddress";
    if !is_root(test) {
        return;
    }
    let mut yard = Yard::prepare(PROGRAM, test);
    yard.daemon_args(&["--node-grace-period=30s"]);
    yard.start_daemon();
    for node in ["n1", "n2"] {
        yard.ok(&["node", "add", node]);
    }
    let annotations = "annotations: {podyard.io/restart-backoff-base: 20ms}";
    let keeping = "annotations: {podyard.io/keep-address: 'true'}";
    yard.apply(&manifest(1).replace(annotations, keeping));
    let before = yard.ready("ledger-0");
    let text = |pod: &serde_json::Value, pointer: &str| {
        pod.pointer(pointer).and_then(|value| value.as_str()).expect("it is there").to_owned()
    };
    let (node, address) = (text(&before, "/spec/nodeName"), text(&before, "/status/podIP"));
    yard.ok(&["node", "kill", &node]);
    let after = yard.pod_until("ledger-0", "is another incarnation, ready", |pod| {
        pod["metadata"]["uid"] != before["metadata"]["uid"] && is_ready(pod)
    });
    assert_ne!(text(&after, "/spec/nodeName"), node);
    assert_eq!(text(&after, "/status/podIP"), address, "it kept its address");
    let url = format!("http://{address}:8080/peek");
    until("the host reaches it there", || {
        let ran = yard.on_host(&["fetch", &url, "--timeout-ms", "1000"]);
        if ran.code == 0 { Ok(()) } else { Err(ran) }
    });
    // And the node whose block the address is of.
    yard.ok(&["node", "heal", &node]);
    yard.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: neighbour}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: podyard.local/toolbox, command: [sleep, infinity]}}]
"
    ));
    yard.ready("neighbour");
    until("a pod on its old node reaches it", || {
        let ran = yard.podyard(&["exec", "neighbour", "--", "fetch", &url, "--timeout-ms", "1000"]);
        if ran.code == 0 { Ok(()) } else { Err(ran) }
    });
}
