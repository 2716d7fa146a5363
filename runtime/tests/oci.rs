//! `podyard-oci` as its callers use it: commands, files, exit codes.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A bundle whose program is the static `podyard-oci` itself: it can `list`, `state` and so on
/// inside, and fail to.
struct Bundle {
    directory: PathBuf,
    id: String,
}

impl Bundle {
    fn new(args: &[&str]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
            _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: needs root\n");
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("test-oci-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(&id);
        std::fs::create_dir_all(directory.join("rootfs/bin")).unwrap();
        let bundle = Self { directory, id };
        std::fs::copy(program(), bundle.directory.join("rootfs/bin/tool")).unwrap();
        let spec = bundle.run(&["spec", "--bundle", bundle.directory.to_str().unwrap()]);
        assert!(spec.status.success(), "{spec:?}");
        bundle.edit(|spec| {
            spec["process"]["terminal"] = json!(false);
            spec["process"]["args"] = json!(args);
        });
        Some(bundle)
    }

    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let path = self.directory.join("config.json");
        let mut spec = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut spec);
        std::fs::write(path, spec.to_string()).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.directory.join("state")).args(args).stdin(Stdio::null());
        command
    }

    /// Output through files: the container inherits them, and a pipe would not end before it.
    fn run(&self, args: &[&str]) -> Output {
        let (out, err) = (self.directory.join("out"), self.directory.join("err"));
        let file = |path: &Path| Stdio::from(std::fs::File::create(path).unwrap());
        let status = self.command(args).stdout(file(&out)).stderr(file(&err)).status().unwrap();
        let read = |path: &Path| std::fs::read(path).unwrap();
        Output { status, stdout: read(&out), stderr: read(&err) }
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, args: &[&str], text: &str) {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(text), "{args:?}: {output:?}");
    }

    fn create(&self) {
        self.ok(&["create", "--bundle", self.directory.to_str().unwrap(), &self.id]);
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).unwrap()
    }

    fn await_status(&self, status: &str) {
        let start = Instant::now();
        while self.state()["status"] != status {
            assert!(start.elapsed() < Duration::from_secs(20), "never {status}: {}", self.state());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.run(&["delete", "--force", &self.id]);
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_podyard-oci")
}

#[test]
fn root_life_of_a_container() {
    let Some(bundle) = Bundle::new(&["/bin/tool", "no-such-verb"]) else {
        return;
    };
    bundle.edit(|spec| spec["annotations"] = json!({"a": "b"}));
    bundle.fails(&["state", &bundle.id], "does not exist");
    let pid_file = bundle.directory.join("pid");
    let directory = bundle.directory.to_str().unwrap().to_string();
    bundle.ok(&["create", "--bundle", &directory, "--pid-file", pid_file.to_str().unwrap(), &bundle.id]);
    let state = bundle.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["annotations"]["a"], "b");
    assert_eq!(state["pid"].to_string(), std::fs::read_to_string(&pid_file).unwrap());
    assert_eq!(state["bundle"], directory);
    bundle.fails(&["create", "--bundle", &directory, &bundle.id], "already exists");
    assert!(bundle.ok(&["list"]).contains(&bundle.id));
    bundle.ok(&["start", &bundle.id]);
    bundle.await_status("stopped");
    bundle.fails(&["start", &bundle.id], "cannot start a container that has stopped");
    bundle.fails(&["kill", &bundle.id, "KILL"], "container not running: stopped");
    bundle.fails(&["exec", &bundle.id, "/bin/tool"], "cannot exec in a stopped container");
    bundle.ok(&["delete", &bundle.id]);
    bundle.fails(&["delete", &bundle.id], "does not exist");
    bundle.ok(&["delete", "--force", &bundle.id]);
    // Compiled filters stay, for the next container.
    let left = std::fs::read_dir(bundle.directory.join("state")).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(left.filter(|name| name != ".filters").count(), 0);
    assert!(bundle.ok(&["list"]).trim().lines().count() <= 1, "and are no container");
}

#[test]
fn root_kill_before_start_and_delete() {
    let Some(bundle) = Bundle::new(&["/bin/tool"]) else {
        return;
    };
    bundle.create();
    bundle.fails(&["kill", &bundle.id, "NOSUCH"], "unknown");
    bundle.ok(&["kill", &bundle.id, "0"]);
    bundle.ok(&["kill", &bundle.id, "SIGKILL"]);
    bundle.await_status("stopped");
    bundle.ok(&["delete", &bundle.id]);
    // Created again under the same id, and deleted before it has run anything, asked nicely or by force.
    for force in [&["delete"][..], &["delete", "--force"]] {
        bundle.create();
        bundle.ok(&[force, &[bundle.id.as_str()]].concat());
    }
    let left = Path::new("/sys/fs/cgroup/unified").join(&bundle.id);
    assert!(!left.exists());
}

