//! Mounts that are made first and put in place later, with the mount API, or with mount(2) where that is missing.
//!
//! ```text
//!            mount API (5.12)                   mount(2)
//!   make     fsopen, fsconfig, fsmount          remembered
//!   bind     open_tree(OPEN_TREE_CLONE)         remembered, its source open
//!   change   mount_setattr                      remembered
//!   attach   move_mount                         mount, the new mount found, then MS_REMOUNT, MS_SLAVE…
//! ```
//!
//! mount(2) takes paths: places and sources are `/proc/self/fd/N` of descriptors that were resolved below the root, by
//! a procfs seen to be one. What it made is found again below the root, where no link is followed, and must be a mount
//! of what was bound: another's rename in between is an error, not a change to a wrong mount.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::libc;
use nix::mount::MsFlags;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags, fstat, fstatfs, fstatvfs, open,
    openat, statx,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::beneath::{self, Links};
use super::options::{
    ATIME_MASK, Attributes, NOATIME, NODEV, NODIRATIME, NOEXEC, NOSUID, NOSYMFOLLOW, READ_ONLY, STRICTATIME,
};
use super::{PROC_SUPER_MAGIC, mountinfo};
use crate::error::{Call, Error, Kind, Result};
use crate::sys::{self, MountAttr};

/// A mount that is in no mount table yet.
#[derive(Debug)]
pub(crate) enum Pending {
    /// Made, and in no mount namespace.
    Detached(OwnedFd),
    /// To be made where it is attached.
    Remembered(Remembered),
}

/// What mount(2) is to do.
#[derive(Debug)]
pub(crate) struct Remembered {
    what: What,
    changes: Vec<Change>,
}

#[derive(Debug)]
enum What {
    New { fs: String, source: Option<String>, flags: MsFlags, data: String },
    Bind { source: OwnedFd, recursive: bool },
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Attributes { recursive: bool, attributes: Attributes },
    Propagation { recursive: bool, how: u64 },
}

/// A filesystem to mount.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filesystem<'a> {
    /// Its type.
    pub(crate) fs: &'a str,
    /// What mount(8) would call the device.
    pub(crate) source: Option<&'a str>,
    /// Its own options: flags and values.
    pub(crate) data: &'a [(String, Option<String>)],
    /// `MS_*` of the filesystem, not of the mount: `MS_SYNCHRONOUS` and the like.
    pub(crate) superblock: u64,
    /// `MOUNT_ATTR_*`.
    pub(crate) attributes: u64,
}

/// Flags of a filesystem by their names for fsconfig(2). Source: fs/fs_context.c.
const SUPERBLOCK: [(u64, &str); 5] = [
    (libc::MS_RDONLY, "ro"),
    (libc::MS_SYNCHRONOUS, "sync"),
    (libc::MS_DIRSYNC, "dirsync"),
    (libc::MS_LAZYTIME, "lazytime"),
    (libc::MS_MANDLOCK, "mand"),
];

/// Longest value of fsconfig(2), with its NUL. Source: fs/fsopen.c.
const VALUE_BYTES_MAX: usize = 256;

/// Attributes of a mount as mount(2) has them, and as statvfs(3) shows them.
const FLAGS: [(u64, u64, u64); 7] = [
    (READ_ONLY, libc::MS_RDONLY, libc::ST_RDONLY),
    (NOSUID, libc::MS_NOSUID, libc::ST_NOSUID),
    (NODEV, libc::MS_NODEV, libc::ST_NODEV),
    (NOEXEC, libc::MS_NOEXEC, libc::ST_NOEXEC),
    (NODIRATIME, libc::MS_NODIRATIME, libc::ST_NODIRATIME),
    (NOSYMFOLLOW, libc::MS_NOSYMFOLLOW, 0x2000),
    (NOATIME, libc::MS_NOATIME, libc::ST_NOATIME),
];

/// Whether the mount API may be used, asked once.
pub(crate) fn modern() -> bool {
    static MODERN: OnceLock<bool> = OnceLock::new();
    *MODERN.get_or_init(sys::has_mount_api)
}

