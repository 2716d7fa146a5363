//! The `podyard` program, built here so that this crate's tests get its path from cargo.

fn main() -> std::process::ExitCode {
    orchestrator::main()
}
