//! All of them in one yard, at rest: what Podyard writes to the disk meanwhile, which shall be nothing.

use crate::scenario::{GRACE, yard};
use crate::store::Workload;
use crate::writer::Writer;
use integration::harness::{Yard, until};
use integration::torture::processes;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// What each is given to do before it rests.
const WRITES: usize = 100;
/// What counts as rest.
const CALM: Duration = Duration::from_secs(10);
/// How long is measured.
const TIME: Duration = Duration::from_secs(60);

/// Starts all of them, lets them rest, and counts.
///
/// # Panics
/// The daemon, an agent or the store wrote something, or a shim did though its pods printed nothing.
pub fn rest(workloads: &[&'static Workload]) {
    let yard = yard("rest", GRACE);
    for workload in workloads {
        yard.apply(workload.manifest);
    }
    for workload in workloads {
        yard.ready_count(&format!("app={}", workload.name), workload.replicas);
        let writer = Writer::start(&yard, workload);
        writer.progress(WRITES);
        writer.stop();
    }
    until("the start-up is over", || {
        let before = Count::now(&yard);
        std::thread::sleep(CALM); // The measurement itself: nothing is waited for.
        let wrote = Count::now(&yard).since(&before);
        if wrote.own == 0 { Ok(()) } else { Err(wrote) }
    });
    let before = Count::now(&yard);
    std::thread::sleep(TIME); // The measurement itself: nothing is waited for.
    let after = Count::now(&yard);
    let wrote = after.since(&before);
    let names: Vec<&str> = workloads.iter().map(|workload| workload.name).collect();
    println!(
        "rest: {} for {TIME:?}: daemon and agents ({} processes) wrote {} bytes to disk, the store grew by {}; {} shims wrote \
         {} for the {} that pods printed; {} processes of the databases wrote {}",
        names.join(", "),
        after.own.len(),
        wrote.own,
        wrote.store,
        after.shims.len(),
        wrote.shims,
        wrote.logs,
        after.pods.len(),
        wrote.pods
    );
    assert_eq!((wrote.own, wrote.store), (0, 0), "idle means idle");
    // A log's last page may be written again and again: its bytes are not compared.
    assert!(
        wrote.shims == 0 || wrote.logs > 0,
        "nothing was printed, and yet {} bytes were written",
        wrote.shims
    );
}

/// Bytes, since each began.
struct Count {
    /// By the daemon and each agent.
    own: BTreeMap<i32, u64>,
    /// By each shim: the logs of what its pod prints.
    shims: BTreeMap<i32, u64>,
    /// By each process in a pod.
    pods: BTreeMap<i32, u64>,
    store: u64,
    logs: u64,
}

/// What came to a [`Count`].
#[derive(Debug)]
struct Wrote {
    own: u64,
    shims: u64,
    pods: u64,
    store: u64,
    logs: u64,
}

impl Count {
    fn now(yard: &Yard) -> Count {
        let (mut own, mut shims, mut pods) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for pid in processes(&format!("/podyard-{}/", yard.name())).into_iter().chain([yard.daemon_pid()]) {
            // Probes come and go; whoever reaps one takes over its count.
            let Some((bytes, cgroup)) = written(pid) else { continue };
            let kind = match &cgroup {
                pod if pod.contains("/pods/") => &mut pods,
                shim if shim.contains("/shims/") => &mut shims,
                _ => &mut own,
            };
            kind.insert(pid, bytes);
        }
        let logs = yard.dir().join("log");
        Count { own, shims, pods, store: size(&yard.data_dir().join("store")), logs: size(&logs) }
    }

    fn since(&self, before: &Count) -> Wrote {
        let grown = |now: &BTreeMap<i32, u64>, then: &BTreeMap<i32, u64>| {
            now.iter().map(|(pid, bytes)| bytes - then.get(pid).copied().unwrap_or(0)).sum()
        };
        Wrote {
            own: grown(&self.own, &before.own),
            shims: grown(&self.shims, &before.shims),
            pods: grown(&self.pods, &before.pods),
            store: self.store.abs_diff(before.store),
            logs: self.logs.abs_diff(before.logs),
        }
    }
}

/// Bytes that a process sent to the disk, those of the children that it reaped too, and its cgroup; `None` if it ended.
/// proc_pid_io(5).
fn written(pid: i32) -> Option<(u64, String)> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let (io, cgroup) = (read("io")?, read("cgroup")?);
    let bytes = io.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse().ok()?;
    let unified = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some((bytes, unified.to_owned()))
}

/// Bytes of everything beneath a directory.
fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => size(&entry.path()),
        Ok(found) => found.len(),
        // Rotated away.
        Err(_) => 0,
    });
    sizes.sum()
}
