//! Device nodes and the links that programs expect beside them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mknodat, openat, statat, symlinkat,
};

use super::api;
use super::beneath::{self, Links};
use crate::error::{Call, Error, Kind, Result, Step};
use crate::plan::{DeviceKind, DevicePlan};

/// Links in `/dev`. Source: runtime-spec, runtime-linux.md, "Dev symbolic links".
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes the nodes; one that is there already and is the right device stays.
pub(super) fn make(root: &OwnedFd, devices: &[DevicePlan], user_namespace: bool) -> Result<()> {
    // Most are in one directory.
    let mut known = None;
    for device in devices {
        let step = || format!("make device {}", device.path.display());
        if user_namespace {
            bind(root, device).step(step())?;
            continue;
        }
        let place = device.path.parent();
        let parent = match known.take() {
            Some((path, parent)) if path == place => parent,
            _ => beneath::ensure_parent(root, &device.path, Links::Refuse).step(step())?.0,
        };
        make_node(root, &parent, device).step(step())?;
        known = Some((place, parent));
    }
    Ok(())
}

fn make_node(root: &OwnedFd, parent: &OwnedFd, device: &DevicePlan) -> Result<()> {
    let name = device.path.file_name().unwrap_or_default();
    let mode = Mode::from_raw_mode(device.mode);
    let number: Dev = makedev(device.major, device.minor);
    match mknodat(parent, name, device.kind.file_type(), mode, number) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => {
            let stat =
                statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).call(|| format!("fstatat({name:?})"))?;
            return match is_that(&stat, device) {
                true => Ok(()),
                false => Err(Error::new(Kind::AlreadyExists, "something else is there")),
            };
        }
        // In a user namespace around us nodes cannot be made either.
        Err(rustix::io::Errno::PERM) => return bind(root, device),
        Err(e) => return Err(e).call(|| format!("mknodat({name:?}, {number:#x})")),
    }
    // The umask is 0 by now, so the mode is as written. The directory may be a volume that others write: what is there
    // now is looked at by descriptor, and a link put in its place is not followed.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(parent, name, flags, Mode::empty()).call(|| format!("openat({name:?}, O_NOFOLLOW)"))?;
    let stat = statat(&node, "", AtFlags::EMPTY_PATH).call(|| format!("fstat({name:?})"))?;
    if !is_that(&stat, device) {
        return Err(Error::new(Kind::Denied, "something else took its place"));
    }
    if (stat.st_uid, stat.st_gid) == (device.uid, device.gid) {
        return Ok(());
    }
    let owner = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(&node, "", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH).call(|| format!("fchown({name:?})"))
}

fn is_that(stat: &rustix::fs::Stat, device: &DevicePlan) -> bool {
    let number = makedev(device.major, device.minor);
    FileType::from_raw_mode(stat.st_mode) == device.kind.file_type()
        && (device.kind == DeviceKind::Fifo || stat.st_rdev == number)
}

/// In a user namespace nodes cannot be made: the host's are bound.
fn bind(root: &OwnedFd, device: &DevicePlan) -> Result<()> {
    let mount = api::bind(CWD, &device.path, false)?;
    let place = beneath::ensure_file(root, &device.path, Links::Refuse)?;
    mount.attach(root, &place).map(drop)
}

/// Makes the standard links, in a `/dev` that is not bound.
pub(super) fn links(root: &OwnedFd) -> Result<()> {
    let dev = beneath::ensure_directory(root, Path::new("/dev"), Links::Refuse)?;
    for (name, target) in LINKS {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e).call(|| format!("symlinkat({target:?}, /dev/{name})")),
        }
    }
    Ok(())
}

/// The container's `/dev/null`, seen to be the null device.
pub(super) fn verified_null(root: &OwnedFd) -> Result<OwnedFd> {
    let null = beneath::locate(root, Path::new("/dev/null"), Links::Refuse)?;
    match super::is_character_device(null.as_fd(), (1, 3))? {
        true => Ok(null),
        false => Err(Error::new(Kind::Denied, "/dev/null is not the null device")),
    }
}

impl DeviceKind {
    fn file_type(self) -> FileType {
        match self {
            DeviceKind::Block => FileType::BlockDevice,
            DeviceKind::Character => FileType::CharacterDevice,
            DeviceKind::Fifo => FileType::Fifo,
        }
    }
}
