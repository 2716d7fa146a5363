//! One table per rule, named by the rule.

use super::*;

const fn alive(is_updated: bool, is_current: bool, health: Health) -> Pet {
    Pet::Alive(Alive { is_updated, is_current, health, is_started: true })
}

/// Of the update revision.
const WELL: Pet = alive(true, false, Health::Well);
const YOUNG: Pet = alive(true, false, Health::Young);
const SICK: Pet = alive(true, false, Health::Broken);
const UNSTARTED: Pet =
    Pet::Alive(Alive { is_updated: true, is_current: false, health: Health::Faltering, is_started: false });
/// Of the current revision.
const OLD: Pet = alive(false, true, Health::Well);
const OLD_YOUNG: Pet = alive(false, true, Health::Young);
const OLD_FALTERING: Pet = alive(false, true, Health::Faltering);
const OLD_SICK: Pet = alive(false, true, Health::Broken);
/// Of neither.
const STRANGE: Pet = alive(false, false, Health::Well);
const STRANGE_SICK: Pet = alive(false, false, Health::Broken);

const ENDING: Pet = Pet::Ending { is_updated: true };
const OLD_ENDING: Pet = Pet::Ending { is_updated: false };
const ENDED: Pet = Pet::Ended { is_updated: true };

fn rolling(partition: u64, max_unavailable: u64) -> Strategy {
    Strategy::Rolling { partition, max_unavailable }
}

fn ordered(replicas: u64) -> Rules {
    Rules { start: 0, replicas, reserved: BTreeSet::new(), is_parallel: false, strategy: rolling(0, 1) }
}

fn parallel(replicas: u64) -> Rules {
    Rules { is_parallel: true, ..ordered(replicas) }
}

fn create(ordinal: u64) -> Step {
    Step::Create(ordinal, Template::Update)
}

fn delete(ordinals: &[u64]) -> Vec<Step> {
    ordinals.iter().map(|ordinal| Step::Delete(*ordinal)).collect()
}

/// Pets by ordinal from 0; `None` is a gap.
fn pets(pets: &[Option<Pet>]) -> BTreeMap<u64, Pet> {
    (0..).zip(pets).filter_map(|(ordinal, pet)| Some((ordinal, (*pet)?))).collect()
}

#[track_caller]
fn check(rules: &Rules, state: &[Option<Pet>], expect: &[Step]) {
    assert_eq!(order(rules, &pets(state), &|_| Identity::Free), expect);
}

#[test]
fn ordered_creation_starts_at_the_lowest_and_waits_for_each() {
    check(&ordered(3), &[], &[create(0)]);
    check(&ordered(3), &[Some(WELL)], &[create(1)]);
    check(&ordered(3), &[Some(SICK)], &[]);
    check(&ordered(3), &[Some(WELL), None, Some(WELL)], &[create(1)]);
}

#[test]
fn a_pet_that_is_not_ready_for_long_enough_is_waited_for() {
    check(&ordered(3), &[Some(YOUNG)], &[]);
    check(&ordered(2), &[Some(OLD), Some(YOUNG)], &[]);
    check(&parallel(2), &[Some(OLD), Some(YOUNG)], &[]);
}

#[test]
fn parallel_creation_waits_for_nobody() {
    check(&parallel(3), &[None, Some(SICK)], &[create(0), create(2)]);
}

#[test]
fn a_large_parallel_set_is_made_in_bursts() {
    assert_eq!(order(&parallel(u64::from(u32::MAX)), &pets(&[]), &|_| Identity::Free).len(), BURST);
}

#[test]
fn an_identity_that_is_ending_is_waited_for_and_never_doubled() {
    check(&ordered(2), &[Some(ENDING)], &[]);
    check(&parallel(1), &[Some(ENDING)], &[]);
}

#[test]
fn a_pod_that_has_ended_is_replaced() {
    check(&ordered(2), &[Some(ENDED), Some(WELL)], &delete(&[0]));
    check(&parallel(2), &[Some(ENDED), Some(ENDED)], &delete(&[0, 1]));
}

