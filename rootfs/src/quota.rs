//! Project quotas: a directory tree whose bytes the filesystem counts and limits.
//!
//! A process that runs as the owner of files in the tree, outside a user namespace, may put them into another project
//! (`FS_IOC_FSSETXATTR`): this holds back mistakes and runaways, not malice. An image holds back both.
//!
//! Source: quotactl(2); Documentation/filesystems/ext4, "project"; xfs_quota(8).
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::{Error, Kind, sys};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// Projects are ours from here on; people's own have small numbers.
const FIRST_PROJECT: u32 = 1 << 30;
/// Numbers tried until a free one is found.
const TRIES_MAX: u32 = 1024;

/// Whether the filesystem that `dir` is on limits projects.
pub(crate) fn is_enforced(dir: &Path) -> bool {
    // A filesystem or kernel without quotas refuses in many words; each of them means no.
    File::open(dir).is_ok_and(|dir| sys::enforces_projects(dir.as_fd()).unwrap_or(false))
}

/// A project that nobody uses, derived from a name. The caller keeps others from choosing at the same time.
///
/// # Errors
/// `Busy` if there is none to be found.
pub(crate) fn free_project(dir: &Path, seed: u32) -> Result<u32, Error> {
    let file = File::open(dir).context(|| format!("open {}", dir.display()))?;
    for step in 0..TRIES_MAX {
        let project = FIRST_PROJECT | (seed.wrapping_add(step) & (FIRST_PROJECT - 1));
        match sys::project_quota(file.as_fd(), project) {
            Ok(quota) if quota.limit_bytes == 0 && quota.used_inodes == 0 => return Ok(project),
            // XFS says so of a project it has never heard of.
            Err(error) if error.errno == Errno::NOENT => return Ok(project),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::new(Kind::Busy, "no free quota project found"))
}

/// Limits an empty directory and everything that will be in it.
///
/// # Errors
/// The filesystem's answer.
pub(crate) fn bind(dir: &Path, project: u32, limit_bytes: u64) -> Result<(), Error> {
    let file = File::open(dir).context(|| format!("open {}", dir.display()))?;
    // The limit first: there is no moment without it.
    sys::set_project_quota(file.as_fd(), project, limit_bytes)?;
    Ok(sys::set_project(file.as_fd(), project)?)
}

/// Changes a project's limit; 0 lifts it. Effective at once.
///
/// # Errors
/// The filesystem's answer.
pub(crate) fn limit(dir: &Path, project: u32, limit_bytes: u64) -> Result<(), Error> {
    let file = File::open(dir).context(|| format!("open {}", dir.display()))?;
    Ok(sys::set_project_quota(file.as_fd(), project, limit_bytes)?)
}
