//! Host volumes with an owner and a size, and the short-lived volumes of a pod.
//!
//! ```text
//! <volumes>/<name>/claim.json   who owns it, how large it is, in what; durable before the volume is handed out
//!                 /data/        what the container sees, marked with the owner's uid: a directory, perhaps in a
//!                               quota project
//!                 /data.img     or an ext4 image, marked by its UUID
//! <volumes>/.trash/             what was deleted and may be taken back
//! <volumes>/.new.*  .old.*      what a crash left; swept
//! ```
//!
//! The one law: **data never changes owner by itself**. A volume marked with one claim's uid is refused to every
//! other, and an older epoch of the same claim is refused too, until `release` says that the data may go on.
#![forbid(unsafe_code)]

mod empty;
mod mark;
mod mount;
#[cfg(test)]
mod power_cut;
mod record;
mod trash;

use crate::error::Context;
use crate::ext4::{self, BLOCK_BYTES, Geometry};
use crate::files::{self, Durability, Fingerprint};
use crate::snapshot::check_name;
use crate::{Error, Kind, loopfs, quota};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use empty::{Medium, ensure_empty_dir, remove_empty_dir};
pub use mount::{BindAccess, bind_fd, bind_sub_fd, claimed_fd};
pub use record::{Backing, Claim};
use record::{CLAIM_FILE, Record};
pub use trash::{Deleted, Deletion, Progress, Trash};

const DATA_DIR: &str = "data";
const IMAGE_FILE: &str = "data.img";
/// How many times its size a claim may grow while it is mounted, where mounted filesystems cannot be enlarged.
const HEADROOM: u64 = 16;
/// Beyond this many blocks (256 GiB) an image has room for twice its claim: each group costs kernel memory.
const HEADROOM_BLOCKS_MAX: u64 = 1 << 26;

/// What is to enforce a volume's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Enforcement {
    /// A project quota, else an image, else nothing.
    #[default]
    Auto,
    /// A project quota of the filesystem that holds the volumes.
    #[serde(rename = "quota")]
    ProjectQuota,
    /// An ext4 image of that size.
    Loop,
    /// Nothing: a plain directory.
    None,
}

/// What a claim asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Bytes that it may hold; 0 for any number.
    pub size_bytes: u64,
    /// What is to see to that.
    pub enforcement: Enforcement,
}

