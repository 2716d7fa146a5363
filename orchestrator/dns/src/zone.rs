//! Names to records. Pure: (zone, name, type) → answer.
//!
//! ```text
//!  cluster.local                                  SOA, NS
//!  ├─ dns-version                                 TXT
//!  ├─ ns.dns                                      A: this server
//!  ├─ <a>-<b>-<c>-<d>.<ns>.pod                    A: a.b.c.d
//!  └─ <ns>.svc
//!     └─ <service>                                A: virtual address, or endpoints; CNAME; SRV: every port
//!        ├─ <hostname or a-b-c-d>                 A: that endpoint; SRV: every port of it
//!        └─ _<port>._<proto>                      SRV
//!  <reverse of our CIDRs>.in-addr.arpa            PTR: Services, endpoints with a hostname
//! ```
//! Records are made when asked for; the zone holds Services. A name that exists, or has names below it, but not the type
//! asked for is NODATA; any other is NXDOMAIN. As the specification has it, a headless Service without a ready endpoint is
//! NXDOMAIN.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use netns::Cidr;

use crate::memory::{Endpoint, Port, Service, ServiceName, Target};

/// Seconds that others may keep an answer, as Kubernetes' own servers have it: endpoints change.
pub const TTL: u32 = 5;

/// The version of the specification that the records follow.
const VERSION: &str = "1.1.0";

/// Times of the SOA record; nobody transfers this zone.
const REFRESH: i32 = 7200;
const RETRY: i32 = 1800;
const EXPIRE: i32 = 86400;

/// What the zone is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// `cluster.local`, in lower case.
    pub domain: String,
    /// Blocks of addresses that only this zone has names for.
    pub reverse: Vec<Cidr>,
    /// Address of the server itself, as pods have it.
    pub server: Ipv4Addr,
}

/// An answer. Records carry the name as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No name of ours.
    Elsewhere,
    /// Not known yet.
    NotYet,
    /// The name exists. No answers means NODATA.
    Records {
        /// What was asked for.
        answers: Vec<Record>,
        /// Addresses of the names in the answers.
        additionals: Vec<Record>,
        /// Of the zone the name is in.
        soa: Box<Record>,
    },
    /// The name stands for another one; the record says which. To be resolved there.
    Alias(Box<Record>),
    /// NXDOMAIN
    Missing {
        /// Of the zone the name would be in.
        soa: Box<Record>,
    },
}

/// All names.
#[derive(Clone, Debug)]
pub struct Zone {
    net: Net,
    /// The labels of the domain, as they are written.
    domain: Vec<String>,
    known: bool,
    serial: u32,
    /// Namespace → Service.
    services: BTreeMap<String, BTreeMap<String, Arc<Service>>>,
    /// Address → Services that have a name for it.
    pointers: BTreeMap<Ipv4Addr, BTreeSet<ServiceName>>,
}

impl Zone {
    /// Without any Service.
    pub fn new(net: Net) -> Zone {
        let domain = net.domain.split('.').filter(|label| !label.is_empty()).map(str::to_owned).collect();
        Zone { net, domain, known: false, serial: 1, services: BTreeMap::new(), pointers: BTreeMap::new() }
    }

    /// From now on what is not there does not exist.
    pub fn set_known(&mut self) {
        self.known = true;
    }

    /// What there is to tell of a Service from now on; `None`: nothing. Costs its endpoints.
    pub fn set(&mut self, name: &ServiceName, service: Option<Arc<Service>>) {
        let old = self.services.get(&name.0).and_then(|all| all.get(&name.1)).map(Arc::clone);
        if old == service {
            return;
        }
        self.serial = self.serial.wrapping_add(1);
        for address in old.iter().flat_map(|old| pointing(old)) {
            if let Some(names) = self.pointers.get_mut(&address) {
                names.remove(name);
                if names.is_empty() {
                    self.pointers.remove(&address);
                }
            }
        }
        for address in service.iter().flat_map(|service| pointing(service)) {
            self.pointers.entry(address).or_default().insert(name.clone());
        }
        match service {
            Some(service) => {
                self.services.entry(name.0.clone()).or_default().insert(name.1.clone(), service);
            }
            None => {
                if let Some(all) = self.services.get_mut(&name.0) {
                    all.remove(&name.1);
                    if all.is_empty() {
                        self.services.remove(&name.0);
                    }
                }
            }
        }
    }

