//! What turns a state into a wish, as messages. Pure; touches only what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{ENDPOINTS_MAX, Endpoint, Services, State, VirtualPort};
use crate::ipam::Cidr;
use crate::nft::ruleset::{self, HAIRPIN, SERVED, VIRTUAL};
use crate::nft::{Element, Message};

/// What commits as one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// In order; empty when nothing differs.
    pub messages: Vec<Message>,
    /// Ports whose slots change, with the new ones; none when the port serves no longer.
    pub ports: Vec<(VirtualPort, Vec<Endpoint>)>,
    /// Virtual IPs that come (`true`) or go.
    pub addresses: Vec<(Ipv4Addr, bool)>,
    /// (virtual port, endpoint) pairs that serve no longer.
    pub removed: Vec<(VirtualPort, Endpoint)>,
    /// Endpoint counts that get their set, chain and rule.
    pub(super) balances: BTreeSet<usize>,
    /// Slots added.
    pub(super) slots: usize,
}

/// What turns `state` into `wish`. An endpoint that stays keeps its slot where possible.
pub fn diff(state: &State, wish: &Services) -> Change {
    let mut change = Change::default();
    let (mut gone, mut fresh) = (Elements::default(), Elements::default());
    let mut hairpins: BTreeMap<Ipv4Addr, isize> = BTreeMap::new();
    merge(&state.ports, &wish.0, |port, old, endpoints| {
        let (old, none) = (old.map_or(&[][..], Vec::as_slice), BTreeSet::new());
        let endpoints = endpoints.unwrap_or(&none);
        if old.len() == endpoints.len() && old.iter().all(|endpoint| endpoints.contains(endpoint)) {
            return;
        }
        let new = assign(old, endpoints);
        if new == old {
            return;
        }
        replace(port, old, &new, &mut gone, &mut fresh);
        for (slots, sign) in [(old, -1), (new.as_slice(), 1)] {
            for endpoint in slots {
                *hairpins.entry(endpoint.address).or_insert(0) += sign;
            }
        }
        change
            .removed
            .extend(old.iter().filter(|endpoint| !new.contains(endpoint)).map(|&endpoint| (port, endpoint)));
        change.ports.push((port, new));
    });

    for (_, new) in change.ports.iter().filter(|(_, new)| !new.is_empty()) {
        while state.slots + change.slots < new.len() {
            change.messages.extend(ruleset::add_slot(state.slots + change.slots));
            change.slots += 1;
        }
        if !state.balances.contains(&new.len()) && change.balances.insert(new.len()) {
            change.messages.extend(ruleset::add_balance(new.len()));
        }
    }
    change.addresses = addresses(&state.addresses, wish);
    for (address, comes) in &change.addresses {
        let elements = if *comes { &mut fresh } else { &mut gone };
        elements.put(VIRTUAL.into(), address.octets().to_vec(), None);
    }
    for (address, sum) in hairpins {
        let before = state.hairpins.get(&address).copied().unwrap_or(0);
        let after = before.saturating_add_signed(sum);
        let key = || [address.octets(), address.octets()].concat();
        match (before, after) {
            (0, 1..) => fresh.put(HAIRPIN.into(), key(), None),
            (1.., 0) => gone.put(HAIRPIN.into(), key(), None),
            _ => {}
        }
    }

    // Deletions first: a key that stays with another value is deleted and added.
    change.messages.extend(gone.0.into_iter().map(|(set, elements)| Message::DeleteElements {
        set,
        keys: elements.into_iter().map(|(key, _)| key).collect(),
    }));
    change.messages.extend(fresh.0.into_iter().map(|(set, elements)| Message::AddElements { set, elements }));
    change
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

/// Virtual IPs that come or go.
fn addresses(old: &BTreeSet<Ipv4Addr>, wish: &Services) -> Vec<(Ipv4Addr, bool)> {
    let mut changes = Vec::new();
    let mut old = old.iter().copied().peekable();
    let mut last = None;
    // Ports are ordered by address.
    for address in wish.0.keys().map(|port| port.address) {
        if last.replace(address) == Some(address) {
            continue;
        }
        while let Some(gone) = old.next_if(|&there| there < address) {
            changes.push((gone, false));
        }
        if old.next_if_eq(&address).is_none() {
            changes.push((address, true));
        }
    }
    changes.extend(old.map(|gone| (gone, false)));
    changes
}

/// Walks two maps side by side, in the order of keys.
fn merge<K: Copy + Ord, A, B>(
    left: &BTreeMap<K, A>,
    right: &BTreeMap<K, B>,
    mut each: impl FnMut(K, Option<&A>, Option<&B>),
) {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    loop {
        let key = match (left.peek(), right.peek()) {
            (None, None) => return,
            (Some((key, _)), None) | (None, Some((key, _))) => **key,
            (Some((a, _)), Some((b, _))) => **a.min(b),
        };
        let a = left.next_if(|(there, _)| **there == key).map(|(_, value)| value);
        let b = right.next_if(|(there, _)| **there == key).map(|(_, value)| value);
        each(key, a, b);
    }
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

/// Elements by set.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(index: u32) -> Endpoint {
        Endpoint { address: Ipv4Addr::from_bits(0x0a58_0000 + index), port: 8080 }
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
}
