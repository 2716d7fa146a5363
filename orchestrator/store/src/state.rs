//! The state that readers see, and the pure step from a transaction to its changes.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use api::{Key, Resource};
use tokio::sync::watch;

use crate::history::{History, Limits};
use crate::record::{Event, EventKind, Record};
use crate::transaction::{CommitError, Op, Txn};

/// The stored half of a [`Record`]; its key is the map's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) revision: u64,
    pub(crate) bytes: Arc<[u8]>,
}

impl Entry {
    fn record(&self, key: &Key) -> Record {
        Record { key: key.clone(), revision: self.revision, bytes: Arc::clone(&self.bytes) }
    }
}

/// One change, with the revision it takes. `None` deletes.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) key: Key,
    pub(crate) bytes: Option<Arc<[u8]>>,
}

/// Records, revision and history.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) records: BTreeMap<Key, Entry>,
    pub(crate) revision: u64,
    history: History,
}

impl State {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { records: BTreeMap::new(), revision: 0, history: History::new(limits, 0) }
    }

    /// The state a snapshot gives: its records have no history.
    pub(crate) fn from_snapshot(records: BTreeMap<Key, Entry>, revision: u64, limits: Limits) -> Self {
        Self { records, revision, history: History::new(limits, revision) }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Record> {
        self.records.get(key).map(|entry| entry.record(key))
    }

    fn list(&self, resource: &'static Resource, namespace: Option<&str>) -> Vec<Record> {
        let resource = resource.stored();
        let first = Key::new(resource, namespace.unwrap_or_default(), "");
        self.records
            .range(first..)
            .take_while(|(key, _)| {
                key.resource == resource && namespace.is_none_or(|namespace| key.namespace == namespace)
            })
            .map(|(key, entry)| entry.record(key))
            .collect()
    }

    /// Applies one change and remembers it.
    pub(crate) fn apply(&mut self, change: Change) {
        let Change { revision, key, bytes } = change;
        assert!(revision > self.revision, "revision {revision} after {}", self.revision);
        self.revision = revision;
        let previous = match &bytes {
            Some(bytes) => self.records.insert(key.clone(), Entry { revision, bytes: Arc::clone(bytes) }),
            None => self.records.remove(&key),
        }
        .map(|entry| entry.record(&key));
        let (kind, bytes) = match (bytes, &previous) {
            (Some(bytes), None) => (EventKind::Created, bytes),
            (Some(bytes), Some(_)) => (EventKind::Updated, bytes),
            (None, Some(last)) => (EventKind::Deleted, Arc::clone(&last.bytes)),
            (None, None) => return, // Staging drops these.
        };
        self.history.push(Event { revision, kind, record: Record { key, revision, bytes }, previous });
    }

    pub(crate) fn history(&self) -> &History {
        &self.history
    }
}

/// Changes that have been decided upon and are not yet visible: what one write to the disk carries.
#[derive(Debug)]
pub(crate) struct Stage {
    revision: u64,
    /// Revisions of the keys that the changes touch; `None` is deleted.
    touched: BTreeMap<Key, Option<u64>>,
    pub(crate) changes: Vec<Change>,
}

impl Stage {
    pub(crate) fn new(state: &State) -> Self {
        Self { revision: state.revision, touched: BTreeMap::new(), changes: Vec::new() }
    }

    /// Adds a transaction if its expectations hold after everything staged so far. All or nothing.
    pub(crate) fn add(&mut self, state: &State, transaction: Txn) -> Result<u64, CommitError> {
        let (changes_before, revision_before) = (self.changes.len(), self.revision);
        let mut undo = Vec::new();
        for op in transaction {
            let actual = match self.touched.get(op.key()) {
                Some(staged) => *staged,
                None => state.records.get(op.key()).map(|entry| entry.revision),
            };
            if !op.expect().holds(actual) {
                self.changes.truncate(changes_before);
                self.revision = revision_before;
                for (key, before) in undo.into_iter().rev() {
                    match before {
                        Some(before) => self.touched.insert(key, before),
                        None => self.touched.remove(&key),
                    };
                }
                return Err(CommitError::Conflict { key: op.key().clone(), actual });
            }
            let (key, bytes) = match op {
                Op::Put { key, bytes, .. } => (key, Some(bytes)),
                Op::Delete { .. } if actual.is_none() => continue,
                Op::Delete { key, .. } => (key, None),
                Op::Check { .. } => continue,
            };
            self.revision += 1;
            let after = bytes.is_some().then_some(self.revision);
            undo.push((key.clone(), self.touched.insert(key.clone(), after)));
            self.changes.push(Change { revision: self.revision, key, bytes });
        }
        Ok(self.revision)
    }
}

/// The state behind its lock, and the bell that wakes watches.
#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<State>,
    bell: watch::Sender<Bell>,
}

/// What watches wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bell {
    pub(crate) revision: u64,
    pub(crate) is_closed: bool,
}

impl Shared {
    pub(crate) fn new(state: State) -> Arc<Self> {
        let bell = watch::Sender::new(Bell { revision: state.revision, is_closed: false });
        Arc::new(Self { state: RwLock::new(state), bell })
    }

    /// The state. A panicking reader cannot have left it half-changed, so poison is ignored; `apply` asserts first.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes staged changes visible, all at once.
    pub(crate) fn publish(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            state.apply(change);
        }
        let revision = state.revision;
        drop(state);
        self.bell.send_modify(|bell| bell.revision = revision);
    }

    /// Ends every watch once it has read what there is.
    pub(crate) fn close(&self) {
        self.bell.send_modify(|bell| bell.is_closed = true);
    }

    pub(crate) fn listen(&self) -> watch::Receiver<Bell> {
        self.bell.subscribe()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Record> {
        self.read().get(key)
    }

    pub(crate) fn list(&self, resource: &'static Resource, namespace: Option<&str>) -> (u64, Vec<Record>) {
        let state = self.read();
        (state.revision, state.list(resource, namespace))
    }

    pub(crate) fn revision(&self) -> u64 {
        self.read().revision
    }
}
