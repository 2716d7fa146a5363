//! The public suites for OCI runtimes, pointed at `podyard-oci` and compared with what suites/*.txt expects.
//!
//! Each needs its suite's checkout, built as the suite's own documentation says, in an environment variable:
//!
//! ```text
//!   SUITE_RUNTIME_TOOLS=DIR   opencontainers/runtime-tools: runtimetest and validation/*/*.t are built
//!   SUITE_CONTEST=DIR         youki's contest: contest, runtimetest and bundle.tar.gz are in it
//!   SUITE_RUNC=DIR            opencontainers/runc: tests/cmd/_bin and the images in testdata are there
//!   SUITE_BINARY=FILE         another runtime instead of podyard-oci, to compare with: prints its results only
//!   SUITE_ONLY=WORD           only programs, groups or files whose name has it
//! ```
//!
//! A list has a line for every result: `pass`, `fail`, `skip` or, for what may go both ways, `any`; the name; and for all
//! but `pass` the reason, in brackets a class first: `[host]` this machine or kernel, `[suite]` the suite's own mistake or
//! another's internals, `[chosen]` refused or different on purpose, `[open]` not yet done.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

type Results = BTreeMap<String, String>;

const LISTS: [(&str, &str); 3] = [
    ("runtime-tools", include_str!("../suites/runtime-tools.txt")),
    ("contest", include_str!("../suites/contest.txt")),
    ("bats", include_str!("../suites/bats.txt")),
];

/// What a list expects of one result.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    outcome: String,
    reason: String,
}

/// Reads a list; panics on a line that is not in its form.
fn read(list: &str) -> BTreeMap<String, Expected> {
    let mut all = BTreeMap::new();
    for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut fields = line.splitn(3, '\t').map(str::to_string);
        let (outcome, name) = (fields.next().unwrap(), fields.next().unwrap_or_default());
        let reason = fields.next().unwrap_or_default();
        assert!(["pass", "fail", "skip", "any"].contains(&outcome.as_str()) && !name.is_empty(), "{line}");
        let classed =
            ["[host] ", "[suite] ", "[chosen] ", "[open] "].iter().any(|class| reason.starts_with(class));
        assert!(reason.is_empty() == (outcome == "pass") && (reason.is_empty() || classed), "{line}");
        assert!(all.insert(name, Expected { outcome, reason }).is_none(), "twice: {line}");
    }
    all
}

/// What is not as the list says, a line each.
fn differences(expected: &BTreeMap<String, Expected>, got: &Results, all: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, outcome) in got {
        match expected.get(name) {
            None => lines.push(format!("not in the list: {name}: {outcome}")),
            Some(e) if e.outcome == "any" || e.outcome == *outcome => {}
            Some(e) => lines.push(format!("{name}: {outcome}, expected {} {}", e.outcome, e.reason)),
        }
    }
    let missing = expected.keys().filter(|name| all && !got.contains_key(*name));
    lines.extend(missing.map(|name| format!("no result: {name}")));
    lines
}

/// Runs a suite if its directory is given, and compares.
fn check(suite: &str, variable: &str, run: fn(&Path, &Path) -> Results) {
    let Some(directory) = std::env::var_os(variable).map(PathBuf::from) else {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        let text = format!("SKIP: {suite}: {variable} does not name a built checkout\n");
        _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        return;
    };
    let own = Path::new(env!("CARGO_BIN_EXE_podyard-oci"));
    let other = std::env::var_os("SUITE_BINARY").map(PathBuf::from);
    let got = run(&directory, other.as_deref().unwrap_or(own));
    let count = |outcome: &str| got.values().filter(|o| *o == outcome).count();
    println!("{suite}: {} passed, {} failed, {} skipped", count("pass"), count("fail"), count("skip"));
    if other.is_some() || std::env::var_os("SUITE_PRINT").is_some() {
        got.iter().for_each(|(name, outcome)| println!("{outcome}\t{name}"));
    }
    if other.is_none() {
        let list = LISTS.iter().find(|(name, _)| *name == suite).unwrap().1;
        let lines = differences(&read(list), &got, std::env::var_os("SUITE_ONLY").is_none());
        assert!(lines.is_empty(), "{suite} differs from suites/{suite}.txt:\n{}", lines.join("\n"));
    }
}

