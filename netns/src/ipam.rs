//! Addresses of a CIDR: arithmetic and a pool. Pure; the record of who holds what lives with the caller.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};

/// An IPv4 network: the lowest address and the prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// # Errors
    /// [`Kind::Invalid`] when the prefix exceeds 32 or host bits are set.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Result<Self> {
        let invalid = |why: &str| Error::new(Kind::Invalid, format!("{network}/{prefix}: {why}"));
        if prefix > 32 {
            return Err(invalid("prefix length above 32"));
        }
        if network.to_bits() & !mask(prefix) != 0 {
            return Err(invalid("bits beyond the prefix are set"));
        }
        Ok(Self { network, prefix })
    }

    /// The network of length `prefix` around `address`; its host bits are dropped.
    pub const fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = if prefix > 32 { 32 } else { prefix };
        Self { network: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// The one address `address`/32.
    pub const fn single(address: Ipv4Addr) -> Self {
        Self { network: address, prefix: 32 }
    }

    /// Lowest address.
    pub const fn network(self) -> Ipv4Addr {
        self.network
    }

    /// Prefix length, 0..=32.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Netmask as an address.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// Highest address (broadcast, for networks that have one).
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask(self.prefix))
    }

    /// Number of addresses.
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The `index`-th address, counted from the network address.
    pub fn nth(self, index: u32) -> Option<Ipv4Addr> {
        (u64::from(index) < self.size()).then(|| Ipv4Addr::from_bits(self.network.to_bits() + index))
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    /// Whether the two share any address.
    pub fn overlaps(self, other: Cidr) -> bool {
        let common = self.prefix.min(other.prefix);
        self.network.to_bits() & mask(common) == other.network.to_bits() & mask(common)
    }

    /// Whether all of `other` lies inside.
    pub fn contains_all(self, other: Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.network)
    }

    /// The network of this prefix length that this one lies in; itself, if it is no longer than that.
    #[must_use]
    pub fn widened(self, prefix: u8) -> Cidr {
        Self::around(self.network, prefix.min(self.prefix))
    }

    /// The `index`-th network of length `prefix` inside this one (node pod CIDRs out of a cluster CIDR).
    pub fn subnet(self, prefix: u8, index: u32) -> Option<Cidr> {
        if prefix < self.prefix || prefix > 32 {
            return None;
        }
        let offset = u64::from(index) << (32 - u32::from(prefix));
        if offset >= self.size() {
            return None;
        }
        let offset = u32::try_from(offset).ok()?;
        Some(Cidr { network: Ipv4Addr::from_bits(self.network.to_bits() + offset), prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::new(Kind::Invalid, format!("{text:?} is no IPv4 CIDR such as 10.88.0.0/16"));
        let (network, prefix) = text.split_once('/').ok_or_else(invalid)?;
        if prefix.len() > 1 && prefix.starts_with('0') || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        Self::new(network.parse().map_err(|_| invalid())?, prefix.parse().map_err(|_| invalid())?)
    }
}

const fn mask(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) }
}

/// Free and used addresses of a CIDR.
///
/// Rebuilt from the records at start; a released address is handed out again only after every other free one, so that
/// a peer that still remembers the old holder (a DNS cache, a UDP flow) has time to forget.
#[derive(Clone, Debug)]
pub struct Pool {
    cidr: Cidr,
    reserved: BTreeSet<Ipv4Addr>,
    used: BTreeSet<Ipv4Addr>,
    /// Next never-used index.
    fresh: u64,
    /// Released, oldest first.
    released: VecDeque<Ipv4Addr>,
}

