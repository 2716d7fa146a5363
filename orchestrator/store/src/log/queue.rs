//! What waits for the disk, bounded.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::log::replay::{OpenError, Report};
use crate::transaction::{CommitError, Op, Txn};

/// Requests and bytes that may wait for the disk.
const QUEUE_MAX: usize = 4096;
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes of transactions after which no further one joins a write.
const BATCH_BYTES: usize = 1 << 20;

/// What is asked of the writer.
pub(crate) enum Request {
    Commit(Txn, oneshot::Sender<Result<u64, CommitError>>),
    /// Read everything back and compare.
    Check(oneshot::Sender<Result<Report, OpenError>>),
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Self::Commit(transaction, _) => transaction.iter().map(op_bytes).sum(),
            Self::Check(_) => 0,
        }
    }
}

fn op_bytes(op: &Op) -> usize {
    match op {
        Op::Put { bytes, .. } => bytes.len(),
        Op::Delete { .. } | Op::Check { .. } => 64,
    }
}

/// What waits for the disk.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    bell: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    bytes: usize,
    is_closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request, or gives it back with the reason.
    pub(crate) fn push(&self, request: Request) -> Result<(), (Request, CommitError)> {
        let bytes = request.bytes();
        let mut waiting = self.lock();
        if waiting.is_closed {
            return Err((request, CommitError::Storage("the store is closed".into())));
        }
        let is_full = waiting.requests.len() >= QUEUE_MAX || waiting.bytes + bytes > QUEUE_BYTES_MAX;
        if is_full && !waiting.requests.is_empty() {
            return Err((request, CommitError::Busy));
        }
        waiting.bytes += bytes;
        waiting.requests.push_back(request);
        self.bell.notify_one();
        Ok(())
    }

    /// Takes the requests of one write, waiting for the first; `None` once closed and empty.
    pub(crate) fn take(&self) -> Option<Vec<Request>> {
        let mut waiting = self.lock();
        while waiting.requests.is_empty() {
            if waiting.is_closed {
                return None;
            }
            waiting = self.bell.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES {
            let Some(request) = waiting.requests.pop_front() else { break };
            bytes += request.bytes();
            batch.push(request);
        }
        waiting.bytes -= bytes;
        Some(batch)
    }

    /// Takes no further requests. Those that wait are still served.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.bell.notify_one();
    }

    /// Takes no further requests, and drops those that wait: whoever waits for them is told.
    pub(crate) fn abandon(&self) {
        self.close();
        self.lock().requests.clear();
    }
}
