//! Forms of names. Source: RFC 1123, RFC 1035, RFC 6335; Kubernetes documentation, "Object Names and IDs".

use crate::selector::is_dns_subdomain;

/// A rule for a name: the reason if it is broken.
pub(super) type Rule = fn(&str) -> Result<(), &'static str>;

/// A DNS label: at most 63 lower-case letters, digits and `-`.
pub(super) fn dns_label(name: &str) -> Result<(), &'static str> {
    if name.len() > 63 {
        return Err("must be no more than 63 characters");
    }
    if name.contains('.') || !is_dns_subdomain(name) {
        return Err(
            "must be an RFC 1123 label: lower-case letters, digits or '-', with a letter or digit at both \
                    ends",
        );
    }
    Ok(())
}

/// A DNS label that starts with a letter.
pub(super) fn dns_1035_label(name: &str) -> Result<(), &'static str> {
    dns_label(name)?;
    if name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Ok(());
    }
    Err("must be an RFC 1035 label: lower-case letters, digits or '-', starting with a letter")
}

/// Dot-separated DNS labels, at most 253 characters.
pub(super) fn dns_subdomain(name: &str) -> Result<(), &'static str> {
    if name.len() > 253 {
        return Err("must be no more than 253 characters");
    }
    if is_dns_subdomain(name) {
        return Ok(());
    }
    Err(
        "must be an RFC 1123 subdomain: lower-case letters, digits, '-' or '.', with a letter or digit at both ends",
    )
}

/// A port name: at most 15 characters, at least one letter, no `--`.
pub(super) fn port_name(name: &str) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = !name.is_empty()
        && name.len() <= 15
        && name.contains(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| plain(c) || c == '-')
        && name.starts_with(plain)
        && name.ends_with(plain)
        && !name.contains("--");
    if good {
        return Ok(());
    }
    Err("must be at most 15 lower-case letters, digits or '-', with at least one letter and no '--'")
}

/// A key of a label, annotation, taint or finalizer.
pub(super) fn qualified(name: &str) -> Result<(), &'static str> {
    if crate::selector::is_label_key(name) {
        return Ok(());
    }
    Err(
        "must be a name of at most 63 letters, digits, '-', '_' or '.', optionally after a DNS subdomain and '/'",
    )
}

/// A value of a label.
pub(super) fn label_value(value: &str) -> Result<(), &'static str> {
    if crate::selector::is_label_value(value) {
        return Ok(());
    }
    Err("must be empty, or at most 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends")
}

/// The name of an environment variable: printable, without `=`.
pub(super) fn variable(name: &str) -> Result<(), &'static str> {
    if name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Ok(());
    }
    Err("must consist of printable ASCII characters other than '='")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let check = |rule: Rule, good: &[&str], bad: &[&str]| {
            good.iter().for_each(|name| assert!(rule(name).is_ok(), "{name}"));
            bad.iter().for_each(|name| assert!(rule(name).is_err(), "{name}"));
        };
        let long = "a".repeat(64);
        check(dns_label, &["a", "a-b", "0a"], &["", "-a", "a-", "A", "a.b", "a_b", &long]);
        check(dns_1035_label, &["a0"], &["0a", ""]);
        check(dns_subdomain, &["a.b", &long], &["", "a..b", ".a", &"a".repeat(254)]);
        check(port_name, &["http", "a-1"], &["", "80", "a--b", "HTTP", "-a", "a".repeat(16).as_str()]);
        check(qualified, &["a", "a.b/c", "A_b"], &["", "/a", "a/", "a/b/c", "A.b/c"]);
        check(variable, &["A", "a.b-c", "1x"], &["a=b", "ä", "a\n"]);
    }
}
