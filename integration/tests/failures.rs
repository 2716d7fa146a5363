//! Whatever is killed, at whatever step: it converges, nothing starts twice, nothing leaks.

use integration::harness::{Yard, first_status, is_ready, until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: victim, annotations: {podyard.io/restart-backoff-base: 20ms}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: d, emptyDir: {}}]
  containers:
  - {name: one, image: podyard.local/toolbox, command: [serve, --port, '8080'], volumeMounts: [{name: d, mountPath: /d}]}
  - {name: two, image: podyard.local/toolbox, command: [sleep, infinity]}
";

/// The processes of a yard's pods, by cgroup: (container directory, pid).
fn processes(yard: &Yard) -> BTreeSet<(String, String)> {
    fn collect(dir: &Path, into: &mut BTreeSet<(String, String)>) {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for pid in std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
            into.insert((name.clone(), pid.to_owned()));
        }
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                collect(&entry.path(), into);
            }
        }
    }
    let mut all = BTreeSet::new();
    for root in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
        let pods = Path::new(root).join(format!("podyard-{}/pods", yard.name()));
        if pods.exists() {
            collect(&pods, &mut all);
            break;
        }
    }
    all
}

/// The pod's cgroups that are left.
fn leftovers(yard: &Yard) -> Vec<String> {
    let mut left = Vec::new();
    for dir in [yard.run_dir().join("pods"), yard.data_dir().join("snapshots")] {
        left.extend(
            std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path().display().to_string()),
        );
    }
    let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
    for root in roots.chain([Path::new("/sys/fs/cgroup").to_path_buf()]) {
        for sub in ["pods", "shims"] {
            let dir = root.join(format!("podyard-{}/{sub}", yard.name()));
            let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            left.extend(entries.filter(|e| e.path().is_dir()).map(|e| e.path().display().to_string()));
        }
    }
    let links = yard.podyard(&["ns", "enter", "--node", "--", "/bin/ls", "/sys/class/net"]);
    left.extend(
        links
            .stdout
            .lines()
            .filter(|name| name.starts_with('v') && name.len() == 9)
            .map(|l| format!("link {l}")),
    );
    left
}

/// Kills as `verb:step:action` says while the pod is started and deleted; false once there is no such step.
fn survive(yard: &mut Yard, verb: &str, step: u32, action: &str) -> bool {
    let fault = format!("{verb}:{step}:{action}");
    // The daemon says so when the fault is reached, before it acts.
    let strikes = |yard: &Yard| yard.daemon_log().matches("a fault strikes").count();
    let before = strikes(yard);
    yard.kill_daemon();
    yard.daemon_env("PODYARD_FAULT", &fault);
    yard.start_daemon();
    // The daemon may die before it has answered; what it had acknowledged by then is seen below.
    yard.podyard_with(&["apply", "-f", "-"], POD);
    if verb == "delete" {
        yard.ready("victim");
        yard.podyard(&["delete", "pod", "victim", "--wait=false"]);
    }
    // An answer that does not come is none: the daemon may be dying.
    let settled = |yard: &Yard| {
        let ran = yard.podyard(&["get", "pod", "victim", "-o", "json"]);
        let pod: Option<Value> = serde_json::from_str(&ran.stdout).ok();
        match verb {
            "start" => pod.is_some_and(|pod| is_ready(&pod)),
            _ => ran.stderr.contains("NotFound"),
        }
    };
    until(&format!("{fault}: settles"), || {
        if !yard.daemon_runs() {
            yard.daemon_env("PODYARD_FAULT", "");
            yard.start_daemon();
        }
        if settled(yard) { Ok(()) } else { Err(yard.daemon_log()) }
    });
    let reached = strikes(yard) > before;
    if verb == "start" {
        // Each container runs exactly once: one process in each container's cgroup.
        let running = until(&format!("{fault}: one process for each container"), || {
            let pod = yard.get(&["pod", "victim"]);
            let running = processes(yard);
            let of =
                |name: &str| running.iter().filter(|(dir, _)| dir.starts_with(&format!("{name}."))).count();
            assert!(of("one") <= 1 && of("two") <= 1, "{fault}: nothing runs twice: {running:?}");
            match pod {
                Some(pod) if is_ready(&pod) && of("one") == 1 && of("two") == 1 => Ok(pod),
                other => Err((running, other.map(|pod| pod["status"].clone()))),
            }
        });
        assert!(
            first_status(&running)["restartCount"].as_u64() <= Some(2),
            "{fault}: {:#}",
            running["status"]
        );
        yard.ok(&["delete", "pod", "victim"]);
    }
    until(&format!("{fault}: nothing is left"), || {
        let (left, running) = (leftovers(yard), processes(yard));
        if left.is_empty() && running.is_empty() { Ok(()) } else { Err((left, running, yard.daemon_log())) }
    });
    if !yard.daemon_runs() {
        yard.daemon_env("PODYARD_FAULT", "");
        yard.start_daemon();
    }
    reached
}

