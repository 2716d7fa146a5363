//! Transactions and their answers.
#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::Key;
use tokio::sync::oneshot;

/// What must be true of a record for an operation on it to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// There is no such record.
    Absent,
    /// There is one, at whatever revision.
    Present,
    /// The record is there, at this revision.
    Revision(u64),
}

impl Expect {
    /// Whether a record at revision `actual` (`None`: no record) is as expected.
    #[must_use]
    pub fn holds(self, actual: Option<u64>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => actual.is_none(),
            Self::Present => actual.is_some(),
            Self::Revision(revision) => actual == Some(revision),
        }
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a record.
    Put {
        /// Under this key.
        key: Key,
        /// The object as JSON without `metadata.resourceVersion`.
        bytes: Arc<[u8]>,
        /// If this is true of the record it replaces.
        expect: Expect,
    },
    /// Removes a record. Removing what is not there is no change and takes no revision.
    Delete {
        /// Under this key.
        key: Key,
        /// If this is true of it.
        expect: Expect,
    },
    /// Changes nothing: the others happen only if this is true of a record. It takes no revision.
    Check {
        /// Of the record under this key.
        key: Key,
        /// What must be true.
        expect: Expect,
    },
}

impl Op {
    /// The key it is about.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Check { key, .. } => key,
        }
    }

    /// What must be true of the record.
    #[must_use]
    pub fn expect(&self) -> Expect {
        match self {
            Self::Put { expect, .. } | Self::Delete { expect, .. } | Self::Check { expect, .. } => *expect,
        }
    }
}

/// Operations that happen together, in order, or not at all.
pub type Txn = Vec<Op>;

/// Why a transaction did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// An expectation was not met.
    #[error("commit {key}: it is at revision {}", actual.map_or("none".to_owned(), |it| it.to_string()))]
    Conflict {
        /// The first key whose expectation failed.
        key: Key,
        /// Its revision, `None` if there is no such record.
        actual: Option<u64>,
    },
    /// Too many transactions are waiting for the disk: try again.
    #[error("commit: too many writes are waiting for the disk")]
    Busy,
    /// The disk is full. Nothing was written; the store takes writes again once there is room.
    #[error("commit: {0}")]
    Full(Arc<str>),
    /// The transaction can never be stored: a key with spaces, or too many bytes.
    #[error("commit: {0}")]
    Refused(Arc<str>),
    /// The disk failed, or the store has been closed. The store is read-only until it is opened again; whether this
    /// transaction survives is not known.
    #[error("commit: {0}")]
    Storage(Arc<str>),
}

/// Refuses what no store can hold; [`crate::Memory`] is as strict as [`crate::Log`].
pub(crate) fn check_transaction(transaction: &Txn) -> Result<(), CommitError> {
    let mut bytes_total = 0;
    for op in transaction {
        if !crate::log::is_writable(op.key()) {
            return Err(CommitError::Refused(
                format!("{:?} cannot be the name of a record", op.key().to_string()).into(),
            ));
        }
        if let Op::Put { bytes, .. } = op {
            bytes_total += bytes.len();
        }
    }
    if bytes_total > crate::log::TRANSACTION_BYTES_MAX {
        return Err(CommitError::Refused(
            format!("a transaction of {bytes_total} bytes is too large").into(),
        ));
    }
    Ok(())
}

/// A transaction under way: a future, or [`Commit::wait`] for threads.
///
/// # Cancellation
/// Dropping it does not take the transaction back.
#[derive(Debug)]
pub struct Commit(Progress);

#[derive(Debug)]
enum Progress {
    Done(Option<Result<u64, CommitError>>),
    Waiting(oneshot::Receiver<Result<u64, CommitError>>),
}

impl Commit {
    /// One that is answered already.
    #[must_use]
    pub fn done(answer: Result<u64, CommitError>) -> Self {
        Self(Progress::Done(Some(answer)))
    }

    /// One that is answered through the sender.
    pub(crate) fn waiting() -> (oneshot::Sender<Result<u64, CommitError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(Progress::Waiting(receiver)))
    }

    /// Blocks the thread until the answer is there. Panics on a thread that runs asynchronous tasks: await it there.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn wait(self) -> Result<u64, CommitError> {
        match self.0 {
            Progress::Done(answer) => answer.unwrap_or_else(|| Err(gone())),
            Progress::Waiting(receiver) => receiver.blocking_recv().unwrap_or_else(|_| Err(gone())),
        }
    }
}

impl Future for Commit {
    type Output = Result<u64, CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Progress::Done(answer) => Poll::Ready(answer.take().unwrap_or_else(|| Err(gone()))),
            Progress::Waiting(receiver) => {
                Pin::new(receiver).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(gone())))
            }
        }
    }
}

fn gone() -> CommitError {
    CommitError::Storage("the store is closed".into())
}
