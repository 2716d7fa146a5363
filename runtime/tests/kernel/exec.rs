//! A second process in a running container.

use std::os::fd::OwnedFd;

use runtime::container::{Parent, Stdio};
use runtime::exec::{ExecRequest, Executed, exec};
use serde_json::{Value, json};

use crate::fixture::{Case, Group, Outcome, Running, output};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_exec_joins_every_namespace", joins_every_namespace),
    ("root_exec_is_restricted", is_restricted),
    ("root_exec_leaks_nothing", leaks_nothing),
    ("root_exec_failure_has_a_name", failure_has_a_name),
    ("root_exec_with_a_terminal", with_a_terminal),
    ("root_exec_into_a_dead_container", into_a_dead_container),
    ("root_exec_in_its_cgroup", in_its_cgroup),
    ("root_exec_in_a_user_namespace", in_a_user_namespace),
];

fn process(commands: &[&str], edit: impl FnOnce(&mut Value)) -> runtime::exec::ProcessPlan {
    let mut args = vec!["/program", "--program"];
    args.extend(commands);
    let mut spec = json!({
        "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/"], "cwd": "/",
        "noNewPrivileges": true,
    });
    edit(&mut spec);
    let spec = serde_json::from_value(spec).unwrap();
    runtime::exec::ProcessPlan::from_spec(&spec).unwrap()
}

fn request(running: &Running, process: runtime::exec::ProcessPlan, stdio: Stdio) -> ExecRequest {
    ExecRequest {
        target: running.pidfd.try_clone().unwrap(),
        process,
        seccomp: running.plan.seccomp.clone(),
        stdio,
        cgroup: running.cgroup.clone(),
        parent: Parent::Caller,
        identity: Default::default(),
    }
}

pub fn run(running: &Running, commands: &[&str], edit: impl FnOnce(&mut Value)) -> runtime::Result<Outcome> {
    let (reader, stdio) = output();
    let Executed { pidfd, warnings, .. } = exec(request(running, process(commands, edit), stdio))?;
    Ok(Outcome::collect(reader, &pidfd, warnings))
}

fn joins_every_namespace() {
    let running = Case::new(&["sleep"]).start();
    let kinds = ["mnt", "uts", "ipc", "pid", "net", "cgroup", "user"];
    let mut commands: Vec<String> = kinds.iter().map(|k| format!("readlink /proc/self/ns/{k}")).collect();
    commands.extend(["cat /in-root", "hostname", "pid", "cwd", "env"].map(String::from));
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let outcome = run(&running, &commands, |_| {}).unwrap();
    assert_eq!(outcome.code, 0);
    for (i, kind) in kinds.iter().enumerate() {
        let theirs = std::fs::read_link(format!("/proc/{}/ns/{kind}", running.pid)).unwrap();
        assert_eq!(outcome.answer(i), theirs.to_str().unwrap());
    }
    assert_eq!(outcome.answer(7), "yes");
    assert_eq!(outcome.answer(8), "inside");
    assert_eq!(outcome.answer(9), "2");
    assert_eq!(outcome.answer(10), "/");
    assert_eq!(outcome.answer(11), "PATH=/\nHOME=/");
    running.kill();
}

fn is_restricted() {
    let profile = runtime::seccomp::default_profile(&[]);
    let running = Case::new(&["sleep"])
        .set("/linux/maskedPaths/-", json!("/proc/version"))
        .set("/linux/seccomp", serde_json::to_value(profile).unwrap())
        .start();
    let all = json!(["CAP_SYS_ADMIN"]);
    let outcome = run(&running, &["mount", "cat /proc/self/status", "cat /proc/version", "ids"], |p| {
        p["capabilities"] = json!({"bounding": all, "permitted": all, "effective": all});
    })
    .unwrap();
    assert_eq!(outcome.answer(0), "EPERM");
    assert!(outcome.answer(1).contains("NoNewPrivs:\t1"));
    assert!(outcome.answer(1).contains("CapInh:\t0000000000000000"));
    assert!(outcome.answer(1).contains("CapBnd:\t0000000000200000"));
    assert_eq!(outcome.answer(2), "");
    let user = run(&running, &["ids", "write /x y"], |p| p["user"] = json!({"uid": 5, "gid": 6})).unwrap();
    assert!(user.answer(0).starts_with("5 6 "));
    assert_eq!(user.answer(1), "EACCES");
    running.kill();
}

