//! Virtual IPs: which endpoints stand behind which virtual port, kept as elements of nf_tables maps.
//!
//! ```text
//!  mod.rs    the words, and ServiceTable: commit, read back
//!  state.rs  what a table of our layout holds                (pure)
//!  diff.rs   (state, wish) → messages                        (pure)
//! ```
//!
//! [`Services`] is the wish, [`State`] what the kernel holds. [`ServiceTable`] commits the difference in one transaction and, after a
//! restart, starts from the kernel's own elements, not from a memory of them.

mod diff;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

pub use diff::{Change, diff, rebuild};
pub use state::State;

use crate::Outcome;
use crate::error::{Error, Kind, Result};
use crate::ipam::Cidr;
use crate::nft::{Batch, Committed, Message, Tables};

/// More endpoints than this behind one virtual port are not used: the lowest ones serve.
pub const ENDPOINTS_MAX: usize = 256;

/// Transport protocols that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

/// A port of a virtual IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualPort {
    /// The virtual IP, inside the service CIDR.
    pub address: Ipv4Addr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port that clients use.
    pub port: u16,
}

/// Where packets for a virtual port go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// A pod's address.
    pub address: Ipv4Addr,
    /// The port it listens on.
    pub port: u16,
}

/// All virtual ports, as wished. A port without endpoints is refused at once; one that is not listed too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(pub BTreeMap<VirtualPort, BTreeSet<Endpoint>>);

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for VirtualPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.address, self.port, self.protocol)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

impl VirtualPort {
    /// `ip daddr . meta l4proto . th dport` as an element's key.
    pub(crate) fn key(self) -> Vec<u8> {
        let [high, low] = self.port.to_be_bytes();
        let [a, b, c, d] = self.address.octets();
        vec![a, b, c, d, self.protocol as u8, 0, 0, 0, high, low, 0, 0]
    }

    pub(crate) fn parse(key: &[u8]) -> Option<Self> {
        let &[a, b, c, d, protocol, 0, 0, 0, high, low, 0, 0] = key else { return None };
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|known| *known as u8 == protocol)?;
        Some(Self { address: Ipv4Addr::new(a, b, c, d), protocol, port: u16::from_be_bytes([high, low]) })
    }
}

impl Endpoint {
    pub(crate) fn value(self) -> Vec<u8> {
        let [high, low] = self.port.to_be_bytes();
        let [a, b, c, d] = self.address.octets();
        vec![a, b, c, d, high, low, 0, 0]
    }

    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let &[a, b, c, d, high, low, 0, 0] = value else { return None };
        Some(Self { address: Ipv4Addr::new(a, b, c, d), port: u16::from_be_bytes([high, low]) })
    }
}

/// What an [`apply`](ServiceTable::apply) did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Whether anything differed.
    pub outcome: Outcome,
    /// Why the whole table was made anew, if it was.
    pub rebuilt: Option<String>,
    /// The kernel's work.
    pub work: Committed,
    /// Time in the kernel, and the time before it spent on deciding.
    pub took: Duration,
    /// (virtual port, endpoint) pairs that serve no longer: their UDP flows must be forgotten.
    pub removed: Vec<(VirtualPort, Endpoint)>,
}

/// Our table of one namespace. One owner: two of them on the same table correct each other's work.
pub struct ServiceTable<T> {
    tables: T,
    name: String,
    service_cidr: Cidr,
    state: std::result::Result<State, String>,
}

impl<T: Tables> ServiceTable<T> {
    /// Reads what is there and writes nothing.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a name that nf_tables would not take, or the socket's.
    pub fn open(mut tables: T, name: &str, service_cidr: Cidr) -> Result<Self> {
        let fine = (1..=64).contains(&name.len())
            && name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !fine {
            return Err(Error::new(Kind::Invalid, format!("{name:?} is no table name")));
        }
        let state = read(&mut tables, name, service_cidr)?;
        Ok(Self { tables, name: name.into(), service_cidr, state })
    }

