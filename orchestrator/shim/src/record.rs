//! Exit records: how each attempt ended, in a file before anybody is told.
//!
//! `<pod dir>/exits/<container>.<attempt>.json`, written by rename. A record also says that its attempt was made:
//! it is never made again.
//!
//! Not flushed: a record must survive the death of every process, and the page cache does. A power failure it need
//! not survive: the pod directory belongs to one boot and is swept by the next.
#![forbid(unsafe_code)]

use crate::protocol::{ContainerId, EXITS_DIR, ExitRecord, Failure, FailureKind};
use crate::sys::Call;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the record of `container` is.
#[must_use]
pub fn path(pod_dir: &Path, container: &ContainerId) -> PathBuf {
    pod_dir.join(EXITS_DIR).join(format!("{container}.json"))
}

/// Writes the record: temporary file, rename. Readers see none or the whole.
///
/// # Errors
/// The disk's answer.
pub fn write(pod_dir: &Path, record: &ExitRecord) -> Result<(), Failure> {
    let dir = pod_dir.join(EXITS_DIR);
    match fs::create_dir(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).call(|| format!("mkdir {}", dir.display()));
        }
        _ => {}
    }
    let target = path(pod_dir, &record.container);
    let temporary = dir.join(format!(".{}.new", record.container));
    let bytes = serde_json::to_vec(record)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("encode the exit record: {error}")))?;
    fs::write(&temporary, bytes).call(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, &target).call(|| format!("rename to {}", target.display()))
}

/// Reads the record of `container`; none if it has not ended, or never was.
///
/// # Errors
/// The disk's answer; `Internal` for a file that is not a record.
pub fn read(pod_dir: &Path, container: &ContainerId) -> Result<Option<ExitRecord>, Failure> {
    let path = path(pod_dir, container);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.call(|| format!("read {}", path.display()))?,
    };
    let record = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("parse {}: {error}", path.display())))?;
    Ok(Some(record))
}

/// The highest attempt of the container `name` that has a record.
///
/// # Errors
/// The disk's answer.
pub fn last_attempt(pod_dir: &Path, name: &str) -> Result<Option<u32>, Failure> {
    let dir = pod_dir.join(EXITS_DIR);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.call(|| format!("list {}", dir.display()))?,
    };
    let mut last = None;
    for entry in entries {
        let entry = entry.call(|| format!("list {}", dir.display()))?.file_name();
        let attempt = entry.to_str().and_then(|file| {
            let (container, attempt) = file.strip_suffix(".json")?.rsplit_once('.')?;
            (container == name).then(|| attempt.parse::<u32>().ok())?
        });
        last = last.max(attempt);
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ProcessName;

    #[test]
    fn records_are_found_by_name_and_attempt() {
        let dir = std::env::temp_dir().join(format!("podyard-record-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let record = |attempt| ExitRecord {
            container: ContainerId { name: "web.a".into(), attempt },
            code: 137,
            signal: 9,
            oom_killed: true,
            started_at_ns: None,
            finished_at_ns: 1,
            process: ProcessName { pid: 1, start_time: 2, boot_id: "b".into() },
        };
        assert_eq!(last_attempt(&dir, "web.a").unwrap(), None);
        for attempt in [0, 2, 10] {
            write(&dir, &record(attempt)).unwrap();
        }
        assert_eq!(last_attempt(&dir, "web.a").unwrap(), Some(10));
        assert_eq!(last_attempt(&dir, "web").unwrap(), None);
        assert_eq!(read(&dir, &record(2).container).unwrap(), Some(record(2)));
        assert_eq!(read(&dir, &record(3).container).unwrap(), None);
        fs::remove_dir_all(dir).unwrap();
    }
}
