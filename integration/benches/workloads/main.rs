//! The four servers that pets were made for, as pets: written to, killed, updated, scaled and read back.
//!
//! ```text
//! cargo workload etcd | postgres | mariadb | zookeeper      everything that one of them must bear, with figures
//! cargo workload failover postgres [KILLS [FILE]]           kills the node of the primary again and again; the figures are
//!                                                           of this run and of those whose times FILE has
//! cargo workload rest                                       all four at rest: what Podyard writes meanwhile
//! ```
//! Debian's packages must be installed, and the caller be root. Each run makes a yard of its own with three nodes, and
//! removes it. A writer records every write that was acknowledged; at the end all of them are read from every pet.
#![forbid(unsafe_code)]

mod etcd;
mod mariadb;
mod postgres;
mod rest;
mod scenario;
mod socket;
mod store;
mod writer;
mod zookeeper;

use integration::harness::is_root;
use std::io::Write;
use store::Workload;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

/// Node kills of `failover` unless a number is given.
const KILLS: usize = 100;

static WORKLOADS: &[&Workload] =
    &[&etcd::WORKLOAD, &postgres::WORKLOAD, &mariadb::WORKLOAD, &zookeeper::WORKLOAD];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        // Run by this program itself, in the namespace that is the host to the yard.
        ["write", name, address, log] => writer::write(named(name), address, log),
        ["read", name, address] => writer::read(named(name), address),
        ["failover", name] => failover(named(name), KILLS, None),
        ["failover", name, kills] => failover(named(name), number(kills), None),
        ["failover", name, kills, file] => failover(named(name), number(kills), Some(file.as_ref())),
        ["rest"] => rest(),
        [] => WORKLOADS.iter().for_each(|workload| run(workload)),
        // `cargo bench -- WORD` gives its word to every bench.
        _ => WORKLOADS.iter().filter(|one| words.contains(&one.name)).for_each(|workload| run(workload)),
    }
}

fn named(name: &str) -> &'static Workload {
    WORKLOADS.iter().find(|one| one.name == name).unwrap_or_else(|| {
        let names: Vec<&str> = WORKLOADS.iter().map(|one| one.name).collect();
        panic!("no workload {name:?}: {}", names.join(", "))
    })
}

fn run(workload: &'static Workload) {
    if can_run(workload) {
        scenario::run(workload);
    }
}

fn number(kills: &str) -> usize {
    kills.parse().expect("a number of kills")
}

fn failover(workload: &'static Workload, kills: usize, file: Option<&std::path::Path>) {
    if can_run(workload) {
        scenario::failover(workload, kills, file);
    }
}

fn rest() {
    if WORKLOADS.iter().all(|workload| can_run(workload)) {
        rest::rest(WORKLOADS);
    }
}

/// Whether the packages are there and we are root; says loudly if not.
fn can_run(workload: &Workload) -> bool {
    let missing = workload.programs.iter().find(|program| !std::path::Path::new(program).exists());
    if let Some(program) = missing {
        let line = format!(
            "SKIP {}: there is no {program} (apt-get install --no-install-recommends {})\n",
            workload.name, workload.packages
        );
        std::io::stderr().write_all(line.as_bytes()).expect("tell what is skipped");
        return false;
    }
    is_root(workload.name)
}