#[test]
fn root_run_returns_output_and_exit_code() {
    let Some(bundle) = Bundle::new(&["/bin/tool", "list", "-q"]) else {
        return;
    };
    let directory = bundle.directory.to_str().unwrap().to_string();
    assert_eq!(bundle.ok(&["run", "--bundle", &directory, &bundle.id]), "");
    bundle.edit(|spec| spec["process"]["args"] = json!(["/bin/tool", "state", "x"]));
    let output = bundle.run(&["run", "--bundle", &directory, &bundle.id]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "podyard-oci: error: container x does not exist\n");
    bundle.edit(|spec| spec["process"]["args"] = json!(["/bin/nope"]));
    bundle.fails(
        &["run", "--bundle", &directory, &bundle.id],
        "podyard-oci: error: exec /bin/nope: ENOENT (no such file or directory)",
    );
    assert_eq!(bundle.ok(&["list", "-q"]), "", "nothing is left of a failed run");
}

#[test]
fn root_exec_in_a_created_container() {
    let Some(bundle) = Bundle::new(&["/bin/tool"]) else {
        return;
    };
    bundle.create();
    let output = bundle.run(&["exec", &bundle.id, "/bin/tool", "state", "y"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "podyard-oci: error: container y does not exist\n");
    bundle.fails(&["exec", &bundle.id, "/bin/nope"], "exec /bin/nope: ENOENT");
    bundle.fails(&["exec", "--cwd", "/proc/self/fd/3", &bundle.id, "/bin/tool"], "chdir to /proc/self/fd/3");
    bundle.fails(&["exec", "--user", "-1", &bundle.id, "/bin/tool"], "--user");
}

#[test]
fn root_refusals_leave_nothing() {
    let Some(bundle) = Bundle::new(&["/bin/tool"]) else {
        return;
    };
    let directory = bundle.directory.to_str().unwrap().to_string();
    bundle.edit(|spec| spec["hooks"] = json!({"prestart": [{"path": "true"}]}));
    bundle.fails(&["create", "--bundle", &directory, &bundle.id], "hooks.prestart[0].path: must be absolute");
    bundle.edit(|spec| {
        spec["hooks"] = json!({});
        spec["linux"]["cgroupsPath"] = json!("a.slice:b:c");
    });
    bundle.fails(&["create", "--bundle", &directory, &bundle.id], "linux.cgroupsPath");
    bundle.fails(&["create", "--bundle", &directory, "../x"], "container id");
    bundle.fails(&["create", "--bundle", "/nowhere", &bundle.id], "/nowhere: ENOENT");
    bundle.fails(&["--systemd-cgroup", "create", &bundle.id], "--systemd-cgroup: cgroups are made directly");
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

/// A hook that appends the state it reads to a file, after a word.
fn recorder(word: &str, file: &Path) -> Value {
    let script = format!("echo -n {word}: >> {file}; cat >> {file}; echo >> {file}", file = file.display());
    json!({"path": "/bin/sh", "args": ["sh", "-c", script]})
}

/// The words that hooks wrote, with the status and pid they were told.
fn recorded(file: &Path) -> Vec<(String, String, Value)> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let parse = |line: &str| {
        let (word, state) = line.split_once(':').unwrap();
        let state: Value = serde_json::from_str(state).unwrap();
        assert_eq!(state["annotations"]["a"], "b");
        (word.to_string(), state["status"].as_str().unwrap().to_string(), state["pid"].clone())
    };
    text.lines().map(parse).collect()
}

#[test]
fn root_hooks_through_the_life_of_a_container() {
    let Some(bundle) = Bundle::new(&["/bin/tool"]) else {
        return;
    };
    let file = bundle.directory.join("hooks");
    let fails = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 3"]});
    bundle.edit(|spec| {
        spec["annotations"] = json!({"a": "b"});
        spec["hooks"] = json!({
            "createRuntime": [recorder("createRuntime", &file)],
            "prestart": [recorder("prestart", &file)],
            "createContainer": [recorder("createContainer", &file)],
            "poststart": [&fails, recorder("poststart", &file)],
            "poststop": [&fails, recorder("poststop", &file)],
        });
    });
    bundle.create();
    let pid = bundle.state()["pid"].clone();
    let words =
        |list: &[(String, String, Value)]| list.iter().map(|(word, ..)| word.clone()).collect::<Vec<_>>();
    let found = recorded(&file);
    assert_eq!(words(&found), ["prestart", "createRuntime", "createContainer"]);
    assert!(found.iter().all(|(_, status, _)| status == "creating"), "{found:?}");
    assert_eq!([&found[0].2, &found[1].2, &found[2].2], [&pid, &pid, &json!(1)]);
    let started = bundle.run(&["start", &bundle.id]);
    assert!(started.status.success(), "{started:?}");
    let warning = "podyard-oci: warning: hooks.poststart[0]: exited with 3: no\n";
    // The container writes to the same file.
    assert!(String::from_utf8_lossy(&started.stderr).starts_with(warning), "{started:?}");
    let found = recorded(&file);
    assert_eq!(found[3], ("poststart".into(), "running".into(), pid));
    bundle.await_status("stopped");
    // Edited or gone, the bundle does not count any more.
    std::fs::remove_file(bundle.directory.join("config.json")).unwrap();
    bundle.ok(&["delete", &bundle.id]);
    assert_eq!(recorded(&file)[4..], [("poststop".into(), "stopped".into(), Value::Null)]);
}

#[test]
fn root_a_failed_hook_ends_the_container() {
    let Some(bundle) = Bundle::new(&["/bin/tool"]) else {
        return;
    };
    let directory = bundle.directory.to_str().unwrap().to_string();
    let file = bundle.directory.join("hooks");
    let fails = json!({"path": "/bin/false"});
    for list in ["prestart", "createRuntime", "createContainer"] {
        bundle.edit(|spec| {
            spec["annotations"] = json!({"a": "b"});
            spec["hooks"] = json!({list: [&fails], "poststop": [recorder("poststop", &file)]});
        });
        let text = format!("hooks.{list}[0]: exited with 1");
        bundle.fails(&["create", "--bundle", &directory, &bundle.id], &text);
        assert_eq!(bundle.ok(&["list", "-q"]), "");
        assert_eq!(recorded(&file), [("poststop".into(), "stopped".into(), Value::Null)], "{list}");
        std::fs::remove_file(&file).unwrap();
    }
    bundle.edit(|spec| {
        spec["hooks"] = json!({
            "startContainer": [{"path": "/bin/tool", "args": ["tool", "state", "x"]}],
            "poststart": [recorder("poststart", &file)],
        });
    });
    bundle.create();
    let text = "hooks.startContainer[0]: exited with 1: podyard-oci: error: container x does not exist";
    bundle.fails(&["start", &bundle.id], text);
    bundle.await_status("stopped");
    assert!(!file.exists(), "what never ran is not said to have started");
    bundle.ok(&["delete", &bundle.id]);
    // In the foreground too, and nothing is left.
    bundle.fails(&["run", "--bundle", &directory, &bundle.id], text);
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

#[test]
fn root_a_relayed_terminal_keeps_the_ends_of_lines() {
    let Some(bundle) = Bundle::new(&["/bin/tool", "--version"]) else {
        return;
    };
    bundle.edit(|spec| spec["process"]["terminal"] = json!(true));
    let directory = bundle.directory.to_str().unwrap().to_string();
    let shown = bundle.ok(&["run", "--bundle", &directory, &bundle.id]);
    assert!(shown.contains("spec: ") && !shown.contains('\r'), "{shown:?}");
    bundle.edit(|spec| spec["process"]["terminal"] = json!(false));
    bundle.create();
    let shown = bundle.ok(&["exec", "--tty", &bundle.id, "/bin/tool", "--version"]);
    assert!(shown.contains("spec: ") && !shown.contains('\r'), "{shown:?}");
}

#[test]
fn root_documents_newer_than_we_are() {
    let Some(bundle) = Bundle::new(&["/bin/tool"]) else {
        return;
    };
    let directory = bundle.directory.to_str().unwrap().to_string();
    bundle.edit(|spec| {
        spec["process"]["capabilities"]["bounding"].as_array_mut().unwrap().push(json!("TEST_CAP"));
        spec["process"]["scheduler"] =
            json!({"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    });
    let created = bundle.run(&["create", "--bundle", &directory, &bundle.id]);
    assert!(created.status.success(), "{created:?}");
    let said = String::from_utf8_lossy(&created.stderr).into_owned();
    assert!(said.contains("ignoring unknown or unavailable capabilities: [TEST_CAP]"), "{said}");
    // What was kept is what was understood.
    let process = bundle.directory.join("process.json");
    let document = json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/tool", "--version"],
        "capabilities": {"effective": ["CAP_NEWER"]},
    });
    std::fs::write(&process, document.to_string()).unwrap();
    let ran = bundle.run(&["exec", "--process", process.to_str().unwrap(), &bundle.id]);
    assert!(ran.status.success(), "{ran:?}");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("[CAP_NEWER]"), "{ran:?}");
}

#[test]
fn root_pause_shows_and_resume_goes_on() {
    let Some(bundle) = Bundle::new(&["/bin/tool"]) else {
        return;
    };
    bundle.create();
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.state()["status"], "paused");
    bundle.fails(&["pause", &bundle.id], "container not running: paused");
    bundle.fails(&["exec", &bundle.id, "/bin/tool"], "cannot exec in a paused container");
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.state()["status"], "created");
    bundle.fails(&["resume", &bundle.id], "container not paused: created");
}

#[test]
fn root_processes_limits_and_statistics() {
    let Some(bundle) = Bundle::new(&["/bin/tool"]) else {
        return;
    };
    bundle.edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        spec["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
    });
    bundle.create();
    let pid = bundle.state()["pid"].clone();
    let pids: Value = serde_json::from_str(&bundle.ok(&["ps", "--format", "json", &bundle.id])).unwrap();
    assert_eq!(pids, json!([pid]));
    assert!(bundle.ok(&["ps", &bundle.id]).contains("CMD"));
    bundle.ok(&["update", "--memory", "32M", "--pids-limit", "20", &bundle.id]);
    let document = bundle.directory.join("resources.json");
    std::fs::write(&document, json!({"cpu": {"shares": 256}}).to_string()).unwrap();
    bundle.ok(&["update", "--resources", document.to_str().unwrap(), &bundle.id]);
    let inside = |file: &str| {
        let all = [format!("/sys/fs/cgroup/memory/{}/{file}", bundle.id)];
        all.iter().find_map(|path| std::fs::read_to_string(path).ok())
    };
    if let Some(limit) = inside("memory.limit_in_bytes") {
        assert_eq!(limit.trim(), (32_u64 << 20).to_string());
    }
    bundle.fails(&["update", &bundle.id], "nothing to change");
    bundle.fails(&["update", "--memory", "much", &bundle.id], "--memory");
    let shown: Value = serde_json::from_str(&bundle.ok(&["events", "--stats", &bundle.id])).unwrap();
    assert_eq!(shown["type"], "stats");
    assert_eq!(shown["data"]["memory"]["usage"]["limit"], 32 << 20);
    assert_eq!(shown["data"]["pids"]["limit"], 20);
}

