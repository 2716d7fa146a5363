//! The text on disk.
//!
//! ```text
//! ~<crc32> <length>\n        over the length and the body, eight hexadecimal digits each
//! put <revision> pods/default/web-0 <length>\n{"apiVersion":…}\n
//! del <revision> nodes/node-1\n
//! ```
//! One write to the disk is one frame, so that it is there or not. A segment starts with a frame of its own:
//! `podyard-log 1 revision <n> records <m>\n`. All of it can be read with `less`.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::sync::Arc;

use api::{Key, resource_by_plural};

use crate::state::Change;

/// Longest body of a frame.
pub(crate) const BODY_BYTES_MAX: usize = 64 << 20;
/// `~`, checksum, space, length, newline.
pub(crate) const HEAD_BYTES: usize = 19;

/// Appends to `out` the line of one change.
pub(crate) fn encode(out: &mut Vec<u8>, key: &Key, revision: u64, bytes: Option<&[u8]>) {
    match bytes {
        None => out.extend_from_slice(format!("del {revision} {key}\n").as_bytes()),
        Some(bytes) => {
            out.extend_from_slice(format!("put {revision} {key} {}\n", bytes.len()).as_bytes());
            out.extend_from_slice(bytes);
            out.push(b'\n');
        }
    }
}

/// The line that starts a segment: a snapshot of so many records at this revision follows.
pub(crate) fn encode_start(revision: u64, records: usize) -> Vec<u8> {
    format!("podyard-log 1 revision {revision} records {records}\n").into_bytes()
}

/// Reads the line that starts a segment.
pub(crate) fn decode_start(body: &[u8]) -> Option<(u64, usize)> {
    let text = std::str::from_utf8(body).ok()?.strip_suffix('\n')?;
    let (revision, records) = text.strip_prefix("podyard-log 1 revision ")?.split_once(" records ")?;
    Some((revision.parse().ok()?, records.parse().ok()?))
}

/// A frame around `body`.
pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let length = format!("{:08x}", body.len());
    let mut frame = format!("~{:08x} {length}\n", checksum(&length, body)).into_bytes();
    frame.extend_from_slice(body);
    frame
}

fn checksum(length: &str, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length.as_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// The checksum and length that a frame's head names.
fn decode_head(head: &[u8]) -> Option<(u32, &str, usize)> {
    let text = std::str::from_utf8(head).ok()?;
    let (checksum, length) = text.strip_prefix('~')?.strip_suffix('\n')?.split_once(' ')?;
    let is_plain = |text: &str| text.len() == 8 && text.bytes().all(|it| it.is_ascii_hexdigit());
    if !is_plain(checksum) || !is_plain(length) {
        return None;
    }
    let bytes = usize::from_str_radix(length, 16).ok().filter(|bytes| *bytes <= BODY_BYTES_MAX)?;
    Some((u32::from_str_radix(checksum, 16).ok()?, length, bytes))
}

/// What comes next in a segment.
pub(crate) enum Next {
    /// A whole frame's body.
    Body,
    /// Nothing.
    End,
    /// No whole frame; these are all the bytes from there to the end.
    Broken(Vec<u8>),
}

/// Reads the next frame's body into `body`.
pub(crate) fn read(input: &mut impl Read, body: &mut Vec<u8>) -> io::Result<Next> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    input.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    if head.is_empty() {
        return Ok(Next::End);
    }
    body.clear();
    if let Some((expected, length, bytes)) = decode_head(&head) {
        input.by_ref().take(bytes as u64).read_to_end(body)?;
        if body.len() == bytes && checksum(length, body) == expected {
            return Ok(Next::Body);
        }
    }
    let mut rest = head;
    rest.append(body);
    input.read_to_end(&mut rest)?;
    Ok(Next::Broken(rest))
}

/// Whether a whole frame starts somewhere after the first byte.
pub(crate) fn has_later_frame(bytes: &[u8]) -> bool {
    let starts = (1..bytes.len()).filter(|at| bytes[*at] == b'~');
    starts.into_iter().any(|at| {
        let (head, rest) = bytes[at..].split_at(HEAD_BYTES.min(bytes.len() - at));
        decode_head(head).is_some_and(|(expected, length, bytes)| {
            rest.get(..bytes).is_some_and(|body| checksum(length, body) == expected)
        })
    })
}

