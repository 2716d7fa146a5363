//! What is there of one pod, as read from the shim, the cgroups, the links and the pod's directory.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The pod's shim.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Shim {
    /// There is none, and none is known to have been.
    #[default]
    Absent,
    /// It answers.
    Alive {
        /// It holds the pod's namespaces, network included.
        set_up: bool,
    },
    /// It was there and has died: whatever ran under it must be fenced before anything else.
    Dead,
}

/// The pod's volumes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum Volumes {
    /// None was made or held.
    #[default]
    None,
    /// Making or letting go has begun.
    Partial,
    /// All are prepared and, where claimed, held for this pod.
    Ready,
}

/// What is there of one pod.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Observed {
    /// The pod's directory exists.
    pub directory: bool,
    /// The pod's directory holds its record.
    pub recorded: bool,
    /// The pod's cgroup exists.
    pub cgroups: bool,
    /// Some process runs in the pod's cgroup. cgroup.events(`populated`).
    pub populated: bool,
    /// Its volumes.
    pub volumes: Volumes,
    /// The node's end of its link exists.
    pub link: bool,
    /// Writable layers of its containers exist.
    pub snapshots: bool,
    /// Its shim.
    pub shim: Shim,
    /// Every run of every container that is still known, oldest first.
    pub attempts: BTreeMap<String, Vec<Attempt>>,
}

impl Observed {
    /// The latest run of a container.
    pub fn last(&self, container: &str) -> Option<&Attempt> {
        self.attempts.get(container)?.last()
    }

    /// Whether anything but the record is left of the pod.
    pub fn holds_anything(&self) -> bool {
        self.cgroups
            || self.populated
            || self.volumes != Volumes::None
            || self.link
            || self.snapshots
            || self.shim != Shim::Absent
    }
}

/// One run of one container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// 0 for the first; the restart count.
    pub number: u32,
    /// How far it got.
    pub state: State,
    /// How far its hook before the end is.
    pub pre_stop: PreStop,
    /// SIGTERM was sent to it for this stop.
    pub term_sent: bool,
    /// When its liveness or startup probe gave it up.
    pub unhealthy_since: Option<Timestamp>,
    /// The shim knows it no more: its cgroup and writable layer may be gone too.
    pub deleted: bool,
    /// Digest of the image it runs from.
    pub image_id: String,
}

/// How far the hook before a run's end is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum PreStop {
    /// Not called, or there is none.
    #[default]
    Idle,
    /// Under way.
    Called,
    /// It has had its say.
    Over,
    /// It took all the time there was, and the program was asked to end beside it.
    CutOff,
}

/// How far a run got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Written down, not created (or created by a shim that died before it was started).
    Recorded,
    /// Its first process waits to be started.
    Created,
    /// It runs.
    Running {
        /// Its first process, in the host's numbering.
        pid: i32,
        /// When it was started.
        started_at: Timestamp,
    },
    /// It ended.
    Exited(Exit),
}

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Exit {
    /// Exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// Kubernetes' word for it.
    pub reason: ExitReason,
    /// When it was started, if it was.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Kubernetes' word for how a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other.
    Error,
    /// The kernel killed it for its memory limit.
    #[serde(rename = "OOMKilled")]
    OomKilled,
    /// Its shim died with it: nobody saw how it ended.
    ContainerStatusUnknown,
}

impl ExitReason {
    /// As it is written in a container status.
    pub fn as_str(self) -> &'static str {
        match self {
            ExitReason::Completed => "Completed",
            ExitReason::Error => "Error",
            ExitReason::OomKilled => "OOMKilled",
            ExitReason::ContainerStatusUnknown => "ContainerStatusUnknown",
        }
    }
}

impl Exit {
    /// The end of a run that nobody saw. Kubernetes reports 137 for it.
    pub fn unknown(started_at: Option<Timestamp>, seen_at: Timestamp) -> Exit {
        Exit {
            code: 137,
            signal: 0,
            reason: ExitReason::ContainerStatusUnknown,
            started_at,
            finished_at: seen_at,
        }
    }

    /// Whether it counts as success.
    pub fn success(&self) -> bool {
        self.code == 0
    }
}
