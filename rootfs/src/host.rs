//! The skeletons that images start from, as data.
//!
//! Taken from the host: its programs and libraries in place, and from `/etc` only what those need to be found
//! and to verify certificates. Never `/root`, `/home`, `/var`, `/run`, keys or passwords.
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::files::{self, Fingerprint};
use crate::{Error, Kind};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Largest file copied from the host's `/etc`, in bytes.
const COPY_BYTES_MAX: u64 = 4 << 20;
/// Most files copied from one directory of the host's `/etc`.
const COPY_FILES_MAX: usize = 4096;

/// What to put at a path of a skeleton.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
}

/// One file, directory or link of a skeleton.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative to the root.
    pub path: PathBuf,
    /// Permission bits; links have none.
    pub mode: u32,
    pub content: Content,
}

/// A root directory to be written, and the host's directories that belong beneath it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Skeleton {
    /// Parents before children.
    pub entries: Vec<Entry>,
    /// Absolute; the same inside as outside.
    pub shared: Vec<PathBuf>,
}

/// Empty directories of every image, with their modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("run/lock", 0o1777),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];

/// Files that every image starts with. The node puts its own over hosts, hostname and resolv.conf.
/// Numbers as in Debian's base-passwd; there is no shadow file, so nobody can log in by password.
const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         bin:x:2:2:bin:/bin:/usr/sbin/nologin\n\
         sys:x:3:3:sys:/dev:/usr/sbin/nologin\n\
         mail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n\
         www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nmail:x:8:\n\
         www-data:x:33:\nutmp:x:43:\nstaff:x:50:\nusers:x:100:\nnogroup:x:65534:\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\n\
         services: files\n",
    ),
    ("etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n"),
    ("etc/hostname", ""),
    ("etc/resolv.conf", ""),
    ("etc/host.conf", "multi on\n"),
];

/// Copied from the host's `/etc` if they are there: files, links and whole directories, nothing secret.
const COPIED: &[&str] = &[
    "etc/alternatives",
    "etc/ca-certificates.conf",
    "etc/ld.so.cache",
    "etc/ld.so.conf",
    "etc/ld.so.conf.d",
    "etc/localtime",
    "etc/mime.types",
    "etc/os-release",
    "etc/pki/ca-trust/extracted/pem",
    "etc/protocols",
    "etc/services",
    "etc/ssl/cert.pem",
    "etc/ssl/certs",
    "etc/ssl/openssl.cnf",
];

/// The skeleton for the host image, read from the host whose root is `host`.
pub(crate) fn skeleton(host: &Path) -> Result<Skeleton, Error> {
    let mut skeleton = base();
    skeleton.add("etc/mtab", 0, Content::Link("/proc/self/mounts".into()));
    for path in COPIED {
        skeleton.copy(host, Path::new(path))?;
    }
    skeleton.add("usr", 0o755, Content::Directory);
    skeleton.shared.push("/usr".into());
    let mut names = files::names(host)?;
    names.retain(|name| matches!(name.as_str(), "bin" | "sbin") || name.starts_with("lib"));
    for name in names {
        let path = host.join(&name);
        let kind = fs::symlink_metadata(&path).context(|| format!("stat {}", path.display()))?.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(&path).context(|| format!("readlink {}", path.display()))?;
            skeleton.add(&name, 0, Content::Link(target));
        } else if kind.is_dir() {
            skeleton.add(&name, 0o755, Content::Directory);
            skeleton.shared.push(Path::new("/").join(name));
        }
    }
    Ok(skeleton)
}

/// Changes when what [`skeleton`] reads has changed: a file of the list replaced or rewritten, a name in a directory
/// of the list added, removed or replaced. Costs one stat(2) each.
pub(crate) fn stamp(host: &Path) -> String {
    let mut fingerprint = Fingerprint::new();
    for path in COPIED.iter().chain(&["."]) {
        let Ok(stat) = fs::symlink_metadata(host.join(path)) else {
            fingerprint.field(b"absent");
            continue;
        };
        for number in
            [stat.ino(), stat.size(), stat.mtime().cast_unsigned(), stat.mtime_nsec().cast_unsigned()]
        {
            fingerprint.field(&number.to_le_bytes());
        }
    }
    fingerprint.hex()
}

/// The skeleton for the toolbox: one program under many names.
pub(crate) fn toolbox_skeleton(applets: &[String]) -> Skeleton {
    let mut skeleton = base();
    skeleton.add("bin", 0o755, Content::Directory);
    for applet in applets.iter().filter(|name| *name != "podyard-toolbox") {
        skeleton.add(Path::new("bin").join(applet), 0, Content::Link("podyard-toolbox".into()));
    }
    skeleton
}

fn base() -> Skeleton {
    let mut skeleton = Skeleton::default();
    for (path, mode) in DIRECTORIES {
        skeleton.add(path, *mode, Content::Directory);
    }
    for (path, text) in FILES {
        skeleton.add(path, 0o644, Content::File(text.as_bytes().to_vec()));
    }
    skeleton
}

