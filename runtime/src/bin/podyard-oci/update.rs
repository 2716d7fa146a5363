//! `update`: other limits for a container that exists.

use oci_spec::runtime::LinuxResources;
use runtime::state::Status;
use runtime::{Error, Kind, Result};
use serde_json::{Value, json};

use crate::log::Log;
use crate::options::Command;
use crate::store::{cgroup_of, find, load};

/// Applies a resources document, or the options' values.
pub fn update(command: &Command, log: &Log) -> Result<()> {
    let (directory, state) = find(command)?;
    if directory.status(&state)? == Status::Stopped {
        return Err(Error::new(Kind::Invalid, format!("container {} is not running", state.id)));
    }
    let resources: LinuxResources = match command.path("--resources") {
        Some(path) => load(path)?,
        None => {
            let wished = wished(command)?;
            serde_json::from_value(wished).map_err(|e| Error::invalid("update", e))?
        }
    };
    cgroup_of(&state)?.apply_limits(&resources)?.iter().for_each(|warning| log.warning(warning));
    Ok(())
}

/// Each option and the field of linux.resources that it sets. Source: runc-update(8).
const FIELDS: [(&str, &str); 13] = [
    ("--blkio-weight", "/blockIO/weight"),
    ("--cpu-burst", "/cpu/burst"),
    ("--cpu-idle", "/cpu/idle"),
    ("--cpu-period", "/cpu/period"),
    ("--cpu-quota", "/cpu/quota"),
    ("--cpu-rt-period", "/cpu/realtimePeriod"),
    ("--cpu-rt-runtime", "/cpu/realtimeRuntime"),
    ("--cpu-share", "/cpu/shares"),
    ("--memory", "/memory/limit"),
    ("--memory-reservation", "/memory/reservation"),
    ("--memory-swap", "/memory/swap"),
    ("--pids-limit", "/pids/limit"),
    ("--cpuset-cpus", "/cpu/cpus"),
];

fn wished(command: &Command) -> Result<Value> {
    let mut document = json!({});
    let mut set = |pointer: &str, value: Value| {
        let mut words = pointer.trim_start_matches('/').split('/');
        if let (Some(group), Some(field)) = (words.next(), words.next()) {
            document[group][field] = value;
        }
    };
    for (option, pointer) in FIELDS {
        let Some(text) = command.value(option) else { continue };
        let value = match option {
            "--cpuset-cpus" => text.into(),
            option if option.starts_with("--memory") => bytes(option, text)?.into(),
            option => {
                let number: i64 =
                    text.parse().map_err(|_| Error::invalid(option, format!("{text:?} is not a number")))?;
                number.into()
            }
        };
        set(pointer, value);
    }
    if let Some(text) = command.value("--cpuset-mems") {
        set("/cpu/mems", text.into());
    }
    if document == json!({}) {
        return Err(Error::invalid("update", "nothing to change is given"));
    }
    Ok(document)
}

/// `512M`, `1g`, `-1` for no limit. Binary multiples, as runc takes them.
fn bytes(option: &str, text: &str) -> Result<i64> {
    let lower = text.to_ascii_lowercase();
    let plain = lower.trim_end_matches('b').trim_end_matches('i');
    let (number, shift) = match plain.char_indices().last() {
        Some((at, 'k')) => (&plain[..at], 10),
        Some((at, 'm')) => (&plain[..at], 20),
        Some((at, 'g')) => (&plain[..at], 30),
        Some((at, 't')) => (&plain[..at], 40),
        _ => (plain, 0),
    };
    let parsed = number.parse::<i64>().ok().and_then(|n| n.checked_mul(1 << shift));
    parsed.ok_or_else(|| Error::invalid(option, format!("{text:?} is not a number of bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expect) in [
            ("100", Some(100)),
            ("2k", Some(2048)),
            ("512M", Some(512 << 20)),
            ("1GiB", Some(1 << 30)),
            ("-1", Some(-1)),
            ("x", None),
            ("9999999999t", None),
        ] {
            assert_eq!(bytes("--memory", text).ok(), expect, "{text}");
        }
    }

    #[test]
    fn options_become_a_document() {
        let words = "update --memory 1m --cpu-share 512 --cpuset-cpus 0-1 c1".split(' ').map(str::to_string);
        let command = crate::options::parse(words).unwrap();
        let document = wished(&command).unwrap();
        assert_eq!(document, json!({"memory": {"limit": 1 << 20}, "cpu": {"shares": 512, "cpus": "0-1"}}));
        let none = crate::options::parse(["update", "c1"].map(str::to_string).into_iter()).unwrap();
        assert!(wished(&none).is_err());
    }
}
