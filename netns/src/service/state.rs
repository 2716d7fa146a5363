//! What a table of our layout holds, read from its elements and checked against them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Change, Endpoint, VirtualPort};
use crate::ipam::Cidr;
use crate::nft::ruleset::{self, HAIRPIN, SERVED, VIRTUAL};
use crate::nft::{Contents, Message};

/// What a table of our layout holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Endpoints by slot.
    pub ports: BTreeMap<VirtualPort, Vec<Endpoint>>,
    /// Virtual IPs, those without any endpoint too.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// How often each address is an endpoint's.
    pub(super) hairpins: BTreeMap<Ipv4Addr, usize>,
    /// Endpoint counts that have their set, chain and rule.
    pub(super) balances: BTreeSet<usize>,
    /// Slots that have their map and chain.
    pub(super) slots: usize,
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
        for endpoint in state.ports.values().flatten() {
            *state.hairpins.entry(endpoint.address).or_insert(0) += 1;
        }
        // The other direction: no element that the ports do not explain.
        if elements_of(&state) != contents.sets {
            return Err("elements do not fit together".into());
        }
        Ok(state)
    }

    /// Takes note of a change that was committed. Costs what differs.
    pub fn advance(&mut self, change: &Change) {
        for (port, endpoints) in &change.ports {
            let old = if endpoints.is_empty() {
                self.ports.remove(port)
            } else {
                self.ports.insert(*port, endpoints.clone())
            };
            for endpoint in endpoints {
                *self.hairpins.entry(endpoint.address).or_insert(0) += 1;
            }
            for endpoint in old.iter().flatten() {
                if let Some(count) = self.hairpins.get_mut(&endpoint.address) {
                    *count -= 1;
                    if *count == 0 {
                        self.hairpins.remove(&endpoint.address);
                    }
                }
            }
        }
        for (address, serves) in &change.addresses {
            if *serves {
                self.addresses.insert(*address);
            } else {
                self.addresses.remove(address);
            }
        }
        self.balances.extend(&change.balances);
        self.slots += change.slots;
    }
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
    for address in state.hairpins.keys() {
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
