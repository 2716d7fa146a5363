//! Somebody who trusts nobody: looks at /proc throughout, and counts the incarnations that run.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Between two looks.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(2);

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// How often was looked.
    pub(super) looks: u64,
    /// Every incarnation there ever was: the pod's uid, from its processes' cgroup.
    pub(super) incarnations: BTreeSet<String>,
    /// Most of them at one moment.
    pub(super) most: usize,
}

/// Looks until it is ended or dropped.
pub(super) struct Watcher {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches processes of `program` beneath the cgroup `parent`.
    pub(super) fn start(parent: String, program: &'static str) -> Watcher {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let now = incarnations(&parent, program);
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.looks += 1;
                    seen.most = seen.most.max(now.len());
                    seen.incarnations.extend(now);
                    drop(seen);
                    // What is measured beside it needs the processor too.
                    std::thread::sleep(PAUSE);
                }
            })
        };
        Watcher { seen, stop, thread: Some(thread) }
    }

    /// What was seen until now.
    pub(super) fn end(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            // It holds nothing but what it saw.
            tracing::warn!("the watcher panicked");
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Uids of pods in which a process of that program is alive. A process that ends while we look may be missed or seen.
fn incarnations(parent: &str, program: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Ok(cmdline) = fs::read(entry.path().join("cmdline")) else { continue };
        if !cmdline.starts_with(program.as_bytes()) || cmdline.get(program.len()) != Some(&0) {
            continue;
        }
        // cgroup(7): one line a hierarchy; the unified one begins with "0::".
        let Ok(cgroups) = fs::read_to_string(entry.path().join("cgroup")) else { continue };
        found.extend(cgroups.lines().filter_map(|line| pod_uid(line, parent)));
    }
    found
}

/// `0::/yard/nodes/n1/pods/pod<uid>/main.0` → `<uid>`
fn pod_uid(line: &str, parent: &str) -> Option<String> {
    let path = line.strip_prefix("0::")?.strip_prefix(parent)?;
    let (_, pod) = path.split_once("/pods/pod")?;
    Some(pod.split('/').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_name_the_incarnation() {
        for (line, expect) in [
            ("0::/y/nodes/n1/pods/podab-c/main.0", Some("ab-c")),
            ("0::/y/pods/podab-c/main.0", Some("ab-c")),
            ("0::/other/pods/podab-c/main.0", None),
            ("3:memory:/y/pods/podab-c/main.0", None),
            ("0::/y/shims/ab-c", None),
        ] {
            assert_eq!(pod_uid(line, "/y").as_deref(), expect, "{line}");
        }
    }
}
