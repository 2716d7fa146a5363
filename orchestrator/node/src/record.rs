//! What is written down about a pod in its run directory: who it is, what was begun for it, and its runs.
//!
//! ```text
//! <pod>/pod.json                     Record
//!      /runs/<container>.<n>.json    Run: one per run, written before anything is made for it
//!      /exits/<container>.<n>.json   the shim's exit records
//! ```
//!
//! Intent and identity only: what runs is asked of the shim and the cgroup. Written before the thing it names
//! is made, and changed back only after that is gone. Not synced: it does not outlive the boot.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shim::protocol::ExitRecord;

use crate::boot::{create_dir, remove_file, write_atomically};
use crate::error::{Error, Kind, Result};
use crate::observed::{Exit, ExitReason, Volumes};
use crate::yard::PodPaths;

/// Runs of one container that are remembered: enough for every pause between restarts to be told.
pub const RUNS_MAX: usize = 8;

/// Who a pod is, and what was begun for it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// metadata.uid.
    pub uid: String,
    /// The node it runs on.
    pub node: String,
    /// Its address.
    pub pod_ip: Option<Ipv4Addr>,
    /// A shim was started, and was not seen to be gone.
    pub shim: bool,
    /// A link was made, and not removed.
    pub network: bool,
    /// How far its volumes are.
    pub volumes: Volumes,
    /// Claims that it holds.
    pub held: Vec<Held>,
}

/// A claim that a pod holds: nobody else may use its volume.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Name of the claim, in the pod's namespace.
    pub claim: String,
    /// Uid of the claim.
    pub uid: String,
}

/// One run of one container, as begun.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Names the image's content.
    pub image_id: String,
    /// It was, or is about to be, let run: it counts as a run whatever becomes of it.
    pub started: bool,
    /// Its hook after the start was called.
    #[serde(default)]
    pub post_started: bool,
    /// Nothing is left of it but records.
    pub deleted: bool,
    /// How it ended, if that is known from elsewhere than an exit record.
    pub ended: Option<Exit>,
}

/// A pod's directory, read once and kept in step with what is written. One worker owns it.
#[derive(Debug)]
pub struct Book {
    paths: PodPaths,
    record: Option<Record>,
    runs: BTreeMap<String, BTreeMap<u32, Run>>,
    exits: BTreeMap<(String, u32), Exit>,
}

impl Book {
    /// Reads what is there; nothing is fine.
    ///
    /// # Errors
    /// The disk's answer, or `Internal` for a file that is not ours to understand.
    pub fn load(paths: PodPaths) -> Result<Book> {
        let record = read_json(&paths.record())?;
        let mut runs: BTreeMap<String, BTreeMap<u32, Run>> = BTreeMap::new();
        let dir = paths.runs_dir();
        for entry in list(&dir)? {
            let Some((container, number)) =
                entry.strip_suffix(".json").and_then(|name| name.rsplit_once('.'))
            else {
                continue;
            };
            if let (Ok(number), Some(run)) = (number.parse(), read_json(&dir.join(&entry))?) {
                runs.entry(container.to_owned()).or_default().insert(number, run);
            }
        }
        Ok(Book { paths, record, runs, exits: BTreeMap::new() })
    }

    /// Who the pod is, once recorded.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// The runs of all containers.
    pub fn runs(&self) -> &BTreeMap<String, BTreeMap<u32, Run>> {
        &self.runs
    }

