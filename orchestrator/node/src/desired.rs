//! What is wanted of one pod, reduced to what the plan decides by.

use std::net::Ipv4Addr;
use std::time::Duration;

use api::Object;
use jiff::Timestamp;
use serde_json::Value;

use crate::hook;

/// Pauses the worker before each step until told to go on.
pub const STEP_ANNOTATION: &str = "podyard.io/step";
/// Tunes the back-off between restarts of this pod's containers, as in `100ms` or `2s`.
pub const BACKOFF_ANNOTATION: &str = "podyard.io/restart-backoff-base";

/// Whether a container that ended is started again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestartPolicy {
    /// However it ended.
    Always,
    /// If it failed.
    OnFailure,
    /// Not at all.
    Never,
}

/// A container's part in its pod's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Runs to success before the next container starts.
    Init,
    /// An init container with restartPolicy Always: starts in order, runs beside the main ones.
    Sidecar,
    /// The pod lives as long as these do.
    Main,
}

/// One container, as far as order and restarts go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Container {
    /// Unique in the pod.
    pub name: String,
    /// Its part in the pod's life.
    pub role: Role,
    /// What happens when it ends.
    pub restart: RestartPolicy,
    /// It has a hook to be called before it is asked to end.
    pub pre_stop: bool,
}

/// Whether the pod is to be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Yes.
    Present,
    /// Deletion has begun; processes may use the time until `kill_at` to end by themselves.
    Stopping {
        /// metadata.deletionTimestamp: when nothing may run any more.
        kill_at: Timestamp,
    },
    /// The API knows no such pod: whatever is left of it goes at once, and nobody is told.
    Gone,
}

/// What is wanted of one pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Desired {
    /// metadata.uid: the identity every name derives from.
    pub uid: String,
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// Whether it is to be there.
    pub wanted: Wanted,
    /// Init containers in their order, then the main ones.
    pub containers: Vec<Container>,
    /// Delay before the second restart; doubles with each further one.
    pub backoff_base: Duration,
    /// The address given to it when it was bound.
    pub pod_ip: Option<Ipv4Addr>,
    /// Claims whose volumes it holds while any of its processes may run.
    pub claims: Vec<String>,
    /// How long a container may take to end after SIGTERM.
    pub grace: Duration,
    /// The API says that it has run its course: it is never started again.
    pub finished: bool,
    /// Pause before each step.
    pub step_mode: bool,
}

impl Desired {
    /// Reads a pod object. Fields that admission refuses are not looked at again.
    pub fn from_object(pod: &Object) -> Desired {
        let policy = match pod.get_str("spec.restartPolicy") {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        };
        let name = |value: &Value| value["name"].as_str().unwrap_or("").to_owned();
        let pre_stop = |value: &Value| hook::PRE_STOP.of(value).is_some();
        let mut containers = Vec::new();
        for init in pod.get_array("spec.initContainers") {
            let (role, restart) = match init["restartPolicy"].as_str() {
                Some("Always") => (Role::Sidecar, RestartPolicy::Always),
                _ if policy == RestartPolicy::Never => (Role::Init, RestartPolicy::Never),
                _ => (Role::Init, RestartPolicy::OnFailure),
            };
            containers.push(Container { name: name(init), role, restart, pre_stop: pre_stop(init) });
        }
        for main in pod.get_array("spec.containers") {
            containers.push(Container {
                name: name(main),
                role: Role::Main,
                restart: policy,
                pre_stop: pre_stop(main),
            });
        }
        let wanted = match pod.deletion_timestamp() {
            Some(kill_at) => Wanted::Stopping { kill_at },
            None => Wanted::Present,
        };
        let claims = pod
            .get_array("spec.volumes")
            .iter()
            .filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str().map(str::to_owned))
            .collect();
        Desired {
            uid: pod.uid().to_owned(),
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            wanted,
            containers,
            backoff_base: pod
                .annotation(BACKOFF_ANNOTATION)
                .and_then(parse_duration)
                .unwrap_or(Duration::from_secs(10)),
            pod_ip: pod.get_str("status.podIP").and_then(|ip| ip.parse().ok()),
            claims,
            grace: Duration::from_secs(
                pod.get_i64("spec.terminationGracePeriodSeconds")
                    .and_then(|secs| secs.try_into().ok())
                    .unwrap_or(30),
            ),
            finished: matches!(pod.get_str("status.phase"), Some("Succeeded" | "Failed")),
            step_mode: pod.annotation(STEP_ANNOTATION) == Some("true"),
        }
    }

    /// `default/web-0`.
    pub fn display_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// `100ms`, `2s`, `1m`.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_object_becomes_a_wish() {
        let pod = Object(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u",
                "annotations": {"podyard.io/restart-backoff-base": "100ms", "podyard.io/step": "true"},
                "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"restartPolicy": "Never",
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
                "containers": [{"name": "m"}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "e", "emptyDir": {}}]},
            "status": {"podIP": "10.244.0.7"}
        }));
        let desired = Desired::from_object(&pod);
        let roles: Vec<_> = desired.containers.iter().map(|c| (c.name.as_str(), c.role, c.restart)).collect();
        assert_eq!(
            roles,
            [
                ("i", Role::Init, RestartPolicy::Never),
                ("s", Role::Sidecar, RestartPolicy::Always),
                ("m", Role::Main, RestartPolicy::Never)
            ]
        );
        assert_eq!(desired.backoff_base, Duration::from_millis(100));
        assert_eq!(desired.claims, ["c"]);
        assert_eq!(desired.pod_ip, Some(Ipv4Addr::new(10, 244, 0, 7)));
        assert!(desired.step_mode);
        assert!(matches!(desired.wanted, Wanted::Stopping { .. }));
    }

    #[test]
    fn durations() {
        for (text, expect) in [
            ("100ms", Some(100)),
            ("2s", Some(2000)),
            ("1m", Some(60000)),
            ("5", None),
            ("s", None),
            ("1h", None),
        ] {
            assert_eq!(parse_duration(text), expect.map(Duration::from_millis), "{text}");
        }
    }
}
