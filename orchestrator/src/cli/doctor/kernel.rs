//! The kernel: system calls and file systems, tried.

use std::io;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::Check;

pub fn checks() -> Vec<Check> {
    vec![
        version(),
        clone3(),
        pidfd(),
        resolve(),
        mounts(),
        overlay(),
        seccomp(),
        user_namespaces(),
        app_armor(),
    ]
}

fn release() -> (String, (u32, u32)) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let number = (numbers(&release, 0), numbers(&release, 1));
    (release, number)
}

fn numbers(release: &str, index: usize) -> u32 {
    let part = release.split('.').nth(index).unwrap_or("");
    let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

fn version() -> Check {
    let (release, number) = release();
    if number >= (5, 15) {
        Check::ok("kernel", release)
    } else {
        Check::missing("kernel", release, "Podyard needs 5.15 or later")
    }
}

/// Cannot be tried without making a process; its one use that may be missing is told by the version.
fn clone3() -> Check {
    // Source: clone(2): CLONE_INTO_CGROUP is there since 5.7.
    let (release, number) = release();
    if number >= (5, 7) {
        Check::ok("clone3", "CLONE_INTO_CGROUP by kernel version")
    } else {
        Check::missing("clone3", format!("{release}: no CLONE_INTO_CGROUP"), "Podyard needs 5.15 or later")
    }
}

/// A system call that is there, or the fix.
fn tried<T>(name: &'static str, result: rustix::io::Result<T>, found: &str, fix: &'static str) -> Check {
    match result {
        Ok(_) => Check::ok(name, found),
        Err(errno) => Check::missing(name, io::Error::from(errno).to_string(), fix),
    }
}

fn pidfd() -> Check {
    let fix =
        "needs kernel 5.3 and a sandbox that allows it: update the host's container runtime or libseccomp";
    tried("pidfd", pidfd_open(getpid(), PidfdFlags::empty()), "pidfd_open", fix)
}

fn resolve() -> Check {
    let fix =
        "needs kernel 5.6 and a sandbox that allows it: update the host's container runtime or libseccomp";
    let opened = openat2(
        rustix::fs::CWD,
        "/",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    );
    tried("openat2", opened, "resolves beneath a root", fix)
}

/// A tmpfs that is never attached anywhere, gone with its fd.
fn mounts() -> Check {
    let tried_mount = || {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    let fix = "needs kernel 5.2 and CAP_SYS_ADMIN: run as root on the host";
    tried("mount API", tried_mount(), "fsopen, fsconfig, fsmount", fix)
}

/// Asking for the type loads its module, if there is one.
fn overlay() -> Check {
    let fix = "modprobe overlay, or install the kernel's modules package (linux-modules-extra on Ubuntu)";
    tried("overlayfs", fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC), "known to the kernel", fix)
}

fn seccomp() -> Check {
    match std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) => Check::ok("seccomp", actions.trim().to_string()),
        Err(error) => {
            let fix = "containers run without a system call filter; use a kernel with CONFIG_SECCOMP_FILTER";
            Check::warn("seccomp", error.to_string(), fix)
        }
    }
}

fn user_namespaces() -> Check {
    let read = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
    match read.ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(0) => Check::warn("user namespaces", "forbidden", "sysctl -w user.max_user_namespaces=15000"),
        Some(limit) => Check::ok("user namespaces", format!("at most {limit}")),
        None => Check::warn("user namespaces", "not in this kernel", "use a kernel with CONFIG_USER_NS"),
    }
}

fn app_armor() -> Check {
    match std::fs::read_to_string("/sys/module/apparmor/parameters/enabled") {
        Ok(state) if state.trim() == "Y" => Check::ok("AppArmor", "enabled"),
        _ => Check::ok("AppArmor", "not used: containers are confined by capabilities and seccomp"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!((numbers("6.18.5-amd64", 0), numbers("6.18.5-amd64", 1)), (6, 18));
        assert_eq!(numbers("5.15-rc1", 1), 15);
        assert_eq!(numbers("odd", 1), 0);
    }
}
