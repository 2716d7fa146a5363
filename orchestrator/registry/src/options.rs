//! What callers say beside the object, and what they are told.
#![forbid(unsafe_code)]

use api::{FieldSelector, FieldValidation, LabelSelector, Object};
use store::Record;

/// How to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Say what would be written, and write nothing.
    pub dry_run: bool,
    /// Who writes.
    pub field_manager: String,
    /// What to do about unknown fields.
    pub validation: FieldValidation,
}

/// What was written, or would have been.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The object as stored.
    pub object: Object,
    /// For the client, one per `Warning` header.
    pub warnings: Vec<String>,
}

/// How a patch is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902, `application/json-patch+json`.
    Json,
    /// RFC 7386, `application/merge-patch+json`.
    Merge,
    /// Kubernetes' own, `application/strategic-merge-patch+json`: lists merge by key.
    Strategic,
}

/// What becomes of the objects an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They are collected once it is gone.
    Background,
    /// They go first: it waits with the finalizer `foregroundDeletion`.
    Foreground,
    /// They are released first: it waits with the finalizer `orphan`.
    Orphan,
}

/// How to delete. meta/v1 DeleteOptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds for a pod to end; `None` means what its spec says.
    ///
    /// 0 together with `uid` is the agent's word that nothing of the pod runs any more: the pod is removed. Without
    /// `uid` it is a wish for haste, and a pod on a node gets one second, because only its agent can say that it is
    /// gone.
    pub grace_period_secs: Option<i64>,
    /// Only if it has this uid.
    pub uid: Option<String>,
    /// Only if it is at this revision.
    pub resource_version: Option<u64>,
    /// What becomes of the objects it owns; `None` leaves its finalizers as they are.
    pub propagation: Option<Propagation>,
    /// Say what would be deleted, and delete nothing.
    pub dry_run: bool,
}

/// What a deletion did.
#[derive(Clone, Debug, PartialEq)]
pub struct Deleted {
    /// Its last state if it is gone, else its state now, with a deletion timestamp.
    pub object: Object,
    /// Whether it is gone, rather than waiting for its agent or its finalizers.
    pub is_gone: bool,
}

/// What to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Only objects with these labels.
    pub labels: LabelSelector,
    /// Only objects with these fields.
    pub fields: FieldSelector,
    /// At most so many; 0 means all.
    pub limit: usize,
    /// Where the last page ended: its [`List::continue_token`].
    pub continue_token: Option<String>,
}

/// A page of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// A watch from here has no gap. Every page of a list has the first one's.
    pub revision: u64,
    /// In the order of their keys.
    pub items: Vec<Record>,
    /// Names the next page, if there is one.
    pub continue_token: Option<String>,
    /// How many more there are; not known with selectors.
    pub remaining: Option<usize>,
}

impl List {
    /// The items as objects.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        self.items.iter().map(Record::object)
    }
}

/// What to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Only objects with these labels.
    pub labels: LabelSelector,
    /// Only objects with these fields.
    pub fields: FieldSelector,
    /// The revision to start after. `None` and 0 start with every object there is as `Added`.
    pub since: Option<u64>,
    /// Send a bookmark after those first objects. `sendInitialEvents=true`.
    pub mark_initial_end: bool,
}
