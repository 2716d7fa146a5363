//! A pod's volumes: emptyDir, hostPath, and the claims that it holds ([`crate::hold`]).

use std::path::{Path, PathBuf};

use api::{Key, Object, holder};
use rootfs::volume::BindAccess;
use rootfs::{Claim, Enforcement, Medium, Wish};
use serde_json::Value;
use shim::protocol::VolumeMount;

use crate::error::{Error, Kind, Result};
use crate::host::{Host, blocking, from_api, from_rootfs};
use crate::yard::PodPaths;

/// The driver of volumes on this host.
pub const DRIVER: &str = "podyard.io/host";
/// Bytes of the shared /dev/shm.
const SHM_BYTES: u64 = 64 << 20;

/// Prepares every volume of a pod whose claims are held. Idempotent. Answers what was done.
///
/// # Errors
/// What the disk or the API says, under Kubernetes' word for it.
pub async fn prepare(host: &Host, pod: &Object, paths: &PodPaths) -> Result<Vec<String>> {
    let mut effects = Vec::new();
    let shm = paths.shm_dir();
    rootfs::volume::ensure_empty_dir(&shm, Medium::Memory { size_bytes: SHM_BYTES }).map_err(from_rootfs)?;
    effects.push(format!("mount(tmpfs, {}) for /dev/shm", shm.display()));
    for volume in pod.get_array("spec.volumes") {
        let name = volume["name"].as_str().unwrap_or("");
        let source = source(host, pod, paths, volume).await?;
        match volume.get("emptyDir") {
            Some(empty) => {
                let medium = medium(empty);
                rootfs::volume::ensure_empty_dir(&source.path, medium).map_err(from_rootfs)?;
                effects.push(format!("emptyDir {name}: {medium:?} at {}", source.path.display()));
            }
            None => effects.push(format!("volume {name}: {}", source.path.display())),
        }
    }
    Ok(effects)
}

/// Removes the pod's own volumes. The caller has seen the pod's cgroup empty.
///
/// # Errors
/// The first that failed; the others were tried.
pub fn remove(paths: &PodPaths) -> Result<()> {
    let mut outcome = rootfs::volume::remove_empty_dir(&paths.shm_dir()).map_err(from_rootfs);
    if let Ok(entries) = std::fs::read_dir(paths.volumes_dir()) {
        for entry in entries.flatten() {
            outcome = outcome.and(rootfs::volume::remove_empty_dir(&entry.path()).map_err(from_rootfs));
        }
    }
    outcome.and_then(|()| crate::boot::remove_tree(&paths.volumes_dir()))
}

/// Everything that one container mounts, in order.
///
/// # Errors
/// `Invalid` for a mount of an unknown volume; what [`prepare`] says.
pub async fn mounts(
    host: &Host,
    pod: &Object,
    container: &Value,
    paths: &PodPaths,
) -> Result<Vec<VolumeMount>> {
    let files = paths.files_dir();
    let mount = |source: PathBuf, destination: &str| VolumeMount {
        source,
        claim: None,
        sub_path: None,
        destination: destination.into(),
        access: BindAccess::ReadWrite,
    };
    let mut mounts = vec![
        mount(paths.shm_dir(), "/dev/shm"),
        mount(files.join("hosts"), "/etc/hosts"),
        mount(files.join("hostname"), "/etc/hostname"),
        mount(files.join("resolv.conf"), "/etc/resolv.conf"),
    ];
    for wish in container["volumeMounts"].as_array().into_iter().flatten() {
        let name = wish["name"].as_str().unwrap_or("");
        let volume =
            pod.get_array("spec.volumes").iter().find(|volume| volume["name"] == name).ok_or_else(|| {
                config(Error::new(Kind::Invalid, format!("volumeMount {name}: no such volume")))
            })?;
        let claim_read_only = volume["persistentVolumeClaim"]["readOnly"] == true;
        let source = source(host, pod, paths, volume).await?;
        let read_only = wish["readOnly"] == true || claim_read_only || source.read_only;
        let destination = wish["mountPath"].as_str().unwrap_or("");
        mounts.retain(|mount| mount.destination != Path::new(destination));
        mounts.push(VolumeMount {
            source: source.path,
            claim: source.claim,
            sub_path: wish["subPath"].as_str().filter(|path| !path.is_empty()).map(PathBuf::from),
            destination: destination.into(),
            access: if read_only { BindAccess::ReadOnly } else { BindAccess::ReadWrite },
        });
    }
    Ok(mounts)
}

fn config(error: Error) -> Error {
    error.reason("ContainerCreating")
}

fn medium(empty: &Value) -> Medium {
    let size = empty["sizeLimit"].as_str().and_then(|text| api::quantity::parse_bytes(text).ok());
    match empty["medium"].as_str() {
        Some("Memory") => Medium::Memory { size_bytes: size.unwrap_or(0) },
        _ => Medium::Disk,
    }
}

/// Where a volume's data is on this host.
struct Source {
    path: PathBuf,
    /// Whose it must be, if it is a volume of ours.
    claim: Option<Claim>,
    /// Nobody may write to it.
    read_only: bool,
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Source {
        Source { path, claim: None, read_only: false }
    }
}

