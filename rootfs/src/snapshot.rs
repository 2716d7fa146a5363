//! Snapshots: the writable directories of one container attempt.
//!
//! ```text
//! <snapshots>/<key>/0/{upper,work}     the image's first layer, "/"
//!                  /1/{upper,work}     the next, e.g. "/usr"
//! <snapshots>/.new.*  .old.*           what a crash left; swept
//! ```
//!
//! Life: `prepare` (idempotent) → mounted by the runtime → `remove` (idempotent). The key names the attempt, so
//! a retry finds its own work, and a second attempt starts clean.
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::files::{self, Durability};
use crate::image::Image;
use crate::overlay::{Access, Layer, RootPlan};
use crate::{Error, Kind};
use std::path::{Path, PathBuf};

/// Longest key or volume name in bytes: file names end at 255 and scratch names need a prefix.
pub(crate) const NAME_BYTES_MAX: usize = 200;

/// The snapshots of one data directory.
#[derive(Clone, Debug)]
pub struct Snapshots {
    root: PathBuf,
}

impl Snapshots {
    /// Snapshots kept in `root`, made on first use with mode 0700.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Snapshots {
        Snapshots { root: root.into() }
    }

    /// Makes the writable directories for `key` over `image`. Present already: the same plan again.
    ///
    /// # Errors
    /// `Invalid` for a bad key, or if the snapshots lie inside the image's own lower directories.
    pub fn prepare(&self, key: &str, image: &Image, access: Access) -> Result<RootPlan, Error> {
        check_name("snapshot key", key)?;
        if let Some(lower) =
            image.layers.iter().flat_map(|layer| &layer.lower).find(|l| self.root.starts_with(l))
        {
            let text = format!(
                "snapshots in {} lie inside the lower directory {}",
                self.root.display(),
                lower.display()
            );
            return Err(Error::new(Kind::Invalid, text));
        }
        let home = files::build(&self.root, key, Durability::Volatile, |at| {
            (0..image.layers.len()).try_for_each(|index| {
                let layer = at.join(index.to_string());
                files::create_dir(&layer, 0o700)?;
                // The merged directory shows the upper one's mode.
                files::create_dir(&layer.join("upper"), 0o755)?;
                files::create_dir(&layer.join("work"), 0o700)
            })
        })
        .context(|| format!("prepare snapshot {key}"))?;
        let layers = image.layers.iter().enumerate().map(|(index, layer)| Layer {
            destination: layer.destination.clone(),
            lower: layer.lower.clone(),
            upper: home.join(index.to_string()).join("upper"),
            work: home.join(index.to_string()).join("work"),
        });
        Ok(RootPlan { layers: layers.collect(), access })
    }

    /// Removes the snapshot and what was written to it. Absent already: nothing is done.
    ///
    /// The caller has seen the container's cgroup empty: removing a mounted snapshot pulls it from under it.
    ///
    /// # Errors
    /// `Invalid` for a bad key; otherwise the disk's answer.
    pub fn remove(&self, key: &str) -> Result<(), Error> {
        check_name("snapshot key", key)?;
        files::discard(&self.root, key, Durability::Volatile).context(|| format!("remove snapshot {key}"))
    }

    /// Keys of all snapshots, sorted, for the collector.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn list(&self) -> Result<Vec<String>, Error> {
        let names = files::names(&self.root)?;
        Ok(names.into_iter().filter(|name| !name.starts_with('.')).collect())
    }

    /// Removes what crashed calls left. Returns their names. Call it before the first `prepare`.
    ///
    /// # Errors
    /// The disk's answer.
    pub fn sweep(&self) -> Result<Vec<String>, Error> {
        files::sweep(&self.root)
    }

    /// The directory they are in.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// Names become file names: lower case letters, digits, `-`, `.`, `_`; no leading dot (those are swept).
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.starts_with('.') || !name.chars().all(plain) {
        return Err(Error::new(
            Kind::Invalid,
            format!("{what} {name:?} is not a plain name of 1 to {NAME_BYTES_MAX} bytes"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let layer = |destination: &str| crate::image::ImageLayer {
            destination: destination.into(),
            lower: vec![Path::new("/lower").join(destination.trim_start_matches('/'))],
        };
        Image {
            reference: "r".into(),
            id: "r@1".into(),
            config: crate::Config::default(),
            layers: vec![layer("/"), layer("/usr")],
        }
    }

    #[test]
    fn a_crash_anywhere_leaves_a_snapshot_whole_or_absent() {
        for steps in 0.. {
            let dir = std::env::temp_dir().join(format!("podyard-snapshot-{}", std::process::id()));
            let snapshots = Snapshots::new(&dir);
            let (_, crashed) =
                files::fault::crash_after(steps, || snapshots.prepare("a", &image(), Access::ReadWrite));
            let plan = snapshots.prepare("a", &image(), Access::ReadWrite).unwrap();
            assert_eq!(plan.layers.len(), 2);
            for layer in &plan.layers {
                assert!(layer.upper.is_dir() && layer.work.is_dir(), "after {steps} steps");
            }
            let ((), _) = files::fault::crash_after(steps, || drop(snapshots.remove("a")));
            snapshots.remove("a").unwrap();
            snapshots.sweep().unwrap();
            assert!(files::names(&dir).unwrap().is_empty(), "after {steps} steps");
            std::fs::remove_dir_all(dir).unwrap();
            if !crashed {
                assert!(steps > 5, "the steps are counted");
                return;
            }
        }
    }

    #[test]
    fn snapshots_inside_a_lower_directory_are_refused() {
        let snapshots = Snapshots::new("/lower/usr/local/podyard");
        assert_eq!(snapshots.prepare("a", &image(), Access::ReadWrite).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for bad in ["", ".", "..", ".new.x", "a/b", "a\0b", "ä", long.as_str()] {
            assert_eq!(check_name("key", bad).unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
        check_name("key", "0c3e.web_1-0.2").unwrap();
    }
}
