//! What a shim costs: milliseconds from spawn to ready, memory with a container running.
//!
//! `SHIM_BINARY=target/…/release/podyard cargo test -p shim --test cost -- --nocapture` measures the real one.

mod harness;

use harness::{Pod, id, is_root};
use shim::protocol::{Reply, Verb};
use std::time::{Duration, Instant};

/// Kilobytes of `field` in /proc/PID/smaps_rollup.
#[allow(clippy::unwrap_used, reason = "a test helper")]
fn memory_kb(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn root_ten_shims_are_small_and_quick_to_start() {
    if !is_root() {
        return;
    }
    let mut pods = Vec::new();
    let (mut creates, mut starts, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..10 {
        let (pod, mut client) = Pod::ready();
        let create = pod.create_request(&id("web", 0), &["/bin/sleep", "1000"]);
        let begin = Instant::now();
        let (reply, _) = client.call(Verb::Create(Box::new(create)), &[]).unwrap();
        creates.push(begin.elapsed());
        let begin = Instant::now();
        client.call(Verb::Start(id("web", 0)), &[]).unwrap();
        starts.push(begin.elapsed());
        let Reply::Created { steps: taken, .. } = reply else { panic!("{reply:?}") };
        steps = taken;
        pods.push(pod);
    }
    steps.iter().for_each(|step| println!("{:>6} us  {}", step.micros, step.what));
    report("create", creates);
    report("start", starts);
    let pids: Vec<i32> = pods.iter().map(|pod| pod.shim.as_ref().unwrap().process.pid).collect();
    let sum = |field: &str| pids.iter().map(|pid| memory_kb(*pid, field)).sum::<u64>() / pids.len() as u64;
    let pss = sum("Pss:");
    println!("per shim: Pss {pss} kB, private dirty {} kB, Rss {} kB", sum("Private_Dirty:"), sum("Rss:"));
    // The program's own pages are larger, and read more widely, without optimization.
    let limit = if cfg!(debug_assertions) { 1536 } else { 1024 };
    assert!(pss <= limit, "a shim uses {pss} kB");

    let times = (0..10).map(|_| {
        let mut pod = Pod::new();
        pod.fence();
        let begin = Instant::now();
        pod.shim = Some(pod.spawn().unwrap());
        begin.elapsed()
    });
    report("spawn to ready", times.collect());
}

/// No limit is asserted: other tests use the machine at the same time.
fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!(
        "{what}: fastest {:?}, median {:?}, slowest {:?}",
        times[0],
        times[times.len() / 2],
        times[times.len() - 1]
    );
}