/// A volume as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its owner; none after `release`.
    pub claim: Option<Claim>,
    /// Bytes that it may hold; 0 in records of a version that knew no sizes.
    pub size_bytes: u64,
    /// Where the data is.
    pub backing: Backing,
    /// The directory, or the image: for [`claimed_fd`].
    pub source: PathBuf,
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

    /// Makes the volume if it is missing and marks it as `claim`'s, durably. Idempotent; a higher epoch of the same
    /// claim is recorded. What is there keeps its backing and size, whatever is wished.
    ///
    /// # Errors
    /// `Conflict` if it is another claim's or a newer epoch's; `Invalid` for a bad name; `Unsupported` if what is to
    /// enforce the size is not to be had.
    pub fn ensure(&self, name: &str, claim: &Claim, wish: Wish) -> Result<Volume, Error> {
        check_name("volume name", name)?;
        let home = self.root.join(name);
        if !home.is_dir() {
            files::create_dirs(&self.root, 0o700)?;
            // Against `sweep`; and two of us must not choose the same quota project.
            let _lock = match quota::is_enforced(&self.root) {
                true => Lock::take(&self.root)?,
                false => Lock::share(&self.root)?,
            };
            files::build(&self.root, name, Durability::Durable, |at| self.make(name, at, claim, wish))
                .context(|| format!("ensure volume {name}"))?;
        }
        // Whoever made it may have crashed before this.
        files::sync(&self.root)?;
        let _lock = Lock::take(&home)?;
        let mut record = Record::read(&home)?;
        match &record.claim {
            Some(owner) => {
                check_owner(name, owner, claim)?;
                if owner.epoch < claim.epoch {
                    record.claim = Some(claim.clone());
                    record.write(&home)?;
                }
            }
            None => {
                // Marked first: until the record names an owner, nobody looks at the mark.
                let marked = match &record.backing {
                    Backing::Loop { .. } => {
                        ext4::set_identity(&open_image(&home)?, mark::uuid(&claim.uid)).map(|()| true)?
                    }
                    _ => {
                        let marked = mark::set(&home.join(DATA_DIR), &claim.uid)?;
                        files::sync(&home.join(DATA_DIR))?;
                        marked
                    }
                };
                match &mut record.backing {
                    Backing::Directory { marked: mark, .. } | Backing::ProjectQuota { marked: mark, .. } => {
                        *mark = marked;
                    }
                    Backing::Loop { .. } => {}
                }
                record.claim = Some(claim.clone());
                record.write(&home)?;
            }
        }
        Ok(self.volume(name, record))
    }

    /// The volume, for its owner only.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if it is another claim's, a newer epoch's or nobody's.
    pub fn open(&self, name: &str, claim: &Claim) -> Result<Volume, Error> {
        check_name("volume name", name)?;
        let record = Record::read(&self.root.join(name))?;
        match &record.claim {
            Some(owner) => check_owner(name, owner, claim)?,
            None => return Err(Error::new(Kind::Conflict, format!("volume {name} belongs to no claim"))),
        }
        Ok(self.volume(name, record))
    }

    /// The volume, whoever owns it.
    ///
    /// # Errors
    /// `NotFound`; the disk's answer.
    pub fn get(&self, name: &str) -> Result<Volume, Error> {
        check_name("volume name", name)?;
        Ok(self.volume(name, Record::read(&self.root.join(name))?))
    }

    /// Makes a volume larger, also while it is mounted; the change is on disk and in force when this returns. As large
    /// already: nothing is done. Never makes one smaller.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if it is another claim's; `Denied` if this kernel lets us grow it only up to a limit,
    /// which the text names.
    pub fn grow(&self, name: &str, uid: &str, size_bytes: u64) -> Result<Volume, Error> {
        check_name("volume name", name)?;
        let home = self.root.join(name);
        let _lock = Lock::take(&home)?;
        let mut record = Record::read(&home)?;
        if let Some(owner) = &record.claim {
            check_uid(name, owner, uid)?;
        }
        record.size_bytes = record.size_bytes.max(size_bytes);
        match record.backing {
            Backing::Directory { .. } => record.write(&home)?,
            Backing::ProjectQuota { project, .. } => {
                record.write(&home)?;
                quota::limit(&home.join(DATA_DIR), project, record.size_bytes)?;
            }
            Backing::Loop { usable_blocks } => self.grow_image(&home, &mut record, usable_blocks)?,
        }
        Ok(self.volume(name, record))
    }

    fn grow_image(&self, home: &Path, record: &mut Record, mut usable_blocks: u64) -> Result<(), Error> {
        let image = open_image(home)?;
        let wanted = blocks(record.size_bytes);
        if wanted > usable_blocks {
            let geometry = Geometry::with_usable(wanted, ext4::journal_blocks(&image)?);
            image.set_len(geometry.bytes()).context(|| format!("ftruncate({})", geometry.bytes()))?;
            image.sync_all().context(|| "fsync the image".into())?;
            loopfs::attach(&image)?.grow(geometry.blocks).map_err(|error| match error.kind() {
                Kind::Denied => {
                    let most = usable_blocks * BLOCK_BYTES;
                    let text = format!("beyond {most} bytes a mounted ext4 grows only with CAP_SYS_RESOURCE");
                    Error::caused(text, error)
                }
                _ => error,
            })?;
            usable_blocks = geometry.usable();
            record.backing = Backing::Loop { usable_blocks };
        }
        record.write(home)?;
        if let Some(device) = loopfs::find(&image)? {
            match device.reserve(reserve(usable_blocks, record.size_bytes)) {
                // Its last mount has just gone: the next one reads the record.
                Err(error) if error.kind() == Kind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Takes the owner's mark away and keeps the data: the next claim that ensures it gets the data.
    /// Absent or released already: nothing is done.
    ///
    /// # Errors
    /// `Conflict` if it is another claim's.
    pub fn release(&self, name: &str, uid: &str) -> Result<(), Error> {
        check_name("volume name", name)?;
        let home = self.root.join(name);
        let mut record = match Record::read(&home) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            other => other?,
        };
        let Some(owner) = record.claim.take() else { return Ok(()) };
        check_uid(name, &owner, uid)?;
        record.write(&home)
    }

    /// Every volume with its owner, sorted by name, for the collector and for people.
    ///
    /// # Errors
    /// The disk's answer; `Internal` for an unreadable mark.
    pub fn list(&self) -> Result<Vec<Volume>, Error> {
        let mut volumes = Vec::new();
        for name in files::names(&self.root)?.into_iter().filter(|name| !name.starts_with('.')) {
            let record = match Record::read(&self.root.join(&name)) {
                // Deleted meanwhile.
                Err(error) if error.kind() == Kind::NotFound => continue,
                other => other?,
            };
            volumes.push(self.volume(&name, record));
        }
        Ok(volumes)
    }

    /// Removes what crashed calls left, but not the trash. Waits for volumes that are being made, by any process.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn sweep(&self) -> Result<Vec<String>, Error> {
        if !self.root.is_dir() {
            return Ok(Vec::new());
        }
        let _lock = Lock::take(&self.root)?;
        files::sweep_but(&self.root, &[trash::DIR])
    }

    /// What was deleted from here.
    #[must_use]
    pub fn trash(&self) -> Trash {
        Trash::of(&self.root)
    }

    /// Bytes on disk that a volume takes, by a walk of its tree.
    ///
    /// # Errors
    /// `NotFound`; the disk's answer.
    pub fn used_bytes(&self, name: &str) -> Result<u64, Error> {
        check_name("volume name", name)?;
        trash::used_bytes(&self.root.join(name))
    }

    /// Where the data of `name` is, whoever owns it: for showing to people. An image has no such directory.
    #[must_use]
    pub fn data_path(&self, name: &str) -> PathBuf {
        self.root.join(name).join(DATA_DIR)
    }

    fn volume(&self, name: &str, record: Record) -> Volume {
        let source = match record.backing {
            Backing::Loop { .. } => IMAGE_FILE,
            _ => DATA_DIR,
        };
        Volume {
            name: name.to_owned(),
            source: self.root.join(name).join(source),
            claim: record.claim,
            size_bytes: record.size_bytes,
            backing: record.backing,
        }
    }

    /// Makes the content of a new volume's directory.
    fn make(&self, name: &str, at: &Path, claim: &Claim, wish: Wish) -> Result<(), Error> {
        let data = at.join(DATA_DIR);
        let backing = match self.choose(wish)? {
            Choice::Image => Backing::Loop { usable_blocks: make_image(at, claim, wish.size_bytes)? },
            Choice::Quota => {
                files::create_dir(&data, 0o777)?;
                let mut seed = Fingerprint::new();
                seed.field(name.as_bytes());
                let project = quota::free_project(&self.root, seed.value() as u32)?;
                quota::bind(&data, project, wish.size_bytes)?;
                Backing::ProjectQuota { marked: mark::set(&data, &claim.uid)?, project }
            }
            Choice::Directory { because } => {
                files::create_dir(&data, 0o777)?;
                Backing::Directory { marked: mark::set(&data, &claim.uid)?, because }
            }
        };
        if data.is_dir() {
            files::sync(&data)?;
        }
        let record = Record { claim: Some(claim.clone()), size_bytes: wish.size_bytes, backing };
        files::write_new(&at.join(CLAIM_FILE), &record.encode(), 0o600, Durability::Durable)
    }

    fn choose(&self, wish: Wish) -> Result<Choice, Error> {
        let has_quota = || quota::is_enforced(&self.root);
        match wish.enforcement {
            Enforcement::None => Ok(Choice::Directory { because: String::new() }),
            _ if wish.size_bytes == 0 => Ok(Choice::Directory { because: "no size is asked for".into() }),
            Enforcement::ProjectQuota if has_quota() => Ok(Choice::Quota),
            Enforcement::ProjectQuota => {
                let text = format!(
                    "{} enforces no project quotas; mount its filesystem with prjquota (ext4 with the features \
                     project and quota) or pquota (xfs)",
                    self.root.display()
                );
                Err(Error::new(Kind::Unsupported, text))
            }
            Enforcement::Loop => loopfs::is_available().map(|()| Choice::Image),
            Enforcement::Auto if has_quota() => Ok(Choice::Quota),
            Enforcement::Auto => Ok(match loopfs::is_available() {
                Ok(()) => Choice::Image,
                Err(error) => Choice::Directory {
                    because: format!(
                        "no project quotas on {}, no images: {}",
                        self.root.display(),
                        error.chain()
                    ),
                },
            }),
        }
    }
}

