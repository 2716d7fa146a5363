//! `cargo torture [--seed N] [--blows N] [--nodes N] [--pets N]`: random blows at a yard of nodes, for as long as asked.

use integration::harness::{Yard, is_root};
use integration::torture::{Plan, run};
use std::time::Duration;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |flag: &str, default: u64| {
        let at = words.iter().position(|word| word == flag);
        at.and_then(|at| words.get(at + 1)).map_or(default, |text| text.parse().expect("a number"))
    };
    if !is_root("torture") {
        return;
    }
    let own = std::env::current_exe().expect("our own path");
    let program = own.with_file_name("podyard-under-test");
    let plan = Plan {
        seed: number("--seed", 1),
        nodes: number("--nodes", 3) as usize,
        pets: number("--pets", 3) as usize,
        blows: number("--blows", 1_000),
        limit: Duration::from_secs(number("--seconds", 3_600)),
    };
    let mut yard = Yard::prepare(&program.to_string_lossy(), "torture");
    yard.daemon_args(&["--node-grace-period=2s"]);
    yard.start_daemon();
    println!("seed {}: {}", plan.seed, run(&mut yard, plan));
}
