//! podman (through conmon) and containerd (through containerd-shim-runc-v2), as Debian ships them, run containers with
//! `podyard-oci` in runc's place.
//!
//! Skipped, loudly, where they are not installed.
#![allow(missing_docs, clippy::unwrap_used)]

use integration::engine::{Containerd, Podman, is_installed};
use integration::harness::{Ran, is_root, until};
use serde_json::Value;
use std::path::Path;

const OCI: &str = env!("CARGO_BIN_EXE_podyard-oci-under-test");
const TOOLBOX: &str = env!("CARGO_BIN_EXE_podyard-under-test");

fn podman(test: &str) -> Option<Podman> {
    (is_root(test) && is_installed(test, &["podman", "conmon"])).then(|| Podman::new(OCI, TOOLBOX))
}

fn containerd(test: &str) -> Option<Containerd> {
    let programs = ["containerd", "containerd-shim-runc-v2", "ctr"];
    (is_root(test) && is_installed(test, &programs)).then(|| Containerd::start(OCI, TOOLBOX))
}

#[track_caller]
fn ok(ran: Ran) -> String {
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.stdout
}

/// Refused with this code, and for this reason.
#[track_caller]
fn fails(ran: Ran, code: i32, reason: &str) {
    assert!(ran.code == code && ran.stderr.contains(reason), "not {code} with {reason:?}: {ran:?}");
}

/// The line of a status file, or of an environment, that begins so.
#[track_caller]
fn line(text: &str, start: &str) -> String {
    let found = text.lines().find_map(|line| line.strip_prefix(start));
    found.unwrap_or_else(|| panic!("no {start} in {text}")).trim().to_owned()
}

#[test]
fn podman_passes_on_output_and_exit_codes() {
    let Some(podman) = podman("podman_passes_on_output_and_exit_codes") else { return };
    assert_eq!(ok(podman.run(&[], &["echo", "hello"])), "hello\n");
    assert_eq!(podman.run(&[], &["exit", "7"]).code, 7);
    // podman's own codes, which it chooses by the runtime's words.
    fails(podman.run(&[], &["nothing"]), 127, "executable file not found");
    fails(podman.run(&[], &["/bin/nothing"]), 127, "no such file or directory");
    fails(podman.run(&[], &["/etc/data"]), 126, "permission denied");
    let env = ok(podman.run(&["--env", "A=b", "--hostname", "here"], &["env"]));
    assert_eq!((line(&env, "A="), line(&env, "HOSTNAME=")), ("b".into(), "here".into()));
    assert_eq!(ok(podman.run(&["--hostname", "here"], &["hostname"])), "here\n");
}

#[test]
fn podman_leads_a_container_through_its_life() {
    let Some(podman) = podman("podman_leads_a_container_through_its_life") else { return };
    let of = |format: &str| ok(podman.call(&["inspect", "--format", format, "life"])).trim().to_owned();
    podman.start("life", &[], &["sleep", "infinity"]);
    assert_eq!(of("{{.State.Status}}"), "running");
    assert_eq!(ok(podman.call(&["exec", "life", "echo", "inside"])), "inside\n");
    assert_eq!(podman.call(&["exec", "life", "exit", "9"]).code, 9);
    fails(podman.call(&["exec", "life", "nothing"]), 127, "executable file not found");
    fails(podman.call(&["exec", "life", "/etc/data"]), 126, "permission denied");
    assert_eq!(ok(podman.call_with(&["exec", "-i", "life", "cat", "/dev/stdin"], "piped")), "piped");
    ok(podman.call(&["exec", "--detach", "life", "write", "/tmp/new", "there"]));
    until("the detached exec has written", || {
        let ran = podman.call(&["exec", "life", "cat", "/tmp/new"]);
        if ran.stdout.contains("there") { Ok(()) } else { Err(ran) }
    });
    let top = ok(podman.call(&["top", "life", "pid", "args"]));
    assert!(top.contains("sleep infinity"), "{top}");
    ok(podman.call(&["pause", "life"]));
    assert_eq!(of("{{.State.Status}}"), "paused");
    ok(podman.call(&["unpause", "life"]));
    assert_eq!(of("{{.State.Status}}"), "running");
    ok(podman.call(&["restart", "--time", "5", "life"]));
    assert_eq!(of("{{.State.Status}}"), "running");
    // Where CRIU is missing podman does not come as far as asking the runtime.
    let refusal = if Path::new("/usr/sbin/criu").exists() {
        "does not support checkpoint"
    } else {
        "requires at least CRIU"
    };
    fails(podman.call(&["container", "checkpoint", "life"]), 125, refusal);
    ok(podman.call(&["stop", "--time", "5", "life"]));
    // The toolbox's sleep ends well on SIGTERM.
    assert_eq!(of("{{.State.Status}} {{.State.ExitCode}}"), "exited 0");
    ok(podman.call(&["start", "life"]));
    ok(podman.call(&["kill", "life"]));
    assert_eq!(ok(podman.call(&["wait", "life"])).trim(), "137");
    ok(podman.call(&["rm", "life"]));
    podman.start("again", &["--restart", "always"], &["false"]);
    until("a failing container is started again", || {
        match ok(podman.call(&["inspect", "--format", "{{.RestartCount}}", "again"])).trim() {
            "0" => Err("no restart"),
            _ => Ok(()),
        }
    });
}

