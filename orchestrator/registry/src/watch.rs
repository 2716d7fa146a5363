//! watch: the store's events as the API's, through selectors.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use api::{Error, Resource};
use store::{End, Event, EventKind, Record, Scope, Store};

use crate::read::Filter;
use crate::{ListOptions, Registry, WatchOptions, expired};

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// It is new, or new to the selectors.
    Added(Record),
    /// It has changed.
    Modified(Record),
    /// It is gone, or gone from the selectors. Its last matching state, under the revision of the change.
    Deleted(Record),
    /// Everything up to this revision has been told.
    Bookmark {
        /// A watch from here continues this one.
        revision: u64,
        /// Whether it ends the objects that were there at the start.
        is_initial_end: bool,
    },
}

/// A watch: [`Watch::next`] until it ends.
#[derive(Debug)]
pub struct Watch {
    first: VecDeque<WatchEvent>,
    filter: Filter,
    events: store::Watch,
    has_failed: bool,
}

impl<S: Store> Registry<S> {
    /// Watches a collection; all namespaces with `None`.
    ///
    /// # Errors
    /// `BadRequest` for a field that cannot be selected by; `Gone` if the revision is too old, or not reached yet.
    pub fn watch(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        options: &WatchOptions,
    ) -> Result<Watch, Error> {
        let WatchOptions { labels, fields, since, mark_initial_end } = options.clone();
        fields.check(resource.kind)?;
        let since = since.filter(|since| *since > 0);
        let mut first = VecDeque::new();
        let since = match since {
            Some(since) => since,
            None => {
                let all =
                    ListOptions { labels: labels.clone(), fields: fields.clone(), ..ListOptions::default() };
                let list = self.list(resource, namespace, &all)?;
                first.extend(list.items.into_iter().map(WatchEvent::Added));
                list.revision
            }
        };
        if mark_initial_end {
            first.push_back(WatchEvent::Bookmark { revision: since, is_initial_end: true });
        }
        let scope = Scope { resource: Some(resource.stored()), namespace: namespace.map(str::to_owned) };
        let events = self.store.watch(scope, since).map_err(expired)?;
        Ok(Watch { first, filter: Filter { labels, fields }, events, has_failed: false })
    }
}

impl Watch {
    /// The next event, waiting for it. `None` if the store has closed; after an error only `None`.
    ///
    /// # Errors
    /// `Gone` if the watch was too slow: list again.
    ///
    /// # Cancellation
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, Error>> {
        if let Some(event) = self.first.pop_front() {
            return Some(Ok(event));
        }
        while let Some(event) = self.events.next().await {
            if let Some(event) = through(&self.filter, event) {
                return Some(Ok(event));
            }
        }
        self.failure()
    }

    /// The next event if it is there already; `None` means not yet, or ended.
    pub fn try_next(&mut self) -> Option<Result<WatchEvent, Error>> {
        if let Some(event) = self.first.pop_front() {
            return Some(Ok(event));
        }
        while let Some(event) = self.events.try_next() {
            if let Some(event) = through(&self.filter, event) {
                return Some(Ok(event));
            }
        }
        self.failure()
    }

    fn failure(&mut self) -> Option<Result<WatchEvent, Error>> {
        match self.events.end() {
            Some(End::Lagged(compacted)) if !self.has_failed => {
                self.has_failed = true;
                Some(Err(expired(compacted)))
            }
            _ => None,
        }
    }

    /// A bookmark of how far this watch has told everything. Not before the first objects have been taken.
    #[must_use]
    pub fn bookmark(&self) -> Option<WatchEvent> {
        let revision = self.events.revision();
        self.first.is_empty().then_some(WatchEvent::Bookmark { revision, is_initial_end: false })
    }
}

/// What an event of the store is to somebody who sees only what the filter lets through.
fn through(filter: &Filter, event: Event) -> Option<WatchEvent> {
    let Event { revision, kind, record, previous } = event;
    let was = previous.filter(|previous| filter.matches(previous));
    let is = Some(record).filter(|record| kind != EventKind::Deleted && filter.matches(record));
    match (was, is) {
        (None, None) => None,
        (None, Some(record)) => Some(WatchEvent::Added(record)),
        (Some(_), Some(record)) => Some(WatchEvent::Modified(record)),
        (Some(last), None) => Some(WatchEvent::Deleted(Record { revision, ..last })),
    }
}
