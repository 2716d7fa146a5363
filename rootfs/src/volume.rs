//! Host volumes with an owner, and the short-lived volumes of a pod.
//!
//! ```text
//! <volumes>/<name>/claim.json   who owns it; written durably before the volume is handed out
//!                 /data/        what the container sees
//! <volumes>/.new.*  .old.*      what a crash left; swept
//! ```
//!
//! The one law: **data never changes owner by itself**. A volume marked with one claim's uid is refused to every
//! other, and an older epoch of the same claim is refused too, until `release` says that the data may go on.
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::files::{self, Durability};
use crate::snapshot::check_name;
use crate::sys::{MountAttributes, mount_setattr};
use crate::{Error, Kind, path};
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags, mount, open_tree, unmount};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const CLAIM_FILE: &str = "claim.json";
const DATA_DIR: &str = "data";

/// Who owns a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// The owner's identity: a PersistentVolumeClaim's uid.
    pub uid: String,
    /// Grows each time the volume is handed to a new incarnation; an older one is refused.
    pub epoch: u64,
}

/// What is on disk under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its owner; none after `release`.
    pub claim: Option<Claim>,
}

/// The volumes of one data directory.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
}

impl Volumes {
    /// Volumes kept in `root`, made on first use with mode 0700.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Volumes {
        Volumes { root: root.into() }
    }

    /// Makes the volume if it is missing and marks it as `claim`'s, durably. Returns the data directory.
    /// Idempotent; a higher epoch of the same claim is recorded.
    ///
    /// # Errors
    /// `Conflict` if it is another claim's or a newer epoch's; `Invalid` for a bad name.
    pub fn ensure(&self, name: &str, claim: &Claim) -> Result<PathBuf, Error> {
        check_name("volume name", name)?;
        let home = files::build(&self.root, name, Durability::Durable, |at| {
            files::create_dir(&at.join(DATA_DIR), 0o777)?;
            files::write_new(&at.join(CLAIM_FILE), &encode(Some(claim)), 0o600, Durability::Durable)
        })
        .context(|| format!("ensure volume {name}"))?;
        // Whoever made it may have crashed before this.
        files::sync(&self.root)?;
        match read_claim(&home)? {
            Some(owner) => {
                check_owner(name, &owner, claim)?;
                if owner.epoch < claim.epoch {
                    files::replace(&home.join(CLAIM_FILE), &encode(Some(claim)))?;
                }
            }
            None => files::replace(&home.join(CLAIM_FILE), &encode(Some(claim)))?,
        }
        Ok(home.join(DATA_DIR))
    }

    /// The data directory, for its owner only.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if it is another claim's, a newer epoch's or nobody's.
    pub fn open(&self, name: &str, claim: &Claim) -> Result<PathBuf, Error> {
        check_name("volume name", name)?;
        let home = self.root.join(name);
        match read_claim(&home)? {
            Some(owner) => check_owner(name, &owner, claim)?,
            None => return Err(Error::new(Kind::Conflict, format!("volume {name} belongs to no claim"))),
        }
        Ok(home.join(DATA_DIR))
    }

    /// Takes the owner's mark away and keeps the data: the next claim that ensures it gets the data.
    /// Absent or released already: nothing is done.
    ///
    /// # Errors
    /// `Conflict` if it is another claim's.
    pub fn release(&self, name: &str, uid: &str) -> Result<(), Error> {
        check_name("volume name", name)?;
        let home = self.root.join(name);
        match read_claim(&home) {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(None) => Ok(()),
            Ok(Some(owner)) => {
                check_uid(name, &owner, uid)?;
                files::replace(&home.join(CLAIM_FILE), &encode(None))
            }
        }
    }

    /// Deletes the volume and its data. Absent already: nothing is done.
    ///
    /// # Errors
    /// `Conflict` if it is another claim's.
    pub fn remove(&self, name: &str, uid: &str) -> Result<(), Error> {
        check_name("volume name", name)?;
        match read_claim(&self.root.join(name)) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) => return Err(error),
            Ok(None) => {}
            Ok(Some(owner)) => check_uid(name, &owner, uid)?,
        }
        files::discard(&self.root, name, Durability::Durable).context(|| format!("remove volume {name}"))
    }

    /// Every volume with its owner, sorted by name, for the collector and for people.
    ///
    /// # Errors
    /// The disk's answer; `Internal` for an unreadable mark.
    pub fn list(&self) -> Result<Vec<Volume>, Error> {
        let mut volumes = Vec::new();
        for name in files::names(&self.root)?.into_iter().filter(|name| !name.starts_with('.')) {
            let claim = read_claim(&self.root.join(&name))?;
            volumes.push(Volume { name, claim });
        }
        Ok(volumes)
    }

    /// Removes what crashed calls left. Call it before the first `ensure`.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn sweep(&self) -> Result<Vec<String>, Error> {
        files::sweep(&self.root)
    }

    /// Where the data of `name` is, whoever owns it: for showing to people.
    #[must_use]
    pub fn data_path(&self, name: &str) -> PathBuf {
        self.root.join(name).join(DATA_DIR)
    }
}

