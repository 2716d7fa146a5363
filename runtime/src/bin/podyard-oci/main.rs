//! `podyard-oci`: the runtime behind an OCI command line.
//!
//! ```text
//!   podyard-oci [--root DIR] create|run [--bundle DIR] [--pid-file FILE] [--console-socket PATH] ID
//!   podyard-oci [--root DIR] start|state ID
//!   podyard-oci [--root DIR] kill [--all] ID [SIGNAL]
//!   podyard-oci [--root DIR] delete [--force] ID
//!   podyard-oci [--root DIR] exec [--tty] [--user UID[:GID]] [--cwd DIR] [--env K=V] [--process FILE]
//!                                 [--pid-file FILE] [--console-socket PATH] [--detach] ID COMMAND…
//!   podyard-oci spec [--bundle DIR] · podyard-oci list
//! ```
//!
//! Source: runtime-spec, runtime.md; the options are those of runc(8) that callers use.
#![forbid(unsafe_code)]

mod options;
mod relay;
mod spec;
mod verbs;

use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = options::parse(std::env::args().skip(1)).and_then(|command| {
        if command.enters_containers() {
            runtime::run_from_read_only_clone()?;
        }
        verbs::run(&command)
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("podyard-oci: {error}");
            ExitCode::FAILURE
        }
    }
}
