//! Writes `src/schema.tsv` from Kubernetes' `generated.proto` files: facts only, no prose.
//!
//! ```text
//! cargo run -p api --example schema-generator -- DIR > orchestrator/api/src/schema.tsv
//! ```
//! DIR holds, at any depth, the `generated.proto` files of k8s.io/api {core,apps,discovery,storage}/v1 and of
//! k8s.io/apimachinery {meta/v1, api/resource, util/intstr, runtime}, all of one release (`kubernetes-1.33.13`).
//!
//! Only messages reachable from the roots are written. A message is a line with its name; its fields follow,
//! each `TAB name TAB number TAB type TAB flags`. Type: a scalar, a message, `[list of]` or `{map to}`.
//! Flags: `key=a,b` (map list), `set`, `atomic`, `merge=KEY` (patch merge key; `merge=` for scalars),
//! `retain`, `default=JSON`, `inline` (its fields stand in the parent, as Go embeds them).

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

const ROOTS: &[&str] = &[
    "Pod",
    "Service",
    "EndpointSlice",
    "ReplicaSet",
    "StatefulSet",
    "ControllerRevision",
    "PersistentVolumeClaim",
    "PersistentVolume",
    "StorageClass",
    "Namespace",
    "Node",
    "Event",
];

/// What Go embeds, and so JSON inlines; the proto files do not say.
const INLINE: &[(&str, &str)] = &[
    ("Volume", "volumeSource"),
    ("PersistentVolumeSpec", "persistentVolumeSource"),
    ("Probe", "handler"),
    ("EphemeralContainer", "ephemeralContainerCommon"),
    ("ConfigMapKeySelector", "localObjectReference"),
    ("SecretKeySelector", "localObjectReference"),
    ("ConfigMapEnvSource", "localObjectReference"),
    ("SecretEnvSource", "localObjectReference"),
    ("ConfigMapProjection", "localObjectReference"),
    ("SecretProjection", "localObjectReference"),
    ("ConfigMapVolumeSource", "localObjectReference"),
];

/// Messages that are one scalar in JSON.
const SCALARS: &[(&str, &str)] = &[
    ("Time", "time"),
    ("MicroTime", "microtime"),
    ("Duration", "duration"),
    ("Quantity", "quantity"),
    ("IntOrString", "intstr"),
    ("FieldsV1", "any"),
    ("RawExtension", "any"),
];

#[derive(Debug)]
struct Field {
    name: String,
    number: u32,
    shape: Shape,
    target: String,
    flags: Vec<String>,
}

#[derive(Debug)]
enum Shape {
    One,
    List,
    Map,
}

/// Messages by full name.
type Messages = BTreeMap<String, Vec<Field>>;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = env::args().nth(1).ok_or("usage: schema-generator DIR")?;
    let mut messages = Messages::new();
    read(Path::new(&dir), &mut messages)?;
    print!("{}", write(&messages)?);
    Ok(())
}

fn read(dir: &Path, messages: &mut Messages) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            read(&path, messages)?;
        } else if path.ends_with("generated.proto") {
            parse(&fs::read_to_string(&path)?, messages)
                .map_err(|why| format!("{}: {why}", path.display()))?;
        }
    }
    Ok(())
}

fn parse(text: &str, messages: &mut Messages) -> Result<(), Box<dyn Error>> {
    let (mut package, mut message, mut markers) = (String::new(), None, Vec::new());
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("//") {
            let comment = comment.trim();
            if let Some(marker) = comment.strip_prefix('+') {
                markers.push(marker.to_string());
            }
        } else if let Some(name) = line.strip_prefix("package ") {
            package = name.trim_end_matches(';').into();
        } else if let Some(name) = line.strip_prefix("message ").and_then(|l| l.strip_suffix(" {")) {
            message = Some(format!("{package}.{name}"));
            messages.insert(format!("{package}.{name}"), Vec::new());
            markers.clear();
        } else if line == "}" {
            message = None;
        } else if let (Some(message), true) = (&message, line.contains(" = ")) {
            let field = parse_field(line, &package, &markers).ok_or_else(|| format!("field {line:?}"))?;
            messages.get_mut(message).ok_or("no message")?.push(field);
            markers.clear();
        } else if line.is_empty() {
            markers.clear();
        }
    }
    Ok(())
}

