//! Directories that appear complete and disappear at once.
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::{Error, Kind};
use rustix::fs::{RenameFlags, renameat_with};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The calling thread's mount table: a thread may be in a mount namespace of its own.
pub(crate) const MOUNT_TABLE: &str = "/proc/thread-self/mountinfo";

/// Whether what a build leaves must survive a power failure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    Durable,
    Volatile,
}

/// A name in `dir` that nobody else uses; a leading dot marks it as sweepable.
fn scratch(dir: &Path, purpose: &str, name: &str) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    dir.join(format!(".{purpose}.{}.{count}.{name}", std::process::id()))
}

/// Makes `dir/name` by `build` in a scratch directory, then by rename. Present already: nothing is done.
/// Two racing builders: one wins, the other removes its own work.
pub(crate) fn build(
    dir: &Path,
    name: &str,
    durability: Durability,
    build: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let target = dir.join(name);
    if target.is_dir() {
        return Ok(target);
    }
    create_dirs(dir, 0o700)?;
    let scratch = scratch(dir, "new", name);
    let result = (|| {
        create_dir(&scratch, 0o700)?;
        build(&scratch)?;
        if durability == Durability::Durable {
            sync(&scratch)?;
        }
        match rename_new(&scratch, &target) {
            Err(error) if error.kind() == Kind::AlreadyExists => remove_tree(&scratch),
            other => other,
        }?;
        if durability == Durability::Durable { sync(dir) } else { Ok(()) }
    })();
    if result.is_err() {
        // The first cause is what the caller needs; what stays is a dot-name, swept later.
        drop(remove_tree(&scratch));
    }
    result.map(|()| target)
}

/// Takes `dir/name` away by rename, then deletes it. Absent already: nothing is done.
pub(crate) fn discard(dir: &Path, name: &str, durability: Durability) -> Result<(), Error> {
    let scratch = scratch(dir, "old", name);
    match rename_new(&dir.join(name), &scratch) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    }
    if durability == Durability::Durable {
        sync(dir)?;
    }
    remove_tree(&scratch)
}

/// Removes what crashed builds and removals of this machine left in `dir`: every dot-name.
/// Call it while nobody builds in `dir`.
pub(crate) fn sweep(dir: &Path) -> Result<Vec<String>, Error> {
    sweep_but(dir, &[])
}

/// As [`sweep`], leaving these names alone.
pub(crate) fn sweep_but(dir: &Path, kept: &[&str]) -> Result<Vec<String>, Error> {
    let mut swept = Vec::new();
    for name in names(dir)? {
        if name.starts_with('.') && !kept.contains(&name.as_str()) {
            remove_tree(&dir.join(&name))?;
            swept.push(name);
        }
    }
    Ok(swept)
}

/// Every name in `dir`, sorted; none if it does not exist.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context(|| format!("list {}", dir.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("list {}", dir.display()))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Deletes a directory and all beneath it, following no link and entering no other mount.
///
/// # Errors
/// `Busy` if something is mounted beneath: deleting would reach into it.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    fault::step()?;
    refuse_mounted(path)?;
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("remove {}", path.display())),
    }
}

/// Refuses with `Busy` if something is mounted at or beneath `path`.
pub(crate) fn refuse_mounted(path: &Path) -> Result<(), Error> {
    if let Some(mounted) = mount_beneath(path)? {
        let text = format!("remove {}: {} is mounted beneath it", path.display(), mounted.display());
        return Err(Error::new(Kind::Busy, text));
    }
    Ok(())
}

/// The first mount point at or beneath `path` in our mount namespace.
fn mount_beneath(path: &Path) -> Result<Option<PathBuf>, Error> {
    let table = fs::read_to_string(MOUNT_TABLE).context(|| format!("read {MOUNT_TABLE}"))?;
    let Ok(path) = path.canonicalize() else { return Ok(None) };
    Ok(mount_points(&table).find(|point| point.starts_with(&path)))
}

/// Fifth field of each line, with its octal escapes undone. Source: proc_pid_mountinfo(5).
pub(crate) fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> + '_ {
    table.lines().filter_map(|line| {
        let field = line.split(' ').nth(4)?;
        let text = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
            .iter()
            .fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain));
        Some(PathBuf::from(text))
    })
}

/// Makes one directory with exactly this mode, whatever the umask. It must not exist.
pub(crate) fn create_dir(path: &Path, mode: u32) -> Result<(), Error> {
    fault::step()?;
    fs::create_dir(path).context(|| format!("mkdir {}", path.display()))?;
    set_mode(path, mode)
}

