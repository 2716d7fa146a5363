//! Who asks: root over the unix socket, or a node over the fabric, known by its token.

use std::net::IpAddr;

use futures::future::BoxFuture;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Root on this host, or the daemon asking one of its agents: may do everything.
    Root,
    /// The agent of the node of this name: may do what [`crate::authorize`] says.
    Node(String),
}

/// Who may come in over TCP. The daemon and its agents implement it over their tokens.
pub trait Door: Send + Sync + 'static {
    /// Whose token this is. Must take the same time for every wrong token: see [`is_same_secret`].
    fn identify(&self, token: &str) -> Option<Identity>;

    /// Whether one of those that have a token lives at this address: it gets room of its own, which strangers cannot
    /// take up.
    fn is_expected_from(&self, address: IpAddr) -> bool;

    /// Completes when this token is worth nothing any more: connections that were opened with it end.
    fn revoked(&self, token: &str) -> BoxFuture<'static, ()>;

    /// A node says that it is alive.
    fn heartbeat(&self, node: &str);
}

/// Compares two secrets in a time that depends on their lengths only.
pub fn is_same_secret(one: &[u8], other: &[u8]) -> bool {
    let difference = one.iter().zip(other).fold(0u8, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    one.len() == other.len() && std::hint::black_box(difference) == 0
}

/// The token of an `Authorization: Bearer …` header. Source: RFC 6750 section 2.1; the scheme's case is free, RFC 9110
/// section 11.1.
pub(crate) fn bearer(headers: &hyper::HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(hyper::header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};

    #[test]
    fn secrets() {
        assert!(is_same_secret(b"abc", b"abc"));
        for other in ["", "ab", "abd", "abcd", "xbc"] {
            assert!(!is_same_secret(b"abc", other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn bearers() {
        let check = |text: &'static str, expect: Option<&str>| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(text))]);
            assert_eq!(bearer(&headers), expect, "{text}");
        };
        check("Bearer abc", Some("abc"));
        check("bearer  abc", Some("abc"));
        check("Basic abc", None);
        check("Bearer", None);
        check("Bearer ", None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
