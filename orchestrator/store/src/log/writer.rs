//! The one thread that writes.
//!
//! ```text
//! queue ──► take what waits ──► stage ──► one write, one fdatasync ──► publish ──► answer ──► compact if worth it
//! ```
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, OnceLock};

use crate::history::Limits;
use crate::log::disk::{Disk, Segment};
use crate::log::frame;
use crate::log::queue::{Queue, Request};
use crate::log::replay::{OpenError, Report, live_bytes, replay};
use crate::state::{Shared, Stage};
use crate::transaction::CommitError;

/// Bytes of records in one frame of a snapshot.
const SNAPSHOT_FRAME_BYTES: usize = 256 << 10;

/// The open segment and the state it stands for.
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) disk: Box<dyn Disk>,
    pub(crate) segment: Box<dyn Segment>,
    /// Names the segment.
    pub(crate) number: u64,
    /// Its length, all of it durable.
    pub(crate) len: u64,
    /// Garbage that is not worth a compaction.
    pub(crate) garbage_bytes_min: u64,
    /// At this length a look at the garbage is due.
    pub(crate) look_at: u64,
    /// Why the store is read-only, once it is.
    pub(crate) failure: Arc<OnceLock<Arc<str>>>,
}

/// The name of a segment.
pub(crate) fn segment_name(number: u64) -> String {
    format!("log.{number}")
}

impl Drop for Writer {
    /// Also when the thread panics: whoever waits is told.
    fn drop(&mut self) {
        self.queue.abandon();
        self.shared.close();
    }
}

impl Writer {
    /// The length at which a segment with so many live bytes may be worth a compaction: half of it is garbage.
    fn look_at(&self, live_bytes: u64) -> u64 {
        2 * live_bytes + self.garbage_bytes_min
    }

    /// Serves the queue until it is closed.
    pub(crate) fn run(mut self) {
        self.look_at = self.look_at(live_bytes(&self.shared.read()));
        while let Some(batch) = self.queue.take() {
            self.serve(batch);
            if self.len >= self.look_at && self.failure.get().is_none() {
                self.compact_if_worth_it();
            }
        }
    }

    fn serve(&mut self, batch: Vec<Request>) {
        let (mut answers, mut checks) = (Vec::new(), Vec::new());
        let stage = {
            let state = self.shared.read();
            let mut stage = Stage::new(&state);
            for request in batch {
                match request {
                    Request::Commit(transaction, sender) => {
                        answers.push((sender, stage.add(&state, transaction)));
                    }
                    Request::Check(sender) => checks.push(sender),
                }
            }
            stage
        };
        // Even a conflict is answered only now: it may come from a change that is not durable before this.
        let outcome = self.write(&stage);
        if outcome.is_ok() {
            self.shared.publish(stage.changes);
        }
        for (sender, answer) in answers {
            let _ = sender.send(outcome.clone().and(answer)); // The caller may have gone away.
        }
        for sender in checks {
            let _ = sender.send(self.check());
        }
    }

    /// Makes the staged changes durable.
    fn write(&mut self, stage: &Stage) -> Result<(), CommitError> {
        if let Some(failure) = self.failure.get() {
            return Err(CommitError::Storage(Arc::clone(failure)));
        }
        if stage.changes.is_empty() {
            return Ok(());
        }
        let mut body = Vec::new();
        for change in &stage.changes {
            frame::encode(&mut body, &change.key, change.revision, change.bytes.as_deref());
        }
        let frame = frame::frame(&body);
        if let Err(error) = self.segment.write(&frame) {
            return Err(self.take_back(&error));
        }
        if let Err(error) = self.segment.sync() {
            // The kernel may have dropped the pages and would report success next time: fsync(2), "EIO".
            return Err(self.fail(format!("sync {}: {error}", segment_name(self.number))));
        }
        self.len += frame.len() as u64;
        Ok(())
    }

    /// After a write that failed half-way: cuts the segment back. If the disk was full, all is as before then.
    fn take_back(&mut self, error: &io::Error) -> CommitError {
        let what = format!("write {}: {error}", segment_name(self.number));
        let restored = self.segment.truncate(self.len).and_then(|()| self.segment.sync());
        let is_full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        );
        match restored {
            Ok(()) if is_full => CommitError::Full(what.into()),
            Ok(()) => self.fail(what),
            Err(restoring) => self.fail(format!("{what}; cut it back: {restoring}")),
        }
    }

    fn fail(&mut self, what: String) -> CommitError {
        let failure: Arc<str> = format!("the store is read-only until it is opened again: {what}").into();
        CommitError::Storage(Arc::clone(self.failure.get_or_init(|| failure)))
    }

    fn check(&self) -> Result<Report, OpenError> {
        let segment = segment_name(self.number);
        let (found, report) = replay(self.disk.as_ref(), &segment, Limits { events_max: 1, bytes_max: 0 })?;
        let state = self.shared.read();
        let is_same = found.records == state.records && found.revision == state.revision;
        if is_same || self.failure.get().is_some() {
            return Ok(report);
        }
        Err(OpenError::Corrupt { segment, offset: report.bytes, why: "it holds another state than memory" })
    }

    fn compact_if_worth_it(&mut self) {
        let due = self.look_at(live_bytes(&self.shared.read()));
        if self.len < due {
            self.look_at = due;
            return;
        }
        if self.compact().is_err() {
            // Nothing is lost by carrying on with the old segment. Not to be tried at every commit.
            self.look_at = self.len + self.len / 2;
        }
    }

    /// Writes the live records to a new segment and goes on in it.
    fn compact(&mut self) -> io::Result<()> {
        let number = self.number + 1;
        let (segment, len) = write_snapshot(self.disk.as_mut(), &self.shared, number)?;
        if let Err(error) = self.disk.sync_names() {
            // Which of the two segments a crash would leave is not known, so neither can be written to.
            self.fail(format!("sync the names of the segments: {error}"));
            return Err(error);
        }
        let old = std::mem::replace(&mut self.number, number);
        (self.segment, self.len) = (segment, len);
        self.look_at = self.look_at(len);
        // An old segment that stays is removed when the store is opened.
        let _ = self.disk.remove(&segment_name(old));
        Ok(())
    }
}

/// Writes a segment with the present state, durable but for its name.
pub(crate) fn write_snapshot(
    disk: &mut dyn Disk,
    shared: &Shared,
    number: u64,
) -> io::Result<(Box<dyn Segment>, u64)> {
    let (name, draft) = (segment_name(number), format!("{}.tmp", segment_name(number)));
    let written = disk.create(&draft).and_then(|mut segment| {
        // Only the writer changes the state, and this is the writer: readers are not held up by its read lock.
        let state = shared.read();
        let mut len = 0;
        let mut put = |body: &mut Vec<u8>| {
            let frame = frame::frame(body);
            body.clear();
            len += frame.len() as u64;
            segment.write(&frame)
        };
        put(&mut frame::encode_start(state.revision, state.records.len()))?;
        let mut body = Vec::new();
        for (key, entry) in &state.records {
            frame::encode(&mut body, key, entry.revision, Some(&entry.bytes));
            if body.len() >= SNAPSHOT_FRAME_BYTES {
                put(&mut body)?;
            }
        }
        if !body.is_empty() {
            put(&mut body)?;
        }
        segment.sync()?;
        Ok((segment, len))
    });
    let written = written.and_then(|it| disk.rename(&draft, &name).map(|()| it));
    if written.is_err() {
        let _ = disk.remove(&draft); // Or the next opening does.
    }
    written
}
