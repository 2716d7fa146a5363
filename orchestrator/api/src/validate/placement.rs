//! Where a pod may be: affinity, tolerations, spread; and the taints of nodes.
//!
//! Source: Kubernetes documentation, "Assigning Pods to Nodes", "Taints and Tolerations", "Pod Topology Spread
//! Constraints".

use std::collections::HashSet;

use serde_json::Value;

use super::{Causes, Tree, items, labels, names, text, texts, tree};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// What a pod spec says of where the pod may be.
pub(super) fn spec(spec: &Tree, path: &str, causes: &mut Causes) {
    if let Some(selector) = tree(spec, "nodeSelector") {
        labels::map(selector, &format!("{path}.nodeSelector"), causes);
    }
    tolerations(spec, path, causes);
    if let Some(affinity) = tree(spec, "affinity") {
        let path = format!("{path}.affinity");
        if let Some(node) = tree(affinity, "nodeAffinity") {
            node_affinity(node, &format!("{path}.nodeAffinity"), causes);
        }
        for kind in ["podAffinity", "podAntiAffinity"] {
            if let Some(pods) = tree(affinity, kind) {
                pod_affinity(pods, &format!("{path}.{kind}"), causes);
            }
        }
    }
    spread(spec, path, causes);
}

fn tolerations(spec: &Tree, path: &str, causes: &mut Causes) {
    for (path, item) in items(spec, path, "tolerations") {
        let (key, operator) = (text(item, "key"), text(item, "operator"));
        if !key.is_empty() {
            causes.name(format!("{path}.key"), key, names::qualified);
        } else if operator != "Exists" {
            causes.invalid(format!("{path}.operator"), operator, "must be Exists when `key` is empty");
        }
        causes.one_of(format!("{path}.operator"), operator, &["", "Equal", "Exists"]);
        if operator == "Exists" && !text(item, "value").is_empty() {
            let why = "value must be empty when `operator` is 'Exists'";
            causes.invalid(format!("{path}.operator"), operator, why);
        }
        let effect = text(item, "effect");
        if !effect.is_empty() {
            causes.one_of(format!("{path}.effect"), effect, &EFFECTS);
        }
        if item.contains_key("tolerationSeconds") && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            causes.invalid(format!("{path}.effect"), effect, why);
        }
    }
}

fn node_affinity(affinity: &Tree, path: &str, causes: &mut Causes) {
    if let Some(required) = tree(affinity, REQUIRED) {
        let path = format!("{path}.{REQUIRED}");
        let mut count = 0;
        for (path, term) in items(required, &path, "nodeSelectorTerms") {
            count += 1;
            node_term(term, &path, causes);
        }
        if count == 0 {
            let why = "must have at least one node selector term";
            causes.required_because(format!("{path}.nodeSelectorTerms"), why);
        }
    }
    for (path, item) in items(affinity, path, PREFERRED) {
        weight(item, &path, causes);
        if let Some(term) = tree(item, "preference") {
            node_term(term, &format!("{path}.preference"), causes);
        }
    }
}

fn node_term(term: &Tree, path: &str, causes: &mut Causes) {
    for (path, item) in items(term, path, "matchExpressions") {
        causes.name(format!("{path}.key"), text(item, "key"), names::qualified);
        let (values, count) = (format!("{path}.values"), texts(item, "values").count());
        match text(item, "operator") {
            "In" | "NotIn" if count == 0 => {
                causes.required_because(values, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "In" | "NotIn" => {
                for (index, value) in texts(item, "values").enumerate() {
                    causes.name(format!("{values}[{index}]"), value, names::label_value);
                }
            }
            "Exists" | "DoesNotExist" if count > 0 => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                causes.forbidden(values, why);
            }
            "Gt" | "Lt" if count != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                causes.required_because(values, why);
            }
            "Gt" | "Lt" => {
                let bound = texts(item, "values").next().unwrap_or("");
                if bound.parse::<i64>().is_err() {
                    causes.invalid(values, bound, "must be an integer for operators 'Lt' and 'Gt'");
                }
            }
            "Exists" | "DoesNotExist" => {}
            other => causes.invalid(format!("{path}.operator"), other, "not a valid selector operator"),
        }
    }
    for (path, item) in items(term, path, "matchFields") {
        let (key, operator) = (text(item, "key"), text(item, "operator"));
        if key != "metadata.name" {
            causes.invalid(format!("{path}.key"), key, "not a valid field selector key");
        }
        match operator {
            "In" | "NotIn" if texts(item, "values").count() != 1 => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                causes.required_because(format!("{path}.values"), why);
            }
            "In" | "NotIn" => {}
            other => causes.invalid(format!("{path}.operator"), other, "not a valid selector operator"),
        }
    }
}

