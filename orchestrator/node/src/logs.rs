//! Reading a container's log: lines in CRI format, rotated files included, followed without polling.
//!
//! `2026-01-02T03:04:05.678901234Z stdout F text`: time, stream, F for a whole line or P for a part, content.
//! The shim rotates `<n>.log` to `<n>.log.1` (newest) … `.4`.
//!
//! Source: Kubernetes, "Logging Architecture"; CRI logging format.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::body::Bytes;
use jiff::Timestamp;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use crate::error::{Error, Result};
use crate::observed::Observed;

/// Rotated files that are read beside the current one.
const ROTATED: u32 = 4;
/// A longer line is cut: our shim never writes one.
const LINE_MAX: u64 = 64 << 10;
/// Pieces that wait for a slow reader.
const PIECES_MAX: usize = 16;
/// Bytes of one piece.
const PIECE_BYTES: usize = 32 << 10;

/// Which part of a log to read.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LogOptions {
    /// Go on with what is written later, until the container ends.
    pub follow: bool,
    /// The run before the present one.
    pub previous: bool,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// At most this many lines from the end of what is there.
    pub tail_lines: Option<u64>,
    /// Only lines that are not older than this.
    pub since: Option<Timestamp>,
    /// Stop after this many bytes.
    pub limit_bytes: Option<u64>,
}

/// A log being read, in pieces.
#[derive(Debug)]
pub struct Log {
    pieces: mpsc::Receiver<std::io::Result<Bytes>>,
}

impl Log {
    /// Begins to read. `runs` tells whether the container may still write.
    pub(crate) fn open(
        path: PathBuf,
        options: LogOptions,
        seen: watch::Receiver<Observed>,
        runs: impl Fn(&Observed) -> bool + Send + 'static,
    ) -> Log {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        tokio::spawn(async move {
            let mut writer = Writer { sender, buffer: Vec::new(), left: options.limit_bytes };
            if let Err(error) = read(&path, &options, seen, runs, &mut writer).await {
                // The reader may have left.
                let _ = writer.sender.send(Err(std::io::Error::other(error.chain()))).await;
            }
        });
        Log { pieces }
    }

    /// The next piece; none at the end.
    pub async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        self.pieces.recv().await
    }
}

/// The reader has left, or has got all it asked for.
struct Enough;

struct Writer {
    sender: mpsc::Sender<std::io::Result<Bytes>>,
    buffer: Vec<u8>,
    left: Option<u64>,
}

impl Writer {
    async fn line(&mut self, line: &Line<'_>, timestamps: bool) -> Result<(), Enough> {
        if timestamps && line.begins {
            self.bytes(line.time.as_bytes()).await?;
            self.bytes(b" ").await?;
        }
        self.bytes(line.content).await?;
        if line.whole { self.bytes(b"\n").await } else { Ok(()) }
    }

    async fn bytes(&mut self, bytes: &[u8]) -> Result<(), Enough> {
        let wanted = self
            .left
            .map_or(bytes.len(), |left| bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        self.buffer.extend_from_slice(&bytes[..wanted]);
        if let Some(left) = &mut self.left {
            *left -= wanted as u64;
            if *left == 0 {
                // What follows does not matter: the reader has all.
                let _ = self.flush().await;
                return Err(Enough);
            }
        }
        if self.buffer.len() >= PIECE_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Enough> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        self.sender.send(Ok(piece)).await.map_err(|_| Enough)
    }
}

/// A line as the shim wrote it.
#[derive(PartialEq, Eq, Debug)]
struct Line<'a> {
    time: &'a str,
    content: &'a [u8],
    /// The line ends here.
    whole: bool,
    /// It is no continuation of a part.
    begins: bool,
}

fn parse(raw: &[u8], after_part: bool) -> Option<Line<'_>> {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    let mut parts = raw.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let _stream = parts.next()?;
    let tag = parts.next()?;
    let content = parts.next().unwrap_or_default();
    Some(Line { time, content, whole: !tag.starts_with(b"P"), begins: !after_part })
}

/// A file of the log, with a line that is not yet complete.
struct Tail {
    file: BufReader<File>,
    partial: Vec<u8>,
    after_part: bool,
}

