//! Leaves the host as it was before the yard: without the API, by what the kernel and the marks tell.
//!
//! ```text
//! lock ─ shims and pods: cgroup.kill, populated 0 ─ cgroups ─ links and pins ─ mounts ─ directories
//! ```
//!
//! Only what is ours: cgroups beneath the yard's parent, links with its alias, pins in its run directory, and
//! directories with its mark. Idempotent; goes on past failures and reports them all.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netns::{Namespace, Node};
use rustix::mount::{UnmountFlags, unmount};

use crate::boot::{create_dir, lock, remove_tree};
use crate::error::{Error, Kind, Result};
use crate::gc::names;
use crate::host::{from_netns, from_runtime};
use crate::yard::{MARK, Yard};
use runtime::cgroup::{Cgroup, Hierarchies};

/// How long killed processes may take to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a purge did.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// What was removed, in order.
    pub removed: Vec<String>,
    /// What could not be, and why.
    pub errors: Vec<String>,
}

impl Report {
    fn note(&mut self, what: impl Into<String>, outcome: Result<bool>) {
        match outcome {
            Ok(true) => self.removed.push(what.into()),
            Ok(false) => {}
            Err(error) => self.errors.push(format!("{}: {}", what.into(), error.chain())),
        }
    }
}

/// Removes everything of `yard`. Its daemon must have ended. Blocks while processes die.
///
/// # Errors
/// `Busy` if a daemon drives the yard: nothing was done then. All else is in the report.
pub fn purge(yard: &Yard) -> Result<Report> {
    let mut report = Report::default();
    // Held to the end, so that no daemon starts in between; the file goes with the directory.
    let _lock = if yard.owns(&yard.run_dir) { Some(lock(&yard.lock_file())?) } else { None };
    cgroups(yard, &mut report);
    network(yard, &mut report);
    mounts(yard, &mut report);
    logs(yard, &mut report);
    for dir in [&yard.run_dir, &yard.data_dir] {
        let outcome = if yard.owns(dir) {
            remove_marked(dir).map(|()| true)
        } else if dir.exists() && fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            Err(Error::new(Kind::Conflict, "not empty, and without this yard's mark: left as it is"))
        } else {
            Ok(false)
        };
        report.note(format!("directory {}", dir.display()), outcome);
    }
    if !yard.socket.starts_with(&yard.run_dir) && yard.socket.exists() {
        let socket = format!("socket {}", yard.socket.display());
        report.note(socket, crate::boot::remove_file(&yard.socket).map(|()| true));
    }
    Ok(report)
}

fn cgroups(yard: &Yard, report: &mut Report) {
    let hierarchies = match Hierarchies::detect().map_err(from_runtime) {
        Ok(hierarchies) => hierarchies,
        Err(error) => return report.note("cgroups", Err(error)),
    };
    let name = |path: &str| Cgroup::name(&hierarchies, Path::new(path)).map_err(from_runtime);
    // Shims first: they must not start anything while their pods are killed.
    for path in [yard.shims_cgroup(), yard.cgroup_parent.clone()] {
        let kill = || -> Result<bool> {
            let cgroup = name(&path)?;
            if !cgroup.populated().map_err(from_runtime)? {
                return Ok(false);
            }
            cgroup.kill().map_err(from_runtime)?;
            if cgroup.wait_empty(KILL_TIMEOUT).map_err(from_runtime)? {
                return Ok(true);
            }
            let pids = cgroup.pids().unwrap_or_default();
            Err(Error::new(Kind::Busy, format!("still populated after cgroup.kill: pids {pids:?}")))
        };
        report.note(format!("processes in cgroup {path}"), kill());
    }
    let remove = || -> Result<bool> {
        let cgroup = name(&yard.cgroup_parent)?;
        let there = cgroup.exists() || !cgroup.children().map_err(from_runtime)?.is_empty();
        cgroup.remove().map_err(from_runtime)?;
        Ok(there)
    };
    report.note(format!("cgroup {}", yard.cgroup_parent), remove());
}