enum Choice {
    Directory { because: String },
    Quota,
    Image,
}

/// Makes the image; the blocks that are free in it. It is sparse: its size is a limit, no reservation.
fn make_image(at: &Path, claim: &Claim, size_bytes: u64) -> Result<u64, Error> {
    let wanted = blocks(size_bytes);
    let is_fixed = loopfs::may_resize() || !loopfs::may_reserve();
    let room = if is_fixed { wanted } else { (wanted * HEADROOM).min(HEADROOM_BLOCKS_MAX).max(wanted * 2) };
    let geometry = Geometry::with_usable(room, Geometry::journal_for(wanted));
    let path = at.join(IMAGE_FILE);
    files::write_new(&path, &[], 0o600, Durability::Volatile)?;
    let image = open_image(at)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    ext4::format(&image, geometry, mark::uuid(&claim.uid), now.as_secs() as u32)
        .context(|| format!("format {}", path.display()))?;
    files::sync(&path)?;
    // With the room to grow in, its end is exact only where nothing is set aside.
    Ok(if is_fixed { wanted } else { geometry.usable() })
}

/// Blocks to keep from everybody, so that `size_bytes` are left.
fn reserve(usable_blocks: u64, size_bytes: u64) -> u64 {
    usable_blocks.saturating_sub(blocks(size_bytes))
}

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES)
}

