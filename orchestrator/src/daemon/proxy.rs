//! Keeps the node's virtual IPs as the Services and EndpointSlices say.
//!
//! Level-triggered: the proxy is given everything there is, then what changed, and writes the difference between what
//! shall be and what the kernel holds. What comes in while it writes is taken together in the next turn.

use api::{Key, Object};
use node::proxy::{Proxy, Synced, Warning};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::{End, Event, EventKind, Scope, Store, Watch};
use tracing::{info, warn};

const SERVICES: &str = "services";
const SLICES: &str = "endpointslices";

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

    fn sync(&self, news: &News) -> netns::Result<Synced> {
        let mut held = self.proxy.lock().unwrap_or_else(PoisonError::into_inner);
        let synced = match news {
            News::All(objects) => {
                let of = |plural: &'static str| {
                    objects.iter().filter(move |object| object.key().resource.plural == plural)
                };
                held.0.sync(of("services"), of("endpointslices"))?
            }
            News::Some { changed, gone } => held.0.update(changed.values(), gone)?,
        };
        if synced.outcome == netns::Outcome::Changed {
            held.1.transactions += 1;
            held.1.elements += synced.elements as u64;
        }
        Ok(synced)
    }
}

/// What the proxy has not been told yet.
enum News {
    /// Everything there is.
    All(Vec<Object>),
    /// What changed since.
    Some { changed: BTreeMap<Key, Object>, gone: BTreeSet<Key> },
}

impl News {
    fn nothing() -> News {
        News::Some { changed: BTreeMap::new(), gone: BTreeSet::new() }
    }

    /// Only the last word on an object counts.
    fn take_in(&mut self, event: &Event) {
        let key = &event.record.key;
        match (self, event.kind) {
            (News::All(objects), kind) => {
                objects.retain(|object| object.key() != *key);
                objects.extend((kind != EventKind::Deleted).then(|| event.record.object()));
            }
            (News::Some { changed, gone }, EventKind::Deleted) => {
                changed.remove(key);
                gone.insert(key.clone());
            }
            (News::Some { changed, gone }, EventKind::Created | EventKind::Updated) => {
                gone.remove(key);
                changed.insert(key.clone(), event.record.object());
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
            (watch(&*store, SERVICES, since), watch(&*store, SLICES, since))
        else {
            continue;
        };
        let mut news =
            News::All([SERVICES, SLICES].into_iter().flat_map(|plural| list(&*store, plural)).collect());
        loop {
            let pause = match shared.sync(&news) {
                Ok(synced) => {
                    news = News::nothing();
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
            let next = async {
                tokio::select! {
                    event = services.next() => event,
                    event = slices.next() => event,
                }
            };
            let event = match pause {
                None => Some(next.await),
                Some(pause) => tokio::time::timeout(pause, next).await.ok(),
            };
            match event {
                // Time to try again.
                None => {}
                Some(Some(event)) => {
                    news.take_in(&event);
                    for watch in [&mut services, &mut slices] {
                        while let Some(event) = watch.try_next() {
                            news.take_in(&event);
                        }
                    }
                }
                Some(None) if [&services, &slices].iter().any(|watch| watch.end() == Some(End::Closed)) => {
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

fn list<S: Store>(store: &S, plural: &str) -> Vec<Object> {
    let (_, records) = store.list(resource(plural), None);
    records.iter().map(store::Record::object).collect()
}
