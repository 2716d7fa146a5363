//! What was done for each pod: the last steps, with their kernel effect and duration.
//!
//! A bounded ring per pod, kept in memory and beside the pod's record, so that `trace` still tells how a pod
//! was made after the daemon was restarted. Pods that are gone are remembered for a while too.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::record::{read_json, write_json};

/// Steps remembered of one pod.
const ENTRIES_MAX: usize = 256;
/// Pods remembered after they are gone.
const GONE_MAX: usize = 64;

/// One step taken.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Counts up within the pod.
    pub sequence: u64,
    /// When it began.
    pub at: Timestamp,
    /// Name of the step, as the plan gives it: `create web.0`.
    pub step: String,
    /// What it did to the kernel.
    pub effect: String,
    /// How long it took, in microseconds.
    pub micros: u64,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// The steps taken for one pod.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// `namespace/name`.
    pub pod: String,
    /// metadata.uid.
    pub uid: String,
    /// Oldest first.
    pub entries: VecDeque<Entry>,
    /// How many older ones were forgotten.
    pub dropped: u64,
}

/// The journals of all pods, by uid.
#[derive(Debug, Default)]
pub struct Journal {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    traces: BTreeMap<String, Trace>,
    gone: VecDeque<String>,
}

impl Journal {
    /// Takes over what an earlier daemon wrote for this pod; an unreadable file is nothing.
    pub fn adopt(&self, uid: &str, file: &Path) {
        if let Ok(Some(trace)) = read_json::<Trace>(file) {
            self.lock().traces.entry(uid.to_owned()).or_insert(trace);
        }
    }

    /// Adds a step.
    pub fn add(&self, pod: &str, uid: &str, step: &str, effect: &str, took: Duration, error: Option<String>) {
        let mut inner = self.lock();
        let trace = inner.traces.entry(uid.to_owned()).or_insert_with(|| Trace {
            pod: pod.to_owned(),
            uid: uid.to_owned(),
            ..Trace::default()
        });
        let sequence = trace.dropped + trace.entries.len() as u64 + 1;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = Timestamp::now();
        let at = at.saturating_sub(took).unwrap_or(at);
        let (step, effect) = (step.to_owned(), effect.to_owned());
        trace.entries.push_back(Entry { sequence, at, step, effect, micros, error });
        if trace.entries.len() > ENTRIES_MAX {
            trace.entries.pop_front();
            trace.dropped += 1;
        }
    }

    /// Writes a pod's ring beside its record.
    pub fn save(&self, uid: &str, file: &Path) {
        let Some(trace) = self.lock().traces.get(uid).cloned() else { return };
        if let Err(error) = write_json(file, &trace) {
            tracing::debug!(%error, "write trace");
        }
    }

    /// The pod is gone: its ring may be forgotten when there are too many.
    pub fn gone(&self, uid: &str) {
        let mut inner = self.lock();
        inner.gone.push_back(uid.to_owned());
        if inner.gone.len() > GONE_MAX
            && let Some(old) = inner.gone.pop_front()
        {
            inner.traces.remove(&old);
        }
    }

    /// The steps taken for the pod of this name (`namespace/name`); of the latest, if there were several.
    pub fn by_name(&self, pod: &str) -> Option<Trace> {
        let inner = self.lock();
        let last = |trace: &&Trace| trace.entries.back().map(|entry| entry.at);
        inner.traces.values().filter(|trace| trace.pod == pod).max_by_key(last).cloned()
    }

    /// The steps taken for the pod with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<Trace> {
        self.lock().traces.get(uid).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is whole before the lock is released.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_bounded_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trace.json");
        let journal = Journal::default();
        for _ in 0..300 {
            journal.add("d/p", "u", "shim", "clone3", Duration::from_micros(5), None);
        }
        let trace = journal.by_name("d/p").unwrap();
        assert_eq!((trace.entries.len(), trace.dropped), (256, 44));
        assert_eq!(trace.entries.back().unwrap().sequence, 300);
        journal.save("u", &file);
        let later = Journal::default();
        later.adopt("u", &file);
        assert_eq!(later.by_uid("u"), Some(trace));
        for n in 0..100 {
            later.add("d/q", &n.to_string(), "x", "", Duration::ZERO, None);
            later.gone(&n.to_string());
        }
        assert!(later.by_uid("0").is_none() && later.by_uid("99").is_some() && later.by_uid("u").is_some());
    }
}
