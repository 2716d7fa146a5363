//! The work queue: each item at most once, never in two hands.
//!
//! ```text
//!            add                take                  done
//!  (absent) ─────► ready ───────────► processing ───────────► (absent)
//!                    ▲                  │ add: dirty             │
//!                    └──────────────────┴── done, if dirty ◄─────┘
//!  add_at ─► delayed ── due ─► ready
//! ```
//! It knows nothing of what an item means. Retries wait `BASE · 2ⁿ`, at most `MAX`, less up to a half by jitter.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use api::Timestamp;
use jiff::SignedDuration;
use rand::RngCore;

const BASE: SignedDuration = SignedDuration::from_millis(5);
const MAX: SignedDuration = SignedDuration::from_secs(30);

/// A deduplicating queue with delays.
#[derive(Debug)]
pub struct Queue<T> {
    /// In order of arrival; the same items as in `waiting`.
    ready: VecDeque<T>,
    waiting: BTreeSet<T>,
    processing: BTreeSet<T>,
    /// Processed now, and again afterwards.
    dirty: BTreeSet<T>,
    delayed: BTreeSet<(Timestamp, T)>,
    /// When each delayed item is due: one time per item, the earliest.
    due: BTreeMap<T, Timestamp>,
    /// Failures in a row.
    failures: BTreeMap<T, u32>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue {
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            processing: BTreeSet::new(),
            dirty: BTreeSet::new(),
            delayed: BTreeSet::new(),
            due: BTreeMap::new(),
            failures: BTreeMap::new(),
        }
    }
}

impl<T: Clone + Ord> Queue<T> {
    /// Wants `item` processed, once more if it is being processed.
    pub fn add(&mut self, item: T) {
        if self.processing.contains(&item) {
            self.dirty.insert(item);
        } else if self.waiting.insert(item.clone()) {
            self.ready.push_back(item);
        }
    }

    /// Wants `item` processed at `time`, or earlier if that was wanted before.
    pub fn add_at(&mut self, item: T, time: Timestamp) {
        match self.due.get(&item) {
            Some(earlier) if *earlier <= time => return,
            Some(later) => {
                self.delayed.remove(&(*later, item.clone()));
            }
            None => {}
        }
        self.due.insert(item.clone(), time);
        self.delayed.insert((time, item));
    }

    /// Makes ready what is due.
    pub fn advance(&mut self, now: Timestamp) {
        while let Some((time, _)) = self.delayed.first()
            && *time <= now
            && let Some((_, item)) = self.delayed.pop_first()
        {
            self.due.remove(&item);
            self.add(item);
        }
    }

    /// When the next delayed item is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.delayed.first().map(|(time, _)| *time)
    }

    /// The next item, which is in the caller's hands until [`Queue::done`].
    pub fn take(&mut self) -> Option<T> {
        let item = self.ready.pop_front()?;
        self.waiting.remove(&item);
        self.processing.insert(item.clone());
        Some(item)
    }

    /// Gives `item` back; it is ready again if it was added meanwhile.
    pub fn done(&mut self, item: &T) {
        assert!(self.processing.remove(item), "an item is done once");
        if self.dirty.remove(item) {
            self.add(item.clone());
        }
    }

    /// Wants `item` processed again after a delay that grows with each failure in a row.
    pub fn retry(&mut self, item: T, now: Timestamp, rng: &mut dyn RngCore) {
        let failures = self.failures.entry(item.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        let delay = backoff(*failures, rng);
        self.add_at(item, now.saturating_add(delay).unwrap_or(Timestamp::MAX));
    }

    /// Forgets past failures of `item`: it went well.
    pub fn forget(&mut self, item: &T) {
        self.failures.remove(item);
    }

    /// Forgets everything that waits; what is being processed stays so.
    pub fn clear(&mut self) {
        let processing = std::mem::take(&mut self.processing);
        *self = Queue { processing, ..Queue::default() };
    }

    /// Nothing waits, nothing is being processed.
    pub fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.processing.is_empty()
    }
}

fn backoff(failures: u32, rng: &mut dyn RngCore) -> SignedDuration {
    let delay = BASE.checked_mul(1 << failures.saturating_sub(1).min(20)).unwrap_or(MAX).min(MAX);
    let half = delay / 2;
    let jitter = i64::from(rng.next_u32() % 1024);
    delay - SignedDuration::from_nanos(i64::try_from(half.as_nanos()).unwrap_or(0) / 1024 * jitter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn an_item_is_ready_once() {
        let mut queue = Queue::default();
        queue.add("a");
        queue.add("b");
        queue.add("a");
        assert_eq!((queue.take(), queue.take(), queue.take()), (Some("a"), Some("b"), None));
    }

    #[test]
    fn an_item_in_hand_is_not_handed_out() {
        let mut queue = Queue::default();
        queue.add("a");
        queue.take();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.take(), None);
        queue.done(&"a");
        assert_eq!(queue.take(), Some("a"));
        queue.done(&"a");
        assert_eq!(queue.take(), None);
        assert!(queue.is_idle());
    }

    #[test]
    fn the_earliest_time_counts() {
        let mut queue = Queue::default();
        queue.add_at("a", at(20));
        queue.add_at("a", at(10));
        queue.add_at("a", at(30));
        queue.advance(at(9));
        assert_eq!((queue.next_due(), queue.take()), (Some(at(10)), None));
        queue.advance(at(10));
        assert_eq!((queue.next_due(), queue.take()), (None, Some("a")));
    }

    #[test]
    fn retries_grow_and_are_bounded() {
        let mut rng = SmallRng::seed_from_u64(1);
        for failures in 1..64 {
            let delay = backoff(failures, &mut rng);
            let full = BASE.as_millis() << (failures - 1).min(20);
            assert!(delay <= MAX && delay.as_millis() <= full, "{failures}: {delay:?}");
            assert!(delay >= MAX / 2 || delay.as_millis() >= full / 2 - 1, "{failures}: {delay:?}");
        }
    }
}
