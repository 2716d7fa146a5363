//! Virtual IPs: which endpoints stand behind which virtual port, kept as elements of nf_tables maps.
//!
//! [`Services`] is the wish, [`State`] what the kernel holds. [`diff`] is pure: (state, wish) → messages. [`ServiceTable`] commits
//! them in one transaction and, after a restart, starts from the kernel's own elements, not from a memory of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::error::{Error, Kind, Result};
use crate::ipam::Cidr;
use crate::nft::ruleset::{self, HAIRPIN, SERVED, VIRTUAL};
use crate::nft::{Batch, Committed, Contents, Element, Message, Tables};

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
    fn key(self) -> Vec<u8> {
        let [high, low] = self.port.to_be_bytes();
        let [a, b, c, d] = self.address.octets();
        vec![a, b, c, d, self.protocol as u8, 0, 0, 0, high, low, 0, 0]
    }

    fn parse(key: &[u8]) -> Option<Self> {
        let &[a, b, c, d, protocol, 0, 0, 0, high, low, 0, 0] = key else { return None };
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|known| *known as u8 == protocol)?;
        Some(Self { address: Ipv4Addr::new(a, b, c, d), protocol, port: u16::from_be_bytes([high, low]) })
    }
}

impl Endpoint {
    fn value(self) -> Vec<u8> {
        let [high, low] = self.port.to_be_bytes();
        let [a, b, c, d] = self.address.octets();
        vec![a, b, c, d, high, low, 0, 0]
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let &[a, b, c, d, high, low, 0, 0] = value else { return None };
        Some(Self { address: Ipv4Addr::new(a, b, c, d), port: u16::from_be_bytes([high, low]) })
    }
}

/// What a table of our layout holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Endpoints by slot.
    pub ports: BTreeMap<VirtualPort, Vec<Endpoint>>,
    /// Virtual IPs, those without any endpoint too.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Endpoint counts that have their set, chain and rule.
    balances: BTreeSet<usize>,
    /// Slots that have their map and chain.
    slots: usize,
}

impl State {
    /// Reads the elements back.
    ///
    /// # Errors
    /// What does not fit together, so that the table had better be made anew.
    pub fn parse(contents: &Contents, service_cidr: Cidr) -> std::result::Result<Self, String> {
        if contents.comment != ruleset::comment(service_cidr) {
            return Err(format!("it says {:?}", contents.comment));
        }
        let numbers = |prefix: &str| -> BTreeSet<usize> {
            contents.sets.keys().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect()
        };
        let (balances, slots) = (numbers("svc-"), numbers("ep-"));
        let mut state = Self { balances, slots: slots.len(), ..Self::default() };
        if !slots.into_iter().eq(0..state.slots) {
            return Err("slots are missing".into());
        }
        if shape(contents) != shape_of(&state, service_cidr) {
            return Err("its chains or sets are not ours".into());
        }
        for &count in &state.balances {
            for key in contents.keys(&ruleset::service_set(count)) {
                let port = VirtualPort::parse(key)
                    .ok_or_else(|| format!("a key of {count} endpoints is unreadable"))?;
                let slot = |index| {
                    contents
                        .sets
                        .get(&ruleset::slot(index))?
                        .get(key)?
                        .as_ref()
                        .and_then(|value| Endpoint::parse(value))
                };
                let endpoints: Option<Vec<_>> = (0..count).map(slot).collect();
                let endpoints = endpoints.ok_or_else(|| format!("{port} lacks an endpoint"))?;
                if state.ports.insert(port, endpoints).is_some() {
                    return Err(format!("{port} has two counts of endpoints"));
                }
            }
        }
        for key in contents.keys(VIRTUAL) {
            let octets: [u8; 4] = key.try_into().map_err(|_| "a virtual IP is unreadable")?;
            state.addresses.insert(octets.into());
        }
        // The other direction: no element that the ports do not explain.
        if elements_of(&state) != contents.sets {
            return Err("elements do not fit together".into());
        }
        Ok(state)
    }
}

