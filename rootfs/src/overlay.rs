//! A container's root as data, and as detached mounts.
//!
//! ```text
//! RootPlan.layers[0]  /      overlay(lower = image skeleton, upper, work)
//!                [1]  /usr   overlay(lower = host's /usr,    upper, work)    moved beneath the first
//! ```
//!
//! The overlays are mounted `volatile`: a snapshot never outlives its container, and without it each unmount
//! would flush the whole filesystem beneath. Source: Documentation/filesystems/overlayfs.rst, "Volatile mount".
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::{Error, Kind, SysError};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Longest value fsconfig(2) takes for `FSCONFIG_SET_STRING`, without the NUL.
const FSCONFIG_STRING_BYTES_MAX: usize = 255;

/// Whether a container may write to its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// Writes go to the upper directories.
    ReadWrite,
    /// Writes answer `EROFS`.
    ReadOnly,
}

/// One overlay of a root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// Absolute path inside the container.
    pub destination: PathBuf,
    /// Read-only directories of the host, topmost first; at least one.
    pub lower: Vec<PathBuf>,
    /// Takes the writes.
    pub upper: PathBuf,
    /// overlayfs' own; on the same filesystem as `upper`.
    pub work: PathBuf,
}

/// Everything needed to mount a container's root. Plain data: it crosses the shim's socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootPlan {
    /// The root first, then what is moved beneath it, parents before children.
    pub layers: Vec<Layer>,
    /// Read-only when the container starts.
    pub access: Access,
}

/// A detached mount and its place inside the container.
#[derive(Debug)]
pub struct MountedLayer {
    /// Absolute path inside the container; `/` for the first.
    pub destination: PathBuf,
    /// The mount, as move_mount(2) takes it with `MOVE_MOUNT_F_EMPTY_PATH`.
    pub mount: OwnedFd,
}

impl RootPlan {
    /// Mounts the layers, detached from every mount namespace; closing the fds undoes it.
    ///
    /// With [`Access::ReadOnly`] all but the root are read-only at once; the root stays writable so that the
    /// runtime can make mount points in it, and the runtime then seals it (`root.readonly` in the OCI spec).
    ///
    /// # Errors
    /// `Unsupported` if the filesystem of the upper directories cannot carry an overlay; `NotFound` if the
    /// snapshot is gone; `Denied` without `CAP_SYS_ADMIN`.
    pub fn mount(&self) -> Result<Vec<MountedLayer>, Error> {
        let mut mounted = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
            if self.access == Access::ReadOnly && index > 0 {
                attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
            }
            let mount = layer
                .mount(attributes)
                .context(|| format!("mount overlay for {}", layer.destination.display()))?;
            mounted.push(MountedLayer { destination: layer.destination.clone(), mount });
        }
        Ok(mounted)
    }
}

impl Layer {
    fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd, Error> {
        // overlayfs refuses an upper that was mounted volatile before, unless this mark is gone. It is ours to
        // remove: a snapshot belongs to one container attempt, so whoever mounted it has failed.
        let mark = self.work.join("work/incompat/volatile");
        match std::fs::remove_dir_all(&mark) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", mark.display()), error));
            }
            _ => {}
        }
        let filesystem =
            fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context(|| "fsopen(overlay)".into())?;
        let fs = filesystem.as_fd();
        let mut pins = Vec::new(); // Keeps /proc/self/fd names valid until the superblock exists.
        set(fs, "source", "podyard")?;
        self.set_lower(fs, &mut pins)?;
        for (key, path) in [("upperdir", &self.upper), ("workdir", &self.work)] {
            // Linux 6.5 and later already refuse an unfit directory here.
            set(fs, key, &short(path, &mut pins)?).map_err(|error| self.explain(fs, error))?;
        }
        fsconfig_set_flag(fs, "volatile").context(|| "fsconfig(SET_FLAG, volatile)".into())?;
        fsconfig_create(fs).map_err(|errno| {
            let call = format!("fsconfig(CREATE, {})", self.options());
            self.explain(fs, SysError { call, errno }.into())
        })?;
        fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).context(|| "fsmount(overlay)".into())
    }

    /// One `lowerdir` where it fits, else one `lowerdir+` each (Linux 6.8).
    fn set_lower(&self, fs: BorrowedFd<'_>, pins: &mut Vec<OwnedFd>) -> Result<(), Error> {
        let names = self.lower.iter().map(|path| short(path, pins)).collect::<Result<Vec<_>, _>>()?;
        let joined = names.iter().map(|name| escape_colons(name)).collect::<Vec<_>>().join(":");
        if joined.len() <= FSCONFIG_STRING_BYTES_MAX {
            return set(fs, "lowerdir", &joined);
        }
        names.iter().try_for_each(|name| set(fs, "lowerdir+", name))
    }

    /// Says which of the usual causes it was: fsconfig only answers `EINVAL`.
    fn explain(&self, fs: BorrowedFd<'_>, error: Error) -> Error {
        if let Err(unsupported) = supports_upper(&self.upper) {
            return unsupported;
        }
        let log = kernel_log(fs);
        if log.is_empty() { error } else { Error::caused(log, error) }
    }

    fn options(&self) -> String {
        let lower: Vec<_> = self.lower.iter().map(|path| path.display().to_string()).collect();
        format!("lowerdir={},upperdir={}", lower.join(":"), self.upper.display())
    }
}