fn check_uid(name: &str, owner: &Claim, uid: &str) -> Result<(), Error> {
    if owner.uid != uid {
        let text = format!("volume {name} belongs to claim {}, not to {uid}", owner.uid);
        return Err(Error::new(Kind::Conflict, text));
    }
    Ok(())
}

fn check_owner(name: &str, owner: &Claim, claim: &Claim) -> Result<(), Error> {
    check_uid(name, owner, &claim.uid)?;
    if owner.epoch > claim.epoch {
        let text = format!("volume {name} is at epoch {}, epoch {} is fenced", owner.epoch, claim.epoch);
        return Err(Error::new(Kind::Conflict, text));
    }
    Ok(())
}

fn encode(claim: Option<&Claim>) -> Vec<u8> {
    claim.map_or_else(|| b"null\n".to_vec(), |claim| format!("{}\n", serde_json::json!(claim)).into_bytes())
}

fn read_claim(home: &Path) -> Result<Option<Claim>, Error> {
    let path = home.join(CLAIM_FILE);
    let bytes = fs::read(&path).context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes)
        .map_err(std::io::Error::from)
        .context(|| format!("parse {}", path.display()))
        .map_err(|error| error.with_kind(Kind::Internal))
}

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

/// What a container may do with a bind mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BindAccess {
    /// Read and write.
    ReadWrite,
    /// Read only, mounts beneath included.
    ReadOnly,
}

/// A private, detached copy of the mount tree at a path that we trust: the host's `path` is not affected by
/// what the container does to its mounts, nor the other way round.
///
/// # Errors
/// `NotFound`; `Denied` without `CAP_SYS_ADMIN`.
///
/// Source: open_tree(2), mount_setattr(2).
pub fn bind_fd(path: &Path, access: BindAccess) -> Result<OwnedFd, Error> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(rustix::fs::CWD, path, flags)
        .context(|| format!("open_tree({}, OPEN_TREE_CLONE|AT_RECURSIVE)", path.display()))?;
    seal(tree, access)
}

