//! A yard for one test: a daemon of its own, a client, and conditions to wait for.

use serde_json::Value;
use std::fmt::Debug;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a condition may take before a test gives up: far more than it needs on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// Whether this process may use the kernel as the tests do; says so loudly if not.
pub fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        let line = format!("SKIP {test}: needs root (run: sudo env PATH=$PATH cargo test)\n");
        std::io::stderr().write_all(line.as_bytes()).expect("tell what is skipped");
    }
    root
}

/// Waits until `look` yields something; panics after [`PATIENCE`], saying what was awaited and what was seen.
pub fn until<T, D: Debug>(what: &str, mut look: impl FnMut() -> Result<T, D>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => {
                panic!("not within {PATIENCE:?}: {what}; last seen: {seen:#?}")
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// What a command left.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    /// Everything it wrote to stdout.
    pub stdout: String,
    /// Everything it wrote to stderr.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A running yard. Dropping it purges it, and fails the test if the purge does.
pub struct Yard {
    program: PathBuf,
    name: String,
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    daemon_env: Vec<(String, String)>,
    daemon_args: Vec<String>,
    isolated: bool,
}

impl Yard {
    /// Starts an isolated yard for `test`, or says why not.
    pub fn start(program: &str, test: &str) -> Option<Yard> {
        is_root(test).then(|| {
            let mut yard = Yard::prepare(program, test);
            yard.start_daemon();
            yard
        })
    }

    /// The directories and name of a yard whose daemon is not started yet.
    pub fn prepare(program: &str, test: &str) -> Yard {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new()
            .prefix(&format!("podyard-{test}-"))
            .tempdir()
            .expect("a temporary directory for the yard");
        Yard {
            program: program.into(),
            name,
            dir,
            daemon: None,
            daemon_env: Vec::new(),
            daemon_args: Vec::new(),
            isolated: true,
        }
    }

    /// Makes the yard use the host's (that is, the caller's) network namespace instead of one of its own.
    pub fn not_isolated(mut self) -> Yard {
        self.isolated = false;
        self
    }

    /// The yard's name: the last part of its cgroup parent.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory that holds everything of the yard.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The run directory: sockets and runtime state.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The data directory: store, images, snapshots, volumes.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("podyard.sock")
    }

    /// The daemon's process id. Panics if it was killed.
    pub fn daemon_pid(&self) -> i32 {
        self.daemon.as_ref().expect("the daemon runs").id() as i32
    }

    /// Adds to the environment of daemons started from now on (fault points).
    pub fn daemon_env(&mut self, name: &str, value: &str) {
        self.daemon_env.retain(|(known, _)| known != name);
        if !value.is_empty() {
            self.daemon_env.push((name.into(), value.into()));
        }
    }

    /// Gives daemons started from now on these words more (`--node-grace-period=1s`).
    pub fn daemon_args(&mut self, words: &[&str]) {
        self.daemon_args.extend(words.iter().map(|word| (*word).to_owned()));
    }

    fn place(&self) -> Vec<String> {
        let path = |sub: &str| self.dir.path().join(sub).to_string_lossy().into_owned();
        let mut flags = vec![
            "--name".into(),
            self.name.clone(),
            "--data-dir".into(),
            path("data"),
            "--run-dir".into(),
            path("run"),
            "--log-dir".into(),
            path("log"),
            "--socket".into(),
            self.socket().to_string_lossy().into_owned(),
        ];
        if self.isolated {
            flags.insert(0, "--isolated".into());
        }
        flags
    }

    /// Starts the daemon and waits until it answers.
    pub fn start_daemon(&mut self) {
        self.spawn_daemon();
        until("the daemon answers", || {
            if let Some(child) = &mut self.daemon
                && let Ok(Some(status)) = child.try_wait()
            {
                panic!("the daemon ended with {status}: {}", self.daemon_log());
            }
            let ran = self.podyard(&["version", "-o", "json"]);
            if ran.code == 0 { Ok(()) } else { Err(ran) }
        });
    }

    /// Starts the daemon without waiting for it: a fault point may end it at any time.
    pub fn spawn_daemon(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("daemon.log"))
            .expect("open the daemon's log");
        let child = Command::new(&self.program)
            .arg("up")
            .args(self.place())
            .args(&self.daemon_args)
            .envs(self.daemon_env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate the log"))
            .stderr(log)
            .spawn()
            .expect("start the daemon");
        self.daemon = Some(child);
    }

    /// What the daemon wrote so far.
    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }

    /// SIGKILLs the daemon and reaps it.
    pub fn kill_daemon(&mut self) {
        let mut child = self.daemon.take().expect("the daemon runs");
        child.kill().expect("kill the daemon");
        child.wait().expect("reap the daemon");
    }

    /// Waits until a fault point ended the daemon.
    pub fn await_daemon_death(&mut self) {
        let mut child = self.daemon.take().expect("the daemon runs");
        until("the daemon dies at its fault point", || match child.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// Whether the daemon still runs; a dead one is reaped.
    pub fn daemon_runs(&mut self) -> bool {
        let alive = self.daemon.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        if !alive {
            self.daemon = None;
        }
        alive
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("PODYARD_SOCKET", self.socket()).env_remove("RUST_LOG");
        command
    }

    /// Runs the client.
    pub fn podyard(&self, args: &[&str]) -> Ran {
        self.command(args).stdin(Stdio::null()).output().expect("run podyard").into()
    }

    /// Runs the client with `input` on its stdin.
    pub fn podyard_with(&self, args: &[&str], input: &str) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run podyard");
        let mut stdin = child.stdin.take().expect("its stdin");
        std::thread::scope(|scope| {
            // Beside the reading: who waits for its output to be taken takes no more input.
            scope.spawn(move || stdin.write_all(input.as_bytes()).expect("write its stdin"));
            child.wait_with_output().expect("await podyard").into()
        })
    }

    /// Starts the client and returns it running (watches, follows).
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run podyard")
    }

    /// Runs the client, which must succeed; its stdout.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.podyard(args);
        assert_eq!(ran.code, 0, "podyard {args:?}: {ran:#?}\ndaemon: {}", self.daemon_log());
        ran.stdout
    }

    /// Applies manifests, which must succeed.
    #[track_caller]
    pub fn apply(&self, yaml: &str) -> String {
        let ran = self.podyard_with(&["apply", "-f", "-"], yaml);
        assert_eq!(ran.code, 0, "podyard apply: {ran:#?}\n{yaml}");
        ran.stdout
    }

    /// An object, or a list, as JSON; `None` if it is not there.
    #[track_caller]
    pub fn get(&self, args: &[&str]) -> Option<Value> {
        let ran = self.podyard(&[&["get"], args, &["-o", "json"]].concat());
        if ran.code != 0 && ran.stderr.contains("NotFound") {
            return None;
        }
        assert_eq!(ran.code, 0, "podyard get {args:?}: {ran:#?}");
        Some(serde_json::from_str(&ran.stdout).expect("get -o json prints JSON"))
    }

    /// The items of a list.
    #[track_caller]
    pub fn list(&self, args: &[&str]) -> Vec<Value> {
        let list = self.get(args).unwrap_or_default();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until a pod is Ready, and returns it.
    #[track_caller]
    pub fn ready(&self, pod: &str) -> Value {
        self.pod_until(pod, "ready", is_ready)
    }

    /// Waits until a pod fulfils a condition, and returns it.
    #[track_caller]
    pub fn pod_until(&self, pod: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        until(&format!("pod {pod} {what}"), || match self.get(&["pod", pod]) {
            Some(object) if holds(&object) => Ok(object),
            other => Err((other.map(|pod| pod["status"].clone()), self.daemon_tail())),
        })
    }

    /// Waits until a pod is gone.
    #[track_caller]
    pub fn gone(&self, pod: &str) {
        until(&format!("pod {pod} is gone"), || match self.get(&["pod", pod]) {
            None => Ok(()),
            Some(object) => Err((object["metadata"].clone(), object["status"].clone(), self.daemon_tail())),
        });
    }

    fn daemon_tail(&self) -> Vec<String> {
        let log = self.daemon_log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].iter().map(|line| (*line).to_owned()).collect()
    }

    /// Waits until exactly so many pods of a selector are ready and no other is left.
    #[track_caller]
    pub fn ready_count(&self, selector: &str, count: usize) -> Vec<Value> {
        until(&format!("{count} pods of {selector} are ready"), || {
            let pods = self.list(&["pods", "-l", selector]);
            if pods.len() == count && pods.iter().all(is_ready) {
                Ok(pods)
            } else {
                let seen: Vec<_> = pods
                    .iter()
                    .map(|pod| format!("{} {}", pod["metadata"]["name"], pod["status"]["phase"]))
                    .collect();
                Err((seen, self.daemon_tail()))
            }
        })
    }

    /// The yard's namespaces of one kind that a pod is in, as `ns ls -o json` tells.
    #[track_caller]
    pub fn namespaces(&self, pod: &str, kind: &str) -> Vec<Value> {
        let map: Value =
            serde_json::from_str(&self.ok(&["ns", "ls", "-o", "json"])).expect("ns ls prints JSON");
        let all = map["namespaces"].as_array().cloned().unwrap_or_default();
        let name = format!("default/{pod}");
        let holds =
            |ns: &Value| ns["pods"].as_array().is_some_and(|pods| pods.iter().any(|one| *one == name));
        all.into_iter().filter(|ns| ns["kind"] == kind && holds(ns)).collect()
    }

    /// The processes in a pod's containers, in ascending order.
    #[track_caller]
    pub fn pids(&self, pod: &str) -> Vec<i32> {
        let name = format!("default/{pod}");
        let mut all: Vec<i32> = self
            .namespaces(pod, "mnt")
            .iter()
            .flat_map(|ns| ns["processes"].as_array().cloned().unwrap_or_default())
            .filter(|process| process["pod"] == name && process["container"].is_string())
            .filter_map(|process| process["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Runs a toolbox applet in the namespace that is the host to this yard's pods.
    pub fn on_host(&self, applet: &[&str]) -> Ran {
        let program = self.program.to_string_lossy().into_owned();
        if self.isolated {
            self.podyard(&[&["ns", "enter", "--host", "--", &program, "toolbox"], applet].concat())
        } else {
            self.podyard(&[&["toolbox"], applet].concat())
        }
    }

    /// The cluster IP of a service.
    pub fn vip(&self, service: &str) -> String {
        let object = self.get(&["service", service]).expect("the service exists");
        object["spec"]["clusterIP"].as_str().expect("it has a cluster IP").to_owned()
    }

    /// Ends the daemon and removes whatever the yard made; the purge must succeed.
    pub fn purge(&mut self) -> Ran {
        if self.daemon_runs() {
            self.kill_daemon();
        }
        self.podyard(
            &[&["purge", "--yes"], self.place().iter().map(String::as_str).collect::<Vec<_>>().as_slice()]
                .concat(),
        )
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        let ran = self.purge();
        if std::thread::panicking() {
            eprintln!("daemon of the failed test: {}", self.daemon_log());
        } else {
            assert_eq!(ran.code, 0, "purge: {ran:#?}");
        }
    }
}

/// Whether a pod's Ready condition is True.
pub fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// The first container status of a pod.
pub fn first_status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}
