//! What was deleted and may be taken back.
//!
//! ```text
//!  <volumes>/<name>/ ── trash.json, rename ──► .trash/<id>/ ── time is up, or `empty` ──► .trash/.old.<id>/ ──► gone
//!                    ◄── nobody's, rename ──────────┘                (each step on disk before the next)
//! ```
//! A crash between two steps is carried on by the next call: `trash.json` in a volume that is in its place means that
//! it is on its way, in either direction; a dot-name is being deleted. Deleting moves directories to the top before it
//! enters them: it needs the same memory however deep they are, and may stop and go on anywhere.
#![forbid(unsafe_code)]

use super::record::{Backing, Record};
use super::{Lock, check_uid, open_image};
use crate::error::Context;
use crate::files::{self};
use crate::snapshot::check_name;
use crate::{Error, Kind, loopfs, quota};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The trash's directory among the volumes.
pub(super) const DIR: &str = ".trash";
const DELETION_FILE: &str = "trash.json";
const DOOMED: &str = ".old.";

/// Why and until when a volume lies in the trash: the content of `trash.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deletion {
    /// The volume's name, to which it goes back.
    pub name: String,
    /// Seconds since the epoch.
    pub deleted_at_secs: u64,
    /// Seconds since the epoch.
    pub expires_at_secs: u64,
    /// What the caller needs to take it back, and to show it to people.
    pub about: serde_json::Value,
}

/// A volume in the trash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Its name there.
    pub id: String,
    /// Why; none if a crash came before that was written down.
    pub deletion: Deletion,
    /// Bytes that it was allowed to hold.
    pub size_bytes: u64,
    /// Whose it was.
    pub uid: Option<String>,
}

/// How far a deletion has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files and directories gone.
    pub entries: u64,
    /// Bytes on disk given back.
    pub bytes: u64,
}

/// The trash of one directory of volumes.
#[derive(Clone, Debug)]
pub struct Trash {
    volumes: PathBuf,
    root: PathBuf,
}

impl Trash {
    pub(super) fn of(volumes: &Path) -> Trash {
        Trash { volumes: volumes.to_owned(), root: volumes.join(DIR) }
    }

    /// Moves a volume here, durably. Answers its name here; none if there is no such volume. Idempotent: what is here
    /// by that name and not yet taken back is answered.
    ///
    /// # Errors
    /// `Conflict` if it is another claim's.
    pub fn put(&self, uid: &str, deletion: &Deletion) -> Result<Option<String>, Error> {
        let name = &deletion.name;
        check_name("volume name", name)?;
        let home = self.volumes.join(name);
        if !home.is_dir() {
            return Ok(self.root.join(name).is_dir().then(|| name.clone()));
        }
        let _lock = Lock::take(&home)?;
        if let Some(owner) = &Record::read(&home)?.claim {
            check_uid(name, owner, uid)?;
        }
        let text = format!("{}\n", serde_json::json!(deletion));
        files::replace(&home.join(DELETION_FILE), text.as_bytes())?;
        if !self.root.is_dir() {
            files::create_dirs(&self.root, 0o700)?;
            files::sync(&self.volumes)?;
        }
        let mut id = name.clone();
        let mut count = 0;
        loop {
            match files::rename_new(&home, &self.root.join(&id)) {
                // A volume of that name was deleted before, and made again by hand.
                Err(error) if error.kind() == Kind::AlreadyExists => {
                    count += 1;
                    id = format!("{name}.{count}");
                }
                other => break other?,
            }
        }
        files::sync(&self.root)?;
        files::sync(&self.volumes)?;
        Ok(Some(id))
    }

