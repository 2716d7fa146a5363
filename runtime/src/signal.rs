//! Signals by number and name, real-time ones too: engines stop systemd with `SIGRTMIN+3`.
//!
//! Source: signal(7). Numbers are the kernel's; 32 and 33 belong to the C library, so `RTMIN` is 34.

pub use rustix::process::Signal;

use crate::error::{Error, Result};
use crate::sys;

const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The signal with this number.
pub fn from_number(number: i32) -> Option<Signal> {
    Signal::from_named_raw(number)
        .or_else(|| (RTMIN..=RTMAX).contains(&number).then(|| sys::realtime(number)))
}

/// A signal by number or name, with or without `SIG`, in either case: `9`, `KILL`, `sigkill`, `RTMIN+3`, `SIGRTMAX-1`.
///
/// # Errors
/// `Invalid` for anything else.
pub fn parse(text: &str) -> Result<Signal> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |from: &str, sign: char| match name.strip_prefix(from)? {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    let named = || format!("SIG{name}").parse().ok().map(|known: nix::sys::signal::Signal| known as i32);
    let number = text
        .parse()
        .ok()
        .or_else(named)
        .or_else(|| offset("RTMIN", '+').map(|n| RTMIN + n).filter(|n| *n <= RTMAX))
        .or_else(|| offset("RTMAX", '-').map(|n| RTMAX - n).filter(|n| *n >= RTMIN));
    number.and_then(from_number).ok_or_else(|| Error::invalid("signal", format!("unknown {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("sigterm", 15),
            ("SIGWINCH", 28),
            ("37", 37),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmax-1", 63),
            ("RTMAX", 64),
        ] {
            assert_eq!(parse(text).unwrap().as_raw(), number, "{text}");
        }
        for bad in
            ["", "0", "-1", "32", "33", "65", "NOSUCH", "SIG", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN+"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
