//! The mount options of a spec, parsed. Source: runtime-spec, config.md, "Linux mount options".

use std::path::{Component, Path, PathBuf};

use nix::libc;
use oci_spec::runtime::Mount;

use crate::error::{Error, Result};
use crate::plan::{IdMap, id_maps};

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
    /// `MS_*` propagation, and whether for the mounts below too: each in turn, and private if there is none.
    pub propagation: Vec<(u64, bool)>,
    /// Whose files they are shown to be.
    pub idmap: Option<IdMapPlan>,
}

/// The mappings of an ID-mapped mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMapPlan {
    /// Whether the mounts below are mapped too.
    pub recursive: bool,
    /// Users; none means as the container's own user namespace.
    pub uids: Vec<IdMap>,
    /// Groups, likewise.
    pub gids: Vec<IdMap>,
}

/// Options of a filesystem: flags and values.
pub type Data = Vec<(String, Option<String>)>;

/// Where a mount comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A path of the host.
    Bind {
        /// File or directory; a relative one is below the working directory, which is the bundle.
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
        data: Data,
        /// `MS_*` flags of the filesystem, not of the mount.
        superblock: u64,
        /// A tmpfs that starts with what it covers.
        copy_up: bool,
    },
    /// A mount that is there, changed.
    Remount {
        /// The filesystem's flags and options, if not the mount's alone are changed.
        filesystem: Option<(u64, Data)>,
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
pub(crate) const ATIME_MASK: u64 = 0x70;
pub(crate) const NOATIME: u64 = 0x10;
pub(crate) const STRICTATIME: u64 = 0x20;
pub(crate) const NODIRATIME: u64 = 0x80;
pub(crate) const NOSYMFOLLOW: u64 = 0x0020_0000;

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

/// Flags of a whole filesystem: name, flag, whether it is set or cleared. `acl` and `noacl` are the filesystem's own
/// options. Source: mount(8), "Filesystem-independent mount options".
const SUPERBLOCK: &[(&str, u64, bool)] = &[
    ("sync", libc::MS_SYNCHRONOUS, true),
    ("async", libc::MS_SYNCHRONOUS, false),
    ("dirsync", libc::MS_DIRSYNC, true),
    ("lazytime", libc::MS_LAZYTIME, true),
    ("nolazytime", libc::MS_LAZYTIME, false),
    ("mand", libc::MS_MANDLOCK, true),
    ("nomand", libc::MS_MANDLOCK, false),
    ("iversion", libc::MS_I_VERSION, true),
    ("noiversion", libc::MS_I_VERSION, false),
    ("silent", libc::MS_SILENT, true),
    ("loud", libc::MS_SILENT, false),
];

const PROPAGATION: [(&str, u64); 4] = [
    ("private", libc::MS_PRIVATE),
    ("slave", libc::MS_SLAVE),
    ("shared", libc::MS_SHARED),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Options that are neither attributes nor flags nor propagation.
const OTHERS: [&str; 7] = ["bind", "rbind", "defaults", "remount", "tmpcopyup", "idmap", "ridmap"];

/// Filesystems that are not the container's alone, or are still to be filled: they are read-only as mounts, the others
/// as filesystems too, without which a read-only device cannot be mounted.
const READ_ONLY_AS_MOUNTS: [&str; 5] = ["proc", "sysfs", "mqueue", "devpts", "tmpfs"];

impl Attributes {
    /// These set, none cleared.
    pub(crate) fn set(set: u64) -> Self {
        Self { set, clear: 0 }
    }

    fn add(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
    }

    /// Whether nothing changes.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// What attributes become by these changes.
    pub(crate) fn applied_to(self, attributes: u64) -> u64 {
        (attributes & !self.clear) | self.set
    }
}

/// A propagation by its name, and whether it is for the mounts below too.
fn propagation(name: &str) -> Option<(u64, bool)> {
    let find = |name: &str| PROPAGATION.iter().find(|(n, _)| *n == name).map(|(_, how)| *how);
    let below = name.strip_prefix('r').and_then(find);
    below.map(|how| (how, true)).or_else(|| find(name).map(|how| (how, false)))
}

/// `linux.rootfsPropagation`.
pub(crate) fn root_propagation(name: &str) -> Result<(u64, bool)> {
    propagation(name)
        .ok_or_else(|| Error::invalid("linux.rootfsPropagation", format!("unknown value {name:?}")))
}

/// Options that are ours to understand, sorted.
pub(crate) fn names() -> Vec<String> {
    let plain = ATTRIBUTES.iter().map(|(name, ..)| *name);
    let flags = SUPERBLOCK.iter().map(|(name, ..)| (*name).to_string());
    let kinds = PROPAGATION.iter().map(|(name, _)| *name);
    let mut all: Vec<String> = plain
        .chain(kinds)
        .flat_map(|name| [name.to_string(), format!("r{name}")])
        .chain(flags)
        .chain(OTHERS.map(str::to_string))
        .collect();
    all.sort();
    all
}

/// What the options of one mount say.
#[derive(Default)]
struct Options {
    /// With the mounts below?
    bind: Option<bool>,
    remount: bool,
    copy_up: bool,
    /// With the mounts below?
    idmap: Option<bool>,
    attributes: Attributes,
    attributes_recursive: Attributes,
    propagation: Vec<(u64, bool)>,
    superblock: u64,
    /// The first of the filesystem's flags, as written.
    superblock_named: Option<String>,
    data: Data,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut all = Self::default();
        for option in options {
            all.add(option);
        }
        all
    }

    fn add(&mut self, option: &str) {
        let attribute = |name: &str| ATTRIBUTES.iter().find(|(n, ..)| *n == name);
        if let Some((_, set, clear)) = attribute(option) {
            return self.attributes.add(*set, *clear);
        }
        if let Some((_, set, clear)) = option.strip_prefix('r').and_then(attribute) {
            return self.attributes_recursive.add(*set, *clear);
        }
        if let Some(found) = propagation(option) {
            return self.propagation.push(found);
        }
        if let Some((_, flag, set)) = SUPERBLOCK.iter().find(|(n, ..)| *n == option) {
            self.superblock_named.get_or_insert_with(|| option.to_string());
            self.superblock = if *set { self.superblock | flag } else { self.superblock & !flag };
            return;
        }
        match option {
            "bind" => self.bind = self.bind.or(Some(false)),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "defaults" | "" => {}
            other => self.data.push(match other.split_once('=') {
                Some((key, value)) => (key.to_string(), Some(value.to_string())),
                None => (other.to_string(), None),
            }),
        }
    }
}

/// One entry of the spec's `mounts`. What is done in part only is said in `warnings`.
pub(crate) fn parse(mount: &Mount, warnings: &mut Vec<String>) -> Result<MountPlan> {
    let destination = destination(mount.destination(), warnings)?;
    let shown = destination.display();
    let typ = mount.typ().as_deref().unwrap_or("none");
    for (field, text) in [("source", mount.source().as_deref()), ("type", Some(Path::new(typ)))] {
        if text.is_some_and(|t| t.as_os_str().as_encoded_bytes().contains(&0)) {
            return Err(Error::invalid(field, "contains NUL"));
        }
    }
    let options = Options::parse(mount.options().as_deref().unwrap_or_default());
    let bind = options.bind.or((typ == "bind").then_some(false));
    if options.copy_up && (bind.is_some() || options.remount || typ != "tmpfs") {
        return Err(Error::invalid("options: tmpcopyup", "is an option of a new tmpfs"));
    }
    if bind.is_some() {
        // The filesystem is another's.
        for name in options.superblock_named.iter().chain(options.data.iter().map(|(name, _)| name)) {
            warnings.push(format!("mount on {shown}: {name} has no meaning for a bind mount"));
        }
    }
    let kind = match (bind, typ) {
        (Some(_), _) if options.remount => MountKind::Remount { filesystem: None },
        (None, _) if options.remount => {
            MountKind::Remount { filesystem: Some((options.superblock, options.data)) }
        }
        (Some(recursive), _) => {
            let source = mount.source().clone().unwrap_or_default();
            if source.as_os_str().is_empty() {
                return Err(Error::invalid("source", "a bind mount needs one"));
            }
            MountKind::Bind { source, recursive }
        }
        (None, "cgroup" | "cgroup2") => MountKind::Cgroup,
        (None, "none" | "") => return Err(Error::invalid("type", "is required")),
        (None, fs) => {
            let read_only = options.attributes.set & READ_ONLY != 0 && !READ_ONLY_AS_MOUNTS.contains(&fs);
            MountKind::New {
                fs: fs.to_string(),
                source: mount.source().as_ref().map(|s| s.to_string_lossy().into_owned()),
                data: options.data,
                superblock: options.superblock | if read_only { libc::MS_RDONLY } else { 0 },
                copy_up: options.copy_up,
            }
        }
    };
    let (uids, gids) = (id_maps(mount.uid_mappings().as_deref()), id_maps(mount.gid_mappings().as_deref()));
    let mapped = options.idmap.is_some() || !uids.is_empty() || !gids.is_empty();
    let idmap = mapped.then(|| IdMapPlan { recursive: options.idmap.unwrap_or(false), uids, gids });
    let plan = MountPlan {
        destination,
        kind,
        attributes: options.attributes,
        attributes_recursive: options.attributes_recursive,
        propagation: options.propagation,
        idmap,
    };
    plan.idmap.as_ref().map_or(Ok(()), |idmap| idmap.check(&plan))?;
    Ok(plan)
}

/// An absolute path without `..`, and not the root.
fn destination(written: &Path, warnings: &mut Vec<String>) -> Result<PathBuf> {
    let shown = written.display();
    if written.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Error::invalid("destination", "contains NUL"));
    }
    if !written.is_absolute() {
        warnings.push(format!("mount on {shown}: the destination is not absolute, and is taken from /"));
    }
    let mut path = PathBuf::from("/");
    for component in written.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            _ => {}
        }
    }
    match path.parent() {
        Some(_) => Ok(path),
        None => Err(Error::invalid("destination", format!("{shown} is the root itself"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<MountPlan> {
        parse(&serde_json::from_str(json).unwrap(), &mut Vec::new())
    }

    fn with(typ: &str, options: &str) -> Result<MountPlan> {
        let options: Vec<&str> = options.split(' ').filter(|o| !o.is_empty()).collect();
        let mount = serde_json::json!({"destination": "/t", "type": typ, "source": "/s", "options": options});
        plan(&mount.to_string())
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
        assert_eq!(p.propagation, [(libc::MS_SLAVE, true)]);
        let MountKind::New { fs, data, .. } = p.kind else { panic!("{:?}", p.kind) };
        assert_eq!(fs, "tmpfs");
        assert_eq!(data[0], ("size".into(), Some("1m".into())));
        assert_eq!(data[1], ("huge".into(), None));
    }

    #[test]
    fn every_attribute_and_its_opposite() {
        let of = |options: &str| with("bind", options).unwrap();
        for (name, set, clear) in ATTRIBUTES {
            let p = of(name);
            assert_eq!((p.attributes.set, p.attributes.clear), (*set, *clear), "{name}");
            assert!(p.attributes_recursive.is_empty(), "{name}");
            let p = of(&format!("r{name}"));
            assert_eq!((p.attributes_recursive.set, p.attributes_recursive.clear), (*set, *clear), "r{name}");
            assert!(p.attributes.is_empty(), "r{name}");
        }
        // The last word counts, and access times are one choice of several.
        for (options, from, to) in [
            ("ro rw", READ_ONLY, 0),
            ("rw ro", 0, READ_ONLY),
            ("relatime", NOATIME, 0),
            ("norelatime", NOATIME, 0),
            ("nostrictatime", STRICTATIME, 0),
            ("strictatime nostrictatime noatime", STRICTATIME, NOATIME),
            ("nodiratime", NOATIME, NOATIME | NODIRATIME),
        ] {
            assert_eq!(of(options).attributes.applied_to(from), to, "{options}");
        }
    }

    #[test]
    fn propagation_in_the_order_written() {
        for (options, expected) in [
            ("", vec![]),
            ("shared", vec![(libc::MS_SHARED, false)]),
            ("rshared", vec![(libc::MS_SHARED, true)]),
            ("private rprivate", vec![(libc::MS_PRIVATE, false), (libc::MS_PRIVATE, true)]),
            ("rslave shared", vec![(libc::MS_SLAVE, true), (libc::MS_SHARED, false)]),
            ("unbindable runbindable", vec![(libc::MS_UNBINDABLE, false), (libc::MS_UNBINDABLE, true)]),
        ] {
            assert_eq!(with("bind", options).unwrap().propagation, expected, "{options}");
        }
        assert_eq!(root_propagation("rshared").unwrap(), (libc::MS_SHARED, true));
        assert!(root_propagation("rrshared").is_err());
    }

    #[test]
    fn flags_of_the_filesystem() {
        for (fs, options, flags) in [
            ("tmpfs", "sync dirsync", libc::MS_SYNCHRONOUS | libc::MS_DIRSYNC),
            ("tmpfs", "sync async lazytime nolazytime mand nomand", 0),
            ("tmpfs", "iversion silent", libc::MS_I_VERSION | libc::MS_SILENT),
            ("tmpfs", "ro", 0),
            ("sysfs", "ro", 0),
            ("ext4", "ro", libc::MS_RDONLY),
            ("ext4", "ro rw", 0),
        ] {
            let p = with(fs, options).unwrap();
            let MountKind::New { superblock, data, .. } = p.kind else { panic!("{:?}", p.kind) };
            assert_eq!((superblock, data.len()), (flags, 0), "{fs} {options}");
        }
        // The filesystem's own, not flags.
        let MountKind::New { data, .. } = with("ext4", "acl").unwrap().kind else { panic!() };
        assert_eq!(data, [("acl".to_string(), None)]);
        let mut warnings = Vec::new();
        let bind = r#"{"destination":"/t","source":"/s","options":["bind","sync","mode=755"]}"#;
        parse(&serde_json::from_str(bind).unwrap(), &mut warnings).unwrap();
        let warning = |name| format!("mount on /t: {name} has no meaning for a bind mount");
        assert_eq!(warnings, ["sync", "mode"].map(warning));
    }

    #[test]
    fn kinds() {
        let kind = |json| plan(json).map(|p| p.kind);
        let bind = |recursive| MountKind::Bind { source: "/a".into(), recursive };
        let remount = |filesystem| MountKind::Remount { filesystem };
        let data = vec![("size".to_string(), Some("1m".to_string()))];
        for (json, expected) in [
            (r#"{"destination":"/b","source":"/a","options":["rbind","ro"]}"#, bind(true)),
            (r#"{"destination":"/b","source":"/a","type":"bind"}"#, bind(false)),
            (r#"{"destination":"/b","source":"/a","type":"tmpfs","options":["bind"]}"#, bind(false)),
            (r#"{"destination":"/c","type":"cgroup2"}"#, MountKind::Cgroup),
            (r#"{"destination":"/b","source":"/a","options":["bind","remount","ro"]}"#, remount(None)),
            (
                r#"{"destination":"/b","type":"tmpfs","options":["remount","sync","size=1m"]}"#,
                remount(Some((libc::MS_SYNCHRONOUS, data))),
            ),
        ] {
            assert_eq!(kind(json).unwrap(), expected, "{json}");
        }
        for bad in [
            r#"{"destination":"/b","type":"bind"}"#,
            r#"{"destination":"/b","source":"/a"}"#,
            r#"{"destination":"/b","type":"proc","options":["tmpcopyup"]}"#,
            r#"{"destination":"/b","source":"/a","options":["bind","tmpcopyup"]}"#,
            r#"{"destination":"/b","source":"/a\u0000b","options":["bind"]}"#,
        ] {
            assert!(kind(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn destinations() {
        for (written, expected, warned) in [
            ("/a/b", "/a/b", false),
            ("a/b", "/a/b", true),
            ("/a/../../b/.", "/b", false),
            ("//a//b/", "/a/b", false),
        ] {
            let mut warnings = Vec::new();
            let found = destination(Path::new(written), &mut warnings).unwrap();
            assert_eq!(
                (found.as_path(), warnings.len()),
                (Path::new(expected), usize::from(warned)),
                "{written}"
            );
        }
        for bad in ["/", "", ".", "/a/..", "/a\0b"] {
            assert!(destination(Path::new(bad), &mut Vec::new()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn id_mappings() {
        let line = r#"[{"containerID":1,"hostID":2,"size":3}]"#;
        let mount = |fields: &str| format!(r#"{{"destination":"/b","source":"/a",{fields}}}"#);
        let map = IdMap { inside: 1, outside: 2, count: 3 };
        for (fields, recursive, maps) in [
            (r#""options":["bind","idmap"]"#.to_string(), false, 0),
            (r#""options":["rbind","ridmap"]"#.to_string(), true, 0),
            (format!(r#""options":["bind"],"uidMappings":{line},"gidMappings":{line}"#), false, 1),
            (format!(r#""options":["rbind","ridmap"],"uidMappings":{line},"gidMappings":{line}"#), true, 1),
        ] {
            let idmap = plan(&mount(&fields)).unwrap().idmap.unwrap();
            assert_eq!(
                (idmap.recursive, idmap.uids, idmap.gids),
                (recursive, vec![map; maps], vec![map; maps])
            );
        }
        for bad in [
            format!(r#""options":["bind"],"uidMappings":{line}"#),
            format!(r#""type":"tmpfs","uidMappings":{line},"gidMappings":{line}"#),
            r#""type":"tmpfs","options":["idmap"]"#.to_string(),
        ] {
            assert!(plan(&mount(&bad)).is_err(), "{bad}");
        }
        assert_eq!(with("bind", "ro").unwrap().idmap, None);
    }
}
