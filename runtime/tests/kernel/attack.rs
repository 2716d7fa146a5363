//! What hostile programs do inside the containers: more commands of program.rs, each an attack in a form that harms
//! nothing if it succeeds, and that says how far it came.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use nix::mount::{MsFlags, mount};

pub fn run(words: &[&str]) -> std::io::Result<String> {
    Ok(match words {
        ["open-write", path] => {
            std::fs::OpenOptions::new().write(true).open(path)?;
            "opened".into()
        }
        ["symlink", to, at] => std::os::unix::fs::symlink(to, at).map(|()| "made".into())?,
        ["rename", from, to] => std::fs::rename(from, to).map(|()| "renamed".into())?,
        ["mkfifo", path] => {
            nix::unistd::mkfifo(*path, nix::sys::stat::Mode::from_bits_truncate(0o666))?;
            "made".into()
        }
        ["fill", path, megabytes] => {
            use std::io::Write;
            let mut file = std::fs::File::create(path)?;
            let line = "a:x:1:1::/:/\n".repeat(80_000);
            for _ in 0..megabytes.parse::<usize>().unwrap() {
                file.write_all(line.as_bytes())?;
            }
            "filled".into()
        }
        ["mount-on", fs, path] => {
            mount(Some(*fs), *path, Some(*fs), MsFlags::empty(), None::<&str>)?;
            "mounted".into()
        }
        ["bind-on", from, path] => {
            mount(Some(*from), *path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            "mounted".into()
        }
        ["overwrite-runtime", millis] => overwrite_runtime(limit(millis)),
        ["trace-newcomers", millis] => trace_newcomers(limit(millis)),
        ["kill-newcomers", millis] => kill_newcomers(limit(millis)),
        ["descriptors-of-newcomers", millis] => descriptors_of_newcomers(limit(millis)),
        ["remount-exe"] => remount_exe(),
        ["find-secret"] => find_secret()?,
        ["fsopen"] => {
            // SAFETY: the name is a NUL-terminated constant.
            let ret = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0) };
            answer(ret)?
        }
        ["clone-user"] => {
            // SAFETY: no memory is shared; a child, if there is one, exits at once.
            let ret = unsafe {
                libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0_usize, 0, 0, 0)
            };
            if ret == 0 {
                // SAFETY: ends this copy of the process.
                unsafe { libc::_exit(0) }
            }
            answer(ret)?
        }
        ["keyctl"] => {
            // SAFETY: integers only.
            answer(unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) })?
        }
        ["fork-until-full"] => {
            let mut made = 0;
            while std::process::Command::new("/program").args(["--program", "sleep"]).spawn().is_ok() {
                made += 1;
            }
            assert!(made > 0);
            "full".into()
        }
        ["save", path, command @ ..] => {
            std::fs::write(path, crate::program::run(command)?)?;
            "saved".into()
        }
        other => panic!("unknown command {other:?}"),
    })
}

fn limit(millis: &str) -> Duration {
    Duration::from_millis(millis.parse().unwrap())
}

fn answer(ret: libc::c_long) -> std::io::Result<String> {
    if ret < 0 { Err(std::io::Error::last_os_error()) } else { Ok("allowed".into()) }
}

/// Every process here but this one.
fn others() -> Vec<i32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten();
    let pids = all.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != std::process::id() as i32).collect()
}

/// CVE-2019-5736: takes hold of the programs of processes that enter, and tries to write to them, also once they have
/// ended. Says how many were not this program, how many bytes were written, and what the kernel answered.
fn overwrite_runtime(limit: Duration) -> String {
    let start = Instant::now();
    let (mut held, mut foreign, mut written) = (BTreeMap::new(), 0, 0);
    let mut answers = BTreeSet::new();
    // A process that is just entering is seen for microseconds: its number is known beforehand.
    let mut next = others().into_iter().max().unwrap_or(0).max(std::process::id() as i32) + 1;
    while start.elapsed() < limit {
        let expected = next..next + 4;
        for pid in expected {
            let mut options = std::fs::OpenOptions::new();
            let Ok(exe) = options.read(true).custom_flags(libc::O_PATH).open(format!("/proc/{pid}/exe"))
            else {
                continue;
            };
            next = pid;
            let program =
                std::fs::read_link(format!("/proc/self/fd/{}", exe.as_raw_fd())).unwrap_or_default();
            if program != Path::new("/program") {
                foreign += usize::from(held.insert(pid, exe).is_none());
            }
        }
        for (pid, exe) in &held {
            for path in [format!("/proc/self/fd/{}", exe.as_raw_fd()), format!("/proc/{pid}/exe")] {
                match std::fs::OpenOptions::new().append(true).open(&path) {
                    Ok(mut file) => {
                        written += usize::from(std::io::Write::write_all(&mut file, b"overwritten").is_ok());
                    }
                    Err(e) => _ = answers.insert(format!("{:?}", crate::program::errno(&e))),
                }
            }
        }
        if held.len() > 20 {
            held.pop_first();
        }
    }
    format!("{foreign} foreign, {written} written, {answers:?}")
}

