//! What a spec must not say: a table of small checks, each with the field it names.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use oci_spec::runtime::Spec;

use crate::error::{Error, Result};
use crate::namespaces::{Kind, Source};

type Check = fn(&Spec) -> Result<()>;

const CHECKS: &[Check] = &[
    version,
    platform,
    process,
    root,
    hooks,
    labels,
    devices_net,
    rdt,
    memory_policy,
    personality,
    id_maps,
    time,
    paths,
    names,
];

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

fn hooks(spec: &Spec) -> Result<()> {
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    #[allow(deprecated)]
    let lists = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (name, list) in lists {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(Error::unsupported(format!("hooks.{name}"), "hooks are not run"));
        }
    }
    Ok(())
}

fn labels(spec: &Spec) -> Result<()> {
    let process = spec.process().as_ref();
    let set = |s: &Option<String>| s.as_ref().is_some_and(|s| !s.is_empty());
    if process.is_some_and(|p| set(p.selinux_label())) {
        return Err(Error::unsupported("process.selinuxLabel", "no SELinux"));
    }
    if process.is_some_and(|p| set(p.apparmor_profile())) {
        return Err(Error::unsupported("process.apparmorProfile", "no AppArmor"));
    }
    if spec.linux().as_ref().is_some_and(|l| set(l.mount_label())) {
        return Err(Error::unsupported("linux.mountLabel", "no SELinux"));
    }
    Ok(())
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

fn memory_policy(spec: &Spec) -> Result<()> {
    match spec.linux().as_ref().and_then(|l| l.memory_policy().as_ref()) {
        Some(_) => Err(Error::unsupported("linux.memoryPolicy", "not offered")),
        None => Ok(()),
    }
}

fn personality(spec: &Spec) -> Result<()> {
    match spec.linux().as_ref().and_then(|l| l.personality().as_ref()) {
        Some(_) => Err(Error::unsupported("linux.personality", "not offered")),
        None => Ok(()),
    }
}

fn time(spec: &Spec) -> Result<()> {
    let offsets = spec.linux().as_ref().and_then(|l| l.time_offsets().as_ref());
    match offsets.filter(|o| !o.is_empty()) {
        Some(_) => Err(Error::unsupported("linux.timeOffsets", "not offered")),
        None => Ok(()),
    }
}

fn id_maps(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    let maps = linux.uid_mappings().iter().chain(linux.gid_mappings());
    let user = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|n| n.typ() == oci_spec::runtime::LinuxNamespaceType::User && n.path().is_none());
    let mapped = maps.flatten().count() > 0;
    if mapped && !user {
        return Err(Error::invalid("linux.uidMappings", "needs a new user namespace"));
    }
    for mount in spec.mounts().iter().flatten() {
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
            return Err(Error::unsupported("mounts[].uidMappings", "not offered"));
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
    match map.get(&Kind::Mount) {
        Some(Source::New) => {}
        Some(Source::Path(_)) => {
            return Err(Error::unsupported(
                field(Kind::Mount),
                "a container has a mount namespace of its own",
            ));
        }
        None => return Err(Error::invalid(field(Kind::Mount), "is required")),
    }
    if matches!(map.get(&Kind::User), Some(Source::Path(_))) {
        return Err(Error::unsupported(field(Kind::User), "cannot be joined"));
    }
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