/// What commits as one transaction, and the state after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// In order; empty when nothing differs.
    pub messages: Vec<Message>,
    /// What the table holds once they are committed.
    pub after: State,
    /// (virtual port, endpoint) pairs that serve no longer.
    pub removed: Vec<(VirtualPort, Endpoint)>,
}

/// What turns `state` into `wish`. Touches only what differs; an endpoint that stays keeps its slot where possible.
pub fn diff(state: &State, wish: &Services) -> Change {
    let mut after = state.clone();
    let mut removed = Vec::new();
    let mut growth = Vec::new();
    let (mut gone, mut fresh) = (Elements::default(), Elements::default());

    for (&port, old) in &state.ports {
        if wish.0.get(&port).is_none_or(BTreeSet::is_empty) {
            after.ports.remove(&port);
            replace(port, old, &[], &mut gone, &mut fresh);
            removed.extend(old.iter().map(|&endpoint| (port, endpoint)));
        }
    }
    for (&port, endpoints) in &wish.0 {
        let old = state.ports.get(&port).map_or(&[][..], Vec::as_slice);
        let new = assign(old, endpoints);
        if new.is_empty() || new == old {
            continue;
        }
        while after.slots < new.len() {
            growth.extend(ruleset::add_slot(after.slots));
            after.slots += 1;
        }
        if after.balances.insert(new.len()) {
            growth.extend(ruleset::add_balance(new.len()));
        }
        replace(port, old, &new, &mut gone, &mut fresh);
        removed
            .extend(old.iter().filter(|endpoint| !new.contains(endpoint)).map(|&endpoint| (port, endpoint)));
        after.ports.insert(port, new);
    }

    after.addresses = wish.0.keys().map(|port| port.address).collect();
    differ(
        &state.addresses,
        &after.addresses,
        VIRTUAL,
        |address| address.octets().to_vec(),
        &mut gone,
        &mut fresh,
    );
    let (old, new) = (hairpins(state), hairpins(&after));
    differ(
        &old,
        &new,
        HAIRPIN,
        |address| [address.octets(), address.octets()].concat(),
        &mut gone,
        &mut fresh,
    );

    // Deletions first: a key that stays with another value is deleted and added.
    let mut messages = growth;
    messages.extend(gone.0.into_iter().map(|(set, elements)| Message::DeleteElements {
        set,
        keys: elements.into_iter().map(|(key, _)| key).collect(),
    }));
    messages.extend(fresh.0.into_iter().map(|(set, elements)| Message::AddElements { set, elements }));
    Change { messages, after, removed }
}

/// Makes the table anew, with everything in it, in place of whatever is there.
pub fn rebuild(wish: &Services, service_cidr: Cidr) -> Change {
    let mut change = diff(&State::default(), wish);
    // Deleting needs a table to be there.
    let mut messages = vec![Message::AddTable { comment: String::new() }, Message::DeleteTable];
    messages.extend(ruleset::fixed(service_cidr));
    messages.append(&mut change.messages);
    Change { messages, ..change }
}

/// Slots for the endpoints: those that stay keep theirs, newcomers fill the holes, the last ones move down.
fn assign(old: &[Endpoint], wish: &BTreeSet<Endpoint>) -> Vec<Endpoint> {
    let wish: BTreeSet<_> = wish.iter().copied().take(ENDPOINTS_MAX).collect();
    let mut newcomers = wish.iter().copied().filter(|endpoint| !old.contains(endpoint));
    let mut slots: Vec<Option<Endpoint>> = old
        .iter()
        .map(|endpoint| if wish.contains(endpoint) { Some(*endpoint) } else { newcomers.next() })
        .collect();
    slots.extend(newcomers.map(Some));
    let mut filled = Vec::with_capacity(wish.len());
    while filled.len() < slots.len() {
        match slots[filled.len()].take() {
            Some(endpoint) => filled.push(endpoint),
            // A hole: the last endpoint moves in.
            None => match slots.pop().flatten() {
                Some(endpoint) if filled.len() <= slots.len() => filled.push(endpoint),
                _ => {}
            },
        }
    }
    filled
}

