//! The environment, command and arguments of a container, with Kubernetes' `$(NAME)` references resolved.

use api::Object;
use serde_json::Value;

use crate::error::{Error, Kind, Result};

/// Where the values of field references come from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The pod.
    pub pod: &'a Object,
    /// The address of the node it runs on.
    pub host_ip: &'a str,
    /// What it is told of Services: [`crate::links`].
    pub services: &'a [(String, String)],
}

/// `NAME=value` in the order in which later ones win: image, Services, HOSTNAME, the container's own.
///
/// # Errors
/// `Invalid` (`CreateContainerConfigError`) for a source that does not exist.
pub fn environment(facts: Facts<'_>, container: &Value, image: &[String]) -> Result<Vec<String>> {
    let mut env: Vec<(String, String)> = image
        .iter()
        .filter_map(|entry| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect();
    for (name, value) in facts.services {
        set(&mut env, name, value.clone());
    }
    set(&mut env, "HOSTNAME", hostname(facts.pod));
    if let Some(first) = list(container, "envFrom").first() {
        return Err(config_error(format!("envFrom {first}: ConfigMaps and Secrets are not supported yet")));
    }
    for entry in list(container, "env") {
        let name = entry["name"].as_str().unwrap_or("");
        let value = match entry.get("valueFrom") {
            Some(source) => from_source(facts, container, name, source)?,
            None => expand(entry["value"].as_str().unwrap_or(""), &env),
        };
        set(&mut env, name, value);
    }
    Ok(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

/// The program and its arguments. Source: Kubernetes, "Define a Command and Arguments for a Container".
///
/// # Errors
/// `Invalid` (`CreateContainerConfigError`) if neither the container nor the image names a program.
pub fn command(container: &Value, image: &rootfs::Config, env: &[String]) -> Result<Vec<String>> {
    let env: Vec<(String, String)> = env
        .iter()
        .filter_map(|entry| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect();
    let own = |field: &str| -> Vec<String> {
        list(container, field).iter().filter_map(Value::as_str).map(|text| expand(text, &env)).collect()
    };
    let (command, args) = (own("command"), own("args"));
    let all = match (command.is_empty(), args.is_empty()) {
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
        (true, false) => [image.entrypoint.clone(), args].concat(),
        (false, _) => [command, args].concat(),
    };
    if all.is_empty() {
        return Err(config_error(
            "no command specified: neither the container nor its image names a program".into(),
        ));
    }
    Ok(all)
}

/// What the pod calls itself.
pub fn hostname(pod: &Object) -> String {
    let name = pod.get_str("spec.hostname").unwrap_or_else(|| pod.name());
    // A DNS label, and what sethostname(2) takes.
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: String) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name.to_owned(), value)),
    }
}

fn config_error(text: String) -> Error {
    Error::new(Kind::Invalid, text).reason("CreateContainerConfigError")
}

fn from_source(facts: Facts<'_>, container: &Value, name: &str, source: &Value) -> Result<String> {
    if let Some(path) = source["fieldRef"]["fieldPath"].as_str() {
        return field(facts, path).ok_or_else(|| config_error(format!("env {name}: no field {path:?}")));
    }
    if let Some(resource) = source["resourceFieldRef"]["resource"].as_str() {
        let divisor = source["resourceFieldRef"]["divisor"].as_str().unwrap_or("1");
        return resource_field(container, resource, divisor)
            .ok_or_else(|| config_error(format!("env {name}: no resource {resource:?}")));
    }
    for (kind, what) in [("configMapKeyRef", "configmap"), ("secretKeyRef", "secret")] {
        if let Some(reference) = source.get(kind) {
            if reference["optional"] == true {
                return Ok(String::new());
            }
            let from = reference["name"].as_str().unwrap_or("");
            return Err(config_error(format!(
                "env {name}: {what} {from:?} not found: {what}s are not supported yet"
            )));
        }
    }
    Err(config_error(format!("env {name}: valueFrom has no source")))
}

