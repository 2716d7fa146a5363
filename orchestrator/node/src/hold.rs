//! Holding claims: the one law about storage.
//!
//! ```text
//! hold      claim.annotations[podyard.io/holder] = pod uid, at the claim's resource version: one writer wins
//!           <volumes>/<handle>/claim.json          = claim uid and epoch, durable: an older epoch is refused
//! use       only then are containers made
//! let go    only after the pod's cgroup was seen empty: by this agent, or by the fence of the whole node
//! ```
//!
//! A holder of this node that is no more (its record and its cgroups are gone) is proved dead by that, and its claim
//! may be taken. Of a holder on another node nothing is known here: it may run until that node's agent, or its fence,
//! has taken its name from the claim.

use api::{Key, Object, holder};
use jiff::Timestamp;

use crate::error::{Error, Kind, Result};
use crate::host::{Host, from_api, from_runtime};
use crate::record::Held;

/// The claims that a pod must hold before anything of it runs. The caller writes them down before it holds the first:
/// a crash in between leaves a record of what is to be let go.
///
/// # Errors
/// `Busy` while a claim is unbound.
pub async fn wanted(host: &Host, pod: &Object) -> Result<Vec<Held>> {
    let mut wanted = Vec::new();
    for name in claim_names(pod) {
        let claim = get(host, pod, &name).await?;
        if claim.get_str("status.phase") != Some("Bound") {
            return Err(waiting(Error::new(Kind::Busy, format!("claim {name} is not bound yet"))));
        }
        // What many may use at once has no holder.
        if is_exclusive(&claim) {
            wanted.push(Held { claim: name, uid: claim.uid().to_owned() });
        }
    }
    Ok(wanted)
}

/// Takes the claims for the pod. What it holds already stays.
///
/// # Errors
/// `Busy` while another pod holds one and may still run; `Conflict` if one is not the claim that was wanted.
pub async fn hold(host: &Host, pod: &Object, wanted: &[Held]) -> Result<()> {
    for Held { claim: name, uid } in wanted {
        let mut claim = get(host, pod, name).await?;
        if claim.uid() != uid {
            return Err(waiting(Error::new(Kind::Conflict, format!("claim {name} was made anew"))));
        }
        if holder::holder(&claim) == Some(pod.uid()) {
            continue;
        }
        if let Some(other) = may_run(host, &claim)? {
            let text = format!("claim {name} is held by {other}, which is not proved to be gone");
            return Err(waiting(Error::new(Kind::Busy, text)));
        }
        let since = api::time::micros(Timestamp::now());
        holder::hold(&mut claim, pod.uid(), &host.node, &since);
        host.upstream.update(claim).await.map_err(|error| waiting(from_api(error)))?;
    }
    Ok(())
}

/// Lets a claim go, if it is still the one that was held and nobody else took it. The caller has seen the pod's
/// cgroup empty.
///
/// # Errors
/// What the API says; the caller tries again.
pub async fn let_go(host: &Host, namespace: &str, uid: &str, held: &Held) -> Result<()> {
    let key = Key::core("persistentvolumeclaims", namespace, held.claim.clone());
    let mut claim = match host.upstream.get(key).await {
        Ok(claim) => claim,
        Err(error) if error.kind() == api::Kind::NotFound => return Ok(()),
        Err(error) => return Err(from_api(error)),
    };
    if claim.uid() != held.uid || holder::holder(&claim) != Some(uid) {
        return Ok(());
    }
    holder::let_go(&mut claim);
    match host.upstream.update(claim).await {
        Err(error) if error.kind() == api::Kind::NotFound => Ok(()),
        other => other.map(|_| ()).map_err(from_api),
    }
}

/// Whether one pod at a time may use the claim: all modes but those that say "many" mean that here, where nothing
/// below could tell two pods apart.
pub fn is_exclusive(claim: &Object) -> bool {
    let modes = claim.get_array("spec.accessModes");
    !modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

/// The claim's holder, in words, if anything of it may still run.
fn may_run(host: &Host, claim: &Object) -> Result<Option<String>> {
    let Some(uid) = holder::holder(claim) else { return Ok(None) };
    match holder::holder_node(claim) {
        Some(node) if node != host.node => Ok(Some(format!("pod {uid} on node {node}"))),
        // Written by a version that knew one node.
        None if host.yard.whole.is_some() => Ok(Some(format!("pod {uid} on the first node"))),
        _ => Ok(runs_here(host, uid)?.then(|| format!("pod {uid}"))),
    }
}

/// Whether anything of the pod with this uid may still run on this node.
fn runs_here(host: &Host, uid: &str) -> Result<bool> {
    if uid.contains(['/', '.']) {
        return Ok(false);
    }
    let paths = host.yard.pod(uid);
    let populated =
        |path: &str| host.cgroup(path).and_then(|cgroup| cgroup.populated().map_err(from_runtime));
    Ok(paths.record().exists() || populated(&paths.cgroup())? || populated(&paths.shim_cgroup())?)
}

async fn get(host: &Host, pod: &Object, claim: &str) -> Result<Object> {
    let key = Key::core("persistentvolumeclaims", pod.namespace(), claim);
    host.upstream.get(key).await.map_err(|error| waiting(from_api(error)))
}

/// Names of the claims that a pod uses.
fn claim_names(pod: &Object) -> Vec<String> {
    let volumes = pod.get_array("spec.volumes").iter();
    volumes
        .filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str().map(str::to_owned))
        .collect()
}

fn waiting(error: Error) -> Error {
    error.reason("ContainerCreating")
}
