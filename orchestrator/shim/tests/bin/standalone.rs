//! The shim without the rest of podyard: `shim-standalone shim POD_DIR POD_UID CGROUP`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    shim::run(std::env::args_os().skip(2))
}
