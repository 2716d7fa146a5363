//! Words about storage that several parts of the yard share.

use std::time::Duration;

/// The provisioner of volumes on this host, and the driver's name in them.
pub const PROVISIONER: &str = "podyard.io/host";

/// Annotation of volumes: what enforces their size, `projectQuota`, `loop` or `none`.
pub const ENFORCEMENT_ANNOTATION: &str = "podyard.io/enforcement";

/// A length of time as people write it: `90s`, `30m`, `24h`, `7d`.
pub fn duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(at);
    let secs = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(secs).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expect) in
            [("90s", Some(90)), ("24h", Some(86400)), ("0s", Some(0)), ("7d", Some(604_800))]
        {
            assert_eq!(duration(text), expect.map(Duration::from_secs), "{text}");
        }
        for text in ["", "h", "5", "-1s", "1w", "99999999999999999999s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
