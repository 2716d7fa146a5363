//! Stands in for `podyard` in this crate's own tests: it is the shim, and nothing else.

fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(word) if word == "shim" => shim::run(args),
        _ => std::process::ExitCode::FAILURE,
    }
}