/// CVE-2016-9962: attaches to processes that enter.
fn trace_newcomers(limit: Duration) -> String {
    let (known, start) = (others(), Instant::now());
    let (mut seized, mut tried) = (0, 0);
    while start.elapsed() < limit {
        for pid in others().into_iter().filter(|pid| !known.contains(pid)) {
            tried += 1;
            // SAFETY: PTRACE_SEIZE takes no pointer that is followed.
            let ret = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0_usize, 0_usize) };
            if ret == 0 {
                // One that has just ended has no program any more.
                let program = std::fs::read_link(format!("/proc/{pid}/exe"));
                seized += usize::from(program.is_ok_and(|program| program != Path::new("/program")));
                // SAFETY: as above.
                unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, 0_usize, 0_usize) };
            }
        }
    }
    format!("{} tried, {seized} seized", tried.min(1))
}

/// Kills whatever enters.
fn kill_newcomers(limit: Duration) -> String {
    let (known, start) = (others(), Instant::now());
    while start.elapsed() < limit {
        for pid in others().into_iter().filter(|pid| !known.contains(pid)) {
            // It may be gone already.
            _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    "done".into()
}

/// CVE-2024-21626: directories of the host among the descriptors of processes that enter.
fn descriptors_of_newcomers(limit: Duration) -> String {
    let (known, start) = (others(), Instant::now());
    let mut found = BTreeSet::new();
    while start.elapsed() < limit {
        for pid in others().into_iter().filter(|pid| !known.contains(pid)) {
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                // A directory outside that can be entered or read shows what is not in this root.
                if let Ok(list) = std::fs::read_dir(entry.path()) {
                    let names: Vec<_> = list.flatten().map(|e| e.file_name()).collect();
                    let host = ["boot", "root", "home"].iter().all(|n| names.iter().any(|name| name == n));
                    if host {
                        found.insert(format!("{pid}: {:?}", std::fs::read_link(entry.path())));
                    }
                }
            }
        }
    }
    format!("{found:?}")
}

/// Tries to make the read-only mount of its own program writable, by every call there is.
fn remount_exe() -> String {
    let exe =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open("/proc/self/exe").unwrap();
    let path = format!("/proc/self/fd/{}", exe.as_raw_fd());
    let mut done = Vec::new();
    for path in [path.as_str(), "/proc/self/exe"] {
        let how = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        if mount(None::<&str>, path, None::<&str>, how, None::<&str>).is_ok() {
            done.push("remount");
        }
        if mount(Some(path), "/dev/null", None::<&str>, MsFlags::MS_BIND, None::<&str>).is_ok() {
            done.push("bind");
        }
    }
    // MOUNT_ATTR_RDONLY cleared. Source: mount_setattr(2).
    let attributes: [u64; 4] = [0, 1, 0, 0];
    let clear = |fd: i32| {
        // SAFETY: the path is a constant, the structure has the size that is given.
        unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                fd,
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                attributes.as_ptr(),
                32,
            )
        }
    };
    if clear(exe.as_raw_fd()) == 0 {
        done.push("mount_setattr");
    }
    let flags = libc::OPEN_TREE_CLONE as i32 | libc::AT_EMPTY_PATH;
    // SAFETY: the path is a constant.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, exe.as_raw_fd(), c"".as_ptr(), flags) };
    if tree >= 0 {
        // SAFETY: the kernel returned a new descriptor.
        let tree = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(tree as i32) };
        if clear(tree.as_raw_fd()) == 0 {
            done.push("open_tree");
        }
    }
    if std::fs::OpenOptions::new().append(true).open("/proc/self/exe").is_ok() {
        done.push("open");
    }
    let read_only = rustix::fs::StatVfsMountFlags::RDONLY;
    format!("{done:?} {}", rustix::fs::statvfs("/proc/self/exe").unwrap().f_flag.contains(read_only))
}

/// What is in the session keyring, by description.
fn find_secret() -> std::io::Result<String> {
    const KEYCTL_SEARCH: i32 = 10;
    const KEY_SPEC_SESSION_KEYRING: i32 = -3;
    // SAFETY: both texts are NUL-terminated constants.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_SEARCH,
            KEY_SPEC_SESSION_KEYRING,
            c"user".as_ptr(),
            c"podyard-test-secret".as_ptr(),
            0,
        )
    };
    if ret < 0 { Err(std::io::Error::last_os_error()) } else { Ok("found".into()) }
}
