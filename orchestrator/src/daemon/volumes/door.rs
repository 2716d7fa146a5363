//! What people ask about volumes: the list, the trash, the way back.
//!
//! ```text
//!  undelete: data back in its place, nobody's ── PersistentVolume for the claim's name ── claim ── no longer "returning"
//! ```
//! A crash between the steps is carried on by asking again: each of them is idempotent, and until the last the
//! volume says that it is on its way.

use super::{Keeper, disk, now_secs};
use api::{Error, Key, Kind, Object};
use futures::future::{BoxFuture, FutureExt};
use node::volumes::{DRIVER, handle};
use registry::WriteOptions;
use rootfs::volume::Deletion;
use serde_json::{Value, json};
use server::volumes::{
    DeletedVolume, Deleting, Emptied, Empty, Undelete, Undeleted, VolumeList, VolumeOnDisk, VolumesApi,
};
use std::collections::BTreeMap;
use store::Store;

impl<S: Store> VolumesApi for Keeper<S> {
    fn list(&self) -> BoxFuture<'_, Result<VolumeList, Error>> {
        async move {
            let claims = self.claims_by_handle();
            let volumes = self.volumes.clone();
            let (on_disk, trash) = disk(move || {
                let mut on_disk = Vec::new();
                for volume in volumes.list()? {
                    match volumes.used_bytes(&volume.name) {
                        Ok(used_bytes) => on_disk.push((volume, used_bytes)),
                        // On its way to the trash, which is listed after.
                        Err(error) if error.kind() == rootfs::Kind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok((on_disk, volumes.trash().list()?))
            })
            .await?;
            let volumes = on_disk.into_iter().map(|(volume, used_bytes)| VolumeOnDisk {
                claim: claims.get(&volume.name).cloned(),
                epoch: volume.claim.as_ref().map_or(0, |claim| claim.epoch),
                owner: volume.claim.map(|claim| claim.uid),
                size_bytes: volume.size_bytes,
                used_bytes,
                enforcement: volume.backing.enforcement().into(),
                path: volume.source.display().to_string(),
                name: volume.name,
            });
            let trash = trash.into_iter().map(|deleted| DeletedVolume {
                claim: claim_of(&deleted.deletion).map(|(namespace, name)| format!("{namespace}/{name}")),
                id: deleted.id,
                size_bytes: deleted.size_bytes,
                deleted_at: time(deleted.deletion.deleted_at_secs),
                expires_at: time(deleted.deletion.expires_at_secs),
                because: deleted.deletion.about["because"].as_str().unwrap_or("").into(),
            });
            let deleting = self.progress().map(|at| Deleting { entries: at.entries, bytes: at.bytes });
            Ok(VolumeList { volumes: volumes.collect(), trash: trash.collect(), deleting })
        }
        .boxed()
    }

    fn undelete(&self, wish: Undelete) -> BoxFuture<'_, Result<Undeleted, Error>> {
        async move {
            let (trash, id) = (self.volumes.trash(), wish.id.clone());
            let (deletion, is_back, size) = {
                let volumes = self.volumes.clone();
                disk(move || match trash.get(&id) {
                    // A crash came on the way: it is in its place, and says so.
                    Err(error) if error.kind() == rootfs::Kind::NotFound => match trash.returning(&id)? {
                        Some(deletion) => Ok((deletion, true, volumes.get(&id)?.size_bytes)),
                        None => Err(error),
                    },
                    other => other.map(|deleted| (deleted.deletion, false, deleted.size_bytes)),
                })
                .await?
            };
            let old = claim_of(&deletion);
            let namespace = wish.namespace.or(old.as_ref().map(|(namespace, _)| namespace.clone()));
            let claim = wish.claim.or(old.map(|(_, name)| name));
            let (Some(namespace), Some(claim)) = (namespace, claim) else {
                let text = format!("of {} no claim is known; name one with --claim", wish.id);
                return Err(Error::bad_request(text));
            };
            let volume = volume_again(&deletion, &namespace, &claim, size);
            self.check_free(&volume, &namespace, &claim)?;
            if !is_back {
                let (trash, id) = (self.volumes.trash(), wish.id.clone());
                disk(move || trash.take_back(&id)).await?;
            }
            self.create(&volume).await?;
            self.create(&claim_again(&volume, &namespace, &claim)).await?;
            let (trash, name) = (self.volumes.trash(), deletion.name.clone());
            disk(move || trash.forget(&name)).await?;
            Ok(Undeleted { namespace, claim, volume: volume.name().to_owned() })
        }
        .boxed()
    }

    fn empty(&self, wish: Empty) -> BoxFuture<'_, Result<Emptied, Error>> {
        async move {
            let trash = self.volumes.trash();
            let ids = disk(move || {
                let ids: Vec<String> = match wish.all {
                    true => trash.list()?.into_iter().map(|deleted| deleted.id).collect(),
                    false => wish.ids,
                };
                // All are known before the first goes.
                ids.iter().try_for_each(|id| trash.get(id).map(drop))?;
                ids.iter().try_for_each(|id| trash.give_up(id))?;
                Ok(ids)
            })
            .await?;
            self.reap();
            Ok(Emptied { ids })
        }
        .boxed()
    }
}