    /// How many Services it tells of.
    pub fn len(&self) -> usize {
        self.services.values().map(BTreeMap::len).sum()
    }

    /// Whether it tells of none.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The records of `asked` for `name`. `turn` says which of several answers comes first, so that clients which take the
    /// first one spread.
    pub fn lookup(&self, name: &Name, asked: RecordType, turn: usize) -> Answer {
        let lower = name.to_lowercase();
        let labels: Vec<&str> =
            lower.iter().map(|label| std::str::from_utf8(label).unwrap_or("\u{fffd}")).collect();
        let below = |suffix: &[String]| {
            let at = labels.len().checked_sub(suffix.len())?;
            labels[at..].iter().eq(suffix).then_some(&labels[..at])
        };
        let (place, apex) = if let Some(labels) = below(&self.domain) {
            (self.forward(labels), self.name(&[]))
        } else if let [octets @ .., "in-addr", "arpa"] = labels.as_slice() {
            match self.reverse(octets) {
                Some((place, apex)) => (place, apex),
                None => return Answer::Elsewhere,
            }
        } else {
            return Answer::Elsewhere;
        };
        if !self.known {
            return Answer::NotYet;
        }
        let soa = self.soa(apex);
        let Some(mut place) = place else { return Answer::Missing { soa: Box::new(soa) } };
        if place.apex {
            place.records.push(soa.data.clone());
            place.records.push(RData::NS(NS(self.name(&["ns", "dns"]))));
        }
        let record = |data: RData| Record::from_rdata(name.clone(), TTL, data);
        if let Some(RData::CNAME(alias)) = place.records.first()
            && asked != RecordType::CNAME
        {
            return Answer::Alias(Box::new(record(RData::CNAME(alias.clone()))));
        }
        let wanted = |data: &RData| {
            asked == RecordType::ANY && data.record_type() != RecordType::SRV || data.record_type() == asked
        };
        let mut answers: Vec<Record> = place.records.into_iter().filter(wanted).map(record).collect();
        if !answers.is_empty() {
            let first = turn % answers.len();
            answers.rotate_left(first);
        }
        let mut additionals = Vec::new();
        if asked == RecordType::SRV && !answers.is_empty() {
            let addresses = place.targets.into_iter();
            additionals
                .extend(addresses.map(|(name, address)| Record::from_rdata(name, TTL, RData::A(A(address)))));
        }
        Answer::Records { answers, additionals, soa: Box::new(soa) }
    }

    fn soa(&self, apex: Name) -> Record {
        let soa = SOA::new(
            self.name(&["ns", "dns"]),
            self.name(&["hostmaster"]),
            self.serial,
            REFRESH,
            RETRY,
            EXPIRE,
            TTL,
        );
        Record::from_rdata(apex, TTL, RData::SOA(soa))
    }

    /// A name below the domain. Labels come from objects with valid names, or from a name that was asked for.
    fn name(&self, labels: &[&str]) -> Name {
        let mut all = labels.iter().copied().chain(self.domain.iter().map(String::as_str));
        all.try_fold(Name::root(), |name, label| name.append_label(label.as_bytes())).unwrap_or_default()
    }

