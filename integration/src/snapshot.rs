//! What a machine looks like: taken before and after, to show that nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A part of the machine's state, by name, as lines that can be compared.
pub type Snapshot = BTreeMap<&'static str, BTreeSet<String>>;

/// Takes a snapshot of what a yard could change. `files` are the directories whose content counts.
///
/// `nft` is asked if it is installed (tests may look at us from outside); there is no other reader of rules.
pub fn take(files: &[&Path]) -> Snapshot {
    let mut all = Snapshot::new();
    all.insert("links", names("/sys/class/net"));
    all.insert("addresses and routes", lines("/proc/net/fib_trie"));
    all.insert("routes", lines("/proc/net/route"));
    all.insert("neighbours", lines("/proc/net/arp"));
    all.insert("mounts", lines("/proc/self/mountinfo"));
    all.insert("sysctls", sysctls());
    all.insert("rules", rules());
    let (mut cgroups, mut processes, mut namespaces) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    walk(Path::new("/sys/fs/cgroup"), &mut |path, is_dir| {
        if is_dir {
            cgroups.insert(path.display().to_string());
        }
    });
    for pid in names("/proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) else { continue };
        // Kernel threads have no program; others' processes come and go, ours are told by their program.
        if program.to_string_lossy().contains("podyard") {
            processes.insert(format!("{pid} {}", program.display()));
        }
        for kind in ["net", "mnt", "uts", "ipc", "pid", "cgroup"] {
            if let Ok(inode) = fs::read_link(format!("/proc/{pid}/ns/{kind}")) {
                namespaces.insert(inode.display().to_string());
            }
        }
    }
    all.insert("cgroups", cgroups);
    all.insert("processes", processes);
    all.insert("namespaces", namespaces);
    let mut seen = BTreeSet::new();
    for dir in files {
        walk(dir, &mut |path, _| {
            seen.insert(path.display().to_string());
        });
    }
    all.insert("files", seen);
    all
}

/// What stands in one snapshot and not in the other, as readable lines; empty if they are the same.
pub fn difference(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let mut all = Vec::new();
    for (part, was) in before {
        let is = &after[part];
        all.extend(was.difference(is).map(|line| format!("{part}: gone: {line}")));
        all.extend(is.difference(was).map(|line| format!("{part}: new: {line}")));
    }
    all
}

fn names(dir: &str) -> BTreeSet<String> {
    fs::read_dir(dir)
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default()
}

fn lines(file: &str) -> BTreeSet<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn sysctls() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for dir in ["/proc/sys/net/ipv4", "/proc/sys/net/ipv6", "/proc/sys/net/bridge", "/proc/sys/kernel/keys"] {
        walk(Path::new(dir), &mut |path, is_dir| {
            // Timers and counters that the kernel changes by itself are not settings.
            let own = ["random", "hash_stat", "route/flush"]
                .iter()
                .any(|part| path.to_string_lossy().contains(part));
            if !is_dir && !own {
                all.insert(format!(
                    "{}={}",
                    path.display(),
                    fs::read_to_string(path).unwrap_or_default().trim()
                ));
            }
        });
    }
    all
}

fn rules() -> BTreeSet<String> {
    match Command::new("nft").args(["list", "ruleset"]).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect(),
        Err(_) => {
            eprintln!("SKIP comparing nftables rules: nft is not installed");
            BTreeSet::new()
        }
    }
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, bool)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        visit(&entry.path(), is_dir);
        if is_dir {
            walk(&entry.path(), visit);
        }
    }
}
