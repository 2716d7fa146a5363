//! A pod: several containers that share localhost, IPC and files; it starts, restarts, reports and stops
//! as Kubernetes says.

use integration::harness::{Yard, first_status, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

const TOGETHER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: together, labels: {app: together}}
spec:
  terminationGracePeriodSeconds: 2
  volumes: [{name: shared, emptyDir: {}}]
  containers:
  - name: writer
    image: podyard.local/toolbox
    command: [write, /shared/index.html, hello, --every, '0.2']
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: server
    image: podyard.local/toolbox
    command: [serve, --dir, /shared, --port, '8080']
    ports: [{containerPort: 8080}]
    volumeMounts: [{name: shared, mountPath: /shared, readOnly: true}]
";

/// A pod of one toolbox container that runs `command`.
fn pod(name: &str, command: &str, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, annotations: {{podyard.io/restart-backoff-base: 50ms}}}}
spec:
  terminationGracePeriodSeconds: 1
  {more}
  containers:
  - name: main
    image: podyard.local/toolbox
    command: {command}
"
    )
}

#[test]
fn root_two_containers_share_localhost_ipc_and_files() {
    let Some(yard) = Yard::start(PROGRAM, "share") else { return };
    yard.apply(TOGETHER);
    let pod = yard.ready("together");
    // What one writes, the other serves, and the first fetches over the localhost they share.
    until("the served file", || {
        let ran = yard.podyard(&[
            "exec",
            "together",
            "-c",
            "writer",
            "--",
            "fetch",
            "http://localhost:8080/index.html",
        ]);
        if ran.code == 0 && ran.stdout.starts_with("hello ") { Ok(()) } else { Err(ran) }
    });
    let count = |kind: &str| yard.namespaces("together", kind).len();
    assert_eq!((count("net"), count("ipc"), count("uts")), (1, 1, 1), "one of each, shared");
    assert_eq!((count("mnt"), count("pid")), (2, 2), "one for each container");
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["containerStatuses"].as_array().map(Vec::len), Some(2));
    // A read-only mount of a shared volume is read-only for that container alone.
    let refused = yard.podyard(&["exec", "together", "-c", "server", "--", "write", "/shared/x", "y"]);
    assert_ne!(refused.code, 0, "{refused:#?}");
    assert!(refused.stderr.contains("Read-only"), "{refused:#?}");
}

#[test]
fn root_exec_passes_the_exit_code_on() {
    let Some(yard) = Yard::start(PROGRAM, "exec") else { return };
    yard.apply(&pod("p", "[sleep, infinity]", ""));
    yard.ready("p");
    for code in [0, 7, 255] {
        let ran = yard.podyard(&["exec", "p", "--", "exit", &code.to_string()]);
        assert_eq!(ran.code, code, "{ran:#?}");
    }
    let ran = yard.podyard(&["exec", "p", "--", "no-such-program"]);
    assert!(ran.code != 0 && ran.stderr.contains("no-such-program"), "{ran:#?}");
    assert_eq!(yard.ok(&["exec", "p", "--", "hostname"]), "p\n");
    let ran = yard.podyard_with(&["exec", "-i", "p", "--", "cat", "/dev/stdin"], "through stdin");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "through stdin"), "{ran:#?}");
}

