//! Runs tests in processes of their own, a few at a time, and prints what libtest would.

use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub type Test = (&'static str, fn());

/// Longest a single test may take. The machine may be an emulated one.
const DEADLINE: Duration = Duration::from_secs(120);

pub fn run_one(tests: &[Test], name: &str) {
    let (_, body) = tests.iter().find(|(n, _)| *n == name).expect("a test");
    body();
}

pub fn run_all(tests: &[Test], args: &[String]) -> ExitCode {
    // libtest's own options, which cargo may pass, mean nothing here but for --list.
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen: Vec<Test> = tests
        .iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)))
        .copied()
        .collect();
    if args.iter().any(|a| a == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: needs root");
        return ExitCode::SUCCESS;
    }
    let queue = Mutex::new(chosen.iter());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some((name, _)) = queue.lock().unwrap().next().copied() else {
                        return;
                    };
                    let (passed, output) = run(name);
                    let skipped = output.contains("SKIP:");
                    let word = match (passed, skipped) {
                        (true, true) => "ignored",
                        (true, false) => "ok",
                        (false, _) => "FAILED",
                    };
                    println!("test {name} ... {word}");
                    if skipped || !passed {
                        println!("{}", output.trim_end());
                    }
                    if !passed {
                        failures.lock().unwrap().push(name);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let passed = chosen.len() - failures.len();
    let result = if failures.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {passed} passed; {} failed", failures.len());
    if !failures.is_empty() {
        println!("failures: {}", failures.join(" "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(name: &str) -> (bool, String) {
    let mut output = tempfile();
    let file = output.try_clone().unwrap();
    let mut child = Command::new("/proc/self/exe")
        .args(["--run", name])
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if start.elapsed() > DEADLINE => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    use std::io::{Read, Seek};
    output.rewind().unwrap();
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if status.is_none() {
        text.push_str("\nkilled: took too long");
    }
    (status.is_some_and(|s| s.success()), text)
}

fn tempfile() -> std::fs::File {
    let fd = rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    std::fs::File::from(fd)
}
