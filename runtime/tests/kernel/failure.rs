//! Whatever step fails: the error names it, and nothing is left.

use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use runtime::container::create;
use serde_json::json;

use crate::fixture::{Case, Directory, Group, output};
use crate::harness::{Test, lacks};

pub const TESTS: &[Test] = &[
    ("root_failing_specs_leave_nothing", failing_specs),
    ("root_failing_system_calls_leave_nothing", failing_system_calls),
    ("root_exec_failure_is_reported_by_name", exec_failure),
    ("root_a_gate_dropped_ends_the_process", gate_dropped),
    ("root_start_from_another_process", start_from_another_process),
    ("root_works_without_clone_into_cgroup", without_clone_into_cgroup),
];

/// No process of this one's is left, not even a dead one.
#[track_caller]
pub fn assert_no_children() {
    let left = waitpid(None, Some(WaitPidFlag::WNOHANG));
    assert_eq!(left, Err(nix::errno::Errno::ECHILD));
}

/// No process of this one's is left but this, which still runs.
#[track_caller]
pub fn assert_only_child(pid: i32) {
    assert_eq!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive));
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or(format!("{pid}"));
    assert_eq!(children.trim(), pid.to_string());
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Expects `case` to fail with this text, and to leave nothing.
fn fails(case: Case, text: &str) {
    let group = Group::new();
    let case = case.cgroup(&group);
    let mounts = crate::fixture::mount_table();
    let before = descriptors();
    let error = case.run().expect_err(text);
    assert!(error.to_string().contains(text), "{error}");
    assert_eq!(descriptors(), before, "{text}");
    assert_no_children();
    assert!(!group.0.populated().unwrap());
    assert!(crate::fixture::mount_table().is_subset(&mounts), "{text}");
}

fn failing_specs() {
    crate::fixture::own_mount_namespace();
    let new = || Case::new(&["pid"]);
    let mount = |m| new().set("/mounts/-", m);
    // Without the mount API other calls fail.
    let by = |api, old| if lacks("fsopen") { old } else { api };
    fails(
        new().set(
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "uts"}, {"type": "network", "path": "/nowhere"}]),
        ),
        "linux.namespaces: net: open(\"/nowhere\"): ENOENT",
    );
    fails(
        new().set(
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "uts"}, {"type": "network", "path": "/proc/self/ns/uts"}]),
        ),
        "join the net namespace: setns(0x40000000): EINVAL",
    );
    fails(
        mount(json!({"destination": "/x", "type": "nosuchfs"})),
        by(
            "mount nosuchfs on /x: fsopen(\"nosuchfs\"): ENODEV",
            "mount nosuchfs on /x: mount(\"none\", place, ",
        ),
    );
    fails(
        mount(json!({"destination": "/x", "type": "tmpfs", "options": ["size=x"]})),
        by(
            "mount tmpfs on /x: fsconfig(tmpfs, \"size\", \"x\"): EINVAL",
            "mount tmpfs on /x: mount(\"none\", place, ",
        ),
    );
    fails(
        mount(json!({"destination": "/x", "source": "/nowhere", "type": "bind"})),
        by(
            "mount /nowhere on /x: open_tree(\"/nowhere\", CLONE): ENOENT",
            "mount /nowhere on /x: open(\"/nowhere\", ",
        ),
    );
    fails(mount(json!({"destination": "/in-root/x", "type": "tmpfs"})), "mount tmpfs on /in-root/x: ");
    fails(mount(json!({"destination": "/proc/sys", "type": "tmpfs"})), "the destination is in a procfs");
    fails(new().set("/linux/sysctl", json!({"net.ipv4.no_such": "1"})), "set sysctl net/ipv4/no_such: ");
    fails(new().set("/process/cwd", json!("/in-root")), "make working directory /in-root: ");
    fails(
        new().set("/linux/devices", json!([{"path": "/dev/shm", "type": "c", "major": 1, "minor": 3}])),
        "make device /dev/shm: something else is there",
    );
    fails(new().set("/hostname", json!("x".repeat(65))), "hostname");
    fails(new().set("/process/args", json!(["/nope"])), "exec /nope: ENOENT");
}

