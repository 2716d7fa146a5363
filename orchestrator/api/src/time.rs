//! Times as the API writes them, and ages as kubectl prints them.

use jiff::Timestamp;
use serde_json::Value;

/// RFC 3339 with whole seconds, as in `2026-01-02T03:04:05Z`. meta/v1 Time.
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 with microseconds, as in `2026-01-02T03:04:05.000006Z`. meta/v1 MicroTime.
pub fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// The time in a JSON string.
pub fn parse(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// A duration as kubectl prints ages: at most two units, fewer as it grows.
///
/// Source: k8s.io/apimachinery/pkg/util/duration, HumanDuration: the thresholds.
pub fn human_duration(secs: i64) -> String {
    let (minutes, hours, days) = (secs / 60, secs / 3600, secs / 86_400);
    let two = |large: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{small_unit}"),
    };
    match secs {
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        0..120 => format!("{secs}s"),
        120..600 => two(minutes, 'm', secs % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        _ if days < 2 * 365 => format!("{days}d"),
        _ if days < 8 * 365 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// How long ago `then` was, as kubectl prints it; `<unknown>` without one.
pub fn age(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "<unknown>".into(), |then| human_duration(now.as_second() - then.as_second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |secs: i64, expect: &str| assert_eq!(human_duration(secs), expect, "{secs}");
        check(-5, "<invalid>");
        check(-1, "0s");
        check(0, "0s");
        check(119, "119s");
        check(120, "2m");
        check(125, "2m5s");
        check(600, "10m");
        check(3600, "60m");
        check(10_800, "3h");
        check(11_100, "3h5m");
        check(28_800, "8h");
        check(172_800, "2d");
        check(180_000, "2d2h");
        check(8 * 86_400, "8d");
        check(729 * 86_400, "729d");
        check(731 * 86_400, "2y1d");
        check(9 * 365 * 86_400, "9y");
    }

    #[test]
    fn writes() {
        let time: Timestamp = "2026-01-02T03:04:05.000006Z".parse().unwrap();
        assert_eq!(seconds(time), "2026-01-02T03:04:05Z");
        assert_eq!(micros(time), "2026-01-02T03:04:05.000006Z");
    }
}
