//! A container without a mount namespace of its own: what is mounted in its root the host sees, until it is released.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{CWD, Mode, OFlags, StatxAttributes, open};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::Root;
use super::api;
use crate::error::{Call, Error, Result, Step};
use crate::namespaces;
use crate::plan::Plan;

/// The root of a container whose mounts are the host's. Whoever makes one [releases](HostRoot::release) it at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRoot {
    path: PathBuf,
    /// The mount that the directory was in before: any other there is the container's.
    before: u64,
}

impl HostRoot {
    /// That of a container to be made; `None` if it gets a mount namespace.
    ///
    /// # Errors
    /// The kernel's, if the directory cannot be looked at.
    pub fn of(plan: &Plan, root: &Path) -> Result<Option<Self>> {
        if plan.separate(namespaces::Kind::Mount) {
            return Ok(None);
        }
        let path = std::fs::canonicalize(root).call(|| format!("realpath({root:?})")).step("root.path")?;
        let before = api::identity(directory(&path)?)?.stx_mnt_id;
        Ok(Some(Self { path, before }))
    }

    /// Lets go of all that the container had mounted. Again, or if nothing was: success.
    ///
    /// # Errors
    /// The kernel's.
    pub fn release(&self) -> Result<()> {
        let now = match directory(&self.path) {
            // A bundle removed before its container.
            Err(e) if e.kind() == crate::Kind::NotFound => return Ok(()),
            other => api::identity(other?)?,
        };
        if now.stx_mnt_id == self.before || !now.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(());
        }
        unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .call(|| format!("umount2({:?}, MNT_DETACH)", self.path))
            .step("release the root")
    }
}

fn directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).call(|| format!("open({path:?})"))
}

/// Binds the root on itself, out of what the host's other mount namespaces are told of.
pub(super) fn attach(root: Root, plan: &Plan) -> Result<OwnedFd> {
    if plan.root_propagation.is_some() {
        return Err(Error::invalid("linux.rootfsPropagation", "is the host's own without a mount namespace"));
    }
    let Root::Path(path) = root else {
        let text = "a root that is a mount needs a mount namespace to be put in";
        return Err(Error::unsupported("linux.namespaces: mnt", text));
    };
    let root = api::bind(CWD, &path, true)?.attach_at(&path).step("attach the root")?;
    // What is put on a shared mount becomes one too.
    api::propagate(&root, true, libc::MS_PRIVATE)?;
    Ok(root)
}

/// Makes `root` this process's root. The host's stays where it is; chroot(2) keeps paths from it.
pub(crate) fn enter(root: &OwnedFd) -> Result<()> {
    rustix::process::fchdir(root).call(|| "fchdir(root)".into())?;
    rustix::process::chroot(".").call(|| "chroot(\".\")".into())?;
    rustix::process::chdir("/").call(|| "chdir(\"/\")".into())
}
