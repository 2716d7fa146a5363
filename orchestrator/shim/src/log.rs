//! Container logs in CRI format, rotated by size.
//!
//! ```text
//! 2026-11-22T09:44:01.000000042Z stdout F a whole line
//! 2026-11-22T09:44:01.000000099Z stderr P a piece of a line longer than 16 KiB
//!
//! <log>  being written    <log>.1  the one before    …    <log>.4  the oldest
//! ```
//!
//! Source: Kubernetes, "CRI: Log management for container stdout/stderr streams".
#![forbid(unsafe_code)]

use crate::clock;
use crate::sys::{Call, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest piece of a line, in bytes.
const PIECE_BYTES_MAX: usize = 16 << 10;
/// A log file is rotated when it has grown to this, in bytes.
const FILE_BYTES_MAX: u64 = 10 << 20;
/// Files kept, the current one included.
const FILES_MAX: u32 = 5;

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Cuts one stream into lines and pieces. Pure.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    /// Bytes after the last line break; less than a piece.
    rest: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: Stream) -> Lines {
        Lines { stream, rest: Vec::new() }
    }

    /// Appends to `out` what `bytes` completes.
    pub(crate) fn push(&mut self, bytes: &[u8], now_ns: u64, out: &mut Vec<u8>) {
        let stamp = clock::rfc3339(now_ns);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(line) => self.cut(line, &stamp, out).end(&stamp, out),
                None => drop(self.cut(piece, &stamp, out)),
            }
        }
    }

    /// Appends to `out` what is left when the stream ends without a line break.
    pub(crate) fn finish(&mut self, now_ns: u64, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            self.end(&clock::rfc3339(now_ns), out);
        }
        self.rest = Vec::new();
    }

    /// Takes bytes without a line break; full pieces go out.
    fn cut(&mut self, mut bytes: &[u8], stamp: &str, out: &mut Vec<u8>) -> &mut Lines {
        while self.rest.len() + bytes.len() > PIECE_BYTES_MAX {
            let (now, later) = bytes.split_at(PIECE_BYTES_MAX - self.rest.len());
            self.rest.extend_from_slice(now);
            write_line(out, stamp, self.stream, 'P', &self.rest);
            self.rest.clear();
            bytes = later;
        }
        self.rest.extend_from_slice(bytes);
        self
    }

    fn end(&mut self, stamp: &str, out: &mut Vec<u8>) {
        write_line(out, stamp, self.stream, 'F', &self.rest);
        self.rest.clear();
    }
}

fn write_line(out: &mut Vec<u8>, stamp: &str, stream: Stream, tag: char, text: &[u8]) {
    out.extend_from_slice(format!("{stamp} {} {tag} ", stream.name()).as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// A container's log on disk.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    bytes_max: u64,
}

impl Log {
    /// Opens the log for appending; made if missing, never through a link.
    pub(crate) fn open(path: &Path) -> Result<Log> {
        Log::open_limited(path, FILE_BYTES_MAX)
    }

    fn open_limited(path: &Path, bytes_max: u64) -> Result<Log> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .call(|| format!("open({}, O_APPEND|O_CREAT)", path.display()))?;
        let size = file.metadata().call(|| format!("stat {}", path.display()))?.size();
        Ok(Log { path: path.to_owned(), file, size, bytes_max })
    }

    /// Appends whole lines, in one write. What the disk refuses is lost: the container must not wait for it.
    pub(crate) fn append(&mut self, lines: &[u8]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if self.size > 0 && self.size + lines.len() as u64 > self.bytes_max {
            self.rotate()?;
        }
        self.size += lines.len() as u64;
        self.file.write_all(lines).call(|| format!("write({})", self.path.display()))
    }

    fn rotate(&mut self) -> Result<()> {
        for number in (1..FILES_MAX).rev() {
            let from = if number == 1 { self.path.clone() } else { numbered(&self.path, number - 1) };
            match fs::rename(&from, numbered(&self.path, number)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other.call(|| format!("rename({})", from.display()))?,
            }
        }
        *self = Log::open_limited(&self.path, self.bytes_max)?;
        Ok(())
    }
}

/// Name of a rotated log: 1 is the newest.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(pieces: &[&[u8]]) -> String {
        let mut lines = Lines::new(Stream::Stdout);
        let mut out = Vec::new();
        pieces.iter().for_each(|piece| lines.push(piece, 0, &mut out));
        lines.finish(0, &mut out);
        String::from_utf8(out).unwrap().replace("1970-01-01T00:00:00.000000000Z stdout ", "")
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        for (pieces, expect) in [
            (&[b"a\nb\n".as_slice()][..], "F a\nF b\n"),
            (&[b"a", b"b\n", b"c"], "F ab\nF c\n"),
            (&[b"\n\n"], "F \nF \n"),
            (&[], ""),
        ] {
            assert_eq!(format(pieces), expect);
        }
    }

    #[test]
    fn long_lines_become_pieces() {
        let full = vec![b'x'; PIECE_BYTES_MAX];
        let text = String::from_utf8(full.clone()).unwrap();
        assert_eq!(format(&[&full, b"\n"]), format!("F {text}\n"));
        assert_eq!(format(&[&full, b"y\n"]), format!("P {text}\nF y\n"));
        assert_eq!(format(&[&[full.clone(), full].concat(), b"z"]), format!("P {text}\nP {text}\nF z\n"));
    }

    #[test]
    fn rotation_keeps_the_newest_files() {
        let dir = std::env::temp_dir().join(format!("podyard-log-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        let mut log = Log::open_limited(&path, 10).unwrap();
        for number in 0..8 {
            log.append(format!("line {number}\n").as_bytes()).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "line 7\n");
        assert_eq!(read(&numbered(&path, 1)), "line 6\n");
        assert_eq!(read(&numbered(&path, 4)), "line 3\n");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), FILES_MAX as usize);
        fs::remove_dir_all(dir).unwrap();
    }
}
