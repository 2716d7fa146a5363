//! The status of a pod, as Kubernetes reports it: a pure function of what is there.
//!
//! Source: Kubernetes API reference, core/v1 PodStatus; concepts, "Pod Lifecycle".

use std::collections::BTreeMap;

use api::Object;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::desired::{Desired, Role};
use crate::observed::{Attempt, Exit, ExitReason, Observed, Shim, State};
use crate::plan::{Outcome, backoff, outcome, restart_at, restarts};

/// What probes say about a running container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// Its readiness probe succeeds, or it has none.
    pub ready: bool,
    /// Its startup probe succeeded, or it has none.
    pub started: bool,
}

/// Why a container does not run, in Kubernetes' words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// `CreateContainerError`, `ErrImageNeverPull` ...
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What a status is made from beside the object, the wish and the kernel.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Facts {
    /// By container. Absent means that no probe is configured: ready as soon as it runs.
    pub health: BTreeMap<String, Health>,
    /// By container: the step that does not succeed.
    pub faults: BTreeMap<String, Waiting>,
    /// The node's address.
    pub host_ip: Option<String>,
}

/// The whole status of `pod`.
///
/// What others own is kept: conditions of other types, the address given at binding.
pub fn status(pod: &Object, desired: &Desired, observed: &Observed, facts: &Facts, now: Timestamp) -> Value {
    let main: Vec<Value> = of_role(pod, desired, observed, facts, now, |role| role == Role::Main);
    let init: Vec<Value> = of_role(pod, desired, observed, facts, now, |role| role != Role::Main);
    let initialized =
        init.iter().zip(desired.containers.iter()).all(|(status, container)| match container.role {
            Role::Sidecar => status["started"] == true,
            _ => status["state"]["terminated"]["exitCode"] == 0,
        });
    let outcome = outcome(desired, observed).filter(|_| !observed.holds_anything());
    let phase = phase(outcome, initialized, &main);

    let mut status = Map::new();
    status.insert("phase".into(), phase.into());
    status.insert("conditions".into(), conditions(pod, observed, outcome, initialized, &main, now));
    status.insert("containerStatuses".into(), main.into());
    if !init.is_empty() {
        status.insert("initContainerStatuses".into(), init.into());
    }
    if let Some(ip) = &facts.host_ip {
        status.insert("hostIP".into(), ip.as_str().into());
        status.insert("hostIPs".into(), json!([{ "ip": ip }]));
    }
    if let Some(ip) = desired.pod_ip {
        status.insert("podIP".into(), ip.to_string().into());
        status.insert("podIPs".into(), json!([{ "ip": ip.to_string() }]));
    }
    let started = pod.get("status.startTime").cloned().unwrap_or_else(|| time(now));
    status.insert("startTime".into(), started);
    status.insert("qosClass".into(), qos_class(pod).into());
    // Fields that this agent knows nothing of stay as they are.
    if let Some(Value::Object(known)) = pod.get("status") {
        for field in ["reason", "message", "nominatedNodeName", "resourceClaimStatuses"] {
            if let Some(value) = known.get(field) {
                status.insert(field.into(), value.clone());
            }
        }
    }
    Value::Object(status)
}

/// The identity of one run, as `containerID` gives it.
pub fn container_id(uid: &str, container: &str, attempt: u32) -> String {
    format!("podyard://{uid}/{container}/{attempt}")
}

/// Kubernetes' time: whole seconds.
pub(crate) fn time(at: Timestamp) -> Value {
    let whole = Timestamp::from_second(at.as_second()).unwrap_or(at);
    whole.to_string().into()
}

fn phase(outcome: Option<Outcome>, initialized: bool, main: &[Value]) -> &'static str {
    match outcome {
        Some(Outcome::Succeeded) => return "Succeeded",
        Some(Outcome::Failed) => return "Failed",
        None => {}
    }
    let never_ran =
        |status: &Value| status["state"].get("waiting").is_some() && status.get("lastState").is_none();
    if !initialized || main.iter().any(never_ran) { "Pending" } else { "Running" }
}

