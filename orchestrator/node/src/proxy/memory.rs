//! What the proxy has understood of all objects, kept so that a change among 1,000 costs the reading of one. Pure.
//!
//! A function of the objects alone: whatever the order in which they came, changed and went, the wish is the same, and
//! forgetting everything and reading it again changes nothing.
//!
//! ```text
//!  services ── ports ──► claims: virtual port → Services that claim it, the oldest first ──┐
//!  slices ── of_service: Service → its slices ─────────────────────────────────────────────┴─► wish
//! ```

use std::collections::{BTreeMap, BTreeSet};

use api::{Key, Object, Timestamp};
use netns::{Cidr, Endpoint, Services, VirtualPort};

use super::plan::Warning;
use super::view::{ServiceView, SliceView};

/// Namespace and name of a Service.
type Name = (String, String);

/// All Services and EndpointSlices, as the proxy sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    service_cidr: Cidr,
    services: BTreeMap<Name, Known<ServiceView>>,
    slices: BTreeMap<Key, Known<Option<SliceView>>>,
    /// Service → keys of its slices.
    of_service: BTreeMap<Name, BTreeSet<Key>>,
    claims: BTreeMap<VirtualPort, BTreeSet<Claim>>,
    /// Ports with more than one claim.
    disputed: BTreeSet<VirtualPort>,
    wish: Services,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known<V> {
    uid: String,
    revision: u64,
    view: V,
}

/// In the order of precedence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    created: Option<Timestamp>,
    service: Name,
    /// Place in the Service's list of ports.
    index: usize,
}

impl Memory {
    /// No objects.
    pub fn new(service_cidr: Cidr) -> Self {
        Self {
            service_cidr,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            of_service: BTreeMap::new(),
            claims: BTreeMap::new(),
            disputed: BTreeSet::new(),
            wish: Services::default(),
        }
    }

    /// Every virtual port, with its ready endpoints.
    pub fn wish(&self) -> &Services {
        &self.wish
    }

