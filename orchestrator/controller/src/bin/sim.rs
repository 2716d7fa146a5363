//! `cargo sim`: the controllers against a simulated world.
//!
//! `cargo sim --seeds 1000` runs seeds 0 to 999 and names the first that breaks a law. `cargo sim --seed 7 --trace`
//! runs one and tells all that happens in it.

use std::io::Write;
use std::process::ExitCode;

use controller::sim::{Mutant, run};

struct Options {
    first: u64,
    count: u64,
    trace: bool,
    mutant: Option<Mutant>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { first: 0, count: 100, trace: false, mutant: None };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
        match word.as_str() {
            "--seeds" => options.count = number(value()?)?,
            "--seed" => (options.first, options.count) = (number(value()?)?, 1),
            "--from" => options.first = number(value()?)?,
            "--trace" => options.trace = true,
            "--mutant" => {
                let name = value()?;
                let found = Mutant::ALL.into_iter().find(|it| format!("{it:?}").eq_ignore_ascii_case(&name));
                options.mutant =
                    Some(found.ok_or(format!("no mutant {name:?}; there are {:?}", Mutant::ALL))?);
            }
            _ => {
                return Err(format!(
                    "{word:?}; usage: sim [--seeds N] [--from N] [--seed N] [--trace] [--mutant M]"
                ));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("sim: {why}");
            return ExitCode::from(2);
        }
    };
    let (mut events, mut most, mut broken) = (0, 0, 0_u64);
    for seed in options.first..options.first.saturating_add(options.count) {
        let outcome = run(seed, options.mutant);
        events += outcome.events;
        most = most.max(outcome.events);
        if options.trace {
            // A reader that has seen enough is no failure.
            let _ = std::io::stdout().write_all(outcome.trace.as_bytes());
        }
        if let Err(violation) = outcome.verdict {
            broken += 1;
            println!("seed {seed}: {violation}");
        }
    }
    println!("{} seeds, {events} events, at most {most} in one, {broken} broken", options.count);
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
