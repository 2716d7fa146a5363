//! A feed tells of objects of some kinds: all there are, then what changes. When history has gone on without it, it
//! tells all there are again.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Object, Resource};
use futures::future::{FutureExt, select_all};
use store::{End, EventKind, Scope, Store, Watch};

/// What a feed tells.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// Everything there is, of all kinds of the feed: what is not among it is gone.
    All(Vec<Object>),
    /// It is new or has changed.
    Changed(Object),
    /// It is gone; its last state.
    Gone(Object),
}

/// Told of objects of some kinds. Begins with [`Told::All`].
pub(crate) trait Feed: Send + 'static {
    /// The next word; `None` when there will be no other.
    ///
    /// # Cancellation
    /// Loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Told>> + Send;

    /// The next word, if it is there already.
    fn try_next(&mut self) -> Option<Told>;
}

/// Folds what a feed tells into what is there.
#[derive(Debug, Default)]
#[allow(dead_code, reason = "DNS and the routes to peers, in the next commits")]
pub(crate) struct View(pub(crate) BTreeMap<Key, Object>);

impl View {
    /// Takes in one word.
    #[allow(dead_code, reason = "as above")]
    pub(crate) fn take_in(&mut self, told: Told) {
        match told {
            Told::All(objects) => {
                self.0 = objects.into_iter().map(|object| (object.key(), object)).collect();
            }
            Told::Changed(object) => drop(self.0.insert(object.key(), object)),
            Told::Gone(object) => drop(self.0.remove(&object.key())),
        }
    }
}

/// A kind of the table of resources.
pub(crate) fn resource(plural: &str) -> &'static Resource {
    // A wrong name here would be our mistake, seen by every test.
    #[allow(clippy::expect_used)]
    api::resource_by_any_name(plural).expect("a resource of the table")
}

/// A feed from the store of this process.
pub(crate) struct StoreFeed<S> {
    store: Arc<S>,
    kinds: &'static [&'static str],
    watches: Vec<Watch>,
}

impl<S: Store> StoreFeed<S> {
    /// A feed of some kinds, by their plurals.
    pub(crate) fn new(store: Arc<S>, kinds: &'static [&'static str]) -> StoreFeed<S> {
        StoreFeed { store, kinds, watches: Vec::new() }
    }

    /// All there is, and watches from before it.
    fn begin(&mut self) -> Told {
        loop {
            let since = self.store.revision();
            let scope = |plural: &&str| Scope { resource: Some(resource(plural)), namespace: None };
            // The history reaches back to the present, but may move on between the two calls.
            let watches: Result<Vec<_>, _> =
                self.kinds.iter().map(|plural| self.store.watch(scope(plural), since)).collect();
            let Ok(watches) = watches else { continue };
            self.watches = watches;
            let records = self.kinds.iter().flat_map(|plural| self.store.list(resource(plural), None).1);
            return Told::All(records.map(|record| record.object()).collect());
        }
    }
}

fn told(event: &store::Event) -> Told {
    let object = event.record.object();
    match event.kind {
        EventKind::Created | EventKind::Updated => Told::Changed(object),
        EventKind::Deleted => Told::Gone(object),
    }
}

impl<S: Store> Feed for StoreFeed<S> {
    async fn next(&mut self) -> Option<Told> {
        if self.watches.is_empty() {
            return Some(self.begin());
        }
        let (event, at, _) = select_all(self.watches.iter_mut().map(|watch| watch.next().boxed())).await;
        match event {
            Some(event) => Some(told(&event)),
            None if self.watches[at].end() == Some(End::Closed) => None,
            None => Some(self.begin()),
        }
    }

    fn try_next(&mut self) -> Option<Told> {
        let event = self.watches.iter_mut().find_map(Watch::try_next)?;
        Some(told(&event))
    }
}
