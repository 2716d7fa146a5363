//! A disk in memory that fails when told to, and loses what was not made durable when the power goes.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::Rng;
use rand::rngs::SmallRng;

use super::disk::{Disk, Segment};

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The disk is full, half-way through the first write from there; it has room again afterwards.
    FullOnce,
    /// The disk fails from then on.
    Broken,
    /// The call fails, once; the next succeeds, as fdatasync(2) does after it has dropped the pages.
    ErrorOnce,
}

#[derive(Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Default)]
struct Platter {
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    steps: u64,
    fault: Option<(u64, Fault)>,
    is_hit: bool,
}

/// Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct FakeDisk(Arc<Mutex<Platter>>);

struct FakeSegment(FakeDisk, usize);

impl FakeDisk {
    /// A disk with one file.
    pub(crate) fn with_file(name: &str, bytes: &[u8]) -> Self {
        let disk = Self::default();
        let file = File { now: bytes.to_vec(), durable: bytes.to_vec() };
        let mut platter = disk.lock();
        platter.files.push(file);
        platter.names.insert(name.to_owned(), 0);
        platter.durable_names = platter.names.clone();
        drop(platter);
        disk
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    /// Arms the fault: it hits at the n-th changing call from now.
    pub(crate) fn fail_at(&self, step: u64, fault: Fault) {
        let mut platter = self.lock();
        (platter.steps, platter.fault, platter.is_hit) = (0, Some((step, fault)), false);
    }

    /// Whether the armed fault has hit.
    pub(crate) fn is_hit(&self) -> bool {
        self.lock().is_hit
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let platter = self.lock();
        platter.files[platter.names[name]].now.clone()
    }

    /// The disk after a power cut: of what was not made durable, each file keeps some prefix and garbage may follow,
    /// and the names are the old or the new ones.
    pub(crate) fn after_power_cut(&self, rng: &mut SmallRng) -> Self {
        let platter = self.lock();
        let file = |file: &File| {
            let mut kept = file.now.clone();
            let common = file.now.iter().zip(&file.durable).take_while(|(a, b)| a == b).count();
            if common < file.durable.len() {
                kept = file.durable.clone(); // A truncation that did not reach the disk.
            } else {
                kept.truncate(rng.random_range(common..=kept.len()));
                let lost = file.now.len() - kept.len();
                if rng.random_bool(0.3) {
                    kept.resize(kept.len() + rng.random_range(0..=lost), 0); // Length known, pages not written.
                }
            }
            File { now: kept.clone(), durable: kept }
        };
        let files = platter.files.iter().map(file).collect();
        let names = if rng.random_bool(0.5) { &platter.names } else { &platter.durable_names };
        let after =
            Platter { files, names: names.clone(), durable_names: names.clone(), ..Platter::default() };
        Self(Arc::new(Mutex::new(after)))
    }

    fn step(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let mut platter = self.lock();
        platter.steps += 1;
        match platter.fault {
            Some((step, Fault::Broken)) if platter.steps >= step => {
                platter.is_hit = true;
                Err(io::Error::from_raw_os_error(5))
            }
            Some((step, Fault::ErrorOnce)) if platter.steps == step => {
                platter.is_hit = true;
                Err(io::Error::from_raw_os_error(5))
            }
            _ => Ok(platter),
        }
    }
}

impl Disk for FakeDisk {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Read>> {
        Ok(Box::new(Cursor::new(self.bytes(name))))
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn Segment>> {
        let mut platter = self.step()?;
        platter.files.push(File::default());
        let id = platter.files.len() - 1;
        platter.names.insert(name.to_owned(), id);
        Ok(Box::new(FakeSegment(self.clone(), id)))
    }

    fn append(&mut self, name: &str) -> io::Result<Box<dyn Segment>> {
        let id = self.lock().names[name];
        Ok(Box::new(FakeSegment(self.clone(), id)))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut platter = self.step()?;
        let id = platter.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        platter.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut platter = self.step()?;
        platter.names.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        let mut platter = self.step()?;
        platter.durable_names = platter.names.clone();
        Ok(())
    }
}

impl Segment for FakeSegment {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut step = self.0.step();
        if let Ok(platter) = &mut step
            && let Some((at, Fault::FullOnce)) = platter.fault
            && platter.steps >= at
            && !platter.is_hit
        {
            platter.is_hit = true;
            step = Err(io::Error::from_raw_os_error(28));
        }
        let result = step.map(drop); // Unlocks.
        let written = if result.is_ok() { bytes.len() } else { bytes.len() / 2 };
        self.0.lock().files[self.1].now.extend_from_slice(&bytes[..written]);
        result
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut platter = self.0.step()?;
        let file = &mut platter.files[self.1];
        file.durable = file.now.clone();
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut platter = self.0.step()?;
        platter.files[self.1].now.truncate(usize::try_from(len).unwrap());
        Ok(())
    }
}