async fn source(host: &Host, pod: &Object, paths: &PodPaths, volume: &Value) -> Result<Source> {
    let name = volume["name"].as_str().unwrap_or("");
    if volume.get("emptyDir").is_some() {
        return Ok(paths.volumes_dir().join(name).into());
    }
    if let Some(path) = volume["hostPath"]["path"].as_str() {
        return Ok(host_path(Path::new(path), volume["hostPath"]["type"].as_str().unwrap_or(""))?.into());
    }
    if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
        return claimed(host, pod, claim).await;
    }
    Err(config_error(format!(
        "volume {name}: only emptyDir, hostPath and persistentVolumeClaim are supported"
    )))
}

fn config_error(text: String) -> Error {
    Error::new(Kind::Invalid, text).reason("CreateContainerConfigError")
}

/// Checks, or makes, what a hostPath volume asks for. Source: Kubernetes, "Volumes", hostPath types.
fn host_path(path: &Path, kind: &str) -> Result<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let what = || format!("hostPath {}", path.display());
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(config_error(format!("{} is not an absolute path without \"..\"", what())));
    }
    match kind {
        "DirectoryOrCreate" => crate::boot::create_dir(path, 0o755)?,
        "FileOrCreate" if !path.exists() => {
            std::fs::write(path, []).map_err(|error| Error::io(what(), error))?;
        }
        _ => {}
    }
    let found = std::fs::metadata(path).map_err(|error| config(Error::io(what(), error)))?.file_type();
    let fits = match kind {
        "" => true,
        "Directory" | "DirectoryOrCreate" => found.is_dir(),
        "File" | "FileOrCreate" => found.is_file(),
        "Socket" => found.is_socket(),
        "CharDevice" => found.is_char_device(),
        "BlockDevice" => found.is_block_device(),
        other => return Err(config_error(format!("{}: no type {other:?}", what()))),
    };
    if fits {
        Ok(path.to_owned())
    } else {
        Err(config(Error::new(Kind::Conflict, format!("{} is not a {kind}", what()))))
    }
}

/// The data behind a claim that this pod holds.
async fn claimed(host: &Host, pod: &Object, name: &str) -> Result<Source> {
    let get = |key| async { host.upstream.get(key).await.map_err(|error| config(from_api(error))) };
    let claim = get(Key::core("persistentvolumeclaims", pod.namespace(), name)).await?;
    if crate::hold::is_exclusive(&claim) && holder::holder(&claim) != Some(pod.uid()) {
        return Err(config(Error::new(Kind::Conflict, format!("claim {name} is not held by this pod"))));
    }
    let volume_name = claim.get_str("spec.volumeName").unwrap_or("").to_owned();
    let volume = get(Key::core("persistentvolumes", "", volume_name.clone())).await?;
    if volume.get_str("spec.claimRef.uid") != Some(claim.uid()) {
        let text = format!("volume {volume_name} does not belong to claim {name} ({})", claim.uid());
        return Err(config(Error::new(Kind::Conflict, text)));
    }
    let modes = claim.get_array("spec.accessModes");
    let read_only = !modes.is_empty() && modes.iter().all(|mode| mode == "ReadOnlyMany");
    let by_path = |path: &str, kind: &str| {
        host_path(Path::new(path), kind).map(|path| Source { path, claim: None, read_only })
    };
    if let Some(path) = volume.get_str("spec.local.path") {
        return by_path(path, "Directory");
    }
    if let Some(path) = volume.get_str("spec.hostPath.path") {
        return by_path(path, volume.get_str("spec.hostPath.type").unwrap_or(""));
    }
    if volume.get_str("spec.csi.driver") != Some(DRIVER) {
        return Err(config_error(format!(
            "volume {volume_name} is neither local, hostPath nor of driver {DRIVER}"
        )));
    }
    let handle = handle(&volume).to_owned();
    let owner = Claim { uid: claim.uid().to_owned(), epoch: holder::epoch(&claim) };
    let (volumes, wish, holder) = (host.volumes.clone(), wish(&volume), owner.clone());
    let path = blocking(move || volumes.ensure(&handle, &holder, wish).map_err(from_rootfs))
        .await
        .map_err(config)?
        .source;
    Ok(Source { path, claim: Some(owner), read_only })
}

/// The directory's name of a volume of ours.
pub fn handle(volume: &Object) -> &str {
    volume.get_str("spec.csi.volumeHandle").unwrap_or(volume.name())
}

/// What a PersistentVolume of ours asks of the disk.
pub fn wish(volume: &Object) -> Wish {
    let size = volume.get_str("spec.capacity.storage").and_then(|text| api::quantity::parse_bytes(text).ok());
    let enforcement = match volume.get_str("spec.csi.volumeAttributes.enforcement") {
        Some("quota") => Enforcement::ProjectQuota,
        Some("loop") => Enforcement::Loop,
        Some("none") => Enforcement::None,
        _ => Enforcement::Auto,
    };
    Wish { size_bytes: size.unwrap_or(0), enforcement }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn media() {
        for (empty, expect) in [
            (json!({}), Medium::Disk),
            (json!({"medium": "Memory"}), Medium::Memory { size_bytes: 0 }),
            (json!({"medium": "Memory", "sizeLimit": "1Mi"}), Medium::Memory { size_bytes: 1 << 20 }),
        ] {
            assert_eq!(medium(&empty), expect);
        }
    }

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(host_path(&at("d"), "Directory").is_err());
        assert!(host_path(&at("d"), "DirectoryOrCreate").is_ok());
        assert!(host_path(&at("d"), "File").is_err());
        assert!(host_path(&at("f"), "FileOrCreate").is_ok());
        assert!(host_path(&at("f"), "").is_ok());
        assert!(host_path(Path::new("relative"), "").is_err());
        assert!(host_path(Path::new("/a/../b"), "").is_err());
    }
}
