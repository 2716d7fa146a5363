//! The container's view of files: its root, what is mounted in it, what is hidden.
//!
//! Everything happens in the child's new mount namespace, by descriptor: a mount is made
//! detached, then moved to a place that was resolved below the root. The host's mount table never
//! shows any of it.

pub(crate) mod beneath;
mod devices;
pub(crate) mod options;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, fstatfs, open};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree, unmount,
};

use crate::error::{Call, Error, Kind, Result, Step};
use crate::plan::Plan;
use crate::sys;
use beneath::Links;
use options::{Attributes, MountKind, MountPlan, NODEV, NOEXEC, NOSUID, READ_ONLY};

/// Where a container's root comes from.
#[derive(Debug)]
pub enum Root {
    /// A directory of the host's, bound with the mounts below it.
    Path(PathBuf),
    /// A detached mount, for example of an overlay made by the caller.
    Mount(OwnedFd),
}

/// A mount made by the caller, to be moved into place.
#[derive(Debug)]
pub struct DetachedMount {
    /// From fsmount(2) or open_tree(2).
    pub fd: OwnedFd,
    /// Absolute path inside; made if missing.
    pub destination: PathBuf,
    /// Whether it and the mounts below it are read-only inside.
    pub read_only: bool,
}

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

/// Source: include/uapi/linux/magic.h.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Attaches the root to this mount namespace: a directory on itself, where hooks look for it, and anything else on
/// top of the host's root. So that without a pivot, which nothing but the top can do without. Nothing the host mounts
/// later reaches it, and nothing mounted here reaches the host.
pub(crate) fn attach_root(root: Root, pivot: bool) -> Result<OwnedFd> {
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .call(|| "mount(\"/\", MS_SLAVE|MS_REC)".into())?;
    let (root, place) = match root {
        Root::Path(path) => {
            let place = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .call(|| format!("open({path:?})"))
                .step("attach the root")?;
            (clone_tree(&place, Path::new(""), true)?, Some(place))
        }
        Root::Mount(fd) => (fd, None),
    };
    sys::mount_setattr(root.as_fd(), true, 0, 0, libc::MS_PRIVATE)?;
    match place.filter(|_| pivot) {
        Some(place) => attach(&root, &place, Path::new("")),
        None => attach(&root, CWD, Path::new("/")),
    }
    .step("attach the root")?;
    Ok(root)
}

/// Makes the plan's mounts and the caller's, in order, then devices and links.
pub(crate) fn populate(
    root: &OwnedFd,
    plan: &Plan,
    detached: Vec<DetachedMount>,
    cgroup: &CgroupView,
    proc: &OwnedFd,
) -> Result<()> {
    enum Item<'a> {
        Plan(&'a MountPlan),
        Detached(DetachedMount),
    }
    let depth = |path: &Path| path.components().count();
    let mut items: Vec<(usize, Item)> = Vec::new();
    for mount in &plan.mounts {
        items.push((depth(&mount.destination), Item::Plan(mount)));
    }
    // The spec's order is the law, until others' mounts have to find their place among its own.
    if !detached.is_empty() {
        for mount in detached {
            items.push((depth(&mount.destination), Item::Detached(mount)));
        }
        items.sort_by_key(|(depth, _)| *depth);
    }
    let mut dev_is_ours = false;
    for (_, item) in items {
        match item {
            Item::Plan(mount) => {
                let shown = mount.destination.display();
                let label = plan.mount_label.as_deref();
                mount_one(root, mount, label, cgroup)
                    .step(format!("mount {} on {shown}", mount.kind.name()))?;
                dev_is_ours |=
                    mount.destination == Path::new("/dev") && matches!(mount.kind, MountKind::New { .. });
            }
            Item::Detached(mount) => {
                let shown = mount.destination.display().to_string();
                place_detached(root, mount).step(format!("mount volume on {shown}"))?;
            }
        }
    }
    devices::make(root, &plan.devices, plan.separate(crate::namespaces::Kind::User))?;
    if dev_is_ours {
        devices::links(root)?;
    }
    set_sysctls(proc, plan)
}