#[test]
fn root_listing_and_features_are_for_machines_too() {
    let Some(bundle) = Bundle::new(&["/bin/tool"]) else {
        return;
    };
    bundle.create();
    let all: Value = serde_json::from_str(&bundle.ok(&["list", "--format=json"])).unwrap();
    assert_eq!(all[0]["id"], bundle.id.as_str());
    assert_eq!(all[0]["owner"], "root");
    assert!(all[0]["created"].as_str().unwrap().ends_with('Z'));
    assert_eq!(bundle.ok(&["list", "-q"]).trim(), bundle.id);
    let features: Value = serde_json::from_str(&bundle.ok(&["features"])).unwrap();
    assert!(features["linux"]["capabilities"].as_array().unwrap().contains(&json!("CAP_SYS_ADMIN")));
    assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&json!("mount")));
}

#[test]
fn root_errors_go_to_the_log_as_callers_read_them() {
    let Some(bundle) = Bundle::new(&["/bin/tool"]) else {
        return;
    };
    let log = bundle.directory.join("log");
    let output = bundle.run(&["--log", log.to_str().unwrap(), "--log-format", "json", "state", "nobody"]);
    assert_eq!(output.status.code(), Some(1));
    let line: Value = serde_json::from_str(std::fs::read_to_string(&log).unwrap().trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], "container nobody does not exist");
    bundle.fails(&["--log-format", "xml", "state", "nobody"], "--log-format");
    // Engines find out from these words what went wrong, and podman takes the whole file for one value: no warning
    // may stand beside the error.
    let directory = bundle.directory.to_str().unwrap().to_string();
    for (program, words) in [
        ("/bin/nope", "no such file or directory"),
        ("nope", "executable file not found in $PATH"),
        ("/etc", "permission denied"),
    ] {
        bundle.edit(|spec| {
            spec["process"]["args"] = json!([program]);
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1u64 << 40}]);
        });
        std::fs::remove_file(&log).unwrap();
        std::fs::create_dir_all(bundle.directory.join("rootfs/etc")).unwrap();
        let log = log.to_str().unwrap();
        bundle.fails(
            &["--log", log, "--log-format", "json", "create", "--bundle", &directory, &bundle.id],
            words,
        );
        let value: Value = serde_json::from_slice(&std::fs::read(log).unwrap()).unwrap();
        assert!(value["msg"].as_str().unwrap().contains(words), "{value}");
    }
    bundle.edit(|spec| spec["process"]["args"] = json!(["/bin/tool"]));
    bundle.create();
    let output = bundle.run(&["exec", &bundle.id, "/bin/nope"]);
    assert_eq!(output.status.code(), Some(255), "runc's code for a program that never ran");
}