#[test]
fn podman_gives_terminals() {
    let Some(podman) = podman("podman_gives_terminals") else { return };
    podman.start("shown", &["--tty"], &["sleep", "infinity"]);
    let ran = podman.at_a_terminal(&["exec", "-it", "shown", "ls", "/dev/pts"]);
    assert!(ran.code == 0 && ran.stdout.contains("ptmx"), "{ran:?}");
    // A terminal ends lines with both.
    let ran = podman.at_a_terminal(&["exec", "-it", "shown", "echo", "one"]);
    assert!(ran.stdout.contains("one\r\n"), "{ran:?}");
    assert_eq!(podman.at_a_terminal(&["exec", "-it", "shown", "exit", "6"]).code, 6);
}

#[test]
fn podman_restricts() {
    let Some(podman) = podman("podman_restricts") else { return };
    let status = |options: &[&str]| ok(podman.run(options, &["cat", "/proc/self/status"]));
    let usual = status(&[]);
    // Its default profile, and its default capabilities.
    assert_eq!(line(&usual, "Seccomp:"), "2");
    let capabilities = |status: &str| u64::from_str_radix(&line(status, "CapEff:"), 16).unwrap();
    const SYS_ADMIN: u64 = 1 << 21;
    assert_eq!(capabilities(&usual) & SYS_ADMIN, 0);
    assert_eq!(capabilities(&status(&["--cap-add", "SYS_ADMIN"])) & SYS_ADMIN, SYS_ADMIN);
    let bare = status(&["--cap-drop", "all", "--security-opt", "no-new-privileges", "--user", "web:2000"]);
    assert_eq!((capabilities(&bare), line(&bare, "NoNewPrivs:").as_str()), (0, "1"));
    assert_eq!(line(&bare, "Uid:"), "1000\t1000\t1000\t1000");
    assert_eq!(line(&bare, "Gid:"), "2000\t2000\t2000\t2000");
    assert_eq!(line(&status(&["--security-opt", "seccomp=unconfined"]), "Seccomp:"), "0");
    let mapped = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let map = ok(podman.run(&mapped, &["cat", "/proc/self/uid_map"]));
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    let volume = podman.volume();
    let mount = |options: &str| format!("--volume={volume}:/v:{options}");
    assert_eq!(ok(podman.run(&[&mount("ro")], &["cat", "/v/data"])), "of the host");
    fails(podman.run(&[&mount("ro")], &["write", "/v/new", "x"]), 1, "Read-only file system");
    ok(podman.run(&[&mount("rw,rslave,noexec")], &["write", "/v/new", "x"]));
    assert!(std::fs::read_to_string(format!("{volume}/new")).unwrap().contains('x'));
    fails(podman.run(&["--read-only", "--read-only-tmpfs=false"], &["write", "/new", "x"]), 1, "Read-only");
    ok(podman.run(&["--pid", "host", "--ipc", "host", "--uts", "host", "--cgroupns", "host"], &["true"]));
}

#[test]
fn podman_limits_and_counts() {
    let Some(podman) = podman("podman_limits_and_counts") else { return };
    podman.start(
        "small",
        &["--memory", "64m", "--pids-limit", "50", "--cpus", "0.5"],
        &["sleep", "infinity"],
    );
    let shown = ok(podman.call(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.MemLimit}}", "small"]));
    assert_eq!(shown.split_whitespace().last(), Some("67108864"), "{shown}");
    assert!(shown.split_whitespace().next().unwrap().parse::<u32>().unwrap() > 0, "{shown}");
    assert_eq!(podman.memory_limit("small"), "67108864");
    ok(podman.call(&["update", "--memory", "48m", "small"]));
    assert_eq!(podman.memory_limit("small"), "50331648");
    let ran = podman.run(&["--memory", "16m", "--memory-swap", "16m"], &["mem", "67108864"]);
    assert_eq!(ran.code, 137, "{ran:?}");
}

