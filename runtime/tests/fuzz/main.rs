//! Documents and messages that others write, changed at random: each is taken or refused, within bounds of time and
//! memory, and never makes the runtime panic.
//!
//! `cargo fuzz-runtime [--seconds 60] [--seed N] [TARGET…]`; as a test, a second for each target. The same seed gives
//! the same inputs. Inputs that bring a new kind of answer are kept to go on from.
#![allow(missing_docs, clippy::unwrap_used)]

mod mutate;
mod seeds;
mod targets;

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mutate::Random;
use serde_json::Value;
use targets::{TARGETS, Target};

/// Longest a single input may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Inputs kept beside the seeds.
const CORPUS_MAX: usize = 2_000;

static CURRENT: Mutex<(&str, Vec<u8>)> = Mutex::new(("", Vec::new()));
static INPUTS: AtomicU64 = AtomicU64::new(0);

struct Options {
    seconds: f64,
    seed: u64,
    targets: Vec<String>,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { seconds: 1.0, seed: 1, targets: Vec::new() };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        let number = |text: String| text.parse::<f64>().map_err(|e| format!("{arg} {text}: {e}"));
        match arg.as_str() {
            "--seconds" => options.seconds = number(value()?)?,
            "--seed" => options.seed = number(value()?)? as u64,
            // libtest's, which cargo may pass.
            flag if flag.starts_with('-') => {}
            name => options.targets.push(name.to_string()),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        TARGETS.iter().for_each(|target| println!("fuzz_{}: test", target.name));
        return ExitCode::SUCCESS;
    }
    let options = match parse(args.into_iter()) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    bound_memory();
    std::thread::spawn(watch);
    let chosen = |target: &&Target| {
        options.targets.is_empty()
            || options.targets.iter().any(|name| format!("fuzz_{}", target.name).contains(name))
    };
    let targets: Vec<&Target> = TARGETS.iter().filter(chosen).collect();
    println!("\nrunning {} tests", targets.len());
    let mut failed = 0;
    for target in targets {
        let (inputs, kinds, failure) = fuzz(target, &options);
        match failure {
            None => println!("test fuzz_{} ... ok ({inputs} inputs, {kinds} kinds of answers)", target.name),
            Some((input, what)) => {
                failed += 1;
                println!(
                    "test fuzz_{} ... FAILED\nseed {}, input {inputs}: {what}",
                    target.name, options.seed
                );
                println!("{}", String::from_utf8_lossy(&input));
            }
        }
    }
    println!("\ntest result: {}. {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How many inputs, how many kinds of answers, and the input that made it fail, with how.
fn fuzz(target: &'static Target, options: &Options) -> (u64, usize, Option<(Vec<u8>, String)>) {
    let mut random = Random::new(options.seed);
    let mut corpus: Vec<Value> = (target.seeds)();
    let mut kinds: HashSet<String> = HashSet::new();
    for seed in &corpus {
        let answer = (target.run)(seed.to_string().as_bytes());
        // Not every host has every controller.
        let accepted = answer.as_ref().map_or_else(|text| text.contains("controller"), |()| true);
        assert!(accepted, "{}: a seed is refused: {answer:?}", target.name);
    }
    let (start, mut inputs) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < options.seconds {
        let base = &corpus[random.below(corpus.len())];
        let other = &corpus[random.below(corpus.len())];
        let document = mutate::document(base, other, &mut random);
        let mut bytes = document.to_string().into_bytes();
        let structured = random.below(5) > 0;
        if !structured {
            mutate::bytes(&mut bytes, &mut random);
        }
        inputs += 1;
        INPUTS.fetch_add(1, Ordering::Relaxed);
        *CURRENT.lock().unwrap() = (target.name, bytes.clone());
        let answer = std::panic::catch_unwind(|| (target.run)(&bytes));
        let answer = match answer {
            Ok(answer) => answer,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or(panic.downcast_ref::<&str>().map(|s| s.to_string()));
                return (inputs, kinds.len(), Some((bytes, text.unwrap_or_default())));
            }
        };
        if kinds.insert(kind(&answer)) && structured && corpus.len() < CORPUS_MAX {
            corpus.push(document);
        }
    }
    (inputs, kinds.len(), None)
}

/// The answer without what is only this input's: numbers and quoted texts.
fn kind(answer: &Result<(), String>) -> String {
    let Err(text) = answer else {
        return String::new();
    };
    let mut kind = String::new();
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' | '`' => quoted = !quoted,
            _ if quoted || c.is_ascii_digit() => {}
            _ => kind.push(c),
        }
    }
    kind.chars().take(80).collect()
}

/// A document of a few kilobytes must not make us use more than this.
fn bound_memory() {
    use nix::sys::resource::{Resource::RLIMIT_AS, setrlimit};
    setrlimit(RLIMIT_AS, 2 << 30, 2 << 30).unwrap();
}

/// Ends everything if an input takes too long, and shows it.
fn watch() {
    loop {
        let before = INPUTS.load(Ordering::Relaxed);
        std::thread::sleep(PATIENCE);
        if before == INPUTS.load(Ordering::Relaxed) && before > 0 {
            let (name, input) = CURRENT.lock().unwrap().clone();
            println!("test fuzz_{name} ... FAILED: took longer than {PATIENCE:?}");
            println!("{}", String::from_utf8_lossy(&input));
            std::process::abort();
        }
    }
}
