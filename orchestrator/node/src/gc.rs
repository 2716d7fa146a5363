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

/// Removes what belongs to none of the `known` uids. Goes on past failures, and logs them.
pub async fn sweep(host: Arc<Host>, known: BTreeSet<String>, addresses: BTreeSet<Ipv4Addr>) {
    let report = |what: &str, outcome: Result<Vec<String>>| match outcome {
        Ok(swept) if swept.is_empty() => {}
        Ok(swept) => tracing::info!(what, ?swept, "swept leftovers"),
        Err(error) => tracing::warn!(what, error = %error.chain(), "sweep leftovers"),
    };
    report("cgroups", cgroups(&host, &known).await);
    report("links", links(&host, &known, &addresses).await);
    let shared = Arc::clone(&host);
    let kept = known.clone();
    report("snapshots", blocking(move || snapshots(&shared, &kept)).await);
    let shared = Arc::clone(&host);
    let kept = known.clone();
    report("emptyDirs", blocking(move || ephemeral(&shared, &kept)).await);
    report("logs", blocking(move || logs(&host, &known)).await);
}

async fn cgroups(host: &Host, known: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut swept = Vec::new();
    // Shims first: they must not start anything while their pod is fenced.
    for (parent, prefix) in [(host.yard.shims_cgroup(), ""), (host.yard.pods_cgroup(), "pod")] {
        for name in host.cgroup(&parent)?.children().map_err(from_runtime)? {
            let Some(uid) = name.strip_prefix(prefix) else { continue };
            if known.contains(uid) {
                continue;
            }
            let path = format!("{parent}/{name}");
            host.fence(&path).await?;
            host.cgroup(&path)?.remove().map_err(from_runtime)?;
            swept.push(path);
        }
    }
    Ok(swept)
}

async fn links(
    host: &Arc<Host>,
    known: &BTreeSet<String>,
    addresses: &BTreeSet<Ipv4Addr>,
) -> Result<Vec<String>> {
    let network = Arc::clone(&host.network);
    let (there, routed) = blocking(move || {
        Ok((network.attachments().map_err(from_netns)?, network.routed_addresses().map_err(from_netns)?))
    })
    .await?;
    // Pods that were recorded have their address in the record.
    let of_records = |uid: &String| crate::record::Book::load(host.yard.pod(uid)).ok()?.record()?.pod_ip;
    let mut kept: BTreeSet<Ipv4Addr> = known.iter().filter_map(of_records).collect();
    kept.extend(addresses);
    kept.extend(
        there
            .iter()
            .filter(|link| link.owner.as_ref().is_some_and(|uid| known.contains(uid)))
            .filter_map(|link| link.address),
    );
    let names: BTreeSet<String> = known.iter().map(|uid| host.yard.pod(uid).link()).collect();
    let mut doomed: Vec<netns::Attachment> = there
        .into_iter()
        .filter(|link| match &link.owner {
            Some(uid) => !known.contains(uid),
            // A crash came before it was marked; it is on our bridge, in our namespace.
            None => !names.contains(&link.link),
        })
        .collect();
    for address in routed.into_iter().filter(|address| !kept.contains(address)) {
        if !doomed.iter().any(|link| link.address == Some(address)) {
            doomed.push(netns::Attachment { link: String::new(), owner: None, address: Some(address) });
        }
    }
    let mut swept = Vec::new();
    for link in doomed {
        swept.push(format!("{} {:?}", link.link, link.address));
        host.detacher.detach(link).await?;
    }
    Ok(swept)
}

fn snapshots(host: &Host, known: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut swept = host.snapshots.sweep().map_err(from_rootfs)?;
    for key in host.snapshots.list().map_err(from_rootfs)? {
        let uid = key.split('.').next().unwrap_or("");
        if !known.contains(uid) {
            host.snapshots.remove(&key).map_err(from_rootfs)?;
            swept.push(key);
        }
    }
    swept.extend(host.volumes.sweep().map_err(from_rootfs)?);
    Ok(swept)
}

fn ephemeral(host: &Host, known: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for uid in names(&host.yard.ephemeral_dir())?.into_iter().filter(|uid| !known.contains(uid)) {
        crate::volumes::remove(&host.yard.pod(&uid))?;
        swept.push(uid);
    }
    Ok(swept)
}

fn logs(host: &Host, known: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for name in names(&host.yard.log_dir)? {
        let uid = name.rsplit('_').next().unwrap_or("");
        let dir = host.yard.log_dir.join(&name);
        if !known.contains(uid) && host.yard.owns(&dir) {
            crate::boot::remove_tree(&dir)?;
            swept.push(name);
        }
    }
    Ok(swept)
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
