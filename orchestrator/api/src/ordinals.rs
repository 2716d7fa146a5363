//! Ordinals that a set of pets leaves out: the annotation `podyard.io/reserved-ordinals`.

use std::collections::BTreeSet;

/// The annotation: ordinals separated by commas. They are skipped, and the next ones used in their place.
pub const RESERVED_ORDINALS: &str = "podyard.io/reserved-ordinals";

/// Reads `1,3`. The empty text reserves none; `None` if it cannot be read.
pub fn parse_ordinals(text: &str) -> Option<BTreeSet<u64>> {
    if text.trim().is_empty() {
        return Some(BTreeSet::new());
    }
    let ordinal = |word: &str| {
        let word = word.trim();
        let is_plain =
            word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
        word.parse::<i32>().ok().filter(|_| is_plain).and_then(|ordinal| u64::try_from(ordinal).ok())
    };
    text.split(',').map(ordinal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_are_numbers_separated_by_commas() {
        let check = |text: &str, expect: Option<&[u64]>| {
            assert_eq!(parse_ordinals(text), expect.map(|all| all.iter().copied().collect()), "{text:?}");
        };
        check("", Some(&[]));
        check("1,3", Some(&[1, 3]));
        check(" 3 , 1 ", Some(&[1, 3]));
        check("0,2147483647", Some(&[0, 2_147_483_647]));
        for odd in ["a", "1,", ",", "-1", "+1", "01", "1 3", "1-3", "2147483648", "1;3"] {
            check(odd, None);
        }
    }
}
