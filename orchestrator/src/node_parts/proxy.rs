//! Keeps the node's virtual IPs as the Services and EndpointSlices say.
//!
//! Level-triggered: the proxy is given everything there is, then what changed, and writes the difference between what
//! shall be and what the kernel holds. What comes in while it writes is taken together in the next turn.

use super::feed::{Feed, Told};
use api::{Key, Object};
use node::proxy::{Proxy, Synced, Warning};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::{info, warn};

/// The kinds that [`run`] wants.
pub(crate) const KINDS: &[&str] = &["services", "endpointslices"];

/// Pause before the kernel is asked again after a refusal.
const RETRY: Duration = Duration::from_millis(500);

/// What the proxy did so far, for those who ask.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    /// Transactions that changed something.
    pub(crate) transactions: u64,
    /// Elements written or removed by them.
    pub(crate) elements: u64,
}

/// The proxy's state, shared with those who look at it.
pub(crate) struct Shared {
    proxy: Mutex<(Proxy, Work)>,
}

impl Shared {
    pub(crate) fn new(proxy: Proxy) -> Arc<Shared> {
        Arc::new(Shared { proxy: Mutex::new((proxy, Work::default())) })
    }

    /// What the kernel holds, and what it cost.
    pub(crate) fn look(&self) -> netns::Result<(netns::service::State, Work)> {
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
    fn take_in(&mut self, told: Told) {
        match (&mut *self, told) {
            (_, Told::All(objects)) => *self = News::All(objects),
            (News::All(objects), Told::Changed(object)) => {
                objects.retain(|known| known.key() != object.key());
                objects.push(object);
            }
            (News::All(objects), Told::Gone(object)) => objects.retain(|known| known.key() != object.key()),
            (News::Some { changed, gone }, Told::Changed(object)) => {
                gone.remove(&object.key());
                changed.insert(object.key(), object);
            }
            (News::Some { changed, gone }, Told::Gone(object)) => {
                changed.remove(&object.key());
                gone.insert(object.key());
            }
        }
    }
}

/// Runs the proxy until the feed ends. Before the first list the kernel keeps what it has.
///
/// # Cancellation
/// May stop anywhere; the kernel is read and corrected by the next run.
pub(crate) async fn run(mut feed: impl Feed, shared: Arc<Shared>) {
    let mut warned: Vec<Warning> = Vec::new();
    let mut news = News::nothing();
    let mut is_refused = false;
    loop {
        let told = match is_refused {
            false => feed.next().await.map(Some),
            true => match tokio::time::timeout(RETRY, feed.next()).await {
                Ok(told) => told.map(Some),
                // Time to try again.
                Err(_) => Some(None),
            },
        };
        let Some(told) = told else { return };
        let told = told.into_iter().chain(std::iter::from_fn(|| feed.try_next()));
        told.for_each(|told| news.take_in(told));
        is_refused = match shared.sync(&news) {
            Ok(synced) => {
                news = News::nothing();
                for step in synced.steps.iter().filter(|_| synced.outcome == netns::Outcome::Changed) {
                    tracing::debug!(effect = step.effect, micros = step.took.as_micros() as u64, "proxy");
                }
                for warning in synced.warnings.iter().filter(|warning| !warned.contains(warning)) {
                    info!(%warning, "proxy");
                }
                warned = synced.warnings;
                false
            }
            Err(error) => {
                warn!(%error, "program virtual IPs");
                true
            }
        };
    }
}
