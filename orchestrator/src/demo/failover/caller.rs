//! A client that never stops asking: what it misses is the downtime.

use super::Failure;
use crate::toolbox;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(2);

/// A request without an answer is given up then: the packet of one that began before the failure is lost for good.
const TIMEOUT: Duration = Duration::from_millis(50);

/// What was answered so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// The last answer, and when it came.
    pub(super) last: Option<(Instant, u64)>,
    /// Requests that were answered.
    pub(super) answered: u64,
    /// Requests that were not.
    pub(super) missed: u64,
    /// The longest time between two answers, and the counts before and after it.
    pub(super) gap: Option<(Duration, u64, u64)>,
    /// The first answer that was not larger than one before it: lost data.
    pub(super) lost: Option<String>,
}

impl Record {
    fn answer(&mut self, at: Instant, count: u64) {
        self.answered += 1;
        if let Some((before, known)) = self.last {
            if count <= known {
                self.lost.get_or_insert_with(|| format!("{count} was answered after {known}"));
            }
            let gap = at.duration_since(before);
            if self.gap.is_none_or(|(longest, ..)| gap > longest) {
                self.gap = Some((gap, known, count));
            }
        }
        self.last = Some((at, count));
    }
}

/// Asks a URL from inside a network namespace, on a thread of its own, until it is dropped.
pub(super) struct Caller {
    record: Arc<Mutex<Record>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Caller {
    pub(super) fn start(netns: PathBuf, url: String) -> Caller {
        let record = Arc::new(Mutex::new(Record::default()));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let thread = {
            let (record, stop) = (Arc::clone(&record), Arc::clone(&stop));
            std::thread::spawn(move || {
                let namespace = netns::Namespace::open(&netns).map_err(|error| error.to_string())?;
                namespace.run(|| ask(&url, &record, &stop)).map_err(|error| error.to_string())?
            })
        };
        Caller { record, stop, thread: Some(thread) }
    }

    /// What is known now.
    pub(super) fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the longest gap: what follows is measured anew.
    pub(super) fn begin_gap(&self) {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).gap = None;
    }

    /// Ends the asking.
    ///
    /// # Errors
    /// What kept it from asking at all.
    pub(super) fn end(mut self) -> Result<Record, Failure> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| "the asking thread panicked")??;
        }
        Ok(self.record())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

fn ask(url: &str, record: &Mutex<Record>, stop: &std::sync::atomic::AtomicBool) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start an event loop: {error}"))?;
    runtime.block_on(async {
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let answer = tokio::time::timeout(TIMEOUT, toolbox::get(url)).await;
            let count = match &answer {
                Ok(Ok((status, body))) if status.is_success() => count(body),
                _ => None,
            };
            {
                let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
                match count {
                    Some(count) => record.answer(Instant::now(), count),
                    None => record.missed += 1,
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    })
}

/// `ledger-0 17` → 17
fn count(body: &[u8]) -> Option<u64> {
    std::str::from_utf8(body).ok()?.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_and_lost_data_are_seen() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut record = Record::default();
        for (ms, count) in [(0, 1), (5, 2), (105, 4), (110, 5)] {
            record.answer(at(ms), count);
        }
        assert_eq!(record.gap, Some((Duration::from_millis(100), 2, 4)));
        assert_eq!(record.lost, None);
        record.answer(at(120), 5);
        assert_eq!(record.lost.as_deref(), Some("5 was answered after 5"));
    }

    #[test]
    fn answers() {
        for (body, expect) in [("ledger-0 17\n", Some(17)), ("17", Some(17)), ("", None), ("x y", None)] {
            assert_eq!(count(body.as_bytes()), expect, "{body:?}");
        }
    }
}
