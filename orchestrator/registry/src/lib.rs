//! The verbs of the API over a store: the one code path of the HTTP server, the controllers and the agent.
//!
//! ```text
//!   verb ──► read the store ──► admission ──► rules of the kind ──► one transaction ──► answer
//!                 ▲                                                      │
//!                 └───────────── somebody else was faster ◄──────────────┘   bounded
//! ```
//!
//! **Law: every verb ends in at most one commit**, and in none if it changes nothing. What spans objects (a namespace
//! that must exist, an address that must be free, events that make room for a new one) is part of that same commit.
//! Nothing here runs on a timer, and nothing decides by itself later: whatever takes time is a field of an object
//! (`deletionTimestamp`, `finalizers`, `phase`) on which a controller or the agent acts.
#![forbid(unsafe_code)]

mod address;
mod delete;
mod draft;
mod index;
mod kinds;
mod options;
mod read;
mod watch;
mod write;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use address::Cidr;
pub use options::{
    DeleteOptions, Deleted, List, ListOptions, PatchKind, Propagation, WatchOptions, WriteOptions, Written,
};
pub use watch::{Watch, WatchEvent};

use std::fmt;
use std::sync::{Mutex, PoisonError};

use api::{Error, Key, Kind, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use serde_json::json;
use store::{CommitError, Compacted, Store};

use crate::index::Index;

/// Namespaces that exist from the start and cannot be deleted.
pub const PERMANENT_NAMESPACES: [&str; 2] = ["default", "kube-system"];

/// Largest object taken, in bytes of JSON.
pub const OBJECT_BYTES_MAX: usize = 1 << 20;

/// What a registry is told from outside, clock and randomness included.
pub struct Config {
    /// The present. Simulations pass virtual time.
    pub clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
    /// Names, uids and the choice of virtual IPs come from here. Simulations pass a seeded one.
    pub rng: Box<dyn RngCore + Send>,
    /// Where the virtual IPs of services come from.
    pub service_cidr: Cidr,
    /// Events kept; older ones make room for newer ones.
    pub events_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            clock: Box::new(Timestamp::now),
            rng: Box::new(StdRng::from_os_rng()),
            service_cidr: Cidr::new([10, 96, 0, 0].into(), 16),
            events_max: 1000,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("service_cidr", &self.service_cidr)
            .field("events_max", &self.events_max)
            .finish_non_exhaustive()
    }
}

/// The verbs over one store.
#[derive(Debug)]
pub struct Registry<S> {
    store: S,
    clock: Clock,
    rng: Mutex<Dice>,
    service_cidr: Cidr,
    events_max: usize,
    index: Mutex<Index>,
}

struct Clock(Box<dyn Fn() -> Timestamp + Send + Sync>);
struct Dice(Box<dyn RngCore + Send>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl fmt::Debug for Dice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dice")
    }
}

impl<S: Store> Registry<S> {
    /// A registry over `store`, with the permanent namespaces made where they are missing.
    ///
    /// # Errors
    /// Those of the commits that make them.
    pub async fn open(store: S, config: Config) -> Result<Self, Error> {
        let registry = Self {
            index: Mutex::new(Index::new(&store)),
            store,
            clock: Clock(config.clock),
            rng: Mutex::new(Dice(config.rng)),
            service_cidr: config.service_cidr,
            events_max: config.events_max.max(1),
        };
        for name in PERMANENT_NAMESPACES {
            let key = Key::core("namespaces", "", name);
            if registry.store.get(&key).is_none() {
                let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
                registry.create(key.resource, "", namespace, &WriteOptions::default()).await?;
            }
        }
        Ok(registry)
    }

    /// The store below. Write through the registry only.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The present, as this registry is told it.
    pub fn now(&self) -> Timestamp {
        (self.clock.0)()
    }

    fn new_uid(&self) -> String {
        let mut bytes = [0; 16];
        self.dice(|rng| rng.fill_bytes(&mut bytes));
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    /// Five characters for `generateName`. Without vowels and look-alikes, as in Kubernetes, so that they spell
    /// nothing.
    fn new_name_suffix(&self) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        self.dice(|rng| (0..5).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect())
    }

    fn dice<T>(&self, throw: impl FnOnce(&mut dyn RngCore) -> T) -> T {
        throw(&mut *self.rng.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Runs `read` on the index of everything committed so far.
    fn index<T>(&self, read: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.catch_up(&self.store);
        read(&mut index)
    }
}

/// The refusal that a failed commit is to a client. Conflicts are not among them: they are decided again.
fn commit_error(error: &CommitError) -> Error {
    match error {
        CommitError::Conflict { key, .. } => Error::modified(key),
        CommitError::Busy => Error::new(Kind::Busy, error.to_string()),
        CommitError::Refused(_) => Error::new(Kind::Invalid, error.to_string()),
        CommitError::Full(_) | CommitError::Storage(_) => Error::internal(error),
    }
}

/// The refusal that a watch of the past is to a client.
fn expired(compacted: Compacted) -> Error {
    let Compacted { since, oldest } = compacted;
    Error::expired(format!("too old resource version: {since} ({oldest})"))
}
