//! The container's view of files: its root, what is mounted in it, what is hidden.
//!
//! Everything happens in the child's new mount namespace, by descriptor: a mount is made
//! detached, then moved to a place that was resolved below the root ([`api`] says how without the mount API). The
//! host's mount table never shows any of it.
//!
//! ```text
//!   root::attach_root     the root, on top of what it is made from
//!   populate              the spec's mounts in order, devices, links, sysctls
//!     idmap::ask            the parent: ID-mapped mounts, sources that a user namespace cannot reach
//!   late::apply           what is read-only but had to be filled first
//!   hide::protect         masks, read-only paths, the root
//!   root::pivot           the host's root is let go of
//! ```

pub(crate) mod api;
pub(crate) mod beneath;
mod cgroup;
mod copyup;
mod devices;
mod hide;
pub(crate) mod host;
pub(crate) mod idmap;
pub(crate) mod late;
mod mountinfo;
pub(crate) mod options;
mod root;
mod walk;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::mount::MsFlags;
use rustix::fs::{AtFlags, CWD, FileType, OFlags, StatxAttributes, fstat};

pub(crate) use cgroup::CgroupView;
pub(crate) use hide::protect;
pub(crate) use root::{attach_root, cover, pivot, private_proc, proc_before_joining, propagate};

use crate::error::{Call, Error, Kind, Result, Step};
use crate::namespaces;
use crate::plan::Plan;
use crate::protocol::Channel;
use api::{Filesystem, Pending};
use beneath::Links;
use options::{Attributes, Data, MountKind, MountPlan, READ_ONLY};

/// Where a container's root comes from.
#[derive(Debug)]
pub enum Root {
    /// A directory of the host's, bound with the mounts below it.
    Path(PathBuf),
    /// A detached mount, for example of an overlay made by the caller. Needs the mount API.
    Mount(OwnedFd),
}

/// A mount made by the caller, to be moved into place. Needs the mount API.
#[derive(Debug)]
pub struct DetachedMount {
    /// From fsmount(2) or open_tree(2).
    pub fd: OwnedFd,
    /// Absolute path inside; made if missing.
    pub destination: PathBuf,
    /// Whether it and the mounts below it are read-only inside.
    pub read_only: bool,
}

/// Source: include/uapi/linux/magic.h.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Makes the plan's mounts and the caller's, in order, then devices and links. `channel` leads to
/// the parent. Returned is what is to be done once nothing more is made in the mounts.
pub(crate) fn populate(
    root: &OwnedFd,
    plan: &Plan,
    detached: Vec<DetachedMount>,
    cgroup: &CgroupView,
    proc: &OwnedFd,
    channel: &Channel,
) -> Result<Vec<late::Change>> {
    enum Item<'a> {
        Plan(usize, &'a MountPlan),
        Detached(DetachedMount),
    }
    let depth = |path: &Path| path.components().count();
    let mut items: Vec<(usize, Item)> = Vec::new();
    for (index, mount) in plan.mounts.iter().enumerate() {
        items.push((depth(&mount.destination), Item::Plan(index, mount)));
    }
    // The spec's order is the law, until others' mounts have to find their place among its own.
    if !detached.is_empty() {
        for mount in detached {
            items.push((depth(&mount.destination), Item::Detached(mount)));
        }
        items.sort_by_key(|(depth, _)| *depth);
    }
    let user_namespace = plan.separate(namespaces::Kind::User);
    let mut later = Vec::new();
    for (_, item) in items {
        match item {
            Item::Plan(index, mount) => {
                let shown = mount.destination.display();
                let what = mount.kind.name();
                let change = match &mount.kind {
                    MountKind::Bind { source: path, recursive } => {
                        let made = match mount.idmap {
                            Some(_) => idmap::ask(channel, index).map(Pending::Detached),
                            None => match api::bind(CWD, path, *recursive) {
                                Err(e) if user_namespace && api::modern() && e.kind() == Kind::Denied => {
                                    idmap::ask(channel, index).map(Pending::Detached)
                                }
                                other => other,
                            },
                        };
                        made.and_then(|made| bind(root, mount, made)).map(|()| None)
                    }
                    MountKind::New { .. } => new(root, mount, plan.mount_label.as_deref(), user_namespace),
                    MountKind::Remount { filesystem } => {
                        remount(root, mount, filesystem.as_ref()).map(|()| None)
                    }
                    MountKind::Cgroup => cgroup::mount(root, mount, cgroup),
                };
                later.extend(change.step(format!("mount {what} on {shown}"))?);
            }
            Item::Detached(mount) => {
                let shown = mount.destination.display().to_string();
                place_detached(root, mount).step(format!("mount volume on {shown}"))?;
            }
        }
    }
    // A `/dev` that is bound has what it has: it may be the host's own.
    let on_dev = plan.mounts.iter().rfind(|mount| mount.destination == Path::new("/dev"));
    if !on_dev.is_some_and(|mount| matches!(mount.kind, MountKind::Bind { .. })) {
        devices::make(root, &plan.devices, user_namespace)?;
        devices::links(root)?;
    }
    set_sysctls(proc, plan)?;
    Ok(later)
}