fn leaks_nothing() {
    let host = std::fs::File::open("/").unwrap();
    let _leaky = nix::unistd::dup(&host).unwrap();
    let running = Case::new(&["sleep"]).start();
    let outcome = run(&running, &["ls /proc/self/fd", "cat /proc/self/mountinfo"], |_| {}).unwrap();
    assert_eq!(outcome.answer(0), "0 1 2 3");
    let ours = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_ne!(outcome.answer(1), ours.trim());
    // A working directory that is a descriptor of the host's: CVE-2024-21626.
    for n in 0..32 {
        let refused = run(&running, &["cwd"], |p| p["cwd"] = json!(format!("/proc/self/fd/{n}")));
        assert!(refused.is_err(), "{n}: {refused:?}");
    }
    running.kill();
}

fn failure_has_a_name() {
    let running = Case::new(&["sleep"]).start();
    let error = run(&running, &[], |p| p["args"] = json!(["/bin/nope"])).unwrap_err();
    assert_eq!(error.to_string(), "exec /bin/nope: ENOENT");
    assert_eq!(error.kind(), runtime::Kind::NotFound);
    let error = run(&running, &[], |p| p["args"] = json!(["nope"])).unwrap_err();
    assert_eq!(error.to_string(), "exec nope (executable file not found in $PATH=/): ENOENT");
    let error = run(&running, &[], |p| p["args"] = json!(["/in-root"])).unwrap_err();
    assert_eq!(error.to_string(), "exec /in-root: EACCES");
    let error = run(&running, &[], |p| p["cwd"] = json!("/in-root/x")).unwrap_err();
    assert!(error.to_string().starts_with("chdir to /in-root/x: "), "{error}");
    let found = run(&running, &[], |p| p["args"] = json!(["program", "--program", "pid"])).unwrap();
    assert!(!found.output.is_empty());
    running.kill();
    crate::failure::assert_no_children();
}

fn with_a_terminal() {
    use std::io::Read;
    let running = Case::new(&["sleep"]).start();
    let plan = process(&["isatty", "ttyname"], |_| {});
    let executed = exec(request(&running, plan, Stdio::Terminal(None))).unwrap();
    let mut master = std::fs::File::from(executed.console.unwrap());
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..n]);
    }
    crate::fixture::wait(&executed.pidfd);
    assert_eq!(String::from_utf8_lossy(&text), "true\x1e/dev/pts/0\x1e");
    running.kill();
}

fn into_a_dead_container() {
    let running = Case::new(&["sleep"]).start();
    let target: OwnedFd = running.pidfd.try_clone().unwrap();
    running.kill();
    let (_, stdio) = output();
    let error = exec(ExecRequest {
        target,
        process: process(&["pid"], |_| {}),
        seccomp: None,
        stdio,
        cgroup: None,
        parent: Parent::Caller,
        identity: Default::default(),
    })
    .unwrap_err();
    assert_eq!(error.kind(), runtime::Kind::NotFound, "{error}");
}

fn in_its_cgroup() {
    let group = Group::new();
    let running = Case::new(&["sleep"]).cgroup(&group).start();
    let (_reader, stdio) = output();
    let executed = exec(request(&running, process(&["sleep"], |_| {}), stdio)).unwrap();
    let mut pids = group.0.pids().unwrap();
    pids.sort_unstable();
    let mut expected = vec![running.pid, executed.pid];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    group.0.kill().unwrap();
    assert_eq!(crate::fixture::wait(&executed.pidfd), 137);
    running.kill();
}

fn in_a_user_namespace() {
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 1000}]);
    let running = Case::new(&["sleep"])
        .set("/linux/namespaces/-", json!({"type": "user"}))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    std::os::unix::fs::chown(&running.root.0, Some(100000), Some(100000)).unwrap();
    let running = running.start();
    let outcome = run(&running, &["ids", "cat /proc/self/uid_map"], |_| {}).unwrap();
    assert_eq!(outcome.answer(0), "0 0 []");
    assert!(outcome.answer(1).contains("100000"), "{outcome:?}");
    running.kill();
}
