//! The images that are always there, offline.
//!
//! - `podyard.local/host`: the host's programs. Its `/usr` (and `/bin`, `/sbin`, `/lib*` where they are not links
//!   into `/usr`) beneath a generated skeleton ([`crate::host`]).
//! - `podyard.local/toolbox`: a copy of the static binary with its applets in `/bin`.
//!
//! ```text
//! <images>/host.<boot>.<fingerprint>/       the skeleton
//!         /toolbox.<boot>.<fingerprint>/
//! ```
//!
//! The fingerprint covers everything put in, so a changed host or binary makes a new image and running containers
//! keep theirs until [`sweep`]. An image serves one boot of the machine: it is cheap to make, so it need not survive a
//! power failure, and nothing has to be flushed to the disk for it.
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::files::{self, Durability, Fingerprint};
use crate::{Error, Kind, host};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Reference of the image made of the host's own programs.
pub const HOST: &str = "podyard.local/host";
/// Reference of the image made of our own binary.
pub const TOOLBOX: &str = "podyard.local/toolbox";

/// Search path of both images.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Raised when what is generated changes in a way that the fingerprint does not see.
const GENERATION: &[u8] = b"1";

/// What a container of this image does unless told otherwise. Source: OCI image-spec, config.md.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; absolute.
    pub cwd: PathBuf,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The program with its fixed arguments; Kubernetes' `command` replaces it.
    pub entrypoint: Vec<String>,
    /// Default arguments; Kubernetes' `args` replaces them.
    pub cmd: Vec<String>,
}

/// Read-only directories for one place in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageLayer {
    /// Absolute path inside the container.
    pub destination: PathBuf,
    /// Directories of the host, topmost first.
    pub lower: Vec<PathBuf>,
}

/// An image that is on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// As it was asked for, without tag.
    pub reference: String,
    /// Names the content: `podyard.local/host@<fingerprint>`.
    pub id: String,
    /// Defaults for containers.
    pub config: Config,
    /// The root first, then what lies beneath it, parents before children.
    pub layers: Vec<ImageLayer>,
}

/// What the toolbox image is made of.
#[derive(Clone, Debug)]
pub struct Toolbox {
    /// The static binary; the running one is `/proc/self/exe`.
    pub binary: PathBuf,
    /// Names of the applets: each becomes a link in `/bin`.
    pub applets: Vec<String>,
}

/// Makes the image for `reference` if it is not in `images` yet, and describes it. Idempotent.
///
/// # Errors
/// `NotFound` for any other reference.
pub fn ensure(images: &Path, reference: &str, toolbox: &Toolbox) -> Result<Image, Error> {
    match normalize(reference) {
        HOST => ensure_host(images),
        TOOLBOX => ensure_toolbox(images, toolbox),
        _ => {
            let text = format!(
                "image {reference}: only {HOST} and {TOOLBOX} exist so far; registries are not supported"
            );
            Err(Error::new(Kind::NotFound, text))
        }
    }
}

/// Whether [`ensure`] knows `reference`.
#[must_use]
pub fn is_built_in(reference: &str) -> bool {
    matches!(normalize(reference), HOST | TOOLBOX)
}

/// Removes images that no snapshot needs and crashed builds. `in_use` holds paths of lower directories.
///
/// # Errors
/// The disk's answer.
pub fn sweep(images: &Path, in_use: &BTreeSet<PathBuf>) -> Result<Vec<String>, Error> {
    let mut swept = files::sweep(images)?;
    for name in files::names(images)? {
        if !in_use.contains(&images.join(&name)) {
            files::discard(images, &name, Durability::Volatile)?;
            swept.push(name);
        }
    }
    Ok(swept)
}

/// The only tag there is may be spelled out.
fn normalize(reference: &str) -> &str {
    reference.strip_suffix(":latest").unwrap_or(reference)
}

/// The last host image described, so that a thousand containers do not read a thousand certificates each.
static LAST_HOST: Mutex<Option<Described>> = Mutex::new(None);

struct Described {
    images: PathBuf,
    /// [`host::stamp`] when it was read.
    stamp: String,
    image: Image,
}

