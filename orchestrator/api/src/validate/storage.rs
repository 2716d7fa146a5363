//! Claims, volumes, classes.

use serde_json::Value;

use super::{Causes, Tree, container, labels, names, pod, text, texts, tree};
use crate::quantity::Quantity;

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(super) fn claim(spec: &Tree, path: &str, causes: &mut Causes) {
    access_modes(spec, path, causes);
    let resources = tree(spec, "resources");
    let requests = resources.and_then(|resources| tree(resources, "requests"));
    match requests.and_then(|requests| requests.get("storage")) {
        None => causes.required(format!("{path}.resources.requests[storage]")),
        Some(size) => storage_size(size, &format!("{path}.resources.requests[storage]"), causes),
    }
    if let Some(limit) = resources.and_then(|resources| tree(resources, "limits")?.get("storage")) {
        container::quantity(limit, &format!("{path}.resources.limits[storage]"), causes);
    }
    if let Some(selector) = tree(spec, "selector") {
        labels::selector(selector, &format!("{path}.selector"), causes);
    }
    class_name(spec, path, causes);
    volume_mode(spec, path, causes);
}

pub(super) fn volume(spec: &Tree, causes: &mut Causes) {
    access_modes(spec, "spec", causes);
    match tree(spec, "capacity").and_then(|capacity| capacity.get("storage")) {
        None => causes.required("spec.capacity[storage]"),
        Some(size) => storage_size(size, "spec.capacity[storage]", causes),
    }
    let policies = ["Delete", "Recycle", "Retain"];
    causes.one_of(
        "spec.persistentVolumeReclaimPolicy",
        text(spec, "persistentVolumeReclaimPolicy"),
        &policies,
    );
    class_name(spec, "spec", causes);
    volume_mode(spec, "spec", causes);
    let sources = ["hostPath", "local", "csi", "nfs"].into_iter().filter(|s| spec.contains_key(*s)).count();
    match sources {
        0 => causes.required_because("spec", "must specify a volume type: hostPath, local or csi"),
        1 => {}
        _ => causes.forbidden("spec", "may not specify more than 1 volume type"),
    }
    pod::host_path(spec, "spec", causes);
    if let Some(local) = tree(spec, "local") {
        match text(local, "path") {
            "" => causes.required("spec.local.path"),
            path => pod::backsteps(path, "spec.local.path", causes),
        }
    }
    if let Some(csi) = tree(spec, "csi") {
        for field in ["driver", "volumeHandle"] {
            if text(csi, field).is_empty() {
                causes.required(format!("spec.csi.{field}"));
            }
        }
    }
}

pub(super) fn class(class: &Tree, causes: &mut Causes) {
    match text(class, "provisioner") {
        "" => causes.required("provisioner"),
        name => causes.name("provisioner", &name.to_ascii_lowercase(), names::qualified),
    }
    if text(class, "provisioner") == crate::storage::PROVISIONER {
        for (name, value) in tree(class, "parameters").into_iter().flatten() {
            let path = format!("parameters.{name}");
            let text = value.as_str().unwrap_or("");
            match name.as_str() {
                "enforcement" => causes.one_of(path, text, &["auto", "quota", "loop", "none"]),
                "trashGrace" if crate::storage::duration(text).is_some() => {}
                "trashGrace" => {
                    causes.invalid(path, value.clone(), "must be a duration such as 0s, 30m, 24h, 7d")
                }
                _ => causes.invalid(path, value.clone(), "must be enforcement or trashGrace"),
            }
        }
    }
    causes.one_of("reclaimPolicy", text(class, "reclaimPolicy"), &["Delete", "Retain"]);
    let modes = ["Immediate", "WaitForFirstConsumer"];
    causes.one_of("volumeBindingMode", text(class, "volumeBindingMode"), &modes);
    if text(class, "volumeBindingMode") == "WaitForFirstConsumer" {
        causes.warn("not implemented yet: volumeBindingMode WaitForFirstConsumer: claims bind at once");
    }
}

fn access_modes(spec: &Tree, path: &str, causes: &mut Causes) {
    let modes: Vec<&str> = texts(spec, "accessModes").collect();
    if modes.is_empty() {
        causes.required_because(format!("{path}.accessModes"), "at least 1 access mode is required");
    }
    for mode in &modes {
        causes.one_of(format!("{path}.accessModes"), mode, ACCESS_MODES);
    }
    if modes.len() > 1 && modes.contains(&"ReadWriteOncePod") {
        causes
            .forbidden(format!("{path}.accessModes"), "may not use ReadWriteOncePod with other access modes");
    }
}

fn storage_size(size: &Value, path: &str, causes: &mut Causes) {
    if container::quantity(size, path, causes) == Some(Quantity::from_units(0)) {
        causes.invalid(path, size.clone(), "must be greater than zero");
    }
}

fn class_name(spec: &Tree, path: &str, causes: &mut Causes) {
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        causes.name(format!("{path}.storageClassName"), class, names::dns_subdomain);
    }
}

fn volume_mode(spec: &Tree, path: &str, causes: &mut Causes) {
    match text(spec, "volumeMode") {
        "Block" => causes.forbidden(format!("{path}.volumeMode"), "raw block volumes are not implemented"),
        mode => causes.one_of(format!("{path}.volumeMode"), mode, &["Block", "Filesystem"]),
    }
}
