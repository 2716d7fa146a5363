//! Project quotas: a directory tree whose bytes the filesystem counts and limits.
//!
//! A process that runs as the owner of files in the tree, outside a user namespace, may put them into another project
//! (`FS_IOC_FSSETXATTR`): this holds back mistakes and runaways, not malice. An image holds back both.
//!
//! Source: quotactl(2); Documentation/filesystems/ext4, "project"; xfs_quota(8).
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::{Error, Kind, sys};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// Projects are ours from here on; people's own have small numbers.
const FIRST_PROJECT: u32 = 1 << 30;
/// Numbers tried until a free one is found.
const TRIES_MAX: u32 = 1024;

/// Whether the filesystem that `dir` is on limits projects.
pub(crate) fn is_enforced(dir: &Path) -> bool {
    // A filesystem or kernel without quotas refuses in many words; each of them means no.
    File::open(dir).is_ok_and(|dir| sys::enforces_projects(dir.as_fd()).unwrap_or(false))
}

/// A project that nobody uses, derived from a name. The caller keeps others from choosing at the same time.
///
/// # Errors
/// `Busy` if there is none to be found.
pub(crate) fn free_project(dir: &Path, seed: u32) -> Result<u32, Error> {
    let file = File::open(dir).context(|| format!("open {}", dir.display()))?;
    for step in 0..TRIES_MAX {
        let project = FIRST_PROJECT | (seed.wrapping_add(step) & (FIRST_PROJECT - 1));
        match sys::project_quota(file.as_fd(), project) {
            Ok(quota) if quota.limit_bytes == 0 && quota.used_inodes == 0 => return Ok(project),
            // XFS says so of a project it has never heard of.
            Err(error) if error.errno == Errno::NOENT => return Ok(project),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::new(Kind::Busy, "no free quota project found"))
}

/// Limits an empty directory and everything that will be in it.
///
/// # Errors
/// The filesystem's answer.
pub(crate) fn bind(dir: &Path, project: u32, limit_bytes: u64) -> Result<(), Error> {
    let file = File::open(dir).context(|| format!("open {}", dir.display()))?;
    // The limit first: there is no moment without it.
    sys::set_project_quota(file.as_fd(), project, limit_bytes)?;
    Ok(sys::set_project(file.as_fd(), project)?)
}

/// Changes a project's limit; 0 lifts it. Effective at once.
///
/// # Errors
/// The filesystem's answer.
pub(crate) fn limit(dir: &Path, project: u32, limit_bytes: u64) -> Result<(), Error> {
    let file = File::open(dir).context(|| format!("open {}", dir.display()))?;
    Ok(sys::set_project_quota(file.as_fd(), project, limit_bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Claim, Enforcement, Volumes, Wish, loopfs};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::process::Command;

    fn skip(why: &str) {
        // The machine that `cargo vm` boots has everything.
        assert!(std::env::var_os("PODYARD_VM").is_none(), "nothing may be skipped here: {why}");
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = std::io::stderr().write_all(format!("SKIP: {why}\n").as_bytes());
    }

    /// Writes until it is refused; the bytes that fitted.
    fn fill(path: &Path) -> u64 {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        while file.write_all(&[0x5a; 1 << 16]).and_then(|()| file.sync_data()).is_ok() {
            assert!(file.metadata().unwrap().len() < 32 << 20, "there is no limit");
        }
        file.metadata().unwrap().len()
    }

    #[test]
    fn root_a_project_holds_its_quota_and_grows() {
        if !rustix::process::geteuid().is_root() || loopfs::is_available().is_err() {
            return skip("needs root and loop devices");
        }
        let dir = std::env::temp_dir().join(format!("podyard-quota-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let image = dir.join("disk.img");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-b", "4096", "-O", "project,quota", "-E", "quotatype=prjquota"])
            .arg(&image)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return skip("no mkfs.ext4 that makes project quotas");
        }
        let image = File::options().read(true).write(true).open(&image).unwrap();
        let mount = match loopfs::attach(&image).unwrap().mount_with("prjquota") {
            Err(error) => {
                std::fs::remove_dir_all(dir).unwrap();
                return skip(&format!("this kernel mounts no ext4 with project quotas: {}", error.chain()));
            }
            Ok(mount) => mount,
        };
        // Who has this capability is not held to quotas; containers have it not.
        let mut sets = capabilities(None).unwrap();
        sets.effective -= CapabilitySet::SYS_RESOURCE;
        set_capabilities(None, sets).unwrap();

        let volumes = Volumes::new(format!("/proc/self/fd/{}/volumes", mount.as_raw_fd()));
        let wish = Wish { size_bytes: 4 << 20, enforcement: Enforcement::Auto };
        let owner = Claim { uid: "a".into(), epoch: 1 };
        let volume = volumes.ensure("pvc-1", &owner, wish).unwrap();
        assert_eq!(volume.backing.enforcement(), "projectQuota");
        // By its path: before Linux 6.15 nothing can be bound out of a filesystem that is mounted nowhere.
        let file =
            Path::new("/proc/self/fd").join(mount.as_raw_fd().to_string()).join("volumes/pvc-1/data/full");
        let fitted = fill(&file);
        assert!((3 << 20..=4 << 20).contains(&fitted), "{fitted} bytes fitted");
        volumes.grow("pvc-1", "a", 8 << 20).unwrap();
        let fitted = fill(&file);
        assert!((7 << 20..=8 << 20).contains(&fitted), "{fitted} bytes fitted");
        let other = volumes.ensure("pvc-2", &Claim { uid: "b".into(), epoch: 1 }, wish).unwrap();
        assert_ne!(other.backing, volume.backing, "each has a project of its own");
        drop(mount);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