/// Output of a command that is killed with all it can be after `seconds`; and whether it succeeded.
fn output(seconds: u32, command: &mut Command) -> (String, bool) {
    let mut bounded = Command::new("timeout");
    bounded.args(["-s", "KILL", &seconds.to_string()]).arg(command.get_program()).args(command.get_args());
    bounded.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(directory) = command.get_current_dir() {
        bounded.current_dir(directory);
    }
    // A file: what a suite leaves running would keep a pipe open.
    let file = rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(file);
    let same = |file: &std::fs::File| Stdio::from(file.try_clone().unwrap());
    // An input that does not end: script(1) would pass the end on, into the terminals of containers.
    let mut child = bounded.stdin(Stdio::piped()).stdout(same(&file)).stderr(same(&file)).spawn().unwrap();
    let input = child.stdin.take();
    let status = child.wait().unwrap();
    drop(input);
    std::io::Seek::rewind(&mut file).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    (String::from_utf8_lossy(&bytes).into_owned(), status.success())
}

fn wanted(name: &str) -> bool {
    std::env::var("SUITE_ONLY").map_or(true, |word| name.contains(&word))
}

/// Files of a directory's subdirectories, or of itself, that end in `.EXTENSION`, sorted.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = |directory: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    let own = entries(directory);
    let below = own.iter().flat_map(|path| entries(path)).collect::<Vec<_>>();
    let mut all: Vec<_> = own.into_iter().chain(below).collect();
    all.retain(|path| path.extension().is_some_and(|found| found == extension));
    all.sort();
    all
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

/// One result for each program: its lines are too many, and some vary.
fn runtime_tools(directory: &Path, runtime: &Path) -> Results {
    let programs = files(&directory.join("validation"), "t").into_iter().filter(|path| wanted(&stem(path)));
    programs
        .map(|program| {
            let mut command = Command::new(&program);
            let (text, success) = output(60, command.env("RUNTIME", runtime).current_dir(directory));
            (stem(&program), tap_outcome(&text, success).to_string())
        })
        .collect()
}

/// The outcome of a program that prints TAP.
fn tap_outcome(text: &str, success: bool) -> &'static str {
    let mut results = text.lines().map(str::trim).filter(|line| !line.contains("# SKIP"));
    let failed = text.lines().any(|line| line.trim().starts_with("not ok") && !line.contains("# TODO"));
    match (success && !failed, results.any(|line| line.starts_with("ok"))) {
        (false, _) => "fail",
        (true, true) => "pass",
        (true, false) => "skip",
    }
}

/// Group by group: one that panics ends the program.
fn contest(directory: &Path, runtime: &Path) -> Results {
    let program = directory.join("contest");
    let (list, listed) = output(60, Command::new(&program).arg("list").current_dir(directory));
    assert!(listed, "{list}");
    let mut all = Results::new();
    for group in list.lines().map(str::trim).filter(|group| !group.is_empty() && wanted(group)) {
        let mut command = Command::new(&program);
        command
            .args(["run", "--runtimetest"])
            .arg(directory.join("runtimetest"))
            .arg("--runtime")
            .arg(runtime);
        let (text, success) = output(60, command.args(["-t", group]).current_dir(directory));
        all.extend(text.lines().filter_map(|line| contest_line(group, line)));
        if !success {
            all.insert(format!("{group}::(to the end)"), "fail".into());
        }
    }
    all
}

/// `2 / 4 : name : not ok`
fn contest_line(group: &str, line: &str) -> Option<(String, String)> {
    let (position, rest) = line.split_once(" : ")?;
    position.split_once(" / ").filter(|(at, _)| at.trim().parse::<u32>().is_ok())?;
    let (name, outcome) = rest.rsplit_once(" : ")?;
    let outcome = [("ok", "pass"), ("not ok", "fail"), ("skipped", "skip")]
        .iter()
        .find(|(o, _)| *o == outcome.trim())?;
    Some((format!("{group}::{name}"), outcome.1.into()))
}