impl MountKind {
    fn name(&self) -> String {
        match self {
            MountKind::Bind { source, .. } => source.display().to_string(),
            MountKind::New { fs, .. } => fs.clone(),
            MountKind::Remount { .. } => "anew".to_string(),
            MountKind::Cgroup => "cgroup".to_string(),
        }
    }
}

fn bind(root: &OwnedFd, plan: &MountPlan, mut mount: Pending) -> Result<()> {
    let place = place_for(root, &mount, &plan.destination)?;
    refuse_place(root, &place, plan, mount.is_proc()?)?;
    refuse_fake_proc(mount.is_proc()?, &plan.destination)?;
    finish(&mut mount, plan, plan.attributes)?;
    mount.attach(root, &place).map(drop)
}

fn new(
    root: &OwnedFd,
    plan: &MountPlan,
    label: Option<&str>,
    user_namespace: bool,
) -> Result<Option<late::Change>> {
    let MountKind::New { fs, source, data, superblock, copy_up } = &plan.kind else {
        unreachable!("called for new filesystems");
    };
    let on_dev = plan.destination.starts_with("/dev");
    // A kernel interface must be where its name says, not where the image leads it.
    let links = if fs == "tmpfs" && !on_dev { Links::Follow } else { Links::Refuse };
    let mut data = data.clone();
    let place = match beneath::locate(root, &plan.destination, links) {
        Ok(place) => {
            // It keeps the mode of what it covers, unless it is told another.
            if fs == "tmpfs" && !data.iter().any(|(key, _)| key == "mode") {
                let mode = fstat(&place).call(|| "fstat(destination)".into())?.st_mode & 0o7777;
                data.push(("mode".to_string(), Some(format!("{mode:04o}"))));
            }
            beneath::directory(place, &plan.destination)?
        }
        Err(e) if e.kind() == Kind::NotFound => beneath::ensure_directory(root, &plan.destination, links)?,
        Err(e) => return Err(e),
    };
    // Kernel interfaces are labelled by the policy. Source: mount(8), "context=".
    if let (Some(label), false) = (label, ["proc", "sysfs", "mqueue"].contains(&fs.as_str())) {
        data.push(("context".into(), Some(label.into())));
    }
    refuse_place(root, &place, plan, fs == "proc")?;
    refuse_fake_proc(fs == "proc", &plan.destination)?;
    let late = fs == "tmpfs" || plan.destination == Path::new("/dev");
    let (now, later) = if late { late::split(plan.attributes) } else { (plan.attributes, None) };
    let new =
        Filesystem { fs, source: source.as_deref(), data: &data, superblock: *superblock, attributes: 0 };
    let made = api::new_filesystem(&new).and_then(|mut mount| {
        finish(&mut mount, plan, now)?;
        mount.attach(root, &place)
    });
    let mount = match (made, host_instance(fs)) {
        // Of another's network or IPC namespace, which this user namespace has no rights over.
        (Err(e), Some(path)) if user_namespace && e.kind() == Kind::Denied => {
            let mut mount = api::bind(CWD, path, true).map_err(|_| e)?;
            mount.set(true, plan.attributes)?;
            finish(&mut mount, plan, Attributes::default())?;
            mount.attach(root, &place)?
        }
        (made, _) => made?,
    };
    if *copy_up {
        copyup::copy(&place, &mount).step("tmpcopyup")?;
    }
    let destination = || plan.destination.clone();
    Ok(later.map(|attributes| late::Change { mount, destination: destination(), attributes }))
}

/// Where the host has the filesystem of which each namespace has one.
fn host_instance(fs: &str) -> Option<&'static Path> {
    match fs {
        "sysfs" => Some(Path::new("/sys")),
        "mqueue" => Some(Path::new("/dev/mqueue")),
        _ => None,
    }
}