    /// What is at a name below the domain.
    fn forward(&self, labels: &[&str]) -> Option<Place> {
        match labels {
            [] => Some(Place { apex: true, ..Place::default() }),
            ["dns-version"] => Some(Place::of(RData::TXT(TXT::new(vec![VERSION.into()])))),
            ["ns", "dns"] => Some(Place::of(RData::A(A(self.net.server)))),
            ["dns"] | ["svc"] | ["pod"] | [_, "pod"] => Some(Place::default()),
            [dashes, _, "pod"] => {
                let address: Ipv4Addr = dashes.replace('-', ".").parse().ok()?;
                Some(Place::of(RData::A(A(address))))
            }
            [namespace, "svc"] => self.services.contains_key(*namespace).then(Place::default),
            [rest @ .., service, namespace, "svc"] => {
                let at = [*service, *namespace, "svc"];
                self.below(rest, &at, self.services.get(*namespace)?.get(*service)?)
            }
            _ => None,
        }
    }

    /// What is at a name at or below a Service's.
    fn below(&self, labels: &[&str], at: &[&str; 3], service: &Service) -> Option<Place> {
        let exists = |found: bool| found.then(Place::default);
        match (labels, &service.target) {
            ([], Target::External(name)) => Some(Place::of(RData::CNAME(CNAME(name.clone())))),
            (_, Target::External(_)) => None,
            ([], _) => self.service(at, service, |_| true),
            ([proto], _) if proto.starts_with('_') => {
                exists(named_ports(service).any(|port| is(proto, &port.protocol)))
            }
            ([port, proto], _) => {
                let mut place = self.service(at, service, |known| {
                    !known.name.is_empty() && is(port, &known.name) && is(proto, &known.protocol)
                })?;
                place.records.retain(|data| data.record_type() == RecordType::SRV);
                (!place.records.is_empty()).then_some(place)
            }
            ([label], _) => {
                let endpoints = service.endpoints.iter().filter(|endpoint| endpoint.label == *label);
                let place = self.endpoints(at, endpoints, |_| true);
                (!place.records.is_empty()).then_some(place)
            }
            _ => None,
        }
    }

    /// Addresses of a Service, and its ports as far as `wanted`.
    fn service(&self, at: &[&str; 3], service: &Service, wanted: impl Fn(&Port) -> bool) -> Option<Place> {
        let Target::Address(address) = service.target else {
            let place = self.endpoints(at, service.endpoints.iter(), wanted);
            return (!place.records.is_empty()).then_some(place);
        };
        let mut place = Place::of(RData::A(A(address)));
        let name = self.name(at);
        let ports = service.ports.iter().filter(|port| wanted(port));
        place.records.extend(ports.map(|port| srv(port, &name)));
        place.targets.push((name, address));
        Some(place)
    }

