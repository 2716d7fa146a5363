//! The agent's door to the API: its reads and writes, over the registry or over HTTP.

use api::{Error, Key, Kind, Object, Part};
use futures::future::{BoxFuture, FutureExt};
use node::host::{Event, Upstream};
use serde_json::{Value, json};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Who writes, in `metadata.managedFields`.
pub(crate) const FIELD_MANAGER: &str = "podyard-agent";

/// Objects as an agent may reach them.
pub(crate) trait Objects: Send + Sync + 'static {
    /// Reads one.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Object, Error>>;

    /// Makes one.
    fn create(&self, object: Object) -> BoxFuture<'_, Result<Object, Error>>;

    /// Writes a part of one, at the resource version that it carries.
    fn update(&self, object: Object, part: Part) -> BoxFuture<'_, Result<Object, Error>>;

    /// Finishes a deletion: grace period 0, this uid only.
    fn finish<'a>(&'a self, key: &'a Key, uid: String) -> BoxFuture<'a, Result<(), Error>>;
}

/// Events that wait to be written; more are dropped, as Kubernetes does under load.
const EVENTS_WAITING_MAX: usize = 1_000;

/// Times a write is decided again because somebody else was faster.
const ATTEMPTS_MAX: u32 = 8;

/// Does an agent's work on objects, wherever they are.
pub(crate) struct Registrar<O> {
    objects: Arc<O>,
    node: String,
    events: mpsc::Sender<Event>,
}

impl<O: Objects> Registrar<O> {
    /// The door for the agent of `node`; writes its Events from a task of its own, which ends with the door.
    pub(crate) fn open(objects: Arc<O>, node: &str) -> Registrar<O> {
        let (events, inbox) = mpsc::channel(EVENTS_WAITING_MAX);
        tokio::spawn(write_events(Arc::clone(&objects), node.to_owned(), inbox));
        Registrar { objects, node: node.to_owned(), events }
    }

    /// Reads, changes and writes a part of an object until nobody comes between. `change` says whether to write.
    async fn change(
        &self,
        key: &Key,
        part: Part,
        change: impl Fn(&mut Object) -> Result<bool, Error>,
    ) -> Result<Object, Error> {
        let mut conflict = None;
        for _ in 0..ATTEMPTS_MAX {
            let mut object = self.objects.get(key).await?;
            if !change(&mut object)? {
                return Ok(object);
            }
            match self.objects.update(object, part).await {
                Ok(written) => return Ok(written),
                Err(error) if error.kind() == Kind::Conflict => conflict = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(conflict.unwrap_or_else(|| Error::internal(format!("update {key}: no attempt"))))
    }
}

impl<O: Objects> Upstream for Registrar<O> {
    fn status(&self, pod: Key, uid: String, status: Value) -> BoxFuture<'_, Result<u64, Error>> {
        async move {
            let written = self
                .change(&pod, Part::Status, |object| {
                    if object.uid() != uid {
                        return Err(Error::new(Kind::NotFound, format!("{pod} has another uid than {uid}")));
                    }
                    let differs = object.0["status"] != status;
                    object.0["status"] = status.clone();
                    Ok(differs)
                })
                .await?;
            Ok(written.resource_version().unwrap_or(0))
        }
        .boxed()
    }

    fn removed(&self, pod: Key, uid: String) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            match self.objects.finish(&pod, uid).await {
                // Gone already, or another incarnation has the name: ours is not there either way.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict) => Ok(()),
                other => other,
            }
        }
        .boxed()
    }

    fn get(&self, key: Key) -> BoxFuture<'_, Result<Object, Error>> {
        async move { self.objects.get(&key).await }.boxed()
    }

    fn update(&self, object: Object) -> BoxFuture<'_, Result<Object, Error>> {
        self.objects.update(object, Part::Main)
    }

    fn node(&self, node: Object) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let key = node.key();
            match self.objects.get(&key).await {
                Ok(_) => {}
                Err(error) if error.kind() == Kind::NotFound => {
                    drop(self.objects.create(node.clone()).await?)
                }
                Err(error) => return Err(error),
            }
            // What users set on it (labels, taints, unschedulable) stays theirs.
            self.change(&key, Part::Main, |object| {
                let mut differs = false;
                for (field, value) in node.0["spec"].as_object().into_iter().flatten() {
                    differs |= object.0["spec"][field] != *value;
                    object.0["spec"][field] = value.clone();
                }
                for (label, value) in node.0["metadata"]["labels"].as_object().into_iter().flatten() {
                    differs |= object.0["metadata"]["labels"][label] != *value;
                    object.0["metadata"]["labels"][label] = value.clone();
                }
                Ok(differs)
            })
            .await?;
            self.change(&key, Part::Status, |object| {
                let status = next_status(&object.0["status"], &node.0["status"]);
                let differs = object.0["status"] != status;
                object.0["status"] = status;
                Ok(differs)
            })
            .await?;
            Ok(())
        }
        .boxed()
    }

    fn event(&self, event: Event) {
        if let Err(error) = self.events.try_send(event) {
            debug!(node = self.node, %error, "an Event is dropped");
        }
    }
}

