//! What client and shim say to each other.
//!
//! ```text
//!  client                                   shim
//!    │ Request{id: 1, Hello{version}}  ───►   │  first, or the shim hangs up
//!    │  ◄───  Answer{id: 1, Ok(Hello{..})}    │
//!    │ Request{id: 2, Create{..}}      ───►   │  any number may be under way; answers come in any order
//!    │ Request{id: 3, State}           ───►   │
//!    │  ◄───  Answer{id: 3, Ok(State{..})}    │
//!    │  ◄───  Answer{id: 2, Err(Failure)}     │
//!    │  ◄───  Event(Exited{..})               │  after Subscribe; exec exits go to whoever asked for the exec
//! ```
//!
//! Framing and descriptors: [`crate::frame`]. A client may vanish at any time; what it asked for is finished, and
//! its result can be read by State. Every request is idempotent or refuses a repetition by kind.
#![forbid(unsafe_code)]

use rootfs::RootPlan;
use rootfs::volume::BindAccess;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of this protocol. Raised when an old shim could misread a new client or the other way round; added
/// optional fields do not raise it.
pub const VERSION: u32 = 1;

/// Name of the socket in the pod directory.
pub const SOCKET_FILE: &str = "shim.sock";
/// Name of the directory of exit records in the pod directory: `exits/<container>.<attempt>.json`.
pub const EXITS_DIR: &str = "exits";

/// From client to shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Chosen by the client, returned with the answer.
    pub id: u64,
    /// What is asked.
    pub verb: Verb,
}

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Verb {
    /// Always first. → [`Reply::Hello`]
    Hello {
        /// The client's [`VERSION`].
        version: u32,
    },
    /// Makes the pod's namespaces. Fds: the network namespace, or none for the host's. Idempotent: the second time
    /// the namespaces stay as they are. → [`Reply::State`]
    Setup(Setup),
    /// Makes a container up to just before its program runs. → [`Reply::Created`], fds: pidfd
    ///
    /// Refused with `AlreadyExists` if this attempt, or a later one, exists or has an exit record; with `Conflict`
    /// while an earlier attempt of the same name has not exited.
    Create(Box<Create>),
    /// Lets a created container's program run. A running one: nothing is done. → [`Reply::Done`]
    Start(ContainerId),
    /// Sends a signal. An exited target: nothing is done. → [`Reply::Done`]
    Kill {
        /// Whom.
        target: Target,
        /// Signal number.
        signal: i32,
    },
    /// Forgets an exited container and removes its cgroup. An unknown one: nothing is done. → [`Reply::Done`]
    Delete(ContainerId),
    /// Runs another program in a running container. Fds: stdin, stdout, stderr, or none for /dev/null (or, with
    /// `terminal`, for a new terminal). → [`Reply::Executing`], fds: pidfd, and the terminal's master if there is
    /// one. [`Event::ExecExited`] follows on this connection.
    Exec(Box<Exec>),
    /// → [`Reply::State`]
    State,
    /// From now on this connection gets [`Event::Exited`]. → [`Reply::State`], as of the subscription.
    Subscribe,
    /// → [`Reply::Namespaces`], one fd each in the order of the names
    Namespaces,
    /// → [`Reply::Done`], fds: pidfd of the running container's init process
    Pidfd(ContainerId),
    /// Ends the shim. Refused with `Busy` while a container is created or running. → [`Reply::Done`]
    Shutdown,
}

/// The pod's shared namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Setup {
    /// Host name in the pod.
    pub hostname: String,
    /// NIS domain name in the pod; empty leaves the kernel's.
    #[serde(default)]
    pub domainname: String,
    /// One PID namespace for all containers, with a process of the shim's as its init.
    #[serde(default)]
    pub share_pid: bool,
    /// Uses the host's IPC namespace.
    #[serde(default)]
    pub host_ipc: bool,
    /// Cgroup for that init process, beneath the pod's; as in [`Create::cgroup`].
    #[serde(default)]
    pub pause_cgroup: String,
}

