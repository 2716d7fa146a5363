//! Reading config.json and process.json as others write them.
//!
//! The types are oci-spec's, and stricter than callers are used to in three places: capabilities that are newer than the
//! crate, which runc ignores with a warning; two flags of the scheduler, which the crate spells in its own way; and a
//! process without `user`, which is root's. A document that reads as it is is not looked at twice.
#![forbid(unsafe_code)]

use oci_spec::runtime::Capability;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a spec or a process.
///
/// # Errors
/// What is wrong with it, and where.
pub fn read<T: DeserializeOwned>(bytes: &[u8], warnings: &mut Vec<String>) -> Result<T, serde_json::Error> {
    let error = match serde_json::from_slice(bytes) {
        Ok(document) => return Ok(document),
        Err(error) => error,
    };
    let mut value: Value = serde_json::from_slice(bytes)?;
    let process = match value.get_mut("process") {
        Some(process) => process,
        None => &mut value,
    };
    let mut mended = mend_flags(process) | mend_user(process);
    let unknown = drop_unknown(process);
    if !unknown.is_empty() {
        mended = true;
        // runc's words, which callers look for.
        warnings.push(format!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" ")));
    }
    // The first error has the line and column.
    if mended { serde_json::from_value(value) } else { Err(error) }
}

/// Takes capabilities that nobody knows out of every set, and returns them.
fn drop_unknown(process: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for list in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
        list.retain(|name| match name {
            Value::String(text) if serde_json::from_value::<Capability>(name.clone()).is_err() => {
                unknown.push(text.clone());
                false
            }
            _ => true,
        });
    }
    unknown.sort();
    unknown.dedup();
    unknown
}

/// Whether a flag was found that oci-spec 0.10 knows by another name.
fn mend_flags(process: &mut Value) -> bool {
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    let mut mended = false;
    for flag in flags.into_iter().flatten() {
        let name = match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => "SCHED_RESET_ON_FORK",
            Some("SCHED_FLAG_DL_OVERRUN") => "SCHED_FLAG_D_L_OVERRUN",
            _ => continue,
        };
        *flag = name.into();
        mended = true;
    }
    mended
}

/// Whether something with a program to run lacked a user.
fn mend_user(process: &mut Value) -> bool {
    match process.as_object_mut() {
        Some(fields) if fields.contains_key("args") && !fields.contains_key("user") => {
            fields.insert("user".into(), serde_json::json!({}));
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Process, Spec};
    use serde_json::json;

    #[test]
    fn unknown_capabilities_are_dropped_with_a_warning() {
        let sets = json!({"bounding": ["CAP_CHOWN", "CAP_NEW"], "effective": ["CAP_NEW", "TEST_CAP"]});
        let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "capabilities": sets});
        for document in [json!({"ociVersion": "1.2.0", "process": process}), process] {
            let bytes = document.to_string();
            let mut warnings = Vec::new();
            let process = match document.get("process") {
                Some(_) => read::<Spec>(bytes.as_bytes(), &mut warnings).unwrap().process().clone().unwrap(),
                None => read::<Process>(bytes.as_bytes(), &mut warnings).unwrap(),
            };
            let sets = process.capabilities().clone().unwrap();
            assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
            assert!(sets.effective().as_ref().unwrap().is_empty());
            assert_eq!(warnings, ["ignoring unknown or unavailable capabilities: [CAP_NEW TEST_CAP]"]);
        }
    }

    #[test]
    fn flags_of_the_scheduler_by_their_own_names() {
        let flags = json!(["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"]);
        let scheduler = json!({"policy": "SCHED_DEADLINE", "flags": flags});
        let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "scheduler": scheduler});
        let process: Process = read(process.to_string().as_bytes(), &mut Vec::new()).unwrap();
        assert_eq!(process.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(), 3);
    }

    #[test]
    fn who_is_not_named_is_root() {
        let process = json!({"cwd": "/", "args": ["x"]});
        for document in [json!({"ociVersion": "1.2.0", "process": process}), process] {
            let bytes = document.to_string();
            let process = match document.get("process") {
                Some(_) => {
                    read::<Spec>(bytes.as_bytes(), &mut Vec::new()).unwrap().process().clone().unwrap()
                }
                None => read::<Process>(bytes.as_bytes(), &mut Vec::new()).unwrap(),
            };
            assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        }
    }

    #[test]
    fn other_errors_stay_as_they_are() {
        for (text, named) in
            [("{", "EOF"), ("{\"ociVersion\": 1}", "line 1 column 16"), ("7", "invalid type")]
        {
            let error = read::<Spec>(text.as_bytes(), &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