#[test]
fn podman_lets_containers_share_namespaces() {
    let Some(podman) = podman("podman_lets_containers_share_namespaces") else { return };
    podman.start("first", &["--hostname", "shared", "--ipc", "shareable"], &["sleep", "infinity"]);
    let join = ["--network", "container:first", "--ipc", "container:first", "--pid", "container:first"];
    let status = ok(podman.run(&join, &["cat", "/proc/1/cmdline"]));
    assert_eq!(status, "sleep\0infinity\0");
    let own = |options: &[&str]| ok(podman.run(options, &["ls", "/proc/self/ns"]));
    assert_eq!(own(&join), own(&[]));
    podman.start("second", &join, &["sleep", "infinity"]);
    ok(podman.call(&["stop", "--time", "5", "second"]));
    assert_eq!(ok(podman.call(&["exec", "first", "echo", "still"])), "still\n");
}

#[test]
fn containerd_leads_a_container_through_its_life() {
    let Some(mut containerd) = containerd("containerd_leads_a_container_through_its_life") else { return };
    assert_eq!(ok(containerd.run(&["--rm"], "hello", &["/bin/echo", "hello"])), "hello\n");
    assert_eq!(containerd.run(&["--rm"], "seven", &["/bin/exit", "7"]).code, 7);
    fails(containerd.run(&["--rm"], "missing", &["/bin/nothing"]), 1, "no such file or directory");
    let status = ok(containerd.run(&["--rm", "--seccomp"], "filtered", &["/bin/cat", "/proc/self/status"]));
    assert_eq!(line(&status, "Seccomp:"), "2");

    let limits = ["--detach", "--memory-limit", "67108864", "--cpu-quota", "50000", "--cpu-period", "100000"];
    ok(containerd.run(&limits, "life", &["/bin/sleep", "infinity"]));
    let is = |containerd: &Containerd, status: &str| {
        let list = ok(containerd.call(&["tasks", "list"]));
        let found = list.lines().find(|line| line.starts_with("life ")).unwrap_or_default();
        assert_eq!(found.split_whitespace().last(), Some(status), "{list}");
    };
    is(&containerd, "RUNNING");
    let exec = |containerd: &Containerd, args: &[&str]| {
        containerd.call(&[&["tasks", "exec", "--exec-id", "one", "life"], args].concat())
    };
    assert_eq!(ok(exec(&containerd, &["/bin/echo", "inside"])), "inside\n");
    assert_eq!(exec(&containerd, &["/bin/exit", "9"]).code, 9);
    fails(exec(&containerd, &["/bin/nothing"]), 1, "no such file or directory");
    let ran =
        containerd.at_a_terminal(&["tasks", "exec", "-t", "--exec-id", "two", "life", "/bin/echo", "one"]);
    assert!(ran.stdout.contains("one\r"), "{ran:?}");
    let metrics: Value =
        serde_json::from_str(&ok(containerd.call(&["tasks", "metrics", "--format", "json", "life"])))
            .unwrap();
    let limit = metrics.pointer("/memory/usage/limit").or(metrics.pointer("/memory/usage_limit"));
    assert_eq!(limit, Some(&Value::from(67_108_864)), "{metrics}");
    ok(containerd.call(&["tasks", "pause", "life"]));
    is(&containerd, "PAUSED");
    ok(containerd.call(&["tasks", "resume", "life"]));
    is(&containerd, "RUNNING");
    fails(containerd.call(&["tasks", "checkpoint", "life"]), 1, "checkpoint: CRIU is not offered");

    // Its shim, and so the container, outlives the daemon.
    containerd.restart();
    is(&containerd, "RUNNING");
    assert_eq!(ok(exec(&containerd, &["/bin/echo", "after"])), "after\n");
    ok(containerd.call(&["tasks", "kill", "life"]));
    until("the container has stopped", || {
        let list = ok(containerd.call(&["tasks", "list"]));
        if list.contains("STOPPED") { Ok(()) } else { Err(list) }
    });
    fails(containerd.call(&["tasks", "kill", "life"]), 1, "process already finished: not found");
    ok(containerd.call(&["tasks", "delete", "life"]));
    ok(containerd.call(&["containers", "delete", "life"]));

    ok(containerd.run(&["--detach"], "killed", &["/bin/sleep", "infinity"]));
    ok(containerd.call(&["tasks", "kill", "--all", "--signal", "KILL", "killed"]));
    until("all is killed", || {
        let ran = containerd.call(&["tasks", "delete", "killed"]);
        if ran.code == 137 || ran.stderr.contains("137") { Ok(()) } else { Err(ran) }
    });
}