fn ensure_host(images: &Path) -> Result<Image, Error> {
    // Before reading: a change meanwhile makes the next call read again.
    let stamp = host::stamp(Path::new("/"));
    // A panic elsewhere leaves a whole value, or none.
    let mut last = LAST_HOST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = last.as_ref().filter(|known| known.images == images && known.stamp == stamp)
        && known.image.layers.iter().all(|layer| layer.lower.iter().all(|lower| lower.is_dir()))
    {
        return Ok(known.image.clone());
    }
    let image = build_host(images)?;
    *last = Some(Described { images: images.to_owned(), stamp, image: image.clone() });
    Ok(image)
}

fn build_host(images: &Path) -> Result<Image, Error> {
    let skeleton = host::skeleton(Path::new("/")).context(|| "read the host's /etc".into())?;
    let mut fingerprint = Fingerprint::new();
    fingerprint.field(GENERATION);
    skeleton.entries.iter().for_each(|entry| entry.fingerprint(&mut fingerprint));
    let id = fingerprint.hex();
    let root =
        build(images, "host", &id, |at| skeleton.write(at)).context(|| format!("build image {HOST}"))?;
    let mut layers = vec![ImageLayer { destination: "/".into(), lower: vec![root] }];
    layers.extend(
        skeleton.shared.into_iter().map(|dir| ImageLayer { destination: dir.clone(), lower: vec![dir] }),
    );
    let config = Config { cmd: vec!["/bin/sh".into()], ..defaults() };
    Ok(Image { reference: HOST.into(), id: format!("{HOST}@{id}"), config, layers })
}

fn ensure_toolbox(images: &Path, toolbox: &Toolbox) -> Result<Image, Error> {
    let binary = &toolbox.binary;
    let stat = fs::metadata(binary).context(|| format!("stat {}", binary.display()))?;
    let mut fingerprint = Fingerprint::new();
    fingerprint.field(GENERATION);
    // A program is replaced by a new inode or a new time; reading tens of megabytes each start would cost more.
    for number in
        [stat.dev(), stat.ino(), stat.size(), stat.mtime().cast_unsigned(), stat.mtime_nsec().cast_unsigned()]
    {
        fingerprint.field(&number.to_le_bytes());
    }
    for applet in &toolbox.applets {
        crate::snapshot::check_name("applet", applet)?;
        fingerprint.field(applet.as_bytes());
    }
    let id = fingerprint.hex();
    let root = build(images, "toolbox", &id, |at| {
        host::toolbox_skeleton(&toolbox.applets).write(at)?;
        copy_program(binary, &at.join("bin/podyard-toolbox"))
    })
    .context(|| format!("build image {TOOLBOX}"))?;
    let layers = vec![ImageLayer { destination: "/".into(), lower: vec![root] }];
    let config = Config { entrypoint: vec!["/bin/podyard-toolbox".into()], ..defaults() };
    Ok(Image { reference: TOOLBOX.into(), id: format!("{TOOLBOX}@{id}"), config, layers })
}

/// Makes `<kind>.<boot>.<id>` if it is missing, and then removes the images of other boots, which nothing can use.
fn build(
    images: &Path,
    kind: &str,
    id: &str,
    write: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    let boot = fs::read_to_string(BOOT_ID).context(|| format!("read {BOOT_ID}"))?;
    let boot = boot.get(..8).ok_or_else(|| Error::new(Kind::Internal, format!("{BOOT_ID} is too short")))?;
    let name = format!("{kind}.{boot}.{id}");
    if images.join(&name).is_dir() {
        return Ok(images.join(name));
    }
    let root = files::build(images, &name, Durability::Volatile, write)?;
    for other in files::names(images)? {
        let of_boot = other.split('.').nth(1).filter(|_| !other.starts_with('.'));
        if of_boot.is_some_and(|of_boot| of_boot != boot) {
            files::discard(images, &other, Durability::Volatile)?;
        }
    }
    Ok(root)
}

fn defaults() -> Config {
    Config { env: vec![PATH.into()], cwd: "/".into(), ..Config::default() }
}

/// Shares the blocks where the filesystem can (FICLONE), else copies.
fn copy_program(from: &Path, to: &Path) -> Result<(), Error> {
    let source = fs::File::open(from).context(|| format!("open {}", from.display()))?;
    let target = fs::File::create_new(to).context(|| format!("create {}", to.display()))?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        let (mut source, mut target) = (&source, &target);
        std::io::copy(&mut source, &mut target)
            .context(|| format!("copy {} to {}", from.display(), to.display()))?;
    }
    files::set_mode(to, 0o755)
}
