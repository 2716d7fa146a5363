//! Pod specs, in pods and in templates.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{Causes, Tree, container, items, names, placement, text, texts, tree};

pub(super) fn spec(spec: &Tree, path: &str, causes: &mut Causes) {
    spec_with(spec, path, &[], causes);
}

/// `claims` are volumes that the pod's controller will add to it.
fn spec_with<'a>(spec: &'a Tree, path: &str, claims: &[&'a Tree], causes: &mut Causes) {
    let mut volumes = volumes(spec, path, causes);
    volumes.extend(claims.iter().filter_map(|claim| Some((text(tree(claim, "metadata")?, "name"), *claim))));
    let mut names_seen: HashSet<&str> = HashSet::new();
    let mut count = 0;
    for (path, item) in items(spec, path, "containers") {
        count += 1;
        container::container(item, &path, &volumes, causes);
        names_seen.insert(text(item, "name"));
        if item.contains_key("restartPolicy") {
            causes.forbidden(format!("{path}.restartPolicy"), "may not be set for non-init containers");
        }
    }
    if count == 0 {
        causes.required(format!("{path}.containers"));
    }
    for (path, item) in items(spec, path, "initContainers") {
        container::container(item, &path, &volumes, causes);
        if item.contains_key("restartPolicy") {
            causes.one_of(format!("{path}.restartPolicy"), text(item, "restartPolicy"), &["Always"]);
        }
        if names_seen.contains(text(item, "name")) {
            causes.duplicate(format!("{path}.name"), text(item, "name"));
        }
    }
    causes.one_of(
        format!("{path}.restartPolicy"),
        text(spec, "restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    dns(spec, path, causes);
    if let Some(os) = tree(spec, "os") {
        causes.one_of(format!("{path}.os.name"), text(os, "name"), &["linux"]);
    }
    let grace = spec.get("terminationGracePeriodSeconds");
    causes.in_range(format!("{path}.terminationGracePeriodSeconds"), grace, 0, i64::MAX);
    let deadline = spec.get("activeDeadlineSeconds");
    causes.in_range(format!("{path}.activeDeadlineSeconds"), deadline, 1, i32::MAX.into());
    for (field, rule) in [
        ("nodeName", names::dns_subdomain as names::Rule),
        ("serviceAccountName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
    ] {
        if !text(spec, field).is_empty() {
            causes.name(format!("{path}.{field}"), text(spec, field), rule);
        }
    }
    placement::spec(spec, path, causes);
    if let Some(security) = tree(spec, "securityContext") {
        container::security(security, &format!("{path}.securityContext"), causes);
    }
}

/// A pod template: labels and a spec that always restarts.
pub(super) fn template(owner: &Tree, causes: &mut Causes) {
    let Some(template) = tree(owner, "template") else { return causes.required("spec.template") };
    if let Some(meta) = tree(template, "metadata") {
        super::meta::labels_and_annotations(meta, "spec.template.metadata", causes);
    }
    let Some(pod) = tree(template, "spec") else { return causes.required("spec.template.spec.containers") };
    let claims: Vec<&Tree> = items(owner, "spec", "volumeClaimTemplates").map(|(_, claim)| claim).collect();
    spec_with(pod, "spec.template.spec", &claims, causes);
    if matches!(text(pod, "restartPolicy"), "OnFailure" | "Never") {
        causes.one_of("spec.template.spec.restartPolicy", text(pod, "restartPolicy"), &["Always"]);
    }
    if pod.contains_key("activeDeadlineSeconds") {
        causes.forbidden("spec.template.spec.activeDeadlineSeconds", "pods here run for ever");
    }
}

fn dns(spec: &Tree, path: &str, causes: &mut Causes) {
    let known = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    causes.one_of(format!("{path}.dnsPolicy"), text(spec, "dnsPolicy"), &known);
    let servers = tree(spec, "dnsConfig").map_or(0, |dns| texts(dns, "nameservers").count());
    if text(spec, "dnsPolicy") == "None" && servers == 0 {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        causes.required_because(format!("{path}.dnsConfig.nameservers"), why);
    }
}

/// Checks the volumes; gives their names, and whether each is a claim.
fn volumes<'a>(spec: &'a Tree, path: &str, causes: &mut Causes) -> HashMap<&'a str, &'a Tree> {
    let mut known = HashMap::new();
    let list = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    for (index, volume) in list.filter_map(Value::as_object).enumerate() {
        let path = format!("{path}.volumes[{index}]");
        let name = text(volume, "name");
        if name.is_empty() {
            causes.required(format!("{path}.name"));
        } else {
            causes.name(format!("{path}.name"), name, names::dns_label);
        }
        known.insert(name, volume);
        let mut sources = volume.keys().filter(|field| *field != "name");
        let first = sources.next();
        if let Some(second) = sources.next() {
            causes.forbidden(format!("{path}.{second}"), "may not specify more than 1 volume type");
        }
        match first.map(String::as_str) {
            Some("emptyDir") => empty_dir(volume, &path, causes),
            Some("hostPath") => host_path(volume, &path, causes),
            Some("persistentVolumeClaim") => {
                let claim = tree(volume, "persistentVolumeClaim");
                if claim.is_none_or(|claim| text(claim, "claimName").is_empty()) {
                    causes.required(format!("{path}.persistentVolumeClaim.claimName"));
                }
            }
            _ => {}
        }
    }
    known
}

fn empty_dir(volume: &Tree, path: &str, causes: &mut Causes) {
    let Some(source) = tree(volume, "emptyDir") else { return };
    let medium = text(source, "medium");
    causes.one_of(format!("{path}.emptyDir.medium"), medium, &["", "Memory"]);
    if let Some(limit) = source.get("sizeLimit") {
        container::quantity(limit, &format!("{path}.emptyDir.sizeLimit"), causes);
        if medium != "Memory" {
            causes.warn(format!("not implemented yet: {path}.emptyDir.sizeLimit without medium Memory"));
        }
    }
}

pub(super) fn host_path(volume: &Tree, path: &str, causes: &mut Causes) {
    let Some(source) = tree(volume, "hostPath") else { return };
    let host = text(source, "path");
    if host.is_empty() {
        causes.required(format!("{path}.hostPath.path"));
    } else if !host.starts_with('/') {
        causes.invalid(format!("{path}.hostPath.path"), host, "must be an absolute path");
    }
    backsteps(host, &format!("{path}.hostPath.path"), causes);
    let kinds =
        ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
    causes.one_of(format!("{path}.hostPath.type"), text(source, "type"), &kinds);
}

/// Refuses `..` in a path.
pub(super) fn backsteps(path: &str, field: &str, causes: &mut Causes) {
    if path.split('/').any(|part| part == "..") {
        causes.invalid(field, path, "must not contain '..'");
    }
}
