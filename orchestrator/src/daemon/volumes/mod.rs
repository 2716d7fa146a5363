//! Keeps what is on disk and the objects that speak of it together: makes volumes, grows them, moves what is deleted to
//! the trash and empties it in time.
//!
//! ```text
//!  PersistentVolume ── no data yet ──► make ── podyard.io/enforcement, finalizer podyard.io/volume
//!   its claim asks for more ─────────► grow, mounted or not ── spec.capacity; the binder tells the claim
//!   deleted, its claim gone ─────────► trash (Retain: nobody's) ── finalizer off ── time is up ──► deleted
//! ```
//! Level-triggered: whatever the daemon was doing when it died is seen in objects and directories, and done. Volumes are
//! host-wide, so one task of the daemon does this for all nodes. Nothing is written when nothing changes, and it sleeps
//! until the next volume in the trash expires.

mod door;
mod plan;

use crate::node_parts::feed::{Feed, Told};
use api::storage::ENFORCEMENT_ANNOTATION;
use api::{Error, Key, Kind, Object, Part};
use node::host::{Event, Upstream};
use node::volumes::{DRIVER, handle, wish};
use plan::{FINALIZER, Work};
use registry::{Registry, WriteOptions};
use rootfs::volume::{Backing, Deletion, Progress, Volume};
use rootfs::{Claim, Volumes};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store::Store;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// The kinds that [`Keeper::run`] wants to be told of.
pub(super) const KINDS: &[&str] = &["persistentvolumes", "persistentvolumeclaims"];

/// Times a write is decided again because somebody else was faster.
const ATTEMPTS_MAX: u32 = 8;
/// What failed is tried again after this long, then twice as long, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Keeps the volumes of a yard.
pub(super) struct Keeper<S> {
    registry: Arc<Registry<S>>,
    upstream: Arc<dyn Upstream>,
    volumes: Volumes,
    /// How long deleted data is kept, unless its class says otherwise.
    grace: Duration,
    /// How far the deletion that is under way has come.
    deleting: Arc<Mutex<Option<Progress>>>,
    /// Held by the thread that deletes.
    reaper: Arc<Mutex<()>>,
}

/// What is still to be looked at.
#[derive(Default)]
struct Queue {
    ready: BTreeSet<String>,
    failed: BTreeMap<String, (Instant, Duration)>,
}

impl Queue {
    fn failed(&mut self, name: String) {
        let delay = self.failed.get(&name).map_or(RETRY.0, |(_, delay)| (*delay * 2).min(RETRY.1));
        self.failed.insert(name, (Instant::now() + delay, delay));
    }

    /// Takes what is due, and says when the next is.
    fn due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.ready.extend(self.failed.iter().filter(|(_, (at, _))| *at <= now).map(|(name, _)| name.clone()));
        self.failed.values().map(|(at, _)| *at).filter(|at| *at > now).min()
    }
}

impl<S: Store> Keeper<S> {
    pub(super) fn new(
        registry: Arc<Registry<S>>,
        upstream: Arc<dyn Upstream>,
        volumes: Volumes,
        grace: Duration,
    ) -> Arc<Keeper<S>> {
        Arc::new(Keeper {
            registry,
            upstream,
            volumes,
            grace,
            deleting: Arc::default(),
            reaper: Arc::default(),
        })
    }