    fn endpoints<'a>(
        &self,
        at: &[&str; 3],
        endpoints: impl Iterator<Item = &'a Endpoint>,
        wanted: impl Fn(&Port) -> bool,
    ) -> Place {
        let mut place = Place::default();
        let mut met = BTreeSet::new();
        for endpoint in endpoints {
            // An endpoint with several sets of ports stands in several slices.
            if met.insert(endpoint.address) {
                place.records.push(RData::A(A(endpoint.address)));
            }
            let name = self.name(&[&endpoint.label, at[0], at[1], at[2]]);
            let before = place.records.len();
            place
                .records
                .extend(endpoint.ports.iter().filter(|port| wanted(port)).map(|port| srv(port, &name)));
            let target = (name, endpoint.address);
            if place.records.len() > before && !place.targets.contains(&target) {
                place.targets.push(target);
            }
        }
        place
    }

    /// What is at a name below `in-addr.arpa`, and the apex of its zone; `None` if it is not ours.
    fn reverse(&self, labels: &[&str]) -> Option<(Option<Place>, Name)> {
        // From the last label: the first octet.
        let octets: Vec<u8> = labels.iter().rev().map_while(|label| octet(label)).take(4).collect();
        let mut bytes = [0; 4];
        bytes[..octets.len()].copy_from_slice(&octets);
        let first = Ipv4Addr::from(bytes);
        let length = octets.len();
        let ours = |cidr: &&Cidr| usize::from(cidr.prefix()) <= length * 8 && cidr.contains(first);
        // A node may have addresses outside of the cluster's own block.
        let pointer = length == 4 && self.pointers.contains_key(&first);
        let single = pointer.then(|| Cidr::single(first));
        let cidr = self.net.reverse.iter().find(ours).copied().or(single)?;
        let depth = usize::from(cidr.prefix()).div_ceil(8);
        let apex = octets[..depth].iter().rev().map(u8::to_string);
        let apex = apex
            .chain(["in-addr".to_owned(), "arpa".to_owned()])
            .try_fold(Name::root(), |name, label| name.append_label(label.as_bytes()));
        let place = if labels.len() > length {
            None
        } else if length == 4 {
            let mut place = Place { apex: depth == 4, ..Place::default() };
            let names = self.pointers.get(&first).into_iter().flatten();
            place
                .records
                .extend(names.flat_map(|name| self.names_of(name, first)).map(|n| RData::PTR(PTR(n))));
            (place.apex || !place.records.is_empty()).then_some(place)
        } else {
            bytes[length..].fill(255);
            let any = self.pointers.range(first..=Ipv4Addr::from(bytes)).next().is_some();
            let apex = length == depth;
            (apex || any).then_some(Place { apex, ..Place::default() })
        };
        Some((place, apex.unwrap_or_default()))
    }

    /// The names that a Service has for an address.
    fn names_of(&self, (namespace, name): &ServiceName, address: Ipv4Addr) -> Vec<Name> {
        let Some(service) = self.services.get(namespace).and_then(|all| all.get(name)) else {
            return Vec::new();
        };
        let at = [name.as_str(), namespace.as_str(), "svc"];
        if service.target == Target::Address(address) {
            return vec![self.name(&at)];
        }
        let endpoints = service.endpoints.iter().filter(|it| it.named && it.address == address);
        let labels: BTreeSet<&str> = endpoints.map(|endpoint| endpoint.label.as_str()).collect();
        labels.into_iter().map(|label| self.name(&[label, at[0], at[1], at[2]])).collect()
    }
}

/// What is at a name.
#[derive(Default)]
struct Place {
    /// Of every type.
    records: Vec<RData>,
    /// Addresses of the names in SRV records.
    targets: Vec<(Name, Ipv4Addr)>,
    /// Whether it is where a zone begins.
    apex: bool,
}

impl Place {
    fn of(data: RData) -> Place {
        Place { records: vec![data], ..Place::default() }
    }
}

/// Addresses that a Service has a name for.
fn pointing(service: &Service) -> impl Iterator<Item = Ipv4Addr> {
    let own = match service.target {
        Target::Address(address) => Some(address),
        Target::Headless | Target::External(_) => None,
    };
    own.into_iter().chain(service.endpoints.iter().filter(|it| it.named).map(|endpoint| endpoint.address))
}

/// The named ports that have SRV records.
fn named_ports(service: &Service) -> Box<dyn Iterator<Item = &Port> + '_> {
    let ports: Box<dyn Iterator<Item = &Port> + '_> = match service.target {
        Target::Address(_) => Box::new(service.ports.iter()),
        _ => Box::new(service.endpoints.iter().flat_map(|endpoint| endpoint.ports.iter())),
    };
    Box::new(ports.filter(|port| !port.name.is_empty()))
}

/// All alike: whoever asks spreads by himself.
fn srv(port: &Port, target: &Name) -> RData {
    RData::SRV(SRV::new(0, 1, port.number, target.clone()))
}

/// Whether a label is `_` and a name.
fn is(label: &str, name: &str) -> bool {
    label.strip_prefix('_') == Some(name)
}

/// `7`, but not `007` or `+7`.
fn octet(label: &str) -> Option<u8> {
    let value: u8 = label.parse().ok()?;
    (value.to_string() == label).then_some(value)
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
