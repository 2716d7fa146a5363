//! Into a container that is hostile already: its processes run, and its files are theirs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::exec::run;
use crate::fixture::{Case, Group, Running, eventually};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_exec_with_a_hostile_passwd", hostile_passwd),
    ("root_exec_with_proc_and_dev_replaced", proc_and_dev_replaced),
    ("root_cve_2016_9962_exec_cannot_be_traced", cannot_be_traced),
    ("root_exec_shows_no_directory_of_the_hosts", shows_no_directory),
    ("root_exec_killed_from_inside", killed_from_inside),
    ("root_exec_where_no_process_fits", no_process_fits),
    ("root_exec_while_paused", while_paused),
];

fn capabilities(names: &[&str]) -> Value {
    json!({"bounding": names, "permitted": names, "effective": names})
}

/// Starts a container, and waits until its first commands are done.
fn prepared(case: Case, commands: &[&str]) -> Running {
    let args: Vec<&str> = ["/program", "--program"].iter().chain(commands).copied().collect();
    let done = case.root.0.join("done");
    let mut args: Vec<String> = args.into_iter().map(String::from).collect();
    args.extend(["write /done x".to_string(), "sleep".to_string()]);
    let running = case.set("/process/args", json!(args)).start();
    eventually("prepared", || done.exists());
    running
}

fn hostile_passwd() {
    let attempts: [&[&str]; 6] = [
        &["mkdir /etc", "mkfifo /etc/passwd"],
        &["mkdir /etc", "fill /etc/passwd 24"],
        &["mkdir /etc", "mkdir /etc/passwd"],
        &["mkdir /etc", "symlink /etc/passwd /etc/passwd"],
        &["mkdir /etc", "symlink /proc/kmsg /etc/passwd"],
        &["symlink /proc/1/root/../../etc /etc"],
    ];
    for commands in attempts {
        let running = prepared(Case::new(&[]), commands);
        let start = Instant::now();
        let outcome = run(&running, &["env", "pid"], |_| {}).unwrap();
        assert!(outcome.answer(0).contains("HOME=/"), "{commands:?}: {outcome:?}");
        assert!(start.elapsed() < Duration::from_secs(20), "{commands:?}");
        running.kill();
    }
}

fn proc_and_dev_replaced() {
    let case = Case::new(&[]).set("/process/capabilities", capabilities(&["CAP_SYS_ADMIN"]));
    let running = prepared(
        case,
        &[
            "mkdir /fake",
            "mkdir /fake/self",
            "mkdir /fake/self/attr",
            "write /fake/self/oom_score_adj untouched",
            "bind-on /fake /proc",
            "mount-on tmpfs /dev",
            "symlink /fake/self/oom_score_adj /dev/null",
            "mkdir /dev/pts",
            "symlink /fake /dev/pts/ptmx",
            "symlink /fake /dev/console",
        ],
    );
    let outcome = run(&running, &["ls /proc", "cwd", "cat /fake/self/oom_score_adj"], |process| {
        process["oomScoreAdj"] = json!(99);
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome.answer(0), "self");
    assert_eq!(outcome.answer(1), "/");
    assert_eq!(outcome.answer(2), "untouched");
    // A terminal of a multiplexer that is none.
    let spec = json!({"user": {"uid": 0, "gid": 0}, "args": ["/program"], "cwd": "/"});
    let error = runtime::exec::exec(runtime::exec::ExecRequest {
        target: running.pidfd.try_clone().unwrap(),
        process: runtime::exec::ProcessPlan::from_spec(&serde_json::from_value(spec).unwrap()).unwrap(),
        seccomp: None,
        stdio: runtime::container::Stdio::Terminal(None),
        cgroup: None,
        parent: runtime::container::Parent::Caller,
        identity: Default::default(),
    })
    .unwrap_err();
    assert!(error.to_string().starts_with("open a terminal: "), "{error}");
    // What it asks of the working directory is refused, wherever the container led it.
    for cwd in ["/proc/self/fd/4", "/proc/self/cwd", "/dev/console"] {
        let outcome = run(&running, &["cwd"], |process| process["cwd"] = json!(cwd));
        assert!(
            outcome.is_err() || outcome.as_ref().unwrap().answer(0).starts_with('/'),
            "{cwd}: {outcome:?}"
        );
    }
    running.kill();
}

/// Runs `attack` in a container while others enter it; what it said.
fn under_attack(bundle: &Bundle, attack: &str, enter: impl Fn()) -> String {
    bundle.edit(|spec| {
        spec["process"]["args"] = json!(["/program", "--program", attack]);
    });
    let file = crate::supervise::output();
    let directory = bundle.directory.0.to_str().unwrap().to_string();
    let mut attacker = bundle
        .command(&["run", "--bundle", &directory, &bundle.id])
        .stdout(file.try_clone().unwrap())
        .stderr(file.try_clone().unwrap())
        .spawn()
        .unwrap();
    eventually("running", || {
        String::from_utf8_lossy(&bundle.run(&["state", &bundle.id]).stdout).contains("\"running\"")
    });
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        enter();
    }
    assert!(attacker.wait().unwrap().success());
    crate::supervise::written(&file).trim_end_matches('\x1e').to_string()
}

