//! An independent witness of the law "at most one": looks at /proc throughout, trusts nothing that Podyard says.
//!
//! Two living processes of different pods that have the same volume mounted at `/data` are two incarnations that hold one
//! disk. What is compared is the kernel's identity of the mount, from /proc/PID/mountinfo: the file behind a loop device, so
//! that two devices on one image are seen too, or else device and root directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Where the pets of the tests have their disk.
const MOUNT_POINT: &str = "/data";

/// Between two looks: far less than an incarnation lives.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often everything was looked at.
    pub looks: u64,
    /// Every incarnation that was seen, by volume.
    pub incarnations: BTreeMap<String, BTreeSet<String>>,
    /// Two at one time, with what was seen of both. Empty if the law holds.
    pub violations: Vec<String>,
}

/// Looks until it is ended.
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watcher {
    /// Watches everything beneath the cgroup `parent` (`/podyard-<yard>`).
    pub fn start(parent: String) -> Watcher {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (theirs, ended) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                look(&parent, &theirs);
                // What is tested needs the processor too.
                std::thread::sleep(PAUSE);
            }
        });
        Watcher { seen, stop, thread }
    }

    /// What was seen until now. Panics if the looking did.
    pub fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watcher looked to the end");
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A living process that has a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    pid: String,
    /// proc_pid_stat(5), field 22: with the pid, the identity of a process.
    started: String,
    pod: String,
}

fn look(parent: &str, seen: &Mutex<Seen>) {
    let mut volumes: BTreeMap<String, Vec<Holder>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("list /proc").flatten() {
        if let Some((volume, holder)) = holder(&entry.path(), parent) {
            volumes.entry(volume).or_default().push(holder);
        }
    }
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    seen.looks += 1;
    for (volume, holders) in volumes {
        for one in &holders {
            seen.incarnations.entry(volume.clone()).or_default().insert(one.pod.clone());
        }
        for (at, one) in holders.iter().enumerate() {
            let others = holders[at + 1..].iter().filter(|other| other.pod != one.pod);
            for other in others {
                // The first may have died before the second was born: two only if both live now.
                let both = [one, other].iter().all(|known| is_alive(known));
                if both {
                    seen.violations.push(format!("{volume} is held by {one:?} and {other:?}"));
                }
            }
        }
    }
}

fn holder(process: &Path, parent: &str) -> Option<(String, Holder)> {
    // Any of these files may be gone while we look: the process ended.
    let cgroups = fs::read_to_string(process.join("cgroup")).ok()?;
    let pod = cgroups.lines().find_map(|line| pod_uid(line, parent))?;
    let (device, root) = volume(&fs::read_to_string(process.join("mountinfo")).ok()?)?;
    let file = fs::read_to_string(format!("/sys/dev/block/{device}/loop/backing_file"));
    let volume =
        file.map_or_else(|_| format!("{device} {root}"), |file| format!("{} {root}", file.trim_end()));
    let started = start_time(&fs::read_to_string(process.join("stat")).ok()?)?;
    Some((volume, Holder { pid: process.file_name()?.to_str()?.to_owned(), started, pod }))
}

fn is_alive(holder: &Holder) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(&holder.pid).join("stat")).unwrap_or_default();
    start_time(&stat).as_deref() == Some(&*holder.started)
}

/// The start time of a process that runs; `None` of a zombie.
fn start_time(stat: &str) -> Option<String> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // The state is field 3.
    fields.nth(18).map(str::to_owned)
}

/// `0::/yard/nodes/n1/pods/pod<uid>/main.0` → `<uid>`
fn pod_uid(line: &str, parent: &str) -> Option<String> {
    let path = line.strip_prefix("0::")?.strip_prefix(parent)?;
    let (_, pod) = path.split_once("/pods/pod")?;
    Some(pod.split('/').next()?.to_owned())
}

/// Device and root of what is mounted at the pets' mount point. proc_pid_mountinfo(5).
fn volume(mountinfo: &str) -> Option<(String, String)> {
    // The last is on top.
    let mounts = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = mounts.rev().find(|fields| fields.get(4) == Some(&MOUNT_POINT))?;
    Some((found[2].to_owned(), found[3].to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_of_proc() {
        let stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(stat).as_deref(), Some("4711"));
        assert_eq!(start_time(&stat.replace(") S", ") Z")), None);
        assert_eq!(pod_uid("0::/y/nodes/n1/pods/podu-1/main.0", "/y").as_deref(), Some("u-1"));
        assert_eq!(pod_uid("0::/y/nodes/n1/shims/u-1", "/y"), None);
        let mounts = "1 2 8:1 / / rw - ext4 x rw\n3 1 8:1 /v/h/data /data rw - ext4 x rw\n";
        assert_eq!(volume(mounts), Some(("8:1".into(), "/v/h/data".into())));
    }
}
