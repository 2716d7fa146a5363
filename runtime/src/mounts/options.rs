//! The mount options of a spec, parsed. Source: runtime-spec, config.md, "Linux mount options".

use std::path::PathBuf;

use nix::libc;
use oci_spec::runtime::Mount;

use crate::error::{Error, Result};
use crate::validate;

/// A mount to make inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    /// Absolute path inside.
    pub destination: PathBuf,
    /// What is mounted there.
    pub kind: MountKind,
    /// `MOUNT_ATTR_*` to set and to clear on the mount itself.
    pub attributes: Attributes,
    /// The same for the mounts below it too.
    pub attributes_recursive: Attributes,
    /// `MS_*` propagation, and whether for the mounts below too.
    pub propagation: Option<(u64, bool)>,
}

/// Where a mount comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A path of the host.
    Bind {
        /// File or directory.
        source: PathBuf,
        /// With the mounts below it.
        recursive: bool,
    },
    /// A new filesystem.
    New {
        /// Its type.
        fs: String,
        /// What mount(8) would call the device.
        source: Option<String>,
        /// Its own options: flags and values.
        data: Vec<(String, Option<String>)>,
    },
    /// What the container may see of its cgroup.
    Cgroup,
}

/// Changes to a mount's attributes. Source: mount_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Set these.
    pub set: u64,
    /// Clear these first.
    pub clear: u64,
}

/// Source: include/uapi/linux/mount.h.
pub(crate) const READ_ONLY: u64 = 0x1;
pub(crate) const NOSUID: u64 = 0x2;
pub(crate) const NODEV: u64 = 0x4;
pub(crate) const NOEXEC: u64 = 0x8;
const ATIME_MASK: u64 = 0x70;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x0020_0000;

/// name, set, clear. With an `r` before the name it applies to the mounts below too.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", READ_ONLY, 0),
    ("rw", 0, READ_ONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("noatime", NOATIME, ATIME_MASK),
    ("atime", 0, ATIME_MASK),
    ("relatime", 0, ATIME_MASK),
    ("norelatime", 0, ATIME_MASK),
    ("strictatime", STRICTATIME, ATIME_MASK),
    ("nostrictatime", 0, ATIME_MASK),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
];

impl Attributes {
    fn add(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
    }

