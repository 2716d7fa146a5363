use super::*;

fn check(seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        let outcome = run(seed, None);
        if let Err(violation) = outcome.verdict {
            panic!("seed {seed}: {violation}\nsee it: cargo sim --seed {seed} --trace");
        }
    }
}

#[test]
fn seeds_0_to_19() {
    check(0..20);
}

#[test]
fn seeds_20_to_39() {
    check(20..40);
}

#[test]
fn one_seed_gives_one_trace() {
    for seed in [3, 7] {
        assert_eq!(run(seed, None), run(seed, None));
    }
}

/// Breaks one part, and looks for a seed in which that law sees it.
#[track_caller]
fn check_caught(mutants: &[(Mutant, &str)]) {
    for (mutant, law) in mutants {
        let is_caught = |seed: &u64| run(*seed, Some(*mutant)).verdict.is_err_and(|it| it.law == *law);
        let seed = (1..60).find(is_caught);
        println!("{mutant:?}: {law}: seed {seed:?}");
        assert!(seed.is_some(), "{mutant:?} is not caught by {law:?}");
    }
}

#[test]
fn broken_controllers_are_caught() {
    check_caught(&[
        (Mutant::Impatient, "a pod object outlives its processes"),
        (Mutant::Unordered, "lower ordinals come first"),
        (Mutant::Nameless, "no more pods than asked for"),
        (Mutant::OneAddress, "after the faults the world falls silent"),
        (Mutant::Restless, "after the faults the world falls silent"),
    ]);
}

#[test]
fn broken_keepers_of_pets_are_caught() {
    check_caught(&[
        (Mutant::Greedy, "no more pets are down for an update than maxUnavailable"),
        (Mutant::Mixed, "Recreate runs one revision at a time"),
        (Mutant::Forward, "only the ordinals asked for are made"),
    ]);
}

#[test]
fn broken_binders_collectors_and_agents_are_caught() {
    check_caught(&[
        (Mutant::Scavenger, "a volume never changes owner"),
        (Mutant::Hasty, "no claim is deleted while its owners stay"),
        (Mutant::Deaf, "after the faults the world becomes what was asked for"),
        (Mutant::Unfenced, "a pod object outlives its processes"),
        (Mutant::Everywhere, "an identity runs at most once"),
    ]);
}

#[test]
fn broken_fences_and_failovers_are_caught() {
    check_caught(&[
        (Mutant::Blind, "a pod object outlives its processes"),
        (Mutant::Early, "storage never changes owner unfenced"),
        (Mutant::Immortal, "nothing starts on a fenced node before its agent is new"),
        (Mutant::Forceful, "a pod object outlives its processes"),
        (Mutant::Helpless, "after the faults the world falls silent"),
        (Mutant::Intolerant, "who tolerates a taint is not driven away"),
        (Mutant::Presuming, "storage never changes owner unfenced"),
    ]);
}