/// Why a body with the right checksum cannot be understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It breaks the format.
    Malformed,
    /// It names a resource that this program does not know: a newer one wrote it.
    UnknownResource(String),
}

/// The changes in a body.
pub(crate) fn decode(mut body: &[u8]) -> Result<Vec<Change>, Unreadable> {
    let mut changes = Vec::new();
    while !body.is_empty() {
        let end = body.iter().position(|byte| *byte == b'\n').ok_or(Unreadable::Malformed)?;
        let line = std::str::from_utf8(&body[..end]).map_err(|_| Unreadable::Malformed)?;
        body = &body[end + 1..];
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<u64>().map_err(|_| Unreadable::Malformed);
        let (revision, key, bytes) = match words[..] {
            ["del", revision, key] => (number(revision)?, key, None),
            ["put", revision, key, length] => {
                let length = usize::try_from(number(length)?).map_err(|_| Unreadable::Malformed)?;
                let (bytes, rest) = body.split_at_checked(length).ok_or(Unreadable::Malformed)?;
                body = rest.strip_prefix(b"\n").ok_or(Unreadable::Malformed)?;
                (number(revision)?, key, Some(Arc::from(bytes)))
            }
            _ => return Err(Unreadable::Malformed),
        };
        changes.push(Change { revision, key: decode_key(key)?, bytes });
    }
    Ok(changes)
}

/// Reads what [`Key`] displays as.
pub(crate) fn decode_key(text: &str) -> Result<Key, Unreadable> {
    let mut parts = text.split('/');
    let kind = parts.next().unwrap_or_default();
    let (plural, group) = kind.split_once('.').unwrap_or((kind, ""));
    let resource =
        resource_by_plural(group, plural).ok_or_else(|| Unreadable::UnknownResource(kind.to_owned()))?;
    let (namespace, name) = match (resource.namespaced, parts.next(), parts.next()) {
        (true, Some(namespace), Some(name)) => (namespace, name),
        (false, Some(name), None) => ("", name),
        _ => return Err(Unreadable::Malformed),
    };
    if parts.next().is_some() {
        return Err(Unreadable::Malformed);
    }
    Ok(Key::new(resource, namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::key;

    #[test]
    fn frames_come_back() {
        let mut body = Vec::new();
        encode(&mut body, &key("a"), 7, Some(b"\n~x\n"));
        encode(&mut body, &Key::core("nodes", "", "n"), 8, None);
        let frame = frame(&body);
        let mut read_body = Vec::new();
        assert!(matches!(read(&mut frame.as_slice(), &mut read_body), Ok(Next::Body)));
        let changes = decode(&read_body).unwrap();
        assert_eq!((changes[0].revision, changes[0].bytes.as_deref()), (7, Some(&b"\n~x\n"[..])));
        assert_eq!((changes[1].revision, changes[1].key.to_string().as_str()), (8, "nodes/n"));
        assert_eq!(changes[1].bytes, None);
        assert!(has_later_frame(&[b"junk", frame.as_slice()].concat()));
        assert!(!has_later_frame(&frame), "the first byte does not count");
    }

    #[test]
    fn nonsense_is_refused() {
        for body in
            ["x\n", "put 1 pods/a/b 3\nab\n", "put 1 pods/a/b 2\nab", "del x pods/a/b\n", "del 1 pods/a\n"]
        {
            assert_eq!(decode(body.as_bytes()).unwrap_err(), Unreadable::Malformed, "{body:?}");
        }
        let unknown = decode(b"del 1 gizmos.example.com/a/b\n").unwrap_err();
        assert_eq!(unknown, Unreadable::UnknownResource("gizmos.example.com".into()));
        for start in ["", "podyard-log 2 revision 1 records 1\n", "podyard-log 1 revision x records 1\n"] {
            assert_eq!(decode_start(start.as_bytes()), None);
        }
    }
}