fn conditions(
    pod: &Object,
    observed: &Observed,
    outcome: Option<Outcome>,
    initialized: bool,
    main: &[Value],
    now: Timestamp,
) -> Value {
    let unready: Vec<&str> = main
        .iter()
        .filter(|status| status["ready"] != true)
        .filter_map(|status| status["name"].as_str())
        .collect();
    let not_ready = match outcome {
        Some(Outcome::Succeeded) => Some(("PodCompleted", String::new())),
        Some(Outcome::Failed) => Some(("PodFailed", String::new())),
        None if unready.is_empty() => None,
        None => {
            Some(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))))
        }
    };
    let gate = pod.get_array("spec.readinessGates").iter().find_map(|gate| {
        let kind = gate["conditionType"].as_str()?;
        let met = known(pod, kind).is_some_and(|condition| condition["status"] == "True");
        (!met).then(|| {
            (
                "ReadinessGatesNotReady",
                format!(
                    "corresponding condition of pod readiness gate {kind:?} does not exist or is not true."
                ),
            )
        })
    });
    let not_initialized = (!initialized).then(|| ("ContainersNotInitialized", String::new()));
    let no_network =
        (observed.shim != Shim::Alive { set_up: true }).then_some(()).map(|()| ("", String::new()));
    let ours = [
        ("PodReadyToStartContainers", no_network),
        ("Initialized", not_initialized),
        ("Ready", not_ready.clone().or(gate)),
        ("ContainersReady", not_ready),
        ("PodScheduled", None),
    ];
    let others = pod
        .get_array("status.conditions")
        .iter()
        .filter(|condition| !ours.iter().any(|(kind, _)| condition["type"] == *kind))
        .cloned();
    let ours = ours.iter().map(|(kind, fault)| condition(pod, kind, fault.as_ref(), now));
    ours.chain(others).collect()
}

fn known<'a>(pod: &'a Object, kind: &str) -> Option<&'a Value> {
    pod.get_array("status.conditions").iter().find(|condition| condition["type"] == kind)
}

fn condition(pod: &Object, kind: &str, fault: Option<&(&str, String)>, now: Timestamp) -> Value {
    let status = if fault.is_none() { "True" } else { "False" };
    let since = known(pod, kind)
        .filter(|condition| condition["status"] == status)
        .and_then(|condition| condition.get("lastTransitionTime").cloned())
        .unwrap_or_else(|| time(now));
    let mut condition = json!({ "type": kind, "status": status, "lastTransitionTime": since });
    if let Some((reason, message)) = fault {
        if !reason.is_empty() {
            condition["reason"] = (*reason).into();
        }
        if !message.is_empty() {
            condition["message"] = message.as_str().into();
        }
    }
    condition
}

