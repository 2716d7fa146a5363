//! A container is told after its start and before its end, and nothing else is done meanwhile.

use integration::harness::{Yard, first_status, is_ready, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

/// A pod that writes down what it is told, in a directory of the host's.
fn apply(yard: &Yard, grace_secs: u32, lifecycle: &str) -> std::path::PathBuf {
    let out = yard.dir().join("out");
    std::fs::create_dir_all(&out).expect("make the directory");
    yard.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: told, annotations: {{podyard.io/restart-backoff-base: 50ms}}}}
spec:
  terminationGracePeriodSeconds: {grace_secs}
  containers:
  - name: main
    image: podyard.local/host
    command: [sh, -c]
    args:
    - trap 'echo term >> /out/heard; exit 0' TERM; touch /out/up; while :; do sleep 0.05; done
    lifecycle: {lifecycle}
    volumeMounts: [{{name: out, mountPath: /out}}]
  volumes: [{{name: out, hostPath: {{path: {}}}}}]
",
        out.display()
    ));
    out
}

fn up(yard: &Yard, out: &std::path::Path) {
    until("its traps are set", || {
        if out.join("up").exists() { Ok(()) } else { Err(yard.get(&["pod", "told"])) }
    });
}

fn heard(out: &std::path::Path) -> String {
    std::fs::read_to_string(out.join("heard")).unwrap_or_default()
}

#[test]
fn root_the_hook_before_the_end_is_over_before_sigterm() {
    let Some(yard) = Yard::start(PROGRAM, "prestop") else { return };
    let hook = "{preStop: {exec: {command: [sh, -c, 'echo hook >> /out/heard; sleep 0.3; echo over >> /out/heard']}}}";
    let out = apply(&yard, 30, hook);
    yard.ready("told");
    up(&yard, &out);
    yard.ok(&["delete", "pod", "told"]);
    assert_eq!(heard(&out), "hook\nover\nterm\n");
}

#[test]
fn root_a_hook_that_does_not_end_is_cut_off_and_the_program_asked_to_end() {
    let Some(yard) = Yard::start(PROGRAM, "precut") else { return };
    let out = apply(&yard, 1, "{preStop: {sleep: {seconds: 600}}}");
    yard.ready("told");
    up(&yard, &out);
    yard.ok(&["delete", "pod", "told"]);
    assert_eq!(heard(&out), "term\n");
}

#[test]
fn root_a_container_is_ready_when_its_hook_after_the_start_is_over() {
    let Some(yard) = Yard::start(PROGRAM, "poststart") else { return };
    let hook = "{postStart: {exec: {command: [sh, -c, 'until [ -e /out/go ]; do sleep 0.05; done; echo hook >> /out/heard']}}}";
    let out = apply(&yard, 1, hook);
    up(&yard, &out);
    let pod = yard.pod_until("told", "running", |pod| first_status(pod)["state"]["running"].is_object());
    assert!(!is_ready(&pod), "the hook is under way");
    assert_eq!(first_status(&pod)["started"], false);
    std::fs::write(out.join("go"), "").expect("let the hook go on");
    yard.ready("told");
    assert_eq!(heard(&out), "hook\n", "it was called once");
}

#[test]
fn root_a_container_whose_hook_after_the_start_fails_is_restarted() {
    let Some(yard) = Yard::start(PROGRAM, "postfail") else { return };
    let hook =
        "{postStart: {exec: {command: [sh, -c, 'test -e /out/again || { touch /out/again; exit 3; }']}}}";
    apply(&yard, 1, hook);
    let pod = yard.pod_until("told", "restarted and ready", |pod| {
        first_status(pod)["restartCount"].as_u64() >= Some(1) && is_ready(pod)
    });
    assert_eq!(first_status(&pod)["restartCount"], 1);
    let events = yard.list(&["events"]);
    assert!(events.iter().any(|event| event["reason"] == "FailedPostStartHook"), "{events:#?}");
}