fn pod_affinity(affinity: &Tree, path: &str, causes: &mut Causes) {
    for (path, term) in items(affinity, path, REQUIRED) {
        pod_term(term, &path, causes);
    }
    for (path, item) in items(affinity, path, PREFERRED) {
        weight(item, &path, causes);
        match tree(item, "podAffinityTerm") {
            Some(term) => pod_term(term, &format!("{path}.podAffinityTerm"), causes),
            None => causes.required(format!("{path}.podAffinityTerm")),
        }
    }
}

fn pod_term(term: &Tree, path: &str, causes: &mut Causes) {
    topology(term, path, causes);
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = tree(term, field) {
            labels::selector(selector, &format!("{path}.{field}"), causes);
        }
    }
    for (index, name) in texts(term, "namespaces").enumerate() {
        causes.name(format!("{path}.namespaces[{index}]"), name, names::dns_label);
    }
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        label_keys(term, path, field, causes);
    }
}

fn label_keys(term: &Tree, path: &str, field: &str, causes: &mut Causes) {
    if texts(term, field).next().is_some() && tree(term, "labelSelector").is_none() {
        causes.forbidden(format!("{path}.{field}"), "must not be specified when labelSelector is not set");
    }
    for (index, key) in texts(term, field).enumerate() {
        causes.name(format!("{path}.{field}[{index}]"), key, names::qualified);
    }
}

fn topology(term: &Tree, path: &str, causes: &mut Causes) {
    let key = text(term, "topologyKey");
    if key.is_empty() {
        causes.required_because(format!("{path}.topologyKey"), "can not be empty");
    } else {
        causes.name(format!("{path}.topologyKey"), key, names::qualified);
    }
}

fn weight(item: &Tree, path: &str, causes: &mut Causes) {
    let weight = item.get("weight").and_then(Value::as_i64).unwrap_or(0);
    if !(1..=100).contains(&weight) {
        causes.invalid(format!("{path}.weight"), weight, "must be in the range 1-100");
    }
}