#[test]
fn ordered_removal_takes_the_highest_and_waits_until_it_is_gone() {
    check(&ordered(1), &[Some(WELL), Some(WELL), Some(WELL)], &delete(&[2]));
    check(&ordered(1), &[Some(WELL), Some(WELL), Some(ENDING)], &[]);
    check(&ordered(0), &[Some(SICK), Some(WELL)], &delete(&[1]));
}

#[test]
fn ordered_removal_waits_for_those_that_stay_to_be_well() {
    check(&ordered(1), &[Some(SICK), Some(WELL)], &[]);
}

#[test]
fn parallel_removal_takes_all() {
    check(&parallel(1), &[Some(SICK), Some(WELL), Some(WELL)], &delete(&[2, 1]));
}

#[test]
fn updates_roll_from_the_highest_down_one_at_a_time() {
    for rules in [ordered(3), parallel(3)] {
        check(&rules, &[Some(OLD), Some(OLD), Some(OLD)], &delete(&[2]));
        check(&rules, &[Some(OLD), Some(OLD), Some(WELL)], &delete(&[1]));
        check(&rules, &[Some(OLD), Some(OLD), Some(SICK)], &[]);
        check(&rules, &[Some(OLD), Some(OLD), Some(ENDING)], &[]);
        check(&rules, &[Some(WELL), Some(WELL), Some(WELL)], &[]);
        check(&rules, &[Some(STRANGE), Some(WELL), Some(WELL)], &delete(&[0]));
    }
}

#[test]
fn surplus_goes_before_updates_in_order() {
    check(&ordered(1), &[Some(OLD), Some(OLD)], &delete(&[1]));
    check(&parallel(1), &[Some(OLD), Some(OLD)], &delete(&[1, 0]));
}

#[test]
fn a_partition_holds_those_below_it_at_the_current_template() {
    let rules = |partition| Rules { strategy: rolling(partition, 1), ..ordered(3) };
    check(&rules(2), &[Some(OLD), Some(OLD), Some(OLD)], &delete(&[2]));
    check(&rules(2), &[Some(OLD), Some(OLD), Some(WELL)], &[]);
    check(&rules(2), &[Some(OLD), None, Some(WELL)], &[Step::Create(1, Template::Current)]);
    check(&rules(1), &[Some(OLD), None, Some(WELL)], &[create(1)]);
    check(&rules(9), &[Some(OLD), Some(OLD), Some(OLD)], &[]);
    // One that is well stays as it is, whatever it is.
    check(&rules(3), &[Some(WELL), Some(STRANGE), Some(OLD)], &[]);
}

#[test]
fn at_most_max_unavailable_are_down_for_an_update() {
    let rules = |max, base: Rules| Rules { strategy: rolling(0, max), ..base };
    let old = [Some(OLD); 5];
    check(&rules(2, ordered(5)), &old, &delete(&[4, 3]));
    check(&rules(2, parallel(5)), &old, &delete(&[4, 3]));
    check(&rules(9, parallel(5)), &old, &delete(&[4, 3, 2, 1, 0]));
    // OrderedReady goes batch by batch: the next begins when the one before is well.
    let half = [Some(OLD), Some(OLD), Some(OLD), Some(SICK), Some(WELL)];
    check(&rules(2, ordered(5)), &half, &[]);
    // Parallel keeps so many down: each that is well makes room for the next.
    check(&rules(2, parallel(5)), &half, &delete(&[2]));
    check(&rules(2, parallel(5)), &[Some(OLD), Some(OLD), Some(OLD), Some(ENDING), Some(SICK)], &[]);
    // Whoever is unavailable counts, whatever for.
    check(
        &rules(2, parallel(5)),
        &[Some(OLD_YOUNG), Some(OLD), Some(OLD), Some(OLD), Some(OLD)],
        &delete(&[4]),
    );
    // With a partition, only those above it go.
    let held = Rules { strategy: rolling(4, 3), ..parallel(5) };
    check(&held, &old, &delete(&[4]));
}