#[test]
fn root_the_restart_policy_decides() {
    let Some(yard) = Yard::start(PROGRAM, "restart") else { return };
    yard.apply(&pod("always", "[exit, '3']", ""));
    yard.apply(&pod("never", "[exit, '3']", "restartPolicy: Never"));
    yard.apply(&pod("done", "[exit, '0']", "restartPolicy: OnFailure"));
    let pod =
        yard.pod_until("always", "restarts", |pod| first_status(pod)["restartCount"].as_u64() >= Some(2));
    assert_eq!(pod["status"]["phase"], "Running", "a pod that restarts has not failed");
    assert_eq!(first_status(&pod)["lastState"]["terminated"]["exitCode"], 3, "{pod:#}");
    let pod = yard.pod_until("never", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(first_status(&pod)["state"]["terminated"]["exitCode"], 3, "{pod:#}");
    assert_eq!(first_status(&pod)["restartCount"], 0);
    let pod = yard.pod_until("done", "succeeded", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(first_status(&pod)["state"]["terminated"]["reason"], "Completed", "{pod:#}");
}

#[test]
fn root_a_container_that_cannot_start_says_why() {
    let Some(yard) = Yard::start(PROGRAM, "reason") else { return };
    yard.apply(&pod("nothing", "[/no/such/program]", ""));
    yard.apply(
        &pod("nowhere", "[sleep, infinity]", "").replace("podyard.local/toolbox", "example.org/other:1"),
    );
    for (name, word) in [("nothing", "/no/such/program"), ("nowhere", "example.org/other:1")] {
        yard.pod_until(name, "names the reason", |pod| {
            let status = first_status(pod);
            let both = [
                &status["state"]["waiting"],
                &status["lastState"]["terminated"],
                &status["state"]["terminated"],
            ];
            both.iter().any(|state| {
                state["reason"].is_string()
                    && state["message"].as_str().is_some_and(|text| text.contains(word))
            })
        });
    }
}

#[test]
fn root_logs_are_kept_and_followed() {
    let Some(yard) = Yard::start(PROGRAM, "logs") else { return };
    yard.apply(&pod("talk", "[echo, one, two]", "restartPolicy: Never"));
    yard.pod_until("talk", "succeeded", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(yard.ok(&["logs", "talk"]), "one two\n");
    assert_eq!(yard.ok(&["logs", "talk", "-f"]), "one two\n", "following an ended container ends");
}

#[test]
fn root_the_grace_period_is_kept_and_ends() {
    let Some(yard) = Yard::start(PROGRAM, "grace") else { return };
    // PID 1 without a handler ignores SIGTERM: only the SIGKILL after the grace period ends it.
    let deaf = pod("deaf", "[/bin/cat, /fifo/none]", "");
    let deaf = deaf
        .replace("podyard.local/toolbox", "podyard.local/host")
        .replace("[/bin/cat, /fifo/none]", "[/usr/bin/tail, -f, /dev/null]");
    yard.apply(&deaf);
    yard.apply(
        &pod("quick", "[sleep, infinity]", "")
            .replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 30"),
    );
    yard.ready("deaf");
    yard.ready("quick");
    let begun = std::time::Instant::now();
    yard.ok(&["delete", "pod", "quick"]);
    assert!(begun.elapsed().as_secs() < 20, "SIGTERM ends what handles it: {:?}", begun.elapsed());
    let begun = std::time::Instant::now();
    yard.ok(&["delete", "pod", "deaf"]);
    assert!(begun.elapsed().as_millis() >= 1_000, "not before the grace period: {:?}", begun.elapsed());
    assert!(yard.get(&["pod", "deaf"]).is_none());
}

#[test]
fn root_environment_directory_and_limits_are_in_force() {
    let Some(yard) = Yard::start(PROGRAM, "limits") else { return };
    yard.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - name: main
    image: podyard.local/toolbox
    command: [sleep]
    args: [infinity]
    workingDir: /tmp
    env:
    - {name: COLOUR, value: green}
    - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    resources: {limits: {memory: 32Mi, cpu: 500m}}
  - name: greedy
    image: podyard.local/toolbox
    command: [mem, '67108864']
    resources: {limits: {memory: 16Mi}}
",
    );
    yard.pod_until("p", "has its greedy container killed", |pod| {
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.iter().any(|status| {
            status["name"] == "greedy"
                && [&status["state"], &status["lastState"]]
                    .iter()
                    .any(|state| state["terminated"]["reason"] == "OOMKilled")
        })
    });
    let environment = yard.ok(&["exec", "p", "-c", "main", "--", "env"]);
    assert!(environment.contains("COLOUR=green\n") && environment.contains("ME=p\n"), "{environment}");
    let status = yard.ok(&["exec", "p", "-c", "main", "--", "cat", "/proc/1/status"]);
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapInh:\t0000000000000000"] {
        assert!(status.contains(line), "{line} in {status}");
    }
}

#[test]
fn root_readiness_follows_the_probe() {
    let Some(yard) = Yard::start(PROGRAM, "probe") else { return };
    yard.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: shared, emptyDir: {}}]
  containers:
  - name: http
    image: podyard.local/toolbox
    command: [serve, --dir, /shared, --port, '8080']
    readinessProbe: {httpGet: {path: /ok, port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: tcp
    image: podyard.local/toolbox
    command: [serve, --port, '8081']
    readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}
  - name: exec
    image: podyard.local/toolbox
    command: [sleep, infinity]
    readinessProbe: {exec: {command: [test, -e, /shared/ok]}, periodSeconds: 1}
    volumeMounts: [{name: shared, mountPath: /shared}]
",
    );
    let ready = |pod: &serde_json::Value| -> Vec<(String, bool)> {
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let of = |s: &serde_json::Value| (s["name"].as_str().unwrap_or("").to_owned(), s["ready"] == true);
        statuses.iter().map(of).collect()
    };
    let pod = yard.pod_until("probed", "ready by tcp only", |pod| {
        ready(pod).iter().any(|(name, ready)| name == "tcp" && *ready)
    });
    assert!(!integration::harness::is_ready(&pod), "{pod:#}");
    yard.ok(&["exec", "probed", "-c", "http", "--", "write", "/shared/ok", "yes"]);
    yard.ready("probed");
}

#[test]
fn root_unknown_fields_are_refused_each_by_name() {
    let Some(yard) = Yard::start(PROGRAM, "strict") else { return };
    let bad =
        pod("bad", "[sleep, infinity]", "restartPolicyy: Never").replace("image:", "imagee: x\n    image:");
    let ran = yard.podyard_with(&["apply", "-f", "-"], &bad);
    assert_ne!(ran.code, 0);
    for field in ["spec.restartPolicyy", "spec.containers[0].imagee"] {
        assert!(ran.stderr.contains(field), "{field} in {ran:#?}");
    }
    assert!(yard.get(&["pod", "bad"]).is_none(), "nothing is left");
}

#[test]
fn root_a_container_is_asked_to_end_by_its_own_signal() {
    let Some(yard) = Yard::start(PROGRAM, "stopsignal") else { return };
    let out = yard.dir().join("out");
    std::fs::create_dir(&out).expect("a directory for its last word");
    yard.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: polite}}
spec:
  os: {{name: linux}}
  containers:
  - name: main
    image: podyard.local/host
    command:
    - sh
    - -c
    - trap 'echo INT > /out/word; exit 0' INT; trap 'echo TERM > /out/word; exit 0' TERM; touch /out/up; while :; do sleep 0.05; done
    lifecycle: {{stopSignal: SIGINT}}
    volumeMounts: [{{name: out, mountPath: /out}}]
  volumes: [{{name: out, hostPath: {{path: {}}}}}]
",
        out.display()
    ));
    until("its traps are set", || {
        if out.join("up").exists() { Ok(()) } else { Err(yard.get(&["pod", "polite"])) }
    });
    yard.ok(&["delete", "pod", "polite"]);
    assert_eq!(std::fs::read_to_string(out.join("word")).expect("its last word"), "INT\n");
}
