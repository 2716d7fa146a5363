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
fn seeds_0_to_49() {
    check(0..50);
}

#[test]
fn seeds_50_to_99() {
    check(50..100);
}

#[test]
fn one_seed_gives_one_trace() {
    for seed in [3, 7, 11] {
        assert_eq!(run(seed, None), run(seed, None));
    }
}

/// The first law that catches a mutant, and the seed.
fn caught(mutant: Mutant) -> Option<(u64, &'static str)> {
    (1..20).find_map(|seed| Some((seed, run(seed, Some(mutant)).verdict.err()?.law)))
}

#[track_caller]
fn check_caught(mutants: &[Mutant]) {
    for mutant in mutants {
        let law = caught(*mutant);
        println!("{mutant:?}: {law:?}");
        assert!(law.is_some(), "{mutant:?} is not caught");
    }
}

#[test]
fn broken_controllers_are_caught() {
    use Mutant::{Deaf, Hasty, Impatient, Nameless, OneAddress, Restless, Scavenger, Unordered};
    check_caught(&[Impatient, Unordered, Nameless, OneAddress, Scavenger, Hasty, Deaf, Restless]);
}

#[test]
fn broken_agents_are_caught() {
    check_caught(&[Mutant::Unfenced, Mutant::Everywhere]);
}

#[test]
fn at_most_one_has_laws_of_its_own() {
    let check = |mutant, law| {
        let is_caught = |seed| run(seed, Some(mutant)).verdict.is_err_and(|it| it.law == law);
        assert!((1..20).any(is_caught), "{mutant:?}: {law}");
    };
    check(Mutant::Everywhere, "an identity runs at most once");
    check(Mutant::Unfenced, "a pod object outlives its processes");
    check(Mutant::Scavenger, "a volume never changes owner");
    check(Mutant::Hasty, "no claim is deleted while its owners stay");
}