/// As [`bind_fd`] for `sub` beneath a volume at `root`, resolved so that no link leads out; made if missing.
///
/// # Errors
/// As [`bind_fd`]; `Invalid` or `Denied` for paths that try to leave.
pub fn bind_sub_fd(root: &Path, sub: &Path, access: BindAccess) -> Result<OwnedFd, Error> {
    let root = path::open_dir(root)?;
    let at = match path::resolve(root.as_fd(), sub) {
        Err(error) if error.kind() == Kind::NotFound => path::resolve_or_create(root.as_fd(), sub)?,
        other => other?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree =
        open_tree(at, "", flags).context(|| format!("open_tree({}, OPEN_TREE_CLONE)", sub.display()))?;
    seal(tree, access)
}

fn seal(tree: OwnedFd, access: BindAccess) -> Result<OwnedFd, Error> {
    let set = match access {
        BindAccess::ReadWrite => 0,
        BindAccess::ReadOnly => libc::MOUNT_ATTR_RDONLY,
    };
    mount_setattr(tree.as_fd(), MountAttributes { set, clear: 0, propagation: libc::MS_PRIVATE })?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::fault::crash_after;

    fn claim(uid: &str, epoch: u64) -> Claim {
        Claim { uid: uid.into(), epoch }
    }

    fn scratch(name: &str) -> (PathBuf, Volumes) {
        let dir = std::env::temp_dir().join(format!("podyard-volume-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        let volumes = Volumes::new(dir.join("volumes"));
        (dir, volumes)
    }

    #[test]
    fn a_volume_serves_one_claim_and_its_newest_epoch() {
        let (dir, volumes) = scratch("owner");
        let data = volumes.ensure("pvc-1", &claim("a", 1)).unwrap();
        fs::write(data.join("visits"), "7").unwrap();
        assert_eq!(volumes.ensure("pvc-1", &claim("a", 1)).unwrap(), data);
        assert_eq!(volumes.open("pvc-1", &claim("a", 2)).unwrap(), data);
        volumes.ensure("pvc-1", &claim("a", 3)).unwrap();
        for (claim, why) in [(claim("a", 2), "fenced"), (claim("b", 9), "another's")] {
            assert_eq!(volumes.ensure("pvc-1", &claim).unwrap_err().kind(), Kind::Conflict, "{why}");
            assert_eq!(volumes.open("pvc-1", &claim).unwrap_err().kind(), Kind::Conflict, "{why}");
        }
        assert_eq!(volumes.release("pvc-1", "b").unwrap_err().kind(), Kind::Conflict);
        assert_eq!(volumes.remove("pvc-1", "b").unwrap_err().kind(), Kind::Conflict);
        assert_eq!(volumes.list().unwrap(), [Volume { name: "pvc-1".into(), claim: Some(claim("a", 3)) }]);

        volumes.release("pvc-1", "a").unwrap();
        volumes.release("pvc-1", "a").unwrap();
        assert_eq!(volumes.open("pvc-1", &claim("a", 3)).unwrap_err().kind(), Kind::Conflict, "released");
        volumes.ensure("pvc-1", &claim("b", 1)).unwrap();
        assert_eq!(fs::read_to_string(data.join("visits")).unwrap(), "7");
        volumes.remove("pvc-1", "b").unwrap();
        volumes.remove("pvc-1", "b").unwrap();
        assert_eq!(volumes.open("pvc-1", &claim("b", 1)).unwrap_err().kind(), Kind::NotFound);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_crash_anywhere_leaves_a_volume_whole_or_absent() {
        for steps in 0.. {
            let (dir, volumes) = scratch("crash");
            let ((), crashed) = crash_after(steps, || drop(volumes.ensure("pvc-1", &claim("a", 1))));
            for volume in volumes.list().unwrap() {
                assert_eq!(volume.claim, Some(claim("a", 1)), "after {steps} steps");
            }
            volumes.sweep().unwrap();
            let data = volumes.ensure("pvc-1", &claim("a", 1)).unwrap();
            assert!(data.is_dir());
            assert_eq!(files::names(&dir.join("volumes")).unwrap(), ["pvc-1"], "after {steps} steps");
            fs::remove_dir_all(dir).unwrap();
            if !crashed {
                assert!(steps > 5, "the steps are counted");
                return;
            }
        }
    }

    #[test]
    fn a_crash_while_changing_the_owner_leaves_the_old_or_the_new() {
        for steps in 0.. {
            let (dir, volumes) = scratch("change");
            let data = volumes.ensure("pvc-1", &claim("a", 1)).unwrap();
            fs::write(data.join("visits"), "7").unwrap();
            let (result, crashed) = crash_after(steps, || volumes.ensure("pvc-1", &claim("a", 2)));
            let owner = volumes.list().unwrap().remove(0).claim.unwrap();
            assert!(
                owner == claim("a", 2) || (owner == claim("a", 1) && result.is_err()),
                "after {steps} steps"
            );
            let ((), _) = crash_after(steps, || drop(volumes.remove("pvc-1", "a")));
            for volume in volumes.list().unwrap() {
                assert!(volume.claim.is_some() && volumes.data_path(&volume.name).join("visits").exists());
            }
            volumes.sweep().unwrap();
            volumes.remove("pvc-1", "a").unwrap();
            assert!(files::names(&dir.join("volumes")).unwrap().is_empty(), "after {steps} steps");
            fs::remove_dir_all(dir).unwrap();
            if !crashed {
                return;
            }
        }
    }

    #[test]
    fn an_empty_dir_is_open_to_every_user_of_the_pod() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, _) = scratch("empty");
        let path = dir.join("pod/volumes/cache");
        ensure_empty_dir(&path, Medium::Disk).unwrap();
        ensure_empty_dir(&path, Medium::Disk).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        remove_empty_dir(&path).unwrap();
        remove_empty_dir(&path).unwrap();
        assert!(!path.exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