impl Entry {
    pub(crate) fn fingerprint(&self, into: &mut Fingerprint) {
        into.field(self.path.as_os_str().as_encoded_bytes());
        into.field(&self.mode.to_le_bytes());
        match &self.content {
            Content::Directory => into.field(b"directory"),
            Content::File(bytes) => into.field(bytes),
            Content::Link(target) => into.field(target.as_os_str().as_encoded_bytes()),
        }
    }
}

impl Skeleton {
    /// Writes the entries beneath `root`, which exists and is empty.
    pub(crate) fn write(&self, root: &Path) -> Result<(), Error> {
        files::set_mode(root, 0o755)?;
        for entry in &self.entries {
            let path = root.join(&entry.path);
            match &entry.content {
                Content::Directory => files::create_dir(&path, entry.mode)?,
                Content::File(bytes) => {
                    files::write_new(&path, bytes, entry.mode, files::Durability::Volatile)?
                }
                Content::Link(target) => {
                    symlink(target, &path).context(|| format!("symlink {}", path.display()))?
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: impl Into<PathBuf>, mode: u32, content: Content) {
        self.entries.push(Entry { path: path.into(), mode, content });
    }

    /// Adds `path` as the host has it, with missing parents. Only files that everybody may read.
    fn copy(&mut self, host: &Path, path: &Path) -> Result<(), Error> {
        let source = host.join(path);
        let stat = match fs::symlink_metadata(&source) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.context(|| format!("stat {}", source.display()))?,
        };
        if let Some(parent) = path.parent().filter(|parent| !self.entries.iter().any(|e| e.path == **parent))
        {
            self.add_parents(parent);
        }
        let kind = stat.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(&source).context(|| format!("readlink {}", source.display()))?;
            self.add(path, 0, Content::Link(target));
        } else if kind.is_dir() {
            self.add(path, 0o755, Content::Directory);
            let names = files::names(&source)?;
            if names.len() > COPY_FILES_MAX {
                return Err(Error::new(
                    Kind::Invalid,
                    format!("{} has more than {COPY_FILES_MAX} files", source.display()),
                ));
            }
            for name in names {
                self.copy(host, &path.join(name))?;
            }
        } else if kind.is_file() && stat.permissions().mode() & 0o004 != 0 && stat.size() <= COPY_BYTES_MAX {
            let bytes = fs::read(&source).context(|| format!("read {}", source.display()))?;
            self.add(path, 0o644, Content::File(bytes));
        }
        Ok(())
    }

    fn add_parents(&mut self, path: &Path) {
        let mut missing: Vec<_> = path
            .ancestors()
            .filter(|at| !at.as_os_str().is_empty() && !self.entries.iter().any(|entry| entry.path == **at))
            .map(Path::to_path_buf)
            .collect();
        missing.reverse();
        for at in missing {
            self.add(at, 0o755, Content::Directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(skeleton: &Skeleton) -> Vec<String> {
        skeleton.entries.iter().map(|entry| entry.path.display().to_string()).collect()
    }

    #[test]
    fn takes_programs_and_no_secret() {
        let host = std::env::temp_dir().join(format!("podyard-host-{}", std::process::id()));
        for dir in
            ["usr/bin", "sbin", "etc/ssl/private", "etc/ssl/certs", "etc/ld.so.conf.d", "root", "home", "var"]
        {
            fs::create_dir_all(host.join(dir)).unwrap();
        }
        for (path, mode) in [
            ("etc/shadow", 0o640),
            ("etc/ssl/private/key.pem", 0o600),
            ("etc/ssl/certs/ca.crt", 0o644),
            ("etc/ssl/certs/mine.key", 0o600),
            ("etc/ld.so.conf.d/x.conf", 0o644),
            ("root/secret", 0o600),
        ] {
            fs::write(host.join(path), path).unwrap();
            fs::set_permissions(host.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("usr/bin", host.join("bin")).unwrap();
        let skeleton = skeleton(&host).unwrap();
        let paths = paths(&skeleton);
        for wanted in
            ["etc/ssl/certs/ca.crt", "etc/ld.so.conf.d/x.conf", "bin", "sbin", "usr", "etc/passwd", "tmp"]
        {
            assert!(paths.iter().any(|path| path == wanted), "{wanted} is missing");
        }
        for secret in ["etc/shadow", "etc/ssl/private", "etc/ssl/certs/mine.key", "root/secret"] {
            assert!(!paths.iter().any(|path| path.starts_with(secret)), "{secret} leaked");
        }
        assert_eq!(
            skeleton.shared,
            [PathBuf::from("/usr"), PathBuf::from("/sbin")],
            "merged /bin stays a link"
        );
        for (index, entry) in skeleton.entries.iter().enumerate() {
            let parent = entry.path.parent().unwrap();
            let earlier = skeleton.entries[..index].iter().any(|other| other.path == parent);
            assert!(parent.as_os_str().is_empty() || earlier, "{} precedes its parent", entry.path.display());
        }
        let before = stamp(&host);
        assert_eq!(before, stamp(&host));
        fs::write(host.join("etc/ssl/certs/new.crt"), "x").unwrap();
        assert_ne!(before, stamp(&host));
        fs::remove_dir_all(host).unwrap();
    }
}