    /// What the kernel held when last looked at; `None` before the first [`apply`](Self::apply) and for a table that does not fit.
    pub fn state(&self) -> Option<&State> {
        self.state.as_ref().ok()
    }

    /// Serves exactly `wish`, in one transaction: packets see the old state or the new. Idempotent.
    ///
    /// A table changed behind our back is noticed when the kernel refuses, and is made anew, with established connections intact.
    ///
    /// # Errors
    /// The kernel's refusal; nothing has changed then.
    pub fn apply(&mut self, wish: &Services) -> Result<Applied> {
        let started = Instant::now();
        if let Some(stray) = wish.0.keys().find(|port| !self.service_cidr.contains(port.address)) {
            return Err(Error::new(
                Kind::Invalid,
                format!("{stray} is not in the service CIDR {}", self.service_cidr),
            ));
        }
        let (mut rebuilt, change) = self.change(wish);
        match self.commit(&change) {
            Ok(work) => Ok(self.applied(started, rebuilt, work, change)),
            // Not the state we believed in.
            Err(error) if [Kind::NotFound, Kind::AlreadyExists, Kind::Busy].contains(&error.kind()) => {
                self.state = read(&mut self.tables, &self.name, self.service_cidr)?;
                let (reason, change) = self.change(wish);
                rebuilt = reason;
                let work = self.commit(&change)?;
                Ok(self.applied(started, rebuilt, work, change))
            }
            Err(error) => Err(error.during(format!("program table {}", self.name))),
        }
    }

    fn change(&self, wish: &Services) -> (Option<String>, Change) {
        match &self.state {
            Ok(state) => (None, diff(state, wish)),
            Err(reason) => (Some(reason.clone()), rebuild(wish, self.service_cidr)),
        }
    }

    fn commit(&mut self, change: &Change) -> Result<Committed> {
        if change.messages.is_empty() {
            return Ok(Committed::default());
        }
        self.tables.commit(&Batch { table: self.name.clone(), messages: change.messages.clone() })
    }

    fn applied(
        &mut self,
        started: Instant,
        rebuilt: Option<String>,
        work: Committed,
        change: Change,
    ) -> Applied {
        let outcome = if change.messages.is_empty() { Outcome::Unchanged } else { Outcome::Changed };
        if rebuilt.is_some() {
            self.state = Ok(State::default());
        }
        if let Ok(state) = &mut self.state {
            state.advance(&change);
        }
        Applied { outcome, rebuilt, work, took: started.elapsed(), removed: change.removed }
    }

    /// The kernel's elements, read now: what really serves.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is no table, [`Kind::Conflict`] when it is not of our layout.
    pub fn dump(&mut self) -> Result<State> {
        let contents = self.tables.read(&self.name)?;
        let contents = contents.ok_or_else(|| Error::new(Kind::NotFound, format!("table {}", self.name)))?;
        State::parse(&contents, self.service_cidr)
            .map_err(|reason| Error::new(Kind::Conflict, format!("table {}: {reason}", self.name)))
    }

    /// Compares the kernel with what we believe, and believes the kernel from then on.
    ///
    /// # Errors
    /// The socket's.
    pub fn verify(&mut self) -> Result<Outcome> {
        let there = read(&mut self.tables, &self.name, self.service_cidr)?;
        let outcome = if there == self.state { Outcome::Unchanged } else { Outcome::Changed };
        self.state = there;
        Ok(outcome)
    }

    /// Removes the table. Idempotent.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove(&mut self) -> Result<Outcome> {
        if self.tables.read(&self.name)?.is_none() {
            return Ok(Outcome::Unchanged);
        }
        self.tables.commit(&Batch { table: self.name.clone(), messages: vec![Message::DeleteTable] })?;
        self.state = Err("there is none".into());
        Ok(Outcome::Changed)
    }
}

fn read<T: Tables>(
    tables: &mut T,
    name: &str,
    service_cidr: Cidr,
) -> Result<std::result::Result<State, String>> {
    Ok(match tables.read(name)? {
        None => Err("there is none".into()),
        Some(contents) => State::parse(&contents, service_cidr),
    })
}

#[cfg(test)]
mod tests;
