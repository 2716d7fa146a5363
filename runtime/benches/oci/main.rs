//! `podyard-oci` beside runc, crun, youki and the floor: how long one container takes.
//!
//! ```text
//!   cargo bench --profile dist -p runtime --bench oci -- [--rounds 50] [--variants plain,seccomp,limits,split]
//!       [--peer NAME=PATH]… [--only NAME,…] [--view v1|host] [--seed N] [--seccomp FILE] [--markdown]
//! ```
//!
//! Every round runs every contender once, in random order, because a fixed order lets one profit from what another left
//! warm. The floor (floor.rs) does the same kernel work as a straight line with nothing to parse. All of it happens in
//! a mount namespace of its own; with `--view v1`, the default on hybrid hosts, cgroup2 is unmounted there, because
//! crun refuses hybrid hosts. A container's program is this binary too, so that nothing of the host's is needed.
//!
//! It is the driver, the floor and the program in one file, started without Rust's runtime (`no_main`), so that the
//! floor's start costs what a static C program's does.
#![no_main]
#![deny(unsafe_code)]

mod bundle;
mod contender;
mod driver;
mod floor;
mod report;
mod sys;

use std::process::ExitCode;

/// What this process is, by its arguments.
fn run() -> ExitCode {
    let mut args = std::env::args();
    let own = args.next().unwrap_or_default();
    match own.rsplit('/').next() {
        Some("true") => return ExitCode::SUCCESS,
        Some("pause") => loop {
            rustix::event::pause();
        },
        _ => {}
    }
    let args: Vec<String> = args.collect();
    match args.first().map(String::as_str) {
        Some("floor") => floor::run(&args[1..]),
        _ => match driver::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("oci: {error}");
                ExitCode::FAILURE
            }
        },
    }
}
