//! Keeps the node's virtual IPs as the Services and EndpointSlices say.
//!
//! Level-triggered: whatever changed, the proxy is given everything there is and writes the difference. What comes
//! in while it writes is taken together in the next turn.

use api::{Key, Object};
use node::proxy::{Proxy, Synced, Warning};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::{Event, EventKind, Scope, Store, Watch};
use tracing::{info, warn};

/// Pause before the kernel is asked again after a refusal.
const RETRY: Duration = Duration::from_millis(500);

/// What the proxy did so far, for those who ask.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    /// Transactions that changed something.
    pub(super) transactions: u64,
    /// Elements written or removed by them.
    pub(super) elements: u64,
}

/// The proxy's state, shared with those who look at it.
pub(super) struct Shared {
    proxy: Mutex<(Proxy, Work)>,
}

impl Shared {
    pub(super) fn new(proxy: Proxy) -> Arc<Shared> {
        Arc::new(Shared { proxy: Mutex::new((proxy, Work::default())) })
    }

    /// What the kernel holds, and what it cost.
    pub(super) fn look(&self) -> netns::Result<(netns::service::State, Work)> {
        let mut held = self.proxy.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((held.0.dump()?, held.1))
    }

    fn sync(&self, objects: &Objects) -> netns::Result<Synced> {
        let mut held = self.proxy.lock().unwrap_or_else(PoisonError::into_inner);
        let synced = held.0.sync(objects.services.values(), objects.slices.values())?;
        if synced.outcome == netns::Outcome::Changed {
            held.1.transactions += 1;
            held.1.elements += synced.elements as u64;
        }
        Ok(synced)
    }
}

#[derive(Default)]
struct Objects {
    services: BTreeMap<Key, Object>,
    slices: BTreeMap<Key, Object>,
}

impl Objects {
    fn take_in(&mut self, event: &Event) {
        let of_kind = if event.record.key.resource.plural == "services" {
            &mut self.services
        } else {
            &mut self.slices
        };
        match event.kind {
            EventKind::Created | EventKind::Updated => {
                of_kind.insert(event.record.key.clone(), event.record.object());
            }
            EventKind::Deleted => {
                of_kind.remove(&event.record.key);
            }
        }
    }
}

/// Runs the proxy until the store closes.
///
/// # Cancellation
/// May stop anywhere; the kernel is read and corrected by the next run.
pub(super) async fn run<S: Store>(store: Arc<S>, shared: Arc<Shared>) {
    let mut told: Vec<Warning> = Vec::new();
    'list: loop {
        let since = store.revision();
        let (Ok(mut services), Ok(mut slices)) =
            (watch(&*store, "services", since), watch(&*store, "endpointslices", since))
        else {
            continue;
        };
        let mut objects =
            Objects { services: list(&*store, "services"), slices: list(&*store, "endpointslices") };
        loop {
            let pause = match shared.sync(&objects) {
                Ok(synced) => {
                    for step in synced.steps.iter().filter(|_| synced.outcome == netns::Outcome::Changed) {
                        tracing::debug!(effect = step.effect, micros = step.took.as_micros() as u64, "proxy");
                    }
                    for warning in synced.warnings.iter().filter(|warning| !told.contains(warning)) {
                        info!(%warning, "proxy");
                    }
                    told = synced.warnings;
                    None
                }
                Err(error) => {
                    warn!(%error, "program virtual IPs");
                    Some(RETRY)
                }
            };
            let event = {
                let next = async {
                    tokio::select! {
                        event = services.next() => event,
                        event = slices.next() => event,
                    }
                };
                match pause {
                    None => Some(next.await),
                    Some(pause) => tokio::time::timeout(pause, next).await.ok(),
                }
            };
            match event {
                // Time to try again.
                None => {}
                Some(Some(event)) => {
                    objects.take_in(&event);
                    for watch in [&mut services, &mut slices] {
                        while let Some(event) = watch.try_next() {
                            objects.take_in(&event);
                        }
                    }
                }
                Some(None)
                    if [&services, &slices].iter().any(|watch| watch.end() == Some(store::End::Closed)) =>
                {
                    return;
                }
                Some(None) => continue 'list,
            }
        }
    }
}

fn resource(plural: &str) -> &'static api::Resource {
    // Both stand in the table of resources; a wrong name here would be our mistake, seen by every test.
    #[allow(clippy::expect_used)]
    api::resource_by_any_name(plural).expect("a resource of the table")
}

fn watch<S: Store>(store: &S, plural: &str, since: u64) -> Result<Watch, store::Compacted> {
    store.watch(Scope { resource: Some(resource(plural)), namespace: None }, since)
}

fn list<S: Store>(store: &S, plural: &str) -> BTreeMap<Key, Object> {
    let (_, records) = store.list(resource(plural), None);
    records.into_iter().map(|record| (record.key.clone(), record.object())).collect()
}
