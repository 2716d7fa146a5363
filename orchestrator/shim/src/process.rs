//! Processes by a name that is never given twice.
#![forbid(unsafe_code)]

use crate::protocol::{Failure, FailureKind, ProcessName};
use crate::sys::{Call, Result};

impl ProcessName {
    /// The name of the process that has `pid` now. Exact while the caller holds its pidfd or is its parent.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    ///
    /// Source: proc_pid_stat(5).
    pub fn of(pid: i32) -> std::result::Result<ProcessName, Failure> {
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read_to_string(&path).call(|| format!("read {path}"))?;
        let start_time = start_time(&stat)
            .ok_or_else(|| Failure::new(FailureKind::Internal, format!("{path} is not as documented")))?;
        Ok(ProcessName { pid, start_time, boot_id: boot_id()? })
    }

    /// The name of a child that ended, and was reaped, before anybody could look at it: no start time is 0 but init's.
    ///
    /// # Errors
    /// If /proc is not mounted.
    pub(crate) fn ended(pid: i32) -> std::result::Result<ProcessName, Failure> {
        Ok(ProcessName { pid, start_time: 0, boot_id: boot_id()? })
    }

    /// Whether this very process is alive or a zombie now.
    #[must_use]
    pub fn exists(&self) -> bool {
        ProcessName::of(self.pid).is_ok_and(|now| now == *self)
    }
}

/// Field 22. The second field is a name in parentheses that may hold anything, so count from its end.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(PATH).call(|| format!("read {PATH}"))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_hostile_names() {
        let stat = "42 (a) b ) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(start_time(stat), Some(777));
        assert_eq!(start_time("42 (x"), None);
    }

    #[test]
    fn a_process_exists_under_its_own_name_only() {
        let me = ProcessName::of(std::process::id().cast_signed()).unwrap();
        assert!(me.exists());
        assert!(!ProcessName::ended(me.pid).unwrap().exists());
        assert!(!ProcessName { start_time: me.start_time + 1, ..me }.exists());
    }
}