    /// Everything here, sorted by name. What is being deleted is not listed any more.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn list(&self) -> Result<Vec<Deleted>, Error> {
        let names = files::names(&self.root)?.into_iter().filter(|name| !name.starts_with('.'));
        names.map(|id| self.get(&id)).collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, id: &str) -> Result<Deleted, Error> {
        check_name("name in the trash", id)?;
        let home = self.root.join(id);
        let record = Record::read(&home).context(|| format!("{id} in the trash"))?;
        let deletion = read_deletion(&home)?;
        Ok(Deleted {
            id: id.to_owned(),
            deletion,
            size_bytes: record.size_bytes,
            uid: record.claim.map(|claim| claim.uid),
        })
    }

    /// Moves a volume back to its place, durably, as nobody's: the next claim that ensures it gets the data. Until
    /// [`Trash::forget`] it is told by [`Trash::returning`].
    ///
    /// # Errors
    /// `NotFound`; `AlreadyExists` if there is another volume of that name.
    pub fn take_back(&self, id: &str) -> Result<Deletion, Error> {
        let deletion = self.get(id)?.deletion;
        let home = self.root.join(id);
        let mut record = Record::read(&home)?;
        if record.claim.take().is_some() {
            record.write(&home)?;
        }
        files::rename_new(&home, &self.volumes.join(&deletion.name))?;
        files::sync(&self.volumes)?;
        files::sync(&self.root)?;
        Ok(deletion)
    }

    /// A volume that is in its place and still has its deletion written in it: on its way here or back.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn returning(&self, name: &str) -> Result<Option<Deletion>, Error> {
        check_name("volume name", name)?;
        match read_deletion(&self.volumes.join(name)) {
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Ends the way back: the volume is an ordinary one again. Idempotent.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn forget(&self, name: &str) -> Result<(), Error> {
        check_name("volume name", name)?;
        let home = self.volumes.join(name);
        match fs::remove_file(home.join(DELETION_FILE)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.context(|| format!("unlink {}", home.join(DELETION_FILE).display())),
        }?;
        files::sync(&home)
    }

    /// Gives a volume up, durably: from now on it is being deleted, by whoever calls [`Trash::reap`]. Absent already:
    /// nothing is done.
    ///
    /// # Errors
    /// `Busy` if it is still mounted somewhere.
    pub fn give_up(&self, id: &str) -> Result<(), Error> {
        check_name("name in the trash", id)?;
        let home = self.root.join(id);
        let record = match Record::read(&home) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            other => other?,
        };
        if let Backing::Loop { .. } = record.backing
            && let Some(device) = loopfs::find(&open_image(&home)?)?
        {
            let text = format!("{id} is still mounted from {}", device.path().display());
            return Err(Error::new(Kind::Busy, text));
        }
        files::rename_new(&home, &self.root.join(format!("{DOOMED}{id}")))?;
        files::sync(&self.root)
    }

    /// Gives up all whose time is up. Answers when the next one's is.
    ///
    /// # Errors
    /// The first failure; the others were tried.
    pub fn expire(&self, now_secs: u64) -> (Result<(), Error>, Option<u64>) {
        let all = match self.list() {
            Err(error) => return (Err(error), None),
            Ok(all) => all,
        };
        let (due, kept): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|deleted| deleted.deletion.expires_at_secs <= now_secs);
        let outcome = due.iter().map(|deleted| self.give_up(&deleted.id)).fold(Ok(()), Result::and);
        (outcome, kept.iter().map(|deleted| deleted.deletion.expires_at_secs).min())
    }

    /// Deletes what was given up, in this call or before a crash. `report` is told after each entry. Blocks for as long
    /// as it takes.
    ///
    /// # Errors
    /// The first that failed; the others were tried.
    pub fn reap(&self, report: &mut dyn FnMut(Progress)) -> Result<Progress, Error> {
        let mut progress = Progress::default();
        let mut outcome = Ok(());
        for name in files::names(&self.root)?.into_iter().filter(|name| name.starts_with(DOOMED)) {
            outcome = outcome.and(self.delete(&self.root.join(&name), &mut progress, report));
        }
        outcome.map(|()| progress)
    }

    fn delete(
        &self,
        doomed: &Path,
        progress: &mut Progress,
        report: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let what = || format!("delete {}", doomed.display());
        files::refuse_mounted(doomed)?;
        // The limit goes first, while the project's number is still known: a project without files needs none.
        if let Ok(Record { backing: Backing::ProjectQuota { project, .. }, .. }) = Record::read(doomed) {
            quota::limit(&self.root, project, 0)?;
        }
        let top = open_dir(rustix::fs::CWD, doomed).context(what)?;
        let mut moved = 0u64;
        while let Some(name) = first_directory(top.as_fd()).context(what)? {
            let dir = open_dir(top.as_fd(), &name).context(what)?;
            for entry in Dir::read_from(&dir).context(what)? {
                let entry = entry.context(what)?;
                let file = entry.file_name();
                if is_dot(file) {
                    continue;
                }
                match remove(dir.as_fd(), file, progress) {
                    Err(Errno::ISDIR | Errno::PERM) => {
                        moved += 1;
                        let to = CString::new(format!("{}.{moved}", std::process::id())).unwrap_or_default();
                        renameat(&dir, file, &top, &to).context(what)?;
                    }
                    other => other.context(what)?,
                }
                report(*progress);
            }
            match unlinkat(&top, &name, AtFlags::REMOVEDIR) {
                // Names that came after the directory was read: there are such filesystems. Once more.
                Err(Errno::NOTEMPTY) => {}
                other => {
                    other.context(what)?;
                    progress.entries += 1;
                    report(*progress);
                }
            }
        }
        for entry in Dir::read_from(&top).context(what)? {
            let entry = entry.context(what)?;
            if !is_dot(entry.file_name()) {
                remove(top.as_fd(), entry.file_name(), progress).context(what)?;
                report(*progress);
            }
        }
        fs::remove_dir(doomed).context(what)?;
        files::sync(&self.root)
    }
}

fn read_deletion(home: &Path) -> Result<Deletion, Error> {
    let path = home.join(DELETION_FILE);
    let bytes = fs::read(&path).context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes)
        .map_err(std::io::Error::from)
        .context(|| format!("parse {}", path.display()))
        .map_err(|error| error.with_kind(Kind::Internal))
}

fn open_dir(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn is_dot(name: &std::ffi::CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn first_directory(top: BorrowedFd<'_>) -> rustix::io::Result<Option<CString>> {
    for entry in Dir::read_from(top)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_dot(name) {
            continue;
        }
        let is_dir = match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(top, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            kind => kind == FileType::Directory,
        };
        if is_dir {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

fn remove(dir: BorrowedFd<'_>, name: &std::ffi::CStr, progress: &mut Progress) -> rustix::io::Result<()> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    unlinkat(dir, name, AtFlags::empty())?;
    progress.entries += 1;
    if stat.st_nlink == 1 {
        progress.bytes += stat.st_blocks.cast_unsigned() * 512;
    }
    Ok(())
}

/// Bytes on disk beneath a directory; a file with several names there counts each time.
pub(super) fn used_bytes(home: &Path) -> Result<u64, Error> {
    let mut bytes = 0;
    let mut ahead = vec![home.to_owned()];
    while let Some(dir) = ahead.pop() {
        let entries = match fs::read_dir(&dir) {
            // Containers delete while we look.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && dir != home => continue,
            other => other.context(|| format!("list {}", dir.display()))?,
        };
        for entry in entries.filter_map(Result::ok) {
            if let Ok(meta) = entry.metadata() {
                bytes += meta.blocks() * 512;
                if meta.is_dir() {
                    ahead.push(entry.path());
                }
            }
        }
    }
    Ok(bytes)
}
