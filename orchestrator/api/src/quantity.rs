//! Quantities, exactly: `128Mi`, `500m`, `1.5`, `2e3`.
//!
//! Source: Kubernetes API reference, resource.Quantity: the grammar and suffixes.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A quantity, counted in billionths; saturates at the range of `i128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity {
    nanos: i128,
}

/// A text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct QuantityError;

const NANO: i128 = 1_000_000_000;

/// Longest text accepted: nobody writes more digits in earnest.
const TEXT_BYTES_MAX: usize = 64;

impl Quantity {
    /// Of a whole number.
    pub fn from_units(units: i64) -> Quantity {
        Quantity { nanos: i128::from(units) * NANO }
    }

    /// The whole number, rounded up, saturating. For bytes.
    pub fn units(self) -> i64 {
        saturate(div_ceil(self.nanos, NANO))
    }

    /// Thousandths, rounded up, saturating. For CPU.
    pub fn millis(self) -> i64 {
        saturate(div_ceil(self.nanos, NANO / 1000))
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    /// The sum, saturating.
    pub fn saturating_add(self, other: Quantity) -> Quantity {
        Quantity { nanos: self.nanos.saturating_add(other.nanos) }
    }
}

fn div_ceil(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        if text.is_empty() || text.len() > TEXT_BYTES_MAX {
            return Err(QuantityError);
        }
        let (negative, rest) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError);
        }
        let scale = Scale::parse(suffix).ok_or(QuantityError)?;
        let mut digits: i128 = 0;
        let mut overflow = false;
        for digit in whole.bytes().chain(fraction.bytes()) {
            match digits.checked_mul(10).and_then(|d| d.checked_add(i128::from(digit - b'0'))) {
                Some(more) => digits = more,
                None => overflow = true,
            }
        }
        let nanos = if overflow { i128::MAX } else { scale.nanos(digits, fraction.len() as i32) };
        Ok(Quantity { nanos: if negative { -nanos } else { nanos } })
    }
}

/// What a suffix multiplies by.
#[derive(Clone, Copy)]
enum Scale {
    /// 2 to this power.
    Two(u32),
    /// 10 to this power.
    Ten(i32),
}

impl Scale {
    fn parse(suffix: &str) -> Option<Scale> {
        Some(match suffix {
            "" => Scale::Ten(0),
            "n" => Scale::Ten(-9),
            "u" => Scale::Ten(-6),
            "m" => Scale::Ten(-3),
            "k" => Scale::Ten(3),
            "M" => Scale::Ten(6),
            "G" => Scale::Ten(9),
            "T" => Scale::Ten(12),
            "P" => Scale::Ten(15),
            "E" => Scale::Ten(18),
            "Ki" => Scale::Two(10),
            "Mi" => Scale::Two(20),
            "Gi" => Scale::Two(30),
            "Ti" => Scale::Two(40),
            "Pi" => Scale::Two(50),
            "Ei" => Scale::Two(60),
            _ => {
                let exponent = suffix.strip_prefix(['e', 'E'])?;
                let exponent: i32 = exponent.parse().ok()?;
                Scale::Ten(exponent.clamp(-100, 100))
            }
        })
    }

    /// `digits` / 10^`decimals`, scaled, in billionths: rounded up, saturating.
    fn nanos(self, digits: i128, decimals: i32) -> i128 {
        let (base, power) = match self {
            Scale::Two(power) => (digits.checked_mul(1_i128 << power), 9 - decimals),
            Scale::Ten(power) => (Some(digits), 9 - decimals + power),
        };
        let factor = 10_i128.checked_pow(power.unsigned_abs());
        match (base, power) {
            (Some(0), _) => 0,
            (None, _) => i128::MAX,
            (Some(base), 0..) => factor.and_then(|f| base.checked_mul(f)).unwrap_or(i128::MAX),
            (Some(base), _) => factor.map_or(1, |f| div_ceil(base, f)),
        }
    }
}