impl<S: Store> Keeper<S> {
    fn claims_by_handle(&self) -> BTreeMap<String, String> {
        let Some(resource) = api::resource_by_plural("", "persistentvolumes") else { return BTreeMap::new() };
        let (_, records) = self.registry.store().list(resource, None);
        let volumes = records.iter().map(store::Record::object);
        let claims = volumes.filter_map(|volume| {
            let namespace = volume.get_str("spec.claimRef.namespace")?;
            let name = volume.get_str("spec.claimRef.name")?;
            Some((handle(&volume).to_owned(), format!("{namespace}/{name}")))
        });
        claims.collect()
    }

    /// Refuses if the names are taken by anything but what an earlier attempt has made.
    fn check_free(&self, volume: &Object, namespace: &str, claim: &str) -> Result<(), Error> {
        let key = Key::core("persistentvolumeclaims", namespace, claim);
        match self.registry.get(&key) {
            Err(error) if error.kind() == Kind::NotFound => {}
            Ok(there) if there.get_str("spec.volumeName") == Some(volume.name()) => {}
            Ok(_) => {
                let text = format!("there is a claim {namespace}/{claim}; choose another name with --claim");
                return Err(Error::new(Kind::AlreadyExists, text));
            }
            Err(error) => return Err(error),
        }
        match self.registry.get(&volume.key()) {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            Ok(there) if there.get_str("spec.claimRef.name") == Some(claim) && !there.is_deleting() => Ok(()),
            Ok(_) => {
                let text = format!("volume {} is there again, for another claim", volume.name());
                Err(Error::new(Kind::AlreadyExists, text))
            }
            Err(error) => Err(error),
        }
    }

    async fn create(&self, object: &Object) -> Result<(), Error> {
        let key = object.key();
        let options = WriteOptions { field_manager: "podyard-volumes".into(), ..WriteOptions::default() };
        match self.registry.create(key.resource, &key.namespace, object.0.clone(), &options).await {
            Err(error) if error.kind() == Kind::AlreadyExists => Ok(()),
            other => other.map(drop),
        }
    }
}

/// The claim that a deleted volume was of.
fn claim_of(deletion: &Deletion) -> Option<(String, String)> {
    let claim = &deletion.about["claim"];
    Some((claim["namespace"].as_str()?.to_owned(), claim["name"].as_str()?.to_owned()))
}

/// The volume as it was, for a claim by name: whoever gets that name gets the data.
fn volume_again(deletion: &Deletion, namespace: &str, claim: &str, size_bytes: u64) -> Object {
    let was = &deletion.about["volume"];
    let mut spec = was["spec"].clone();
    if !spec.is_object() {
        spec = json!({
            "capacity": {"storage": size_bytes.max(1).to_string()},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Delete",
            "volumeMode": "Filesystem",
            "csi": {"driver": DRIVER, "volumeHandle": deletion.name},
        });
    }
    spec["claimRef"] =
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": claim});
    Object(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": was["name"].as_str().unwrap_or(&deletion.name),
            "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER, "podyard.io/undeleted": time(now_secs())},
        },
        "spec": spec,
    }))
}

fn claim_again(volume: &Object, namespace: &str, claim: &str) -> Object {
    Object(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim, "namespace": namespace},
        "spec": {
            "accessModes": volume.0["spec"]["accessModes"],
            "resources": {"requests": {"storage": volume.0["spec"]["capacity"]["storage"]}},
            "storageClassName": volume.get("spec.storageClassName").cloned().unwrap_or(Value::from("")),
            "volumeMode": "Filesystem",
            "volumeName": volume.name(),
        },
    }))
}

fn time(secs: u64) -> String {
    let secs = i64::try_from(secs).unwrap_or(i64::MAX);
    api::time::seconds(jiff::Timestamp::from_second(secs).unwrap_or(jiff::Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_deleted_comes_back_for_a_name() {
        let deletion = Deletion {
            name: "pvc-1".into(),
            deleted_at_secs: 0,
            expires_at_secs: 1,
            about: json!({
                "claim": {"namespace": "n", "name": "data", "uid": "c"},
                "volume": {"name": "v", "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOncePod"],
                    "storageClassName": "host", "csi": {"driver": DRIVER, "volumeHandle": "pvc-1"},
                    "claimRef": {"namespace": "n", "name": "data", "uid": "c"}}},
            }),
        };
        assert_eq!(claim_of(&deletion), Some(("n".into(), "data".into())));
        let volume = volume_again(&deletion, "n", "other", 5);
        assert_eq!(volume.name(), "v");
        assert_eq!(volume.get_str("spec.claimRef.name"), Some("other"));
        assert_eq!(volume.get("spec.claimRef.uid"), None, "the next claim has another uid");
        let claim = claim_again(&volume, "n", "other");
        assert_eq!(claim.get_str("spec.volumeName"), Some("v"));
        assert_eq!(claim.get_str("spec.resources.requests.storage"), Some("1Gi"));
        let orphan = Deletion { about: json!({"claim": {"uid": "c"}}), ..deletion };
        assert_eq!(claim_of(&orphan), None);
        assert_eq!(volume_again(&orphan, "n", "x", 5).get_str("spec.csi.volumeHandle"), Some("pvc-1"));
    }
}