fn open_image(home: &Path) -> Result<File, Error> {
    let path = home.join(IMAGE_FILE);
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(&path, flags, Mode::empty())
        .map(File::from)
        .context(|| format!("open {}", path.display()))
}

/// Exclusive use of a volume's directory, by flock(2): its record, its image's loop device. Or of all volumes.
struct Lock(#[expect(dead_code, reason = "held")] OwnedFd);

impl Lock {
    fn take(dir: &Path) -> Result<Lock, Error> {
        Lock::by(dir, FlockOperation::LockExclusive)
    }

    /// With others that share it.
    fn share(dir: &Path) -> Result<Lock, Error> {
        Lock::by(dir, FlockOperation::LockShared)
    }

    fn by(dir: &Path, operation: FlockOperation) -> Result<Lock, Error> {
        let what = || format!("flock {}", dir.display());
        let fd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(what)?;
        loop {
            match flock(&fd, operation) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.context(what).map(|()| Lock(fd)),
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::fault::crash_after;
    use std::fs;

    /// A volume without limits, as one that is not root can make it.
    const PLAIN: Wish = Wish { size_bytes: 0, enforcement: Enforcement::None };

    fn claim(uid: &str, epoch: u64) -> Claim {
        Claim { uid: uid.into(), epoch }
    }

    fn scratch(name: &str) -> (PathBuf, Volumes) {
        let dir = std::env::temp_dir().join(format!("podyard-volume-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        let volumes = Volumes::new(dir.join("volumes"));
        (dir, volumes)
    }

    fn deletion(name: &str) -> Deletion {
        let about = serde_json::json!({"claim": "default/data"});
        Deletion { name: name.into(), deleted_at_secs: 100, expires_at_secs: 200, about }
    }

    #[test]
    fn a_volume_serves_one_claim_and_its_newest_epoch() {
        let (dir, volumes) = scratch("owner");
        let data = volumes.ensure("pvc-1", &claim("a", 1), PLAIN).unwrap().source;
        fs::write(data.join("visits"), "7").unwrap();
        assert_eq!(volumes.ensure("pvc-1", &claim("a", 1), PLAIN).unwrap().source, data);
        assert_eq!(volumes.open("pvc-1", &claim("a", 2)).unwrap().source, data);
        volumes.ensure("pvc-1", &claim("a", 3), PLAIN).unwrap();
        for (uid, epoch) in [("b", 9), ("a", 2)] {
            let error = volumes.ensure("pvc-1", &claim(uid, epoch), PLAIN).unwrap_err();
            assert_eq!(error.kind(), Kind::Conflict, "{error}");
            assert_eq!(volumes.open("pvc-1", &claim(uid, epoch)).unwrap_err().kind(), Kind::Conflict);
        }
        assert_eq!(volumes.release("pvc-1", "b").unwrap_err().kind(), Kind::Conflict);
        assert_eq!(volumes.trash().put("b", &deletion("pvc-1")).unwrap_err().kind(), Kind::Conflict);
        assert_eq!(volumes.list().unwrap()[0].claim, Some(claim("a", 3)));

        volumes.release("pvc-1", "a").unwrap();
        volumes.release("pvc-1", "a").unwrap();
        assert_eq!(volumes.open("pvc-1", &claim("a", 3)).unwrap_err().kind(), Kind::Conflict, "released");
        volumes.ensure("pvc-1", &claim("b", 1), PLAIN).unwrap();
        assert_eq!(fs::read_to_string(data.join("visits")).unwrap(), "7");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_crash_anywhere_leaves_a_volume_whole_or_absent() {
        for steps in 0.. {
            let (dir, volumes) = scratch("crash");
            let ((), crashed) = crash_after(steps, || drop(volumes.ensure("pvc-1", &claim("a", 1), PLAIN)));
            for volume in volumes.list().unwrap() {
                assert_eq!(volume.claim, Some(claim("a", 1)), "after {steps} steps");
            }
            volumes.sweep().unwrap();
            let data = volumes.ensure("pvc-1", &claim("a", 1), PLAIN).unwrap().source;
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
            volumes.ensure("pvc-1", &claim("a", 1), PLAIN).unwrap();
            let (result, mut crashed) = crash_after(steps, || volumes.ensure("pvc-1", &claim("a", 2), PLAIN));
            let owner = volumes.list().unwrap().remove(0).claim.unwrap();
            assert!(
                owner == claim("a", 2) || (owner == claim("a", 1) && result.is_err()),
                "after {steps} steps"
            );
            // Released and taken by another, with a crash in either: the first, nobody or the second has it.
            let ((), stopped) = crash_after(steps, || {
                drop(volumes.release("pvc-1", "a"));
                drop(volumes.ensure("pvc-1", &claim("b", 1), PLAIN));
            });
            crashed |= stopped;
            match volumes.list().unwrap().remove(0).claim {
                Some(owner) if owner.uid == "a" => {}
                _ => drop(volumes.ensure("pvc-1", &claim("b", 1), PLAIN).unwrap()),
            }
            fs::remove_dir_all(dir).unwrap();
            if !crashed {
                return;
            }
        }
    }

    #[test]
    fn what_is_deleted_can_be_taken_back_by_another_claim() {
        let (dir, volumes) = scratch("trash");
        let data = volumes.ensure("pvc-1", &claim("a", 1), PLAIN).unwrap().source;
        fs::write(data.join("visits"), "7").unwrap();
        let trash = volumes.trash();
        assert_eq!(trash.put("a", &deletion("pvc-1")).unwrap().unwrap(), "pvc-1");
        assert_eq!(trash.put("a", &deletion("pvc-1")).unwrap().unwrap(), "pvc-1", "again");
        assert_eq!(trash.put("a", &deletion("pvc-2")).unwrap(), None);
        assert!(volumes.list().unwrap().is_empty());
        assert!(volumes.sweep().unwrap().is_empty(), "the trash is not swept");
        let [deleted] = &trash.list().unwrap()[..] else { panic!() };
        assert_eq!((deleted.id.as_str(), &deleted.deletion), ("pvc-1", &deletion("pvc-1")));
        let (outcome, next) = trash.expire(199);
        outcome.unwrap();
        assert_eq!(next, Some(200), "kept until its time is up");

        trash.take_back("pvc-1").unwrap();
        assert!(trash.list().unwrap().is_empty());
        assert_eq!(trash.returning("pvc-1").unwrap(), Some(deletion("pvc-1")));
        assert_eq!(volumes.open("pvc-1", &claim("a", 1)).unwrap_err().kind(), Kind::Conflict, "nobody's");
        trash.forget("pvc-1").unwrap();
        trash.forget("pvc-1").unwrap();
        assert_eq!(trash.returning("pvc-1").unwrap(), None);
        let data = volumes.ensure("pvc-1", &claim("b", 1), PLAIN).unwrap().source;
        assert_eq!(fs::read_to_string(data.join("visits")).unwrap(), "7");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_deletion_goes_on_after_a_crash_and_leaves_nothing() {
        let (dir, volumes) = scratch("reap");
        let data = volumes.ensure("pvc-1", &claim("a", 1), PLAIN).unwrap().source;
        let outside = dir.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&outside, data.join("link")).unwrap();
        let mut deep = data.clone();
        for level in 0..300 {
            deep.push(format!("d{level}"));
            fs::create_dir(&deep).unwrap();
            fs::write(deep.join("file"), vec![1; 10_000]).unwrap();
        }
        let trash = volumes.trash();
        trash.put("a", &deletion("pvc-1")).unwrap();
        let (outcome, next) = trash.expire(200);
        outcome.unwrap();
        assert_eq!(next, None);
        assert!(trash.list().unwrap().is_empty());
        // A crash somewhere in the middle.
        let stopped = std::panic::catch_unwind(|| {
            trash.reap(&mut |progress| assert!(progress.entries < 150, "crash")).unwrap();
        });
        assert!(stopped.is_err());
        let mut last = Progress::default();
        let done = trash.reap(&mut |progress| last = progress).unwrap();
        assert_eq!(done, last);
        // 300 directories, their files, data, link, two records.
        assert!((450..470).contains(&done.entries), "{done:?}");
        assert!(files::names(&dir.join("volumes/.trash")).unwrap().is_empty());
        assert!(outside.join("kept").exists());
        assert_eq!(trash.reap(&mut |_| ()).unwrap(), Progress::default());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_crash_on_the_way_to_the_trash_or_back_loses_nothing() {
        for steps in 0.. {
            let (dir, volumes) = scratch("way");
            let data = volumes.ensure("pvc-1", &claim("a", 1), PLAIN).unwrap().source;
            fs::write(data.join("visits"), "7").unwrap();
            let trash = volumes.trash();
            let (_, mut crashed) = crash_after(steps, || trash.put("a", &deletion("pvc-1")));
            trash.put("a", &deletion("pvc-1")).unwrap();
            assert_eq!(trash.list().unwrap().len(), 1, "after {steps} steps");
            let (_, stopped) = crash_after(steps, || trash.take_back("pvc-1"));
            crashed |= stopped;
            if trash.returning("pvc-1").unwrap().is_none() {
                trash.take_back("pvc-1").unwrap();
            }
            trash.forget("pvc-1").unwrap();
            let data = volumes.ensure("pvc-1", &claim("b", 1), PLAIN).unwrap().source;
            assert_eq!(fs::read_to_string(data.join("visits")).unwrap(), "7");
            fs::remove_dir_all(dir).unwrap();
            if !crashed {
                return;
            }
        }
    }

    #[test]
    fn an_unmet_wish_is_refused_with_the_fix() {
        let (dir, volumes) = scratch("wish");
        let wish = Wish { size_bytes: 1 << 30, enforcement: Enforcement::ProjectQuota };
        match volumes.ensure("pvc-1", &claim("a", 1), wish) {
            Ok(volume) => assert_eq!(volume.backing.enforcement(), "projectQuota"),
            Err(error) => {
                assert!(error.chain().contains("mount its filesystem with prjquota"), "{}", error.chain())
            }
        }
        fs::remove_dir_all(dir).unwrap();
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
