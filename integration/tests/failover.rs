//! Pets that lose their node serve on elsewhere, with their disk, and never twice.

use integration::harness::{Yard, is_root};
use integration::torture::{Plan, run};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

/// Blows of the bounded run; `cargo torture --blows 3000` goes on for longer.
const BLOWS: u64 = 60;

#[test]
fn root_no_pet_runs_twice_whatever_is_killed_or_cut() {
    let test = "torture";
    if !is_root(test) {
        return;
    }
    let seed = std::env::var("PODYARD_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut yard = Yard::prepare(PROGRAM, test);
    yard.daemon_args(&["--node-grace-period=2s"]);
    yard.start_daemon();
    let plan = Plan { seed, nodes: 3, pets: 3, blows: BLOWS, limit: Duration::from_secs(60) };
    let report = run(&mut yard, plan);
    println!("seed {seed}: {report}");
    assert!(report.blows.contains_key("node kill") && report.blows.contains_key("node cut"), "{report}");
    assert!(report.answered > 0, "{report}");
}
