//! Pods on the real kernel.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{World, root, sh};
use serde_json::json;
use std::time::Instant;

/// Ends at once when asked to.
const SERVE: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_a_pod_of_two_runs_shares_and_goes_without_a_trace() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let a = sh("a", &format!("echo hello > /shared/x; {SERVE}"));
    let b = sh("b", &format!("until [ -s /shared/x ]; do sleep 0.01; done; cat /shared/x; {SERVE}"));
    let mut pod =
        world.pod("two", 10, json!({"containers": [a, b], "volumes": [{"name": "s", "emptyDir": {}}]}));
    for n in 0..2 {
        pod.set(&format!("spec.containers.{n}.volumeMounts"), json!([{"name": "s", "mountPath": "/shared"}]));
    }
    let uid = pod.uid().to_owned();
    let begun = Instant::now();
    let key = world.apply(pod);
    let ready = world.ready(&key).await.unwrap();
    println!("apply to ready: {:?}", begun.elapsed());
    assert_eq!(ready.get_str("status.phase"), Some("Running"));
    assert_eq!(world.api.status_writes.load(std::sync::atomic::Ordering::SeqCst), 1, "one status commit");
    for entry in world.agent().trace(&key).unwrap().entries {
        println!("{:>8} {:<14} {}", entry.micros, entry.step, entry.effect);
    }
    let begun = Instant::now();
    world.delete(&key, 1);
    world.gone(&key).await;
    println!("delete to gone: {:?}", begun.elapsed());
    assert_eq!(world.leftovers(&uid), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_a_container_that_ends_is_restarted_by_its_policy() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let always = world.apply(world.pod("always", 10, json!({"containers": [sh("c", "exit 3")]})));
    let crashed = world
        .until(&always, "in its crash loop", |pod| {
            pod.is_some_and(|pod| {
                let status = &pod.0["status"]["containerStatuses"][0];
                status["restartCount"].as_u64() >= Some(2) && status["state"].get("waiting").is_some()
            })
        })
        .await
        .unwrap();
    let status = &crashed.0["status"]["containerStatuses"][0];
    assert_eq!(status["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);

    let spec = json!({"restartPolicy": "Never", "containers": [sh("good", "exit 0"), sh("bad", "exit 7")]});
    let never = world.apply(world.pod("never", 11, spec));
    let failed = world
        .until(&never, "failed", |pod| pod.and_then(|pod| pod.get_str("status.phase")) == Some("Failed"))
        .await;
    let failed = failed.unwrap();
    assert_eq!(failed.0["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(failed.0["status"]["containerStatuses"][1]["state"]["terminated"]["exitCode"], 7);
    // A terminal pod holds nothing but its record and its logs.
    let left = world.leftovers(failed.uid());
    assert_eq!(left, [world.yard.pod(failed.uid()).dir.display().to_string()]);

    let spec = json!({"restartPolicy": "OnFailure", "containers": [sh("c", "exit 0")]});
    let done = world.apply(world.pod("done", 12, spec));
    world
        .until(&done, "succeeded", |pod| pod.and_then(|pod| pod.get_str("status.phase")) == Some("Succeeded"))
        .await;
    for key in [always, never, done] {
        world.delete(&key, 0);
        world.gone(&key).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_an_agent_that_starts_again_adopts_its_pods() {
    if !root() {
        return;
    }
    let mut world = World::new().await;
    let key = world.apply(world.pod("kept", 10, json!({"containers": [sh("c", SERVE)]})));
    let gone = world.apply(world.pod("gone", 11, json!({"containers": [sh("c", SERVE)]})));
    world.ready(&key).await;
    world.ready(&gone).await;
    let before = world.attempt(&key, "c").unwrap();
    let uid = world.api.get_now(&gone).unwrap().uid().to_owned();
    world.stop();
    // Deleted while nobody looked.
    world.api.objects.lock().unwrap().remove(&gone);
    world.start(None).await;
    let begun = Instant::now();
    while world.attempt(&key, "c").is_none() || !world.leftovers(&uid).is_empty() {
        assert!(begun.elapsed().as_secs() < 20, "{:?} {:?}", world.attempt(&key, "c"), world.leftovers(&uid));
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(world.attempt(&key, "c"), Some(before), "the same process");
    assert!(
        world.agent().trace(&key).unwrap().entries.iter().any(|entry| entry.step == "record"),
        "trace survives"
    );
    // Its exit is seen by the new agent.
    let pid = rustix::process::Pid::from_raw(before.1).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    world.until(&key, "restarted", |pod| restart_count(pod) == 1).await;
    world.ready(&key).await;
}

fn restart_count(pod: Option<&api::Object>) -> u64 {
    pod.and_then(|pod| pod.0["status"]["containerStatuses"][0]["restartCount"].as_u64()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_the_death_of_the_shim_is_the_death_of_the_pod() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let key = world.apply(world.pod("p", 10, json!({"containers": [sh("c", SERVE)]})));
    world.ready(&key).await;
    let (_, old) = world.attempt(&key, "c").unwrap();
    let uid = world.api.get_now(&key).unwrap().uid().to_owned();
    let shim = world.agent().host().cgroup(&world.yard.pod(&uid).shim_cgroup()).unwrap().pids().unwrap()[0];
    let shim = rustix::process::Pid::from_raw(shim).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    world.until(&key, "restarted", |pod| restart_count(pod) == 1).await;
    let again = world.ready(&key).await.unwrap();
    let terminated = &again.0["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(terminated["reason"], "ContainerStatusUnknown");
    // Nobody may have reaped it yet: a zombie runs nothing.
    let stat = std::fs::read_to_string(format!("/proc/{old}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the old process is fenced: {stat}");
    let events = world.api.events.lock().unwrap().clone();
    assert!(events.iter().any(|(_, reason, _)| reason == "Fenced"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_logs_exec_and_probes() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let mut container = sh("c", &format!("echo out; echo err >&2; {SERVE}"));
    container["readinessProbe"] =
        json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1});
    let key = world.apply(world.pod("p", 10, json!({"containers": [container]})));
    world
        .until(&key, "running", |pod| pod.and_then(|pod| pod.get_str("status.phase")) == Some("Running"))
        .await;
    assert!(!common::is_ready(&world.api.get_now(&key).unwrap()));

    let streams = node::exec::Streams { stdin: true, stdout: true, stderr: true, tty: false };
    let script =
        ["sh", "-c", "mkdir -p /tmp; cat > /tmp/ready; echo done; echo bad >&2; exit 5"].map(str::to_owned);
    let mut session = world.agent().exec(&key, None, &script, streams).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    session.stdin.as_mut().unwrap().write_all(b"x").await.unwrap();
    drop(session.stdin.take());
    let (mut out, mut err) = (String::new(), String::new());
    session.stdout.as_mut().unwrap().read_to_string(&mut out).await.unwrap();
    session.stderr.as_mut().unwrap().read_to_string(&mut err).await.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("done\n", "bad\n"));
    assert_eq!(session.exit.wait().await.unwrap(), 5);
    world.ready(&key).await;

    let mut terminal = node::exec::Streams { tty: true, stdin: true, ..streams };
    let mut session = world.agent().exec(&key, Some("c"), &["tty".to_owned()], terminal).await.unwrap();
    session.terminal.as_ref().unwrap().resize(40, 100).unwrap();
    let mut out = String::new();
    session.stdout.as_mut().unwrap().read_to_string(&mut out).await.unwrap();
    assert!(out.starts_with("/dev/pts/"), "{out:?}");
    assert_eq!(session.exit.wait().await.unwrap(), 0);
    terminal.tty = false;
    let missing = world.agent().exec(&key, None, &["/no/such".to_owned()], terminal).await;
    println!("exec of a missing program: {:?}", missing.as_ref().err().map(node::Error::chain));

    let mut log = world.agent().logs(&key, None, node::logs::LogOptions::default()).unwrap();
    let mut text = String::new();
    while let Some(piece) = log.next().await {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    assert!(text.contains("out\n") && text.contains("err\n"), "{text:?}");
    let map = world.agent().namespaces().await.unwrap();
    let net = map.iter().find(|ns| ns.kind == "net" && ns.users == ["default/p"]).unwrap();
    assert!(net.processes.iter().any(|process| process.container.as_deref() == Some("c")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_what_cannot_start_says_why() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let reason = |pod: Option<&api::Object>| {
        pod.and_then(|pod| pod.get_str("status.containerStatuses.0.state.waiting.reason").map(str::to_owned))
    };
    let mut cases = Vec::new();
    for (n, (image, policy, command, expect)) in [
        ("no.such/image", "Never", "true", "ErrImageNeverPull"),
        ("no.such/image", "IfNotPresent", "true", "ErrImagePull"),
        ("bad image", "IfNotPresent", "true", "InvalidImageName"),
        ("podyard.local/host", "IfNotPresent", "/no/such/program", "RunContainerError"),
    ]
    .into_iter()
    .enumerate()
    {
        let container = json!({"name": "c", "image": image, "imagePullPolicy": policy, "command": [command]});
        let name = format!("p{n}");
        let key = world.apply(world.pod(&name, 10 + n as u8, json!({"containers": [container]})));
        cases.push((key, expect));
    }
    for (key, expect) in &cases {
        let pod = world.until(key, expect, |pod| reason(pod).as_deref() == Some(expect)).await.unwrap();
        println!("{}", pod.0["status"]["containerStatuses"][0]["state"]);
    }
}

/// Strikes at every step of starting and of deleting a pod; whatever is struck, it converges and leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_faults_at_every_step_converge() {
    if !root() {
        return;
    }
    let world = World::new().await;
    for action in ["kill-shim", "kill-containers"] {
        for (verb, steps) in [("start", 8), ("delete", 11)] {
            for number in 1..=steps {
                for moment in ["before", "after"] {
                    let fault = format!("{verb}:{number}:{action}:{moment}");
                    world.agent().host().fault.aim(fault.parse().ok());
                    let name = format!("{verb}{number}{action}{moment}");
                    let key = world.apply(world.pod(&name, 10, json!({"containers": [sh("c", SERVE)]})));
                    world.ready(&key).await;
                    let uid = world.api.get_now(&key).unwrap().uid().to_owned();
                    let count = restart_count(world.api.get_now(&key).as_ref());
                    assert!(count <= 1, "{fault}: {count} restarts");
                    world.delete(&key, 1);
                    world.gone(&key).await;
                    assert_eq!(world.leftovers(&uid), Vec::<String>::new(), "{fault}");
                    assert_eq!(world.agent().host().fault.aimed(), None, "{fault} did not strike");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_a_claim_is_held_by_one_pod_and_keeps_its_data() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let object = |value| api::Object(value);
    let claim = world.api.put(object(json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": "default", "uid": "claim-1"},
        "spec": {"volumeName": "pvc-claim-1"}, "status": {"phase": "Bound"}
    })));
    world.api.put(object(json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pvc-claim-1", "uid": "v"},
        "spec": {"csi": {"driver": "podyard.io/host", "volumeHandle": "pvc-claim-1"},
            "claimRef": {"uid": "claim-1", "name": "data", "namespace": "default"}}
    })));
    let spec = |script: &str| {
        let mut container = sh("c", script);
        container["volumeMounts"] = json!([{"name": "v", "mountPath": "/data"}]);
        json!({"containers": [container],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]})
    };
    let holder =
        || world.api.get_now(&claim.key()).unwrap().annotation("podyard.io/holder").map(str::to_owned);
    let first = world.apply(world.pod("first", 10, spec(&format!("echo mine > /data/x; {SERVE}"))));
    world.ready(&first).await;
    let uid = world.api.get_now(&first).unwrap().uid().to_owned();
    assert_eq!(holder(), Some(uid));
    let second = world.apply(world.pod("second", 11, spec(&format!("cat /data/x; {SERVE}"))));
    let refused =
        |pod: Option<&api::Object>| pod.is_some_and(|pod| pod.0["status"].to_string().contains("is held by"));
    world.until(&second, "refused", refused).await;
    assert!(world.attempt(&second, "c").is_none());
    world.delete(&first, 1);
    world.gone(&first).await;
    world.ready(&second).await;
    let options = node::logs::LogOptions { follow: true, ..Default::default() };
    let mut log = world.agent().logs(&second, None, options).unwrap();
    assert_eq!(log.next().await.unwrap().unwrap(), "mine\n");
    world.delete(&second, 1);
    world.gone(&second).await;
    assert_eq!(holder(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_a_container_that_is_not_alive_is_restarted() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let mut container = sh("c", SERVE);
    let file = json!({"command": ["test", "-e", "/dev/shm/alive"]});
    container["livenessProbe"] = json!({"exec": file, "periodSeconds": 1, "failureThreshold": 1});
    let mut pod = world.pod("p", 10, json!({"containers": [container]}));
    pod.set("spec.terminationGracePeriodSeconds", 1);
    let key = world.apply(pod);
    world.until(&key, "restarted", |pod| restart_count(pod) >= 1).await;
    let events = world.api.events.lock().unwrap().clone();
    assert!(events.iter().any(|(_, reason, _)| reason == "Unhealthy"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_a_pod_can_be_stepped() {
    if !root() {
        return;
    }
    use node::gate::Go;
    let world = World::new().await;
    let mut pod = world.pod("p", 10, json!({"containers": [sh("c", SERVE)]}));
    pod.set("metadata.annotations", json!({"podyard.io/step": "true"}));
    let key = world.apply(pod);
    let stand = world.agent().step(&key, Go::Show).await.unwrap();
    assert_eq!(stand.next.as_deref(), Some("record"));
    let stand = world.agent().step(&key, Go::Next).await.unwrap();
    assert_eq!((stand.last.as_deref(), stand.next.as_deref()), (Some("record"), Some("cgroups")));
    let uid = world.api.get_now(&key).unwrap().uid().to_owned();
    assert!(world.yard.pod(&uid).record().exists() && world.leftovers(&uid).len() == 1);
    assert!(world.agent().step(&key, Go::Run).await.unwrap().done);
    world.ready(&key).await;
    // Deleted while it pauses.
    let mut other = world.pod("q", 11, json!({"containers": [sh("c", SERVE)]}));
    other.set("metadata.annotations", json!({"podyard.io/step": "true"}));
    let other = world.apply(other);
    world.agent().step(&other, Go::Next).await.unwrap();
    world.delete(&other, 0);
    world.gone(&other).await;
}

/// How long a pod takes, and where the time goes. `cargo test --release -p node --test pods -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a test"]
async fn root_measure_start_and_stop() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let count = 50;
    let (mut starts, mut stops) = (Vec::new(), Vec::new());
    let mut steps: std::collections::BTreeMap<String, Vec<u64>> = Default::default();
    for n in 0..count {
        let spec = json!({"containers": [sh("a", "sleep 1000"), sh("b", "sleep 1000")]});
        let begun = Instant::now();
        let key = world.apply(world.pod(&format!("p{n}"), 10, spec));
        world.ready(&key).await;
        starts.push(begun.elapsed());
        for entry in world.agent().trace(&key).unwrap().entries {
            let name = if entry.step == "network" || entry.step.starts_with("create") {
                format!("{} {}", entry.step, entry.effect.split([':', '/', '(']).next().unwrap_or(""))
            } else {
                entry.step
            };
            let name = name.chars().filter(|c| !c.is_ascii_digit()).collect();
            steps.entry(name).or_default().push(entry.micros);
        }
        let begun = Instant::now();
        world.delete(&key, 0);
        world.gone(&key).await;
        stops.push(begun.elapsed());
    }
    for (name, mut micros) in steps {
        micros.sort();
        println!("{:>8} µs p50 {:>8} µs min  {name}", micros[micros.len() / 2], micros[0]);
    }
    starts.sort();
    stops.sort();
    println!("start p50 {:?} min {:?} max {:?}", starts[count / 2], starts[0], starts[count - 1]);
    println!("stop  p50 {:?} min {:?} max {:?}", stops[count / 2], stops[0], stops[count - 1]);
    let begun = Instant::now();
    let keys: Vec<_> = (0..20u8)
        .map(|n| {
            let spec = json!({"containers": [sh("a", "sleep 1000"), sh("b", "sleep 1000")]});
            world.apply(world.pod(&format!("q{n}"), 20 + n, spec))
        })
        .collect();
    for key in &keys {
        world.ready(key).await;
    }
    println!("20 at once {:?}", begun.elapsed());
    let begun = Instant::now();
    for key in &keys {
        world.delete(key, 0);
    }
    for key in &keys {
        world.gone(key).await;
    }
    println!("20 gone {:?}", begun.elapsed());
}