/// Makes `path` and its missing parents; the last one gets `mode` if it was missing.
pub(crate) fn create_dirs(path: &Path, mode: u32) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).context(|| format!("mkdir -p {}", path.display()))?;
    set_mode(path, mode)
}

/// chmod(2), independent of the umask.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .context(|| format!("chmod {} {mode:o}", path.display()))
}

/// Writes a new file and flushes it. It must not exist.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> Result<(), Error> {
    use std::io::Write;
    fault::step()?;
    let mut file = File::create_new(path).context(|| format!("create {}", path.display()))?;
    fault::step()?;
    file.write_all(bytes).context(|| format!("write {}", path.display()))?;
    set_mode(path, mode)?;
    if durability == Durability::Durable {
        file.sync_all().context(|| format!("fsync {}", path.display()))?;
    }
    Ok(())
}

/// Replaces a file durably: temporary file, fsync, rename, fsync of the directory.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = scratch(dir, "new", &name);
    let result = write_new(&temporary, bytes, 0o600, Durability::Durable).and_then(|()| {
        fault::step()?;
        fs::rename(&temporary, path).context(|| format!("rename to {}", path.display()))?;
        sync(dir)
    });
    if result.is_err() {
        // As above: what stays is a dot-name.
        drop(fault::step().and_then(|()| fs::remove_file(&temporary).context(|| "unlink".into())));
    }
    result
}

/// fsync(2) of a directory or file.
pub(crate) fn sync(path: &Path) -> Result<(), Error> {
    fault::step()?;
    let file = File::open(path).context(|| format!("open {}", path.display()))?;
    file.sync_all().context(|| format!("fsync {}", path.display()))
}

pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<(), Error> {
    fault::step()?;
    renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE)
        .context(|| format!("renameat2({}, {}, RENAME_NOREPLACE)", from.display(), to.display()))
}

/// FNV-1a, 64 bits: names content that we wrote ourselves, no defence against an adversary.
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub(crate) fn new() -> Fingerprint {
        Fingerprint(0xcbf2_9ce4_8422_2325)
    }

    /// Adds one field, with its length so that fields cannot run together.
    pub(crate) fn field(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(crate) fn value(&self) -> u64 {
        self.0
    }

    pub(crate) fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Stops the disk at a chosen step, as a crash does: everything after it fails, cleaning up too.
#[cfg(test)]
pub(crate) mod fault {
    use crate::{Error, Kind};
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
    }

    /// Runs `body` with a crash after `steps` steps. Says whether it came to that.
    pub(crate) fn crash_after<T>(steps: u32, body: impl FnOnce() -> T) -> (T, bool) {
        LEFT.set(steps);
        let result = body();
        (result, LEFT.replace(u32::MAX) == 0)
    }

    pub(super) fn step() -> Result<(), Error> {
        match LEFT.get() {
            0 => Err(Error::new(Kind::Internal, "crashed")),
            u32::MAX => Ok(()),
            left => {
                LEFT.set(left - 1);
                Ok(())
            }
        }
    }
}

#[cfg(not(test))]
mod fault {
    #[inline]
    pub(super) fn step() -> Result<(), crate::Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let table = "36 35 98:0 / /mnt/a\\040b rw - ext3 /dev/root rw\n37 35 0:5 / /x rw - tmpfs t rw\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [PathBuf::from("/mnt/a b"), PathBuf::from("/x")]);
    }

    #[test]
    fn build_is_all_or_nothing() {
        let dir = std::env::temp_dir().join(format!("podyard-build-{}", std::process::id()));
        let failed = build(&dir, "x", Durability::Volatile, |at| {
            create_dir(&at.join("half"), 0o755)?;
            Err(Error::new(Kind::Internal, "stop"))
        });
        assert!(failed.is_err());
        assert!(names(&dir).unwrap().is_empty());
        build(&dir, "x", Durability::Volatile, |at| create_dir(&at.join("whole"), 0o755)).unwrap();
        build(&dir, "x", Durability::Volatile, |_| panic!("already there")).unwrap();
        assert_eq!(names(&dir).unwrap(), ["x"]);
        fs::create_dir(dir.join(".old.1.0.y")).unwrap();
        assert_eq!(sweep(&dir).unwrap(), [".old.1.0.y"]);
        discard(&dir, "x", Durability::Volatile).unwrap();
        discard(&dir, "x", Durability::Volatile).unwrap();
        fs::remove_dir(dir).unwrap();
    }
}