fn parse_field(line: &str, package: &str, markers: &[String]) -> Option<Field> {
    let (left, number) = line.strip_suffix(';')?.split_once(" = ")?;
    let (declared, name) = left.rsplit_once(' ')?;
    let (shape, target) = if let Some(map) = declared.strip_prefix("map<") {
        (Shape::Map, map.strip_suffix('>')?.split_once(", ")?.1)
    } else if let Some(target) = declared.strip_prefix("repeated ") {
        (Shape::List, target)
    } else {
        (Shape::One, declared.strip_prefix("optional ")?)
    };
    let target = match target.strip_prefix('.') {
        Some(full) => full.to_string(),
        None if is_scalar(target) => target.to_string(),
        None => format!("{package}.{target}"),
    };
    Some(Field { name: name.into(), number: number.parse().ok()?, shape, target, flags: flags(markers) })
}

fn is_scalar(name: &str) -> bool {
    matches!(name, "string" | "bool" | "bytes" | "int32" | "int64" | "uint32" | "double")
}

fn flags(markers: &[String]) -> Vec<String> {
    let all = |name: &str| -> Vec<&str> {
        markers.iter().filter_map(|m| m.strip_prefix(name)?.strip_prefix('=')).collect()
    };
    let mut flags = Vec::new();
    match all("listType").first() {
        Some(&"map") => flags.push(format!("key={}", all("listMapKey").join(","))),
        Some(&"set") => flags.push("set".into()),
        Some(&"atomic") => flags.push("atomic".into()),
        _ => {}
    }
    let strategy = all("patchStrategy").join(",");
    if strategy.split(',').any(|s| s == "merge") {
        flags.push(format!("merge={}", all("patchMergeKey").first().unwrap_or(&"")));
    }
    if strategy.split(',').any(|s| s == "retainKeys") {
        flags.push("retain".into());
    }
    if let Some(default) = all("default").first().filter(|d| !d.starts_with("ref(") && **d != "\"\"") {
        flags.push(format!("default={default}"));
    }
    flags
}

fn short(full: &str) -> &str {
    full.rsplit('.').next().unwrap_or(full)
}

fn write(messages: &Messages) -> Result<String, Box<dyn Error>> {
    let mut reached: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue: Vec<&str> = Vec::new();
    for root in ROOTS {
        let full = messages.keys().find(|full| short(full) == *root && !full.contains("meta"));
        queue.push(full.ok_or_else(|| format!("no message {root}"))?);
    }
    while let Some(full) = queue.pop() {
        match reached.insert(short(full), full) {
            Some(other) if other != full => return Err(format!("{full} and {other} share a name").into()),
            Some(_) => continue,
            None => {}
        }
        let fields = messages.get(full).ok_or_else(|| format!("no message {full}"))?;
        let targets = fields.iter().map(|field| field.target.as_str());
        queue.extend(targets.filter(|t| !is_scalar(t) && scalar_message(t).is_none()));
    }
    let roots: BTreeSet<&str> = ROOTS.iter().copied().collect();
    let mut text = String::new();
    for (name, full) in &reached {
        writeln!(text, "{name}")?;
        if roots.contains(name) {
            // TypeMeta travels outside the message in protobuf: number 0.
            writeln!(text, "\tapiVersion\t0\tstring\t\n\tkind\t0\tstring\t")?;
        }
        for field in &messages[*full] {
            let mut flags = field.flags.clone();
            if INLINE.contains(&(name, &field.name)) {
                flags.push("inline".into());
            }
            let target = scalar_message(&field.target).unwrap_or(short(&field.target));
            let target = match field.shape {
                Shape::One => target.to_string(),
                Shape::List => format!("[{target}]"),
                Shape::Map => format!("{{{target}}}"),
            };
            writeln!(text, "\t{}\t{}\t{target}\t{}", field.name, field.number, flags.join(" "))?;
        }
    }
    Ok(text)
}

fn scalar_message(full: &str) -> Option<&'static str> {
    SCALARS.iter().find(|(name, _)| *name == short(full)).map(|(_, scalar)| *scalar)
}