/// A new mount of a new filesystem.
pub(crate) fn new_filesystem(new: &Filesystem<'_>) -> Result<Pending> {
    // What fsconfig cannot say, mount(2) can.
    let long = new.data.iter().any(|(_, value)| value.as_ref().is_some_and(|v| v.len() >= VALUE_BYTES_MAX));
    if modern() && !long && new.superblock & libc::MS_I_VERSION == 0 {
        return detached_filesystem(new).map(Pending::Detached);
    }
    let words = new.data.iter().map(|(key, value)| match value {
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    });
    let what = What::New {
        fs: new.fs.to_string(),
        source: new.source.map(str::to_string),
        flags: ms_flags(new.attributes) | MsFlags::from_bits_retain(new.superblock),
        data: words.collect::<Vec<_>>().join(","),
    };
    Ok(Pending::Remembered(Remembered { what, changes: Vec::new() }))
}

fn detached_filesystem(new: &Filesystem<'_>) -> Result<OwnedFd> {
    let fs = new.fs;
    let context = fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC).call(|| format!("fsopen({fs:?})"))?;
    if let Some(source) = new.source {
        fsconfig_set_string(&context, "source", source)
            .call(|| format!("fsconfig({fs}, \"source\", {source:?})"))?;
    }
    for (_, key) in SUPERBLOCK.iter().filter(|(flag, _)| new.superblock & flag != 0) {
        fsconfig_set_flag(&context, *key).call(|| format!("fsconfig({fs}, {key:?})"))?;
    }
    for (key, value) in new.data {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str())
                .call(|| format!("fsconfig({fs}, {key:?}, {value:?})"))?,
            None => fsconfig_set_flag(&context, key.as_str()).call(|| format!("fsconfig({fs}, {key:?})"))?,
        }
    }
    fsconfig_create(&context).call(|| format!("fsconfig({fs}, CMD_CREATE)"))?;
    let attributes = MountAttrFlags::from_bits_retain(new.attributes as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).call(|| format!("fsmount({fs})"))
}

