//! The fence: nothing of a node runs, this is proved, and what its pods had is free.
//!
//! ```text
//!  under the node's lock, so that nothing is born there meanwhile:
//!    killed.json     a mark: the cgroup is killed from here on; nothing is born in it until it was made anew
//!    cgroup.kill     agent, shims and pods of the node, in one kernel operation, those that fork among them
//!    populated 0     observed in cgroup.events; if not within 5 s the fence is refused, naming who does not die
//!    claims          holder removed, proof written: one commit each, all at once
//!    pods            removed from the store, each by uid: their names and addresses are free
//! ```
//!
//! **Law: a claim is released, and a pod removed, only after `populated 0` was read after the last moment at which
//! something could be born in the node's cgroup.** The order is the proof; each step may be repeated, so a daemon that
//! dies in between leaves what the next fence goes on with. The mark keeps the figures of the kill.
//!
//! A process that does not die (it waits in the kernel, or is frozen by a v1 freezer) keeps all of it as it was: the
//! pods stay in the store, terminating, and no other node gets their claims.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::{Error, Key, Kind, Object, Part, holder};
use futures::future::join_all;
use node::error::Error as NodeError;
use node::{Yard, error::Result as NodeResult};
use registry::{DeleteOptions, Registry, WriteOptions};
use runtime::cgroup::{Cgroup, Hierarchies};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::Store;

use super::agent::write_private;

/// How long killed processes may take to go.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Between the order to die and its first sign.
const GRACE_OF_THE_DYING: Duration = Duration::from_millis(20);
/// Times a claim is decided again because somebody else was faster.
const ATTEMPTS_MAX: u32 = 8;

/// That a node's cgroup was killed. In its run directory from before the kill until the cgroup is made anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Killed {
    /// When. RFC 3339.
    pub(super) time: String,
    /// Processes that were in it.
    pub(super) processes: usize,
    /// Microseconds until it was seen empty; none if it was not yet.
    pub(super) waited_micros: Option<u64>,
}

/// What became of one fence, and what each part of it took.
#[derive(Clone, Debug, Default)]
pub(super) struct Fenced {
    /// Claims that were released, with their proofs.
    pub(super) claims: Vec<(Object, holder::Proof)>,
    /// Pods that were removed.
    pub(super) pods: Vec<Object>,
    /// Microseconds to kill and see empty.
    pub(super) kill_micros: u128,
    /// Microseconds to release all claims.
    pub(super) claims_micros: u128,
    /// Microseconds to remove all pods.
    pub(super) pods_micros: u128,
}

fn mark(yard: &Yard) -> PathBuf {
    yard.run_dir.join("killed.json")
}

/// The mark of a killed cgroup, if there is one.
pub(super) fn killed(yard: &Yard) -> NodeResult<Option<Killed>> {
    let path = mark(yard);
    match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|error| {
            NodeError::with(node::Kind::Internal, format!("parse {}", path.display()), error)
        })?)),
        Err(error) => Err(NodeError::io(format!("read {}", path.display()), error)),
    }
}

/// Removes a node's cgroups, which are empty, and the mark: they may be made anew now.
pub(super) fn clear(hierarchies: &Arc<Hierarchies>, yard: &Yard) -> NodeResult<()> {
    cgroup(hierarchies, &yard.cgroup_parent)?.remove().map_err(node::host::from_runtime)?;
    match std::fs::remove_file(mark(yard)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(NodeError::io(format!("remove {}", mark(yard).display()), error))
        }
        _ => Ok(()),
    }
}

pub(super) fn cgroup(hierarchies: &Arc<Hierarchies>, path: &str) -> NodeResult<Cgroup> {
    Cgroup::name(hierarchies, path.as_ref()).map_err(node::host::from_runtime)
}

/// Kills everything of a node and sees it gone. What was killed before is only looked at. Blocks, up to 5 s.
///
/// # Errors
/// `Busy`, naming the processes, if something does not die.
pub(super) fn kill(hierarchies: &Arc<Hierarchies>, yard: &Yard, now: &str) -> NodeResult<Killed> {
    let from_runtime = node::host::from_runtime;
    let cgroup = cgroup(hierarchies, &yard.cgroup_parent)?;
    let before = killed(yard)?;
    if let Some(known @ Killed { waited_micros: Some(_), .. }) = &before
        && !cgroup.populated().map_err(from_runtime)?
    {
        return Ok(known.clone());
    }
    let mut killed = match before {
        Some(killed) => killed,
        None => {
            let processes = cgroup.pids().map_err(from_runtime)?.len();
            Killed { time: now.to_owned(), processes, waited_micros: None }
        }
    };
    let write = |killed: &Killed| match yard.run_dir.exists() {
        true => write_private(&mark(yard), serde_json::json!(killed).to_string().as_bytes()),
        // Nothing was ever started there.
        false => Ok(()),
    };
    write(&killed)?;
    let begun = Instant::now();
    cgroup.kill().map_err(from_runtime)?;
    if !cgroup.wait_empty(TIMEOUT).map_err(from_runtime)? {
        let left = cgroup.pids().unwrap_or_default();
        let who: Vec<String> = left.iter().map(|pid| process(*pid)).collect();
        let text = format!(
            "node {}: {} processes do not die: cgroup {} is still populated {TIMEOUT:?} after cgroup.kill: {}",
            yard.node,
            left.len(),
            yard.cgroup_parent,
            who.join(", "),
        );
        return Err(NodeError::new(node::Kind::Busy, text));
    }
    let waited = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    killed.waited_micros.get_or_insert(waited);
    write(&killed)?;
    Ok(killed)
}

