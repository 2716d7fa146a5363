//! The bodies of the yard paths, `/podyard/v1/…`: what Kubernetes has no object for.
//!
//! | path | verb | answer |
//! | --- | --- | --- |
//! | `info` | GET | [`Info`] |
//! | `namespaces` | GET | [`NamespaceMap`] |
//! | `services` | GET, `?node=` for another than the first | [`ServiceMap`] |
//! | `trace/{ns}/{pod}` | GET | [`Trace`] |
//! | `step/{ns}/{pod}` | GET waits, POST `?action=next\|run` releases | [`StepState`] |
//! | `volumes…` | | see [`crate::volumes`] |
//! | `plan` | POST a list of objects | [`Plan`] |
//! | `pod-plan` | POST an admitted pod | [`PodPlan`] |
//! | `nodes/{node}/heartbeat` | POST | `ok` |

use serde::{Deserialize, Serialize};

/// A pod with this annotation set to `true` pauses after each step of its start until released.
pub const STEP_ANNOTATION: &str = "podyard.io/step";

/// The yard as its daemon knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Info {
    /// The yard's name.
    pub name: String,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// Its node.
    pub node: String,
    /// Whether even the host's side of the fabric lives in a namespace of the yard's.
    pub isolated: bool,
    /// Store, images, volumes.
    pub data_dir: String,
    /// Sockets and runtime state.
    pub run_dir: String,
    /// Container logs.
    pub log_dir: String,
    /// The API's socket.
    pub socket: String,
    /// The cgroup beneath which everything of the yard runs.
    pub cgroup: String,
    /// Addresses of pods.
    pub pod_cidr: String,
    /// Virtual addresses of services.
    pub service_cidr: String,
    /// A path that opens the node's network namespace.
    pub node_netns: Option<String>,
    /// A path that opens the namespace that plays the host (`isolated` only).
    pub host_netns: Option<String>,
    /// When the daemon came up, RFC 3339.
    pub started_at: String,
}

/// Every namespace of a yard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceMap {
    /// Sorted by kind, then inode.
    pub namespaces: Vec<Namespace>,
    /// Nodes that did not answer, and why: what is there is not in the map.
    pub unreachable: Vec<String>,
}

/// One namespace. Source: namespaces(7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Namespace {
    /// As in /proc/PID/ns: `net`, `ipc`, `uts`, `pid`, `mnt`, `user`, `cgroup`, `time`.
    pub kind: String,
    /// Its identity on this boot.
    pub inode: u64,
    /// A path that opens it as long as it lives.
    pub path: Option<String>,
    /// Who uses it, as `namespace/pod`, and `host` or `node` for the yard's own.
    pub pods: Vec<String>,
    /// The processes in it.
    pub processes: Vec<Process>,
}

/// A process of the yard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// As the host sees it.
    pub pid: u32,
    /// Its name, as in /proc/PID/comm.
    pub command: String,
    /// `namespace/pod`, if it belongs to one.
    pub pod: Option<String>,
    /// The container, if it belongs to one.
    pub container: Option<String>,
}

/// What stands behind every virtual port, as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceMap {
    /// Sorted by address, protocol and port.
    pub services: Vec<VirtualService>,
    /// Transactions of this daemon's proxy that changed something.
    pub transactions: u64,
    /// Map and set elements that they wrote or removed.
    pub elements: u64,
}

/// One virtual port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualService {
    /// The virtual IP.
    pub ip: String,
    /// The port.
    pub port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// As `address:port`, by slot.
    pub endpoints: Vec<String>,
}

/// A step and what it did to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Step {
    /// Counts up within the pod.
    pub sequence: u64,
    /// When it began, RFC 3339; absent from a plan.
    pub at: Option<String>,
    /// The step, as `netns create` or `container app start`.
    pub step: String,
    /// The effect on the kernel, as `netns 4026532841 at /run/…`.
    pub effect: String,
    /// How long it took; absent from a plan.
    pub micros: Option<u64>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// The steps taken for a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Trace {
    /// `namespace/name`.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// Oldest first.
    pub steps: Vec<Step>,
    /// How many older steps the ring has forgotten.
    pub dropped: u64,
}

/// What to do with a pod that pauses after each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepAction {
    /// Wait until it pauses, or its start is complete.
    Show,
    /// Let it take one step.
    Next,
    /// Let it take all the others.
    Run,
}

/// Where a pod that pauses stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StepState {
    /// The step just taken.
    pub last: Option<Step>,
    /// The step that would come next, as the plan names it.
    pub next: Option<String>,
    /// Whether it waits to be released.
    pub paused: bool,
    /// Whether nothing is left to be taken.
    pub done: bool,
}

/// What would be done for some manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Plan {
    /// What would become of each object, in the order given.
    pub objects: Vec<ObjectPlan>,
    /// The pods that would be made, by the manifests or by their controllers.
    pub pods: Vec<PodPlan>,
}

/// What would become of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectPlan {
    /// As `pod/web`.
    pub object: String,
    /// `create`, `configure`, `unchanged` or `refuse`.
    pub action: String,
    /// Why it would be refused, and warnings; what its controller would then do.
    pub notes: Vec<String>,
}

/// The steps that would be taken for one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodPlan {
    /// `namespace/name`.
    pub pod: String,
    /// Which object asked for it, as `replicaset/web`; empty for a pod of its own.
    pub owner: String,
    /// In order.
    pub steps: Vec<Step>,
    /// Why it could not be planned.
    pub error: Option<String>,
}
