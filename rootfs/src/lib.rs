//! Root filesystems for containers: built-in images, writable snapshots, host volumes.
//!
//! ```text
//!  image::ensure ──► Image {config, lower directories}
//!                        │ Snapshots::prepare(key)
//!                        ▼
//!                    RootPlan {layers, read_only}      plain data, crosses the shim's socket
//!                        │ RootPlan::mount()
//!                        ▼
//!            detached mount fds: "/" first, then those moved beneath it
//!
//!  Volumes::ensure(name, claim, epoch) ──► path ──► bind_fd() ──► detached mount fd
//! ```
//!
//! Invariants:
//! - Nothing here enters the host's mount table, except `emptyDir` volumes in memory: every other mount is
//!   detached, and lives as long as a file descriptor or a container's mount namespace holds it.
//! - A directory appears under its final name complete, by rename; a crash leaves only dot-names, which
//!   [`Snapshots::sweep`], [`Volumes::sweep`] and [`image::sweep`] remove.
//! - The crate knows neither containers nor Kubernetes.
//!
//! Words: an *image* is read-only lower directories with a config; a *snapshot* is one container attempt's
//! writable upper and work directories, named by its key; a *volume* is a directory with an owner, its claim.
#![deny(unsafe_code)]

mod error;
mod ext4;
mod files;
pub mod host;
pub mod image;
mod loopfs;
pub mod overlay;
pub mod path;
mod quota;
pub mod snapshot;
mod sys;
pub mod volume;

pub use error::{Error, Kind, SysError};
pub use image::{Config, Image, Toolbox};
pub use overlay::{Access, Layer, MountedLayer, RootPlan};
pub use snapshot::Snapshots;
pub use volume::{Claim, Enforcement, Medium, Volumes, Wish};
