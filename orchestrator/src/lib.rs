//! Podyard's one binary as a library, so that `integration` can build the same program for its tests.
#![forbid(unsafe_code)]

mod agent;
pub mod cli;
mod daemon;
mod demo;
mod node_parts;
pub mod toolbox;

use std::process::ExitCode;

/// Runs the program named by the process's arguments.
///
/// Shims and the toolbox's applets come before any argument parsing: a shim must stay small, and applets run in pods
/// under their own names.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os();
    match words.nth(1) {
        Some(verb) if verb == "shim" => return shim::run(words),
        Some(verb) if verb == "launch" => return shim::launch(words),
        _ => {}
    }
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    if let Some(code) = toolbox::dispatch(&args) {
        return code;
    }
    cli::run(std::env::args_os())
}