/// Removes what the pods of a further node left, of which nothing runs any more: mounts, namespace pins, directories,
/// layers and logs. The node itself stays. Idempotent; goes on past failures and reports them all. Blocks.
pub fn wipe(node: &Yard) -> Report {
    let mut report = Report::default();
    debug_assert!(node.whole.is_some(), "a further node's part of a yard");
    mounts(node, &mut report);
    for pin in names_of(&node.netns_dir()) {
        let outcome = netns::namespace::unpin(&pin).map_err(from_netns);
        report.note(format!("pin {}", pin.display()), outcome.map(|it| it == netns::Outcome::Changed));
    }
    for dir in [node.pods_dir(), node.ephemeral_dir(), node.snapshots_dir()] {
        for path in names_of(&dir) {
            report.note(path.display().to_string(), remove_tree(&path).map(|()| true));
        }
    }
    logs(node, &mut report);
    report
}

/// Removes a further node's directories. Nothing of it runs, and it was wiped.
///
/// # Errors
/// The first that cannot be removed; the others were tried.
pub fn remove_places(node: &Yard) -> Result<()> {
    debug_assert!(node.whole.is_some(), "a further node's part of a yard");
    let dirs = [&node.log_dir, &node.data_dir, &node.run_dir];
    dirs.map(|dir| if dir.exists() { remove_marked(dir) } else { Ok(()) }).into_iter().collect()
}

fn names_of(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

/// The pins of the yard's nodes and of their pods.
fn pins(yard: &Yard) -> Vec<PathBuf> {
    let mut dirs = vec![yard.netns_dir()];
    dirs.extend(further_nodes(yard).iter().map(Yard::netns_dir));
    let entries = dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flat_map(Iterator::flatten);
    entries.map(|entry| entry.path()).collect()
}

/// The parts of further nodes of which anything is left.
fn further_nodes(yard: &Yard) -> Vec<Yard> {
    let dirs = [yard.nodes_run_dir(), yard.nodes_data_dir(), yard.nodes_log_dir()];
    let names: BTreeSet<String> = dirs.iter().filter_map(|dir| names(dir).ok()).flatten().collect();
    names.iter().map(|name| yard.of_node(name, yard.pod_cidr)).collect()
}

fn network(yard: &Yard, report: &mut Report) {
    let pins = pins(yard);
    let links = || -> Result<bool> {
        let open = |path: &Path| match Namespace::open(path) {
            Err(error) if error.kind() == netns::Kind::NotFound => Ok(None),
            other => other.map(Some).map_err(from_netns),
        };
        let host = if yard.isolated {
            open(&yard.host_netns())?
        } else {
            Some(Namespace::current().map_err(from_netns)?)
        };
        let Some(host) = host else { return Ok(false) };
        let node = open(&yard.node_netns(&yard.node))?;
        let outcome = Node::remove(&yard.node_net()?, node.as_ref(), &host);
        let outcome = outcome.map_err(|errors| Error::new(Kind::Internal, errors.to_string()))?;
        Ok(outcome == netns::Outcome::Changed)
    };
    report.note(format!("links of {}", yard.link_mark()), links());
    for path in pins {
        let pin = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let outcome = netns::namespace::unpin(&path).map_err(from_netns);
        report.note(
            format!("network namespace {pin}"),
            outcome.map(|outcome| outcome == netns::Outcome::Changed),
        );
    }
}

/// Unmounts what is left in our directories: tmpfs volumes, and nothing that others could have put there.
fn mounts(yard: &Yard, report: &mut Report) {
    let table = match fs::read_to_string("/proc/self/mountinfo") {
        Ok(table) => table,
        Err(error) => return report.note("mounts", Err(Error::io("read /proc/self/mountinfo", error))),
    };
    let nodes = further_nodes(yard);
    let parts = std::iter::once(yard).chain(&nodes);
    let ours: Vec<_> = parts
        .flat_map(|yard| [yard.pods_dir(), yard.ephemeral_dir()])
        .filter_map(|dir| dir.canonicalize().ok())
        .collect();
    let mut points: Vec<_> = table.lines().filter_map(mount_point).collect();
    points.retain(|point| ours.iter().any(|dir| point.starts_with(dir)));
    // The last mounted first.
    for point in points.into_iter().rev() {
        let outcome = unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map(|()| true)
            .map_err(|errno| Error::io("umount2", errno));
        report.note(format!("mount {}", point.display()), outcome);
    }
}

/// The fifth field, with its octal escapes undone. Source: proc_pid_mountinfo(5).
fn mount_point(line: &str) -> Option<std::path::PathBuf> {
    let field = line.split(' ').nth(4)?;
    let mut path = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        path.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok())?;
        path.push(char::from(code));
        rest = &after[3..];
    }
    path.push_str(rest);
    Some(path.into())
}

