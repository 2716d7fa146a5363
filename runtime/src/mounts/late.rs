//! Mounts that become read-only last, because devices and the places of other mounts are still to be made in them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::api;
use super::options::{Attributes, READ_ONLY};
use crate::error::{Result, Step};

/// What is to be done to a mount in the end.
#[derive(Debug)]
pub(crate) struct Change {
    pub(super) mount: OwnedFd,
    pub(super) destination: PathBuf,
    pub(super) attributes: Attributes,
}

/// What is set at once and what in the end.
pub(super) fn split(attributes: Attributes) -> (Attributes, Option<Attributes>) {
    let now = Attributes { set: attributes.set & !READ_ONLY, ..attributes };
    (now, (now != attributes).then_some(Attributes::set(READ_ONLY)))
}

/// Does them.
pub(crate) fn apply(root: &OwnedFd, changes: &[Change]) -> Result<()> {
    for Change { mount, destination, attributes } in changes {
        api::set(root, mount, false, *attributes)
            .step(format!("make {} read-only", destination.display()))?;
    }
    Ok(())
}
