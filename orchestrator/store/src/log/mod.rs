//! The store on disk: an append-only log of checksummed frames, and everything in memory.
//!
//! ```text
//! <dir>/lock          held while the store is open
//! <dir>/log.7         the segment: start, snapshot, changes
//! <dir>/log.8.tmp     a compaction under way; swept when the store is opened
//! ```
//!
//! **Guarantees.** What has been acknowledged survives a crash of the process or the machine at any instant. What has
//! not is there as a whole or not at all, and nobody has seen it. Revisions never go back. The segment stays shorter
//! than twice the live records and a constant. A full disk takes nothing and harms nothing; a failing disk makes the
//! store read-only, because after a failed fdatasync nobody knows what is on it.
#![forbid(unsafe_code)]

mod disk;
mod frame;
mod queue;
mod replay;
mod writer;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use replay::{OpenError, Report};

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use api::{Key, Resource};
use tokio::sync::oneshot;

use crate::Store;
use crate::history::Limits;
use crate::record::{Record, Scope};
use crate::state::{Shared, State};
use crate::transaction::{Commit, Txn, check_transaction};
use crate::watch::{Compacted, Watch};
use disk::{Directory, Disk};
use queue::{Queue, Request};
use replay::replay;
use writer::{Writer, segment_name, write_snapshot};

/// Garbage that is not worth a compaction.
const GARBAGE_BYTES_MIN: u64 = 1 << 20;

/// The durable [`Store`]. Dropping it finishes what is queued and frees the directory.
pub struct Log {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    writer: Option<JoinHandle<()>>,
    opened: Report,
    failure: Arc<OnceLock<Arc<str>>>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("opened", &self.opened).finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the store in `directory`, or makes it. An unfinished write at the end is cut off: see [`Log::opened`].
    ///
    /// # Errors
    /// See [`OpenError`]. A store that is refused has not been changed.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Self::open_on(Box::new(lock(directory)?), Limits::default(), GARBAGE_BYTES_MIN)
    }

    fn open_on(mut disk: Box<dyn Disk>, limits: Limits, garbage_bytes_min: u64) -> Result<Self, OpenError> {
        let io = |call: &str| {
            let call = call.to_owned();
            move |source| OpenError::Io { call, source }
        };
        let (state, number, opened) = match newest_segment(disk.as_ref())? {
            Some(number) => {
                let (state, report) = replay(disk.as_ref(), &segment_name(number), limits)?;
                (Some(state), number, report)
            }
            None => {
                let segment = segment_name(1);
                let report =
                    Report { segment, bytes: 0, live_bytes: 0, records: 0, revision: 0, torn_bytes: 0 };
                (None, 1, report)
            }
        };
        let name = segment_name(number);
        let is_new = state.is_none();
        let shared = Shared::new(state.unwrap_or_else(|| State::new(limits)));
        let (segment, len) = if is_new {
            write_snapshot(disk.as_mut(), &shared, number).map_err(io(&format!("create {name}")))?
        } else {
            let mut segment = disk.append(&name).map_err(io(&format!("open {name}")))?;
            if opened.torn_bytes > 0 {
                segment.truncate(opened.bytes).map_err(io(&format!("cut {name}")))?;
            }
            // What was read may be in memory only: a write whose acknowledgement a crash prevented.
            segment.sync().map_err(io(&format!("sync {name}")))?;
            (segment, opened.bytes)
        };
        sweep(disk.as_mut(), number).map_err(io("sweep old segments"))?;
        disk.sync_names().map_err(io("sync the names of the segments"))?;

        let (queue, failure) = (Arc::new(Queue::default()), Arc::new(OnceLock::new()));
        let writer = Writer {
            shared: Arc::clone(&shared),
            queue: Arc::clone(&queue),
            disk,
            segment,
            number,
            len,
            garbage_bytes_min,
            look_at: 0,
            failure: Arc::clone(&failure),
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .stack_size(256 << 10)
            .spawn(move || writer.run())
            .map_err(io("start the writer thread"))?;
        Ok(Self { shared, queue, writer: Some(writer), opened, failure })
    }

    /// What was found when it was opened.
    #[must_use]
    pub fn opened(&self) -> &Report {
        &self.opened
    }

    /// Why the store is read-only, if a failing disk has made it so.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(|failure| &**failure)
    }

    /// Reads everything back from the disk and compares it with memory, between two writes. Blocks the thread.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] if they differ.
    pub fn check(&self) -> Result<Report, OpenError> {
        let (sender, receiver) = oneshot::channel();
        let closed = || OpenError::Io { call: "check".to_owned(), source: io::ErrorKind::BrokenPipe.into() };
        self.queue.push(Request::Check(sender)).map_err(|_| closed())?;
        receiver.blocking_recv().map_err(|_| closed())?
    }
}

