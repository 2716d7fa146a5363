//! The durable, revisioned, watchable store of API objects.
//!
//! ```text
//!   commit(Txn) ──► stage: expectations checked, in order
//!                     │
//!                     ▼            Memory skips this step
//!                   one append, one fdatasync      (log/)
//!                     │
//!                     ▼
//!                   publish: map, history ──► get, list, watch
//!                     │
//!                     ▼
//!                   the caller is answered
//! ```
//!
//! **Law: nothing is visible, and nothing is answered, before it is durable.** An idle store writes nothing: there
//! are no timers here.
//!
//! Words: a *record* is one object's bytes under a [`Key`](api::Key); a *revision* numbers one change of one
//! record, over the whole store, and never goes back; a *transaction* is a list of operations that happen together or
//! not at all, and take consecutive revisions; the *history* is the bounded ring of the last events, from which every
//! watch reads at its own pace.
//!
//! There are two stores with one conformance suite: [`Log`], on disk, and [`Memory`], for tests and simulation.
#![forbid(unsafe_code)]

mod history;
mod log;
mod memory;
mod record;
mod state;
mod transaction;
mod watch;

#[cfg(test)]
mod conformance;

pub use history::Limits;
pub use log::{Log, OpenError, Report, check};
pub use memory::Memory;
pub use record::{Event, EventKind, Record, Scope};
pub use transaction::{Commit, CommitError, Expect, Op, Txn};
pub use watch::{Compacted, End, Watch};

use api::{Key, Resource};

/// A set of records with one revision counter.
///
/// Every method but [`Store::commit`] answers from memory and never blocks on a disk.
pub trait Store: Send + Sync + 'static {
    /// The record under `key`, if there is one.
    fn get(&self, key: &Key) -> Option<Record>;

    /// The records of `resource`, in the order of their keys, with the revision at which this list was true. `None`
    /// means all namespaces.
    fn list(&self, resource: &'static Resource, namespace: Option<&str>) -> (u64, Vec<Record>);

    /// The revision of the last change.
    fn revision(&self) -> u64;

    /// Submits a transaction. It is queued when this returns, and durable and visible when the [`Commit`] is done.
    ///
    /// The operations take consecutive revisions; the answer is the last one's. Dropping the [`Commit`] does not take
    /// the transaction back.
    fn commit(&self, transaction: Txn) -> Commit;

    /// The events after revision `since`, those of the past first, without gap or repetition.
    ///
    /// # Errors
    /// [`Compacted`] if the history no longer reaches back to `since`, or never came so far: list again.
    fn watch(&self, scope: Scope, since: u64) -> Result<Watch, Compacted>;
}

impl<S: Store + ?Sized> Store for std::sync::Arc<S> {
    fn get(&self, key: &Key) -> Option<Record> {
        (**self).get(key)
    }
    fn list(&self, resource: &'static Resource, namespace: Option<&str>) -> (u64, Vec<Record>) {
        (**self).list(resource, namespace)
    }
    fn revision(&self) -> u64 {
        (**self).revision()
    }
    fn commit(&self, transaction: Txn) -> Commit {
        (**self).commit(transaction)
    }
    fn watch(&self, scope: Scope, since: u64) -> Result<Watch, Compacted> {
        (**self).watch(scope, since)
    }
}
