//! Pod addresses: pure choice from a block.
//!
//! No table is kept: what is taken is what the pods hold. The search starts at a place that depends on the pod, so
//! that an address just freed is not at once another pod's.

use std::net::{IpAddr, Ipv4Addr};

/// A block of IPv4 addresses that pods may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    first: u32,
    count: u32,
}

impl Block {
    /// The addresses of `10.244.0.0/24` that pods may have: not the network's, not the gateway's (the first), not
    /// the broadcast's. `None` if it is no such block or has no room.
    pub fn parse(cidr: &str) -> Option<Block> {
        let (network, prefix) = cidr.split_once('/')?;
        let network = u32::from(network.parse::<Ipv4Addr>().ok()?);
        let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 29)?;
        let size = 1_u64 << (32 - prefix);
        if u64::from(network) % size != 0 {
            return None;
        }
        let count = u32::try_from(size - 3).ok()?;
        Some(Block { first: network + 2, count })
    }

    /// Whether an address is one of them.
    pub fn contains(self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else { return false };
        u32::from(address).checked_sub(self.first).is_some_and(|n| n < self.count)
    }

    /// Some address that is not taken, the same for the same `start`.
    pub fn choose(self, start: u64, is_taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let start = u32::try_from(start % u64::from(self.count)).unwrap_or(0);
        let addresses = (start..self.count).chain(0..start);
        addresses.map(|n| IpAddr::V4(Ipv4Addr::from(self.first + n))).find(|address| !is_taken(*address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn blocks() {
        assert_eq!(Block::parse("10.0.0.0/24"), Some(Block { first: 0x0a00_0002, count: 253 }));
        for bad in ["10.0.0.1/24", "10.0.0.0/30", "10.0.0.0", "x/24", "fd00::/64", "10.0.0.0/33"] {
            assert_eq!(Block::parse(bad), None, "{bad}");
        }
        assert_eq!(Block::parse("0.0.0.0/0").map(|block| block.count), Some(u32::MAX - 2));
    }

    #[test]
    fn every_address_is_given_once_and_never_the_reserved() {
        let block = Block::parse("10.0.0.0/28").unwrap();
        let mut taken = BTreeSet::new();
        while let Some(address) = block.choose(taken.len() as u64 * 7, |address| taken.contains(&address)) {
            assert!(taken.insert(address));
        }
        assert_eq!(taken.len(), 13);
        assert!(taken.iter().all(|address| block.contains(*address)));
        for reserved in ["10.0.0.0", "10.0.0.1", "10.0.0.15"] {
            assert!(!taken.contains(&reserved.parse().unwrap()));
            assert!(!block.contains(reserved.parse().unwrap()));
        }
    }
}
