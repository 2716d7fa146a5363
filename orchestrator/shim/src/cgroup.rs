//! Cgroups to be born in.
#![forbid(unsafe_code)]

use crate::protocol::{Failure, FailureKind};
use crate::sys::Result;
use runtime::cgroup::Cgroup;
use std::path::Path;

/// Makes the cgroup anew: one that is left from before, empty, is removed first.
///
/// Not only for tidiness. `cgroup.kill` leaves a mark on a cgroup, and a process that is cloned into a marked one from
/// another cgroup is killed at birth, however much later. Source: kernel/cgroup/cgroup.c, `cgroup_css_set_fork`,
/// which reads `kill_seq` of the parent's cgroup, and `cgroup_post_fork`, which compares it with the child's; seen
/// on Linux 6.18.
///
/// # Errors
/// `Conflict` if it has processes: whatever they are, nothing new is mixed with them.
pub(crate) fn fresh_cgroup(path: impl AsRef<Path>) -> Result<Cgroup> {
    let path = path.as_ref();
    let old = match Cgroup::open(path) {
        Err(error) if error.kind() == runtime::Kind::NotFound => None,
        other => Some(other?),
    };
    if let Some(old) = old {
        if old.populated()? {
            let text = format!("cgroup {} has processes already", path.display());
            return Err(Failure::new(FailureKind::Conflict, text));
        }
        old.remove()?;
    }
    Ok(Cgroup::create(path)?)
}
