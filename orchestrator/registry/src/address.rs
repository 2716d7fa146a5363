//! A range of IPv4 addresses, and the choice of a virtual IP in it.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A network and the length of its prefix, as in `10.96.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: u32,
    prefix_len: u8,
}

impl Cidr {
    /// The network of `prefix_len` bits that `address` is in.
    ///
    /// # Panics
    /// If `prefix_len` is not 1 to 30.
    #[must_use]
    pub fn new(address: Ipv4Addr, prefix_len: u8) -> Self {
        assert!((1..=30).contains(&prefix_len), "prefix length {prefix_len}");
        Self { network: u32::from(address) & (u32::MAX << (32 - prefix_len)), prefix_len }
    }

    fn size(self) -> u32 {
        1 << (32 - self.prefix_len)
    }

    /// Whether `address` can be given to somebody: it is inside, and neither the network's own nor broadcast.
    #[must_use]
    pub fn has_host(self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(self.network);
        offset > 0 && offset < self.size() - 1
    }

    /// The host at `offset`.
    #[must_use]
    pub fn host(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network + offset)
    }

    /// A free host: the first from `start` on, leaving the low band for requests by hand; that band if all else is
    /// taken.
    ///
    /// Source: KEP-3070: the band is min(max(16, size/16), 256) hosts.
    pub(crate) fn choose(self, start: u32, is_free: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let hosts = self.size() - 1;
        let band = (self.size() / 16).clamp(16, 256).min(hosts);
        let upper = hosts - band;
        let dynamic = (0..upper).map(|step| band + (start % upper.max(1) + step) % upper);
        dynamic.chain(1..band).map(|offset| self.host(offset)).find(|address| is_free(*address))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.network), self.prefix_len)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, prefix_len)| {
            Some((address.parse().ok()?, prefix_len.parse().ok().filter(|it| (1..=30).contains(it))?))
        });
        let (address, prefix_len) = parsed.ok_or_else(|| format!("not an IPv4 network: {text:?}"))?;
        Ok(Self::new(address, prefix_len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_chosen_once_each_and_the_low_band_last() {
        let cidr: Cidr = "10.0.0.77/27".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.0.0.64/27");
        let mut taken = Vec::new();
        while let Some(address) = cidr.choose(7, |address| !taken.contains(&address)) {
            assert!(cidr.has_host(address), "{address}");
            taken.push(address);
        }
        assert_eq!(taken.len(), 30);
        assert_eq!(taken[0], Ipv4Addr::new(10, 0, 0, 64 + 16 + 7));
        assert!(taken[..15].iter().all(|address| address.octets()[3] >= 64 + 16));
        for bad in ["10.0.0.0", "10.0.0.0/31", "10.0.0.0/x", "::/16", "10.0.0.0/0"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        let tiny: Cidr = "10.0.0.0/30".parse().unwrap();
        assert_eq!(tiny.choose(9, |_| true), Some(Ipv4Addr::new(10, 0, 0, 1)));
    }
}