/// Whether overlays can keep their upper directories in `dir`.
///
/// # Errors
/// `Unsupported` naming the filesystem and the fix.
///
/// Source: fs/overlayfs/super.c, `ovl_make_workdir`; statfs(2) for the magic numbers.
pub fn supports_upper(dir: &Path) -> Result<(), Error> {
    const OVERLAYFS: i64 = 0x794c_7630;
    const NFS: i64 = 0x6969;
    const VFAT: i64 = 0x4d44;
    let stat = rustix::fs::statfs(dir).context(|| format!("statfs({})", dir.display()))?;
    #[allow(clippy::useless_conversion, reason = "f_type's width differs between architectures")]
    let name = match i64::from(stat.f_type) {
        OVERLAYFS => "an overlay itself",
        NFS => "NFS",
        VFAT => "FAT",
        _ => return Ok(()),
    };
    let text = format!(
        "{} is {name}, which cannot hold an overlay's upper directory; use a data directory on ext4, xfs, btrfs or tmpfs",
        dir.display()
    );
    Err(Error::new(Kind::Unsupported, text))
}

fn set(fs: BorrowedFd<'_>, key: &str, value: &str) -> Result<(), Error> {
    fsconfig_set_string(fs, key, value).context(|| format!("fsconfig(SET_STRING, {key}, {value})"))
}

/// The path itself if fsconfig takes it; else its name under /proc/self/fd, pinned by a descriptor.
fn short(path: &Path, pins: &mut Vec<OwnedFd>) -> Result<String, Error> {
    let text =
        path.to_str().filter(|text| text.starts_with('/') && !text.contains('\\')).ok_or_else(|| {
            Error::new(Kind::Invalid, format!("overlay path {} is not plain and absolute", path.display()))
        })?;
    // Before Linux 6.5 the options become one comma-separated string.
    if escape_colons(text).len() <= FSCONFIG_STRING_BYTES_MAX && !text.contains(',') {
        return Ok(text.to_owned());
    }
    let pin =
        rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open({}, O_PATH)", path.display()))?;
    let name = format!("/proc/self/fd/{}", pin.as_raw_fd());
    pins.push(pin);
    Ok(name)
}

fn escape_colons(path: &str) -> String {
    path.replace(':', "\\:")
}

/// What the kernel says about the failed configuration, if anything. Source: fsopen(2), "message retrieval".
fn kernel_log(fs: BorrowedFd<'_>) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0u8; 1024];
    while let Ok(count) = rustix::io::read(fs, &mut buffer) {
        let Some(line) = buffer.get(..count).filter(|line| !line.is_empty()) else { break };
        let text = String::from_utf8_lossy(line);
        lines.push(text.trim().trim_start_matches("e overlay: ").trim_start_matches("e ").to_owned());
        if lines.len() == 8 {
            break;
        }
    }
    lines.join("; ")
}
