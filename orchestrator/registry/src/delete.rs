//! delete and deletecollection.
//!
//! ```text
//!   pod on a node ──► deletionTimestamp, grace ──► its agent: grace 0 and uid ──► gone, or finalizers
//!   namespace     ──► deletionTimestamp, Terminating ──► emptied; deleted again ──► gone
//!   anything else ──► finalizers? deletionTimestamp, until the last one is taken away : gone
//! ```
//!
//! **Law: only its agent can say that a pod on a node is gone**, also for one that has finished: until then its name
//! is taken, so that no second incarnation can exist. So a node with pods on it is not deleted; and a pod that names a
//! node nobody has ever seen, which no agent will speak for, is removed by force.
#![forbid(unsafe_code)]

use api::{Error, Key, Object, Resource, Timestamp, time};
use store::{CommitError, Record, Store};

use crate::draft::{ATTEMPTS_MAX, After, Draft, Outcome};
use crate::index::is_finished;
use crate::kinds::{PROTECTION, add_finalizer, remove_finalizer};
use crate::write::check_uid;
use crate::{DeleteOptions, Deleted, ListOptions, Propagation, Registry, commit_error};

/// Seconds a pod has to end if its spec does not say. core/v1 PodSpec.
const GRACE_PERIOD_SECS: i64 = 30;

impl<S: Store> Registry<S> {
    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if a precondition does not hold, or a terminating namespace is not empty yet; `Denied`
    /// for what must stay.
    pub async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Deleted, Error> {
        let outcome = self
            .write(options.dry_run, || {
                let mut draft = self.decide_delete(self.record(key)?, options)?;
                self.rules_of_removal(std::slice::from_mut(&mut draft));
                Ok(draft)
            })
            .await?;
        let Outcome { object, is_gone, .. } = outcome;
        Ok(Deleted { object, is_gone })
    }