/// A copy of the mount at a path, or of what `dir` is if the path is empty.
pub(crate) fn bind(dir: impl AsFd, path: &Path, recursive: bool) -> Result<Pending> {
    if modern() {
        return clone_tree(dir, path, recursive).map(Pending::Detached);
    }
    let source = match path.as_os_str().is_empty() {
        true => dir.as_fd().try_clone_to_owned().call(|| "fcntl(F_DUPFD_CLOEXEC)".into())?,
        false => openat(dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .call(|| format!("open({path:?}, O_PATH)"))?,
    };
    Ok(Pending::Remembered(Remembered { what: What::Bind { source, recursive }, changes: Vec::new() }))
}

/// A detached copy of the mount at a path, or of what `dir` is if the path is empty.
pub(crate) fn clone_tree(dir: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    open_tree(dir, path, flags).call(|| format!("open_tree({path:?}, CLONE)"))
}

/// A mount made by the caller of `create`.
///
/// # Errors
/// `Unsupported` without the mount API: only move_mount(2) can put it in place.
pub(crate) fn given(fd: OwnedFd) -> Result<Pending> {
    match modern() {
        true => Ok(Pending::Detached(fd)),
        false => Err(Error::unsupported(
            "a mount made by the caller",
            "move_mount(2) is missing, and nothing else puts one in place",
        )),
    }
}

impl Pending {
    /// Of what kind its root is.
    pub(crate) fn file_type(&self) -> Result<FileType> {
        let fd = match self {
            Pending::Detached(fd) => fd,
            Pending::Remembered(Remembered { what: What::Bind { source, .. }, .. }) => source,
            Pending::Remembered(_) => return Ok(FileType::Directory),
        };
        let stat = fstat(fd).call(|| "fstat(mount)".into())?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    /// Whether it shows a procfs.
    pub(crate) fn is_proc(&self) -> Result<bool> {
        match self {
            Pending::Detached(fd) => is_proc(fd),
            Pending::Remembered(Remembered { what: What::Bind { source, .. }, .. }) => is_proc(source),
            Pending::Remembered(Remembered { what: What::New { fs, .. }, .. }) => Ok(fs == "proc"),
        }
    }

    /// Changes its attributes, and with `recursive` those of the mounts below it.
    pub(crate) fn set(&mut self, recursive: bool, attributes: Attributes) -> Result<()> {
        match self {
            _ if attributes.is_empty() => Ok(()),
            Pending::Detached(fd) => set_by_api(fd, recursive, attributes),
            Pending::Remembered(to_do) => {
                to_do.changes.push(Change::Attributes { recursive, attributes });
                Ok(())
            }
        }
    }

    /// Both for a mount with none below it, in one call where there is one.
    pub(crate) fn set_and_make_private(&mut self, attributes: Attributes) -> Result<()> {
        let Pending::Detached(fd) = self else {
            self.set(false, attributes)?;
            return self.propagate(false, libc::MS_PRIVATE);
        };
        let Attributes { set, clear } = attributes;
        let attr = MountAttr { set, clear, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        sys::mount_setattr(fd.as_fd(), false, attr)
    }

    /// Changes its propagation (`MS_SHARED` and the like).
    pub(crate) fn propagate(&mut self, recursive: bool, how: u64) -> Result<()> {
        match self {
            Pending::Detached(fd) => {
                let attr = MountAttr { propagation: how, ..MountAttr::default() };
                sys::mount_setattr(fd.as_fd(), recursive, attr)
            }
            Pending::Remembered(to_do) => {
                to_do.changes.push(Change::Propagation { recursive, how });
                Ok(())
            }
        }
    }

    /// Puts it on `place`, which was resolved below `root`. The descriptor is that of the mount.
    pub(crate) fn attach(self, root: impl AsFd, place: impl AsFd) -> Result<OwnedFd> {
        match self {
            Pending::Detached(fd) => {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
                move_mount(&fd, "", place, "", flags).call(|| "move_mount(mount, place)".into())?;
                Ok(fd)
            }
            Pending::Remembered(to_do) => {
                to_do.mount(place.as_fd())?;
                let mount = reopen(root.as_fd(), place.as_fd())?;
                to_do.finish(root.as_fd(), mount)
            }
        }
    }

    /// Puts it on the directory at `path` of the host's, as a container's root.
    pub(crate) fn attach_at(self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| open(path, flags, Mode::empty()).call(|| format!("open({path:?})"));
        let place = open(path)?;
        match self {
            Pending::Detached(_) => self.attach(CWD, place),
            Pending::Remembered(to_do) => {
                to_do.mount(place.as_fd())?;
                // A path that ends in `..` ends on top of what is mounted there; one that begins with `/` begins
                // beneath it. Source: fs/namei.c, handle_dots().
                let mount = match path == Path::new("/") {
                    true => open(Path::new("/.."))?,
                    false => open(&text(&place)?)?,
                };
                seen_to_be_new(&mount, &place)?;
                let root = mount.try_clone().call(|| "fcntl(F_DUPFD_CLOEXEC)".into())?;
                to_do.finish(root.as_fd(), mount)
            }
        }
    }
}

impl Remembered {
    fn mount(&self, place: impl AsFd) -> Result<()> {
        let place = name_of(&place)?;
        match &self.what {
            What::New { fs, source, flags, data } => {
                let (source, data) = (source.as_deref().unwrap_or("none"), data.as_str());
                nix::mount::mount(Some(source), &place, Some(fs.as_str()), *flags, Some(data))
                    .call(|| format!("mount({source:?}, place, {fs:?}, {flags:?}, {data:?})"))
            }
            What::Bind { source, recursive } => {
                let mut flags = MsFlags::MS_BIND;
                flags.set(MsFlags::MS_REC, *recursive);
                let source = name_of(source)?;
                nix::mount::mount(Some(&source), &place, None::<&str>, flags, None::<&str>)
                    .call(|| format!("mount({source:?}, place, {flags:?})"))
            }
        }
    }

    /// What was to be done to the mount that it is now.
    fn finish(&self, root: impl AsFd, mount: OwnedFd) -> Result<OwnedFd> {
        if let What::Bind { source, .. } = &self.what {
            let inode = |fd: &OwnedFd| fstat(fd).call(|| "fstat(mount)".into()).map(|s| (s.st_dev, s.st_ino));
            if inode(source)? != inode(&mount)? {
                return Err(Error::new(Kind::Denied, "something else was mounted there meanwhile"));
            }
        }
        for change in &self.changes {
            match *change {
                Change::Attributes { recursive, attributes } => {
                    set_by_remount(root.as_fd(), &mount, recursive, attributes)?;
                }
                Change::Propagation { recursive, how } => propagate(&mount, recursive, how)?,
            }
        }
        Ok(mount)
    }
}

/// Changes the attributes of a mount that is in place, and with `recursive` those of the mounts below it.
pub(crate) fn set(root: impl AsFd, mount: &OwnedFd, recursive: bool, attributes: Attributes) -> Result<()> {
    match modern() {
        _ if attributes.is_empty() => Ok(()),
        true => set_by_api(mount, recursive, attributes),
        false => set_by_remount(root, mount, recursive, attributes),
    }
}

/// Changes the propagation of a mount that is in place.
pub(crate) fn propagate(mount: &OwnedFd, recursive: bool, how: u64) -> Result<()> {
    let mut flags = MsFlags::from_bits_retain(how);
    flags.set(MsFlags::MS_REC, recursive);
    let name = name_of(mount)?;
    nix::mount::mount(None::<&str>, &name, None::<&str>, flags, None::<&str>)
        .call(|| format!("mount(NULL, {name:?}, {flags:?})"))
}

fn set_by_api(mount: &OwnedFd, recursive: bool, attributes: Attributes) -> Result<()> {
    let Attributes { set, clear } = attributes;
    sys::mount_setattr(mount.as_fd(), recursive, MountAttr { set, clear, ..MountAttr::default() })
}

/// mount(2) replaces all flags: those that are there are kept, but for the changes.
fn set_by_remount(root: impl AsFd, mount: &OwnedFd, recursive: bool, attributes: Attributes) -> Result<()> {
    let remount = |mount: &OwnedFd| {
        let flags = remount_flags(mount, attributes)? | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        let name = name_of(mount)?;
        nix::mount::mount(None::<&str>, &name, None::<&str>, flags, None::<&str>)
            .call(|| format!("mount(NULL, {name:?}, {flags:?})"))
    };
    remount(mount)?;
    if !recursive {
        return Ok(());
    }
    let table =
        std::fs::read_to_string("/proc/self/mountinfo").call(|| "read(\"/proc/self/mountinfo\")".into())?;
    for below in mountinfo::below(&table, identity(mount)?.stx_mnt_id)? {
        let fd = beneath::locate(root.as_fd(), &inside(root.as_fd(), &below.point)?, Links::Refuse)?;
        // One that another covers cannot be reached, by nobody.
        if identity(&fd)?.stx_mnt_id == below.id {
            remount(&fd)?;
        }
    }
    Ok(())
}

/// The flags of a mount as mount(2) takes them, changed.
pub(super) fn remount_flags(mount: &OwnedFd, attributes: Attributes) -> Result<MsFlags> {
    let shown = fstatvfs(mount).call(|| "fstatvfs(mount)".into())?.f_flag.bits();
    Ok(ms_flags(attributes.applied_to(shown_attributes(shown))))
}

/// `MOUNT_ATTR_*` from what statvfs(3) shows.
fn shown_attributes(shown: u64) -> u64 {
    let mut attributes =
        FLAGS.iter().filter(|(.., st)| shown & st != 0).fold(0, |all, (attr, ..)| all | attr);
    if shown & (libc::ST_NOATIME | libc::ST_RELATIME) == 0 {
        attributes |= STRICTATIME;
    }
    attributes
}

/// `MS_*` from `MOUNT_ATTR_*`.
fn ms_flags(attributes: u64) -> MsFlags {
    let ms = FLAGS.iter().filter(|(attr, ..)| attributes & attr != 0).fold(0, |all, (_, ms, _)| all | ms);
    let atime = match attributes & ATIME_MASK {
        0 => libc::MS_RELATIME,
        STRICTATIME => libc::MS_STRICTATIME,
        _ => 0,
    };
    MsFlags::from_bits_retain(ms | atime)
}

/// The mount that was just put on `place`.
fn reopen(root: impl AsFd, place: impl AsFd) -> Result<OwnedFd> {
    let path = inside(root.as_fd(), &text(&place)?)?;
    let mount = beneath::locate(root, &path, Links::Refuse)?;
    seen_to_be_new(&mount, place)?;
    Ok(mount)
}

fn seen_to_be_new(mount: impl AsFd, place: impl AsFd) -> Result<()> {
    let (new, old) = (identity(mount)?, identity(place)?);
    if !new.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) || new.stx_mnt_id == old.stx_mnt_id {
        return Err(Error::new(Kind::Denied, "the mount is not where it was put"));
    }
    Ok(())
}

/// `path`, as the kernel shows it to this process, from `root` on.
fn inside(root: impl AsFd, path: &Path) -> Result<PathBuf> {
    let root = text(root)?;
    match path.strip_prefix(&root) {
        Ok(rest) => Ok(Path::new("/").join(rest)),
        Err(_) => {
            Err(Error::new(Kind::Denied, format!("{} is not below {}", path.display(), root.display())))
        }
    }
}

/// Where `fd` is, as the kernel shows it to this process: without symlinks.
fn text(fd: impl AsFd) -> Result<PathBuf> {
    let name = name_of(&fd)?;
    std::fs::read_link(&name).call(|| format!("readlink({name:?})"))
}

/// A path that leads to what `fd` is, by a procfs seen to be one.
pub(crate) fn name_of(fd: impl AsFd) -> Result<PathBuf> {
    static SEEN: OnceLock<()> = OnceLock::new();
    if SEEN.get().is_none() {
        host_proc()?;
        SEEN.get_or_init(|| ());
    }
    Ok(PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())))
}

