//! A pod of the test's own: directory, cgroups, shim; the test plays the daemon.

#![allow(dead_code, clippy::unwrap_used, reason = "a test helper; each test file uses a part")]

use rootfs::{Access, Image, Snapshots, Toolbox, image};
use runtime::cgroup::Cgroup;
use serde_json::{Value, json};
use shim::client::Client;
use shim::protocol::*;
use shim::spawn::{Program, SpawnRequest, Spawned, spawn};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: needs root\n");
    }
    root
}

pub struct Pod {
    pub dir: PathBuf,
    pub cgroup: String,
    pub image: Image,
    pub shim: Option<Spawned>,
    pub program: Program,
}

impl Pod {
    /// A pod with a shim but without namespaces.
    pub fn new() -> Pod {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("podyard-shim-test-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(dir.join("logs")).unwrap();
        let toolbox = Toolbox { binary: env!("CARGO_BIN_EXE_shim-standalone").into(), applets: Vec::new() };
        let image = image::ensure(&dir.join("images"), image::HOST, &toolbox).unwrap();
        // SHIM_BINARY=…/podyard measures and tests the real one.
        let binary = std::env::var_os("SHIM_BINARY").unwrap_or(env!("CARGO_BIN_EXE_shim-standalone").into());
        let program = Program::open(Path::new(&binary)).unwrap();
        let mut pod = Pod { dir, cgroup: format!("/{name}"), image, shim: None, program };
        pod.shim = Some(pod.spawn().unwrap());
        pod
    }

    /// A pod with its namespaces.
    pub fn ready() -> (Pod, Client) {
        let pod = Pod::new();
        let mut client = pod.client();
        client.call(Verb::Setup(Setup { hostname: "pod".into(), ..Setup::default() }), &[]).unwrap();
        (pod, client)
    }

    pub fn spawn(&self) -> Result<Spawned, Failure> {
        spawn(&SpawnRequest {
            program: &self.program,
            pod_dir: &self.dir,
            pod_uid: "uid-1",
            cgroup: &format!("{}/shims/uid-1", self.cgroup),
        })
    }

    pub fn client(&self) -> Client {
        Client::open(&self.dir).unwrap()
    }

    pub fn log_path(&self, id: &ContainerId) -> PathBuf {
        self.dir.join("logs").join(format!("{id}.log"))
    }

    /// The text of a container's log, without time stamps.
    pub fn log(&self, id: &ContainerId) -> String {
        let text = std::fs::read_to_string(self.log_path(id)).unwrap_or_default();
        text.split_terminator('\n').map(|line| format!("{}\n", line.split_once(' ').unwrap().1)).collect()
    }

    pub fn create_request(&self, id: &ContainerId, args: &[&str]) -> Create {
        let root = Snapshots::new(self.dir.join("snapshots"))
            .prepare(&id.to_string(), &self.image, Access::ReadWrite)
            .unwrap();
        Create {
            container: id.clone(),
            spec: spec(args),
            root,
            volumes: Vec::new(),
            cgroup: format!("{}/pod/{id}", self.cgroup),
            log: self.log_path(id),
            deadline_ms: 0,
        }
    }

    /// Creates and starts a container that runs `script`.
    pub fn run(&self, client: &mut Client, id: &ContainerId, script: &str) -> ProcessName {
        let create = self.create_request(id, &["/bin/sh", "-c", script]);
        let process = match client.call(Verb::Create(Box::new(create)), &[]).unwrap().0 {
            Reply::Created { process, .. } => process,
            other => panic!("{other:?}"),
        };
        client.call(Verb::Start(id.clone()), &[]).unwrap();
        process
    }

    /// Waits for the exit of `id` as a fresh, subscribed client sees it.
    pub fn wait(&self, id: &ContainerId) -> ExitRecord {
        let mut client = self.client();
        let state = client.call(Verb::Subscribe, &[]).unwrap().0;
        if let Status::Exited(record) = status(&state, id) {
            return record;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Some(event) = client.event(deadline.saturating_duration_since(Instant::now())).unwrap() {
            if let Event::Exited(record) = event
                && record.container == *id
            {
                return record;
            }
        }
        panic!("{id} does not exit; shim.log: {}", self.shim_log());
    }

    pub fn shim_log(&self) -> String {
        std::fs::read_to_string(self.dir.join("shim.log")).unwrap_or_default()
    }

    /// Ends the shim with its workers, then the pod, as the daemon does.
    pub fn fence(&mut self) {
        if let Some(shim) = self.shim.take() {
            let _ = rustix::process::pidfd_send_signal(&shim.pidfd, rustix::process::Signal::KILL);
            wait_end(&shim.pidfd);
        }
        for part in ["shims", "pod"] {
            let Ok(cgroup) = Cgroup::open(format!("{}/{part}", self.cgroup)) else { continue };
            cgroup.kill().unwrap();
            assert!(cgroup.wait_empty(Duration::from_secs(10)).unwrap(), "cgroup {part} stays populated");
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.fence();
        if let Ok(cgroup) = Cgroup::open(&self.cgroup) {
            cgroup.kill().unwrap();
            assert!(cgroup.wait_empty(Duration::from_secs(10)).unwrap());
            cgroup.remove().unwrap();
        }
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// Waits until the process that a pidfd names has ended.
pub fn wait_end(pidfd: &std::os::fd::OwnedFd) {
    let timeout = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    let mut fds = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)).unwrap(), 1, "process does not end");
}

pub fn id(name: &str, attempt: u32) -> ContainerId {
    ContainerId { name: name.into(), attempt }
}

pub fn state(client: &mut Client) -> PodState {
    match client.call(Verb::State, &[]).unwrap().0 {
        Reply::State(state) => state,
        other => panic!("{other:?}"),
    }
}

pub fn status(reply: &Reply, id: &ContainerId) -> Status {
    let Reply::State(state) = reply else { panic!("{reply:?}") };
    state.containers.iter().find(|container| container.container == *id).unwrap().status.clone()
}

/// Polls until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        std::thread::yield_now();
    }
}

pub fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "args": args,
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": true,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]},
    })
}
