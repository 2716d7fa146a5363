//! What a spec must not say: a table of small checks, each with the field it names.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::error::{Error, Result};
use crate::mounts::options::{MountKind, MountPlan};
use crate::namespaces::{Kind, Source};

type Check = fn(&Spec) -> Result<()>;

const CHECKS: &[Check] = &[version, platform, process, root, devices_net, rdt, id_maps, time, paths, names];

/// Every check of the table, in order; the first refusal is returned.
pub(crate) fn spec(spec: &Spec) -> Result<()> {
    CHECKS.iter().try_for_each(|check| check(spec))
}

fn version(spec: &Spec) -> Result<()> {
    match spec.version().split('.').next() {
        Some("1") => Ok(()),
        _ => Err(Error::invalid("ociVersion", format!("{:?} is not 1.x", spec.version()))),
    }
}

fn platform(spec: &Spec) -> Result<()> {
    let other = spec.windows().is_some() || spec.solaris().is_some() || spec.zos().is_some();
    if other || spec.vm().is_some() {
        return Err(Error::invalid("windows, solaris, zos, vm", "this is Linux"));
    }
    if spec.linux().is_none() {
        return Err(Error::invalid("linux", "is required"));
    }
    Ok(())
}

fn process(spec: &Spec) -> Result<()> {
    if spec.process().is_none() {
        return Err(Error::invalid("process", "is required"));
    }
    Ok(())
}

fn root(spec: &Spec) -> Result<()> {
    match spec.root() {
        Some(root) if !root.path().as_os_str().is_empty() => Ok(()),
        _ => Err(Error::invalid("root.path", "is required")),
    }
}

fn devices_net(spec: &Spec) -> Result<()> {
    let devices = spec.linux().as_ref().and_then(|l| l.net_devices().as_ref());
    match devices.filter(|d| !d.is_empty()) {
        Some(_) => Err(Error::unsupported("linux.netDevices", "not offered")),
        None => Ok(()),
    }
}

fn rdt(spec: &Spec) -> Result<()> {
    match spec.linux().as_ref().and_then(|l| l.intel_rdt().as_ref()) {
        Some(_) => Err(Error::unsupported("linux.intelRdt", "not offered")),
        None => Ok(()),
    }
}

/// Source: runtime-spec, config-linux.md, "Offset for Time Namespace".
fn time(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    let offsets = linux.time_offsets().iter().flatten();
    for (clock, by) in offsets {
        let field = format!("linux.timeOffsets.{clock}");
        if !["monotonic", "boottime"].contains(&clock.as_str()) {
            return Err(Error::invalid(field, "is neither monotonic nor boottime"));
        }
        if by.nanosecs().unwrap_or(0) >= 1_000_000_000 {
            return Err(Error::invalid(field, "has a second or more of nanoseconds"));
        }
        if !makes(spec, LinuxNamespaceType::Time) {
            return Err(Error::invalid(field, "needs a new time namespace"));
        }
    }
    Ok(())
}

/// Whether the spec lists a namespace of this kind without a path.
fn makes(spec: &Spec, typ: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    namespaces
        .into_iter()
        .flatten()
        .any(|n| n.typ() == typ && n.path().as_ref().is_none_or(|path| path.as_os_str().is_empty()))
}

fn id_maps(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    let listed = |typ| linux.namespaces().iter().flatten().any(|n| n.typ() == typ);
    for (field, map) in
        [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())]
    {
        let lines = map.iter().flatten().count();
        if lines > 0 && !listed(LinuxNamespaceType::User) {
            return Err(Error::invalid(field, "needs a user namespace"));
        }
        // One that is joined has its own; others are given for form's sake, as podman does.
        if lines == 0 && makes(spec, LinuxNamespaceType::User) {
            return Err(Error::invalid(field, "is required for a new user namespace"));
        }
        for line in map.iter().flatten() {
            let end = |first: u32| first.checked_add(line.size());
            if line.size() == 0 || end(line.container_id()).is_none() || end(line.host_id()).is_none() {
                return Err(Error::invalid(field, format!("size {} is out of range", line.size())));
            }
        }
    }
    Ok(())
}

/// ID-mapped mounts without mappings of their own take those of the container's user namespace, and only a filesystem
/// that is the container's alone may be changed.
pub(crate) fn mounts(mounts: &[MountPlan], namespaces: &BTreeMap<Kind, Source>) -> Result<()> {
    let mut mapped = mounts.iter().enumerate().filter_map(|(i, mount)| Some((i, mount.idmap.as_ref()?)));
    let user_namespace = namespaces.contains_key(&Kind::User);
    if let Some((i, _)) = mapped.find(|(_, idmap)| idmap.uids.is_empty() && !user_namespace) {
        let field = format!("mounts[{i}].uidMappings");
        return Err(Error::invalid(field, "is required without a user namespace"));
    }
    for (i, mount) in mounts.iter().enumerate() {
        let MountKind::Remount { filesystem: Some(_) } = &mount.kind else {
            continue;
        };
        let before = mounts[..i].iter().rfind(|before| before.destination == mount.destination);
        if !before.is_some_and(|m| matches!(&m.kind, MountKind::New { fs, .. } if fs == "tmpfs")) {
            let field = format!("mounts[{i}].options: remount");
            return Err(Error::unsupported(field, "without bind is for a tmpfs of an earlier entry"));
        }
    }
    Ok(())
}

fn paths(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    for (field, list) in
        [("linux.maskedPaths", linux.masked_paths()), ("linux.readonlyPaths", linux.readonly_paths())]
    {
        for path in list.iter().flatten() {
            inside(field, Path::new(path))?;
        }
    }
    Ok(())
}

fn names(spec: &Spec) -> Result<()> {
    // Source: uname(2), __NEW_UTS_LEN.
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if name.as_ref().is_some_and(|n| n.len() > 64 || n.contains('\0')) {
            return Err(Error::invalid(field, "is longer than 64 bytes"));
        }
    }
    Ok(())
}

/// The kinds that this runtime needs, and what depends on them.
pub(crate) fn namespaces(map: &BTreeMap<Kind, Source>, spec: &Spec) -> Result<()> {
    let field = |kind: Kind| format!("linux.namespaces: {}", kind.file_name());
    let set = |name: &Option<String>| name.as_ref().is_some_and(|n| !n.is_empty());
    let named = set(spec.hostname()) || set(spec.domainname());
    if named && !map.contains_key(&Kind::Uts) {
        return Err(Error::invalid("hostname", "needs a uts namespace"));
    }
    for (kind, source) in map {
        if let Source::Path(path) = source
            && !path.is_absolute()
        {
            return Err(Error::invalid(field(*kind), "path must be absolute"));
        }
    }
    Ok(())
}

/// A path inside the container: absolute, without `..` and without NUL.
pub(crate) fn inside(field: &str, path: &Path) -> Result<()> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Error::invalid(field, format!("{shown} is not absolute")));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(Error::invalid(field, format!("{shown} contains \"..\"")));
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Error::invalid(field, "contains NUL"));
    }
    Ok(())
}