    /// Runs until the feed ends.
    pub(super) async fn run(self: Arc<Self>, mut feed: impl Feed) {
        let mut queue = Queue::default();
        let mut knows_all = false;
        let mut expiry = Some(Instant::now());
        loop {
            let next = [queue.due(), expiry].into_iter().flatten().min();
            let due = async {
                match next {
                    _ if !queue.ready.is_empty() => {}
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                told = feed.next() => {
                    let Some(told) = told else { return };
                    if let (Told::All(objects), false) = (&told, knows_all) {
                        knows_all = true;
                        self.orphans(objects).await;
                    }
                    hear(told, &mut queue.ready);
                    while let Some(told) = feed.try_next() {
                        hear(told, &mut queue.ready);
                    }
                }
                () = due => {}
            }
            while let Some(name) = queue.ready.pop_first() {
                match self.look(&name).await {
                    Ok(()) => drop(queue.failed.remove(&name)),
                    Err(error) => {
                        warn!(volume = name, error = %error.to_string(), "keep the volume");
                        queue.failed(name);
                    }
                }
                // The trash may have got something.
                expiry = Some(Instant::now());
            }
            if expiry.is_some_and(|at| at <= Instant::now()) {
                expiry = self.expire().await;
            }
        }
    }

    /// Does what is to be done for one volume.
    async fn look(&self, name: &str) -> Result<(), Error> {
        let volume = match self.registry.get(&Key::core("persistentvolumes", "", name)) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            other => other?,
        };
        let claim = self.claim(&volume);
        match plan::work(&volume, claim.as_ref()) {
            Work::Nothing => Ok(()),
            Work::Have => self.have(&volume, claim.as_ref()).await,
            Work::Grow(bytes) => match claim {
                Some(claim) => self.grow(&volume, &claim, bytes).await,
                None => Ok(()),
            },
            Work::Trash => {
                let deletion = self.deletion(&volume);
                let (volumes, uid) = (self.volumes.clone(), owner(&volume).to_owned());
                let put = disk(move || volumes.trash().put(&uid, &deletion)).await?;
                if let Some(id) = put {
                    info!(volume = name, id, "moved to the trash");
                }
                self.let_go(&volume).await
            }
            Work::Keep => {
                let (volumes, name, uid) =
                    (self.volumes.clone(), handle(&volume).to_owned(), owner(&volume).to_owned());
                disk(move || volumes.release(&name, &uid)).await?;
                self.let_go(&volume).await
            }
        }
    }

    /// The claim that a volume is for, if it is there and is still that one.
    fn claim(&self, volume: &Object) -> Option<Object> {
        let of = |field: &str| volume.get_str(&format!("spec.claimRef.{field}")).unwrap_or("");
        let key = Key::core("persistentvolumeclaims", of("namespace"), of("name"));
        self.registry.get(&key).ok().filter(|claim| claim.uid() == of("uid"))
    }

    /// Makes the data if there is none, so that the pod need not wait for it, and says on the object what it is.
    async fn have(&self, volume: &Object, claim: Option<&Object>) -> Result<(), Error> {
        if volume.annotation(ENFORCEMENT_ANNOTATION).is_some() && volume.finalizers().contains(&FINALIZER) {
            return Ok(());
        }
        let (volumes, name, wish) = (self.volumes.clone(), handle(volume).to_owned(), wish(volume));
        let owner = Claim { uid: owner(volume).to_owned(), epoch: 0 };
        let made = disk(move || match volumes.ensure(&name, &owner, wish) {
            // A pod was faster, and its claim has an epoch.
            Err(error) if error.kind() == rootfs::Kind::Conflict => volumes.get(&name),
            other => other,
        });
        let made = match made.await {
            Err(error) => {
                if let Some(claim) = claim {
                    self.tell(claim, false, "ProvisioningFailed", format!("make the volume's data: {error}"));
                }
                return Err(error);
            }
            Ok(made) => made,
        };
        let enforcement = made.backing.enforcement();
        self.change(volume, Part::Main, |object| {
            annotate(object, ENFORCEMENT_ANNOTATION, enforcement);
            let mut finalizers = object.finalizers();
            if !finalizers.contains(&FINALIZER) {
                finalizers.push(FINALIZER);
                let finalizers: Vec<Value> = finalizers.into_iter().map(Value::from).collect();
                object.set("metadata.finalizers", finalizers);
            }
            true
        })
        .await?;
        if let (Backing::Directory { because, .. }, Some(claim)) = (&made.backing, claim)
            && !because.is_empty()
        {
            let text = format!("the size of volume {} is not enforced: {because}", volume.name());
            self.tell(claim, false, "SizeNotEnforced", text);
        }
        Ok(())
    }

