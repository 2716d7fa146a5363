//! A simulated world for the controllers: one seed decides everything in it.
//!
//! ```text
//!   user ──┐                      ┌── watch: late, lost, twice, old, out of order; then listed again
//!          ▼                      ▼
//!       registry ──► Memory    controllers ──► calls: refused, done but said to have failed, late, lost in a crash
//!          ▲                                     │
//!   agents ┘◄── kernel: what runs ◄──────────────┘ (through the registry only)
//!      │            survives everything
//!      └── down for a while, slow
//! ```
//! Time is virtual: the next event is always now. At every step [`checks`] look at the world from outside, with its
//! own eyes: at the store's history and at the kernel, not at what the controllers believe. After the faults stop the
//! world must become what was asked for, and then fall silent: no event is left at all.
//!
//! A check that cannot fail is worth nothing, so [`Mutant`]s break one part at a time, and must be caught.

mod agent;
mod checks;
mod faults;
mod kernel;
mod machine;
mod mutant;
mod pets;
mod user;
mod world;

use std::fmt;

pub use mutant::Mutant;

/// A law of the world that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which law.
    pub law: &'static str,
    /// By what.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.detail)
    }
}

/// What came of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// All that happened, line by line.
    pub trace: String,
    /// Events handled.
    pub events: u64,
    /// Virtual time until silence, in milliseconds.
    pub millis: i64,
    /// The first broken law.
    pub verdict: Result<(), Violation>,
}

/// Runs the world of a seed to its end.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Outcome {
    world::World::new(seed, mutant).run()
}

/// Runs a future that waits for nothing: everything here is in memory.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("the store in memory made somebody wait"),
    }
}

#[cfg(test)]
mod tests;