/// A node's status as its agent tells it now. A condition that stays as it is keeps its time, and one that the agent
/// does not know stays.
fn next_status(old: &Value, told: &Value) -> Value {
    let mut next = told.clone();
    let known = |conditions: &Value| conditions.as_array().cloned().unwrap_or_default();
    let mut conditions = known(&told["conditions"]);
    for before in known(&old["conditions"]) {
        match conditions.iter_mut().find(|now| now["type"] == before["type"]) {
            Some(now) if now["status"] == before["status"] => {
                now["lastTransitionTime"] = before["lastTransitionTime"].clone();
            }
            Some(_) => {}
            None => conditions.push(before),
        }
    }
    next["conditions"] = conditions.into();
    next
}

/// Writes Events one after the other: they matter less than what they tell of.
async fn write_events<O: Objects>(objects: Arc<O>, node: String, mut inbox: mpsc::Receiver<Event>) {
    while let Some(event) = inbox.recv().await {
        if let Err(error) = write_event(&*objects, &event, &node).await {
            warn!(reason = event.reason, about = %event.about.key(), %error, "write an Event");
        }
    }
}

/// Makes the Event, or counts one more of it: what repeats itself takes no more room.
pub(crate) async fn write_event<O: Objects>(objects: &O, event: &Event, node: &str) -> Result<(), Error> {
    let now = api::time::seconds(jiff::Timestamp::now());
    let object = event_object(event, node, &now);
    let key = object.key();
    match objects.create(object).await {
        Err(error) if error.kind() == Kind::AlreadyExists => {
            let mut known = objects.get(&key).await?;
            known.0["count"] = (known.0["count"].as_u64().unwrap_or(1) + 1).into();
            known.0["lastTimestamp"] = now.into();
            objects.update(known, Part::Main).await.map(drop)
        }
        outcome => outcome.map(drop),
    }
}

/// Events about what has no namespace are kept in `default`, as in Kubernetes.
fn event_namespace(about: &Object) -> String {
    if about.namespace().is_empty() { "default".into() } else { about.namespace().to_owned() }
}

fn event_object(event: &Event, node: &str, now: &str) -> Object {
    let mut hasher = std::hash::DefaultHasher::new();
    (event.about.uid(), event.reason, &event.message).hash(&mut hasher);
    Object(json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": format!("{}.{:016x}", event.about.name(), hasher.finish()),
            "namespace": event_namespace(&event.about),
        },
        "involvedObject": {
            "apiVersion": event.about.0["apiVersion"],
            "kind": event.about.0["kind"],
            "name": event.about.name(),
            "namespace": event.about.namespace(),
            "uid": event.about.uid(),
        },
        "type": if event.normal { "Normal" } else { "Warning" },
        "reason": event.reason,
        "message": event.message,
        "source": {"component": "podyard-agent", "host": node},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_keep_their_time() {
        let condition = |kind: &str, status: &str, time: &str| json!({"type": kind, "status": status, "lastTransitionTime": time});
        let old = json!({"conditions": [
            condition("Ready", "Unknown", "t0"), condition("DiskPressure", "False", "t0"),
            condition("Theirs", "True", "t0"),
        ]});
        let told = json!({"capacity": {}, "conditions": [
            condition("Ready", "True", "t1"), condition("DiskPressure", "False", "t1"),
        ]});
        let next = next_status(&old, &told);
        let expect = [
            condition("Ready", "True", "t1"),
            condition("DiskPressure", "False", "t0"),
            condition("Theirs", "True", "t0"),
        ];
        assert_eq!(next["conditions"], json!(expect));
        assert_eq!(
            next_status(
                &next,
                &json!({"capacity": {}, "conditions": [
                    condition("Ready", "True", "t2"), condition("DiskPressure", "False", "t2"),
                ]})
            ),
            next,
            "nothing changed, nothing is written"
        );
    }
}
