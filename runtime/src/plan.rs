//! Spec → plan: every default resolved, every value parsed, nothing touched.
//!
//! A plan is what the child follows line by line. Making one reads no file (but the cache of compiled filters, where one
//! is given) and asks no kernel, so the same spec always gives the same plan, or the same refusal.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxResources, LinuxSeccomp, Spec};

use crate::error::{Error, Result};
use crate::hooks::Hooks;
use crate::mounts::options::{self, MountKind, MountPlan};
use crate::namespaces::{Kind, Source};
use crate::process::ProcessPlan;
use crate::seccomp::{Cache, Filter};
use crate::state::Identity;
use crate::validate;

/// All that is decided about a container before anything is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The first process.
    pub process: ProcessPlan,
    /// What to do about each kind of namespace; a kind not in it is shared with the caller.
    pub namespaces: BTreeMap<Kind, Source>,
    /// Lines of `uid_map`, for a user namespace of its own.
    pub uid_map: Vec<IdMap>,
    /// Lines of `gid_map`.
    pub gid_map: Vec<IdMap>,
    /// Lines of `timens_offsets`, for a time namespace of its own.
    pub time_offsets: String,
    /// In a UTS namespace of its own.
    pub hostname: Option<String>,
    /// NIS domain, likewise.
    pub domainname: Option<String>,
    /// The root directory that the spec names, if the caller brings no mount.
    pub root_path: Option<PathBuf>,
    /// Whether the root mount ends up read-only.
    pub root_read_only: bool,
    /// `MS_*` propagation of the root, and whether of the mounts below it too; a slave of the host's, then private, if
    /// the spec has none.
    pub root_propagation: Option<(u64, bool)>,
    /// Whether the host's root is let go of by pivot_root(2), which the initial ramdisk's does not allow; else it stays
    /// mounted beneath the container's, out of reach of paths.
    pub pivot: bool,
    /// In the spec's order.
    pub mounts: Vec<MountPlan>,
    /// The SELinux context of the filesystems that are new.
    pub mount_label: Option<String>,
    /// Device nodes beside the standard ones.
    pub devices: Vec<DevicePlan>,
    /// Paths that read as empty.
    pub masked_paths: Vec<PathBuf>,
    /// Paths that cannot be written.
    pub read_only_paths: Vec<PathBuf>,
    /// Path below `/proc/sys` → value.
    pub sysctls: Vec<(PathBuf, String)>,
    /// The compiled filter of the first process and of execs.
    pub seccomp: Option<Filter>,
    /// Where the spec wants the cgroup, as written.
    pub cgroups_path: Option<PathBuf>,
    /// Limits, as the spec has them.
    pub resources: Option<LinuxResources>,
    /// Programs to run at points of its life. Those after `start` are its caller's to run.
    pub hooks: Hooks,
    /// What hooks are told of it. The caller adds id and bundle.
    pub identity: Identity,
    /// What will be done in part only, said before anything is done.
    pub warnings: Vec<String>,
}

/// One line of a user or group ID map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// First ID inside.
    pub inside: u32,
    /// First ID outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// A device node to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    /// Absolute path inside.
    pub path: PathBuf,
    /// Block, character or FIFO.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a device node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Block device.
    Block,
    /// Character device.
    Character,
    /// FIFO.
    Fifo,
}

/// The nodes every container has. Source: runtime-spec, config-linux.md, "Default Devices".
const STANDARD_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

impl Plan {
    /// Checks the spec and decides everything that can be decided without the kernel.
    ///
    /// # Errors
    /// `Invalid` or `Unsupported`, naming the field. Nothing in a spec is ignored in silence.
    ///
    /// Source: runtime-spec, config.md and config-linux.md.
    pub fn from_spec(spec: &Spec) -> Result<Self> {
        Self::decide(spec, Filter::compile)
    }

    /// The same, its filter taken from `cache` if it was compiled before.
    ///
    /// # Errors
    /// As [`Plan::from_spec`].
    pub fn from_spec_cached(spec: &Spec, cache: &Cache) -> Result<Self> {
        Self::decide(spec, |profile, warnings| cache.filter(profile, warnings))
    }

