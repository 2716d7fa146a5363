//! The zone, shared between those who change it and those who answer from it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use api::{Key, Object};

use crate::memory::{Memory, ServiceName};
use crate::zone::{Net, Zone};

/// The zone and what it was made from. Objects are read outside the zone's lock: answers wait for a map's insertion only.
#[derive(Debug)]
pub struct Names {
    memory: Mutex<Memory>,
    zone: RwLock<Zone>,
}

impl Names {
    /// A zone that knows nothing yet: it answers SERVFAIL until the first [`sync`](Self::sync).
    pub fn new(net: Net) -> Arc<Names> {
        Arc::new(Names { memory: Mutex::default(), zone: RwLock::new(Zone::new(net)) })
    }

    /// Knows exactly these objects from now on. Idempotent.
    pub fn sync<'a>(
        &self,
        services: impl IntoIterator<Item = &'a Object>,
        slices: impl IntoIterator<Item = &'a Object>,
    ) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *memory);
        let mut touched: BTreeSet<ServiceName> = old.names().cloned().collect();
        for object in services.into_iter().chain(slices) {
            touched.extend(memory.put(object));
        }
        self.tell(&memory, touched);
    }

    /// As [`sync`](Self::sync), told only what changed since the last call; costs the Services concerned.
    pub fn update<'a>(
        &self,
        changed: impl IntoIterator<Item = &'a Object>,
        gone: impl IntoIterator<Item = &'a Key>,
    ) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut touched = BTreeSet::new();
        changed.into_iter().for_each(|object| touched.extend(memory.put(object)));
        gone.into_iter().for_each(|key| touched.extend(memory.remove(key)));
        self.tell(&memory, touched);
    }

    /// The zone as it is now.
    pub fn zone(&self) -> RwLockReadGuard<'_, Zone> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, memory: &Memory, touched: BTreeSet<ServiceName>) {
        let news: Vec<_> =
            touched.into_iter().map(|name| (memory.service(&name).map(Arc::new), name)).collect();
        let mut zone = self.zone.write().unwrap_or_else(PoisonError::into_inner);
        for (service, name) in news {
            zone.set(&name, service);
        }
        zone.set_known();
    }
}
