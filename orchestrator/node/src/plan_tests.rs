//! Tables for the plan.

use std::collections::BTreeMap;

use super::*;
use crate::observed::ExitReason;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + secs).unwrap()
}

fn desired(policy: RestartPolicy, mains: &[&str]) -> Desired {
    Desired {
        uid: "u".into(),
        namespace: "default".into(),
        name: "p".into(),
        wanted: Wanted::Present,
        containers: mains
            .iter()
            .map(|name| Container {
                name: (*name).into(),
                role: Role::Main,
                restart: policy,
                pre_stop: false,
            })
            .collect(),
        backoff_base: Duration::from_secs(10),
        pod_ip: Some([10, 244, 0, 9].into()),
        claims: vec![],
        grace: Duration::from_secs(30),
        finished: false,
        step_mode: false,
    }
}

fn up() -> Observed {
    Observed {
        directory: true,
        recorded: true,
        cgroups: true,
        populated: true,
        volumes: Volumes::Ready,
        link: true,
        snapshots: true,
        shim: Shim::Alive { set_up: true },
        attempts: BTreeMap::new(),
    }
}

fn attempt(number: u32, state: State) -> Attempt {
    Attempt {
        number,
        state,
        pre_stop: PreStop::Idle,
        term_sent: false,
        unhealthy_since: None,
        deleted: false,
        image_id: String::new(),
    }
}

fn running() -> State {
    State::Running { pid: 7, started_at: at(0) }
}

fn exited(code: i32, started: i64, finished: i64) -> State {
    State::Exited(Exit {
        code,
        signal: 0,
        reason: if code == 0 { ExitReason::Completed } else { ExitReason::Error },
        started_at: Some(at(started)),
        finished_at: at(finished),
    })
}

fn with(mut observed: Observed, container: &str, attempts: Vec<Attempt>) -> Observed {
    observed.attempts.insert(container.into(), attempts);
    observed
}

#[track_caller]
fn check(desired: &Desired, observed: &Observed, now: i64, expect: &[&str], wake: Option<i64>) {
    let plan = plan(desired, observed, at(now));
    let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    assert_eq!(steps, expect);
    assert_eq!(plan.wake_at, wake.map(at));
}

#[test]
fn a_new_pod_gets_every_step_in_order() {
    check(
        &desired(RestartPolicy::Always, &["a", "b"]),
        &Observed::default(),
        0,
        &[
            "record",
            "cgroups",
            "volumes",
            "shim",
            "network",
            "prepare a.0",
            "create a.0",
            "start a.0",
            "prepare b.0",
            "create b.0",
            "start b.0",
        ],
        None,
    );
}

#[test]
fn a_crash_between_any_two_steps_goes_on_from_there() {
    let want = desired(RestartPolicy::Always, &["a"]);
    let mut seen = Observed { recorded: true, ..Observed::default() };
    check(
        &want,
        &seen,
        0,
        &["cgroups", "volumes", "shim", "network", "prepare a.0", "create a.0", "start a.0"],
        None,
    );
    seen.cgroups = true;
    seen.volumes = Volumes::Ready;
    seen.shim = Shim::Alive { set_up: false };
    check(&want, &seen, 0, &["network", "prepare a.0", "create a.0", "start a.0"], None);
    seen.shim = Shim::Alive { set_up: true };
    let recorded = with(seen.clone(), "a", vec![attempt(0, State::Recorded)]);
    check(&want, &recorded, 0, &["prepare a.0", "create a.0", "start a.0"], None);
    let created = with(seen.clone(), "a", vec![attempt(0, State::Created)]);
    check(&want, &created, 0, &["start a.0"], None);
    let runs = with(seen, "a", vec![attempt(0, running())]);
    check(&want, &runs, 0, &[], None);
}