/// Fields of a pod that its containers may read. Source: Kubernetes, "Downward API".
fn field(facts: Facts<'_>, path: &str) -> Option<String> {
    let pod = facts.pod;
    let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']").map(str::to_owned);
    if let Some(key) = keyed("metadata.labels['") {
        return Some(pod.label(&key).unwrap_or("").to_owned());
    }
    if let Some(key) = keyed("metadata.annotations['") {
        return Some(pod.annotation(&key).unwrap_or("").to_owned());
    }
    Some(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "spec.nodeName" => pod.get_str("spec.nodeName").unwrap_or("").to_owned(),
        "spec.serviceAccountName" => pod.get_str("spec.serviceAccountName").unwrap_or("default").to_owned(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.to_owned(),
        "status.podIP" | "status.podIPs" => pod.get_str("status.podIP").unwrap_or("").to_owned(),
        _ => return None,
    })
}

fn resource_field(container: &Value, resource: &str, divisor: &str) -> Option<String> {
    let (list, name) = resource.split_once('.')?;
    let text = container["resources"][list][name].as_str()?;
    let ceil = |value: u64, unit: u64| value.div_ceil(unit.max(1)).to_string();
    if name == "cpu" {
        Some(ceil(api::quantity::parse_millicpu(text).ok()?, api::quantity::parse_millicpu(divisor).ok()?))
    } else {
        Some(ceil(api::quantity::parse_bytes(text).ok()?, api::quantity::parse_bytes(divisor).ok()?))
    }
}

/// Replaces `$(NAME)` by the value of NAME, `$$` by `$`; an unknown name stays as written.
fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match env.iter().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Object {
        Object(json!({"metadata": {"name": "web-0", "namespace": "d", "uid": "u", "labels": {"app": "w"}},
            "spec": {"nodeName": "node-0"}, "status": {"podIP": "10.244.0.9"}}))
    }

    #[test]
    fn references_are_expanded_once_in_order() {
        let env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        for (text, expect) in [
            ("x$(A)y", "x1y"),
            ("$(B)", "$(A)"),
            ("$$(A)", "$(A)"),
            ("$(C)", "$(C)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(expand(text, &env), expect, "{text}");
        }
    }

    #[test]
    fn later_sources_win() {
        let container = json!({"env": [
            {"name": "PATH", "value": "/x:$(PATH)"},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "URL", "value": "http://$(IP)/$(NAME)"},
            {"name": "WEB", "value": "http://$(WEB_SERVICE_HOST)/"}
        ]});
        let services = [("WEB_SERVICE_HOST".to_owned(), "10.96.0.7".to_owned())];
        let facts = Facts { pod: &pod(), host_ip: "h", services: &services };
        let env = environment(facts, &container, &["PATH=/bin".to_owned()]).unwrap();
        assert_eq!(
            env,
            [
                "PATH=/x:/bin",
                "WEB_SERVICE_HOST=10.96.0.7",
                "HOSTNAME=web-0",
                "NAME=web-0",
                "IP=10.244.0.9",
                "APP=w",
                "URL=http://10.244.0.9/web-0",
                "WEB=http://10.96.0.7/"
            ]
        );
    }

    #[test]
    fn a_missing_source_is_a_configuration_error() {
        let container =
            json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]});
        let error =
            environment(Facts { pod: &pod(), host_ip: "h", services: &[] }, &container, &[]).unwrap_err();
        assert_eq!(error.waiting_reason(), Some("CreateContainerConfigError"));
    }

    #[test]
    fn command_replaces_entrypoint_and_args_replace_cmd() {
        let image = rootfs::Config {
            entrypoint: vec!["/e".into()],
            cmd: vec!["c".into()],
            ..rootfs::Config::default()
        };
        let check = |container: Value, expect: &[&str]| {
            assert_eq!(command(&container, &image, &["A=1".to_owned()]).unwrap(), expect);
        };
        check(json!({}), &["/e", "c"]);
        check(json!({"args": ["$(A)"]}), &["/e", "1"]);
        check(json!({"command": ["sh"]}), &["sh"]);
        check(json!({"command": ["sh"], "args": ["-c", "x"]}), &["sh", "-c", "x"]);
        assert!(command(&json!({}), &rootfs::Config::default(), &[]).is_err());
    }
}
