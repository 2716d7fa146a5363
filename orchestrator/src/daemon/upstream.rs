//! The agent's door to the API: its reads and writes, over the registry.

use api::{Error, Key, Kind, Object, Part};
use futures::future::{BoxFuture, FutureExt};
use node::host::{Event, Upstream};
use registry::{DeleteOptions, Registry, WriteOptions};
use serde_json::{Value, json};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use store::Store;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Events that wait to be written; more are dropped, as Kubernetes does under load.
const EVENTS_WAITING_MAX: usize = 1_000;

/// Times a write is decided again because somebody else was faster.
const ATTEMPTS_MAX: u32 = 8;

/// The registry as an agent sees it.
pub(super) struct Registrar<S> {
    registry: Arc<Registry<S>>,
    node: String,
    events: mpsc::Sender<Event>,
}

impl<S: Store> Registrar<S> {
    /// The door for the agent of `node`; writes its Events from a task of its own, which ends with the door.
    pub(super) fn open(registry: Arc<Registry<S>>, node: &str) -> Registrar<S> {
        let (events, inbox) = mpsc::channel(EVENTS_WAITING_MAX);
        tokio::spawn(write_events(Arc::clone(&registry), node.to_owned(), inbox));
        Registrar { registry, node: node.to_owned(), events }
    }

    fn write() -> WriteOptions {
        WriteOptions { field_manager: "podyard-agent".into(), ..WriteOptions::default() }
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
            let mut object = self.registry.get(key)?;
            if !change(&mut object)? {
                return Ok(object);
            }
            match self.registry.update(key, object.0, part, &Self::write()).await {
                Ok(written) => return Ok(written.object),
                Err(error) if error.kind() == Kind::Conflict => conflict = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(conflict.unwrap_or_else(|| Error::internal(format!("update {key}: no attempt"))))
    }
}

impl<S: Store> Upstream for Registrar<S> {
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
            let options =
                DeleteOptions { grace_period_secs: Some(0), uid: Some(uid), ..DeleteOptions::default() };
            match self.registry.delete(&pod, &options).await {
                Ok(_) => Ok(()),
                // Gone already, or another incarnation has the name: ours is not there either way.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict) => Ok(()),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn get(&self, key: Key) -> BoxFuture<'_, Result<Object, Error>> {
        async move { self.registry.get(&key) }.boxed()
    }

    fn update(&self, object: Object) -> BoxFuture<'_, Result<Object, Error>> {
        async move {
            let key = object.key();
            self.registry
                .update(&key, object.0, Part::Main, &Self::write())
                .await
                .map(|written| written.object)
        }
        .boxed()
    }

    fn node(&self, node: Object) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let key = node.key();
            match self.registry.create(key.resource, "", node.0.clone(), &Self::write()).await {
                Ok(_) => {}
                Err(error) if error.kind() == Kind::AlreadyExists => {
                    // What users set on it (labels, taints, unschedulable) stays theirs.
                    self.change(&key, Part::Main, |object| {
                        let wanted = node.0["spec"].as_object().into_iter().flatten();
                        let mut differs = false;
                        for (field, value) in wanted {
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
                }
                Err(error) => return Err(error),
            }
            self.change(&key, Part::Status, |object| {
                let differs = object.0["status"] != node.0["status"];
                object.0["status"] = node.0["status"].clone();
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

/// Writes Events one after the other: they matter less than what they tell of.
async fn write_events<S: Store>(registry: Arc<Registry<S>>, node: String, mut inbox: mpsc::Receiver<Event>) {
    while let Some(event) = inbox.recv().await {
        if let Err(error) = write_event(&registry, &event, &node).await {
            warn!(reason = event.reason, about = %event.about.key(), %error, "write an Event");
        }
    }
}

/// Makes the Event, or counts one more of it: what repeats itself takes no more room.
async fn write_event<S: Store>(registry: &Registry<S>, event: &Event, node: &str) -> Result<(), Error> {
    let now = api::time::seconds(registry.now());
    let object = event_object(event, node, &now);
    let key = object.key();
    match registry.create(key.resource, &key.namespace, object.0, &WriteOptions::default()).await {
        Err(error) if error.kind() == Kind::AlreadyExists => {
            let mut known = registry.get(&key)?;
            known.0["count"] = (known.0["count"].as_u64().unwrap_or(1) + 1).into();
            known.0["lastTimestamp"] = now.into();
            registry.update(&key, known.0, Part::Main, &WriteOptions::default()).await.map(drop)
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