#[derive(Default)]
struct Elements(BTreeMap<String, Vec<Element>>);

impl Elements {
    fn put(&mut self, set: String, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.0.entry(set).or_default().push((key, value));
    }
}

fn replace(port: VirtualPort, old: &[Endpoint], new: &[Endpoint], gone: &mut Elements, fresh: &mut Elements) {
    for slot in 0..old.len().max(new.len()) {
        let (before, after) = (old.get(slot), new.get(slot));
        if before == after {
            continue;
        }
        if before.is_some() {
            gone.put(ruleset::slot(slot), port.key(), None);
        }
        if let Some(endpoint) = after {
            fresh.put(ruleset::slot(slot), port.key(), Some(endpoint.value()));
        }
    }
    if old.len() != new.len() {
        if !old.is_empty() {
            gone.put(ruleset::service_set(old.len()), port.key(), None);
        }
        if !new.is_empty() {
            fresh.put(ruleset::service_set(new.len()), port.key(), None);
        }
    }
    match (old.is_empty(), new.is_empty()) {
        (true, false) => fresh.put(SERVED.into(), port.key(), None),
        (false, true) => gone.put(SERVED.into(), port.key(), None),
        _ => {}
    }
}

fn differ(
    old: &BTreeSet<Ipv4Addr>,
    new: &BTreeSet<Ipv4Addr>,
    set: &str,
    key: impl Fn(&Ipv4Addr) -> Vec<u8>,
    gone: &mut Elements,
    fresh: &mut Elements,
) {
    for address in old.difference(new) {
        gone.put(set.into(), key(address), None);
    }
    for address in new.difference(old) {
        fresh.put(set.into(), key(address), None);
    }
}

fn hairpins(state: &State) -> BTreeSet<Ipv4Addr> {
    state.ports.values().flatten().map(|endpoint| endpoint.address).collect()
}

type Sets = BTreeMap<String, BTreeMap<Vec<u8>, Option<Vec<u8>>>>;

/// Every element that a state consists of.
fn elements_of(state: &State) -> Sets {
    let mut sets = Sets::new();
    for name in [SERVED, VIRTUAL, HAIRPIN] {
        sets.insert(name.into(), BTreeMap::new());
    }
    sets.extend((0..state.slots).map(|slot| (ruleset::slot(slot), BTreeMap::new())));
    sets.extend(state.balances.iter().map(|&count| (ruleset::service_set(count), BTreeMap::new())));
    let mut put = |set: String, key: Vec<u8>, value| drop(sets.entry(set).or_default().insert(key, value));
    for (port, endpoints) in &state.ports {
        put(SERVED.into(), port.key(), None);
        put(ruleset::service_set(endpoints.len()), port.key(), None);
        for (slot, endpoint) in endpoints.iter().enumerate() {
            put(ruleset::slot(slot), port.key(), Some(endpoint.value()));
        }
    }
    for address in &state.addresses {
        put(VIRTUAL.into(), address.octets().to_vec(), None);
    }
    for address in hairpins(state) {
        put(HAIRPIN.into(), [address.octets(), address.octets()].concat(), None);
    }
    sets
}

type Shape = (BTreeMap<String, usize>, BTreeSet<String>);

fn shape(contents: &Contents) -> Shape {
    (contents.chains.clone(), contents.sets.keys().cloned().collect())
}