impl fmt::Display for Quantity {
    /// Canonical: the largest suffix that keeps a whole number, binary if it is one of at least 1Ki.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.nanos;
        if nanos == 0 {
            return f.write_str("0");
        }
        for (power, suffix) in [(60, "Ei"), (50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
            let unit = NANO << power;
            if nanos % unit == 0 {
                return write!(f, "{}{suffix}", nanos / unit);
            }
        }
        let decimal =
            [(18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"), (0, ""), (-3, "m"), (-6, "u")];
        for (power, suffix) in decimal {
            let unit = 10_i128.pow((9 + power) as u32);
            if nanos % unit == 0 {
                return write!(f, "{}{suffix}", nanos / unit);
            }
        }
        write!(f, "{nanos}n")
    }
}

/// Bytes in a quantity, rounded up: `128Mi` is 134217728.
///
/// # Errors
/// If the text is no quantity, or negative.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    u64::try_from(text.parse::<Quantity>()?.units()).map_err(|_| QuantityError)
}

/// Thousandths of a CPU in a quantity, rounded up: `500m` is 500, `2` is 2000.
///
/// # Errors
/// If the text is no quantity, or negative.
pub fn parse_millicpu(text: &str) -> Result<u64, QuantityError> {
    u64::try_from(text.parse::<Quantity>()?.millis()).map_err(|_| QuantityError)
}

/// Order of two quantity texts; `None` unless both are quantities.
pub fn compare(left: &str, right: &str) -> Option<Ordering> {
    Some(left.parse::<Quantity>().ok()?.cmp(&right.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        let check = |text: &str, expect: Option<i128>| {
            assert_eq!(text.parse::<Quantity>().ok().map(|q| q.nanos), expect, "{text}");
        };
        check("0", Some(0));
        check("1", Some(NANO));
        check("500m", Some(NANO / 2));
        check("1.5", Some(NANO * 3 / 2));
        check(".5", Some(NANO / 2));
        check("5.", Some(5 * NANO));
        check("1Ki", Some(1024 * NANO));
        check("1.5Gi", Some(NANO * 3 * (1 << 29)));
        check("0.1Ki", Some(102_400_000_000));
        check("1k", Some(1000 * NANO));
        check("2e3", Some(2000 * NANO));
        check("2E-3", Some(2 * NANO / 1000));
        check("1E", Some(1_000_000_000_000_000_000 * NANO));
        check("-1", Some(-NANO));
        check("+1", Some(NANO));
        check("1n", Some(1));
        check("0.1n", Some(1));
        check("1e99", Some(i128::MAX));
        check("0e99", Some(0));
        check("1e-99", Some(1));
        for bad in ["", " ", "-", ".", "1..2", "1ki", "1 Mi", "Mi", "1e", "1ee3", "0x10", "1KiB", "１"] {
            check(bad, None);
        }
        check(&"9".repeat(65), None);
    }

    #[test]
    fn units() {
        let bytes = |text: &str, expect: Option<u64>| assert_eq!(parse_bytes(text).ok(), expect, "{text}");
        bytes("128Mi", Some(134_217_728));
        bytes("0.5", Some(1));
        bytes("-1", None);
        bytes("1e99", Some(i64::MAX as u64));
        let cpu = |text: &str, expect: Option<u64>| assert_eq!(parse_millicpu(text).ok(), expect, "{text}");
        cpu("500m", Some(500));
        cpu("2", Some(2000));
        cpu("0.0001", Some(1));
        cpu("1.25", Some(1250));
    }

    #[test]
    fn canonical() {
        let check = |text: &str, expect: &str| {
            assert_eq!(text.parse::<Quantity>().unwrap().to_string(), expect, "{text}");
        };
        check("1024Mi", "1Gi");
        check("1000m", "1");
        check("1500m", "1500m");
        check("0.5Gi", "512Mi");
        check("1000k", "1M");
        check("-1", "-1");
        check("3n", "3n");
    }

    /// What is written is what is read, and order is the order of the numbers.
    #[test]
    fn round_trips() {
        let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e2", "E-3"];
        let mut state: u64 = 7;
        let mut next = move |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for _ in 0..20_000 {
            let mut one = || {
                let suffix = suffixes[next(suffixes.len() as u64) as usize];
                match next(2) {
                    0 => format!("{}{suffix}", next(100_000)),
                    _ => format!("{}.{}{suffix}", next(1000), next(1000)),
                }
            };
            let (left, right) = (one(), one());
            let (a, b): (Quantity, Quantity) = (left.parse().unwrap(), right.parse().unwrap());
            assert_eq!(a.to_string().parse(), Ok(a), "{left}");
            assert_eq!(a.cmp(&b), a.nanos.cmp(&b.nanos), "{left} {right}");
            assert_eq!(compare(&left, &right), Some(a.cmp(&b)), "{left} {right}");
            assert!(
                a.units() as i128 * NANO >= a.nanos && (a.units() as i128 - 1) * NANO < a.nanos,
                "{left}"
            );
        }
    }
}
