//! Hands-on: every namespace can be listed, compared and entered; every step can be read back, and taken one by one.

use integration::harness::{Yard, until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

fn pod(name: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: one, image: podyard.local/toolbox, command: [sleep, infinity]}}
  - {{name: two, image: podyard.local/toolbox, command: [sleep, infinity]}}
"
    )
}

#[test]
fn root_ns_lists_maps_and_compares() {
    let Some(yard) = Yard::start(PROGRAM, "ns") else { return };
    yard.apply(&pod("a"));
    yard.apply(&pod("b"));
    yard.ready("a");
    yard.ready("b");
    let inode = |pod: &str| yard.namespaces(pod, "net")[0]["inode"].as_u64().expect("an inode");
    assert_eq!(yard.namespaces("a", "net").len(), 1);
    assert_ne!(inode("a"), inode("b"), "pods do not share");
    let table = yard.ok(&["ns", "ls"]);
    assert!(table.contains(&inode("a").to_string()), "{table}");
    let map = yard.ok(&["ns", "map"]);
    assert!(map.contains("a") && map.contains("net"), "{map}");
    let diff = yard.ok(&["ns", "diff", "a/one", "a/two"]);
    assert!(diff.lines().any(|line| line.contains("net") && line.contains("shared")), "{diff}");
    assert!(diff.lines().any(|line| line.contains("mnt") && line.contains("apart")), "{diff}");
}

#[test]
fn root_host_tools_run_inside_a_pods_namespaces() {
    let Some(yard) = Yard::start(PROGRAM, "enter") else { return };
    yard.apply(&pod("a"));
    let object = yard.ready("a");
    let address = object["status"]["podIP"].as_str().expect("an address").to_owned();
    // The host's file system, the pod's network: its address is a local one there.
    let routes = yard.ok(&["ns", "enter", "a", "--net", "--", "/bin/cat", "/proc/net/fib_trie"]);
    assert!(routes.contains(&address), "{routes}");
    let name = yard.ok(&["ns", "enter", "a", "--uts", "--", "/bin/hostname"]);
    assert_eq!(name, "a\n");
    // Its files instead: the toolbox's, which hold no shell.
    let ran = yard.podyard(&["ns", "enter", "a/one", "--mnt", "--pid", "--", "/bin/ls", "/bin"]);
    assert!(ran.code == 0 && ran.stdout.contains("counter"), "{ran:#?}");
    assert_eq!(yard.podyard(&["ns", "enter", "a", "--net", "--", "/bin/sh", "-c", "exit 9"]).code, 9);
}

#[test]
fn root_trace_tells_each_step() {
    let Some(yard) = Yard::start(PROGRAM, "trace") else { return };
    yard.apply(&pod("a"));
    yard.ready("a");
    let trace: Value = serde_json::from_str(&yard.ok(&["trace", "a", "-o", "json"])).expect("JSON");
    let items = trace["steps"].as_array().expect("steps");
    assert!(items.len() >= 6, "{trace:#}");
    for item in items {
        assert!(
            item["step"].is_string() && item["effect"].is_string() && item["micros"].is_u64(),
            "{item:#}"
        );
    }
    let text = yard.ok(&["trace", "a"]);
    assert!(text.contains("µs") && text.contains("veth"), "{text}");
}

#[test]
fn root_plan_tells_what_would_be_done_and_does_nothing() {
    let Some(yard) = Yard::start(PROGRAM, "plan") else { return };
    let ran = yard.podyard_with(&["plan", "-f", "-"], &pod("a"));
    assert!(ran.code == 0 && ran.stdout.contains("default/a") && ran.stdout.contains("veth"), "{ran:#?}");
    assert!(yard.get(&["pod", "a"]).is_none());
}

#[test]
fn root_run_step_pauses_after_each_step() {
    let Some(yard) = Yard::start(PROGRAM, "step") else { return };
    let mut child = yard.spawn(&[
        "run",
        "stepped",
        "--image",
        "podyard.local/toolbox",
        "--step",
        "--command",
        "--",
        "sleep",
        "infinity",
    ]);
    let mut stdin = child.stdin.take().expect("stdin");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let first = lines.next().expect("a first step").expect("text");
    assert!(!first.is_empty());
    // Nothing goes on by itself: the pod is there and does not run.
    let pod = yard.get(&["pod", "stepped"]).expect("the pod");
    assert_eq!(pod["status"]["phase"], "Pending", "{pod:#}");
    let feeder = std::thread::spawn(move || {
        // Enter for each step, until it has no more.
        for _ in 0..64 {
            if stdin.write_all(b"\n").is_err() {
                break;
            }
        }
    });
    yard.ready("stepped");
    feeder.join().expect("feed");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(rest.len() >= 5, "one line a step: {first} {rest:#?}");
    until("the command ends", || match child.try_wait() {
        Ok(Some(status)) if status.success() => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn root_doctor_and_version_speak_json() {
    let Some(yard) = Yard::start(PROGRAM, "doctor") else { return };
    let doctor: Value = serde_json::from_str(&yard.podyard(&["doctor", "-o", "json"]).stdout).expect("JSON");
    assert!(doctor["checks"].as_array().is_some_and(|checks| checks.len() >= 8), "{doctor:#}");
    let version: Value = serde_json::from_str(&yard.ok(&["version", "-o", "json"])).expect("JSON");
    assert!(version["serverVersion"]["gitVersion"].is_string(), "{version:#}");
}
