//! Runs tests in processes of their own, a few at a time, and prints what libtest would.
//!
//! Each runs once as it is, and once more for each of [`AGAIN`]: with those system calls answering `ENOSYS`, as an
//! older kernel has it, or `EPERM`, as a filter around us, which proves the fallbacks. `PODYARD_WITHOUT=openat2` (sets
//! of [`SETS`], or names of system calls, with commas, and `:EPERM` at the end) makes one run without them instead.

use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

pub type Test = (&'static str, fn());

/// Longest a single test may take. The machine may be an emulated one.
const DEADLINE: Duration = Duration::from_secs(120);

/// Sets of system calls to do without.
pub const SETS: &[(&str, &[&str])] = &[
    ("processes", &["clone3", "close_range", "pidfd_open", "pidfd_send_signal", "execveat", "keyctl"]),
    ("openat2", &["openat2"]),
    (
        "mount-api",
        &[
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "open_tree",
            "open_tree_attr",
            "move_mount",
            "mount_setattr",
        ],
    ),
];

/// Those of [`SETS`] that every run of the tests tries: the ones whose fallbacks are complete.
pub const AGAIN: &[&str] = &["processes", "openat2", "mount-api", "openat2,mount-api:EPERM"];

/// Tests that take long, or look at system calls themselves: once is enough.
const ONCE: &[&str] =
    &["_race", "_steps_of_", "_sealed_copy", "_cut_short_", "_without_cgroup_kill", "_writer_", "_leaked_"];

/// What this test process does without.
static LACKING: OnceLock<Vec<String>> = OnceLock::new();

/// Whether this process and its containers have to do without `call`.
pub fn lacks(call: &str) -> bool {
    LACKING.get().is_some_and(|calls| calls.iter().any(|c| c == call))
}

/// The system calls that `without` names, and what they answer.
fn calls(without: &str) -> (Vec<String>, i32) {
    let (without, errno) = match without.strip_suffix(":EPERM") {
        Some(rest) => (rest, nix::libc::EPERM),
        None => (without, nix::libc::ENOSYS),
    };
    let set = |word: &str| SETS.iter().find(|(name, _)| *name == word).map(|(_, calls)| calls.to_vec());
    let words = without.split(',').filter(|word| !word.is_empty());
    (words.flat_map(|word| set(word).unwrap_or(vec![word])).map(str::to_string).collect(), errno)
}

pub fn run_one(tests: &[Test], name: &str, without: &str) {
    let (_, body) = tests.iter().find(|(n, _)| *n == name).expect("a test");
    let (calls, errno) = calls(without);
    if !calls.is_empty() {
        crate::failure::answer(&calls, errno);
    }
    LACKING.set(calls).unwrap();
    body();
}

pub fn run_all(tests: &[Test], args: &[String]) -> ExitCode {
    // libtest's own options, which cargo may pass, mean nothing here but for --list.
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let by_hand = std::env::var("PODYARD_WITHOUT").ok();
    let without = match &by_hand {
        Some(words) => vec![words.as_str()],
        None => [""].iter().chain(AGAIN).copied().collect(),
    };
    let chosen: Vec<(String, &str, &str)> = without
        .into_iter()
        .flat_map(|without| tests.iter().map(move |(name, _)| (title(name, without), *name, without)))
        .filter(|(_, name, without)| without.is_empty() || !ONCE.iter().any(|part| name.contains(part)))
        .filter(|(title, ..)| filters.is_empty() || filters.iter().any(|f| title.contains(*f)))
        .collect();
    if args.iter().any(|a| a == "--list") {
        chosen.iter().for_each(|(title, ..)| println!("{title}: test"));
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
                    let Some((title, name, without)) = queue.lock().unwrap().next() else {
                        return;
                    };
                    let (passed, output) = run(name, without);
                    let skipped = output.contains("SKIP:");
                    let word = match (passed, skipped) {
                        (true, true) => "ignored",
                        (true, false) => "ok",
                        (false, _) => "FAILED",
                    };
                    println!("test {title} ... {word}");
                    if skipped || !passed {
                        println!("{}", output.trim_end());
                    }
                    if !passed {
                        failures.lock().unwrap().push(title.as_str());
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
        println!("failures: {}", failures.join(", "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// This program's file, also where it runs from a copy.
pub fn binary() -> std::path::PathBuf {
    std::env::var_os(BINARY).expect("set by run").into()
}

/// Names [`binary`].
const BINARY: &str = "PODYARD_TEST_BINARY";

fn title(name: &str, without: &str) -> String {
    if without.is_empty() { name.to_string() } else { format!("{name} (without {without})") }
}

fn run(name: &str, without: &str) -> (bool, String) {
    let mut output = tempfile();
    let file = output.try_clone().unwrap();
    let mut child = Command::new("/proc/self/exe")
        .args(["--run", name, without])
        .env(BINARY, std::env::current_exe().unwrap())
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
