//! Paths of resources and objects, with names percent-encoded: whatever a user types stays one segment.

use std::fmt::Write as _;

use api::Resource;

/// Percent-encodes one path segment or query value. Source: RFC 3986 section 2.3, unreserved characters.
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => _ = write!(out, "%{byte:02X}"),
        }
        out
    })
}

/// `/apis/apps/v1/namespaces/web/replicasets/front/scale` and the like. No namespace means all of them.
pub fn resource_path(
    resource: &Resource,
    namespace: Option<&str>,
    name: Option<&str>,
    subresource: Option<&str>,
) -> String {
    let mut path = match resource.group {
        "" => format!("/api/{}", resource.version),
        group => format!("/apis/{group}/{}", resource.version),
    };
    if let (true, Some(namespace)) = (resource.namespaced, namespace) {
        _ = write!(path, "/namespaces/{}", encode(namespace));
    }
    path.push('/');
    path.push_str(resource.plural);
    for piece in [name, subresource].into_iter().flatten() {
        path.push('/');
        path.push_str(&encode(piece));
    }
    path
}

/// Joins the parameters that are there.
pub(crate) fn with_query(path: String, parameters: &[(&str, Option<String>)]) -> String {
    let given: Vec<String> = parameters
        .iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}={}", encode(value))))
        .collect();
    if given.is_empty() { path } else { format!("{path}?{}", given.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let pods = api::resource_by_any_name("po").unwrap();
        let sets = api::resource_by_any_name("rs").unwrap();
        let nodes = api::resource_by_any_name("no").unwrap();
        assert_eq!(resource_path(pods, None, None, None), "/api/v1/pods");
        assert_eq!(
            resource_path(pods, Some("a"), Some("../b?c"), Some("log")),
            "/api/v1/namespaces/a/pods/..%2Fb%3Fc/log"
        );
        assert_eq!(resource_path(sets, Some("a"), None, None), "/apis/apps/v1/namespaces/a/replicasets");
        assert_eq!(resource_path(nodes, Some("a"), Some("n"), None), "/api/v1/nodes/n");
        assert_eq!(with_query("/x".into(), &[("a", None), ("b", Some("c=d,e".into()))]), "/x?b=c%3Dd%2Ce");
    }
}
