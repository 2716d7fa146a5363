//! The collector: removes what a crash left, by ownership mark only.
//!
//! What has a record gets a worker, which tears it down in order. What has none, and belongs to no pod that the
//! API knows, is swept here: cgroups below our parent, links with our alias, snapshots and emptyDirs named by uid,
//! log directories with our mark. Nothing else is looked at.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::host::{Host, blocking, from_netns, from_rootfs, from_runtime};

/// Uids of pods that have a directory here.
///
/// # Errors
/// The disk's answer.
pub fn recorded(host: &Host) -> Result<BTreeSet<String>> {
    names(&host.yard.pods_dir())
}

/// What a crash left and belongs to no known pod.
///
/// Found before the first worker starts, and only this is removed later: a pod that comes meanwhile has another uid.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Leftovers {
    cgroups: Vec<String>,
    snapshots: Vec<String>,
    ephemeral: Vec<String>,
    logs: Vec<String>,
}

/// Finds what belongs to none of the `known` uids; removes half-made directories and links at once, because a new
/// pod may get their names or addresses. Blocks; call it before any worker starts.
///
/// # Errors
/// What cannot be read.
pub fn find(host: &Host, known: &BTreeSet<String>, addresses: &BTreeSet<Ipv4Addr>) -> Result<Leftovers> {
    let mut found = Leftovers::default();
    // Shims first: they must not start anything while their pod is fenced.
    for (parent, prefix) in [(host.yard.shims_cgroup(), ""), (host.yard.pods_cgroup(), "pod")] {
        for name in host.cgroup(&parent)?.children().map_err(from_runtime)? {
            if name.strip_prefix(prefix).is_some_and(|uid| !known.contains(uid)) {
                found.cgroups.push(format!("{parent}/{name}"));
            }
        }
    }
    let mut halves = host.snapshots.sweep().map_err(from_rootfs)?;
    // Volumes are the whole yard's: a half-made one may be another node's work under way.
    if host.yard.whole.is_none() {
        halves.extend(host.volumes.sweep().map_err(from_rootfs)?);
    }
    let keys = host.snapshots.list().map_err(from_rootfs)?;
    found.snapshots =
        keys.into_iter().filter(|key| !known.contains(key.split('.').next().unwrap_or(""))).collect();
    found.ephemeral =
        names(&host.yard.ephemeral_dir())?.into_iter().filter(|uid| !known.contains(uid)).collect();
    for name in names(&host.yard.log_dir)? {
        // Logs of further nodes are in a directory whose name has no uid.
        let Some((_, uid)) = name.rsplit_once('_') else { continue };
        if !known.contains(uid) && host.yard.owns(&host.yard.log_dir.join(&name)) {
            found.logs.push(name);
        }
    }
    halves.extend(links(host, known, addresses)?);
    if !halves.is_empty() {
        tracing::info!(swept = ?halves, "leftovers");
    }
    Ok(found)
}

/// Removes what was found. Goes on past failures, and logs them.
pub async fn sweep(host: Arc<Host>, found: Leftovers) {
    let report = |what: &str, outcome: Result<()>| match outcome {
        Ok(()) => tracing::info!(what, "leftover removed"),
        Err(error) => tracing::warn!(what, error = %error.chain(), "remove leftover"),
    };
    for path in &found.cgroups {
        let outcome = match host.fence(path).await {
            Ok(()) => host.cgroup(path).and_then(|cgroup| cgroup.remove().map_err(from_runtime)),
            Err(error) => Err(error),
        };
        report(path, outcome);
    }
    let outcome = blocking(move || {
        for key in &found.snapshots {
            report(key, host.snapshots.remove(key).map_err(from_rootfs));
        }
        for uid in &found.ephemeral {
            report(uid, crate::volumes::remove(&host.yard.pod(uid)));
        }
        for name in &found.logs {
            report(name, crate::boot::remove_tree(&host.yard.log_dir.join(name)));
        }
        Ok(())
    });
    if let Err(error) = outcome.await {
        tracing::warn!(error = %error.chain(), "remove leftovers");
    }
}

fn links(host: &Host, known: &BTreeSet<String>, addresses: &BTreeSet<Ipv4Addr>) -> Result<Vec<String>> {
    let there = host.network.attachments().map_err(from_netns)?;
    let routed = host.network.routed_addresses().map_err(from_netns)?;
    // Pods that were recorded have their address in the record.
    let of_records = |uid: &String| crate::record::Book::load(host.yard.pod(uid)).ok()?.record()?.pod_ip;
    let is_known = |link: &netns::Attachment| match &link.owner {
        Some(uid) => known.contains(uid),
        // A crash came before it was marked; it is on our bridge, in our namespace.
        None => known.iter().any(|uid| host.yard.pod(uid).link() == link.link),
    };
    let mut kept: BTreeSet<Ipv4Addr> = known.iter().filter_map(of_records).collect();
    kept.extend(addresses);
    kept.extend(there.iter().filter(|link| is_known(link)).filter_map(|link| link.address));
    let mut doomed: Vec<netns::Attachment> = there.into_iter().filter(|link| !is_known(link)).collect();
    for address in routed.into_iter().filter(|address| !kept.contains(address)) {
        if !doomed.iter().any(|link| link.address == Some(address)) {
            doomed.push(netns::Attachment { link: String::new(), owner: None, address: Some(address) });
        }
    }
    if doomed.is_empty() {
        return Ok(vec![]);
    }
    let outcome = host.network.detach_many(&doomed);
    outcome
        .map_err(|errors| Error::new(crate::error::Kind::Internal, format!("detach leftovers: {errors}")))?;
    Ok(doomed.into_iter().map(|link| format!("{} {:?}", link.link, link.address)).collect())
}

/// Names of the directories in `dir`; none if it does not exist.
pub(crate) fn names(dir: &std::path::Path) -> Result<BTreeSet<String>> {
    let what = || format!("list {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.map_err(|error| Error::io(what(), error))?,
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io(what(), error))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}
