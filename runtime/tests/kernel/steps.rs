//! Step n of each of `podyard-oci`'s commands fails, or is its last, for every n: nothing is left, or `delete --force`
//! removes it.
//!
//! A step is a system call, of the command or of what it clones. One run counts them; then each is struck in turn, in
//! an order that is spread over all of them, until every one was, or the time is up (`PODYARD_STEPS_SECONDS`, 10 for
//! each command and kind of blow unless set: 600 strikes them all).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::libc;

use crate::bundle::Bundle;
use crate::fixture::eventually;
use crate::harness::Test;
use crate::supervise::{Call, Supervised, Verdict, output, written};

pub const TESTS: &[Test] = &[
    ("root_steps_of_create", || every_step("create")),
    ("root_steps_of_start", || every_step("start")),
    ("root_steps_of_run", || every_step("run")),
    ("root_steps_of_exec", || every_step("exec")),
    ("root_steps_of_kill", || every_step("kill")),
    ("root_steps_of_delete", || every_step("delete")),
];

/// Longest a struck command may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn every_step(verb: &'static str) {
    let seconds = std::env::var("PODYARD_STEPS_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    for (name, blow) in [("fails", Some(libc::EIO)), ("is the last", None)] {
        let steps = strike(verb, usize::MAX, blow);
        assert!(steps > 8, "{verb}: only {steps} system calls were seen");
        let start = Instant::now();
        let order = spread(steps);
        let mut struck = 0;
        for n in order {
            if start.elapsed() > Duration::from_secs(seconds) {
                break;
            }
            strike(verb, n, blow);
            struck += 1;
        }
        assert!(struck > 0);
        println!("{verb}: of {steps} steps {struck} were struck, each {name}");
    }
}

/// 0 to `count` - 1, so that any beginning of it is spread evenly.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    let common = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    // Near the golden section.
    let near = (count as f64 * 0.618) as usize;
    let stride = (near.max(1)..).find(|stride| common(*stride, count) == 1).unwrap_or(1);
    (0..count).map(move |i| i * stride % count)
}

/// Runs the command with its `n`-th step struck, and sees that nothing is left. How many steps it made.
fn strike(verb: &str, n: usize, blow: Option<i32>) -> usize {
    let long = ["start", "exec", "kill"].contains(&verb);
    let bundle = Bundle::new(if long { &["sleep"] } else { &["pid"] });
    match verb {
        "create" | "run" => {}
        "start" => bundle.create(),
        "delete" => {
            bundle.start();
            let stopped = || bundle.ok(&["state", &bundle.id]).contains("\"stopped\"");
            eventually("stopped", stopped);
        }
        _ => bundle.start(),
    }
    let directory = bundle.directory.0.to_str().unwrap().to_string();
    let states = bundle.states().to_str().unwrap().to_string();
    let id = bundle.id.as_str();
    let args: &[&str] = match verb {
        "create" => &["create", "--bundle", &directory, id],
        "run" => &["run", "--bundle", &directory, id],
        "exec" => &["exec", id, "/program", "--program", "pid"],
        "kill" => &["kill", id, "KILL"],
        other => &[other, id],
    };
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let judge = move |_: &Call| match (counted.fetch_add(1, Ordering::SeqCst) == n, blow) {
        (false, _) => Verdict::Go,
        (true, Some(errno)) => Verdict::Fail(errno),
        (true, None) => Verdict::Kill,
    };
    let file = output();
    let code = Supervised::start(&bundle.program, &bundle.words(args, &states), &file, judge).wait(PATIENCE);
    let count = count.load(Ordering::SeqCst);
    let shown = format!("{verb}, step {n} of {count}: {code:?} {}", written(&file));
    let code = code.unwrap_or_else(|| panic!("took too long: {shown}"));
    // The program inside, which is the tests', may do as it likes.
    let inside = ["exec", "run"].contains(&verb);
    // The start of it, before Rust's main, ends without a word by SIGABRT or SIGSEGV if a system call of the C library or of
    // Rust's runtime fails. A panic of ours says something.
    let died = [libc::SIGABRT, libc::SIGSEGV].map(|signal| 128 + signal).contains(&code);
    let started = inside && died && written(&file).is_empty();
    let ours = !started && !shown.contains("kernel/program.rs");
    // A panic of Rust's, an abort, a fault.
    assert!(!ours || ![101, 128 + libc::SIGABRT, 128 + libc::SIGSEGV].contains(&code), "{shown}");
    assert!(!ours || !shown.contains("panicked"), "{shown}");
    if n == usize::MAX {
        assert_eq!(code, 0, "{shown}");
    }
    let left = |path: &Path| path.symlink_metadata().is_ok();
    // What is left of a create can be found by its record.
    let recorded = left(&bundle.states().join(id));
    let cgroups = || bundle.cgroups().into_iter().filter(|path| left(path)).collect::<Vec<_>>();
    assert!(recorded || cgroups().is_empty(), "{shown}: {:?}", cgroups());
    if verb == "exec" {
        // The container runs on, and the process, if it came to be, ends by itself.
        let pid = bundle.pid();
        eventually(&format!("alone again after {shown}"), || {
            bundle.ok(&["ps", "--format", "json", id]).trim() == format!("[{pid}]")
        });
    }
    bundle.ok(&["delete", "--force", id]);
    assert!(!left(&bundle.states().join(id)), "{shown}");
    assert!(cgroups().is_empty(), "{shown}: {:?}", cgroups());
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&directory), "{shown}: {table}");
    eventually(&format!("no process is left after {shown}"), || processes(id).is_empty());
    count
}

/// Those with the container's id in their command line: `podyard-oci`, and its children before their execve.
fn processes(id: &str) -> Vec<i32> {
    let all =
        std::fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    let of =
        |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| contains(&words, id));
    all.filter(of).collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
