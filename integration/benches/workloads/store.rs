//! What a workload is to the runner: its manifests, and how a client writes and reads.

use integration::harness::Yard;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

/// One of the four.
pub struct Workload {
    /// Its name here, and that of its PetSet.
    pub name: &'static str,
    /// Debian's packages.
    pub packages: &'static str,
    /// What they must have brought.
    pub programs: &'static [&'static str],
    /// The manifests, as users apply them.
    pub manifest: &'static str,
    /// The Service that clients write to.
    pub service: &'static str,
    /// Its port, and each pet's.
    pub port: u16,
    /// Pets in the manifest.
    pub replicas: usize,
    /// Whether the others carry on without any one of them.
    pub has_quorum: bool,
    /// Sizes it is scaled to, one after the other; ends with `replicas`.
    pub scales: &'static [usize],
    /// Opens a connection.
    pub open: fn(SocketAddr) -> io::Result<Box<dyn Store>>,
    /// The pet whose death hurts most: the leader, or the primary.
    pub leader: fn(&Yard) -> String,
    /// What has to be said before a pet leaves for good.
    pub leave: fn(&Yard, pet: &str),
    /// What has to be said after a pet joined.
    pub joined: fn(&Yard, pet: &str),
}

/// Nothing has to be said.
pub fn nothing(_: &Yard, _: &str) {}

/// A connection to a store of numbers.
pub trait Store {
    /// Makes what numbers are kept in, if it is not there.
    fn prepare(&mut self) -> io::Result<()>;

    /// Writes a number with [`value`]; fine if it is there. `Ok` is the store's word that it is durable.
    fn put(&mut self, number: u64) -> io::Result<()>;

    /// Every number that this very server has; an error if one has a wrong value.
    fn all(&mut self) -> io::Result<BTreeSet<u64>>;
}

/// What is stored under a number, so that a wrong value is seen.
pub fn value(number: u64) -> String {
    format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The number of a pair that was read back.
pub fn checked(number: &str, found: &str) -> io::Result<u64> {
    let number: u64 = number.parse().map_err(|_| other(format!("{number:?} is no number")))?;
    if found != value(number) {
        return Err(other(format!("{number} holds {found:?}, not {:?}", value(number))));
    }
    Ok(number)
}

/// What the server said instead of yes.
pub fn other(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}
