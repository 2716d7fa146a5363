//! The `podyard` binary: the daemon, its shims and the command line.

fn main() -> std::process::ExitCode {
    orchestrator::main()
}
