//! Opening a yard: its directories, the daemon's lock, and the boot its run directory belongs to.
//!
//! Everything in the run directory is about processes, mounts and links of one boot of the machine. After
//! a reboot they are gone, so the files that speak of them are swept before anything reads them.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Kind, Result};
use crate::yard::{MARK, Yard};

/// A yard that this process, and no other, may drive. Dropping it (or dying) gives it up.
#[derive(Debug)]
pub struct YardLock {
    _lock: OwnedFd,
    /// The run directory was another boot's, or new: nothing of ours runs.
    pub fresh_boot: bool,
}

/// The kernel's name for this boot. Source: proc_sys_kernel(5), `random/boot_id`.
///
/// # Errors
/// If /proc is not mounted.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).map_err(|error| Error::io(format!("read {path}"), error))?.trim().to_owned())
}

impl Yard {
    /// Makes the yard's directories, takes the daemon's lock and sweeps what another boot left.
    ///
    /// # Errors
    /// `Busy` if another daemon drives this yard; `Conflict` if a directory holds something that is not ours.
    pub fn open(&self) -> Result<YardLock> {
        self.make_places()?;
        let lock = lock(&self.lock_file())?;
        let fresh_boot = self.stamp(&boot_id()?)?;
        for dir in [
            self.images_dir(),
            self.snapshots_dir(),
            self.volumes_dir(),
            self.netns_dir(),
            self.pods_dir(),
            self.ephemeral_dir(),
        ] {
            create_dir(&dir, 0o700)?;
        }
        Ok(YardLock { _lock: lock, fresh_boot })
    }

    /// Makes the yard's data, run and log directories, and marks them as ours. Idempotent.
    ///
    /// # Errors
    /// `Conflict` if one of them holds something that is not ours.
    pub fn make_places(&self) -> Result<()> {
        self.ensure_dir(&self.data_dir)?;
        self.ensure_dir(&self.run_dir)?;
        crate::purge::make_log_dir(self)
    }

    /// Whether `dir` carries this yard's mark.
    pub fn owns(&self, dir: &Path) -> bool {
        fs::read_to_string(dir.join(MARK)).is_ok_and(|mark| mark == self.mark())
    }

    /// Makes `dir` ours: new, empty, or marked already.
    fn ensure_dir(&self, dir: &Path) -> Result<()> {
        create_dir(dir, 0o700)?;
        if self.owns(dir) {
            return Ok(());
        }
        let mut entries =
            fs::read_dir(dir).map_err(|error| Error::io(format!("list {}", dir.display()), error))?;
        if entries.next().is_some() {
            let text = format!("{} is not empty and not marked as this yard's", dir.display());
            return Err(Error::new(Kind::Conflict, text));
        }
        self.write_mark(dir)
    }

    /// Marks `dir` as ours.
    pub(crate) fn write_mark(&self, dir: &Path) -> Result<()> {
        let path = dir.join(MARK);
        fs::write(&path, self.mark()).map_err(|error| Error::io(format!("write {}", path.display()), error))
    }

    /// Compares the run directory's boot with `boot`; true if it was another's (and is swept now).
    fn stamp(&self, boot: &str) -> Result<bool> {
        let path = self.boot_id_file();
        match fs::read_to_string(&path) {
            Ok(stamp) if stamp.trim() == boot => return Ok(false),
            Ok(_) => {
                for dir in [self.pods_dir(), self.netns_dir(), self.ephemeral_dir()] {
                    remove_tree(&dir)?;
                }
                remove_file(&self.socket)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        }
        // After the sweep: a crash in it must not leave a stamp that vouches for old contents.
        write_atomically(&path, boot.as_bytes())?;
        Ok(true)
    }
}

/// Takes an exclusive lock for as long as the descriptor lives. Source: flock(2).
pub(crate) fn lock(path: &Path) -> Result<OwnedFd> {
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::io(format!("open {}", path.display()), error))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        rustix::io::Errno::WOULDBLOCK => {
            Error::new(Kind::Busy, format!("another daemon runs this yard (it holds {})", path.display()))
        }
        errno => Error::io(format!("lock {}", path.display()), errno),
    })?;
    Ok(file.into())
}

/// Makes a directory and its parents; one that exists is left as it is.
pub(crate) fn create_dir(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| Error::io(format!("make directory {}", path.display()), error))
}

/// Removes a tree; one that is gone already is fine. Never follows links out of it.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Removes a file; one that is gone already is fine.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Writes a whole file by rename, so that a reader sees the old or the new one, never half. Not synced:
/// the run directory does not outlive the boot.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        fs::rename(&new, path)
    };
    write().map_err(|error| Error::io(format!("write {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, Yard) {
        let dir = tempfile::tempdir().unwrap();
        let yard = Yard::beneath(dir.path(), "t").unwrap();
        (dir, yard)
    }

    #[test]
    fn one_daemon_per_yard() {
        let (_dir, yard) = scratch();
        let first = yard.open().unwrap();
        assert_eq!(yard.open().unwrap_err().kind(), Kind::Busy);
        drop(first);
        assert!(!yard.open().unwrap().fresh_boot);
    }

    #[test]
    fn another_boots_contents_are_swept_and_nothing_else() {
        let (_dir, yard) = scratch();
        drop(yard.open().unwrap());
        fs::create_dir(yard.pod("u1").dir).unwrap();
        fs::write(yard.volumes_dir().join("kept"), "x").unwrap();
        drop(yard.open().unwrap());
        assert!(yard.pod("u1").dir.exists(), "same boot: adopted, not swept");
        fs::write(yard.boot_id_file(), "another boot").unwrap();
        assert!(yard.open().unwrap().fresh_boot);
        assert!(!yard.pod("u1").dir.exists());
        assert!(yard.volumes_dir().join("kept").exists());
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        let (_dir, yard) = scratch();
        fs::create_dir_all(&yard.data_dir).unwrap();
        fs::write(yard.data_dir.join("theirs"), "x").unwrap();
        assert_eq!(yard.open().unwrap_err().kind(), Kind::Conflict);
        assert!(yard.data_dir.join("theirs").exists());
    }
}