/// Changes what is mounted already.
fn remount(root: &OwnedFd, plan: &MountPlan, filesystem: Option<&(u64, Data)>) -> Result<()> {
    let mount = beneath::locate(root, &plan.destination, Links::Follow)?;
    refuse_place(root, &mount, plan, api::is_proc(&mount)?)?;
    if !api::identity(&mount)?.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::new(Kind::Invalid, "remount: nothing is mounted there"));
    }
    if let Some((flags, data)) = filesystem {
        let words = data.iter().map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        });
        let data = words.collect::<Vec<_>>().join(",");
        let flags = api::remount_flags(&mount, plan.attributes)? | MsFlags::from_bits_retain(*flags);
        let flags = flags | MsFlags::MS_REMOUNT;
        nix::mount::mount(None::<&str>, &api::name_of(&mount)?, None::<&str>, flags, Some(data.as_str()))
            .call(|| format!("mount(NULL, place, {flags:?}, {data:?})"))?;
    } else {
        api::set(root, &mount, false, plan.attributes)?;
    }
    api::set(root, &mount, true, plan.attributes_recursive)?;
    for (how, recursive) in &plan.propagation {
        api::propagate(&mount, *recursive, *how)?;
    }
    Ok(())
}

/// Sets attributes and propagation of a mount not yet in place.
fn finish(mount: &mut Pending, plan: &MountPlan, attributes: Attributes) -> Result<()> {
    let single = !matches!(plan.kind, MountKind::Bind { recursive: true, .. });
    if plan.propagation.is_empty() && single {
        mount.set_and_make_private(attributes)?;
        return mount.set(true, plan.attributes_recursive);
    }
    mount.set(false, attributes)?;
    mount.set(true, plan.attributes_recursive)?;
    if plan.propagation.is_empty() {
        return mount.propagate(true, libc::MS_PRIVATE);
    }
    plan.propagation.iter().try_for_each(|(how, recursive)| mount.propagate(*recursive, *how))
}

/// The root stays what it is, and a bind over a file of procfs would mask or fake what the runtime and the container
/// rely on. Those that tools like lxcfs provide are let through.
fn refuse_place(root: &OwnedFd, place: &OwnedFd, plan: &MountPlan, shows_proc: bool) -> Result<()> {
    const ALLOWED: [&str; 10] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/crypto/fips_enabled",
    ];
    let (top, there) = (api::identity(root)?, api::identity(place)?);
    if (top.stx_mnt_id, top.stx_ino) == (there.stx_mnt_id, there.stx_ino) {
        return Err(Error::new(Kind::Invalid, "the destination is the root itself"));
    }
    let on_proc = plan.destination == Path::new("/proc");
    if on_proc && !shows_proc {
        return Err(Error::new(Kind::Invalid, "only a procfs may be on /proc"));
    }
    let allowed = ALLOWED.iter().any(|a| plan.destination == Path::new(a));
    if api::is_proc(place)? && !allowed && !on_proc {
        return Err(Error::new(Kind::Invalid, "the destination is in a procfs"));
    }
    Ok(())
}

/// What is at `/proc` is one, or the paths hidden and protected there are not those that matter (CVE-2019-19921).
fn refuse_fake_proc(shows_proc: bool, destination: &Path) -> Result<()> {
    if !shows_proc && destination.components().eq(Path::new("/proc").components()) {
        return Err(Error::new(Kind::Invalid, "only a procfs goes there"));
    }
    Ok(())
}

fn place_detached(root: &OwnedFd, mount: DetachedMount) -> Result<()> {
    let mut pending = api::given(mount.fd)?;
    refuse_fake_proc(pending.is_proc()?, &mount.destination)?;
    let place = place_for(root, &pending, &mount.destination)?;
    if api::is_proc(&place)? {
        return Err(Error::new(Kind::Invalid, "the destination is in a procfs"));
    }
    if mount.read_only {
        pending.set(true, Attributes::set(READ_ONLY))?;
    }
    pending.propagate(true, libc::MS_PRIVATE)?;
    pending.attach(root, &place).map(drop)
}

/// The place for a mount: a directory for a directory, a file for a file, made if missing.
fn place_for(root: &OwnedFd, mount: &Pending, destination: &Path) -> Result<OwnedFd> {
    match mount.file_type()? {
        FileType::Directory => beneath::ensure_directory(root, destination, Links::Follow),
        _ => beneath::ensure_file(root, destination, Links::Follow),
    }
}

fn set_sysctls(proc: &OwnedFd, plan: &Plan) -> Result<()> {
    for (name, value) in &plan.sysctls {
        let path = Path::new("sys").join(name);
        let set = || -> Result<()> {
            let file = beneath::open_proc(proc, &path, OFlags::WRONLY)?;
            rustix::io::write(&file, value.as_bytes())
                .call(|| format!("write({path:?}, {value:?})"))
                .map(drop)
        };
        set().step(format!("set sysctl {}", name.display()))?;
    }
    Ok(())
}

/// Whether `fd` is the character device (major, minor).
pub(crate) fn is_character_device(fd: impl AsFd, device: (u32, u32)) -> Result<bool> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH).call(|| "fstat(device)".into())?;
    let found = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && found == device)
}