    fn decide(
        spec: &Spec,
        compile: impl Fn(&LinuxSeccomp, &mut Vec<String>) -> Result<Filter>,
    ) -> Result<Self> {
        validate::spec(spec)?;
        let none = Linux::default();
        let linux = spec.linux().as_ref().unwrap_or(&none);
        let process = spec.process().as_ref().ok_or_else(|| Error::invalid("process", "is required"))?;
        let mut warnings = Vec::new();

        let mut namespaces = BTreeMap::new();
        for namespace in linux.namespaces().iter().flatten() {
            let kind = Kind::from_spec(namespace.typ());
            let source = match namespace.path() {
                Some(path) if !path.as_os_str().is_empty() => Source::Path(path.clone()),
                _ => Source::New,
            };
            if namespaces.insert(kind, source).is_some() {
                let field = format!("linux.namespaces: {}", kind.file_name());
                return Err(Error::invalid(field, "is listed twice"));
            }
        }
        validate::namespaces(&namespaces, spec)?;

        let mounts = spec
            .mounts()
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, mount)| {
                options::parse(mount, &mut warnings).map_err(|e| e.within(format!("mounts[{i}]")))
            })
            .collect::<Result<Vec<_>>>()?;
        validate::mounts(&mounts, &namespaces)?;

        // Twice the same is once: a second mask would cover the first.
        let paths = |list: &Option<Vec<String>>| -> Vec<PathBuf> {
            let mut seen = std::collections::HashSet::new();
            list.iter().flatten().filter(|path| seen.insert(path.as_str())).map(PathBuf::from).collect()
        };
        Ok(Self {
            process: ProcessPlan::from_spec(process)?.within(linux)?,
            uid_map: id_maps(linux.uid_mappings().as_deref()),
            gid_map: id_maps(linux.gid_mappings().as_deref()),
            time_offsets: time_offsets(linux),
            hostname: spec.hostname().clone().filter(|h| !h.is_empty()),
            domainname: spec.domainname().clone().filter(|d| !d.is_empty()),
            root_path: spec.root().as_ref().map(|root| root.path().clone()),
            root_read_only: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
            root_propagation: linux
                .rootfs_propagation()
                .as_deref()
                .filter(|p| !p.is_empty())
                .map(options::root_propagation)
                .transpose()?,
            pivot: true,
            mount_label: linux.mount_label().clone().filter(|label| !label.is_empty()),
            mounts,
            devices: devices(linux)?,
            masked_paths: paths(linux.masked_paths()),
            read_only_paths: paths(linux.readonly_paths()),
            sysctls: sysctls(linux, &namespaces)?,
            seccomp: linux.seccomp().as_ref().map(|s| compile(s, &mut warnings)).transpose()?,
            cgroups_path: linux.cgroups_path().clone(),
            resources: linux.resources().clone(),
            hooks: Hooks::from_spec(spec)?,
            identity: Identity::of(spec),
            namespaces,
            warnings,
        })
    }

    /// Whether the container has a namespace of this kind that is not the caller's.
    pub fn separate(&self, kind: Kind) -> bool {
        self.namespaces.contains_key(&kind)
    }

    /// Whether its cgroups are mounted as the host has them, not from a namespace's root on.
    pub fn shows_host_cgroups(&self) -> bool {
        let shown = self.mounts.iter().any(|mount| mount.kind == MountKind::Cgroup);
        shown && !self.separate(Kind::Cgroup)
    }

    /// Whether the container gets a fresh namespace of this kind.
    pub fn fresh(&self, kind: Kind) -> bool {
        self.namespaces.get(&kind) == Some(&Source::New)
    }
}

/// The lines of the spec.
pub(crate) fn id_maps(maps: Option<&[oci_spec::runtime::LinuxIdMapping]>) -> Vec<IdMap> {
    maps.unwrap_or_default()
        .iter()
        .map(|m| IdMap { inside: m.container_id(), outside: m.host_id(), count: m.size() })
        .collect()
}

/// Checked by validate.rs. Source: time_namespaces(7), "/proc/pid/timens_offsets".
fn time_offsets(linux: &oci_spec::runtime::Linux) -> String {
    let mut lines: Vec<String> = linux
        .time_offsets()
        .iter()
        .flatten()
        .map(|(clock, by)| format!("{clock} {} {}\n", by.secs().unwrap_or(0), by.nanosecs().unwrap_or(0)))
        .collect();
    lines.sort();
    lines.concat()
}

fn devices(linux: &oci_spec::runtime::Linux) -> Result<Vec<DevicePlan>> {
    let mut plans: Vec<DevicePlan> = STANDARD_DEVICES
        .iter()
        .map(|(path, major, minor)| DevicePlan {
            path: PathBuf::from(path),
            kind: DeviceKind::Character,
            major: *major,
            minor: *minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    for (i, device) in linux.devices().iter().flatten().enumerate() {
        let field = format!("linux.devices[{i}]");
        let kind = match device.typ() {
            LinuxDeviceType::B => DeviceKind::Block,
            LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
            LinuxDeviceType::P => DeviceKind::Fifo,
            LinuxDeviceType::A => {
                return Err(Error::invalid(format!("{field}.type"), "a is not a device"));
            }
        };
        let number = |name: &str, n: i64| {
            u32::try_from(n).map_err(|_| Error::invalid(format!("{field}.{name}"), "is out of range"))
        };
        let fifo = kind == DeviceKind::Fifo;
        validate::inside(&field, device.path())?;
        // A link to the container's own terminals; any other would be the host's.
        if device.path() == std::path::Path::new("/dev/ptmx") {
            continue;
        }
        let plan = DevicePlan {
            path: device.path().clone(),
            kind,
            major: if fifo { 0 } else { number("major", device.major())? },
            minor: if fifo { 0 } else { number("minor", device.minor())? },
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        };
        plans.retain(|known| known.path != plan.path);
        plans.push(plan);
    }
    Ok(plans)
}

/// The namespaced sysctls, and only in a namespace that is not the host's: any other would
/// change the host.
fn sysctls(
    linux: &oci_spec::runtime::Linux,
    namespaces: &BTreeMap<Kind, Source>,
) -> Result<Vec<(PathBuf, String)>> {
    const IPC: [&str; 10] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg_next_id",
        "kernel.auto_msgmni",
    ];
    let mut plans = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let field = format!("linux.sysctl.{name}");
        // Either separator, as sysctl(8) takes them: `net/ipv4/conf/eth0.1/forwarding`.
        let path = match name.find(['.', '/']) {
            Some(i) if name.as_bytes()[i] == b'.' => name.replace('.', "/"),
            _ => name.clone(),
        };
        let dotted = path.replace('/', ".");
        let kind = if dotted.starts_with("net.") {
            Kind::Network
        } else if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            Kind::Ipc
        } else if dotted == "kernel.domainname" || dotted == "kernel.hostname" {
            Kind::Uts
        } else {
            return Err(Error::invalid(field, "is not namespaced"));
        };
        if !namespaces.contains_key(&kind) {
            let reason = format!("needs a {} namespace of its own", kind.file_name());
            return Err(Error::invalid(field, reason));
        }
        let name = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !path.split('/').all(name) {
            return Err(Error::invalid(field, "is not a name"));
        }
        plans.push((PathBuf::from(path), value.clone()));
    }
    plans.sort();
    Ok(plans)
}
