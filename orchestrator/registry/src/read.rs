//! get and list.
#![forbid(unsafe_code)]

use api::{Error, FieldSelector, Key, LabelSelector, Object, Resource};
use store::{Record, Scope, Store};

use crate::{List, ListOptions, Registry, expired};

impl<S: Store> Registry<S> {
    /// The object under `key`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, key: &Key) -> Result<Object, Error> {
        self.record(key).map(|record| record.object())
    }

    /// The objects of `resource`, in the order of namespace and name; all namespaces with `None`.
    ///
    /// Pages are read from the present state: an object that changes between two pages is seen in either state, and a
    /// watch from [`List::revision`] tells every change since the first page.
    ///
    /// # Errors
    /// `BadRequest` for a field that cannot be selected by; `Gone` if the continue token is too old.
    pub fn list(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<List, Error> {
        options.fields.check(resource.kind)?;
        let token = options.continue_token.as_deref().map(Token::parse).transpose()?;
        let filter = Filter { labels: options.labels.clone(), fields: options.fields.clone() };
        let (revision, mut items) = match filter.fields.equals("metadata.name") {
            Some(name) if namespace.is_some() || !resource.namespaced => {
                let revision = self.store.revision();
                let found = self.store.get(&Key::new(resource, namespace.unwrap_or_default(), name));
                // A change between the two reads is already in the record: it must not be told again.
                (found.as_ref().map_or(revision, |it| it.revision.max(revision)), Vec::from_iter(found))
            }
            _ => self.store.list(resource, namespace),
        };
        if !filter.is_empty() {
            items.retain(|record| filter.matches(record));
        }
        let revision = match &token {
            None => revision,
            Some(token) => {
                self.store.watch(Scope::default(), token.revision).map_err(expired)?;
                let place = |record: &Record| (record.key.namespace.clone(), record.key.name.clone());
                items.retain(|record| place(record) > token.after);
                token.revision
            }
        };
        let surplus = if options.limit == 0 { 0 } else { items.len().saturating_sub(options.limit) };
        let mut list = List { revision, items, continue_token: None, remaining: None };
        if surplus > 0 {
            list.items.truncate(options.limit);
            list.remaining = filter.is_empty().then_some(surplus);
            list.continue_token = list.items.last().map(|last| Token::after(revision, &last.key).text());
        }
        Ok(list)
    }
}

/// Label and field selectors together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Filter {
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, record: &Record) -> bool {
        if self.is_empty() {
            return true;
        }
        let object = record.object();
        self.labels.matches(object.labels()) && self.fields.matches(&object)
    }
}

/// Where the next page starts, and the revision of the first one. Opaque to clients: `<revision>.<namespace>/<name>`.
#[derive(Debug, PartialEq)]
struct Token {
    revision: u64,
    after: (String, String),
}

impl Token {
    fn after(revision: u64, key: &Key) -> Self {
        Self { revision, after: (key.namespace.clone(), key.name.clone()) }
    }

    fn text(&self) -> String {
        format!("{}.{}/{}", self.revision, self.after.0, self.after.1)
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let parsed = text.split_once('.').and_then(|(revision, after)| {
            let (namespace, name) = after.split_once('/')?;
            Some(Self { revision: revision.parse().ok()?, after: (namespace.to_owned(), name.to_owned()) })
        });
        parsed.ok_or_else(|| Error::bad_request(format!("continue key is not valid: {text:?}")))
    }
}
