//! What goes wrong, and how often: drawn once per seed.

use api::{Error, Kind};
use rand::Rng;
use rand::rngs::SmallRng;

/// Chances in a thousand, of one seed.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// A call is refused and not made.
    pub refused: u32,
    /// A call is made and said to have failed.
    pub misread: u32,
    /// The controllers die after a step.
    pub crash: u32,
    /// An event is never told.
    pub lost: u32,
    /// An event is told twice.
    pub twice: u32,
    /// An old event is told again.
    pub stale: u32,
    /// An event is told after its successor.
    pub swapped: u32,
    /// The watch breaks and everything is listed.
    pub relist: u32,
    /// An agent dies for a while.
    pub agent: u32,
    /// A container exits by itself.
    pub exit: u32,
    /// A process does not die when it is told to, for a while.
    pub unkillable: u32,
}

impl Faults {
    /// The faults of a seed: each kind is off in a third of the worlds, and one world in eight has none.
    pub fn draw(rng: &mut SmallRng) -> Faults {
        if rng.random_ratio(1, 8) {
            return Faults::default();
        }
        let mut rate = |max: u32| if rng.random_ratio(1, 3) { 0 } else { rng.random_range(1..=max) };
        Faults {
            refused: rate(150),
            misread: rate(150),
            crash: rate(10),
            lost: rate(30),
            twice: rate(50),
            stale: rate(50),
            swapped: rate(50),
            relist: rate(10),
            agent: rate(20),
            exit: rate(20),
            unkillable: rate(30),
        }
    }
}

/// Whether a chance comes true.
pub fn happens(rng: &mut SmallRng, per_mille: u32) -> bool {
    per_mille > 0 && rng.random_ratio(per_mille.min(1000), 1000)
}

/// A refusal of the transient kind.
pub fn refusal(rng: &mut SmallRng) -> Error {
    let kinds = [Kind::Conflict, Kind::Timeout, Kind::Internal, Kind::Busy];
    Error::new(kinds[rng.random_range(0..kinds.len())], "simulated")
}

/// A failure that says nothing of what happened.
pub fn misreading(rng: &mut SmallRng) -> Error {
    let kinds = [Kind::Timeout, Kind::Internal, Kind::Conflict];
    Error::new(kinds[rng.random_range(0..kinds.len())], "simulated, though done")
}