fn cannot_be_traced() {
    // Without CAP_SYS_PTRACE over the host's user namespace; with it, nothing short of a user namespace helps.
    let bundle = Bundle::new(&[]);
    bundle.edit(|spec| spec["process"]["capabilities"] = capabilities(&["CAP_DAC_OVERRIDE", "CAP_KILL"]));
    let said = under_attack(&bundle, "trace-newcomers 2500", || {
        bundle.run(&["exec", &bundle.id, "/program", "--program", "pid"]);
    });
    assert_eq!(said, "1 tried, 0 seized");
}

fn shows_no_directory() {
    let bundle = Bundle::new(&[]);
    bundle.edit(|spec| {
        spec["process"]["capabilities"] =
            capabilities(&["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"]);
    });
    let said = under_attack(&bundle, "descriptors-of-newcomers 2500", || {
        bundle.run(&["exec", &bundle.id, "/program", "--program", "pid"]);
    });
    assert_eq!(said, "{}");
}

fn killed_from_inside() {
    let bundle = Bundle::new(&[]);
    bundle.edit(|spec| spec["process"]["capabilities"] = capabilities(&["CAP_KILL"]));
    let said = under_attack(&bundle, "kill-newcomers 2500", || {
        // It ends, one way or another, and says so.
        let output = bundle.run(&["exec", &bundle.id, "/program", "--program", "sleep"]);
        assert!(!output.status.success(), "{output:?}");
    });
    assert_eq!(said, "done");
}

fn no_process_fits() {
    let group = Group::new();
    let limit = json!({"pids": {"limit": 8}});
    group.0.apply_limits(&serde_json::from_value(limit).unwrap()).unwrap();
    let case = Case::new(&[]).cgroup(&group);
    let running = prepared(case, &["fork-until-full"]);
    let start = Instant::now();
    let entered = run(&running, &["pid"], |_| {});
    match group.0.layout() {
        runtime::cgroup::Layout::Unified => {
            let error = entered.unwrap_err();
            assert!(error.to_string().contains("EAGAIN"), "{error}");
        }
        // One that joins is not counted against the limit of a v1 hierarchy; what it forks is.
        _ => drop(entered.unwrap()),
    }
    assert!(start.elapsed() < Duration::from_secs(20));
    crate::failure::assert_only_child(running.pid);
    group.0.kill().unwrap();
    running.kill();
}

fn while_paused() {
    let bundle = Bundle::new(&["sleep"]);
    bundle.start();
    bundle.ok(&["pause", &bundle.id]);
    bundle.fails(&["exec", &bundle.id, "/program", "--program", "pid"], "paused");
    let mut pending = bundle
        .command(&["exec", "--ignore-paused", &bundle.id, "/program", "--program", "pid"])
        .spawn()
        .unwrap();
    // It is there, frozen as all the others, or not yet.
    let pids = || bundle.ok(&["ps", "--format", "json", &bundle.id]).matches(',').count() + 1;
    eventually("the process waits inside", || pids() == 2);
    bundle.ok(&["delete", "--force", &bundle.id]);
    let start = Instant::now();
    while pending.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(20), "exec outlived its container");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!pending.wait().unwrap().success());
}