/// A container to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Create {
    /// Name and attempt.
    pub container: ContainerId,
    /// OCI runtime spec. The shim fills in the namespaces it holds (those listed without a path), the root and the
    /// cgroup; `root.path` and `linux.cgroupsPath` are ignored.
    pub spec: serde_json::Value,
    /// The root file system.
    pub root: RootPlan,
    /// Bind mounts, in order; after the spec's own mounts.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    /// Cgroup path from the hierarchy's root, such as `/podyard/pods/pod<uid>/web.0`.
    pub cgroup: String,
    /// CRI-format log; rotated to `<log>.1` (newest) … `<log>.4`. Its directory exists.
    pub log: PathBuf,
    /// Milliseconds until the worker is killed and the create fails with `Timeout`; 0 means 30 s.
    #[serde(default)]
    pub deadline_ms: u64,
}

/// A host path in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// Absolute path on the host: a directory or file that we trust.
    pub source: PathBuf,
    /// `source` is the data of this claim's volume, a directory or an image, and is mounted only if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<rootfs::Claim>,
    /// Path beneath `source`, chosen by others: resolved so that no link leads out; made if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<PathBuf>,
    /// Absolute path in the container; made if missing.
    pub destination: PathBuf,
    /// Read-only or not.
    pub access: BindAccess,
}

/// A program to run in a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exec {
    /// Where.
    pub container: ContainerId,
    /// OCI process object: args, env, cwd, user, capabilities, terminal. What it leaves out comes from the
    /// container's own process.
    pub process: serde_json::Value,
    /// Milliseconds until the worker that starts it is killed; 0 means 30 s. The program itself has no deadline.
    #[serde(default)]
    pub deadline_ms: u64,
}

/// One container attempt of the pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerId {
    /// Name in the pod.
    pub name: String,
    /// Restart count when it was made: 0, 1, …
    pub attempt: u32,
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.name, self.attempt)
    }
}

/// Whom to signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// The init process of one container.
    Container(ContainerId),
    /// The init processes of all running containers.
    All,
    /// Every process in the container's cgroup; only with SIGKILL (`cgroup.kill`).
    Cgroup(ContainerId),
    /// A program started by Exec, by the number it was given.
    Exec(u64),
}

/// From shim to client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Answer {
    /// To a request.
    Reply {
        /// The request's.
        id: u64,
        /// What became of it.
        result: Result<Reply, Failure>,
    },
    /// Unasked.
    Event(Event),
}

/// A request that succeeded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Reply {
    /// Who is there.
    Hello {
        /// The shim's [`VERSION`].
        version: u32,
        /// The pod's uid.
        pod_uid: String,
        /// The shim itself.
        process: ProcessName,
    },
    /// Nothing to say.
    Done,
    /// The container waits for Start.
    Created {
        /// Its init process.
        process: ProcessName,
        /// What was done for it.
        steps: Vec<Step>,
    },
    /// The program runs.
    Executing {
        /// Its number, for [`Target::Exec`] and [`Event::ExecExited`].
        exec: u64,
        /// Its process.
        process: ProcessName,
    },
    /// The pod as it is.
    State(PodState),
    /// The pod's namespaces, in the order of the fds.
    Namespaces(Vec<Namespace>),
}

/// A process that cannot be taken for another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessName {
    /// Process id in the host's PID namespace.
    pub pid: i32,
    /// Clock ticks after boot. proc_pid_stat(5), field 22.
    pub start_time: u64,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
}

/// One step of a worker, for `podyard trace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// What was done, with its kernel effect: `mount overlay on /usr`.
    pub what: String,
    /// How long it took, in microseconds.
    pub micros: u64,
}

/// A namespace of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespace {
    /// `net`, `uts`, `ipc` or `pid`.
    pub kind: String,
    /// Its inode number, as /proc/PID/ns shows it.
    pub inode: u64,
}