impl Tail {
    fn new(file: File) -> Tail {
        Tail { file: BufReader::new(file), partial: Vec::new(), after_part: false }
    }

    /// The next complete raw line.
    fn raw(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let limit = LINE_MAX.saturating_sub(self.partial.len() as u64).max(1);
        self.file.by_ref().take(limit).read_until(b'\n', &mut self.partial)?;
        if self.partial.ends_with(b"\n") || self.partial.len() as u64 >= LINE_MAX {
            return Ok(Some(std::mem::take(&mut self.partial)));
        }
        Ok(None)
    }
}

async fn read(
    path: &Path,
    options: &LogOptions,
    mut seen: watch::Receiver<Observed>,
    runs: impl Fn(&Observed) -> bool,
    writer: &mut Writer,
) -> Result<()> {
    // Watched before it is read: what is written meanwhile wakes us.
    let watch = if options.follow { Some(Watch::new(path)?) } else { None };
    let failed = |error| Error::io(format!("read {}", path.display()), error);
    let mut tail: Option<Tail> = None;
    let mut last_lines: VecDeque<Vec<u8>> = VecDeque::new();
    let keep = options.tail_lines.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX));
    let rotated = (1..=ROTATED).rev().map(|number| PathBuf::from(format!("{}.{number}", path.display())));
    let mut after_part = false;
    for file in rotated.chain([path.to_owned()]) {
        let Ok(file) = File::open(&file) else { continue };
        let mut opened = Tail::new(file);
        while let Some(raw) = opened.raw().map_err(failed)? {
            if !young_enough(&raw, options.since) {
                continue;
            }
            match keep {
                Some(keep) => {
                    last_lines.push_back(raw);
                    // Parts belong to their line: count whole ones.
                    while whole_lines(&last_lines) > keep {
                        last_lines.pop_front();
                    }
                }
                None => {
                    if write(writer, &raw, &mut after_part, options).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        tail = Some(opened);
    }
    for raw in last_lines {
        if write(writer, &raw, &mut after_part, options).await.is_err() {
            return Ok(());
        }
    }
    if writer.flush().await.is_err() {
        return Ok(());
    }
    let Some(mut watch) = watch else { return Ok(()) };
    loop {
        // Asked before reading: what it wrote before it ended is there to be read.
        let alive = runs(&seen.borrow_and_update());
        loop {
            if tail.is_none()
                && let Ok(file) = File::open(path)
            {
                tail = Some(Tail::new(file));
            }
            let Some(current) = &mut tail else { break };
            current.after_part = after_part;
            while let Some(raw) = current.raw().map_err(failed)? {
                if write(writer, &raw, &mut after_part, options).await.is_err() {
                    return Ok(());
                }
            }
            if !was_rotated(current, path) {
                break;
            }
            tail = None;
        }
        if writer.flush().await.is_err() || !alive {
            return Ok(());
        }
        tokio::select! {
            outcome = watch.changed() => outcome?,
            changed = seen.changed() => if changed.is_err() { return Ok(()) },
            () = writer.sender.closed() => return Ok(()),
        }
    }
}

fn whole_lines(lines: &VecDeque<Vec<u8>>) -> usize {
    lines.iter().filter(|raw| parse(raw, false).is_none_or(|line| line.whole)).count()
}

async fn write(
    writer: &mut Writer,
    raw: &[u8],
    after_part: &mut bool,
    options: &LogOptions,
) -> Result<(), Enough> {
    let Some(line) = parse(raw, *after_part) else { return Ok(()) };
    *after_part = !line.whole;
    writer.line(&line, options.timestamps).await
}

fn young_enough(raw: &[u8], since: Option<Timestamp>) -> bool {
    let Some(since) = since else { return true };
    let time = parse(raw, false).and_then(|line| line.time.parse::<Timestamp>().ok());
    time.is_none_or(|time| time >= since)
}

/// Whether the log goes on in another file, or was cut.
fn was_rotated(tail: &mut Tail, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (tail.file.get_ref().metadata(), std::fs::metadata(path)) else {
        return false;
    };
    if (ours.ino(), ours.dev()) != (there.ino(), there.dev()) {
        return true;
    }
    let position = tail.file.stream_position().unwrap_or(0);
    if there.len() < position {
        // Cut in place: begin again. A file that cannot be sought is read to its end.
        let _ = tail.file.seek(SeekFrom::Start(0));
    }
    false
}

/// Wakes when something happens in the log's directory. Source: inotify(7).
struct Watch {
    fd: AsyncFd<std::os::fd::OwnedFd>,
}

impl Watch {
    fn new(path: &Path) -> Result<Watch> {
        let dir = path.parent().unwrap_or(path);
        let what = || format!("watch {}", dir.display());
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).map_err(|errno| Error::io(what(), errno))?;
        let events =
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, dir, events).map_err(|errno| Error::io(what(), errno))?;
        #[expect(
            deprecated,
            reason = "an OwnedFd stays open for as long as it is registered; register is unsafe"
        )]
        let fd = AsyncFd::try_new(fd).map_err(|error| Error::io(what(), error))?;
        Ok(Watch { fd })
    }

    async fn changed(&mut self) -> Result<()> {
        let failed = |error| Error::io("read inotify", error);
        let mut guard = self.fd.readable().await.map_err(failed)?;
        // What happened does not matter: the file tells.
        let mut buffer = [0u8; 4096];
        while let Ok(Ok(count)) = guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?)) {
            if count == 0 {
                break;
            }
        }
        // A program that writes much wakes us once per batch, not once per line.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    async fn all(path: &Path, options: LogOptions) -> String {
        let (_keep, seen) = watch::channel(Observed::default());
        let mut log = Log::open(path.to_owned(), options, seen, |_| false);
        let mut text = Vec::new();
        while let Some(piece) = log.next().await {
            text.extend_from_slice(&piece.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    fn log(dir: &Path) -> PathBuf {
        let path = dir.join("0.log");
        std::fs::write(dir.join("0.log.1"), "2026-01-01T00:00:00.1Z stdout F one\n").unwrap();
        std::fs::write(
            &path,
            "2026-01-01T00:00:01.0Z stderr F two\n2026-01-01T00:00:02Z stdout P thr\n2026-01-01T00:00:02Z stdout F ee\n",
        )
        .unwrap();
        path
    }

    #[tokio::test]
    async fn parts_of_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = log(dir.path());
        let plain = LogOptions::default();
        assert_eq!(all(&path, plain.clone()).await, "one\ntwo\nthree\n");
        assert_eq!(all(&path, LogOptions { tail_lines: Some(1), ..plain.clone() }).await, "three\n");
        assert_eq!(all(&path, LogOptions { tail_lines: Some(0), ..plain.clone() }).await, "");
        assert_eq!(all(&path, LogOptions { limit_bytes: Some(5), ..plain.clone() }).await, "one\nt");
        let since = "2026-01-01T00:00:01Z".parse().ok();
        assert_eq!(all(&path, LogOptions { since, ..plain.clone() }).await, "two\nthree\n");
        let stamped = all(&path, LogOptions { timestamps: true, tail_lines: Some(2), ..plain.clone() }).await;
        assert_eq!(stamped, "2026-01-01T00:00:01.0Z two\n2026-01-01T00:00:02Z three\n");
        assert_eq!(all(&dir.path().join("9.log"), plain).await, "");
    }

    #[tokio::test]
    async fn following_sees_what_comes_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = log(dir.path());
        let (world, seen) = watch::channel(Observed { recorded: true, ..Observed::default() });
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut log = Log::open(path.clone(), options, seen, |seen| seen.recorded);
        let append = |text: &str| {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let mut text = String::new();
        assert_eq!(log.next().await.unwrap().unwrap(), "one\ntwo\nthree\n");
        append("2026-01-01T00:00:03Z stdout F four\n");
        let first = log.next().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&first).unwrap());
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        append("2026-01-01T00:00:04Z stdout F five\n");
        world.send_replace(Observed::default());
        while let Some(piece) = log.next().await {
            text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
        assert_eq!(text, "four\nfive\n");
    }
}
