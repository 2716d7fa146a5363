//! The container's root: put in place, entered, and the host's let go of.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::libc;
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use super::Root;
use super::api::{self, Pending};
use super::host;
use super::mountinfo;
use crate::error::{Call, Error, Result, Step};
use crate::namespaces;
use crate::plan::Plan;

/// Source: include/uapi/linux/magic.h.
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// Attaches the root to this mount namespace: a directory on itself, so that what is mounted in it is found by the
/// host's paths too, and else on top of the host's root. Unless the plan says otherwise nothing the host mounts later
/// reaches it; what is mounted here never reaches the host.
///
/// Source: runtime-spec, config-linux.md, "Rootfs Mount Propagation"; mount_namespaces(7).
pub(crate) fn attach_root(root: Root, plan: &Plan) -> Result<OwnedFd> {
    if !plan.separate(namespaces::Kind::Mount) {
        return host::attach(root, plan);
    }
    let (how, recursive) = plan.root_propagation.unwrap_or((libc::MS_SLAVE, true));
    if how == libc::MS_PRIVATE && !plan.pivot {
        // What the host unmounts would stay here, below the container's root.
        return Err(Error::invalid("linux.rootfsPropagation", "private is not safe without pivot_root"));
    }
    // Of an unbindable mount there is no container's root to be made; its own is made unbindable at the end.
    let host = if how == libc::MS_UNBINDABLE { (libc::MS_SLAVE, true) } else { (how, recursive) };
    change(Path::new("/"), host)?;
    let place = match &root {
        Root::Path(path) if plan.pivot => path.clone(),
        _ => "/".into(),
    };
    // The mount that the root is put on must not be shared, or the host would see it, and pivot_root(2) refuses. A
    // copy of a slave is one too.
    let parent = if how == libc::MS_SLAVE { libc::MS_SLAVE } else { libc::MS_PRIVATE };
    if host != (libc::MS_SLAVE, true) && host != (libc::MS_PRIVATE, true) {
        change_mount_of(&place, parent)?;
    }
    let mut mount = match root {
        Root::Path(path) => api::bind(CWD, &path, true)?,
        Root::Mount(fd) => api::given(fd)?,
    };
    if plan.root_propagation.is_none() || how != libc::MS_SLAVE {
        mount.propagate(true, libc::MS_PRIVATE)?;
    }
    mount.attach_at(&place).step("attach the root")
}

/// Propagation of the mount at a path, with that of the mounts below it.
fn change(path: &Path, (how, recursive): (u64, bool)) -> Result<()> {
    let mut flags = MountPropagationFlags::from_bits_retain(how as u32);
    flags.set(MountPropagationFlags::REC, recursive);
    mount_change(path, flags).call(|| format!("mount({path:?}, {how:#x}, recursive={recursive})"))
}

/// Propagation of the mount that a path is in.
fn change_mount_of(path: &Path, how: u64) -> Result<()> {
    let path = std::fs::canonicalize(path).call(|| format!("realpath({path:?})"))?;
    let flags = MountPropagationFlags::from_bits_retain(how as u32);
    for place in path.ancestors() {
        match mount_change(place, flags) {
            // Not where a mount begins: the one above.
            Err(rustix::io::Errno::INVAL) if place != Path::new("/") => {}
            other => return other.call(|| format!("mount({place:?}, {how:#x})")),
        }
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
    change(Path::new("."), (libc::MS_SLAVE, true))?;
    unmount(".", UnmountFlags::DETACH).call(|| "umount2(\".\", MNT_DETACH)".into())?;
    rustix::process::chdir("/").call(|| "chdir(\"/\")".into())
}

/// Makes `root`, which [`attach_root`] put on top of the host's, this process's root. The host's stays mounted beneath, as in
/// an initial ramdisk it must; chroot(2) keeps paths from it.
pub(crate) fn cover(root: &OwnedFd) -> Result<()> {
    hide_kernel_interfaces().step("hide the host's procfs and sysfs")?;
    host::enter(root)
}

/// Whoever finds one bare procfs or sysfs in its mount namespace, be it out of reach, may mount another with a user namespace of
/// its own: nothing masked, nothing read-only. So the host's go, and where they must stay they are covered.
///
/// Source: fs/namespace.c, `mount_too_revealing`.
fn hide_kernel_interfaces() -> Result<()> {
    let table =
        std::fs::read_to_string("/proc/self/mountinfo").call(|| "read(\"/proc/self/mountinfo\")".into())?;
    let mut places = Vec::new();
    for fs in ["sysfs", "proc"] {
        places.extend(mountinfo::places_of(&table, fs)?);
    }
    for place in places {
        // The container's own have the same names, below the root that lies on the host's: found here is the host's.
        if !is_kernel_interface(&place)? {
            continue;
        }
        // The host's must stay.
        change_mount_of(place.parent().unwrap_or(Path::new("/")), libc::MS_SLAVE)?;
        match unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // In a user namespace what its maker mounted is locked.
            Err(rustix::io::Errno::INVAL) => {
                let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
                mount("tmpfs", &place, "tmpfs", flags, Some(c"nr_inodes=1"))
                    .call(|| format!("mount(tmpfs on {place:?})"))?;
            }
            Err(e) => return Err(e).call(|| format!("umount2({place:?}, MNT_DETACH)")),
        }
    }
    Ok(())
}

fn is_kernel_interface(place: &Path) -> Result<bool> {
    match rustix::fs::statfs(place) {
        Ok(found) => Ok([super::PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&found.f_type)),
        // Below one that has just been let go of.
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e).call(|| format!("statfs({place:?})")),
    }
}

/// What of the root's propagation could not be so from the start, when `/` is the container's.
pub(crate) fn propagate(plan: &Plan) -> Result<()> {
    match plan.root_propagation {
        Some(wanted @ (libc::MS_SHARED | libc::MS_UNBINDABLE, _)) => {
            change(Path::new("/"), wanted).step("linux.rootfsPropagation")
        }
        _ => Ok(()),
    }
}

/// A procfs that nobody else has mounted: what is written through it goes where its name says
/// (CVE-2025-52881). Without the mount API the host's, which no container can have changed.
pub(crate) fn private_proc() -> Result<OwnedFd> {
    use super::options::{NODEV, NOEXEC, NOSUID};
    if !api::modern() {
        return api::host_proc();
    }
    let new =
        api::Filesystem { fs: "proc", attributes: NOSUID | NODEV | NOEXEC, ..api::Filesystem::default() };
    let Pending::Detached(proc) = api::new_filesystem(&new)? else {
        unreachable!("the mount API makes detached mounts");
    };
    // A mount's descriptor is O_PATH; reading links and opening below it works with that.
    assert!(api::is_proc(proc.as_fd())?, "fsopen(proc) makes a procfs");
    Ok(proc)
}

/// For a process about to join a container's mount namespace, where [`private_proc`] could not trust what is mounted:
/// the host's procfs, if that is what it will have to do with.
pub(crate) fn proc_before_joining() -> Result<Option<OwnedFd>> {
    if api::modern() { Ok(None) } else { api::host_proc().map(Some) }
}
