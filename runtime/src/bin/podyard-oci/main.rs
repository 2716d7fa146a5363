//! `podyard-oci`: the runtime behind runc's command line. `podyard-oci --help` lists the commands; options.rs is the table.
//!
//! Source: runtime-spec, runtime.md; runc(8).
#![cfg_attr(not(test), no_main)]
#![deny(unsafe_code)]

mod create;
mod end;
#[cfg(not(test))]
mod entry;
mod events;
mod features;
mod inspect;
mod log;
mod options;
mod process;
mod relay;
mod spec;
mod store;
mod update;

use runtime::{Error, Result};

use log::Log;
use options::Command;

/// What runc's `exec` answers when the program never ran: other codes are the program's.
const EXEC_FAILED: u8 = 255;

/// One command; the process's exit code.
#[cfg_attr(test, allow(dead_code))]
fn start() -> u8 {
    let refused = |error: &Error| {
        Log::default().error(error);
        1
    };
    let command = match options::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(error) => return refused(&error),
    };
    let log = match Log::of(&command) {
        Ok(log) => log,
        Err(error) => return refused(&error),
    };
    match run(&command, &log) {
        Ok(code) => {
            log.success();
            code
        }
        Err(error) => {
            log.error(&error);
            if command.verb == "exec" { EXEC_FAILED } else { 1 }
        }
    }
}

fn run(command: &Command, log: &Log) -> Result<u8> {
    if command.has("--help") {
        return store::print(options::usage(command).trim_end()).map(|()| 0);
    }
    if command.has("--version") {
        let (version, spec) = (env!("CARGO_PKG_VERSION"), features::SPEC_VERSION);
        let text = format_args!("podyard-oci version {version}\nspec: {spec}");
        return store::print(text).map(|()| 0);
    }
    if command.has("--systemd-cgroup") {
        return Err(Error::unsupported("--systemd-cgroup", "cgroups are made directly, without systemd"));
    }
    if command.enters_containers() {
        store::check_preserved(command)?;
        runtime::run_from_read_only_clone()?;
    }
    match command.verb.as_str() {
        "create" => create::create(command, log).map(|_| 0),
        "run" => create::run(command, log),
        "start" => create::start(command, log).map(|()| 0),
        "exec" => process::exec(command, log),
        "state" => inspect::state(command).map(|()| 0),
        "list" => inspect::list(command).map(|()| 0),
        "ps" => inspect::ps(command).map(|()| 0),
        "features" => features::show().map(|()| 0),
        "events" => events::events(command).map(|()| 0),
        "kill" => end::kill(command).map(|()| 0),
        "delete" => end::delete(command, log).map(|()| 0),
        "pause" => end::pause(command).map(|()| 0),
        "resume" => end::resume(command).map(|()| 0),
        "update" => update::update(command, log).map(|()| 0),
        "spec" => spec::write(command).map(|()| 0),
        other => Err(Error::unsupported(other, "no such command here")),
    }
}