fn every_step(verb: &str, action: &str) {
    let Some(mut yard) = Yard::start(PROGRAM, "fault") else { return };
    let reached = (1..60).take_while(|step| survive(&mut yard, verb, *step, action)).count();
    assert!(reached >= 4, "{verb} has numbered steps, {reached} were reached");
    eprintln!("{verb}: {action} at each of {reached} steps");
}

#[test]
fn root_the_daemon_dies_at_each_step_of_starting() {
    every_step("start", "kill-daemon");
}

#[test]
fn root_the_shim_dies_at_each_step_of_starting() {
    every_step("start", "kill-shim");
}

#[test]
fn root_both_die_at_each_step_of_starting() {
    every_step("start", "kill-both");
}

#[test]
fn root_containers_die_at_each_step_of_starting() {
    every_step("start", "kill-containers");
}

#[test]
fn root_the_daemon_dies_at_each_step_of_deleting() {
    every_step("delete", "kill-daemon");
}

#[test]
fn root_the_shim_dies_at_each_step_of_deleting() {
    every_step("delete", "kill-shim");
}

#[test]
fn root_both_die_at_each_step_of_deleting() {
    every_step("delete", "kill-both");
}

#[test]
fn root_containers_die_at_each_step_of_deleting() {
    every_step("delete", "kill-containers");
}

#[test]
fn root_a_dead_shim_is_a_dead_pod_and_the_policy_applies() {
    let Some(yard) = Yard::start(PROGRAM, "shim") else { return };
    yard.apply(POD);
    yard.ready("victim");
    let before = processes(&yard);
    let uid =
        yard.get(&["pod", "victim"]).expect("there")["metadata"]["uid"].as_str().expect("uid").to_owned();
    let shims: Vec<i32> = std::fs::read_dir("/sys/fs/cgroup")
        .expect("cgroups")
        .flatten()
        .flat_map(|e| {
            let procs = e.path().join(format!("podyard-{}/shims/{uid}/cgroup.procs", yard.name()));
            std::fs::read_to_string(procs)
                .unwrap_or_default()
                .lines()
                .filter_map(|l| l.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect();
    assert!(!shims.is_empty(), "the shim has a cgroup of its own");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shims[0]), nix::sys::signal::Signal::SIGKILL)
        .expect("kill the shim");
    let pod: Value = yard.pod_until("victim", "started afresh", |pod| {
        first_status(pod)["restartCount"].as_u64() >= Some(1) && is_ready(pod)
    });
    assert_eq!(first_status(&pod)["lastState"]["terminated"]["reason"], "ContainerStatusUnknown", "{pod:#}");
    let after = processes(&yard);
    assert!(before.iter().all(|(_, pid)| after.iter().all(|(_, new)| new != pid)), "none of the old is left");
}