/// Hides and protects paths, then makes the root what the plan says.
pub(crate) fn protect(root: &OwnedFd, plan: &Plan) -> Result<()> {
    for path in &plan.read_only_paths {
        make_read_only(root, path).step(format!("make {} read-only", path.display()))?;
    }
    if !plan.masked_paths.is_empty() {
        let null = devices::verified_null(root).step("mask paths")?;
        for path in &plan.masked_paths {
            hide(root, path, &null).step(format!("mask {}", path.display()))?;
        }
    }
    if plan.root_read_only {
        sys::mount_setattr(root.as_fd(), false, READ_ONLY, 0, 0).step("make the root read-only")?;
    }
    Ok(())
}

/// Makes `root` this process's root and lets go of the host's.
///
/// Source: pivot_root(2), "pivot_root(".", ".")".
pub(crate) fn pivot(root: &OwnedFd) -> Result<()> {
    let host = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| "open(\"/\")".into())?;
    rustix::process::fchdir(root).call(|| "fchdir(root)".into())?;
    rustix::process::pivot_root(".", ".").call(|| "pivot_root(\".\", \".\")".into())?;
    // The host's root now lies on top of ours. Its unmounting must not reach the host.
    rustix::process::fchdir(&host).call(|| "fchdir(host root)".into())?;
    mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .call(|| "mount(\".\", MS_SLAVE|MS_REC)".into())?;
    unmount(".", UnmountFlags::DETACH).call(|| "umount2(\".\", MNT_DETACH)".into())?;
    rustix::process::chdir("/").call(|| "chdir(\"/\")".into())
}

/// Makes `root`, which [`attach_root`] put on top of the host's, this process's root. The host's stays mounted beneath, as in
/// an initial ramdisk it must; chroot(2) keeps paths from it.
pub(crate) fn cover(root: &OwnedFd) -> Result<()> {
    rustix::process::fchdir(root).call(|| "fchdir(root)".into())?;
    rustix::process::chroot(".").call(|| "chroot(\".\")".into())?;
    rustix::process::chdir("/").call(|| "chdir(\"/\")".into())
}

/// A procfs that nobody else has mounted: what is written through it goes where its name says
/// (CVE-2025-52881).
pub(crate) fn private_proc() -> Result<OwnedFd> {
    let proc = new_filesystem("proc", None, &[], NOSUID | NODEV | NOEXEC)?;
    // A mount's descriptor is O_PATH; reading links and opening below it works with that.
    let fs = fstatfs(&proc).call(|| "fstatfs(proc)".into())?;
    assert_eq!(fs.f_type as i64, PROC_SUPER_MAGIC, "fsopen(proc) makes a procfs");
    Ok(proc)
}

impl MountKind {
    fn name(&self) -> String {
        match self {
            MountKind::Bind { source, .. } => source.display().to_string(),
            MountKind::New { fs, .. } => fs.clone(),
            MountKind::Cgroup => "cgroup".into(),
        }
    }
}

fn mount_one(root: &OwnedFd, plan: &MountPlan, label: Option<&str>, cgroup: &CgroupView) -> Result<()> {
    let (mount, links) = match &plan.kind {
        MountKind::Bind { source, recursive } => (clone_tree(CWD, source, *recursive)?, Links::Follow),
        MountKind::New { fs, source, data } => {
            let mut data = data.clone();
            // Kernel interfaces are labelled by the policy. Source: mount(8), "context=".
            if let (Some(label), false) = (label, ["proc", "sysfs", "mqueue"].contains(&fs.as_str())) {
                data.push(("context".into(), Some(label.into())));
            }
            let mount = new_filesystem(fs, source.as_deref(), &data, 0)?;
            // A kernel interface must be where its name says, not where the image leads it.
            let links = match fs.as_str() {
                "tmpfs" if !plan.destination.starts_with("/dev") => Links::Follow,
                _ => Links::Refuse,
            };
            (mount, links)
        }
        MountKind::Cgroup => return mount_cgroup(root, plan, cgroup),
    };
    let place = place_for(root, &mount, &plan.destination, links)?;
    if !matches!(&plan.kind, MountKind::New { fs, .. } if fs == "proc") {
        refuse_procfs(&place, plan)?;
    }
    finish(&mount, plan)?;
    attach(&mount, &place, Path::new(""))
}

