//! Device nodes and the links that programs expect beside them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, statat, symlinkat,
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
    for device in devices {
        let step = format!("make device {}", device.path.display());
        if user_namespace {
            bind(root, device).step(step)?;
        } else {
            make_node(root, device).step(step)?;
        }
    }
    Ok(())
}

fn make_node(root: &OwnedFd, device: &DevicePlan) -> Result<()> {
    let (parent, name) = beneath::ensure_parent(root, &device.path, Links::Refuse)?;
    let mode = Mode::from_raw_mode(device.mode);
    let number: Dev = makedev(device.major, device.minor);
    match mknodat(&parent, name, device.kind.file_type(), mode, number) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => {
            let stat =
                statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).call(|| format!("fstatat({name:?})"))?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            let same = kind == device.kind.file_type()
                && (device.kind == DeviceKind::Fifo || stat.st_rdev == number);
            return match same {
                true => Ok(()),
                false => Err(Error::new(Kind::AlreadyExists, "something else is there")),
            };
        }
        // In a user namespace around us nodes cannot be made either.
        Err(rustix::io::Errno::PERM) => return bind(root, device),
        Err(e) => return Err(e).call(|| format!("mknodat({name:?}, {number:#x})")),
    }
    // The umask and the caller's IDs had their say above. Nobody else can have replaced the node:
    // no process of the container exists yet, but the directory may be a volume others write, so
    // links are not followed.
    chmodat(&parent, name, mode, AtFlags::empty()).call(|| format!("fchmodat({name:?})"))?;
    let owner = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(&parent, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)
        .call(|| format!("fchownat({name:?})"))
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