    /// Makes the pod's directory and writes the record, unless there is one.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn open(&mut self, record: Record) -> Result<()> {
        for dir in [self.paths.exits_dir(), self.paths.runs_dir(), self.paths.files_dir()] {
            create_dir(&dir, 0o700)?;
        }
        if self.record.is_none() {
            write_json(&self.paths.record(), &record)?;
            self.record = Some(record);
        }
        Ok(())
    }

    /// Changes the record.
    ///
    /// # Errors
    /// `NotFound` without one; the disk's answer.
    pub fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record =
            self.record.clone().ok_or_else(|| Error::new(Kind::NotFound, "pod has no record"))?;
        change(&mut record);
        if Some(&record) != self.record.as_ref() {
            write_json(&self.paths.record(), &record)?;
            self.record = Some(record);
        }
        Ok(())
    }

    /// Writes down a run, and forgets runs that are too old to matter.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn write_run(&mut self, container: &str, number: u32, run: Run) -> Result<()> {
        let runs = self.runs.entry(container.to_owned()).or_default();
        if runs.get(&number) == Some(&run) {
            return Ok(());
        }
        write_json(&self.paths.runs_dir().join(format!("{container}.{number}.json")), &run)?;
        runs.insert(number, run);
        while runs.len() > RUNS_MAX
            && let Some((old, _)) = runs.pop_first()
        {
            remove_file(&self.paths.runs_dir().join(format!("{container}.{old}.json")))?;
            remove_file(&self.paths.exits_dir().join(format!("{container}.{old}.json")))?;
            self.exits.remove(&(container.to_owned(), old));
        }
        Ok(())
    }

    /// Forgets a run that never was one.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn forget_run(&mut self, container: &str, number: u32) -> Result<()> {
        remove_file(&self.paths.runs_dir().join(format!("{container}.{number}.json")))?;
        if let Some(runs) = self.runs.get_mut(container) {
            runs.remove(&number);
        }
        Ok(())
    }

    /// How a run ended, if that is on record.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn exit(&mut self, container: &str, number: u32) -> Result<Option<Exit>> {
        let key = (container.to_owned(), number);
        if let Some(exit) = self.exits.get(&key) {
            return Ok(Some(exit.clone()));
        }
        if let Some(exit) = self.runs.get(container).and_then(|runs| runs.get(&number)?.ended.clone()) {
            return Ok(Some(exit));
        }
        let path = self.paths.exits_dir().join(format!("{container}.{number}.json"));
        let exit = read_json::<ExitRecord>(&path)?.map(|record| exit_of(&record));
        if let Some(exit) = &exit {
            self.exits.insert(key, exit.clone());
        }
        Ok(exit)
    }

    /// Removes the pod's directory.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn remove(&mut self) -> Result<()> {
        // The record goes last: what a crash leaves still says whose it is.
        for entry in list(&self.paths.dir)?.iter().filter(|entry| *entry != "pod.json") {
            let path = self.paths.dir.join(entry);
            if path.is_dir() && !path.is_symlink() {
                crate::boot::remove_tree(&path)?;
            } else {
                remove_file(&path)?;
            }
        }
        crate::boot::remove_tree(&self.paths.dir)?;
        *self =
            Book { paths: self.paths.clone(), record: None, runs: BTreeMap::new(), exits: BTreeMap::new() };
        Ok(())
    }
}

/// An exit record in the agent's words.
pub fn exit_of(record: &ExitRecord) -> Exit {
    let reason = match (record.oom_killed, record.code) {
        (true, code) if code != 0 => ExitReason::OomKilled,
        (_, 0) => ExitReason::Completed,
        _ => ExitReason::Error,
    };
    Exit {
        code: record.code,
        signal: record.signal,
        reason,
        started_at: record.started_at_ns.map(timestamp),
        finished_at: timestamp(record.finished_at_ns),
    }
}

/// Nanoseconds since the epoch as a time.
pub fn timestamp(nanos: u64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::MAX)
}

fn list(dir: &Path) -> Result<Vec<String>> {
    let what = || format!("list {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(|error| Error::io(what(), error))?,
    };
    entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()
        .map_err(|error| Error::io(what(), error))
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::with(Kind::Internal, format!("parse {}", path.display()), error)),
    }
}

pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let bytes =
        serde_json::to_vec(value).map_err(|error| Error::with(Kind::Internal, "encode record", error))?;
    write_atomically(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yard::Yard;

    fn book(dir: &tempfile::TempDir) -> Book {
        Book::load(Yard::beneath(dir.path(), "t").unwrap().pod("u1")).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = book(&dir);
        assert!(first.record().is_none());
        assert_eq!(first.change(|_| ()).unwrap_err().kind(), Kind::NotFound);
        first.open(Record { uid: "u1".into(), ..Record::default() }).unwrap();
        first.change(|record| record.shim = true).unwrap();
        let run = Run { image_id: "i".into(), started: true, ..Run::default() };
        first.write_run("a", 0, run.clone()).unwrap();
        let second = book(&dir);
        assert!(second.record().unwrap().shim);
        assert_eq!(second.runs()["a"][&0], run);
        first.remove().unwrap();
        assert!(book(&dir).record().is_none());
    }

    #[test]
    fn old_runs_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = book(&dir);
        book.open(Record::default()).unwrap();
        for number in 0..20 {
            book.write_run("a", number, Run::default()).unwrap();
        }
        let kept: Vec<u32> = book.runs()["a"].keys().copied().collect();
        assert_eq!(kept, (12..20).collect::<Vec<_>>());
        assert_eq!(list(&book.paths.runs_dir()).unwrap().len(), RUNS_MAX);
    }
}
