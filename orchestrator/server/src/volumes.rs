//! Volumes and their trash: what Kubernetes has no object for. `/podyard/v1/volumes…`
//!
//! | path | verb | answer |
//! | --- | --- | --- |
//! | `volumes` | GET | [`VolumeList`] |
//! | `volumes/undelete` | POST [`Undelete`] | [`Undeleted`] |
//! | `volumes/empty` | POST [`Empty`] | [`Emptied`] |

use api::Error;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

/// Volumes on disk, whoever owns them, and those that were deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeList {
    /// Sorted by name.
    pub volumes: Vec<VolumeOnDisk>,
    /// Sorted by name.
    pub trash: Vec<DeletedVolume>,
    /// A deletion that is under way.
    pub deleting: Option<Deleting>,
}

/// One volume on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeOnDisk {
    /// The directory's name, as in `spec.csi.volumeHandle`.
    pub name: String,
    /// `namespace/name` of its claim, if the API knows one.
    pub claim: Option<String>,
    /// The uid that it is marked with.
    pub owner: Option<String>,
    /// The claim's epoch when it was last handed out.
    pub epoch: u64,
    /// Bytes that it may hold; 0 for any number.
    pub size_bytes: u64,
    /// Bytes that it takes on the host's disk.
    pub used_bytes: u64,
    /// `projectQuota`, `loop` or `none`.
    pub enforcement: String,
    /// Where the data is.
    pub path: String,
}

/// A volume in the trash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeletedVolume {
    /// Its name there, for `undelete` and `empty`.
    pub id: String,
    /// `namespace/name` of the claim that it was of, if that is known.
    pub claim: Option<String>,
    /// Bytes that it might hold.
    pub size_bytes: u64,
    /// RFC 3339.
    pub deleted_at: String,
    /// When its data will be gone, RFC 3339.
    pub expires_at: String,
    /// Why it is here.
    pub because: String,
}

/// How far a deletion has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Deleting {
    /// Files and directories gone.
    pub entries: u64,
    /// Bytes given back.
    pub bytes: u64,
}

/// Takes a volume back from the trash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Undelete {
    /// Its name there.
    pub id: String,
    /// The new claim's namespace; the old one's if none is given.
    pub namespace: Option<String>,
    /// The new claim's name; the old one's if none is given.
    pub claim: Option<String>,
}

/// What is there again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Undeleted {
    /// The claim's namespace.
    pub namespace: String,
    /// The claim's name.
    pub claim: String,
    /// The PersistentVolume's name.
    pub volume: String,
}

/// Deletes volumes in the trash for good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Empty {
    /// Their names there.
    pub ids: Vec<String>,
    /// All of them.
    pub all: bool,
}

/// What can no longer be taken back; [`VolumeList::deleting`] tells how far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Emptied {
    /// Their names.
    pub ids: Vec<String>,
}

/// Who keeps the volumes.
pub trait VolumesApi: Send + Sync + 'static {
    /// Everything on disk.
    fn list(&self) -> BoxFuture<'_, Result<VolumeList, Error>>;

    /// Takes one back.
    fn undelete(&self, wish: Undelete) -> BoxFuture<'_, Result<Undeleted, Error>>;

    /// Gives some up.
    fn empty(&self, wish: Empty) -> BoxFuture<'_, Result<Emptied, Error>>;
}
