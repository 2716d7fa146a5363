//! Questions about pods, and pods from templates.

use std::net::IpAddr;

use api::{Key, Object, OwnerReference, Timestamp};
use jiff::SignedDuration;
use serde_json::{Value, json};

/// Whether it has ended for good.
pub fn is_terminal(pod: &Object) -> bool {
    matches!(pod.get_str("status.phase"), Some("Succeeded" | "Failed"))
}

/// Whether it is neither ended nor ending.
pub fn is_active(pod: &Object) -> bool {
    !is_terminal(pod) && !pod.is_deleting()
}

/// Whether the agent says so.
pub fn is_ready(pod: &Object) -> bool {
    ready_condition(pod).is_some_and(|condition| condition["status"] == "True")
}

/// Since when it has not been ready, if it was seen so.
pub fn unready_since(pod: &Object) -> Option<Timestamp> {
    let condition = ready_condition(pod).filter(|condition| condition["status"] != "True")?;
    condition["lastTransitionTime"].as_str()?.parse().ok()
}

fn ready_condition(pod: &Object) -> Option<&Value> {
    pod.get_array("status.conditions").iter().find(|condition| condition["type"] == "Ready")
}

/// Whether it has been ready for as long as a set asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Not ready.
    Unready,
    /// Ready, available at that time.
    From(Timestamp),
    /// Ready for long enough.
    Available,
}

/// Whether `pod` has been ready for `min_ready_secs`.
pub fn availability(pod: &Object, min_ready_secs: i64, now: Timestamp) -> Availability {
    let Some(condition) = ready_condition(pod).filter(|condition| condition["status"] == "True") else {
        return Availability::Unready;
    };
    if min_ready_secs == 0 {
        return Availability::Available;
    }
    let since = condition["lastTransitionTime"].as_str().and_then(|time| time.parse().ok());
    let from = since.unwrap_or(now).saturating_add(SignedDuration::from_secs(min_ready_secs));
    match from {
        Ok(from) if from > now => Availability::From(from),
        _ => Availability::Available,
    }
}

/// The uid of the owner that manages an object of any kind, without decoding the rest.
pub fn manager(object: &Object) -> Option<&str> {
    let owners = object.get_array("metadata.ownerReferences").iter();
    owners.into_iter().find(|owner| owner["controller"] == true)?["uid"].as_str()
}

/// The node it is bound to.
pub fn node(pod: &Object) -> Option<&str> {
    pod.get_str("spec.nodeName").filter(|node| !node.is_empty())
}

/// Whether it lives in the host's network.
pub fn is_host_network(pod: &Object) -> bool {
    pod.get_bool("spec.hostNetwork").unwrap_or(false)
}

/// Its own address; none in the host's network.
pub fn address(pod: &Object) -> Option<IpAddr> {
    if is_host_network(pod) { None } else { pod.get_str("status.podIP")?.parse().ok() }
}

/// The claims it mounts.
pub fn claims(pod: &Object) -> impl Iterator<Item = &str> {
    pod.get_array("spec.volumes")
        .iter()
        .filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
}

/// A pod made from a template, for its managing owner.
pub fn from_template(template: &Value, key: &Key, owner: &OwnerReference) -> Object {
    let mut pod = Object(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": key.name, "namespace": key.namespace, "ownerReferences": [owner]},
        "spec": template["spec"],
    }));
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field) {
            pod.0["metadata"][field] = value.clone();
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn availability_counts_from_the_last_transition() {
        let at = |secs| Timestamp::from_second(secs).unwrap();
        let pod = |status: &str| {
            Object(json!({"status": {"conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "1970-01-01T00:01:40Z"}]}}))
        };
        let check = |status, min, now, expect| {
            assert_eq!(availability(&pod(status), min, at(now)), expect, "{status} {min} {now}");
        };
        check("False", 0, 100, Availability::Unready);
        check("True", 0, 100, Availability::Available);
        check("True", 10, 105, Availability::From(at(110)));
        check("True", 10, 110, Availability::Available);
    }
}
