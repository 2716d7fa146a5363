//! What the log needs of a disk, and a directory that gives it. Tests give it one that fails and forgets.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A flat set of named files.
pub(crate) trait Disk: Send {
    /// The names of all files.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Reads a file from its start.
    fn read(&self, name: &str) -> io::Result<Box<dyn Read>>;
    /// Makes an empty file, over an old one if need be.
    fn create(&mut self, name: &str) -> io::Result<Box<dyn Segment>>;
    /// Opens a file to append to it.
    fn append(&mut self, name: &str) -> io::Result<Box<dyn Segment>>;
    /// Gives a file another name, over an old file if need be.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Makes the names durable.
    fn sync_names(&mut self) -> io::Result<()>;
}

/// A file that grows.
pub(crate) trait Segment: Send {
    /// Writes at the end. On an error a part may have been written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes the contents durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// A directory, locked against a second daemon for as long as this lives.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    directory: File,
    /// The lock goes with the file description: a crash frees it.
    lock: File,
}

impl Directory {
    /// Makes the directory if it is missing, and locks it. `WouldBlock` if another holds it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        // Each new directory is a name in its parent, which a crash must not lose either.
        let missing: Vec<&Path> = path.ancestors().take_while(|it| !it.is_dir()).collect();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        for parent in missing.into_iter().filter_map(Path::parent) {
            File::open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?.sync_all()?;
        }
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(path.join("lock"))?;
        lock.try_lock()?;
        Ok(Self { path: path.to_owned(), directory: File::open(path)?, lock })
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.append(true).mode(0o600);
        options
    }
}

impl Drop for Directory {
    /// Closing alone is too late: a child that another thread has just forked shares the description until it execs.
    fn drop(&mut self) {
        // flock(2) cannot refuse this on a regular file, and the close that follows does the same a little later.
        let _ = self.lock.unlock();
    }
}

impl Disk for Directory {
    fn names(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect()
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Read>> {
        Ok(Box::new(File::open(self.path.join(name))?))
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn Segment>> {
        let file = Self::options().create(true).open(self.path.join(name))?;
        file.set_len(0)?;
        Ok(Box::new(file))
    }

    fn append(&mut self, name: &str) -> io::Result<Box<dyn Segment>> {
        Ok(Box::new(Self::options().open(self.path.join(name))?))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.directory.sync_all()
    }
}

impl Segment for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        // fdatasync(2): the file's length is flushed too, being needed to read the data back.
        self.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}
