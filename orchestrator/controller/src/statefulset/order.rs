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

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Pet = Pet::Alive { is_updated: true, is_well: true, is_ready: true, is_started: true };
    const OLD: Pet = Pet::Alive { is_updated: false, is_well: true, is_ready: true, is_started: true };
    const SICK: Pet = Pet::Alive { is_updated: true, is_well: false, is_ready: false, is_started: true };
    const OLD_SICK: Pet = Pet::Alive { is_updated: false, is_well: false, is_ready: false, is_started: true };
    const YOUNG: Pet = Pet::Alive { is_updated: true, is_well: false, is_ready: true, is_started: true };
    const UNSTARTED: Pet =
        Pet::Alive { is_updated: true, is_well: false, is_ready: false, is_started: false };

    fn rules(replicas: u64) -> Rules {
        Rules { start: 0, replicas, is_parallel: false, updates_from: Some(0) }
    }

    fn parallel(replicas: u64) -> Rules {
        Rules { is_parallel: true, ..rules(replicas) }
    }

    fn create(ordinal: u64) -> Step {
        Step::Create(ordinal, Template::Update)
    }

    /// Pets by ordinal from 0; `None` is a gap.
    fn pets(pets: &[Option<Pet>]) -> BTreeMap<u64, Pet> {
        (0..).zip(pets).filter_map(|(ordinal, pet)| Some((ordinal, (*pet)?))).collect()
    }

    #[track_caller]
    fn check(rules: Rules, state: &[Option<Pet>], expect: &[Step]) {
        assert_eq!(order(&rules, &pets(state), &|_| Identity::Free), expect);
    }

    #[test]
    fn ordered_creation_starts_at_the_lowest_and_waits_for_each() {
        check(rules(3), &[], &[create(0)]);
        check(rules(3), &[Some(WELL)], &[create(1)]);
        check(rules(3), &[Some(SICK)], &[]);
        check(rules(3), &[Some(YOUNG)], &[]);
        check(rules(3), &[Some(WELL), None, Some(WELL)], &[create(1)]);
    }

    #[test]
    fn parallel_creation_waits_for_nobody() {
        check(parallel(3), &[None, Some(SICK)], &[create(0), create(2)]);
    }

    #[test]
    fn an_identity_that_is_ending_is_waited_for_and_never_doubled() {
        check(rules(2), &[Some(Pet::Ending)], &[]);
        check(parallel(1), &[Some(Pet::Ending)], &[]);
    }

    #[test]
    fn a_pod_that_has_ended_is_replaced() {
        check(rules(2), &[Some(Pet::Ended), Some(WELL)], &[Step::Delete(0)]);
        check(parallel(2), &[Some(Pet::Ended), Some(Pet::Ended)], &[Step::Delete(0), Step::Delete(1)]);
    }

    #[test]
    fn ordered_removal_takes_the_highest_and_waits_until_it_is_gone() {
        check(rules(1), &[Some(WELL), Some(WELL), Some(WELL)], &[Step::Delete(2)]);
        check(rules(1), &[Some(WELL), Some(WELL), Some(Pet::Ending)], &[]);
        check(rules(0), &[Some(SICK), Some(WELL)], &[Step::Delete(1)]);
    }

    #[test]
    fn ordered_removal_waits_for_those_that_stay_to_be_well() {
        check(rules(1), &[Some(SICK), Some(WELL)], &[]);
    }

    #[test]
    fn parallel_removal_takes_all() {
        check(parallel(1), &[Some(SICK), Some(WELL), Some(WELL)], &[Step::Delete(2), Step::Delete(1)]);
    }

    #[test]
    fn updates_roll_from_the_highest_down_one_at_a_time() {
        check(rules(3), &[Some(OLD), Some(OLD), Some(OLD)], &[Step::Delete(2)]);
        check(rules(3), &[Some(OLD), Some(OLD), Some(WELL)], &[Step::Delete(1)]);
        check(rules(3), &[Some(OLD), Some(OLD), Some(SICK)], &[]);
        check(parallel(3), &[Some(OLD), Some(OLD), Some(SICK)], &[]);
        check(parallel(3), &[Some(OLD), Some(OLD), Some(OLD)], &[Step::Delete(2)]);
        check(rules(3), &[Some(WELL), Some(WELL), Some(WELL)], &[]);
    }

    #[test]
    fn a_partition_holds_those_below_it_at_the_current_template() {
        let rules = |updates_from| Rules { updates_from, ..rules(3) };
        check(rules(Some(2)), &[Some(OLD), Some(OLD), Some(OLD)], &[Step::Delete(2)]);
        check(rules(Some(2)), &[Some(OLD), Some(OLD), Some(WELL)], &[]);
        check(rules(Some(2)), &[Some(OLD), None, Some(WELL)], &[Step::Create(1, Template::Current)]);
        check(rules(Some(1)), &[Some(OLD), None, Some(WELL)], &[Step::Create(1, Template::Update)]);
    }

    #[test]
    fn on_delete_updates_when_people_delete() {
        let rules = Rules { updates_from: None, ..rules(2) };
        check(rules, &[Some(OLD), Some(OLD)], &[]);
        check(rules, &[Some(OLD_SICK), Some(OLD)], &[]);
        check(rules, &[Some(OLD), None], &[Step::Create(1, Template::Update)]);
    }

    #[test]
    fn a_broken_pod_of_an_old_revision_is_replaced_not_waited_for() {
        check(rules(3), &[Some(OLD), Some(OLD_SICK), Some(OLD)], &[Step::Delete(1)]);
        let held = Rules { updates_from: Some(2), ..rules(3) };
        check(held, &[Some(OLD), Some(OLD_SICK), Some(OLD)], &[]);
        // One that is merely young is not broken.
        let young = Pet::Alive { is_updated: false, is_well: false, is_ready: true, is_started: true };
        check(rules(2), &[Some(young), Some(OLD)], &[]);
    }

    #[test]
    fn ordinals_may_start_above_zero() {
        let rules = Rules { start: 2, ..rules(2) };
        check(rules, &[], &[create(2)]);
        check(rules, &[None, None, Some(WELL), Some(WELL), Some(WELL)], &[Step::Delete(4)]);
        check(rules, &[Some(WELL), None, Some(WELL), Some(WELL)], &[Step::Delete(0)]);
    }

    #[test]
    fn claims_come_before_the_pod() {
        let check = |state: &[Option<Pet>], identity: Identity, expect: &[Step]| {
            assert_eq!(order(&rules(1), &pets(state), &|_| identity), expect, "{identity:?}");
        };
        check(&[], Identity::NeedsClaims, &[Step::Claims(0)]);
        check(&[], Identity::ClaimsEnding, &[]);
        check(&[], Identity::Taken, &[Step::Blocked(0)]);
        // A claim lost under a pod that waits for it is made again.
        check(&[Some(SICK)], Identity::NeedsClaims, &[Step::Claims(0)]);
        // Neither waits for the other for ever; but what has started is not killed for its claim.
        check(&[Some(UNSTARTED)], Identity::ClaimsEnding, &[Step::Delete(0)]);
        check(&[Some(SICK)], Identity::ClaimsEnding, &[]);
        check(&[Some(WELL)], Identity::ClaimsEnding, &[]);
    }
}
