//! A node's Ready condition: decided here, written on transitions only.

use std::time::Duration;

use api::{Object, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;

/// What is known of a node at some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Its power is off.
    pub(super) off: bool,
    /// The kernel said that nothing of it runs, and it was not started anew since.
    pub(super) died: bool,
    /// When it was last heard of, by the agent it has now.
    pub(super) seen: Option<Instant>,
    /// Since when it could have been heard of: its agent's start, or ours.
    pub(super) since: Instant,
    /// How long it may be silent.
    pub(super) grace: Duration,
}

/// What the Ready condition should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// It is heard of.
    True,
    /// Nothing of it runs.
    False(&'static str),
    /// It was not heard of in time.
    Unknown,
    /// Nothing new is known; look again then.
    AsIs,
}

impl Known {
    /// What the Ready condition should be. Pure.
    pub(super) fn ready(&self, now: Instant) -> Ready {
        if self.off {
            return Ready::False("its power is off");
        }
        if self.died {
            return Ready::False("nothing of it runs any more: its cgroup has no process");
        }
        let heard = self.seen.is_some_and(|seen| now < seen + self.grace);
        match heard {
            true => Ready::True,
            false if now >= self.deadline() => Ready::Unknown,
            false => Ready::AsIs,
        }
    }

    /// When silence becomes a condition.
    pub(super) fn deadline(&self) -> Instant {
        self.seen.map_or(self.since, |seen| seen.max(self.since)) + self.grace
    }
}

/// The node with the condition that `ready` asks for; none if it says so already.
///
/// A node whose agent never described it does not become ready: nobody knows what fits on it.
pub(super) fn apply(node: &Object, ready: Ready, now: Timestamp) -> Option<Object> {
    let (status, reason, message) = match ready {
        Ready::True if node.get("status.allocatable").is_none() => return None,
        Ready::True => ("True", "AgentReady", "the node's agent is at work"),
        Ready::False(why) => ("False", api::node::DIED, why),
        Ready::Unknown => ("Unknown", api::node::STATUS_UNKNOWN, "the node's agent was not heard of in time"),
        Ready::AsIs => return None,
    };
    let old = api::node::condition(node, "Ready");
    let is_same = |field: &str, value: &str| old.is_some_and(|old| old[field] == value);
    // What a message says beside that is not worth a write.
    if is_same("status", status) && is_same("reason", reason) {
        return None;
    }
    let now = api::time::seconds(now);
    let since = match old {
        Some(old) if old["status"] == status => old["lastTransitionTime"].clone(),
        _ => now.into(),
    };
    let condition = json!({
        "type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
    });
    let mut conditions: Vec<Value> = node.get_array("status.conditions").to_vec();
    match conditions.iter_mut().find(|condition| condition["type"] == "Ready") {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
    let mut node = node.clone();
    node.set("status.conditions", conditions);
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(4);

    #[test]
    fn silence_is_unknown_and_death_is_false() {
        let start = Instant::now();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let known = |seen: Option<u64>| Known {
            off: false,
            died: false,
            seen: seen.map(at),
            since: start,
            grace: GRACE,
        };
        for (seen, now, expect) in [
            (None, 0, Ready::AsIs),
            (None, 3, Ready::AsIs),
            (None, 4, Ready::Unknown),
            (Some(1), 1, Ready::True),
            (Some(1), 4, Ready::True),
            (Some(1), 5, Ready::Unknown),
            (Some(9), 10, Ready::True),
        ] {
            assert_eq!(known(seen).ready(at(now)), expect, "{seen:?} at {now}");
        }
        assert!(matches!(Known { off: true, ..known(Some(1)) }.ready(at(1)), Ready::False(_)));
        assert!(matches!(Known { died: true, ..known(Some(1)) }.ready(at(1)), Ready::False(_)));
        assert_eq!(known(Some(9)).deadline(), at(13));
    }

    #[test]
    fn only_transitions_are_written() {
        let now: Timestamp = "2026-01-01T00:00:09Z".parse().unwrap();
        let node = |status: &str, reason: &str| {
            Object(json!({"status": {"allocatable": {"cpu": "2"}, "conditions": [
                {"type": "DiskPressure", "status": "False"},
                {"type": "Ready", "status": status, "reason": reason, "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ]}}))
        };
        assert_eq!(apply(&node("True", "AgentReady"), Ready::True, now), None);
        assert_eq!(apply(&node("True", "AgentReady"), Ready::AsIs, now), None);
        let down = apply(&node("True", "AgentReady"), Ready::False("power"), now).unwrap();
        assert_eq!(api::node::ready(&down), "False");
        assert_eq!(down.get_array("status.conditions").len(), 2);
        let ready = api::node::condition(&down, "Ready").unwrap();
        assert_eq!(
            (&ready["reason"], &ready["lastTransitionTime"]),
            (&json!("NodeDied"), &json!("2026-01-01T00:00:09Z"))
        );
        assert_eq!(apply(&down, Ready::False("another"), now), None);
        assert_eq!(apply(&Object(json!({})), Ready::True, now), None, "nobody knows what fits on it");
        assert_eq!(api::node::ready(&apply(&Object(json!({})), Ready::Unknown, now).unwrap()), "Unknown");
    }
}
