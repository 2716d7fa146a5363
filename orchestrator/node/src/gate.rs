//! Pausing before each step, so that people can look around: `podyard run --step`.
//!
//! The worker announces the step it is about to take and waits until enough steps are allowed; whoever steps
//! raises that number and waits for the next announcement.

use tokio::sync::watch;

/// Where a pod that pauses stands.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Stand {
    /// The step just taken.
    pub last: Option<String>,
    /// The step that comes next.
    pub next: Option<String>,
    /// It waits to be let go on.
    pub paused: bool,
    /// Nothing is left to be taken.
    pub done: bool,
    /// Steps taken so far.
    pub taken: u64,
}

/// What to do with a pod that pauses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Go {
    /// Only tell where it stands, once it pauses or is done.
    Show,
    /// Take one step.
    Next,
    /// Take all the others without a pause.
    Run,
}

/// Between a worker and whoever steps it.
#[derive(Debug)]
pub struct Gate {
    allowed: watch::Sender<u64>,
    stand: watch::Sender<Stand>,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate { allowed: watch::Sender::new(0), stand: watch::Sender::default() }
    }
}

impl Gate {
    /// Announces the next step and waits until it may be taken.
    ///
    /// # Cancellation
    /// Nothing was taken.
    pub async fn pass(&self, next: &str) {
        let mut taken = 0;
        self.stand.send_modify(|stand| {
            stand.next = Some(next.to_owned());
            stand.paused = *self.allowed.borrow() <= stand.taken;
            stand.done = false;
            taken = stand.taken;
        });
        // The sender lives as long as we do.
        let _ = self.allowed.subscribe().wait_for(|allowed| *allowed > taken).await;
        self.stand.send_modify(|stand| {
            stand.paused = false;
            stand.next = None;
        });
    }

    /// The step was taken.
    pub fn took(&self, step: &str) {
        self.stand.send_modify(|stand| {
            stand.last = Some(step.to_owned());
            stand.taken += 1;
        });
    }

    /// Nothing is left to be taken for now.
    pub fn done(&self) {
        self.stand.send_if_modified(|stand| {
            let changed = !stand.done || stand.paused;
            stand.done = true;
            stand.paused = false;
            stand.next = None;
            changed
        });
    }

    /// Lets it go on as wished; answers when it pauses again or is done.
    ///
    /// # Cancellation
    /// The pod goes on all the same.
    pub async fn step(&self, go: Go) -> Stand {
        let mut stands = self.stand.subscribe();
        let before = stands.borrow().taken;
        match go {
            Go::Show => {}
            Go::Next => self.allowed.send_modify(|allowed| *allowed = (*allowed).max(before + 1)),
            Go::Run => {
                self.allowed.send_replace(u64::MAX);
            }
        }
        let settled =
            |stand: &Stand| stand.done || (stand.paused && (go == Go::Show || stand.taken > before));
        match stands.wait_for(settled).await {
            Ok(stand) => stand.clone(),
            Err(_) => Stand { done: true, ..Stand::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn one_step_at_a_time_then_all() {
        let gate = Arc::new(Gate::default());
        let worker = Arc::clone(&gate);
        tokio::spawn(async move {
            for step in ["a", "b", "c", "d"] {
                worker.pass(step).await;
                worker.took(step);
            }
            worker.done();
        });
        assert_eq!(gate.step(Go::Show).await.next.as_deref(), Some("a"));
        let stand = gate.step(Go::Next).await;
        assert_eq!((stand.last.as_deref(), stand.next.as_deref()), (Some("a"), Some("b")));
        let stand = gate.step(Go::Run).await;
        assert!(stand.done && stand.taken == 4);
    }
}
