//! In which order: the rules of StatefulSet on plain values.

use std::collections::BTreeMap;

/// What a set asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The lowest ordinal.
    pub start: u64,
    /// How many.
    pub replicas: u64,
    /// Nobody waits for anybody, except updates for each other.
    pub is_parallel: bool,
    /// Updates roll over identities from this position on; `None` waits for people to delete pods.
    pub updates_from: Option<u64>,
}

impl Rules {
    fn wants(&self, ordinal: u64) -> bool {
        ordinal >= self.start && ordinal - self.start < self.replicas
    }

    /// The first ordinal that rolls to the update revision.
    fn first_updated(&self) -> Option<u64> {
        Some(self.start.saturating_add(self.updates_from?))
    }

    fn template(&self, ordinal: u64) -> Template {
        // OnDelete takes the update whenever a pod is made.
        match self.first_updated() {
            Some(first) if ordinal < first => Template::Current,
            _ => Template::Update,
        }
    }
}

/// A pod of the set, as far as order is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pet {
    /// Its deletion has begun: an incarnation that may still run.
    Ending,
    /// It has run to its end and will not come back by itself.
    Ended,
    /// It runs, or is about to.
    Alive {
        /// Made from the update revision.
        is_updated: bool,
        /// Ready for as long as the set asks.
        is_well: bool,
        /// Ready at all.
        is_ready: bool,
        /// Its agent has begun to start it.
        is_started: bool,
    },
}

/// Whether a pod can be made where there is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// All it needs is there.
    Free,
    /// Claims are missing.
    NeedsClaims,
    /// A claim is on its way out: the next incarnation gets a new one.
    ClaimsEnding,
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
    /// Create the pod.
    Create(u64, Template),
    /// Delete the pod.
    Delete(u64),
    /// Tell that a foreign pod is in the way.
    Blocked(u64),
}

/// What to do now. `OrderedReady` does one thing at a time; nothing to do means done, or waiting.
pub fn order(rules: &Rules, pets: &BTreeMap<u64, Pet>, identity: &dyn Fn(u64) -> Identity) -> Vec<Step> {
    let mut steps = Vec::new();

    // First all that should be there, from the lowest up.
    for ordinal in (0..rules.replicas).map(|n| rules.start.saturating_add(n)) {
        let (step, is_settled) = settle(rules, ordinal, pets.get(&ordinal), identity);
        steps.extend(step);
        if !rules.is_parallel && !is_settled {
            return steps;
        }
    }

    // Then those that should not, from the highest down, each fully gone before the next.
    let surplus = pets.iter().rev().filter(|(ordinal, _)| !rules.wants(**ordinal));
    for (ordinal, pet) in surplus {
        if *pet != Pet::Ending {
            steps.push(Step::Delete(*ordinal));
        }
        if !rules.is_parallel {
            return steps;
        }
    }

    // Then updates, from the highest down, one at a time.
    if steps.is_empty() {
        steps.extend(roll(rules, pets));
    }
    steps
}

/// What one identity needs, and whether those above it need not wait.
fn settle(
    rules: &Rules,
    ordinal: u64,
    pet: Option<&Pet>,
    identity: &dyn Fn(u64) -> Identity,
) -> (Option<Step>, bool) {
    match pet {
        None => match identity(ordinal) {
            Identity::Free => (Some(Step::Create(ordinal, rules.template(ordinal))), false),
            Identity::NeedsClaims => (Some(Step::Claims(ordinal)), false),
            Identity::ClaimsEnding => (None, false),
            Identity::Taken => (Some(Step::Blocked(ordinal)), false),
        },
        Some(Pet::Ending) => (None, false),
        Some(Pet::Ended) => (Some(Step::Delete(ordinal)), false),
        Some(Pet::Alive { is_well: true, .. }) => (None, true),
        Some(Pet::Alive { is_updated, is_ready, is_started, .. }) => {
            // Broken at a revision that is no longer wanted: waiting for it to become ready would be for ever.
            let is_outdated = !is_updated && rules.first_updated().is_some_and(|first| ordinal >= first);
            if is_outdated && !is_ready {
                return (Some(Step::Delete(ordinal)), false);
            }
            let step = match identity(ordinal) {
                // A claim that was deleted before the pod got it: without a new one it would wait for ever.
                Identity::NeedsClaims => Some(Step::Claims(ordinal)),
                // The claim waits for the pod to go, the pod for a claim that stays.
                Identity::ClaimsEnding if !is_started => Some(Step::Delete(ordinal)),
                _ => None,
            };
            (step, false)
        }
    }
}

/// The next pod to replace by one of the update revision. Broken outdated pods were dealt with before, so whatever is
/// unwell now is one the update is waiting for.
fn roll(rules: &Rules, pets: &BTreeMap<u64, Pet>) -> Option<Step> {
    let first = rules.first_updated()?;
    let mut outdated = None;
    for (ordinal, pet) in pets.iter().rev().filter(|(ordinal, _)| rules.wants(**ordinal)) {
        match pet {
            Pet::Alive { is_updated: false, is_well: true, .. } if *ordinal >= first => {
                outdated = outdated.or(Some(*ordinal));
            }
            Pet::Alive { is_well: true, .. } => {}
            _ => return None,
        }
    }
    outdated.map(Step::Delete)
}
