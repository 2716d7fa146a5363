//! In which order: the rules of StatefulSet on plain values.
//!
//! ```text
//!  settle   what should be there, from the lowest up           OrderedReady: each waits for those below it
//!  surplus  what should not, from the highest down             OrderedReady: each waits for those above it
//!  roll     what is of another revision, from the highest down at most maxUnavailable at once
//! ```
//! A pet that is *off target* is of another revision than a new pod of its ordinal would be. One that is off target
//! and broken is replaced, not waited for: it will not get well by waiting, and what would mend it is known.

use std::collections::{BTreeMap, BTreeSet};

/// Most steps of one look at a `Parallel` set; the rest follow when these are done.
const BURST: usize = 100;

/// What a set asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The lowest ordinal.
    pub start: u64,
    /// How many.
    pub replicas: u64,
    /// Ordinals left out; the next ones are used in their place.
    pub reserved: BTreeSet<u64>,
    /// Nobody waits for anybody, except updates for each other.
    pub is_parallel: bool,
    /// How pods get the update revision.
    pub strategy: Strategy,
}

/// How pods get the update revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// When people delete them.
    OnDelete,
    /// A few at a time, from the highest down.
    Rolling {
        /// Counted from the lowest ordinal: those below it stay at the current revision.
        partition: u64,
        /// Most that may be unavailable for the update's sake; at least 1.
        max_unavailable: u64,
    },
    /// All go, then all come: no two revisions run at the same time.
    Recreate,
}

impl Rules {
    /// Whether a pod of that ordinal should be there.
    pub fn wants(&self, ordinal: u64) -> bool {
        let Some(offset) = ordinal.checked_sub(self.start) else { return false };
        let skipped = self.reserved.range(self.start..ordinal).count() as u64;
        !self.reserved.contains(&ordinal) && offset - skipped < self.replicas
    }

    /// The ordinals that should be there, from the lowest up.
    fn wanted(&self) -> impl Iterator<Item = u64> {
        let replicas = usize::try_from(self.replicas).unwrap_or(usize::MAX);
        (self.start..).filter(|ordinal| !self.reserved.contains(ordinal)).take(replicas)
    }

    /// Which template a new pod of that ordinal is made from.
    pub fn template(&self, ordinal: u64) -> Template {
        match self.strategy {
            Strategy::Rolling { partition, .. } if ordinal < self.start.saturating_add(partition) => {
                Template::Current
            }
            // OnDelete takes the update whenever a pod is made.
            _ => Template::Update,
        }
    }

    fn is_off_target(&self, ordinal: u64, pet: &Alive) -> bool {
        match (self.strategy, self.template(ordinal)) {
            (Strategy::OnDelete, _) => false,
            (_, Template::Current) => !pet.is_current,
            (_, Template::Update) => !pet.is_updated,
        }
    }

    fn max_unavailable(&self) -> u64 {
        match self.strategy {
            Strategy::Rolling { max_unavailable, .. } => max_unavailable.max(1),
            Strategy::OnDelete | Strategy::Recreate => 1,
        }
    }
}

/// A pod of the set, as far as order is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pet {
    /// Its deletion has begun: an incarnation that may still run.
    Ending {
        /// Made from the update revision.
        is_updated: bool,
    },
    /// It has run to its end and will not come back by itself.
    Ended {
        /// Made from the update revision.
        is_updated: bool,
    },
    /// It runs, or is about to.
    Alive(Alive),
}

/// A pod that runs, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive {
    /// Made from the update revision.
    pub is_updated: bool,
    /// Made from the current revision.
    pub is_current: bool,
    /// How it does.
    pub health: Health,
    /// Its agent has begun to start it.
    pub is_started: bool,
}

/// How a pod does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Ready for as long as the set asks.
    Well,
    /// Ready, and not for long enough, or held by hand.
    Young,
    /// Not ready, since a moment ago: it may come back by itself.
    Faltering,
    /// Not ready for a while.
    Broken,
}

impl Pet {
    fn is_updated(&self) -> bool {
        match self {
            Pet::Ending { is_updated } | Pet::Ended { is_updated } | Pet::Alive(Alive { is_updated, .. }) => {
                *is_updated
            }
        }
    }

    fn is_well(&self) -> bool {
        matches!(self, Pet::Alive(Alive { health: Health::Well, .. }))
    }
}

/// What stands in the way of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// All it needs is there.
    Free,
    /// Claims are missing.
    NeedsClaims,
    /// A claim is on its way out: the next incarnation gets a new one.
    ClaimsEnding,
    /// A claim's volume is gone for good.
    ClaimsLost,
    /// A pod of that name is there and not ours.
    Taken,
}

/// From which template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// The one before the update.
    Current,
    /// The set's.
    Update,
}

/// One thing to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the claims that are missing.
    Claims(u64),
    /// Delete the claims whose volume is gone: new ones come in their place.
    Forsake(u64),
    /// Tell that a claim is going, and that its data goes with it.
    Await(u64),
    /// Create the pod.
    Create(u64, Template),
    /// Delete the pod.
    Delete(u64),
    /// Tell that a foreign pod is in the way.
    Blocked(u64),
}

