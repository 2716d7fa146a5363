//! One write, from decision to commit.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use api::{Error, Key, Object};
use store::{CommitError, Expect, Op, Record, Store};

use crate::{OBJECT_BYTES_MAX, Registry, commit_error};

/// How often a write is decided again because somebody else was faster.
pub(crate) const ATTEMPTS_MAX: usize = 16;

/// What a verb has decided: the change of one object, and what must happen or hold along with it.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) key: Key,
    /// The record as it was read.
    pub(crate) before: Option<Record>,
    pub(crate) after: After,
    /// Operations of the same commit, before the main one.
    pub(crate) along: Vec<Op>,
    /// An address that the object takes with this commit.
    pub(crate) address: Option<IpAddr>,
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug)]
pub(crate) enum After {
    /// The object is this now.
    Is(Object),
    /// It is gone; this was its last state.
    Gone(Object),
}

/// What a draft came to.
pub(crate) struct Outcome {
    pub(crate) object: Object,
    pub(crate) is_gone: bool,
    pub(crate) warnings: Vec<String>,
}

impl Draft {
    pub(crate) fn new(key: Key, before: Option<Record>, after: After) -> Self {
        Self { key, before, after, along: Vec::new(), address: None, warnings: Vec::new() }
    }

    /// The transaction, unless nothing changes.
    pub(crate) fn transaction(&self) -> Result<Option<Vec<Op>>, Error> {
        let expect = self.before.as_ref().map_or(Expect::Absent, |record| Expect::Revision(record.revision));
        let key = self.key.clone();
        let main = match &self.after {
            After::Gone(_) => Op::Delete { key, expect },
            After::Is(object) => {
                let bytes = to_bytes(object);
                if bytes.len() > OBJECT_BYTES_MAX {
                    let why = format!("it has {} bytes, and {OBJECT_BYTES_MAX} is the most", bytes.len());
                    return Err(Error::denied(&self.key, why));
                }
                if self.before.as_ref().is_some_and(|record| *record.bytes == *bytes) {
                    return Ok(None);
                }
                Op::Put { key, bytes: bytes.into(), expect }
            }
        };
        Ok(Some(self.along.iter().cloned().chain([main]).collect()))
    }

    fn outcome(self, revision: Option<u64>) -> Outcome {
        let (mut object, is_gone) = match self.after {
            After::Is(object) => (object, false),
            After::Gone(object) => (object, true),
        };
        object.set_resource_version(revision);
        Outcome { object, is_gone, warnings: self.warnings }
    }
}

/// The stored form: without the resource version, which is the record's.
fn to_bytes(object: &Object) -> Vec<u8> {
    let mut object = object.clone();
    object.set_resource_version(None);
    object.to_bytes()
}

impl<S: Store> Registry<S> {
    /// Decides and commits, again while others are faster.
    pub(crate) async fn write(
        &self,
        dry_run: bool,
        decide: impl Fn() -> Result<Draft, Error>,
    ) -> Result<Outcome, Error> {
        for _ in 0..ATTEMPTS_MAX {
            let draft = decide()?;
            let reservation =
                draft.address.map(|address| Reservation { registry: self, address, is_answered: false });
            let revision_before = draft.before.as_ref().map(|record| record.revision);
            let transaction = match draft.transaction() {
                Ok(Some(transaction)) if !dry_run => transaction,
                other => {
                    reservation.into_iter().for_each(Reservation::answered);
                    return other.map(|_| draft.outcome(revision_before));
                }
            };
            let answer = self.store.commit(transaction).await;
            reservation.into_iter().for_each(Reservation::answered);
            match answer {
                Ok(revision) => return Ok(draft.outcome(Some(revision))),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(commit_error(&error)),
            }
        }
        Err(Error::modified(&decide()?.key))
    }
}

/// An address kept from others while a commit is under way.
struct Reservation<'a, S: Store> {
    registry: &'a Registry<S>,
    address: IpAddr,
    is_answered: bool,
}

impl<S: Store> Reservation<'_, S> {
    fn answered(mut self) {
        self.is_answered = true;
    }
}

impl<S: Store> Drop for Reservation<'_, S> {
    fn drop(&mut self) {
        let abandoned = (!self.is_answered).then(|| self.registry.now());
        self.registry.index(|index| index.release(self.address, abandoned));
    }
}