/// The pod as its shim sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    /// Empty before Setup.
    pub namespaces: Vec<Namespace>,
    /// The shared PID namespace's init process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<ProcessName>,
    /// Sorted by name, then attempt.
    pub containers: Vec<ContainerState>,
}

/// A container as its shim sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// Name and attempt.
    pub container: ContainerId,
    /// Where it stands.
    pub status: Status,
    /// Its init process; none before the worker is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessName>,
    /// Its cgroup, as given.
    pub cgroup: String,
    /// Nanoseconds since the epoch at which its program was let run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at_ns: Option<u64>,
}

/// Where a container stands. Creating → Created → Running → Exited; any of them → Exited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// Its worker is at work.
    Creating,
    /// Waits for Start.
    Created,
    /// Its program runs.
    Running,
    /// It has ended.
    Exited(ExitRecord),
}

/// How a container attempt ended. Also the content of its exit record file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitRecord {
    /// Name and attempt.
    pub container: ContainerId,
    /// As a shell reports it: the exit code, or 128 + signal.
    pub code: i32,
    /// The signal that killed it; 0 for none.
    pub signal: i32,
    /// The kernel killed a process of its cgroup for want of memory.
    pub oom_killed: bool,
    /// Nanoseconds since the epoch; none if its program never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at_ns: Option<u64>,
    /// Nanoseconds since the epoch.
    pub finished_at_ns: u64,
    /// The process it was.
    pub process: ProcessName,
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event {
    /// A container ended; its record is in its file.
    Exited(ExitRecord),
    /// A program started by Exec on this connection ended.
    ExecExited {
        /// Its number.
        exec: u64,
        /// As a shell reports it: the exit code, or 128 + signal.
        code: i32,
    },
}

/// Why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct Failure {
    /// What the client can do about it.
    pub kind: FailureKind,
    /// The whole chain on one line.
    pub message: String,
}

/// What a client can do about a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// No such container or exec.
    NotFound,
    /// This attempt has been made before.
    AlreadyExists,
    /// Not in this state.
    Conflict,
    /// The request is malformed, or the spec is wrong. The container cannot start as it is.
    Invalid,
    /// This kernel lacks what is needed.
    Unsupported,
    /// Something is under way; try later.
    Busy,
    /// Not permitted.
    Denied,
    /// The worker hit its deadline.
    Timeout,
    /// Anything else.
    Internal,
}

impl Failure {
    /// A failure of this kind.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into() }
    }
}

impl From<rootfs::Error> for Failure {
    fn from(error: rootfs::Error) -> Failure {
        let kind = match error.kind() {
            rootfs::Kind::NotFound | rootfs::Kind::Invalid => FailureKind::Invalid,
            rootfs::Kind::AlreadyExists | rootfs::Kind::Conflict => FailureKind::Conflict,
            rootfs::Kind::Unsupported => FailureKind::Unsupported,
            rootfs::Kind::Busy => FailureKind::Busy,
            rootfs::Kind::Denied => FailureKind::Denied,
            rootfs::Kind::Internal => FailureKind::Internal,
        };
        Failure::new(kind, error.chain())
    }
}

impl From<runtime::Error> for Failure {
    fn from(error: runtime::Error) -> Failure {
        let kind = match error.kind() {
            runtime::Kind::NotFound | runtime::Kind::Invalid => FailureKind::Invalid,
            runtime::Kind::AlreadyExists => FailureKind::Conflict,
            runtime::Kind::Unsupported => FailureKind::Unsupported,
            runtime::Kind::Busy => FailureKind::Busy,
            runtime::Kind::Denied => FailureKind::Denied,
            runtime::Kind::Timeout => FailureKind::Timeout,
            runtime::Kind::Internal => FailureKind::Internal,
        };
        Failure::new(kind, error.to_string())
    }
}