    async fn grow(&self, volume: &Object, claim: &Object, bytes: u64) -> Result<(), Error> {
        let (volumes, name, uid) = (self.volumes.clone(), handle(volume).to_owned(), claim.uid().to_owned());
        let grown = tokio::task::spawn_blocking(move || volumes.grow(&name, &uid, bytes)).await;
        let grown = match grown.map_err(Error::internal)? {
            Ok(Volume { .. }) => Ok(()),
            // Not made yet: the first pod, or the next look, makes it with the size that it is to have.
            Err(error) if error.kind() == rootfs::Kind::NotFound => self.have(volume, Some(claim)).await,
            Err(error) if error.kind() == rootfs::Kind::Denied => {
                let text = error.chain();
                self.pending(claim, &text).await?;
                self.tell(claim, false, "FileSystemResizePending", text);
                return Ok(());
            }
            Err(error) => {
                self.tell(claim, false, "VolumeResizeFailed", error.chain());
                Err(from_rootfs(&error))
            }
        };
        grown?;
        let size = claim.get("spec.resources.requests.storage").cloned().unwrap_or(Value::Null);
        self.change(volume, Part::Main, |object| {
            let differs = plan::capacity(object) < bytes;
            object.set("spec.capacity.storage", size.clone());
            differs
        })
        .await?;
        let text = format!("volume {} has {} now", volume.name(), size.as_str().unwrap_or(""));
        self.tell(claim, true, "FileSystemResizeSuccessful", text);
        Ok(())
    }

    /// Says on the claim that it must wait for its size, and why.
    async fn pending(&self, claim: &Object, why: &str) -> Result<(), Error> {
        let now = api::time::seconds(self.registry.now());
        self.change(claim, Part::Status, |object| {
            let mut conditions = object.get_array("status.conditions").to_vec();
            if conditions.iter().any(|it| it["type"] == "FileSystemResizePending" && it["message"] == why) {
                return false;
            }
            conditions.retain(|it| it["type"] != "FileSystemResizePending");
            conditions.push(json!({
                "type": "FileSystemResizePending", "status": "True", "reason": "NotPermitted", "message": why,
                "lastTransitionTime": now,
            }));
            object.set("status.conditions", conditions);
            true
        })
        .await
    }

    /// Takes our finalizer off: the object may go.
    async fn let_go(&self, volume: &Object) -> Result<(), Error> {
        let gone = self.change(volume, Part::Main, |object| {
            let kept: Vec<Value> =
                object.finalizers().into_iter().filter(|it| *it != FINALIZER).map(Value::from).collect();
            match kept.is_empty() {
                true => object.remove("metadata.finalizers"),
                false => object.set("metadata.finalizers", kept),
            }
            true
        });
        gone.await
    }

    /// Why a volume's data goes to the trash, with what is needed to take it back.
    fn deletion(&self, volume: &Object) -> Deletion {
        let now = now_secs();
        let grace = plan::grace(volume).unwrap_or(self.grace);
        Deletion {
            name: handle(volume).to_owned(),
            deleted_at_secs: now,
            expires_at_secs: now.saturating_add(grace.as_secs()),
            about: json!({
                "claim": {
                    "namespace": volume.get("spec.claimRef.namespace"),
                    "name": volume.get("spec.claimRef.name"),
                    "uid": volume.get("spec.claimRef.uid"),
                },
                "volume": {"name": volume.name(), "spec": volume.get("spec")},
                "because": "the claim was deleted, and its volume's reclaim policy is Delete",
            }),
        }
    }

    /// Data that belongs to a claim although no volume speaks of it: a crash came between the end of the object and that
    /// of its data, or somebody took our finalizer away. It goes to the trash too. What nobody owns is left alone.
    async fn orphans(&self, objects: &[Object]) {
        let ours = objects.iter().filter(|object| object.get_str("spec.csi.driver") == Some(DRIVER));
        let known: BTreeSet<String> = ours.map(|volume| handle(volume).to_owned()).collect();
        let (volumes, grace) = (self.volumes.clone(), self.grace);
        let moved = disk(move || {
            let mut moved = Vec::new();
            for volume in volumes.list()?.into_iter().filter(|volume| !known.contains(&volume.name)) {
                let Some(owner) = &volume.claim else { continue };
                if volumes.trash().returning(&volume.name)?.is_some() {
                    continue;
                }
                let now = now_secs();
                let deletion = Deletion {
                    name: volume.name.clone(),
                    deleted_at_secs: now,
                    expires_at_secs: now.saturating_add(grace.as_secs()),
                    about: json!({"claim": {"uid": owner.uid}, "because": "no volume object speaks of it"}),
                };
                moved.extend(volumes.trash().put(&owner.uid, &deletion)?);
            }
            Ok(moved)
        });
        match moved.await {
            Ok(moved) if moved.is_empty() => {}
            Ok(moved) => info!(volumes = ?moved, "data of no volume moved to the trash"),
            Err(error) => error!(%error, "look for data of no volume"),
        }
    }