#[test]
fn root_kept_detached_and_without_pivot() {
    let Some(bundle) = Bundle::new(&["/bin/tool", "list", "-q"]) else {
        return;
    };
    let directory = bundle.directory.to_str().unwrap().to_string();
    bundle.ok(&["run", "--keep", "--bundle", &directory, &bundle.id]);
    assert_eq!(bundle.state()["status"], "stopped");
    bundle.ok(&["delete", &bundle.id]);
    bundle.ok(&["run", "--no-pivot", "--bundle", &directory, &bundle.id]);
    bundle.ok(&["run", "--detach", "--bundle", &directory, &bundle.id]);
    bundle.await_status("stopped");
    bundle.ok(&["delete", &bundle.id]);
    bundle.fails(&["run", "--preserve-fds", "3", "--bundle", &directory, &bundle.id], "is not open");
}

/// The program is gone before the runtime looks for its end: that is armed before the start.
#[test]
fn root_a_thousand_short_runs_never_hang() {
    let Some(bundle) = Bundle::new(&["/bin/tool", "--version"]) else {
        return;
    };
    let directory = bundle.directory.to_str().unwrap();
    let deadline = Duration::from_secs(20);
    for run in 0..1000 {
        let id = format!("{}-{run}", bundle.id);
        let mut command = bundle.command(&["run", "--bundle", directory, &id]);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: deadline.as_secs() as i64, tv_nsec: 0 };
        if rustix::event::poll(&mut fds, Some(&limit)).unwrap() == 0 {
            child.kill().unwrap();
            child.wait().unwrap();
            bundle.run(&["delete", "--force", &id]);
            panic!("run {run} hung");
        }
        assert!(child.wait().unwrap().success(), "run {run}");
    }
}