/// File by file; each test has half a minute, and a terminal, which some ask for.
fn bats(directory: &Path, runtime: &Path) -> Results {
    let tests = directory.join("tests/integration");
    let mut all = Results::new();
    for file in files(&tests, "bats").into_iter().filter(|path| wanted(&stem(path))) {
        let mut command = Command::new("script");
        command.args(["-qefc", &format!("bats --formatter tap '{}'", file.display()), "/dev/null"]);
        command.env("RUNC", runtime).env("BATS_TEST_TIMEOUT", "30").env("TERM", "xterm").current_dir(&tests);
        let (text, _) = output(600, &mut command);
        all.extend(text.lines().filter_map(|line| bats_line(&stem(&file), line)));
    }
    all
}

/// `ok 3 name # skip reason`
fn bats_line(file: &str, line: &str) -> Option<(String, String)> {
    let line = line.trim_end();
    let (rest, good) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
        (Some(rest), _) => (rest, true),
        (_, Some(rest)) => (rest, false),
        _ => return None,
    };
    let (number, name) = rest.split_once(' ')?;
    number.parse::<u32>().ok()?;
    let skipped = name.contains(" # skip");
    let name = [" # skip", " # timeout"]
        .iter()
        .find_map(|mark| name.split_once(mark))
        .map_or(name, |(name, _)| name);
    let outcome = if skipped {
        "skip"
    } else if good {
        "pass"
    } else {
        "fail"
    };
    Some((format!("{file}: {name}"), outcome.into()))
}

#[test]
fn root_runtime_tools() {
    check("runtime-tools", "SUITE_RUNTIME_TOOLS", runtime_tools);
}

#[test]
fn root_contest() {
    check("contest", "SUITE_CONTEST", contest);
}

#[test]
fn root_bats() {
    check("bats", "SUITE_RUNC", bats);
}

#[test]
fn lists_have_their_form() {
    for (name, list) in LISTS {
        assert!(read(list).values().any(|e| e.outcome == "pass"), "{name}");
    }
}

#[test]
fn lines_of_each_suite() {
    let owned = |name: &str, outcome: &str| Some((name.to_string(), outcome.to_string()));
    assert_eq!(contest_line("g", "2 / 4 : a b : not ok"), owned("g::a b", "fail"));
    assert_eq!(contest_line("g", "1 / 4 : x : skipped"), owned("g::x", "skip"));
    assert_eq!(contest_line("g", "a : b : ok"), None);
    assert_eq!(
        bats_line("f", "ok 3 runc run [x] # skip test requires y\r"),
        owned("f: runc run [x]", "skip")
    );
    assert_eq!(bats_line("f", "not ok 12 a # timeout after 30s"), owned("f: a", "fail"));
    assert_eq!(bats_line("f", "ok 1 a\r"), owned("f: a", "pass"));
    assert_eq!(bats_line("f", "# (in test file"), None);
    for (text, success, expect) in [
        ("TAP version 13\nok 1 - a\n1..1", true, "pass"),
        ("ok 1 - a\nnot ok 2 - b", true, "fail"),
        ("ok 1 - a", false, "fail"),
        ("ok 1 # SKIP no AppArmor", true, "skip"),
        ("1..0 # SKIP", true, "skip"),
    ] {
        assert_eq!(tap_outcome(text, success), expect, "{text}");
    }
}

#[test]
fn what_differs_is_named() {
    let list = read("pass\ta\nfail\tb\t[host] no such device\nany\tc\t[suite] a race\npass\td\n");
    let got = [("a", "fail"), ("b", "pass"), ("c", "fail"), ("e", "pass")];
    let got = got.map(|(name, outcome)| (name.to_string(), outcome.to_string())).into();
    let lines = differences(&list, &got, true);
    let expect = [
        "a: fail, expected pass ",
        "b: pass, expected fail [host] no such device",
        "not in the list: e: pass",
        "no result: d",
    ];
    assert_eq!(lines, expect);
    assert_eq!(differences(&list, &got, false).len(), 3);
}