fn of_role(
    pod: &Object,
    desired: &Desired,
    observed: &Observed,
    facts: &Facts,
    now: Timestamp,
    wanted: impl Fn(Role) -> bool,
) -> Vec<Value> {
    let image = |name: &str| {
        pod.get_array("spec.containers")
            .iter()
            .chain(pod.get_array("spec.initContainers"))
            .find(|container| container["name"] == name)
            .and_then(|container| container["image"].as_str())
            .unwrap_or("")
    };
    let has_init = desired.containers.iter().any(|container| container.role == Role::Init);
    desired
        .containers
        .iter()
        .filter(|container| wanted(container.role))
        .map(|container| {
            let attempts = observed.attempts.get(&container.name).map_or(&[][..], Vec::as_slice);
            let attempts = shown(attempts);
            let current = attempts.last();
            let previous = attempts.len().checked_sub(2).map(|index| &attempts[index]);
            let health =
                facts.health.get(&container.name).copied().unwrap_or(Health { ready: true, started: true });
            let waiting = |reason: &str, message: &str| {
                let mut waiting = json!({ "reason": reason });
                if !message.is_empty() {
                    waiting["message"] = message.into();
                }
                json!({ "waiting": waiting })
            };
            let fault = facts.faults.get(&container.name);
            let mut last_state = previous;
            let mut ready = false;
            let mut started = false;
            let state = match current.map(|attempt| &attempt.state) {
                Some(State::Running { started_at, .. }) => {
                    ready = health.ready && health.started;
                    started = health.started;
                    json!({ "running": { "startedAt": time(*started_at) } })
                }
                Some(State::Exited(exit)) => {
                    let due = restart_at(attempts, exit, desired.backoff_base);
                    if let Some(fault) = fault {
                        last_state = current;
                        waiting(&fault.reason, &fault.message)
                    } else if restarts(container, exit) && due > now {
                        last_state = current;
                        let pause = backoff(attempts, desired.backoff_base);
                        let name = &container.name;
                        let text = format!(
                            "back-off {} restarting failed container={name} pod={}_{}({})",
                            in_words(pause),
                            desired.name,
                            desired.namespace,
                            desired.uid
                        );
                        waiting("CrashLoopBackOff", &text)
                    } else {
                        // A finished init container counts as ready.
                        ready = container.role == Role::Init && exit.success();
                        json!({ "terminated": terminated(desired, container.name.as_str(), current, exit) })
                    }
                }
                _ => match fault {
                    Some(fault) => waiting(&fault.reason, &fault.message),
                    None if has_init && container.role == Role::Main => waiting("PodInitializing", ""),
                    None => waiting("ContainerCreating", ""),
                },
            };
            let mut status = json!({
                "name": container.name,
                "image": image(&container.name),
                "imageID": current.map_or("", |attempt| attempt.image_id.as_str()),
                "ready": ready,
                "started": started,
                "restartCount": current.map_or(0, |attempt| attempt.number),
                "state": state,
            });
            if let Some(attempt) = current {
                status["containerID"] = container_id(&desired.uid, &container.name, attempt.number).into();
            }
            if let Some(attempt) = last_state
                && let State::Exited(exit) = &attempt.state
            {
                let terminated = terminated(desired, &container.name, last_state, exit);
                status["lastState"] = json!({ "terminated": terminated });
            }
            status
        })
        .collect()
}

/// The runs to show. One that was not started yet hides behind the one that ended.
fn shown(attempts: &[Attempt]) -> &[Attempt] {
    match attempts {
        // Nothing ran yet: no identity to show.
        [Attempt { state: State::Recorded, .. }] => &[],
        [known @ .., Attempt { state: State::Recorded | State::Created, .. }]
            if matches!(known.last(), Some(Attempt { state: State::Exited(_), .. })) =>
        {
            known
        }
        all => all,
    }
}

fn terminated(desired: &Desired, container: &str, attempt: Option<&Attempt>, exit: &Exit) -> Value {
    let mut terminated = json!({
        "exitCode": exit.code,
        "reason": exit.reason.as_str(),
        "finishedAt": time(exit.finished_at),
        "startedAt": time(exit.started_at.unwrap_or(exit.finished_at)),
    });
    if exit.signal != 0 {
        terminated["signal"] = exit.signal.into();
    }
    if exit.reason == ExitReason::ContainerStatusUnknown {
        terminated["message"] =
            "nobody saw how the container ended: its shim died, or the host restarted".into();
    }
    if let Some(attempt) = attempt {
        terminated["containerID"] = container_id(&desired.uid, container, attempt.number).into();
    }
    terminated
}

fn in_words(pause: std::time::Duration) -> String {
    match pause.as_secs() {
        0 => format!("{}ms", pause.as_millis()),
        secs if secs % 60 == 0 => format!("{}m0s", secs / 60),
        secs if secs > 60 => format!("{}m{}s", secs / 60, secs % 60),
        secs => format!("{secs}s"),
    }
}

/// The pod's class of service. Source: Kubernetes, "Pod Quality of Service Classes".
fn qos_class(pod: &Object) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in pod.get_array("spec.containers").iter().chain(pod.get_array("spec.initContainers")) {
        let resources = &container["resources"];
        for resource in ["cpu", "memory"] {
            let limit = resources["limits"].get(resource);
            let request = resources["requests"].get(resource);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
