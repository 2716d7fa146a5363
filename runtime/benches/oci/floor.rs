//! The floor: what the kernel must do for one such container, in a straight line. Nothing is parsed, checked for or
//! cleaned up after a failure; classic mount(2), because one call is less than the new API's four.
//!
//! Arguments: the root, an id, a filter file or `-`, `limits` or `-`, the cgroup2 mount point or `-`, then the v1
//! mount points. A failing step ends it with the step's number.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::libc;
use rustix::fs::{CWD, Dev, FileType, Mode, OFlags, makedev, mkdir, mknodat, open, symlinkat, unlinkat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::process::{Resource, Rlimit, WaitOptions, chdir, pivot_root, setrlimit, setsid, waitpid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::sys;

const NOSUID: MountFlags = MountFlags::NOSUID;
const CAPABILITIES: u64 = 1 << 29 | 1 << 5 | 1 << 10; // AUDIT_WRITE, KILL, NET_BIND_SERVICE
const CAPABILITY_LAST: u64 = 40;
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const DEVICE_RULES: [&str; 9] = [
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
    "c *:* m",
];
const LIMITS: [(&str, &str, &str); 5] = [
    ("memory", "memory.limit_in_bytes", "134217728"),
    ("pids", "pids.max", "100"),
    ("cpu", "cpu.shares", "512"),
    ("cpu", "cpu.cfs_period_us", "100000"),
    ("cpu", "cpu.cfs_quota_us", "50000"),
];

/// The container: made, run, waited for, removed.
pub fn run(args: &[String]) -> ExitCode {
    let [root, id, filter, limits, unified, v1 @ ..] = args else {
        return ExitCode::FAILURE;
    };
    let filter = (filter != "-").then(|| std::fs::read(filter).unwrap_or_default());
    let mut places = Vec::with_capacity(v1.len());
    for hierarchy in v1 {
        places.push(place(hierarchy, id, limits == "limits"));
    }
    let cgroup = (unified != "-").then(|| {
        let path = format!("{unified}/{id}");
        step(1, mkdir(&path, mode(0o755)));
        let dir = step(1, open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()));
        (path, dir)
    });
    let flags =
        libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWPID | libc::CLONE_NEWNET;
    let pid = sys::clone3(flags as u64, cgroup.as_ref().map(|(_, dir)| dir.as_fd()));
    match pid {
        0 => child(root, id, &places, cgroup.as_ref().map(|(path, _)| path.as_str()), filter.as_deref()),
        1.. => {}
        _ => return ExitCode::FAILURE,
    }
    let pid = rustix::process::Pid::from_raw(pid as i32);
    let ended = step(2, waitpid(pid, WaitOptions::empty()));
    for place in places.iter().chain(cgroup.iter().map(|(path, _)| path)) {
        step(3, unlinkat(CWD, place, rustix::fs::AtFlags::REMOVEDIR));
    }
    match ended.and_then(|(_, status)| status.exit_status()) {
        Some(0) => ExitCode::SUCCESS,
        Some(code) => {
            eprintln!("floor: step {code}");
            ExitCode::FAILURE
        }
        None => ExitCode::FAILURE,
    }
}

/// A cgroup in a v1 hierarchy, limited.
fn place(hierarchy: &str, id: &str, limits: bool) -> String {
    let place = format!("{hierarchy}/{id}");
    step(1, mkdir(&place, mode(0o755)));
    let controller = hierarchy.rsplit('/').next().unwrap_or_default();
    match controller {
        "devices" => {
            write(&format!("{place}/devices.deny"), b"a");
            DEVICE_RULES.iter().for_each(|rule| write(&format!("{place}/devices.allow"), rule.as_bytes()));
        }
        "cpuset" => {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let value = std::fs::read(format!("{hierarchy}/{file}")).unwrap_or_default();
                write(&format!("{place}/{file}"), &value);
            }
        }
        _ => {}
    }
    for (of, file, value) in LIMITS.iter().filter(|_| limits) {
        if *of == controller {
            write(&format!("{place}/{file}"), value.as_bytes());
        }
    }
    place
}

