//! The runtime on the real kernel: what a container can see, do, and above all cannot.
//!
//! `kernel [FILTER]` runs the tests, each in a re-executed single-threaded process; `kernel --run
//! NAME WITHOUT` is such a process; `kernel --program COMMAND…` is what runs inside the containers.
#![allow(missing_docs, clippy::unwrap_used)]

mod attack;
mod attributes;
mod binary;
mod bundle;
mod cgroup;
mod container;
mod escape;
mod exec;
mod failure;
mod fixture;
mod harness;
mod hooks;
mod hostile;
mod inside;
mod mounts;
mod namespaces;
mod program;
mod propagation;
mod races;
mod records;
mod resources;
mod restrictions;
mod seccomp;
mod steps;
mod supervise;

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tests = [
        container::TESTS,
        mounts::TESTS,
        propagation::TESTS,
        restrictions::TESTS,
        exec::TESTS,
        cgroup::TESTS,
        resources::TESTS,
        failure::TESTS,
        hooks::TESTS,
        namespaces::TESTS,
        attributes::TESTS,
        seccomp::TESTS,
        hostile::TESTS,
        binary::TESTS,
        escape::TESTS,
        inside::TESTS,
        races::TESTS,
        records::TESTS,
        steps::TESTS,
    ]
    .concat();
    match args.first().map(String::as_str) {
        Some("--program") => program::main(&args[1..]),
        Some("--run") => harness::run_one(&tests, &args[1], &args[2]),
        _ => return harness::run_all(&tests, &args),
    }
    std::process::ExitCode::SUCCESS
}