impl Pool {
    /// A pool over `cidr`; `reserved` (the gateway, for example), and for networks of more than two addresses the first
    /// and the last, are never handed out. `used` are the addresses on record; those outside `cidr` are ignored.
    pub fn new(
        cidr: Cidr,
        reserved: impl IntoIterator<Item = Ipv4Addr>,
        used: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Self {
        let mut reserved: BTreeSet<_> = reserved.into_iter().collect();
        if cidr.size() > 2 {
            reserved.extend([cidr.network(), cidr.last()]);
        }
        let used = used.into_iter().filter(|&address| cidr.contains(address)).collect();
        Self { cidr, reserved, used, fresh: 0, released: VecDeque::new() }
    }

    /// The network this pool serves.
    pub fn cidr(&self) -> Cidr {
        self.cidr
    }

    /// An address nobody holds: never used ones first, then the one released longest ago. `None` when exhausted.
    pub fn allocate(&mut self) -> Option<Ipv4Addr> {
        while self.fresh < self.cidr.size() {
            let index = u32::try_from(self.fresh).ok()?;
            self.fresh += 1;
            let Some(address) = self.cidr.nth(index) else { continue };
            if !self.reserved.contains(&address)
                && !self.released.contains(&address)
                && self.used.insert(address)
            {
                return Some(address);
            }
        }
        let address = self.released.pop_front()?;
        self.used.insert(address);
        Some(address)
    }

    /// Takes one particular address; `false` when it is held, reserved or foreign.
    pub fn claim(&mut self, address: Ipv4Addr) -> bool {
        if !self.cidr.contains(address) || self.reserved.contains(&address) || !self.used.insert(address) {
            return false;
        }
        self.released.retain(|&released| released != address);
        true
    }

    /// Gives an address back, to the end of the queue; `false` when it was not held.
    pub fn release(&mut self, address: Ipv4Addr) -> bool {
        let held = self.used.remove(&address);
        if held {
            self.released.push_back(address);
        }
        held
    }

    /// Addresses in use, ascending.
    pub fn used(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.used.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn cidr_parses_and_refuses() {
        for text in ["10.88.0.0/16", "0.0.0.0/0", "10.0.0.1/32", "10.0.0.2/31"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        for text in [
            "10.88.0.1/16",
            "10.0.0.0/33",
            "10.0.0.0",
            "/8",
            "10.0.0.0/",
            "10.0.0/8",
            "::/0",
            "10.0.0.0/+8",
            "10.0.0.0/08",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn cidr_arithmetic() {
        let net = cidr("10.88.4.0/22");
        assert_eq!((net.size(), net.last(), net.mask()), (1024, ip("10.88.7.255"), ip("255.255.252.0")));
        assert_eq!(
            (net.nth(0), net.nth(1023), net.nth(1024)),
            (Some(ip("10.88.4.0")), Some(ip("10.88.7.255")), None)
        );
        assert!(net.contains(ip("10.88.7.255")) && !net.contains(ip("10.88.8.0")));
        assert!(
            net.overlaps(cidr("10.0.0.0/8"))
                && net.overlaps(cidr("10.88.5.1/32"))
                && !net.overlaps(cidr("10.88.8.0/22"))
        );
        assert!(cidr("0.0.0.0/0").overlaps(net));
        assert_eq!((net.widened(16), net.widened(24)), (cidr("10.88.0.0/16"), net));
        assert!(cidr("10.88.0.0/16").contains_all(net) && net.contains_all(net));
        assert!(!net.contains_all(cidr("10.88.0.0/16")) && !net.contains_all(cidr("10.88.8.0/24")));
        assert_eq!(net.subnet(24, 3), Some(cidr("10.88.7.0/24")));
        assert_eq!((net.subnet(24, 4), net.subnet(21, 0)), (None, None));
        assert_eq!(cidr("0.0.0.0/0").size(), 1 << 32);
        assert_eq!(cidr("0.0.0.0/0").last(), ip("255.255.255.255"));
    }

    #[test]
    fn pool_never_hands_out_reserved_or_used() {
        let mut pool = Pool::new(cidr("10.0.0.0/29"), [ip("10.0.0.1")], [ip("10.0.0.3"), ip("192.0.2.1")]);
        let got: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(got, ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"].map(ip));
        assert!(!pool.claim(ip("10.0.0.1")) && !pool.claim(ip("10.0.0.2")) && !pool.claim(ip("192.0.2.1")));
        assert!(pool.release(ip("10.0.0.5")) && !pool.release(ip("10.0.0.5")));
        assert_eq!((pool.allocate(), pool.allocate()), (Some(ip("10.0.0.5")), None));
    }

    #[test]
    fn released_addresses_come_back_last_and_oldest_first() {
        let mut pool = Pool::new(cidr("10.0.0.0/29"), [], []);
        let first = [pool.allocate().unwrap(), pool.allocate().unwrap()];
        pool.release(first[1]);
        pool.release(first[0]);
        let rest: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(
            rest,
            [ip("10.0.0.3"), ip("10.0.0.4"), ip("10.0.0.5"), ip("10.0.0.6"), first[1], first[0]]
        );
    }

    #[test]
    fn small_networks() {
        assert_eq!(Pool::new(cidr("10.0.0.4/31"), [], []).allocate(), Some(ip("10.0.0.4")));
        assert_eq!(Pool::new(cidr("10.0.0.4/32"), [ip("10.0.0.4")], []).allocate(), None);
    }

    /// Random operations against a map of holders.
    #[test]
    fn pool_agrees_with_a_model() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        println!("seed {seed}");
        let mut random = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        let net = cidr("10.0.0.0/27");
        let mut pool = Pool::new(net, [ip("10.0.0.1")], []);
        let mut held: BTreeMap<Ipv4Addr, u32> = BTreeMap::new();
        for step in 0..20_000 {
            match random(3) {
                0 => match pool.allocate() {
                    Some(address) => {
                        assert!(held.insert(address, step).is_none() && address != ip("10.0.0.1"))
                    }
                    None => assert_eq!(held.len(), 29),
                },
                1 => {
                    let address = net.nth(u32::try_from(random(32)).unwrap()).unwrap();
                    let free = !held.contains_key(&address) && ![0, 1, 31].contains(&address.octets()[3]);
                    assert_eq!(pool.claim(address), free);
                    if free {
                        held.insert(address, step);
                    }
                }
                _ => {
                    let address = net.nth(u32::try_from(random(32)).unwrap()).unwrap();
                    assert_eq!(pool.release(address), held.remove(&address).is_some());
                }
            }
            assert!(pool.used().eq(held.keys().copied()));
            if step % 1000 == 0 {
                // A restart rebuilds the pool from the records.
                pool = Pool::new(net, [ip("10.0.0.1")], held.keys().copied());
            }
        }
    }
}