fn child(root: &str, id: &str, places: &[String], unified: Option<&str>, filter: Option<&[u8]>) -> ! {
    for place in places {
        write(&format!("{place}/tasks"), b"0");
    }
    step(10, setsid());
    step(11, rustix::system::sethostname(b"floor"));
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    sys::loopback_up(step(12, socket).as_fd());

    let recursive = MountPropagationFlags::REC;
    step(13, mount_change("/", MountPropagationFlags::DOWNSTREAM | recursive));
    step(13, mount_bind_recursive(root, root));
    step(13, mount_change(root, MountPropagationFlags::PRIVATE | recursive));
    step(13, chdir(root));
    let all = NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    new("proc", c"proc", MountFlags::empty(), None);
    new("dev", c"tmpfs", NOSUID | MountFlags::STRICTATIME, Some(c"mode=755,size=65536k"));
    for directory in ["dev/pts", "dev/shm", "dev/mqueue"] {
        step(14, mkdir(directory, mode(0o755)));
    }
    let devpts = c"newinstance,ptmxmode=0666,mode=0620,gid=5";
    new("dev/pts", c"devpts", NOSUID | MountFlags::NOEXEC, Some(devpts));
    new("dev/shm", c"tmpfs", all, Some(c"mode=1777,size=65536k"));
    new("dev/mqueue", c"mqueue", all, None);
    new("sys", c"sysfs", all | MountFlags::RDONLY, None);
    new("sys/fs/cgroup", c"tmpfs", all, Some(c"mode=755"));
    let unified = unified.map(|path| ("unified", path));
    let views = places.iter().map(|p| (p.rsplit('/').nth(1).unwrap_or_default(), p.as_str())).chain(unified);
    for (name, place) in views {
        let target = format!("sys/fs/cgroup/{name}");
        step(15, mkdir(&target, mode(0o755)));
        step(15, mount_bind(place, &target));
        step(15, mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY | all, c""));
    }
    step(15, mount_remount("sys/fs/cgroup", MountFlags::BIND | MountFlags::RDONLY | all, c""));

    for (name, major, minor) in DEVICES {
        let number: Dev = makedev(major, minor);
        step(16, mknodat(CWD, format!("dev/{name}"), FileType::CharacterDevice, mode(0o666), number));
    }
    for (target, name) in [
        ("/proc/self/fd", "dev/fd"),
        ("/proc/self/fd/0", "dev/stdin"),
        ("/proc/self/fd/1", "dev/stdout"),
        ("/proc/self/fd/2", "dev/stderr"),
        ("pts/ptmx", "dev/ptmx"),
    ] {
        step(16, symlinkat(target, CWD, name));
    }
    for path in crate::bundle::READ_ONLY {
        let path = &path[1..];
        if mount_bind_recursive(path, path).is_ok() {
            step(17, mount_remount(path, MountFlags::BIND | MountFlags::RDONLY, c""));
        }
    }
    for path in crate::bundle::MASKED {
        let path = &path[1..];
        // A file takes a file; the error of a directory says that it is one.
        if let Err(rustix::io::Errno::NOTDIR) = mount_bind("dev/null", path) {
            new(path, c"tmpfs", all | MountFlags::RDONLY, Some(c"nr_inodes=1"));
        }
    }
    let host = step(18, open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()));
    step(18, pivot_root(".", "."));
    step(18, rustix::process::fchdir(&host));
    step(18, mount_change(".", MountPropagationFlags::DOWNSTREAM | recursive));
    step(18, unmount(".", UnmountFlags::DETACH));
    step(18, chdir("/"));
    step(18, mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, c""));

    step(19, setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: Some(1024) }));
    for capability in (0..=CAPABILITY_LAST).filter(|c| CAPABILITIES & 1 << c == 0) {
        let set = CapabilitySet::from_bits_retain(1 << capability);
        step(20, rustix::thread::remove_capability_from_bounding_set(set));
    }
    let held = CapabilitySet::from_bits_retain(CAPABILITIES);
    let sets = CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
    step(21, rustix::thread::set_capabilities(None, sets));
    step(22, rustix::thread::set_no_new_privs(true));
    if let Some(filter) = filter {
        step(23, (sys::seccomp(filter) == 0).then_some(()).ok_or(rustix::io::Errno::INVAL));
    }
    let env = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", c"TERM=xterm"];
    let never = nix::unistd::execve(c"/bin/true", &[c"/bin/true"], &env);
    let _ = (never, id);
    sys::exit(24)
}

fn new(target: &str, kind: &CStr, flags: MountFlags, data: Option<&CStr>) {
    step(14, mount(kind, target, kind, flags, data));
}

fn write(path: &str, value: &[u8]) {
    let fd: OwnedFd = step(1, open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()));
    step(1, rustix::io::write(fd, value));
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits)
}

fn step<T>(number: i32, result: rustix::io::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(errno) => {
            eprintln!("floor: step {number}: {errno}");
            sys::exit(number)
        }
    }
}