/// Checks the store in `directory`, which no daemon may have open, and changes nothing.
///
/// # Errors
/// See [`OpenError`].
pub fn check(directory: &Path) -> Result<Report, OpenError> {
    let disk = lock(directory)?;
    let number = newest_segment(&disk)?.ok_or_else(|| OpenError::Io {
        call: format!("find a segment in {}", directory.display()),
        source: io::ErrorKind::NotFound.into(),
    })?;
    Ok(replay(&disk, &segment_name(number), Limits { events_max: 1, bytes_max: 0 })?.1)
}

fn lock(directory: &Path) -> Result<Directory, OpenError> {
    Directory::open(directory).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked,
        _ => OpenError::Io { call: format!("open {}", directory.display()), source },
    })
}

/// The number of the segment that holds everything: it got its name only when it was complete.
fn newest_segment(disk: &dyn Disk) -> Result<Option<u64>, OpenError> {
    let names = disk.names().map_err(|source| OpenError::Io { call: "list segments".to_owned(), source })?;
    Ok(names.iter().filter_map(|name| name.strip_prefix("log.")?.parse().ok()).max())
}

/// Removes older segments and unfinished ones.
fn sweep(disk: &mut dyn Disk, number: u64) -> io::Result<()> {
    for name in disk.names()? {
        let Some(rest) = name.strip_prefix("log.") else { continue };
        if rest.ends_with(".tmp") || rest.parse::<u64>().is_ok_and(|other| other < number) {
            disk.remove(&name)?;
        }
    }
    Ok(())
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join(); // If it has panicked, it has told everybody who waits.
        }
    }
}

impl Store for Log {
    fn get(&self, key: &Key) -> Option<Record> {
        self.shared.get(key)
    }

    fn list(&self, resource: &'static Resource, namespace: Option<&str>) -> (u64, Vec<Record>) {
        self.shared.list(resource, namespace)
    }

    fn revision(&self) -> u64 {
        self.shared.revision()
    }

    fn commit(&self, transaction: Txn) -> Commit {
        if let Err(refused) = check_transaction(&transaction) {
            return Commit::done(Err(refused));
        }
        let (sender, commit) = Commit::waiting();
        match self.queue.push(Request::Commit(transaction, sender)) {
            Ok(()) => commit,
            Err((_, error)) => Commit::done(Err(error)),
        }
    }

    fn watch(&self, scope: Scope, since: u64) -> Result<Watch, Compacted> {
        Watch::new(&self.shared, scope, since)
    }
}

/// Whether the name of a key survives being written: the format has no escapes, and admitted names need none.
pub(crate) fn is_writable(key: &Key) -> bool {
    let text = key.to_string();
    !text.contains(|it: char| it.is_whitespace() || it.is_control())
        && frame::decode_key(&text).is_ok_and(|decoded| decoded == *key)
}

/// Most bytes of records in one transaction.
pub(crate) const TRANSACTION_BYTES_MAX: usize = frame::BODY_BYTES_MAX / 2;
