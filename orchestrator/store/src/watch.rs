//! Watches: cursors into the history.
//!
//! A watch owns no queue. It remembers the revision it has read up to, reads the shared history from there, and
//! waits on the bell when there is nothing new. So past and present come the same way, without gap or repetition, a
//! watch costs the writer nothing, and one that is slower than the history is long is cut off.
#![forbid(unsafe_code)]

use std::sync::Arc;

use tokio::sync::watch;

use crate::record::{Event, Scope};
use crate::state::{Bell, Shared};

/// The history no longer reaches back far enough, or never came so far. HTTP says 410 Expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("watch from revision {since}: the history starts after {oldest}")]
pub struct Compacted {
    /// The revision asked for.
    pub since: u64,
    /// The oldest revision from which one can watch.
    pub oldest: u64,
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The watch was slower than the history is long: list again.
    Lagged(Compacted),
    /// The store was closed.
    Closed,
}

/// The events of a scope, in order of revision.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    bell: watch::Receiver<Bell>,
    scope: Scope,
    cursor: u64,
    end: Option<End>,
}

impl Watch {
    pub(crate) fn new(shared: &Arc<Shared>, scope: Scope, since: u64) -> Result<Self, Compacted> {
        let state = shared.read();
        if since > state.revision {
            return Err(Compacted { since, oldest: state.revision });
        }
        state.history().after(since).map(drop)?;
        drop(state);
        Ok(Self { bell: shared.listen(), shared: Arc::clone(shared), scope, cursor: since, end: None })
    }

    /// The next event, waiting for it; `None` once the watch has ended, see [`Watch::end`].
    ///
    /// # Cancellation
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            // Marked as seen before reading, so that a change during the reading wakes us.
            let bell = *self.bell.borrow_and_update();
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            if self.end.is_some() {
                return None;
            }
            if bell.is_closed || self.bell.changed().await.is_err() {
                self.end = Some(End::Closed);
                return None;
            }
        }
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        if self.end.is_some() {
            return None;
        }
        let state = self.shared.read();
        match state.history().after(self.cursor) {
            Ok(mut events) => {
                let event = events.find(|event| self.scope.contains(&event.record.key)).cloned();
                self.cursor = event.as_ref().map_or(state.revision, |event| event.revision);
                event
            }
            Err(compacted) => {
                self.end = Some(End::Lagged(compacted));
                None
            }
        }
    }

    /// The revision up to which everything in the scope has been told. A new watch from here continues this one.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.cursor
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.end
    }
}
