//! Labels and the selectors over them.

use serde_json::Value;

use super::{Causes, Tree, items, names, text, texts, tree};
use crate::selector::LabelSelector;

pub(super) fn map(labels: &Tree, path: &str, causes: &mut Causes) {
    for (key, value) in labels {
        causes.name(path, key, names::qualified);
        causes.name(path, value.as_str().unwrap_or(""), names::label_value);
    }
}

/// A `{matchLabels, matchExpressions}` tree.
pub(super) fn selector(selector: &Tree, path: &str, causes: &mut Causes) {
    if let Some(labels) = tree(selector, "matchLabels") {
        map(labels, &format!("{path}.matchLabels"), causes);
    }
    for (path, expression) in items(selector, path, "matchExpressions") {
        causes.name(format!("{path}.key"), text(expression, "key"), names::qualified);
        let values = texts(expression, "values").count();
        match text(expression, "operator") {
            "In" | "NotIn" if values == 0 => {
                causes.required_because(
                    format!("{path}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "In" | "NotIn" => {
                for (index, value) in texts(expression, "values").enumerate() {
                    causes.name(format!("{path}.values[{index}]"), value, names::label_value);
                }
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                causes.forbidden(
                    format!("{path}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "Exists" | "DoesNotExist" => {}
            other => causes.invalid(format!("{path}.operator"), other, "not a valid selector operator"),
        }
    }
}

/// A required selector that must match the labels of the template beside it.
pub(super) fn matches_template(spec: &Tree, causes: &mut Causes) {
    let Some(tree_) = tree(spec, "selector") else { return causes.required("spec.selector") };
    selector(tree_, "spec.selector", causes);
    let Ok(parsed) = LabelSelector::from_spec(&Value::Object(tree_.clone())) else { return };
    if parsed.is_empty() {
        let why = "empty selector is invalid: it would match every pod";
        return causes.invalid("spec.selector", Value::Object(tree_.clone()), why);
    }
    let empty = Tree::new();
    let meta = tree(spec, "template").and_then(|template| tree(template, "metadata"));
    let labels = meta.and_then(|meta| tree(meta, "labels")).unwrap_or(&empty);
    if !parsed.matches(labels) {
        causes.invalid(
            "spec.template.metadata.labels",
            Value::Object(labels.clone()),
            "`selector` does not match template `labels`",
        );
    }
}
