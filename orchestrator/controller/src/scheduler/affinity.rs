//! Node affinity: which nodes a pod may be on, and which it would rather be on.
//!
//! Source: Kubernetes documentation, "Node affinity"; core/v1 NodeSelectorTerm.

use api::Object;
use serde_json::Value;

const REQUIRED: &str = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution";

/// Whether a node has what `nodeSelector` and the required affinity ask for: every label of the one, and some term of
/// the other.
pub fn is_match(pod: &Object, node: &Object) -> bool {
    let selector = pod.get("spec.nodeSelector").and_then(Value::as_object);
    let is_selected = selector
        .is_none_or(|labels| labels.iter().all(|(name, value)| node.labels().get(name) == Some(value)));
    let terms = pod.get(REQUIRED).map(|required| required["nodeSelectorTerms"].as_array());
    is_selected && terms.is_none_or(|terms| terms.into_iter().flatten().any(|term| matches(term, node)))
}

/// The sum of the weights of the preferred terms that a node matches.
pub fn preference(pod: &Object, node: &Object) -> i64 {
    let terms = pod.get_array(PREFERRED).iter().filter(|term| matches(&term["preference"], node));
    terms.filter_map(|term| term["weight"].as_i64()).sum()
}

/// Whether a node meets all requirements of a term. One without requirements matches nothing.
fn matches(term: &Value, node: &Object) -> bool {
    let list = |field: &str| term[field].as_array().map_or(&[][..], Vec::as_slice);
    let (labels, fields) = (list("matchExpressions"), list("matchFields"));
    let by_label = |it: &Value| meets(it, node.label(it["key"].as_str().unwrap_or("")));
    // The only field there is.
    let by_field = |it: &Value| it["key"] == "metadata.name" && meets(it, Some(node.name()));
    !(labels.is_empty() && fields.is_empty()) && labels.iter().all(by_label) && fields.iter().all(by_field)
}

fn meets(requirement: &Value, value: Option<&str>) -> bool {
    let values = || requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = || Some((number(value?)?, number(values().next()?)?));
    match requirement["operator"].as_str().unwrap_or("") {
        "In" => value.is_some_and(|value| values().any(|it| it == value)),
        "NotIn" => value.is_none_or(|value| values().all(|it| it != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(value, bound)| value > bound),
        "Lt" => compared().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node() -> Object {
        Object(json!({"metadata": {"name": "n1", "labels": {"disk": "ssd", "rank": "5"}}}))
    }

    #[track_caller]
    fn check(term: Value, expect: bool) {
        assert_eq!(matches(&term, &node()), expect, "{term}");
    }

    #[test]
    fn every_operator() {
        let label = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        check(label("disk", "In", json!(["hdd", "ssd"])), true);
        check(label("disk", "In", json!(["hdd"])), false);
        check(label("none", "In", json!(["hdd"])), false);
        check(label("disk", "NotIn", json!(["ssd"])), false);
        check(label("none", "NotIn", json!(["ssd"])), true);
        check(label("disk", "Exists", json!([])), true);
        check(label("none", "Exists", json!([])), false);
        check(label("disk", "DoesNotExist", json!([])), false);
        check(label("none", "DoesNotExist", json!([])), true);
        check(label("rank", "Gt", json!(["4"])), true);
        check(label("rank", "Gt", json!(["5"])), false);
        check(label("rank", "Lt", json!(["6"])), true);
        check(label("disk", "Lt", json!(["6"])), false);
        check(label("none", "Gt", json!(["6"])), false);
    }

    #[test]
    fn a_field_is_the_name() {
        let field = |operator: &str, name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": operator, "values": [name]}]});
        check(field("In", "n1"), true);
        check(field("In", "n2"), false);
        check(field("NotIn", "n1"), false);
    }

    #[test]
    fn requirements_are_anded_terms_are_ored_and_an_empty_term_matches_nothing() {
        let is = |value: &str| json!({"key": "disk", "operator": "In", "values": [value]});
        check(json!({"matchExpressions": [is("ssd"), is("hdd")]}), false);
        check(json!({}), false);
        let pod = |terms: Value| {
            Object(json!({"spec": {"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}}))
        };
        let term = |value: &str| json!({"matchExpressions": [is(value)]});
        assert!(is_match(&pod(json!([term("hdd"), term("ssd")])), &node()));
        assert!(!is_match(&pod(json!([term("hdd")])), &node()));
        assert!(!is_match(&pod(json!([])), &node()));
        let both = Object(json!({"spec": {"nodeSelector": {"disk": "hdd"}}}));
        assert!(!is_match(&both, &node()));
    }

    #[test]
    fn preferences_add_up() {
        let preference = |weight: i64, value: &str| {
            json!({"weight": weight, "preference": {
                "matchExpressions": [{"key": "disk", "operator": "In", "values": [value]}]}})
        };
        let pod = Object(json!({"spec": {"affinity": {"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution":
                [preference(10, "ssd"), preference(5, "ssd"), preference(70, "hdd")]}}}}));
        assert_eq!(super::preference(&pod, &node()), 15);
    }
}
