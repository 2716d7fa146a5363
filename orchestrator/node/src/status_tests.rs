//! Tables for the status.

use super::*;
use crate::observed::PreStop;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + secs).unwrap()
}

fn pod(policy: &str) -> Object {
    Object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]},
        "status": {"podIP": "10.244.0.2"}
    }))
}

fn attempt(number: u32, state: State) -> Attempt {
    Attempt {
        number,
        state,
        pre_stop: PreStop::Idle,
        term_sent: false,
        unhealthy_since: None,
        deleted: false,
        image_id: "i@1".into(),
    }
}

fn running() -> State {
    State::Running { pid: 7, started_at: at(1) }
}

fn exited(code: i32) -> State {
    let reason = if code == 0 { ExitReason::Completed } else { ExitReason::Error };
    State::Exited(Exit { code, signal: 0, reason, started_at: Some(at(1)), finished_at: at(2) })
}

fn observed(a: Vec<Attempt>, b: Vec<Attempt>) -> Observed {
    let attempts = [("a".to_owned(), a), ("b".to_owned(), b)].into();
    Observed {
        recorded: true,
        cgroups: true,
        shim: Shim::Alive { set_up: true },
        attempts,
        ..Observed::default()
    }
}

fn make(pod: &Object, observed: &Observed, facts: &Facts) -> Value {
    status(pod, &Desired::from_object(pod), observed, facts, at(3))
}

fn ready(status: &Value) -> (&Value, &Value) {
    let of = |kind| {
        let conditions = status["conditions"].as_array().unwrap();
        &conditions.iter().find(|condition| condition["type"] == kind).unwrap()["status"]
    };
    (of("Ready"), of("ContainersReady"))
}

#[test]
fn a_pod_that_is_being_made_is_pending() {
    let status = make(&pod("Always"), &Observed::default(), &Facts::default());
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(ready(&status), (&json!("False"), &json!("False")));
    let half = make(&pod("Always"), &observed(vec![attempt(0, running())], vec![]), &Facts::default());
    assert_eq!(half["phase"], "Pending");
}

#[test]
fn a_pod_whose_containers_run_is_ready_at_once_without_probes() {
    let seen = observed(vec![attempt(0, running())], vec![attempt(0, running())]);
    let facts = Facts { host_ip: Some("10.0.0.1".into()), ..Facts::default() };
    let status = make(&pod("Always"), &seen, &facts);
    assert_eq!(status["phase"], "Running");
    assert_eq!(ready(&status), (&json!("True"), &json!("True")));
    let a = &status["containerStatuses"][0];
    assert_eq!(a["containerID"], "podyard://u/a/0");
    assert_eq!(a["state"]["running"]["startedAt"], "2023-11-14T22:13:21Z");
    assert_eq!((&a["ready"], &a["started"]), (&json!(true), &json!(true)));
    assert_eq!(status["podIPs"], json!([{"ip": "10.244.0.2"}]));
    assert_eq!(status["hostIP"], "10.0.0.1");
    assert_eq!(status["qosClass"], "BestEffort");
}

#[test]
fn the_same_world_gives_the_same_status_later() {
    let seen = observed(vec![attempt(0, running())], vec![attempt(0, running())]);
    let mut object = pod("Always");
    let first = make(&object, &seen, &Facts::default());
    object.set("status", first.clone());
    let again = status(&object, &Desired::from_object(&object), &seen, &Facts::default(), at(500));
    assert_eq!(first, again);
}

#[test]
fn an_unready_container_makes_the_pod_unready() {
    let seen = observed(vec![attempt(0, running())], vec![attempt(0, running())]);
    let mut facts = Facts::default();
    facts.health.insert("b".into(), Health { ready: false, started: true });
    let status = make(&pod("Always"), &seen, &facts);
    assert_eq!(status["phase"], "Running");
    assert_eq!(ready(&status), (&json!("False"), &json!("False")));
    let text = status["conditions"].to_string();
    assert!(text.contains("containers with unready status: [b]"), "{text}");
}

#[test]
fn a_crash_loop_shows_its_pause_and_its_last_end() {
    let seen = observed(vec![attempt(0, exited(1)), attempt(1, exited(1))], vec![attempt(0, running())]);
    let status = make(&pod("Always"), &seen, &Facts::default());
    assert_eq!(status["phase"], "Running");
    let a = &status["containerStatuses"][0];
    assert_eq!(a["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(
        a["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=a pod=p_default(u)"
    );
    assert_eq!(a["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(a["restartCount"], 1);
}

#[test]
fn a_restarted_container_shows_its_last_end() {
    let seen = observed(vec![attempt(0, exited(3)), attempt(1, running())], vec![attempt(0, running())]);
    let a = &make(&pod("Always"), &seen, &Facts::default())["containerStatuses"][0];
    assert!(a["state"].get("running").is_some());
    assert_eq!(a["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(a["lastState"]["terminated"]["containerID"], "podyard://u/a/0");
    assert_eq!(a["restartCount"], 1);
    // Not started yet: still the end of the first run.
    let seen =
        observed(vec![attempt(0, exited(3)), attempt(1, State::Recorded)], vec![attempt(0, running())]);
    let a = &make(&pod("Always"), &seen, &Facts::default())["containerStatuses"][0];
    assert_eq!(a["state"]["terminated"]["exitCode"], 3);
    assert_eq!(a["restartCount"], 0);
}

#[test]
fn an_ended_pod_is_terminal_only_when_nothing_of_it_is_left() {
    let mut seen = observed(vec![attempt(0, exited(0))], vec![attempt(0, exited(1))]);
    assert_eq!(make(&pod("Never"), &seen, &Facts::default())["phase"], "Running");
    seen.cgroups = false;
    seen.shim = Shim::Absent;
    let status = make(&pod("Never"), &seen, &Facts::default());
    assert_eq!(status["phase"], "Failed");
    assert!(status["conditions"].to_string().contains("PodFailed"));
    seen.attempts.insert("b".into(), vec![attempt(0, exited(0))]);
    assert_eq!(make(&pod("Never"), &seen, &Facts::default())["phase"], "Succeeded");
}

#[test]
fn a_step_that_does_not_succeed_is_the_reason_for_waiting() {
    let mut facts = Facts::default();
    let fault = Waiting { reason: "CreateContainerError".into(), message: "exec: no such file".into() };
    facts.faults.insert("a".into(), fault);
    let status = make(&pod("Always"), &observed(vec![attempt(0, State::Recorded)], vec![]), &facts);
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], "CreateContainerError");
    assert_eq!(waiting["message"], "exec: no such file");
}

#[test]
fn conditions_of_others_are_kept_and_gate_readiness() {
    let mut object = pod("Always");
    object.set("spec.readinessGates", json!([{"conditionType": "x/y"}]));
    let seen = observed(vec![attempt(0, running())], vec![attempt(0, running())]);
    assert_eq!(ready(&make(&object, &seen, &Facts::default())), (&json!("False"), &json!("True")));
    object.set("status.conditions", json!([{"type": "x/y", "status": "True"}]));
    let status = make(&object, &seen, &Facts::default());
    assert_eq!(ready(&status), (&json!("True"), &json!("True")));
    assert!(status["conditions"].to_string().contains("x/y"));
}

#[test]
fn classes_of_service() {
    let check = |resources: Value, expect: &str| {
        let mut object = pod("Always");
        object.set("spec.containers", json!([{"name": "a", "resources": resources}]));
        assert_eq!(qos_class(&object), expect);
    };
    check(json!({}), "BestEffort");
    check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
    check(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable");
    check(json!({"requests": {"cpu": "500m"}}), "Burstable");
}
