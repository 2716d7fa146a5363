//! Taints and tolerations: which pods a node repels, and which it drives away.
//!
//! Source: Kubernetes documentation, "Taints and Tolerations"; core/v1 Taint, Toleration.

use api::{Object, Timestamp};
use jiff::SignedDuration;
use serde_json::Value;

/// Keeps new pods away.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// Keeps new pods away and drives those that are there away.
pub const NO_EXECUTE: &str = "NoExecute";

/// Whether a toleration tolerates a taint.
pub fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let given = |field: &str| toleration[field].as_str().filter(|text| !text.is_empty());
    let has = |field: &str| taint[field].as_str().unwrap_or("");
    let is_key = match given("key") {
        None => given("operator") == Some("Exists"),
        Some(key) => key == has("key"),
    };
    let is_value = given("operator") == Some("Exists") || given("value").unwrap_or("") == has("value");
    is_key && is_value && given("effect").is_none_or(|effect| effect == has("effect"))
}

/// The first of the taints that a pod does not tolerate.
pub fn untolerated<'a>(pod: &Object, taints: impl IntoIterator<Item = &'a Value>) -> Option<&'a Value> {
    let tolerations = pod.get_array("spec.tolerations");
    taints.into_iter().find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// How long a pod may stay under NoExecute taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// For ever.
    Always,
    /// Until then.
    Until(Timestamp),
    /// Not at all.
    No,
}

/// How long a pod may stay on a node with these taints, of which only NoExecute ones count. Of several tolerations of
/// one taint the first counts, as in Kubernetes; time runs from the taint's `timeAdded`.
pub fn stay<'a>(pod: &Object, taints: impl IntoIterator<Item = &'a Value>) -> Stay {
    let mut until: Option<Timestamp> = None;
    for taint in taints.into_iter().filter(|taint| taint["effect"] == NO_EXECUTE) {
        let tolerations = pod.get_array("spec.tolerations");
        let Some(toleration) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
            return Stay::No;
        };
        // A taint that has no time yet is about to get one.
        if let Some(secs) = toleration["tolerationSeconds"].as_i64()
            && let Some(added) = api::time::parse(&taint["timeAdded"])
        {
            let end = added.saturating_add(SignedDuration::from_secs(secs.max(0))).unwrap_or(Timestamp::MAX);
            until = Some(until.map_or(end, |until| until.min(end)));
        }
    }
    until.map_or(Stay::Always, Stay::Until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(tolerations: Value) -> Object {
        Object(json!({"spec": {"tolerations": tolerations}}))
    }

    #[test]
    fn a_toleration_matches_key_operator_value_and_effect() {
        let taint = json!({"key": "k", "value": "v", "effect": "NoSchedule"});
        let check = |toleration: Value, expect: bool| {
            assert_eq!(tolerates(&toleration, &taint), expect, "{toleration}");
        };
        check(json!({"operator": "Exists"}), true);
        check(json!({"operator": "Exists", "effect": "NoExecute"}), false);
        check(json!({"key": "k", "operator": "Exists"}), true);
        check(json!({"key": "k", "value": "v"}), true);
        check(json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}), true);
        check(json!({"key": "k", "value": "w"}), false);
        check(json!({"key": "k"}), false);
        check(json!({"key": "l", "operator": "Exists"}), false);
        check(json!({"value": "v"}), false);
    }

    #[test]
    fn a_pod_stays_as_long_as_its_shortest_toleration() {
        let at = |secs: i64| Timestamp::from_second(secs).unwrap();
        let taint =
            |key: &str| json!({"key": key, "effect": NO_EXECUTE, "timeAdded": api::time::seconds(at(100))});
        let check = |tolerations: Value, taints: &[Value], expect: Stay| {
            assert_eq!(stay(&pod(tolerations.clone()), taints), expect, "{tolerations}");
        };
        let for_secs =
            |key: &str, secs: i64| json!({"key": key, "operator": "Exists", "tolerationSeconds": secs});
        check(json!([]), &[], Stay::Always);
        check(json!([]), &[json!({"key": "a", "effect": NO_SCHEDULE})], Stay::Always);
        check(json!([]), &[taint("a")], Stay::No);
        check(json!([{"operator": "Exists"}]), &[taint("a"), taint("b")], Stay::Always);
        check(json!([for_secs("a", 30)]), &[taint("a")], Stay::Until(at(130)));
        check(json!([for_secs("a", -1)]), &[taint("a")], Stay::Until(at(100)));
        check(json!([for_secs("a", 30), for_secs("b", 20)]), &[taint("a"), taint("b")], Stay::Until(at(120)));
        check(json!([for_secs("a", 30)]), &[taint("a"), taint("b")], Stay::No);
        check(json!([{"operator": "Exists"}, for_secs("a", 30)]), &[taint("a")], Stay::Always);
        check(json!([for_secs("a", 30)]), &[json!({"key": "a", "effect": NO_EXECUTE})], Stay::Always);
    }
}