#[test]
fn restarts_follow_policy_and_backoff() {
    let again = &["delete-container a.0", "prepare a.1", "create a.1", "start a.1"];
    let failed = with(up(), "a", vec![attempt(0, exited(1, 0, 5))]);
    let ended = with(up(), "a", vec![attempt(0, exited(0, 0, 5))]);
    let gone = &[
        "delete-container a.0",
        "shutdown-shim",
        "fence",
        "bury",
        "detach",
        "remove-cgroups",
        "remove-snapshots",
        "remove-volumes",
    ];
    check(&desired(RestartPolicy::Always, &["a"]), &failed, 5, again, None);
    check(&desired(RestartPolicy::Always, &["a"]), &ended, 5, again, None);
    check(&desired(RestartPolicy::OnFailure, &["a"]), &failed, 5, again, None);
    check(&desired(RestartPolicy::OnFailure, &["a"]), &ended, 5, gone, None);
    check(&desired(RestartPolicy::Never, &["a"]), &failed, 5, gone, None);
    // The second restart waits 10 s.
    let twice = with(up(), "a", vec![attempt(0, exited(1, 0, 5)), attempt(1, exited(1, 5, 6))]);
    check(&desired(RestartPolicy::Always, &["a"]), &twice, 6, &[], Some(16));
    check(
        &desired(RestartPolicy::Always, &["a"]),
        &twice,
        16,
        &["delete-container a.1", "prepare a.2", "create a.2", "start a.2"],
        None,
    );
}

