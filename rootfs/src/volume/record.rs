//! What `claim.json` says of a volume.
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::{Error, Kind, files};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

pub(super) const CLAIM_FILE: &str = "claim.json";

/// Who owns a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// The owner's identity: a PersistentVolumeClaim's uid.
    pub uid: String,
    /// Grows each time the volume is handed to a new incarnation; an older one is refused.
    pub epoch: u64,
}

/// What a volume's data is kept in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum Backing {
    /// A directory; the size is not enforced.
    Directory {
        /// Whether the directory carries its claim's uid in `trusted.podyard.claim`.
        marked: bool,
        /// Why nothing enforces the size; empty if nothing was to.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        because: String,
    },
    /// A directory in a quota project.
    ProjectQuota {
        /// Whether the directory carries its claim's uid in `trusted.podyard.claim`.
        marked: bool,
        /// The project's number.
        project: u32,
    },
    /// An ext4 image, `data.img`, whose UUID is the claim's.
    Loop {
        /// Blocks that were free when it was made, and since it was last enlarged.
        usable_blocks: u64,
    },
}

impl Backing {
    /// Kubernetes-style name of what enforces the size: `projectQuota`, `loop` or `none`.
    #[must_use]
    pub fn enforcement(&self) -> &'static str {
        match self {
            Backing::Directory { .. } => "none",
            Backing::ProjectQuota { .. } => "projectQuota",
            Backing::Loop { .. } => "loop",
        }
    }
}

/// The content of `claim.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// None after `release`.
    pub claim: Option<Claim>,
    /// The size asked for; 0 in records of a version that knew none.
    pub size_bytes: u64,
    /// Where the data is.
    pub backing: Backing,
}

impl Record {
    pub(super) fn read(home: &Path) -> Result<Record, Error> {
        let path = home.join(CLAIM_FILE);
        let bytes = fs::read(&path).context(|| format!("read {}", path.display()))?;
        parse(&bytes)
            .map_err(std::io::Error::from)
            .context(|| format!("parse {}", path.display()))
            .map_err(|error| error.with_kind(Kind::Internal))
    }

    pub(super) fn write(&self, home: &Path) -> Result<(), Error> {
        files::replace(&home.join(CLAIM_FILE), &self.encode())
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        format!("{}\n", serde_json::json!(self)).into_bytes()
    }
}

/// Also reads what was written before volumes had sizes: the bare owner, or `null`.
fn parse(bytes: &[u8]) -> serde_json::Result<Record> {
    let value: serde_json::Value = serde_json::from_slice(bytes)?;
    if value.is_null() || value.get("uid").is_some() {
        let backing = Backing::Directory { marked: false, because: String::new() };
        return Ok(Record { claim: serde_json::from_value(value)?, size_bytes: 0, backing });
    }
    serde_json::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written_by_every_version() {
        let claim = Claim { uid: "a".into(), epoch: 3 };
        let old = parse(br#"{"uid":"a","epoch":3}"#).unwrap();
        assert_eq!((old.claim.as_ref(), old.size_bytes), (Some(&claim), 0));
        assert_eq!(parse(b"null\n").unwrap().claim, None);
        for backing in [
            Backing::Directory { marked: true, because: "no quotas".into() },
            Backing::ProjectQuota { marked: true, project: 7 },
            Backing::Loop { usable_blocks: 9 },
        ] {
            let record = Record { claim: Some(claim.clone()), size_bytes: 5, backing };
            assert_eq!(parse(&record.encode()).unwrap(), record);
        }
        assert!(parse(b"{").is_err());
        assert!(parse(b"7").is_err());
    }
}