#[test]
fn on_delete_updates_when_people_delete() {
    let rules = Rules { strategy: Strategy::OnDelete, ..ordered(2) };
    check(&rules, &[Some(OLD), Some(OLD)], &[]);
    check(&rules, &[Some(OLD_SICK), Some(OLD)], &[]);
    check(&rules, &[Some(OLD), None], &[create(1)]);
}

#[test]
fn recreate_takes_all_down_before_any_comes_up() {
    let rules = |base: Rules| Rules { strategy: Strategy::Recreate, ..base };
    // In order: as when it is scaled to nothing, then from nothing.
    check(&rules(ordered(3)), &[Some(OLD), Some(OLD), Some(OLD)], &delete(&[2]));
    check(&rules(ordered(3)), &[Some(OLD), Some(OLD), Some(OLD_ENDING)], &[]);
    check(&rules(ordered(3)), &[Some(OLD), Some(OLD)], &delete(&[1]));
    check(&rules(ordered(3)), &[Some(OLD_ENDING)], &[]);
    check(&rules(ordered(3)), &[], &[create(0)]);
    check(&rules(ordered(3)), &[Some(WELL)], &[create(1)]);
    check(&rules(parallel(3)), &[Some(OLD), Some(OLD_SICK), Some(OLD)], &delete(&[2, 1, 0]));
    check(&rules(parallel(3)), &[Some(OLD_ENDING), None, None], &[]);
    check(&rules(parallel(3)), &[None, None, None], &[create(0), create(1), create(2)]);
    // One of the new revision that is ending, or missing, is replaced alone.
    check(&rules(parallel(3)), &[Some(WELL), None, Some(ENDING)], &[create(1)]);
    check(&rules(ordered(2)), &[Some(WELL), Some(WELL)], &[]);
    // One that waits for ever does not hold the others.
    check(&rules(ordered(2)), &[Some(OLD_SICK), Some(OLD)], &delete(&[1]));
}

#[test]
fn a_broken_pod_of_an_old_revision_is_replaced_not_waited_for() {
    check(&ordered(3), &[Some(OLD), Some(OLD_SICK), Some(OLD)], &delete(&[1]));
    check(&ordered(3), &[Some(OLD_SICK), Some(OLD_SICK), Some(SICK)], &delete(&[0]));
    check(&ordered(2), &[Some(OLD), Some(STRANGE_SICK)], &delete(&[1]));
    // One that is merely young is not broken.
    check(&ordered(2), &[Some(OLD_YOUNG), Some(OLD)], &[]);
}

#[test]
fn in_parallel_all_broken_pods_of_an_old_revision_are_replaced_at_once() {
    // A quorum that never was gets well together or not at all.
    check(&parallel(3), &[Some(OLD_SICK), Some(OLD_SICK), Some(SICK)], &delete(&[0, 1]));
}

#[test]
fn broken_pods_of_an_old_revision_go_before_healthy_ones() {
    for rules in [ordered(3), parallel(3)] {
        check(&rules, &[Some(OLD_SICK), Some(OLD), Some(OLD)], &delete(&[0]));
        check(&rules, &[Some(ENDING), Some(OLD), Some(OLD)], &[]);
        check(&rules, &[Some(WELL), Some(OLD), Some(OLD)], &delete(&[2]));
    }
}

#[test]
fn one_that_falters_is_left_alone_while_another_is_down_for_the_update() {
    for rules in [ordered(3), parallel(3)] {
        check(&rules, &[Some(OLD_FALTERING), Some(OLD), Some(ENDING)], &[]);
        check(&rules, &[Some(OLD_FALTERING), Some(OLD), Some(SICK)], &[]);
        check(&rules, &[Some(OLD_FALTERING), Some(OLD), Some(OLD)], &delete(&[0]));
    }
    let two = Rules { strategy: rolling(0, 2), ..parallel(3) };
    check(&two, &[Some(OLD_FALTERING), Some(OLD), Some(ENDING)], &delete(&[0]));
}

