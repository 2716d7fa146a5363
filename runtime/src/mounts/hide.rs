//! What a container must not see or write.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, fstat};

use super::api::{self, Filesystem};
use super::beneath::{self, Links};
use super::devices;
use super::options::{Attributes, NODEV, NOEXEC, NOSUID, READ_ONLY};
use crate::error::{Call, Kind, Result, Step};
use crate::plan::Plan;

/// What a directory is covered with can neither be written nor used.
const MASK: u64 = READ_ONLY | NOSUID | NODEV | NOEXEC;

/// Hides and protects paths, then makes the root what the plan says.
pub(crate) fn protect(root: &OwnedFd, plan: &Plan) -> Result<()> {
    for path in &plan.read_only_paths {
        make_read_only(root, path).step(format!("make {} read-only", path.display()))?;
    }
    if !plan.masked_paths.is_empty() {
        let null = devices::verified_null(root).step("mask paths")?;
        let mut empty = None;
        for path in &plan.masked_paths {
            hide(root, path, &null, &mut empty).step(format!("mask {}", path.display()))?;
        }
    }
    if plan.root_read_only {
        api::set(root, root, false, Attributes::set(READ_ONLY)).step("make the root read-only")?;
    }
    Ok(())
}

fn make_read_only(root: &OwnedFd, path: &Path) -> Result<()> {
    let place = match beneath::locate(root, path, protection_links(path)) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    let mut mount = api::bind(&place, Path::new(""), true)?;
    mount.set(true, Attributes::set(READ_ONLY))?;
    mount.attach(root, &place).map(drop)
}

/// In kernel interfaces no link is to be expected, and one would be an attack.
fn protection_links(path: &Path) -> Links {
    let kernel = ["/proc", "/sys", "/dev"].iter().any(|top| path.starts_with(top));
    if kernel { Links::Refuse } else { Links::Follow }
}

/// Covers `path`: a directory with `empty`, made for the first of them, a file with `null`, the container's `/dev/null`.
fn hide(root: &OwnedFd, path: &Path, null: &OwnedFd, empty: &mut Option<OwnedFd>) -> Result<()> {
    let place = match beneath::locate(root, path, protection_links(path)) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    let stat = fstat(&place).call(|| "fstat(place)".into())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        let mut mount = api::bind(null.as_fd(), Path::new(""), false)?;
        mount.set(false, Attributes::set(NOSUID | NOEXEC))?;
        return mount.attach(root, &place).map(drop);
    }
    if let Some(empty) = empty {
        // A bind keeps what its source is.
        return api::bind(empty.as_fd(), Path::new(""), false)?.attach(root, &place).map(drop);
    }
    let data = [("nr_inodes".to_string(), Some("1".to_string()))];
    let new =
        Filesystem { fs: "tmpfs", source: Some("mask"), data: &data, attributes: MASK, ..Default::default() };
    *empty = Some(api::new_filesystem(&new)?.attach(root, &place)?);
    Ok(())
}
