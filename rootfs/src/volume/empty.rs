//! The short-lived volumes of a pod.
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::{Error, Kind, files};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs;
use std::path::Path;

/// Where an `emptyDir` keeps its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A directory.
    Disk,
    /// A tmpfs of at most this many bytes, mounted on the path in the caller's mount namespace.
    Memory {
        /// Bytes; 0 means half of the memory, the kernel's default.
        size_bytes: u64,
    },
}

/// Makes the pod volume at `path`, its parents included. Idempotent.
///
/// # Errors
/// The disk's or mount(2)'s answer.
pub fn ensure_empty_dir(path: &Path, medium: Medium) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        files::create_dirs(parent, 0o700)?;
    }
    if !path.is_dir() {
        files::create_dir(path, 0o777)?;
    }
    let Medium::Memory { size_bytes } = medium else { return Ok(()) };
    let canonical = path.canonicalize().context(|| format!("resolve {}", path.display()))?;
    if is_mount_point(&canonical)? {
        return Ok(());
    }
    let mut options = "mode=0777".to_owned();
    if size_bytes > 0 {
        options.push_str(&format!(",size={size_bytes}"));
    }
    let options = std::ffi::CString::new(options).map_err(|_| Error::new(Kind::Internal, "mount options"))?;
    mount("podyard", &canonical, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
        .context(|| format!("mount(tmpfs, {})", path.display()))
}

/// Removes the pod volume at `path`, whatever its medium. Absent already: nothing is done.
///
/// # Errors
/// `Busy` if something that is not ours is mounted inside.
pub fn remove_empty_dir(path: &Path) -> Result<(), Error> {
    let canonical = match path.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.context(|| format!("resolve {}", path.display()))?,
    };
    while is_mount_point(&canonical)? {
        // Lazy: the caller has seen the pod's cgroup empty, so what still holds it is a reader of ours.
        unmount(&canonical, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .context(|| format!("umount2({}, MNT_DETACH)", path.display()))?;
    }
    files::remove_tree(&canonical)
}

fn is_mount_point(canonical: &Path) -> Result<bool, Error> {
    let table = fs::read_to_string(files::MOUNT_TABLE).context(|| format!("read {}", files::MOUNT_TABLE))?;
    Ok(files::mount_points(&table).any(|point| point == canonical))
}