/// Chains with their number of rules, and sets, that the layout consists of.
fn shape_of(state: &State, service_cidr: Cidr) -> Shape {
    let mut messages = ruleset::fixed(service_cidr);
    messages.extend((0..state.slots).flat_map(ruleset::add_slot));
    messages.extend(state.balances.iter().flat_map(|&count| ruleset::add_balance(count)));
    let (mut chains, mut sets) = Shape::default();
    for message in messages {
        match message {
            Message::AddChain { name, .. } => drop(chains.entry(name).or_insert(0)),
            Message::AddRule { chain, .. } => *chains.entry(chain).or_insert(0) += 1,
            Message::AddSet(set) => drop(sets.insert(set.name)),
            _ => {}
        }
    }
    (chains, sets)
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
        self.state = Ok(change.after);
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
mod tests {
    use super::*;
    use crate::nft::Fake;

    fn cidr() -> Cidr {
        "10.96.0.0/16".parse().unwrap()
    }

    fn port(index: u32) -> VirtualPort {
        VirtualPort { address: cidr().nth(index + 1).unwrap(), protocol: Protocol::Tcp, port: 80 }
    }

    fn endpoint(index: u32) -> Endpoint {
        Endpoint { address: Ipv4Addr::from_bits(0x0a58_0000 + index), port: 8080 }
    }

    fn services(list: &[(u32, &[u32])]) -> Services {
        Services(
            list.iter()
                .map(|(index, endpoints)| (port(*index), endpoints.iter().map(|&e| endpoint(e)).collect()))
                .collect(),
        )
    }

    #[test]
    fn keys_and_values_round_trip() {
        let port = VirtualPort { address: [10, 96, 1, 2].into(), protocol: Protocol::Udp, port: 0x1234 };
        assert_eq!(port.key(), [10, 96, 1, 2, 17, 0, 0, 0, 0x12, 0x34, 0, 0]);
        assert_eq!(VirtualPort::parse(&port.key()), Some(port));
        assert_eq!(Endpoint::parse(&endpoint(5).value()), Some(endpoint(5)));
        assert_eq!(
            (VirtualPort::parse(&[0; 12]), VirtualPort::parse(&[0; 8]), Endpoint::parse(&[])),
            (None, None, None)
        );
    }

    #[test]
    fn slots_move_as_little_as_possible() {
        let check = |old: &[u32], wish: &[u32], expect: &[u32]| {
            let old: Vec<_> = old.iter().map(|&index| endpoint(index)).collect();
            let wish: BTreeSet<_> = wish.iter().map(|&index| endpoint(index)).collect();
            let expect: Vec<_> = expect.iter().map(|&index| endpoint(index)).collect();
            assert_eq!(assign(&old, &wish), expect);
        };
        check(&[], &[1, 2, 3], &[1, 2, 3]);
        check(&[3, 1, 2], &[1, 2, 3], &[3, 1, 2]);
        check(&[1, 2, 3], &[2, 3], &[3, 2]);
        check(&[1, 2, 3], &[1, 2], &[1, 2]);
        check(&[1, 2, 3], &[2, 4], &[4, 2]);
        check(&[1, 2, 3], &[2, 4, 5, 6], &[4, 2, 5, 6]);
        check(&[1, 2, 3, 4], &[4], &[4]);
        check(&[1, 2, 3, 4], &[2], &[2]);
        check(&[1, 2], &[], &[]);
        check(&[1], &[9], &[9]);
    }

    #[test]
    fn what_is_committed_reads_back_and_nothing_differs_then() {
        let wish = services(&[(0, &[1, 2, 3]), (1, &[4]), (2, &[])]);
        let mut table = ServiceTable::open(Fake::new(), "yard", cidr()).unwrap();
        assert!(table.apply(&wish).unwrap().rebuilt.is_some());
        assert_eq!(table.apply(&wish).unwrap().outcome, Outcome::Unchanged);
        assert_eq!(table.verify().unwrap(), Outcome::Unchanged);
        let state = table.dump().unwrap();
        assert_eq!(state.ports.len(), 2);
        assert_eq!(state.addresses.len(), 3);
        let mut again = ServiceTable::open(table.tables, "yard", cidr()).unwrap();
        assert_eq!(
            again.apply(&wish).unwrap().outcome,
            Outcome::Unchanged,
            "a restart starts from the kernel"
        );
    }

    #[test]
    fn work_per_added_service_is_the_same_at_10_100_1000() {
        let mut works = Vec::new();
        for size in [10_u32, 100, 1000] {
            let mut wish = Services(
                (0..size)
                    .map(|index| (port(index), [endpoint(index), endpoint(index + 9000)].into()))
                    .collect(),
            );
            let mut table = ServiceTable::open(Fake::new(), "yard", cidr()).unwrap();
            table.apply(&wish).unwrap();
            wish.0.insert(port(60_000), [endpoint(60_001), endpoint(60_002)].into());
            works.push(table.apply(&wish).unwrap().work);
        }
        println!("{:?}", works[0]);
        assert!(works.iter().all(|work| *work == works[0]), "{works:?}");
        assert_eq!(works[0].elements, 7, "svc-2, served, virtual, 2 slots, 2 hairpins");
    }

    /// Any sequence of wishes, with refusals and restarts: the table always equals the last wish that was accepted.
    #[test]
    fn random_wishes_agree_with_a_model() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        println!("seed {seed}");
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            u32::try_from(seed % below).unwrap()
        };
        let mut table = ServiceTable::open(Fake::new(), "yard", cidr()).unwrap();
        let mut wish = Services::default();
        for _ in 0..2000 {
            for _ in 0..=random(3) {
                let port = port(random(12));
                if random(4) == 0 {
                    wish.0.remove(&port);
                } else {
                    let count = random(6);
                    wish.0.insert(port, (0..count).map(|_| endpoint(random(30))).collect());
                }
            }
            if random(5) == 0 {
                table.tables.fail_after(random(12) as usize);
            }
            // `Busy` is tried again with a fresh look, so a lone fault never gets here.
            table.apply(&wish).unwrap();
            if random(10) == 0 {
                table = ServiceTable::open(table.tables, "yard", cidr()).unwrap();
            }
            let state = table.dump().unwrap();
            let served: BTreeMap<_, BTreeSet<_>> =
                state.ports.iter().map(|(port, slots)| (*port, slots.iter().copied().collect())).collect();
            let mut expect = wish.0.clone();
            let addresses: BTreeSet<_> = expect.keys().map(|port| port.address).collect();
            expect.retain(|_, endpoints| !endpoints.is_empty());
            assert_eq!((served, state.addresses), (expect, addresses));
        }
    }

    #[test]
    fn a_meddled_table_is_made_anew() {
        let wish = services(&[(0, &[1, 2])]);
        let mut table = ServiceTable::open(Fake::new(), "yard", cidr()).unwrap();
        table.apply(&wish).unwrap();
        let meddle = vec![Message::DeleteElements { set: ruleset::slot(1), keys: vec![port(0).key()] }];
        table.tables.commit(&Batch { table: "yard".into(), messages: meddle }).unwrap();
        assert_eq!(table.dump().unwrap_err().kind(), Kind::Conflict);
        let applied = table.apply(&services(&[(0, &[1])])).unwrap();
        assert!(applied.rebuilt.is_some());
        assert_eq!(table.dump().unwrap().ports[&port(0)], [endpoint(1)]);
        // Or gone altogether.
        table.tables.commit(&Batch { table: "yard".into(), messages: vec![Message::DeleteTable] }).unwrap();
        assert!(table.apply(&wish).unwrap().rebuilt.is_some());
    }

    #[test]
    fn wishes_outside_the_cidr_are_refused() {
        let mut wish = Services::default();
        wish.0.insert(VirtualPort { address: [10, 88, 0, 1].into(), ..port(0) }, [endpoint(1)].into());
        let mut table = ServiceTable::open(Fake::new(), "yard", cidr()).unwrap();
        assert_eq!(table.apply(&wish).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(ServiceTable::open(Fake::new(), "a b", cidr()).err().unwrap().kind(), Kind::Invalid);
    }
}