    /// Whether anything changes.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// `MS_*` propagation by its name in `linux.rootfsPropagation`.
pub(crate) fn propagation(name: &str) -> Result<u64> {
    match name.strip_prefix('r').unwrap_or(name) {
        "private" => Ok(libc::MS_PRIVATE),
        "slave" => Ok(libc::MS_SLAVE),
        "shared" => Ok(libc::MS_SHARED),
        "unbindable" => Ok(libc::MS_UNBINDABLE),
        _ => Err(Error::invalid("linux.rootfsPropagation", format!("unknown value {name:?}"))),
    }
}

/// Options that are ours to understand, sorted.
pub(crate) fn names() -> Vec<String> {
    let plain = ATTRIBUTES.iter().map(|(name, ..)| (*name).to_string());
    let below = ATTRIBUTES.iter().map(|(name, ..)| format!("r{name}"));
    let propagation = ["private", "slave", "shared", "unbindable"];
    let propagation = propagation.iter().flat_map(|name| [(*name).to_string(), format!("r{name}")]);
    let mut all: Vec<String> = plain
        .chain(below)
        .chain(propagation)
        .chain(["bind", "rbind", "defaults"].map(str::to_string))
        .collect();
    all.sort();
    all
}

/// One entry of the spec's `mounts`.
pub(crate) fn parse(mount: &Mount) -> Result<MountPlan> {
    validate::inside("destination", mount.destination())?;
    let typ = mount.typ().as_deref().unwrap_or("none");
    let mut bind = (typ == "bind").then_some(false);
    let mut attributes = Attributes::default();
    let mut attributes_recursive = Attributes::default();
    let mut propagates = None;
    let mut data = Vec::new();
    for option in mount.options().iter().flatten() {
        let named = |name: &str| ATTRIBUTES.iter().find(|(n, _, _)| *n == name);
        if let Some((_, set, clear)) = named(option) {
            attributes.add(*set, *clear);
        } else if let Some((_, set, clear)) = option.strip_prefix('r').and_then(named) {
            attributes_recursive.add(*set, *clear);
        } else {
            match option.as_str() {
                "bind" => bind = bind.or(Some(false)),
                "rbind" => bind = Some(true),
                "defaults" | "" => {}
                "private" | "slave" | "shared" | "unbindable" | "rprivate" | "rslave" | "rshared"
                | "runbindable" => {
                    propagates = Some((propagation(option)?, option.starts_with('r')));
                }
                "remount" | "tmpcopyup" | "idmap" | "ridmap" | "move" => {
                    return Err(Error::unsupported(format!("options: {option}"), "not offered"));
                }
                other => data.push(match other.split_once('=') {
                    Some((key, value)) => (key.to_string(), Some(value.to_string())),
                    None => (other.to_string(), None),
                }),
            }
        }
    }
    let kind = match (bind, typ) {
        (Some(recursive), _) => {
            if let Some((option, _)) = data.first() {
                return Err(Error::invalid(format!("options: {option}"), "is not an option of a bind mount"));
            }
            let source = mount.source().clone().unwrap_or_default();
            if source.as_os_str().is_empty() {
                return Err(Error::invalid("source", "a bind mount needs one"));
            }
            MountKind::Bind { source, recursive }
        }
        (None, "cgroup" | "cgroup2") => MountKind::Cgroup,
        (None, "none") => return Err(Error::invalid("type", "is required")),
        (None, fs) => MountKind::New {
            fs: fs.to_string(),
            source: mount.source().as_ref().map(|s| s.to_string_lossy().into_owned()),
            data,
        },
    };
    Ok(MountPlan {
        destination: mount.destination().clone(),
        kind,
        attributes,
        attributes_recursive,
        propagation: propagates,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<MountPlan> {
        parse(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn options_become_attributes_propagation_and_data() {
        let p = plan(
            r#"{"destination":"/t","type":"tmpfs","source":"tmpfs",
                "options":["nosuid","ro","rw","rnoexec","strictatime","noatime","size=1m","rslave","huge"]}"#,
        )
        .unwrap();
        assert_eq!(p.attributes.set, NOSUID | NOATIME);
        assert_eq!(p.attributes.clear, READ_ONLY | ATIME_MASK);
        assert_eq!(p.attributes_recursive.set, NOEXEC);
        assert_eq!(p.propagation, Some((libc::MS_SLAVE, true)));
        let MountKind::New { fs, data, .. } = p.kind else { panic!("{:?}", p.kind) };
        assert_eq!(fs, "tmpfs");
        assert_eq!(data[0], ("size".into(), Some("1m".into())));
        assert_eq!(data[1], ("huge".into(), None));
    }

    #[test]
    fn kinds() {
        let kind = |json| plan(json).map(|p| p.kind);
        let bind = |recursive| MountKind::Bind { source: "/a".into(), recursive };
        assert_eq!(
            kind(r#"{"destination":"/b","source":"/a","options":["rbind","ro"]}"#).unwrap(),
            bind(true)
        );
        assert_eq!(kind(r#"{"destination":"/b","source":"/a","type":"bind"}"#).unwrap(), bind(false));
        assert_eq!(kind(r#"{"destination":"/c","type":"cgroup2"}"#).unwrap(), MountKind::Cgroup);
        for bad in [
            r#"{"destination":"b","source":"/a","type":"bind"}"#,
            r#"{"destination":"/b/../c","source":"/a","type":"bind"}"#,
            r#"{"destination":"/b","type":"bind"}"#,
            r#"{"destination":"/b","source":"/a","options":["bind","size=1"]}"#,
            r#"{"destination":"/b","source":"/a"}"#,
            r#"{"destination":"/b","type":"tmpfs","options":["tmpcopyup"]}"#,
        ] {
            assert!(kind(bad).is_err(), "{bad}");
        }
    }
}