fn failing_system_calls() {
    crate::fixture::own_mount_namespace();
    // Each call that creating makes, taken away in turn.
    let calls = [
        "clone3",
        "fsopen",
        "fsconfig",
        "fsmount",
        "open_tree",
        "move_mount",
        "mount_setattr",
        "mount",
        "pivot_root",
        "umount2",
        "fchdir",
        "unshare",
        "sethostname",
        "setsid",
        "mkdirat",
        "mknodat",
        "symlinkat",
        "openat2",
        "dup2",
        "setgroups",
        "setresgid",
        "setresuid",
        "capset",
        "prctl",
        "close_range",
        "execve",
        "rt_sigprocmask",
        "statfs",
        "fstatfs",
        "chdir",
        "ioctl",
    ];
    let mut failed = 0;
    for call in calls {
        let group = Group::new();
        let directory = Directory::new();
        // SAFETY: this test process has one thread.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let mut case = Case::new(&["pid"]).cgroup(&group);
                let (reader, stdio) = output();
                let request = case.request(stdio).unwrap();
                refuse(call);
                let created = create(request).and_then(|c| c.start.start());
                drop(reader);
                let code = match created {
                    Err(e) if e.to_string().ends_with("EIO") || e.to_string().contains("os error 5") => {
                        println!("{call}: {e}");
                        10
                    }
                    Err(e) => {
                        println!("{call}: unexpected: {e}");
                        1
                    }
                    Ok(()) => 11,
                };
                // A create that failed has reaped its child; one that did not leaves a zombie.
                let left = waitpid(None, Some(WaitPidFlag::WNOHANG));
                let clean = left == Err(nix::errno::Errno::ECHILD);
                std::fs::remove_dir_all(&case.root.0).unwrap();
                // SAFETY: nothing of this copy of the process is to run.
                unsafe { libc::_exit(if code == 10 && !clean && call != "execve" { 2 } else { code }) };
            }
            nix::unistd::ForkResult::Parent { child } => {
                let status = waitpid(child, None).unwrap();
                match status {
                    WaitStatus::Exited(_, 10) => failed += 1,
                    WaitStatus::Exited(_, 11) => println!("{call}: not needed"),
                    other => panic!("{call}: {other:?}"),
                }
                // The process that was started with a refusal not needed may still be ending.
                assert!(group.0.wait_empty(std::time::Duration::from_secs(10)).unwrap());
            }
        }
        drop(directory);
    }
    let enough = if lacks("fsopen") { 16 } else { 20 };
    assert!(failed > enough, "only {failed} of {} refusals were felt", calls.len());
}

/// From now on this process and its children get `EIO` from `call`.
fn refuse(call: &str) {
    answer(&[call.to_string()], libc::EIO);
}

/// From now on this process and its children get `errno` from these calls.
pub fn answer(calls: &[String], errno: i32) {
    install(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}],
    }));
}

fn install(profile: serde_json::Value) {
    let profile = serde_json::from_value(profile).unwrap();
    let filter = runtime::seccomp::Filter::compile(&profile, &mut Vec::new()).unwrap();
    let program = libc::sock_fprog {
        len: filter.program().len() as u16,
        filter: filter.program().as_ptr() as *mut libc::sock_filter,
    };
    // SAFETY: both structures have the kernel's layout, and the program outlives the call.
    let ret =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    assert_eq!(ret, 0, "{}", nix::errno::Errno::last());
}

fn exec_failure() {
    for (args, text) in [
        (json!(["/bin/nope"]), "exec /bin/nope: ENOENT"),
        (json!(["nope"]), "exec nope (executable file not found in $PATH=/bin): ENOENT"),
        (json!(["/in-root"]), "exec /in-root: EACCES"),
        (json!(["/dev"]), "exec /dev: EACCES"),
    ] {
        let error = Case::new(&[]).set("/process/args", args).run().unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}

fn gate_dropped() {
    let mut case = Case::new(&["write /in-root changed"]);
    let (reader, stdio) = output();
    let created = create(case.request(stdio).unwrap()).unwrap();
    drop(created.start);
    let outcome = crate::fixture::Outcome::collect(reader, &created.pidfd, Vec::new());
    assert_eq!((outcome.code, outcome.output.as_str()), (127, ""));
    assert_eq!(std::fs::read_to_string(case.root.0.join("in-root")).unwrap(), "yes");
}

fn start_from_another_process() {
    let directory = Directory::new();
    let path = directory.0.join("start");
    for (program, expected) in [("/program", Ok(())), ("/in-root", Err("exec /in-root: ENOEXEC"))] {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::SeqPacket,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        use std::os::fd::AsRawFd;
        let address = nix::sys::socket::UnixAddr::new(&path).unwrap();
        nix::sys::socket::bind(socket.as_raw_fd(), &address).unwrap();
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let mut case = Case::new(&[]).set("/process/args", json!([program, "--program", "pid"]));
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(case.root.0.join("in-root"), executable).unwrap();
        let (reader, stdio) = output();
        let mut request = case.request(stdio).unwrap();
        request.start_listener = Some(socket);
        let created = create(request).unwrap();
        // As if `create` had exited.
        drop(created.start);
        let started = runtime::container::start_at(&path);
        let outcome = crate::fixture::Outcome::collect(reader, &created.pidfd, Vec::new());
        match expected {
            Ok(()) => {
                started.unwrap();
                assert_eq!(outcome.answer(0), "1");
            }
            Err(text) => {
                assert_eq!(started.unwrap_err().to_string(), text);
                assert_eq!(outcome.code, 127);
            }
        }
        assert!(!path.exists());
    }
}

fn without_clone_into_cgroup() {
    let group = Group::new();
    // What a kernel before 5.7 answers; the flag is in a structure that a filter cannot see, so the whole call goes.
    // The child is made by clone(2), and moves itself.
    let mut case = Case::new(&["pid", "cat /proc/self/cgroup"]).cgroup(&group);
    let (reader, stdio) = output();
    let request = case.request(stdio).unwrap();
    install(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}],
    }));
    let created = create(request).unwrap();
    assert_eq!(group.0.pids().unwrap(), [created.pid]);
    created.start.start().unwrap();
    let outcome = crate::fixture::Outcome::collect(reader, &created.pidfd, Vec::new());
    assert_eq!(outcome.answer(0), "1");
    assert!(outcome.answer(1).lines().any(|line| line == "0::/"), "{outcome:?}");
    assert!(!group.0.populated().unwrap());
}