/// Sets attributes and propagation of a mount still detached.
fn finish(mount: &OwnedFd, plan: &MountPlan) -> Result<()> {
    let set = |recursive: bool, a: Attributes| {
        if a.is_empty() {
            return Ok(());
        }
        sys::mount_setattr(mount.as_fd(), recursive, a.set, a.clear, 0)
    };
    set(false, plan.attributes)?;
    set(true, plan.attributes_recursive)?;
    let (propagation, recursive) = plan.propagation.unwrap_or((libc::MS_PRIVATE, true));
    sys::mount_setattr(mount.as_fd(), recursive, 0, 0, propagation)
}

/// A bind over a file of procfs would mask or fake what the runtime and the container rely on.
/// Those that tools like lxcfs provide are let through.
fn refuse_procfs(place: &OwnedFd, plan: &MountPlan) -> Result<()> {
    const ALLOWED: [&str; 8] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
    ];
    let fs = fstatfs(place).call(|| "fstatfs(destination)".into())?;
    let allowed = ALLOWED.iter().any(|a| plan.destination == Path::new(a));
    if fs.f_type as i64 == PROC_SUPER_MAGIC && !allowed {
        return Err(Error::new(Kind::Invalid, "the destination is in a procfs"));
    }
    Ok(())
}

fn place_detached(root: &OwnedFd, mount: DetachedMount) -> Result<()> {
    let place = place_for(root, &mount.fd, &mount.destination, Links::Follow)?;
    let fs = fstatfs(&place).call(|| "fstatfs(destination)".into())?;
    if fs.f_type as i64 == PROC_SUPER_MAGIC {
        return Err(Error::new(Kind::Invalid, "the destination is in a procfs"));
    }
    let set = if mount.read_only { READ_ONLY } else { 0 };
    sys::mount_setattr(mount.fd.as_fd(), true, set, 0, libc::MS_PRIVATE)?;
    attach(&mount.fd, &place, Path::new(""))
}

/// The place for a mount: a directory for a directory, a file for a file, made if missing.
fn place_for(root: &OwnedFd, mount: &OwnedFd, destination: &Path, links: Links) -> Result<OwnedFd> {
    let stat = fstat(mount).call(|| "fstat(mount)".into())?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => beneath::ensure_directory(root, destination, links),
        _ => beneath::ensure_file(root, destination, links),
    }
}

fn mount_cgroup(root: &OwnedFd, plan: &MountPlan, view: &CgroupView) -> Result<()> {
    let place = beneath::ensure_directory(root, &plan.destination, Links::Refuse)?;
    if let CgroupView::Unified(path) = view {
        let mount = clone_tree(CWD, path, false)?;
        finish(&mount, plan)?;
        return attach(&mount, &place, Path::new(""));
    }
    // v1: a directory with one entry for each hierarchy that the container is in.
    let data = [("mode".to_string(), Some("755".to_string()))];
    let top = new_filesystem("tmpfs", Some("cgroup"), &data, NOSUID | NODEV | NOEXEC)?;
    attach(&top, &place, Path::new(""))?;
    if let CgroupView::Hierarchies(hierarchies) = view {
        for (name, path) in hierarchies {
            let mount = clone_tree(CWD, path, false)?;
            finish(&mount, plan)?;
            rustix::fs::mkdirat(&top, name, Mode::from_raw_mode(0o755))
                .call(|| format!("mkdirat({name:?})"))?;
            attach(&mount, &top, Path::new(name))?;
        }
    }
    finish(&top, plan)
}

