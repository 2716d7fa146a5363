//! The bounded ring of the last events: what watches read.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::record::Event;
use crate::watch::Compacted;

/// How far back watches can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Events kept.
    pub events_max: usize,
    /// Bytes of records kept by those events, previous states included.
    pub bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { events_max: 8192, bytes_max: 4 << 20 }
    }
}

/// Every event after `floor`, in order of revision.
#[derive(Debug)]
pub(crate) struct History {
    limits: Limits,
    floor: u64,
    bytes: usize,
    events: VecDeque<Event>,
}

impl History {
    /// An empty history: nothing has happened since revision `floor`.
    pub(crate) fn new(limits: Limits, floor: u64) -> Self {
        Self { limits, floor, bytes: 0, events: VecDeque::new() }
    }

    /// Adds the next event, and drops the oldest ones beyond the limits. The newest event always stays.
    pub(crate) fn push(&mut self, event: Event) {
        debug_assert!(self.events.back().is_none_or(|last| last.revision < event.revision));
        self.bytes += weight(&event);
        self.events.push_back(event);
        while self.events.len() > self.limits.events_max.max(1) || self.is_too_heavy() {
            let Some(oldest) = self.events.pop_front() else { return };
            self.bytes -= weight(&oldest);
            self.floor = oldest.revision;
        }
    }

    fn is_too_heavy(&self) -> bool {
        self.bytes > self.limits.bytes_max && self.events.len() > 1
    }

    /// The events after revision `since`.
    pub(crate) fn after(&self, since: u64) -> Result<impl Iterator<Item = &Event>, Compacted> {
        if since < self.floor {
            return Err(Compacted { since, oldest: self.floor });
        }
        let start = self.events.partition_point(|event| event.revision <= since);
        Ok(self.events.range(start..))
    }
}

/// An estimate of the memory an event holds: its bytes, its previous bytes, its keys.
fn weight(event: &Event) -> usize {
    let key = event.record.key.namespace.len() + event.record.key.name.len();
    let before = event.previous.as_ref().map_or(0, |record| record.bytes.len() + key);
    // A deletion shares its bytes with the state before it.
    let after = if event.kind == crate::EventKind::Deleted { 0 } else { event.record.bytes.len() };
    size_of::<Event>() + key + before + after
}
