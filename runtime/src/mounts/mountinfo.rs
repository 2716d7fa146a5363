//! The mount table, as far as mount(2) leaves it to its caller to know what lies below a mount.
//! Source: proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{Error, Kind, Result};

/// A mount of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) parent: u64,
    /// Where it is, as this process sees it.
    pub(super) point: PathBuf,
}

/// The mounts below the one with this id, each after the one it is mounted on.
pub(super) fn below(table: &str, id: u64) -> Result<Vec<Entry>> {
    let entries = table.lines().map(entry).collect::<Result<Vec<_>>>()?;
    let mut found: Vec<Entry> = Vec::new();
    let mut parents = vec![id];
    while let Some(parent) = parents.pop() {
        // The root's parent is outside, or itself.
        for entry in entries.iter().filter(|e| e.parent == parent && e.id != id && e.id != parent) {
            parents.push(entry.id);
            found.push(entry.clone());
        }
    }
    Ok(found)
}

/// Where filesystems of this kind are, the last mounted first.
pub(super) fn places_of(table: &str, fs: &str) -> Result<Vec<PathBuf>> {
    let of_kind = |line: &&str| {
        let kind = line.split_once(" - ").and_then(|(_, end)| end.split(' ').next());
        kind == Some(fs)
    };
    table.lines().rev().filter(of_kind).map(|line| entry(line).map(|entry| entry.point)).collect()
}

fn entry(line: &str) -> Result<Entry> {
    let fields: Vec<&str> = line.split(' ').collect();
    let number = |n: usize| fields.get(n).and_then(|text| text.parse().ok());
    match (number(0), number(1), fields.get(4)) {
        (Some(id), Some(parent), Some(point)) => Ok(Entry { id, parent, point: unescaped(point) }),
        _ => Err(Error::new(Kind::Internal, format!("mountinfo: {line:?}"))),
    }
}

/// Blanks and backslashes are written as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match digits {
            Some(digits) => {
                bytes.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below() {
        let table = "20 1 8:1 / / rw - ext4 a rw\n30 20 0:5 / /c rw master:1 - tmpfs t rw\n\
                     31 30 0:6 / /c/a\\040b rw - tmpfs t rw\n32 31 0:7 / /c/a\\040b/\\134 rw - tmpfs t rw\n\
                     33 20 0:8 / /d rw - tmpfs t rw\n";
        let points = |id| below(table, id).unwrap().into_iter().map(|e| e.point).collect::<Vec<_>>();
        assert_eq!(points(30), [PathBuf::from("/c/a b"), PathBuf::from("/c/a b/\\")]);
        assert_eq!(points(33), Vec::<PathBuf>::new());
        assert_eq!(points(20).len(), 4);
        assert!(below("20 x / /", 20).is_err());
    }
}
