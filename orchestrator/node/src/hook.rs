//! Lifecycle hooks: what a container is told after its start and before its end.
//!
//! ```text
//!  execve ─► postStart ─► probes, Ready            fails: the container is ended, and restarted as its pod says
//!  stop ─► preStop ─► SIGTERM ─► cgroup.kill       all within the grace period; one that takes all of it leaves
//!                                                  the program two seconds
//! ```
//! At least once: a hook that was under way when the daemon died is called again.
//!
//! Source: Kubernetes documentation, "Container Lifecycle Hooks", "Pod Lifecycle".

use std::sync::Arc;

use api::Object;
use serde_json::Value;

use crate::error::Result;
use crate::handler::Act;
use crate::host::Event;
use crate::plan::Run;
use crate::pod::{Pod, container};

/// A hook, by its field.
#[derive(Clone, Copy, Debug)]
pub struct Hook(&'static str);

/// After the start.
pub const POST_START: Hook = Hook("postStart");
/// Before the end.
pub const PRE_STOP: Hook = Hook("preStop");

impl Hook {
    /// The handler in a container's entry, if there is one.
    pub fn of(self, entry: &Value) -> Option<&Value> {
        entry["lifecycle"].get(self.0).filter(|handler| handler.is_object())
    }

    async fn call(self, pod: &Pod, object: &Object, run: &Run) -> Result<()> {
        match self.of(container(object, &run.container)?) {
            Some(handler) => Act::read(object, &run.container, handler)?.perform(pod, run).await,
            None => Ok(()),
        }
    }
}

/// Calls the hook after a start; false if it failed and the container is to end for it.
pub async fn post_start(pod: &Arc<Pod>, object: &Arc<Object>, run: &Run) -> bool {
    let outcome = match POST_START.call(pod, object, run).await {
        Ok(()) => pod.mark_post_started(run),
        failed => failed,
    };
    if let Err(error) = outcome {
        let message = format!("postStart hook of {} failed: {}", run.container, error.chain());
        tell(pod, object, "FailedPostStartHook", message);
        pod.mark_unhealthy(&run.container, run.attempt);
        return false;
    }
    true
}

/// Calls the hook before an end. What comes of it does not matter to the end.
pub async fn pre_stop(pod: &Arc<Pod>, object: &Arc<Object>, run: &Run) {
    if let Err(error) = PRE_STOP.call(pod, object, run).await {
        let message = format!("preStop hook of {} failed: {}", run.container, error.chain());
        tell(pod, object, "FailedPreStopHook", message);
    }
}

fn tell(pod: &Pod, object: &Arc<Object>, reason: &'static str, message: String) {
    pod.host().upstream.event(Event { about: Arc::clone(object), normal: false, reason, message });
}