fn make_read_only(root: &OwnedFd, path: &Path) -> Result<()> {
    let place = match beneath::locate(root, path, protection_links(path)) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    let mount = clone_tree(&place, Path::new(""), true)?;
    sys::mount_setattr(mount.as_fd(), true, READ_ONLY, 0, 0)?;
    attach(&mount, &place, Path::new(""))
}

/// In kernel interfaces no link is to be expected, and one would be an attack.
fn protection_links(path: &Path) -> Links {
    let kernel = ["/proc", "/sys", "/dev"].iter().any(|top| path.starts_with(top));
    if kernel { Links::Refuse } else { Links::Follow }
}

/// Covers `path`: a directory with an empty one, a file with `null`, the container's `/dev/null`.
fn hide(root: &OwnedFd, path: &Path, null: &OwnedFd) -> Result<()> {
    let place = match beneath::locate(root, path, protection_links(path)) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    let stat = fstat(&place).call(|| "fstat(place)".into())?;
    let mount = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let data = [("nr_inodes".to_string(), Some("1".to_string()))];
            new_filesystem("tmpfs", Some("mask"), &data, READ_ONLY | NOSUID | NODEV | NOEXEC)?
        }
        _ => {
            let mount = clone_tree(null, Path::new(""), false)?;
            sys::mount_setattr(mount.as_fd(), false, NOSUID | NOEXEC, 0, 0)?;
            mount
        }
    };
    attach(&mount, &place, Path::new(""))
}

fn set_sysctls(proc: &OwnedFd, plan: &Plan) -> Result<()> {
    use rustix::fs::{ResolveFlags, openat2};
    for (name, value) in &plan.sysctls {
        let path = Path::new("sys").join(name);
        let set = || -> Result<()> {
            let file = openat2(
                proc,
                &path,
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
            )
            .call(|| format!("openat2(proc, {path:?}, BENEATH|NO_SYMLINKS|NO_XDEV)"))?;
            rustix::io::write(&file, value.as_bytes())
                .call(|| format!("write({path:?}, {value:?})"))
                .map(drop)
        };
        set().step(format!("set sysctl {}", name.display()))?;
    }
    Ok(())
}

/// A new detached mount of a new filesystem.
fn new_filesystem(
    fs: &str,
    source: Option<&str>,
    data: &[(String, Option<String>)],
    attributes: u64,
) -> Result<OwnedFd> {
    let context = fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC).call(|| format!("fsopen({fs:?})"))?;
    if let Some(source) = source {
        fsconfig_set_string(&context, "source", source)
            .call(|| format!("fsconfig({fs}, \"source\", {source:?})"))?;
    }
    for (key, value) in data {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str())
                .call(|| format!("fsconfig({fs}, {key:?}, {value:?})"))?,
            None => fsconfig_set_flag(&context, key.as_str()).call(|| format!("fsconfig({fs}, {key:?})"))?,
        }
    }
    fsconfig_create(&context).call(|| format!("fsconfig({fs}, CMD_CREATE)"))?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).call(|| format!("fsmount({fs})"))
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

/// Moves a detached mount to a place.
pub(crate) fn attach(mount: &OwnedFd, dir: impl AsFd, path: &Path) -> Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.as_os_str().is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    move_mount(mount, "", dir, path, flags).call(|| format!("move_mount(mount, {path:?})"))
}

/// Whether `fd` is the character device (major, minor).
pub(crate) fn is_character_device(fd: impl AsFd, device: (u32, u32)) -> Result<bool> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH).call(|| "fstat(device)".into())?;
    let found = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && found == device)
}