/// The procfs on `/proc`, seen to be the root of one, with nothing mounted on what is used of it here.
pub(crate) fn host_proc() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc =
        open("/proc", flags | OFlags::NOFOLLOW, Mode::empty()).call(|| "open(\"/proc\", O_PATH)".into())?;
    let fds = openat(&proc, "self/fd", flags, Mode::empty()).call(|| "openat(proc, \"self/fd\")".into())?;
    let (root, below) = (identity(&proc)?, identity(&fds)?);
    let genuine = is_proc(&proc)? && is_proc(&fds)? && root.stx_ino == PROC_ROOT_INO;
    if !genuine || root.stx_mnt_id != below.stx_mnt_id {
        return Err(Error::new(Kind::Denied, "/proc is not a procfs, or something is mounted on it"));
    }
    Ok(proc)
}

/// Source: include/linux/proc_ns.h.
pub(super) const PROC_ROOT_INO: u64 = 1;

/// Whether `fd` is in a procfs.
pub(crate) fn is_proc(fd: impl AsFd) -> Result<bool> {
    let fs = fstatfs(fd).call(|| "fstatfs(mount)".into())?;
    Ok(fs.f_type as i64 == PROC_SUPER_MAGIC)
}

/// Inode, mount, and whether it is that mount's root. Source: statx(2), since 5.8.
pub(crate) fn identity(fd: impl AsFd) -> Result<Statx> {
    statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
        .call(|| "statx(mount)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_survive_a_remount() {
        let kept = [
            (libc::ST_RELATIME, libc::MS_RELATIME),
            (0, libc::MS_STRICTATIME),
            (libc::ST_NOATIME | libc::ST_NODIRATIME, libc::MS_NOATIME | libc::MS_NODIRATIME),
            (
                libc::ST_NOSUID | libc::ST_NODEV | libc::ST_RELATIME,
                libc::MS_NOSUID | libc::MS_NODEV | libc::MS_RELATIME,
            ),
        ];
        for (shown, ms) in kept {
            assert_eq!(ms_flags(shown_attributes(shown)).bits(), ms, "{shown:#x}");
        }
        let read_only = Attributes { set: READ_ONLY, clear: NOEXEC };
        let now =
            read_only.applied_to(shown_attributes(libc::ST_NOEXEC | libc::ST_NOSUID | libc::ST_RELATIME));
        assert_eq!(now, READ_ONLY | NOSUID);
        let strict = Attributes { set: STRICTATIME, clear: ATIME_MASK };
        assert_eq!(strict.applied_to(NOATIME | NODEV), STRICTATIME | NODEV);
    }
}