fn logs(yard: &Yard, report: &mut Report) {
    let dirs = match names(&yard.log_dir) {
        Ok(dirs) => dirs,
        Err(error) => return report.note("logs", Err(error)),
    };
    for name in dirs {
        let dir = yard.log_dir.join(&name);
        if yard.owns(&dir) {
            report.note(format!("logs {name}"), remove_marked(&dir).map(|()| true));
        }
    }
    // The directory itself is ours if we made it, and nobody else put anything there.
    if yard.owns(&yard.log_dir) && names(&yard.log_dir).is_ok_and(|names| names.is_empty()) {
        let outcome = remove_marked(&yard.log_dir).map(|()| true);
        report.note(format!("directory {}", yard.log_dir.display()), outcome);
    }
}

/// Removes a directory; its mark goes last, so that what a failure leaves is still known as ours.
fn remove_marked(dir: &Path) -> Result<()> {
    let what = || format!("list {}", dir.display());
    for entry in fs::read_dir(dir).map_err(|error| Error::io(what(), error))? {
        let entry = entry.map_err(|error| Error::io(what(), error))?;
        if entry.file_name() == MARK {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        } else {
            crate::boot::remove_file(&entry.path())?;
        }
    }
    remove_tree(dir)
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for removed in &self.removed {
            writeln!(f, "removed {removed}")?;
        }
        for error in &self.errors {
            writeln!(f, "left    {error}")?;
        }
        Ok(())
    }
}

/// Makes the log directory, and marks it if it was not there.
pub(crate) fn make_log_dir(yard: &Yard) -> Result<()> {
    if yard.log_dir.exists() {
        return Ok(());
    }
    // What all further nodes' logs are in is ours too, whoever's directory that is in.
    if let (Some(_), Some(nodes)) = (&yard.whole, yard.log_dir.parent()) {
        create_dir(nodes, 0o755)?;
        yard.write_mark(nodes)?;
    }
    create_dir(&yard.log_dir, 0o755)?;
    yard.write_mark(&yard.log_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let line = r"36 35 98:0 / /run/a\040b rw,noatime - tmpfs podyard rw";
        assert_eq!(mount_point(line).unwrap(), Path::new("/run/a b"));
        assert_eq!(mount_point("short"), None);
    }

    #[test]
    fn directories_of_others_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let yard = Yard::beneath(dir.path(), &format!("purge-{}", std::process::id())).unwrap();
        fs::create_dir_all(&yard.data_dir).unwrap();
        fs::write(yard.data_dir.join("theirs"), "x").unwrap();
        fs::create_dir_all(yard.log_dir.join("kube_pod_uid")).unwrap();
        let mut report = Report::default();
        logs(&yard, &mut report);
        mounts(&yard, &mut report);
        assert_eq!(report, Report::default());
        assert!(yard.data_dir.join("theirs").exists() && yard.log_dir.join("kube_pod_uid").exists());
    }
}
