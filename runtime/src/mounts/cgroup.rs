//! What a container sees of its cgroups.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};

use super::api::{self, Filesystem};
use super::beneath::{self, Links};
use super::options::{MountPlan, NODEV, NOEXEC, NOSUID};
use super::{finish, late};
use crate::error::{Call, Result};

/// What the cgroup mount of a container shows.
#[derive(Clone, Debug, Default)]
pub(crate) enum CgroupView {
    /// Nothing is known: an empty directory.
    #[default]
    None,
    /// The cgroup2 directory.
    Unified(PathBuf),
    /// name → directory of a v1 hierarchy, or `unified`.
    Hierarchies(Vec<(String, PathBuf)>),
}

/// Mounts the view. Returned is what is to be done once nothing more is made in it.
pub(super) fn mount(root: &OwnedFd, plan: &MountPlan, view: &CgroupView) -> Result<Option<late::Change>> {
    let place = beneath::ensure_directory(root, &plan.destination, Links::Refuse)?;
    if let CgroupView::Unified(path) = view {
        let mut mount = api::bind(CWD, path, false)?;
        finish(&mut mount, plan, plan.attributes)?;
        mount.attach(root, &place)?;
        return Ok(None);
    }
    // v1: a directory with one entry for each hierarchy that the container is in.
    let mut top = api::new_filesystem(&Filesystem {
        fs: "tmpfs",
        source: Some("cgroup"),
        data: &[("mode".to_string(), Some("755".to_string()))],
        attributes: NOSUID | NODEV | NOEXEC,
        ..Filesystem::default()
    })?;
    let (now, later) = late::split(plan.attributes);
    finish(&mut top, plan, now)?;
    let top = top.attach(root, &place)?;
    if let CgroupView::Hierarchies(hierarchies) = view {
        for (name, path) in hierarchies {
            let mut mount = api::bind(CWD, path, false)?;
            finish(&mut mount, plan, plan.attributes)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            mkdirat(&top, name, Mode::from_raw_mode(0o755)).call(|| format!("mkdirat({name:?})"))?;
            let place = openat(&top, name, flags, Mode::empty()).call(|| format!("openat({name:?})"))?;
            mount.attach(root, &place)?;
            // Programs look for one controller at a time.
            for controller in name.split(',').filter(|_| name.contains(',')) {
                symlinkat(Path::new(name), &top, controller)
                    .call(|| format!("symlinkat({name:?}, {controller:?})"))?;
            }
        }
    }
    Ok(later.map(|attributes| late::Change { mount: top, destination: plan.destination.clone(), attributes }))
}
