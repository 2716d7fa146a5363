//! Opening: from the bytes of a segment to a state.
//!
//! A segment is a start frame, a snapshot, and changes. The snapshot was durable before the segment got its name, so a
//! fault in it is corruption. Each frame of changes was durable before the next was begun, so only the last one can be
//! torn: a broken frame with a whole one after it is corruption, and is refused rather than cut off.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, BufReader};

use crate::history::Limits;
use crate::log::disk::Disk;
use crate::log::frame::{self, HEAD_BYTES, Next, Unreadable};
use crate::state::{Entry, State};

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("open store: another process has it open")]
    Locked,
    /// A file operation failed.
    #[error("open store: {call}")]
    Io {
        /// What was tried.
        call: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A part that had been durable is damaged. Nothing has been changed.
    #[error("open store: {segment} is damaged at offset {offset}: {why}")]
    Corrupt {
        /// The file.
        segment: String,
        /// Where the damaged frame starts.
        offset: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It holds a resource that this program does not know: a newer one wrote it.
    #[error("open store: {segment} holds {resource} at offset {offset}, which this version does not know")]
    UnknownResource {
        /// The file.
        segment: String,
        /// Where its frame starts.
        offset: u64,
        /// Its plural and group.
        resource: String,
    },
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The file that holds everything.
    pub segment: String,
    /// Its length, without what was torn.
    pub bytes: u64,
    /// Bytes of it that live records need.
    pub live_bytes: u64,
    /// Live records.
    pub records: usize,
    /// The last revision.
    pub revision: u64,
    /// Bytes of an unfinished, never acknowledged write at the end.
    pub torn_bytes: u64,
}

/// Reads a segment.
pub(crate) fn replay(disk: &dyn Disk, segment: &str, limits: Limits) -> Result<(State, Report), OpenError> {
    let io = |source| OpenError::Io { call: format!("read {segment}"), source };
    let mut input = BufReader::with_capacity(64 << 10, disk.read(segment).map_err(io)?);
    let mut reading = Reading { segment, offset: 0, phase: Phase::Start, limits };
    let mut body = Vec::new();
    let torn_bytes = loop {
        match frame::read(&mut input, &mut body).map_err(io)? {
            Next::Body => reading.frame(&body)?,
            Next::End => break 0,
            Next::Broken(rest) if frame::has_later_frame(&rest) => {
                return Err(reading.corrupt("the frame is broken, and whole ones follow"));
            }
            Next::Broken(rest) => break rest.len() as u64,
        }
    };
    let offset = reading.offset;
    let state = match reading.phase {
        Phase::Changes(state) => state,
        Phase::Start | Phase::Snapshot { .. } => return Err(reading.corrupt("the snapshot is incomplete")),
    };
    let report = Report {
        segment: segment.to_owned(),
        bytes: offset,
        live_bytes: live_bytes(&state),
        records: state.records.len(),
        revision: state.revision,
        torn_bytes,
    };
    Ok((state, report))
}

struct Reading<'a> {
    segment: &'a str,
    /// Of the next frame.
    offset: u64,
    phase: Phase,
    limits: Limits,
}

enum Phase {
    Start,
    Snapshot { revision: u64, missing: usize, records: BTreeMap<api::Key, Entry> },
    Changes(State),
}

impl Reading<'_> {
    fn frame(&mut self, body: &[u8]) -> Result<(), OpenError> {
        match &mut self.phase {
            Phase::Start => {
                let (revision, missing) = frame::decode_start(body)
                    .ok_or_else(|| self.corrupt("it does not start as a log of version 1"))?;
                self.phase = Phase::Snapshot { revision, missing, records: BTreeMap::new() };
            }
            Phase::Snapshot { revision, missing, records } => {
                for change in
                    frame::decode(body).map_err(|error| unreadable(self.segment, self.offset, error))?
                {
                    let is_new = change.bytes.is_some_and(|bytes| {
                        let entry = Entry { revision: change.revision, bytes };
                        records.insert(change.key, entry).is_none()
                    });
                    if !is_new || change.revision > *revision || *missing == 0 {
                        return Err(self.corrupt("the snapshot contradicts itself"));
                    }
                    *missing -= 1;
                }
            }
            Phase::Changes(state) => {
                for change in
                    frame::decode(body).map_err(|error| unreadable(self.segment, self.offset, error))?
                {
                    let is_lost = change.bytes.is_none() && !state.records.contains_key(&change.key);
                    if change.revision != state.revision + 1 || is_lost {
                        return Err(self.corrupt("a change does not follow from those before"));
                    }
                    state.apply(change);
                }
            }
        }
        if let Phase::Snapshot { revision, missing: 0, records } = &mut self.phase {
            self.phase =
                Phase::Changes(State::from_snapshot(std::mem::take(records), *revision, self.limits));
        }
        self.offset += (HEAD_BYTES + body.len()) as u64;
        Ok(())
    }

    fn corrupt(&self, why: &'static str) -> OpenError {
        OpenError::Corrupt { segment: self.segment.to_owned(), offset: self.offset, why }
    }
}

fn unreadable(segment: &str, offset: u64, error: Unreadable) -> OpenError {
    let segment = segment.to_owned();
    match error {
        Unreadable::Malformed => OpenError::Corrupt { segment, offset, why: "the frame does not make sense" },
        Unreadable::UnknownResource(resource) => OpenError::UnknownResource { segment, offset, resource },
    }
}

/// About how long a segment with nothing but the live records is.
pub(crate) fn live_bytes(state: &State) -> u64 {
    let line = |(key, entry): (&api::Key, &Entry)| {
        let key_bytes =
            key.resource.plural.len() + key.resource.group.len() + key.namespace.len() + key.name.len();
        (entry.bytes.len() + key_bytes + 24) as u64
    };
    state.records.iter().map(line).sum()
}