/// What to do now. `OrderedReady` does one thing at a time; nothing to do means done, or waiting.
pub fn order(rules: &Rules, pets: &BTreeMap<u64, Pet>, identity: &dyn Fn(u64) -> Identity) -> Vec<Step> {
    if rules.strategy == Strategy::Recreate && pets.values().any(|pet| !pet.is_updated()) {
        return go(rules, pets);
    }
    let mut steps = Vec::new();
    let mut busy = busy(rules, pets);
    let mut is_mending = false;

    // First all that should be there, from the lowest up.
    for ordinal in rules.wanted() {
        let pet = pets.get(&ordinal);
        if pet.is_some_and(Pet::is_well) {
            continue;
        }
        if let Some(Pet::Alive(alive)) = pet
            && rules.is_off_target(ordinal, alive)
            && alive.health != Health::Young
        {
            is_mending = true;
            // It is down already: replacing it takes nothing from anybody. One that may come back by itself is
            // not touched while others are down for the update.
            if alive.health == Health::Broken || busy < rules.max_unavailable() {
                steps.push(Step::Delete(ordinal));
                busy += 1;
            }
        } else {
            steps.extend(settle(rules, ordinal, pet, identity));
        }
        if !rules.is_parallel || steps.len() >= BURST {
            return steps;
        }
    }

    // Then those that should not, from the highest down, each fully gone before the next.
    for (ordinal, pet) in pets.iter().rev().filter(|(ordinal, _)| !rules.wants(**ordinal)) {
        if !matches!(pet, Pet::Ending { .. }) {
            steps.push(Step::Delete(*ordinal));
        }
        if !rules.is_parallel || steps.len() >= BURST {
            return steps;
        }
    }

    // Then updates of those that are well. What is broken comes before them.
    if !is_mending {
        steps.extend(roll(rules, pets));
    }
    steps
}

/// How many that should be there are down for the update's sake: missing, ending, or new and not yet well.
fn busy(rules: &Rules, pets: &BTreeMap<u64, Pet>) -> u64 {
    let is_calm = |(ordinal, pet): &(&u64, &Pet)| match pet {
        Pet::Alive(alive) => alive.health == Health::Well || rules.is_off_target(**ordinal, alive),
        Pet::Ending { .. } | Pet::Ended { .. } => false,
    };
    let calm = pets.iter().filter(|(ordinal, _)| rules.wants(**ordinal)).filter(is_calm).count();
    rules.replicas.saturating_sub(calm as u64)
}

/// What one identity that is not well needs.
fn settle(
    rules: &Rules,
    ordinal: u64,
    pet: Option<&Pet>,
    identity: &dyn Fn(u64) -> Identity,
) -> Option<Step> {
    match pet {
        None => Some(match identity(ordinal) {
            Identity::Free => Step::Create(ordinal, rules.template(ordinal)),
            Identity::NeedsClaims => Step::Claims(ordinal),
            Identity::ClaimsEnding => Step::Await(ordinal),
            Identity::ClaimsLost => Step::Forsake(ordinal),
            Identity::Taken => Step::Blocked(ordinal),
        }),
        Some(Pet::Ending { .. }) => None,
        Some(Pet::Ended { .. }) => Some(Step::Delete(ordinal)),
        Some(Pet::Alive(alive)) => match identity(ordinal) {
            // A claim that was deleted before the pod got it: without a new one it would wait for ever.
            Identity::NeedsClaims => Some(Step::Claims(ordinal)),
            // The claim waits for the pod to go, the pod for a claim that stays.
            Identity::ClaimsEnding if !alive.is_started => Some(Step::Delete(ordinal)),
            Identity::ClaimsLost if !alive.is_started => Some(Step::Forsake(ordinal)),
            _ => None,
        },
    }
}

/// The next pods that are well to replace by ones of the update revision.
fn roll(rules: &Rules, pets: &BTreeMap<u64, Pet>) -> Vec<Step> {
    if rules.strategy == Strategy::OnDelete {
        return Vec::new();
    }
    let wanted = || pets.iter().rev().filter(|(ordinal, _)| rules.wants(**ordinal));
    let well = wanted().filter(|(_, pet)| pet.is_well()).count() as u64;
    let unavailable = rules.replicas.saturating_sub(well);
    let budget = rules.max_unavailable().saturating_sub(unavailable);
    let is_next = |(ordinal, pet): &(&u64, &Pet)| {
        pet.is_well() && !pet.is_updated() && rules.template(**ordinal) == Template::Update
    };
    let next = wanted().filter(is_next).map(|(ordinal, _)| Step::Delete(*ordinal));
    next.take(usize::try_from(budget).unwrap_or(BURST).min(BURST)).collect()
}

/// The first half of `Recreate`: all of other revisions go, from the highest down, and nothing is created.
fn go(rules: &Rules, pets: &BTreeMap<u64, Pet>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (ordinal, pet) in pets.iter().rev().filter(|(_, pet)| !pet.is_updated()) {
        if !matches!(pet, Pet::Ending { .. }) {
            steps.push(Step::Delete(*ordinal));
        }
        if !rules.is_parallel || steps.len() >= BURST {
            break;
        }
    }
    steps
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
