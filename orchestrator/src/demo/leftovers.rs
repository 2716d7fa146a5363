//! What a purged yard may have left: asked of the kernel, not of our records.

use super::Failure;
use node::Yard;
use std::fs;
use std::path::Path;

/// Processes, mounts, cgroups and files that carry the yard's name.
pub(super) fn of(yard: &Yard, dir: &Path) -> Result<Vec<String>, Failure> {
    let mut left = Vec::new();
    let ours = dir.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("read mountinfo: {e}"))?;
    left.extend(mounts.lines().filter(|line| line.contains(&ours)).map(|line| format!("mount {line}")));
    for entry in fs::read_dir("/proc").map_err(|e| format!("list /proc: {e}"))?.flatten() {
        // A process that ends while we look is not left.
        let Ok(cgroups) = fs::read_to_string(entry.path().join("cgroup")) else { continue };
        // A zombie runs nothing and holds nothing: it waits for PID 1 to read its exit code.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let is_zombie = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'));
        if !is_zombie && cgroups.contains(&format!("{}/", yard.cgroup_parent)) {
            left.push(format!("process {}", entry.file_name().to_string_lossy()));
        }
    }
    let hierarchies = fs::read_dir("/sys/fs/cgroup").map_err(|e| format!("list /sys/fs/cgroup: {e}"))?;
    for root in hierarchies.flatten().map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
        let cgroup = root.join(yard.cgroup_parent.trim_start_matches('/'));
        if cgroup.exists() {
            left.push(format!("cgroup {}", cgroup.display()));
        }
    }
    if dir.exists() {
        left.push(format!("files {ours}"));
    }
    Ok(left)
}