#[test]
fn backoff_doubles_is_capped_and_resets() {
    let base = Duration::from_secs(10);
    let runs = |n: u32| (0..n).map(|i| attempt(i, exited(1, i64::from(i), i64::from(i)))).collect::<Vec<_>>();
    let secs: Vec<u64> = (0..9).map(|n| backoff(&runs(n), base).as_secs()).collect();
    assert_eq!(secs, [0, 0, 10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(backoff(&runs(60), base), BACKOFF_MAX);
    let mut long = runs(3);
    long.push(attempt(3, exited(1, 0, 600)));
    assert_eq!(backoff(&long, base), Duration::ZERO);
    long.push(attempt(4, exited(1, 0, 1)));
    assert_eq!(backoff(&long, base), Duration::ZERO);
    long.push(attempt(5, exited(1, 0, 1)));
    assert_eq!(backoff(&long, base).as_secs(), 10);
}

#[test]
fn one_ended_container_does_not_end_the_others() {
    let want = desired(RestartPolicy::Never, &["a", "b"]);
    let seen = with(with(up(), "a", vec![attempt(0, exited(1, 0, 1))]), "b", vec![attempt(0, running())]);
    check(&want, &seen, 2, &[], None);
    assert_eq!(outcome(&want, &seen), None);
    let both = with(seen, "b", vec![attempt(0, exited(0, 0, 3))]);
    assert_eq!(outcome(&want, &both), Some(Outcome::Failed));
}

#[test]
fn a_released_pod_needs_nothing_more() {
    let mut ended = attempt(0, exited(0, 0, 1));
    ended.deleted = true;
    let seen = with(Observed { recorded: true, ..Observed::default() }, "a", vec![ended]);
    let want = desired(RestartPolicy::Never, &["a"]);
    check(&want, &seen, 2, &[], None);
    assert_eq!(outcome(&want, &seen), Some(Outcome::Succeeded));
}

#[test]
fn stopping_asks_then_kills_then_takes_away() {
    let mut want = desired(RestartPolicy::Always, &["a"]);
    want.wanted = Wanted::Stopping { kill_at: at(30) };
    let mut seen = with(up(), "a", vec![attempt(0, running())]);
    check(&want, &seen, 0, &["terminate"], Some(30));
    seen.attempts.get_mut("a").unwrap()[0].term_sent = true;
    check(&want, &seen, 1, &[], Some(30));
    check(&want, &seen, 30, &["kill"], Some(31));
    seen.attempts.get_mut("a").unwrap()[0].state = exited(143, 0, 2);
    let all = &[
        "delete-container a.0",
        "shutdown-shim",
        "fence",
        "bury",
        "detach",
        "remove-cgroups",
        "remove-snapshots",
        "remove-volumes",
        "unrecord",
        "finish",
    ];
    check(&want, &seen, 2, all, None);
    want.wanted = Wanted::Gone;
    check(&want, &seen, 2, &all[..all.len() - 1], None);
    // A pod that never got anywhere.
    check(&want, &Observed::default(), 2, &[], None);
    want.wanted = Wanted::Stopping { kill_at: at(30) };
    check(&want, &Observed::default(), 2, &["finish"], None);
}

#[test]
fn storage_is_let_go_only_after_the_fence() {
    let mut want = desired(RestartPolicy::Always, &["a"]);
    want.wanted = Wanted::Gone;
    for shim in [Shim::Absent, Shim::Alive { set_up: true }, Shim::Dead] {
        let steps = plan(&want, &Observed { shim, ..up() }, at(0)).steps;
        let place = |wanted: &Step| steps.iter().position(|step| step == wanted).unwrap();
        assert!(place(&Step::Fence) < place(&Step::RemoveVolumes));
        assert!(place(&Step::RemoveVolumes) < place(&Step::Unrecord));
    }
}

#[test]
fn the_death_of_the_shim_is_the_death_of_the_pod() {
    let mut seen = with(up(), "a", vec![attempt(0, State::Recorded)]);
    seen.shim = Shim::Dead;
    check(
        &desired(RestartPolicy::Always, &["a"]),
        &seen,
        0,
        &["fence", "bury", "detach", "delete-container a.0"],
        None,
    );
    // Even a stopping pod's processes are fenced before anything is let go.
    let mut want = desired(RestartPolicy::Always, &["a"]);
    want.wanted = Wanted::Stopping { kill_at: at(30) };
    assert_eq!(plan(&want, &seen, at(0)).steps[0], Step::Fence);
}

#[test]
fn init_containers_run_one_after_the_other() {
    let mut want = desired(RestartPolicy::Always, &["m"]);
    let init = |name: &str, role, restart| Container { name: name.into(), role, restart, pre_stop: false };
    want.containers.insert(0, init("i", Role::Init, RestartPolicy::OnFailure));
    want.containers.insert(1, init("s", Role::Sidecar, RestartPolicy::Always));
    check(&want, &up(), 0, &["prepare i.0", "create i.0", "start i.0"], None);
    let seen = with(up(), "i", vec![attempt(0, running())]);
    check(&want, &seen, 0, &[], None);
    let seen = with(up(), "i", vec![attempt(0, exited(0, 0, 1))]);
    check(&want, &seen, 1, &["prepare s.0", "create s.0", "start s.0"], None);
    let seen = with(seen, "s", vec![attempt(0, running())]);
    check(&want, &seen, 1, &["prepare m.0", "create m.0", "start m.0"], None);
    // Never: a failed init container fails the pod.
    want.containers[0].restart = RestartPolicy::Never;
    let seen = with(up(), "i", vec![attempt(0, exited(2, 0, 1))]);
    assert_eq!(outcome(&want, &seen), Some(Outcome::Failed));
}

#[test]
fn an_unhealthy_container_is_asked_then_killed() {
    let want = desired(RestartPolicy::Always, &["a"]);
    let mut seen = with(up(), "a", vec![attempt(0, running())]);
    seen.attempts.get_mut("a").unwrap()[0].unhealthy_since = Some(at(5));
    check(&want, &seen, 5, &["terminate-container a.0"], Some(35));
    seen.attempts.get_mut("a").unwrap()[0].term_sent = true;
    check(&want, &seen, 6, &[], Some(35));
    check(&want, &seen, 35, &["kill-container a.0"], Some(36));
}

#[test]
fn what_the_api_calls_finished_is_never_started() {
    let mut want = desired(RestartPolicy::Never, &["a"]);
    want.finished = true;
    check(&want, &Observed::default(), 0, &[], None);
}

#[test]
fn a_pod_without_an_address_waits_for_one() {
    let mut want = desired(RestartPolicy::Always, &["a"]);
    want.pod_ip = None;
    check(&want, &Observed::default(), 0, &[], None);
}

#[test]
fn a_directory_that_a_crash_left_without_its_record_goes_too() {
    let mut want = desired(RestartPolicy::Always, &["a"]);
    want.wanted = Wanted::Gone;
    check(&want, &Observed { directory: true, ..Observed::default() }, 0, &["unrecord"], None);
}

#[test]
fn what_runs_on_in_a_finished_pod_is_killed_before_it_is_released() {
    let mut want = desired(RestartPolicy::Never, &["a"]);
    want.finished = true;
    let seen = with(up(), "a", vec![attempt(0, running())]);
    check(&want, &seen, 0, &["kill"], Some(1));
    want.finished = false;
    want.containers.insert(
        0,
        Container { name: "s".into(), role: Role::Sidecar, restart: RestartPolicy::Always, pre_stop: false },
    );
    let seen = with(with(up(), "a", vec![attempt(0, exited(0, 0, 1))]), "s", vec![attempt(0, running())]);
    check(&want, &seen, 1, &["kill"], Some(2));
}

/// A pod with two containers, of which `a` has a hook before its end.
fn hooked(wanted: Wanted) -> Desired {
    let mut desired = Desired { wanted, ..desired(RestartPolicy::Always, &["a", "b"]) };
    desired.containers[0].pre_stop = true;
    desired
}

#[test]
fn the_hook_before_the_end_comes_before_sigterm() {
    let want = hooked(Wanted::Stopping { kill_at: at(30) });
    let seen = |pre_stop, term_sent| {
        let a = Attempt { pre_stop, term_sent, ..attempt(0, running()) };
        with(with(up(), "a", vec![a]), "b", vec![Attempt { term_sent: true, ..attempt(0, running()) }])
    };
    let fresh = with(with(up(), "a", vec![attempt(0, running())]), "b", vec![attempt(0, running())]);
    check(&want, &fresh, 0, &["pre-stop a.0", "terminate-container b.0"], Some(30));
    check(&want, &seen(PreStop::Called, false), 1, &[], Some(30));
    check(&want, &seen(PreStop::Over, false), 2, &["terminate-container a.0"], Some(30));
    check(&want, &seen(PreStop::Over, true), 3, &[], Some(30));
    check(&want, &seen(PreStop::Over, true), 30, &["kill"], Some(31));
    // One that was never started has nothing to say.
    let created = with(up(), "a", vec![attempt(0, State::Created)]);
    check(&want, &created, 0, &["terminate-container a.0"], Some(30));
}

#[test]
fn a_hook_that_takes_all_of_the_time_leaves_the_program_a_moment() {
    let seen =
        |pre_stop, term_sent| with(up(), "a", vec![Attempt { pre_stop, term_sent, ..attempt(0, running()) }]);
    let want = hooked(Wanted::Stopping { kill_at: at(30) });
    check(&want, &seen(PreStop::Called, false), 30, &["terminate-container a.0"], Some(32));
    check(&want, &seen(PreStop::CutOff, true), 31, &[], Some(32));
    check(&want, &seen(PreStop::CutOff, true), 32, &["kill"], Some(33));
    // There was no time for it at all: as with grace period 0.
    check(&want, &seen(PreStop::Idle, false), 30, &["kill"], Some(31));
    check(&hooked(Wanted::Gone), &seen(PreStop::Called, false), 5, &["kill"], Some(6));
}

#[test]
fn a_container_that_its_probe_gave_up_has_its_hook_called_too() {
    let seen = |pre_stop| {
        let unhealthy_since = Some(at(0));
        let a = Attempt { pre_stop, unhealthy_since, ..attempt(0, running()) };
        with(with(up(), "a", vec![a]), "b", vec![attempt(0, running())])
    };
    let want = hooked(Wanted::Present);
    check(&want, &seen(PreStop::Idle), 1, &["pre-stop a.0"], Some(30));
    check(&want, &seen(PreStop::Called), 1, &[], Some(30));
    check(&want, &seen(PreStop::Over), 1, &["terminate-container a.0"], Some(30));
    check(&want, &seen(PreStop::Called), 30, &["kill-container a.0"], Some(31));
}
