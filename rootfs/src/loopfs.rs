//! Filesystems in image files: bound to a loop device, mounted without a place in any mount table.
//!
//! ```text
//!  data.img ◄── /dev/loopN (autoclear) ◄── superblock ◄── detached mounts, one per container
//! ```
//! Nothing remembers which device an image has: the kernel is asked. An image must never have two devices, whose
//! superblocks would not know of each other, so whoever binds or grows one holds the volume's lock. The device goes
//! with the last mount, and that goes with the last process that has it, however that ends.
//!
//! A mounted filesystem may only be grown with `CAP_SYS_RESOURCE`, which many hosts' containers lack even for root.
//! There the image is made larger than the claim from the start, and ext4 keeps the difference free: its
//! `reserved_clusters` are nobody's, root's included, and may be changed while it is mounted.
//!
//! Source: loop(4); fs/ext4/balloc.c, `ext4_has_free_clusters`; Documentation/ABI/testing/sysfs-fs-ext4.
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::ext4::BLOCK_BYTES;
use crate::{Error, Kind, sys};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const CONTROL: &str = "/dev/loop-control";
/// How often another one may take the loop device that was free a moment ago.
const RACES_MAX: u32 = 64;

/// A loop device bound to an image. It stays so while this, or a mount of it, lives.
#[derive(Debug)]
pub(crate) struct Device {
    fd: OwnedFd,
    number: u32,
}

/// The device that an image is bound to, if it is.
///
/// # Errors
/// What /sys or the devices answer.
pub(crate) fn find(image: &File) -> Result<Option<Device>, Error> {
    let meta = image.metadata().context(|| "fstat(image)".into())?;
    let wanted = (encoded(meta.dev()), meta.ino());
    let blocks = fs::read_dir("/sys/block").context(|| "list /sys/block".into())?;
    for entry in blocks {
        let name = entry.context(|| "list /sys/block".into())?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        let Some(number) = number else { continue };
        // Others' devices that are bound to nothing are not opened at all.
        if !Path::new(&format!("/sys/block/loop{number}/loop/backing_file")).exists() {
            continue;
        }
        let fd = match open(number) {
            // Unbound or removed meanwhile.
            Err(error) if error.kind() == Kind::NotFound => continue,
            other => other?,
        };
        match sys::loop_info(fd.as_fd()) {
            Ok(info) if (info.device, info.inode) == wanted => return Ok(Some(Device { fd, number })),
            // Another's, or being unbound: that cannot be ours, which our mount would hold.
            _ => {}
        }
    }
    Ok(None)
}

/// The device that the image is bound to; binds it if it is not. The caller holds the volume's lock.
///
/// # Errors
/// `Unsupported` without loop devices.
pub(crate) fn attach(image: &File) -> Result<Device, Error> {
    if let Some(device) = find(image)? {
        return Ok(device);
    }
    let control = open_device(Path::new(CONTROL))?;
    for _ in 0..RACES_MAX {
        let number = sys::loop_free_number(control.as_fd())?;
        let fd = open(number)?;
        match sys::loop_configure(fd.as_fd(), image.as_fd(), BLOCK_BYTES as u32) {
            Err(error) if error.errno == rustix::io::Errno::BUSY => {}
            Err(error) => return Err(error.into()),
            Ok(()) => return Ok(Device { fd, number }),
        }
    }
    Err(Error::new(Kind::Busy, "others took every free loop device"))
}

/// Whether images can be mounted here.
///
/// # Errors
/// `Unsupported`, with what is missing.
pub(crate) fn is_available() -> Result<(), Error> {
    let control = open_device(Path::new(CONTROL))?;
    let number = sys::loop_free_number(control.as_fd())?;
    open(number).map(|_| ())?;
    let known = fs::read_to_string("/proc/filesystems").context(|| "read /proc/filesystems".into())?;
    if known.lines().any(|line| line.trim() == "ext4") {
        return Ok(());
    }
    // It may be a module that the kernel loads when it is asked for.
    fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC).map(|_| ()).context(|| "fsopen(ext4)".into())
}

/// Whether this process may grow a mounted ext4 filesystem.
pub(crate) fn may_resize() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    set >> CAP_SYS_RESOURCE & 1 == 1
}

/// Whether free blocks of mounted filesystems can be set aside here: /sys is writable.
pub(crate) fn may_reserve() -> bool {
    let flags = rustix::fs::statvfs("/sys/fs/ext4").map(|stat| stat.f_flag);
    flags.is_ok_and(|flags| !flags.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

impl Device {
    /// A new mount of the filesystem, in no mount table. Further mounts share its superblock.
    ///
    /// # Errors
    /// The kernel's answer: an image that is damaged, or no filesystem.
    pub(crate) fn mount(&self) -> Result<OwnedFd, Error> {
        // What containers delete goes back to the host.
        self.mount_with("discard")
    }

    /// As [`Device::mount`], with another flag.
    pub(crate) fn mount_with(&self, flag: &str) -> Result<OwnedFd, Error> {
        let filesystem = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC).context(|| "fsopen(ext4)".into())?;
        let fs = filesystem.as_fd();
        let path = self.path();
        let source = path.display().to_string();
        fsconfig_set_string(fs, "source", &source)
            .context(|| format!("fsconfig(SET_STRING, source, {source})"))?;
        fsconfig_set_flag(fs, flag).context(|| format!("fsconfig(SET_FLAG, {flag})"))?;
        fsconfig_create(fs).context(|| format!("mount ext4 from {source}: fsconfig(CREATE)"))?;
        fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)
            .context(|| format!("fsmount(ext4, {source})"))
    }

    /// Keeps this many free blocks of the mounted filesystem from everybody.
    ///
    /// # Errors
    /// `Unsupported` if /sys cannot be written to.
    pub(crate) fn reserve(&self, blocks: u64) -> Result<(), Error> {
        let path = format!("/sys/fs/ext4/loop{}/reserved_clusters", self.number);
        fs::write(&path, blocks.to_string()).context(|| format!("write {blocks} to {path}"))
    }

    /// Takes note that the file has grown, and grows the mounted filesystem into it.
    ///
    /// # Errors
    /// `Denied` without `CAP_SYS_RESOURCE`.
    pub(crate) fn grow(&self, blocks: u64) -> Result<(), Error> {
        sys::loop_set_capacity(self.fd.as_fd())?;
        let mount = self.mount()?;
        let root = rustix::fs::openat(mount, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(|| "open the filesystem's root".into())?;
        Ok(sys::ext4_resize(root.as_fd(), blocks)?)
    }

    /// As /dev names it.
    pub(crate) fn path(&self) -> PathBuf {
        device_path(self.number)
    }
}

fn device_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn open(number: u32) -> Result<OwnedFd, Error> {
    open_device(&device_path(number))
}

fn open_device(path: &Path) -> Result<OwnedFd, Error> {
    let what = || format!("open {}", path.display());
    let fd = rustix::fs::openat(CWD, path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
        .context(what)?;
    let stat = rustix::fs::fstat(&fd).context(what)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice | FileType::CharacterDevice => Ok(fd),
        _ => Err(Error::new(Kind::Unsupported, format!("{} is no device", path.display()))),
    }
}

/// A device number as the kernel tells user space. Source: include/linux/kdev_t.h, `new_encode_dev`.
fn encoded(device: u64) -> u64 {
    let (major, minor) = (u64::from(rustix::fs::major(device)), u64::from(rustix::fs::minor(device)));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(encoded(rustix::fs::makedev(254, 0)), 254 << 8);
        assert_eq!(encoded(rustix::fs::makedev(8, 257)), 0x10_0801);
    }
}