    /// Deletes every object of a list, in one commit; those that must stay are left out.
    ///
    /// # Errors
    /// As [`Registry::delete`] and [`Registry::list`].
    pub async fn delete_collection(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Vec<Deleted>, Error> {
        for _ in 0..ATTEMPTS_MAX {
            let records = self.list(resource, namespace, list)?.items.into_iter();
            let deletable = records.filter(|record| Self::check_deletable(&record.key).is_ok());
            let mut drafts: Vec<Draft> =
                deletable.map(|record| self.decide_delete(record, options)).collect::<Result<_, _>>()?;
            self.rules_of_removal(&mut drafts);
            let mut transaction = Vec::new();
            for draft in &drafts {
                transaction.extend(draft.transaction()?.unwrap_or_default());
            }
            let answer = match options.dry_run {
                true => Ok(self.store.revision()),
                false => self.store.commit(transaction).await,
            };
            let revision = match answer {
                Ok(revision) => revision,
                Err(CommitError::Conflict { .. }) => continue,
                Err(error) => return Err(commit_error(&error)),
            };
            return Ok(drafts.into_iter().map(|draft| self.deleted(draft, revision)).collect());
        }
        Err(Error::modified(&Key::new(resource, namespace.unwrap_or_default(), "")))
    }

    fn deleted(&self, draft: Draft, revision: u64) -> Deleted {
        let (mut object, is_gone) = match draft.after {
            After::Is(object) => (object, false),
            After::Gone(object) => (object, true),
        };
        let revision = self.store.get(&draft.key).filter(|_| !is_gone).map_or(revision, |it| it.revision);
        object.set_resource_version(Some(revision));
        Deleted { object, is_gone }
    }

    fn decide_delete(&self, record: Record, options: &DeleteOptions) -> Result<Draft, Error> {
        let key = record.key.clone();
        let object = record.object();
        check_uid(&key, &object, options.uid.as_deref())?;
        if options.resource_version.is_some_and(|version| version != record.revision) {
            return Err(Error::conflict(&key, "Precondition failed: it has another resource version"));
        }
        Self::check_deletable(&key)?;
        let after = match key.resource.plural {
            "namespaces" => self.delete_namespace(&key, object)?,
            "persistentvolumeclaims" => {
                let is_used = self.index(|index| index.is_claim_used(&key, &[]));
                let mut object = object;
                if !is_used {
                    remove_finalizer(&mut object, PROTECTION);
                }
                plan(object, options, self.now())
            }
            "pods" if self.is_forsaken(&object, options) => After::Gone(object),
            "nodes" => {
                self.check_vacant(&key)?;
                plan(object, options, self.now())
            }
            _ => plan(object, options, self.now()),
        };
        Ok(Draft::new(key, Some(record), after))
    }

    /// Whether force removes a pod: its node does not exist, and it waits for nothing else.
    fn is_forsaken(&self, pod: &Object, options: &DeleteOptions) -> bool {
        let node = pod.get_str("spec.nodeName").unwrap_or_default();
        let is_missing = !node.is_empty() && self.store.get(&Key::core("nodes", "", node)).is_none();
        is_missing && options.grace_period_secs == Some(0) && pod.finalizers().is_empty()
    }

    /// Refuses to delete a node that has pods. A pod bound meanwhile checks in its commit that the node is there.
    fn check_vacant(&self, node: &Key) -> Result<(), Error> {
        let (_, pods) = self.store.list(Key::core("pods", "", "").resource, None);
        let is_on_node = |pod: &Record| pod.object().get_str("spec.nodeName") == Some(&node.name);
        let mut here = pods.into_iter().filter(is_on_node);
        match here.next() {
            None => Ok(()),
            Some(pod) => {
                let why =
                    format!("it has {} pods, {} among them: delete them first", 1 + here.count(), pod.key);
                Err(Error::conflict(node, why))
            }
        }
    }

    fn delete_namespace(&self, key: &Key, mut object: Object) -> Result<After, Error> {
        if object.is_deleting() {
            self.check_empty(key)?;
            return Ok(if object.finalizers().is_empty() { After::Gone(object) } else { After::Is(object) });
        }
        object.set("status.phase", "Terminating");
        mark(&mut object, 0, self.now());
        Ok(After::Is(object))
    }
}

/// What a deletion makes of an object. Pure.
fn plan(mut object: Object, options: &DeleteOptions, now: Timestamp) -> After {
    match options.propagation {
        None => {}
        Some(Propagation::Background) => {
            remove_finalizer(&mut object, "foregroundDeletion");
            remove_finalizer(&mut object, "orphan");
        }
        Some(Propagation::Foreground) => {
            remove_finalizer(&mut object, "orphan");
            add_finalizer(&mut object, "foregroundDeletion");
        }
        Some(Propagation::Orphan) => {
            remove_finalizer(&mut object, "foregroundDeletion");
            add_finalizer(&mut object, "orphan");
        }
    }
    let is_on_node =
        object.kind() == "Pod" && object.get_str("spec.nodeName").is_some_and(|it| !it.is_empty());
    let is_agents_word = options.grace_period_secs == Some(0) && options.uid.is_some();
    let waits_for_agent = is_on_node && !is_agents_word && object.deletion_grace_period_secs() != Some(0);
    if !waits_for_agent && object.finalizers().is_empty() {
        return After::Gone(object);
    }
    let grace = if waits_for_agent { grace_period_secs(&object, options) } else { 0 };
    mark(&mut object, grace, now);
    After::Is(object)
}

/// Seconds the agent has. Never 0: that is what the agent's word leaves behind.
fn grace_period_secs(pod: &Object, options: &DeleteOptions) -> i64 {
    if is_finished(pod) {
        return 1;
    }
    let of_spec = pod.get_i64("spec.terminationGracePeriodSeconds").unwrap_or(GRACE_PERIOD_SECS);
    // What has been granted once is only shortened by somebody who asks for it.
    let granted = pod.deletion_grace_period_secs().unwrap_or(of_spec);
    options.grace_period_secs.unwrap_or(granted).max(1)
}

/// Sets the deletion timestamp, or brings it forward.
fn mark(object: &mut Object, grace_secs: i64, now: Timestamp) {
    let grace_secs = grace_secs.clamp(0, i64::from(i32::MAX));
    let started_secs = match (object.deletion_timestamp(), object.deletion_grace_period_secs()) {
        (Some(_), Some(granted)) if grace_secs >= granted => return,
        (Some(end), granted) => end.as_second() - granted.unwrap_or(0),
        // Timestamps have whole seconds; rounded up, so that nobody gets less than was granted.
        (None, _) => now.as_second() + i64::from(grace_secs > 0 && now.subsec_nanosecond() > 0),
    };
    if !object.is_deleting() && object.generation() > 0 {
        object.set("metadata.generation", object.generation() + 1);
    }
    let end = Timestamp::from_second(started_secs.saturating_add(grace_secs)).unwrap_or(now);
    object.set("metadata.deletionTimestamp", time::seconds(end));
    object.set("metadata.deletionGracePeriodSeconds", grace_secs);
}