    /// Deletes what has been in the trash for long enough, or was being deleted before a crash. Answers when to come back.
    async fn expire(&self) -> Option<Instant> {
        let volumes = self.volumes.clone();
        let outcome = disk(move || {
            let (outcome, next) = volumes.trash().expire(now_secs());
            Ok((outcome.map_err(|error| error.chain()), next))
        });
        let next = match outcome.await {
            Ok((outcome, next)) => {
                if let Err(error) = outcome {
                    warn!(error, "empty the trash of what has expired");
                }
                next
            }
            Err(error) => {
                warn!(%error, "look through the trash");
                None
            }
        };
        self.reap();
        next.map(|at| Instant::now() + Duration::from_secs(at.saturating_sub(now_secs())))
    }

    /// Deletes what was given up, on a thread of its own.
    fn reap(&self) {
        let trash = self.volumes.trash();
        let (deleting, reaper) = (Arc::clone(&self.deleting), Arc::clone(&self.reaper));
        *locked(&deleting) = Some(Progress::default());
        tokio::task::spawn_blocking(move || {
            // One after the other: the later one finds what came meanwhile.
            let _alone = locked(&reaper);
            let outcome = trash.reap(&mut |progress| *locked(&deleting) = Some(progress));
            *locked(&deleting) = None;
            match outcome {
                Ok(progress) if progress.entries == 0 => {}
                Ok(progress) => {
                    info!(entries = progress.entries, bytes = progress.bytes, "the trash was emptied");
                }
                Err(error) => warn!(error = %error.chain(), "empty the trash"),
            }
        });
    }

    fn progress(&self) -> Option<Progress> {
        *locked(&self.deleting)
    }

    fn tell(&self, about: &Object, normal: bool, reason: &'static str, message: String) {
        self.upstream.event(Event { about: Arc::new(about.clone()), normal, reason, message });
    }

    /// Reads, changes and writes until nobody comes between. `change` says whether to write. An object that is gone, or
    /// another by now, is left alone.
    async fn change(
        &self,
        object: &Object,
        part: Part,
        change: impl Fn(&mut Object) -> bool,
    ) -> Result<(), Error> {
        let key = object.key();
        let options = WriteOptions { field_manager: "podyard-volumes".into(), ..WriteOptions::default() };
        for _ in 0..ATTEMPTS_MAX {
            let mut now = match self.registry.get(&key) {
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                other => other?,
            };
            if now.uid() != object.uid() || !change(&mut now) {
                return Ok(());
            }
            match self.registry.update(&key, now.0, part, &options).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                other => return other.map(drop),
            }
        }
        Err(Error::new(Kind::Conflict, format!("update {key}: others were always faster")))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is whole before the lock is released.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes which volumes are to be looked at.
fn hear(told: Told, ready: &mut BTreeSet<String>) {
    let mut note = |object: &Object| match object.kind() {
        "PersistentVolume" => drop(ready.insert(object.name().to_owned())),
        _ => ready.extend(object.get_str("spec.volumeName").map(str::to_owned)),
    };
    match told {
        Told::All(objects) => objects.iter().for_each(note),
        Told::Changed(object) => note(&object),
        Told::Gone(_) => {}
    }
}

fn owner(volume: &Object) -> &str {
    volume.get_str("spec.claimRef.uid").unwrap_or("")
}

fn annotate(object: &mut Object, name: &str, value: &str) {
    let mut annotations = object.annotations().clone();
    annotations.insert(name.into(), value.into());
    object.set("metadata.annotations", Value::Object(annotations));
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

async fn disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, rootfs::Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(Error::internal)?;
    done.map_err(|error| from_rootfs(&error))
}

fn from_rootfs(error: &rootfs::Error) -> Error {
    let kind = match error.kind() {
        rootfs::Kind::NotFound => Kind::NotFound,
        rootfs::Kind::AlreadyExists => Kind::AlreadyExists,
        rootfs::Kind::Conflict => Kind::Conflict,
        rootfs::Kind::Invalid => Kind::Invalid,
        rootfs::Kind::Unsupported => Kind::Unsupported,
        rootfs::Kind::Busy => Kind::Busy,
        rootfs::Kind::Denied => Kind::Denied,
        rootfs::Kind::Internal => Kind::Internal,
    };
    Error::new(kind, error.chain())
}
