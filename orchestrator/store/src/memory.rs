//! The store without a disk.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};

use api::{Key, Resource};

use crate::Store;
use crate::history::Limits;
use crate::record::{Record, Scope};
use crate::state::{Shared, Stage, State};
use crate::transaction::{Commit, Txn, check_transaction};
use crate::watch::{Compacted, Watch};

/// A [`Store`] that forgets everything when dropped. Its commits are done when they return.
#[derive(Debug)]
pub struct Memory {
    shared: Arc<Shared>,
    /// Held from staging to publishing.
    writer: Mutex<()>,
}

impl Memory {
    /// An empty store at revision 0.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// An empty store with a history of its own size.
    #[must_use]
    pub fn with_limits(limits: Limits) -> Self {
        Self { shared: Shared::new(State::new(limits)), writer: Mutex::new(()) }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Store for Memory {
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
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, changes) = {
            let state = self.shared.read();
            let mut stage = Stage::new(&state);
            (stage.add(&state, transaction), stage.changes)
        };
        self.shared.publish(changes);
        Commit::done(answer)
    }

    fn watch(&self, scope: Scope, since: u64) -> Result<Watch, Compacted> {
        Watch::new(&self.shared, scope, since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        crate::conformance::suite(&Memory::with_limits);
    }
}