#[test]
fn root_a_container_starts_with_little_memory() {
    let Some(bundle) = Bundle::new(&["/bin/tool", "--version"]) else {
        return;
    };
    for limit in [1 << 20, 512 << 10] {
        bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": limit}));
        let out = bundle.ok(&["run", "--bundle", bundle.directory.to_str().unwrap(), &bundle.id]);
        assert!(out.contains("podyard-oci version"), "{limit}: {out}");
    }
}

#[test]
fn root_sockets_handed_by_systemd_reach_the_program() {
    // Asked to hand on descriptors that are not open, the tool inside would say so.
    let Some(bundle) = Bundle::new(&["/bin/tool", "run", "--preserve-fds", "1", "x"]) else {
        return;
    };
    let directory = bundle.directory.to_str().unwrap().to_string();
    let script = "exec 3</dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let run = |listen_fds: &str, ours: bool| {
        let mut command = Command::new("sh");
        command.args(["-c", if ours { script } else { "exec 3</dev/null; exec \"$0\" \"$@\"" }, program()]);
        command.args(["--root", bundle.directory.join("state").to_str().unwrap()]);
        command.args(["run", "--bundle", &directory, &bundle.id]).env("LISTEN_FDS", listen_fds);
        let output = command.stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    // Inside, one is asked for by option and one by LISTEN_FDS, which means that process: 4 is not open there.
    assert!(run("1", true).contains("--preserve-fds: descriptor 4 is not open"));
    assert!(run("1", false).contains("--preserve-fds: descriptor 3 is not open"));
    assert!(run("2", true).contains("LISTEN_FDS: descriptor 4 is not open"));
    assert!(run("many", true).contains("LISTEN_FDS: \"many\" is not a number"));
}
