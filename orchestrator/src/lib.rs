//! Podyard's one binary as a library, so that `integration` can build the same program for its tests.
#![forbid(unsafe_code)]

pub mod cli;
pub mod toolbox;

use std::process::ExitCode;

/// Runs the program named by the process's arguments.
///
/// The toolbox's applets are looked at before any argument parsing: they run in pods under their own names.
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    if let Some(code) = toolbox::dispatch(&args) {
        return code;
    }
    cli::run(std::env::args_os())
}
