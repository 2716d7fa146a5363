//! Errors and warnings where callers look for them: a log file, in the form that they asked for, and standard error.
//!
//! containerd-shim-runc-v2 reads the file's last line with level `error`. podman reads the file as one JSON value, so a
//! failed command must leave a single line: warnings are written to the file only by commands that succeed. People, and
//! conmon, read standard error.

use std::cell::RefCell;
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use runtime::{Error, Result};
use serde_json::json;

use crate::options::Command;

/// Where and how to log.
#[derive(Debug, Default)]
pub struct Log {
    path: Option<PathBuf>,
    json: bool,
    warnings: RefCell<Vec<String>>,
}

impl Log {
    /// As the command line says; a path of `/dev/stderr` is standard error, which gets everything anyway.
    ///
    /// # Errors
    /// `Invalid` for a format that is none.
    pub fn of(command: &Command) -> Result<Self> {
        let path = command.path("--log").filter(|path| !path.as_os_str().is_empty()).map(PathBuf::from);
        let json = match command.value("--log-format").unwrap_or("text") {
            "json" => true,
            "text" | "" => false,
            other => {
                return Err(Error::invalid("--log-format", format!("{other:?} is neither text nor json")));
            }
        };
        Ok(Self { path, json, warnings: RefCell::default() })
    }

    /// Something was done in part only.
    pub fn warning(&self, text: &str) {
        say(format_args!("warning: {text}"));
        self.warnings.borrow_mut().push(text.to_string());
    }

    /// The command succeeded.
    pub fn success(&self) {
        self.warnings.borrow().iter().for_each(|text| self.write("warning", text));
    }

    /// The command failed.
    pub fn error(&self, error: &Error) {
        let text = worded(error);
        // Callers that do not look at exit codes look for the word.
        say(format_args!("error: {text}"));
        self.write("error", &text);
    }

    fn write(&self, level: &str, text: &str) {
        let Some(path) = &self.path else { return };
        let time = rfc3339(SystemTime::now());
        let line = match self.json {
            true => json!({"level": level, "msg": text, "time": time}).to_string(),
            false => format!("time={time:?} level={level} msg={text:?}"),
        };
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        // The command's own outcome counts for more than its log, but this is not kept silent either.
        if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
            say(format_args!("log to {}: {error}", path.display()));
        }
    }
}

/// Says it on standard error. Where that is closed, or a terminal that has hung up, nobody is left to be told.
fn say(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "podyard-oci: {text}");
}

/// The error with the kernel's answer in words, too: engines choose their own exit code by finding "no such file or
/// directory", "permission denied" or "no such process" in it.
fn worded(error: &Error) -> String {
    match error.errno() {
        Some(errno) => format!("{error} ({})", errno.desc().to_lowercase()),
        None => error.to_string(),
    }
}

/// `2026-01-31T12:34:56Z`. Source: RFC 3339.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days since 1970, by eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        for (seconds, expect) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expect);
        }
    }
}
