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

/// The laws that catch a mutant within some seeds.
fn caught(mutant: Mutant) -> Vec<&'static str> {
    let mut laws: Vec<&str> =
        (0..30).filter_map(|seed| run(seed, Some(mutant)).verdict.err()).map(|it| it.law).take(3).collect();
    laws.sort_unstable();
    laws.dedup();
    laws
}

#[test]
fn every_mutant_is_caught() {
    for mutant in Mutant::ALL {
        let laws = caught(mutant);
        println!("{mutant:?}: {laws:?}");
        assert!(!laws.is_empty(), "{mutant:?} is not caught");
    }
}