#[test]
fn below_a_partition_a_broken_pod_of_another_revision_goes_back() {
    let rules = Rules { strategy: rolling(2, 1), ..ordered(3) };
    check(&rules, &[Some(OLD), Some(SICK), Some(WELL)], &delete(&[1]));
    check(&rules, &[Some(OLD), Some(STRANGE_SICK), Some(WELL)], &delete(&[1]));
    // It is what it should be: there is nothing better to replace it with.
    check(&rules, &[Some(OLD), Some(OLD_SICK), Some(OLD)], &[]);
}

#[test]
fn ordinals_may_start_above_zero() {
    let rules = Rules { start: 2, ..ordered(2) };
    check(&rules, &[], &[create(2)]);
    check(&rules, &[None, None, Some(WELL), Some(WELL), Some(WELL)], &delete(&[4]));
    check(&rules, &[Some(WELL), None, Some(WELL), Some(WELL)], &delete(&[0]));
    // The partition counts from there.
    let held = Rules { strategy: rolling(1, 1), ..rules };
    check(&held, &[None, None, Some(OLD), Some(OLD)], &delete(&[3]));
    check(&held, &[None, None, Some(OLD), Some(WELL)], &[]);
}

#[test]
fn reserved_ordinals_are_skipped_and_the_next_ones_used() {
    let reserving = |reserved: &[u64]| Rules { reserved: reserved.iter().copied().collect(), ..ordered(3) };
    check(&reserving(&[1]), &[Some(WELL)], &[create(2)]);
    check(&reserving(&[1]), &[Some(WELL), None, Some(WELL)], &[create(3)]);
    check(&reserving(&[1, 3]), &[Some(WELL), None, Some(WELL), None], &[create(4)]);
    check(&reserving(&[0, 1, 9]), &[], &[create(2)]);
    // One that becomes reserved goes when the one in its place is there.
    check(&reserving(&[1]), &[Some(WELL), Some(WELL), Some(WELL)], &[create(3)]);
    check(&reserving(&[1]), &[Some(WELL), Some(WELL), Some(WELL), Some(WELL)], &delete(&[1]));
    check(&reserving(&[7]), &[Some(WELL), Some(WELL), Some(WELL)], &[]);
    let wanted: Vec<u64> = Rules { start: 2, ..reserving(&[0, 3]) }.wanted().collect();
    assert_eq!(wanted, [2, 4, 5]);
    for (ordinal, is_wanted) in [(1, false), (2, true), (3, false), (5, true), (6, false)] {
        assert_eq!(Rules { start: 2, ..reserving(&[0, 3]) }.wants(ordinal), is_wanted, "{ordinal}");
    }
}

#[test]
fn claims_come_before_the_pod() {
    let check = |state: &[Option<Pet>], identity: Identity, expect: &[Step]| {
        assert_eq!(order(&ordered(1), &pets(state), &|_| identity), expect, "{identity:?}");
    };
    check(&[], Identity::NeedsClaims, &[Step::Claims(0)]);
    check(&[], Identity::ClaimsEnding, &[Step::Await(0)]);
    check(&[], Identity::Taken, &[Step::Blocked(0)]);
}

#[test]
fn a_claim_lost_under_a_pod_that_waits_for_it_is_made_again() {
    let check = |state: &[Option<Pet>], identity: Identity, expect: &[Step]| {
        assert_eq!(order(&ordered(1), &pets(state), &|_| identity), expect, "{identity:?}");
    };
    check(&[Some(SICK)], Identity::NeedsClaims, &[Step::Claims(0)]);
    // Neither waits for the other for ever; but what has started is not killed for its claim.
    check(&[Some(UNSTARTED)], Identity::ClaimsEnding, &delete(&[0]));
    check(&[Some(SICK)], Identity::ClaimsEnding, &[]);
    check(&[Some(WELL)], Identity::ClaimsEnding, &[]);
    check(&[], Identity::ClaimsLost, &[Step::Forsake(0)]);
    check(&[Some(UNSTARTED)], Identity::ClaimsLost, &[Step::Forsake(0)]);
    check(&[Some(SICK)], Identity::ClaimsLost, &[]);
    check(&[Some(WELL)], Identity::ClaimsLost, &[]);
}