    /// What is passed over, ordered by object.
    pub fn warnings(&self) -> Vec<Warning> {
        let services = self.services.values().map(|known| (&known.view.key, &known.view.warnings));
        let slices =
            self.slices.iter().filter_map(|(key, known)| Some((key, &known.view.as_ref()?.warnings)));
        let own =
            services.chain(slices).flat_map(|(key, texts)| texts.iter().map(move |text| (key, text.clone())));
        let losers = self.disputed.iter().flat_map(|port| {
            let losers = self.claims.get(port).into_iter().flatten().skip(1);
            let text = format!("spec.ports: {port} belongs to another port or Service already");
            let keys = losers.filter_map(|claim| Some(&self.services.get(&claim.service)?.view.key));
            keys.map(move |key| (key, text.clone()))
        });
        let mut all: Vec<_> =
            own.chain(losers).map(|(key, text)| Warning { key: key.clone(), text }).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Knows exactly these objects from now on.
    pub fn replace<'a>(
        &mut self,
        services: impl IntoIterator<Item = &'a Object>,
        slices: impl IntoIterator<Item = &'a Object>,
    ) {
        let mut met = BTreeSet::new();
        for object in services.into_iter().chain(slices) {
            self.put(object);
            met.insert(object.key());
        }
        let services = self.services.values().map(|known| &known.view.key);
        let gone: Vec<Key> =
            services.chain(self.slices.keys()).filter(|key| !met.contains(key)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
    }

    /// Takes in a new or changed object; others than Services and EndpointSlices are none of its business.
    pub fn put(&mut self, object: &Object) {
        match object.kind() {
            "Service" => self.put_service(object),
            "EndpointSlice" => self.put_slice(object),
            _ => {}
        }
    }

    /// Forgets an object.
    pub fn remove(&mut self, key: &Key) {
        if let Some(known) = self.slices.remove(key) {
            self.unlist(key, known.view.as_ref());
        } else if key.resource.kind == "Service"
            && let Some(known) = self.services.remove(&name_of(key))
        {
            self.unclaim(&name_of(key), &known.view);
        }
    }

    fn put_service(&mut self, object: &Object) {
        let name = name_of(&object.key());
        if self.services.get(&name).is_some_and(|known| known.is(object)) {
            return;
        }
        let view = ServiceView::of(object, self.service_cidr);
        if let Some(old) = self.services.insert(name.clone(), Known::new(object, view.clone())) {
            self.unclaim(&name, &old.view);
        }
        for (index, (_, port)) in view.ports.iter().enumerate() {
            let claim = Claim { created: view.created, service: name.clone(), index };
            self.claims.entry(*port).or_default().insert(claim);
        }
        for (_, port) in &view.ports {
            self.settle(*port);
        }
    }

    fn unclaim(&mut self, name: &Name, view: &ServiceView) {
        for (_, port) in &view.ports {
            if let Some(claims) = self.claims.get_mut(port) {
                claims.retain(|claim| claim.service != *name);
            }
            self.settle(*port);
        }
    }

    fn put_slice(&mut self, object: &Object) {
        let key = object.key();
        if self.slices.get(&key).is_some_and(|known| known.is(object)) {
            return;
        }
        let view = SliceView::of(object, self.service_cidr);
        let service = view.as_ref().map(|view| view.service.clone());
        if let Some(old) = self.slices.insert(key.clone(), Known::new(object, view)) {
            self.unlist(&key, old.view.as_ref());
        }
        if let Some(service) = service {
            self.of_service.entry(service.clone()).or_default().insert(key);
            self.settle_service(&service);
        }
    }

    fn unlist(&mut self, key: &Key, view: Option<&SliceView>) {
        let Some(view) = view else { return };
        if let Some(slices) = self.of_service.get_mut(&view.service) {
            slices.remove(key);
            if slices.is_empty() {
                self.of_service.remove(&view.service);
            }
        }
        self.settle_service(&view.service);
    }

    fn settle_service(&mut self, name: &Name) {
        let Some(known) = self.services.get(name) else { return };
        let ports: Vec<VirtualPort> = known.view.ports.iter().map(|(_, port)| *port).collect();
        for port in ports {
            self.settle(port);
        }
    }

    /// Gives a port to whoever has the first claim, with the endpoints of now.
    fn settle(&mut self, port: VirtualPort) {
        let claims = self.claims.get(&port);
        if claims.is_some_and(|claims| claims.len() > 1) {
            self.disputed.insert(port);
        } else {
            self.disputed.remove(&port);
        }
        match claims.and_then(BTreeSet::first) {
            Some(claim) => {
                let endpoints = self.endpoints(claim, port);
                self.wish.0.insert(port, endpoints);
            }
            None => {
                self.claims.remove(&port);
                self.wish.0.remove(&port);
            }
        }
    }

    fn endpoints(&self, claim: &Claim, port: VirtualPort) -> BTreeSet<Endpoint> {
        let known = self.services.get(&claim.service);
        let name = known.and_then(|known| known.view.ports.get(claim.index)).map(|(name, _)| name);
        let slices = self.of_service.get(&claim.service);
        let views = slices.into_iter().flatten().filter_map(|slice| self.slices.get(slice)?.view.as_ref());
        views
            .flat_map(|view| {
                let same = |there: &String, protocol| Some(there) == name && protocol == port.protocol;
                let numbers = view.ports.iter().filter(move |(there, protocol, _)| same(there, *protocol));
                numbers.flat_map(|&(_, _, port)| {
                    view.addresses.iter().map(move |&address| Endpoint { address, port })
                })
            })
            .collect()
    }
}

fn name_of(key: &Key) -> Name {
    (key.namespace.clone(), key.name.clone())
}

impl<V> Known<V> {
    fn new(object: &Object, view: V) -> Self {
        Self { uid: object.uid().to_owned(), revision: object.resource_version().unwrap_or(0), view }
    }

    /// Whether this is the very state that was read. One that was never stored has no revision to tell it by.
    fn is(&self, object: &Object) -> bool {
        self.revision > 0 && object.resource_version() == Some(self.revision) && object.uid() == self.uid
    }
}