fn spread(spec: &Tree, path: &str, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (path, item) in items(spec, path, "topologySpreadConstraints") {
        let skew = item.get("maxSkew").and_then(Value::as_i64).unwrap_or(0);
        if skew <= 0 {
            causes.invalid(format!("{path}.maxSkew"), skew, "must be greater than zero");
        }
        topology(item, &path, causes);
        let when = text(item, "whenUnsatisfiable");
        causes.one_of(format!("{path}.whenUnsatisfiable"), when, &["DoNotSchedule", "ScheduleAnyway"]);
        let pair = (text(item, "topologyKey"), when);
        if !seen.insert(pair) {
            causes.duplicate(path.clone(), format!("{{{}, {}}}", pair.0, pair.1));
        }
        if let Some(least) = item.get("minDomains").and_then(Value::as_i64) {
            if least <= 0 {
                causes.invalid(format!("{path}.minDomains"), least, "must be greater than zero");
            }
            if when != "DoNotSchedule" {
                let why = "can only use minDomains if whenUnsatisfiable=DoNotSchedule";
                causes.invalid(format!("{path}.minDomains"), least, why);
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if item.contains_key(field) {
                causes.one_of(format!("{path}.{field}"), text(item, field), &["Ignore", "Honor"]);
            }
        }
        if let Some(selector) = tree(item, "labelSelector") {
            labels::selector(selector, &format!("{path}.labelSelector"), causes);
        }
        label_keys(item, &path, "matchLabelKeys", causes);
    }
}

/// The spec of a node: its taints.
pub(super) fn node(spec: &Tree, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (path, taint) in items(spec, "spec", "taints") {
        let (key, effect) = (text(taint, "key"), text(taint, "effect"));
        causes.name(format!("{path}.key"), key, names::qualified);
        causes.name(format!("{path}.value"), text(taint, "value"), names::label_value);
        causes.one_of(format!("{path}.effect"), effect, &EFFECTS);
        if !seen.insert((key, effect)) {
            causes.duplicate(path, format!("{key}:{effect}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The fields that are refused, with the reasons.
    #[track_caller]
    fn check(rule: fn(&Tree, &mut Causes), value: Value, expect: &[&str]) {
        let mut causes = Causes::default();
        rule(value.as_object().unwrap(), &mut causes);
        let said: Vec<String> = causes
            .list
            .iter()
            .map(|it| format!("{}: {}", it.field.trim_start_matches("spec."), it.reason))
            .collect();
        assert_eq!(said, expect, "{value}");
    }

    #[track_caller]
    fn check_pod(value: Value, expect: &[&str]) {
        check(|spec, causes| super::spec(spec, "spec", causes), value, expect);
    }

    #[test]
    fn node_affinity() {
        let required =
            |terms: Value| json!({"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}});
        let by = |operator: &str, values: Value| {
            required(json!([{"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}]))
        };
        let at = |field: &str| {
            format!("affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchExpressions[0].{field}")
        };
        check_pod(by("In", json!(["b"])), &[]);
        check_pod(by("Gt", json!(["7"])), &[]);
        check_pod(by("In", json!([])), &[&format!("{}: FieldValueRequired", at("values"))]);
        check_pod(by("Exists", json!(["b"])), &[&format!("{}: FieldValueForbidden", at("values"))]);
        check_pod(by("Lt", json!(["b"])), &[&format!("{}: FieldValueInvalid", at("values"))]);
        check_pod(by("Lt", json!([])), &[&format!("{}: FieldValueRequired", at("values"))]);
        check_pod(by("Like", json!([])), &[&format!("{}: FieldValueInvalid", at("operator"))]);
        let none = format!("affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms: FieldValueRequired");
        check_pod(required(json!([])), &[&none]);
        let fields =
            required(json!([{"matchFields": [{"key": "kind", "operator": "In", "values": ["a", "b"]}]}]));
        let at = format!("affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchFields[0]");
        check_pod(
            fields,
            &[&format!("{at}.key: FieldValueInvalid"), &format!("{at}.values: FieldValueRequired")],
        );
        let heavy = json!({"affinity": {"nodeAffinity": {PREFERRED: [{"weight": 101, "preference": {}}]}}});
        check_pod(heavy, &[&format!("affinity.nodeAffinity.{PREFERRED}[0].weight: FieldValueInvalid")]);
    }

    #[test]
    fn pod_affinity() {
        let required = |term: Value| json!({"affinity": {"podAntiAffinity": {REQUIRED: [term]}}});
        let at = |field: &str| format!("affinity.podAntiAffinity.{REQUIRED}[0].{field}");
        check_pod(
            required(json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}})),
            &[],
        );
        check_pod(required(json!({})), &[&format!("{}: FieldValueRequired", at("topologyKey"))]);
        let wrong = json!({"topologyKey": "zone", "labelSelector": {}, "namespaces": ["A"]});
        check_pod(required(wrong), &[&format!("{}: FieldValueInvalid", at("namespaces[0]"))]);
        let keys = json!({"topologyKey": "zone", "matchLabelKeys": ["a"]});
        check_pod(required(keys), &[&format!("{}: FieldValueForbidden", at("matchLabelKeys"))]);
        let preferred = json!({"affinity": {"podAffinity": {PREFERRED: [{"weight": 1}]}}});
        let at = format!("affinity.podAffinity.{PREFERRED}[0].podAffinityTerm: FieldValueRequired");
        check_pod(preferred, &[&at]);
    }

    #[test]
    fn topology_spread() {
        let one = |constraint: Value| json!({"topologySpreadConstraints": [constraint]});
        let good = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"});
        check_pod(one(good.clone()), &[]);
        let at = |what: &str| format!("topologySpreadConstraints[0].{what}");
        let twice = json!({"topologySpreadConstraints": [good, good]});
        check_pod(twice, &["topologySpreadConstraints[1]: FieldValueDuplicate"]);
        check_pod(
            one(json!({})),
            &[
                &at("maxSkew: FieldValueInvalid"),
                &at("topologyKey: FieldValueRequired"),
                &at("whenUnsatisfiable: FieldValueNotSupported"),
            ],
        );
        let soft = json!({"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2,
            "nodeTaintsPolicy": "Maybe"});
        let expect = [at("minDomains: FieldValueInvalid"), at("nodeTaintsPolicy: FieldValueNotSupported")];
        check_pod(one(soft), &[&expect[0], &expect[1]]);
    }

    #[test]
    fn tolerations() {
        let one = |toleration: Value| json!({"tolerations": [toleration]});
        check_pod(one(json!({"operator": "Exists"})), &[]);
        check_pod(
            one(json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5})),
            &[],
        );
        let early = json!({"key": "a", "operator": "Exists", "tolerationSeconds": 5});
        check_pod(one(early), &["tolerations[0].effect: FieldValueInvalid"]);
        check_pod(one(json!({})), &["tolerations[0].operator: FieldValueInvalid"]);
    }

    #[test]
    fn taints_of_nodes() {
        let taints = |taints: Value| json!({"taints": taints});
        let taint = json!({"key": "a", "value": "b", "effect": "NoExecute"});
        check(node, taints(json!([taint])), &[]);
        check(node, taints(json!([taint, taint])), &["taints[1]: FieldValueDuplicate"]);
        let bad = json!([{"key": "", "effect": "Never"}]);
        check(
            node,
            taints(bad),
            &["taints[0].key: FieldValueInvalid", "taints[0].effect: FieldValueNotSupported"],
        );
    }
}
