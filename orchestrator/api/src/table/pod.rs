//! A pod in one line: its STATUS, READY and RESTARTS as kubectl prints them.
//!
//! Source: Kubernetes documentation, "Pod Lifecycle" and the output of `kubectl get pods`; deletion and waiting
//! reasons win over the phase, init containers over the others.

use jiff::Timestamp;
use serde_json::Value;

use crate::object::Object;
use crate::time;

/// A pod in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Containers that are ready.
    pub ready: usize,
    /// Containers wanted.
    pub wanted: usize,
    /// `Running`, `CrashLoopBackOff`, `Init:0/1`, `Terminating`…
    pub status: String,
    /// Restarts of all containers.
    pub restarts: i64,
    /// When a container last ended before its restart.
    pub last_restart: Option<Timestamp>,
}

impl Summary {
    /// `2/2`.
    pub fn ready_text(&self) -> String {
        format!("{}/{}", self.ready, self.wanted)
    }

    /// `3 (20s ago)`.
    pub fn restarts_text(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(last) if self.restarts > 0 => {
                format!("{} ({} ago)", self.restarts, time::age(Some(last), now))
            }
            _ => self.restarts.to_string(),
        }
    }
}

/// Sums a pod up.
pub fn summary(pod: &Object) -> Summary {
    let mut status = reason(&pod.0["status"])
        .or_else(|| pod.get_str("status.phase").map(String::from))
        .unwrap_or_else(|| "Unknown".into());
    let mut summary = Summary {
        ready: 0,
        wanted: pod.get_array("spec.containers").len(),
        status: String::new(),
        restarts: 0,
        last_restart: None,
    };
    let is_initializing = match init_status(pod, &mut summary) {
        Some(init) => {
            status = init;
            true
        }
        None => false,
    };
    if !is_initializing {
        (summary.restarts, summary.last_restart) = (0, None);
        let mut has_running = false;
        for container in pod.get_array("status.containerStatuses").iter().rev() {
            count_restarts(container, &mut summary);
            let state = &container["state"];
            if let Some(why) = reason(&state["waiting"]) {
                status = why;
            } else if !state["terminated"].is_null() {
                status = ended(&state["terminated"]);
            } else if container["ready"] == true && !state["running"].is_null() {
                has_running = true;
                summary.ready += 1;
            }
        }
        if status == "Completed" && has_running {
            let ready = condition(pod, "Ready").is_some_and(|c| c["status"] == "True");
            status = if ready { "Running" } else { "NotReady" }.into();
        }
    }
    if pod.is_deleting() {
        let lost = pod.get_str("status.reason") == Some("NodeLost");
        let finished = matches!(pod.get_str("status.phase"), Some("Succeeded" | "Failed"));
        if lost {
            status = "Unknown".into();
        } else if !finished {
            status = "Terminating".into();
        }
    }
    summary.status = status;
    summary
}

/// `Init:…` while an init container is not done.
fn init_status(pod: &Object, summary: &mut Summary) -> Option<String> {
    let wanted = pod.get_array("spec.initContainers").len();
    for (index, container) in pod.get_array("status.initContainerStatuses").iter().enumerate() {
        count_restarts(container, summary);
        let state = &container["state"];
        if state["terminated"]["exitCode"] == 0 || container["started"] == true {
            continue;
        }
        if !state["terminated"].is_null() {
            return Some(format!("Init:{}", ended(&state["terminated"])));
        }
        return Some(match reason(&state["waiting"]).filter(|why| why != "PodInitializing") {
            Some(why) => format!("Init:{why}"),
            None => format!("Init:{index}/{wanted}"),
        });
    }
    None
}

fn count_restarts(container: &Value, summary: &mut Summary) {
    summary.restarts += container["restartCount"].as_i64().unwrap_or(0);
    let ended = time::parse(&container["lastState"]["terminated"]["finishedAt"]);
    summary.last_restart = summary.last_restart.max(ended);
}

fn ended(terminated: &Value) -> String {
    reason(terminated).unwrap_or_else(|| match terminated["signal"].as_i64() {
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
    })
}

fn reason(value: &Value) -> Option<String> {
    value["reason"].as_str().filter(|reason| !reason.is_empty()).map(String::from)
}

/// The condition of that type.
pub fn condition<'a>(object: &'a Object, kind: &str) -> Option<&'a Value> {
    object.get_array("status.conditions").iter().find(|condition| condition["type"] == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn statuses() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let check = |status: Value, meta: Value, expect: (&str, &str, &str)| {
            let pod = Object(json!({
                "metadata": meta,
                "spec": {"containers": [{}, {}], "initContainers": [{}]},
                "status": status,
            }));
            let summary = summary(&pod);
            let shown = (summary.ready_text(), summary.status.clone(), summary.restarts_text(now));
            assert_eq!((shown.0.as_str(), shown.1.as_str(), shown.2.as_str()), expect, "{pod:?}");
        };
        let running = json!({"ready": true, "restartCount": 1, "state": {"running": {}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:40Z"}}});
        let waiting =
            |why: &str| json!({"ready": false, "restartCount": 0, "state": {"waiting": {"reason": why}}});
        let done = json!({"ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        check(json!({"phase": "Pending"}), json!({}), ("0/2", "Pending", "0"));
        check(
            json!({"phase": "Running", "containerStatuses": [running, running]}),
            json!({}),
            ("2/2", "Running", "2 (20s ago)"),
        );
        check(
            json!({"phase": "Running", "containerStatuses": [running, waiting("CrashLoopBackOff")]}),
            json!({}),
            ("1/2", "CrashLoopBackOff", "1 (20s ago)"),
        );
        check(
            json!({"phase": "Running", "containerStatuses": [running, done],
                "conditions": [{"type": "Ready", "status": "True"}]}),
            json!({}),
            ("1/2", "Running", "1 (20s ago)"),
        );
        check(
            json!({"phase": "Succeeded", "containerStatuses": [done, done]}),
            json!({}),
            ("0/2", "Completed", "0"),
        );
        check(
            json!({"phase": "Failed", "containerStatuses": [
                {"restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]}),
            json!({}),
            ("0/2", "ExitCode:3", "0"),
        );
        check(json!({"phase": "Failed", "reason": "Evicted"}), json!({}), ("0/2", "Evicted", "0"));
        let leaving = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        check(
            json!({"phase": "Running", "containerStatuses": [running, running]}),
            leaving.clone(),
            ("2/2", "Terminating", "2 (20s ago)"),
        );
        check(
            json!({"phase": "Succeeded", "containerStatuses": [done, done]}),
            leaving,
            ("0/2", "Completed", "0"),
        );
        check(
            json!({"phase": "Pending", "initContainerStatuses": [{"restartCount": 0, "state": {"running": {}}}]}),
            json!({}),
            ("0/2", "Init:0/1", "0"),
        );
        check(
            json!({"phase": "Pending", "initContainerStatuses": [
                {"restartCount": 4, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
            json!({}),
            ("0/2", "Init:Error", "4"),
        );
    }
}