/// Waits for processes that are on their way out; not for any that lives on. Blocks, as long as they take and up to
/// 5 s.
pub(super) fn await_the_dying(cgroup: &Cgroup) -> NodeResult<()> {
    let from_runtime = node::host::from_runtime;
    let begun = Instant::now();
    let mut pause = GRACE_OF_THE_DYING;
    while !cgroup.wait_empty(pause).map_err(from_runtime)? && begun.elapsed() < TIMEOUT {
        let lives = |pid: &i32| !is_dying(*pid);
        if cgroup.pids().map_err(from_runtime)?.iter().any(lives) {
            break;
        }
        pause = TIMEOUT.saturating_sub(begun.elapsed());
    }
    Ok(())
}

/// Whether a process was sent SIGKILL, or has begun to exit. Source: proc_pid_status(5), `SigPnd` and `ShdPnd`;
/// proc_pid_stat(5), flags; include/linux/sched.h, `PF_EXITING`.
fn is_dying(pid: i32) -> bool {
    const SIGKILL: u64 = 1 << 8;
    const PF_EXITING: u64 = 0x4;
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else { return true };
    let flags = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u64>().ok());
    let mut pending = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    flags.unwrap_or(0) & PF_EXITING != 0 || pending.any(|mask| mask & SIGKILL != 0)
}

/// A process in words: its pid, name and state. Source: proc_pid_stat(5).
fn process(pid: i32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") "));
    match name {
        Some((name, rest)) => format!("{pid} ({name}, state {})", rest.chars().next().unwrap_or('?')),
        None => pid.to_string(),
    }
}

/// The pods of a node in the store.
pub(super) fn pods_of<S: Store>(registry: &Registry<S>, node: &str) -> Vec<Object> {
    let (_, pods) = registry.store().list(Key::core("pods", "", "").resource, None);
    let on_node = |pod: &Object| pod.get_str("spec.nodeName") == Some(node);
    pods.iter().map(store::Record::object).filter(on_node).collect()
}

/// Releases the claims of a node on which nothing runs, then removes its pods.
///
/// # Errors
/// The first commit that failed; the others were tried, and all of it may be repeated.
pub(super) async fn release<S: Store>(
    registry: &Registry<S>,
    yard: &Yard,
    killed: &Killed,
) -> Result<Fenced, Error> {
    let mut fenced = Fenced::default();
    let begun = Instant::now();
    fenced.claims = release_claims(registry, yard, killed).await?;
    fenced.claims_micros = begun.elapsed().as_micros();
    let begun = Instant::now();
    let pods = pods_of(registry, &yard.node);
    let removals = pods.into_iter().map(|pod| async move {
        let uid = Some(pod.uid().to_owned());
        let options = DeleteOptions { grace_period_secs: Some(0), uid, ..DeleteOptions::default() };
        match registry.delete(&pod.key(), &options).await {
            Ok(_) => Ok(Some(pod)),
            // Gone already, or another incarnation has the name: that one is not on this node.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict) => Ok(None),
            Err(error) => Err(error),
        }
    });
    for removed in join_all(removals).await {
        fenced.pods.extend(removed?);
    }
    // A claim that the dead agent asked for with its last breath, granted after the first look: nobody else would
    // release it. Now that the pods are gone the node has no right to hold any.
    fenced.claims.extend(release_claims(registry, yard, killed).await?);
    fenced.pods_micros = begun.elapsed().as_micros();
    Ok(fenced)
}

/// Takes every claim from the node.
async fn release_claims<S: Store>(
    registry: &Registry<S>,
    yard: &Yard,
    killed: &Killed,
) -> Result<Vec<(Object, holder::Proof)>, Error> {
    let claims = Key::core("persistentvolumeclaims", "", "").resource;
    let (_, claims) = registry.store().list(claims, None);
    let held = claims.iter().map(store::Record::object);
    let held = held.filter(|claim| holder::holder_node(claim) == Some(&yard.node));
    let released = join_all(held.map(|claim| release_claim(registry, claim, yard, killed))).await;
    released.into_iter().filter_map(Result::transpose).collect()
}

/// Takes one claim from its holder on the node, unless that is no longer the holder.
async fn release_claim<S: Store>(
    registry: &Registry<S>,
    mut claim: Object,
    yard: &Yard,
    killed: &Killed,
) -> Result<Option<(Object, holder::Proof)>, Error> {
    let options = WriteOptions { field_manager: "podyard-fence".into(), ..WriteOptions::default() };
    for _ in 0..ATTEMPTS_MAX {
        if holder::holder_node(&claim) != Some(&yard.node) {
            return Ok(None);
        }
        let proof = holder::Proof {
            node: yard.node.clone(),
            cgroup: yard.cgroup_parent.clone(),
            time: killed.time.clone(),
            killed: killed.processes,
            waited_micros: killed.waited_micros.unwrap_or(0),
            holder: holder::holder(&claim).unwrap_or_default().to_owned(),
            epoch: holder::epoch(&claim),
        };
        let mut next = claim.clone();
        holder::fence(&mut next, &proof);
        match registry.update(&claim.key(), next.0, Part::Main, &options).await {
            Ok(written) => return Ok(Some((written.object, proof))),
            Err(error) if error.kind() == Kind::Conflict => claim = registry.get(&claim.key())?,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Err(Error::modified(&claim.key()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_words() {
        let me = process(i32::try_from(std::process::id()).unwrap());
        assert!(me.contains("state R") || me.contains("state S"), "{me}");
        assert_eq!(process(i32::MAX), i32::MAX.to_string());
        assert!(!is_dying(i32::try_from(std::process::id()).unwrap()));
        assert!(is_dying(i32::MAX), "gone");
    }
}
