//! Namespaces: clocks, users, and joining what is there already.

use std::os::fd::OwnedFd;

use runtime::container::create;
use runtime::exec::{ExecRequest, Executed, exec};
use serde_json::{Value, json};

use crate::fixture::{Case, Directory, Outcome, Running, output};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_time_namespace_with_offsets", time_namespace),
    ("root_user_namespace_of_several_maps", several_maps),
    ("root_user_namespace_without_a_0", without_a_0),
    ("root_user_namespace_and_a_network_of_the_hosts", and_a_network_of_the_hosts),
    ("root_joining_a_user_namespace", joining_a_user_namespace),
    ("root_joining_a_user_namespace_that_denies_setgroups", denies_setgroups),
    ("root_joining_by_path", joining_by_path),
    ("root_joining_a_mount_namespace", joining_a_mount_namespace),
    ("root_joins_that_fail_leave_nothing", joins_that_fail),
    ("root_limits_in_a_user_namespace", limits_in_a_user_namespace),
    ("root_keyring_is_not_the_callers", keyring_is_not_the_callers),
];

fn numbers(text: &str) -> Vec<i64> {
    text.split(' ').map(|n| n.parse().unwrap()).collect()
}

fn clocks() -> Vec<i64> {
    numbers(&crate::program::clocks())
}

fn in_container(running: &Running, commands: &[&str], user: u32) -> Outcome {
    let mut args = vec!["/program", "--program"];
    args.extend(commands);
    let process = json!({"user": {"uid": user, "gid": user}, "args": args, "env": ["PATH=/"], "cwd": "/"});
    let process = serde_json::from_value(process).unwrap();
    let (reader, stdio) = output();
    let Executed { pidfd, warnings, .. } = exec(ExecRequest {
        target: running.pidfd.try_clone().unwrap(),
        process: runtime::exec::ProcessPlan::from_spec(&process).unwrap(),
        seccomp: None,
        stdio,
        cgroup: None,
        parent: runtime::container::Parent::Caller,
        identity: Default::default(),
    })
    .unwrap();
    Outcome::collect(reader, &pidfd, warnings)
}

#[track_caller]
fn shifted(found: &[i64], by: [i64; 2]) {
    let own = clocks();
    for (i, by) in by.iter().enumerate() {
        let off = own[i] + by - found[i];
        assert!((0..60).contains(&off), "{found:?} and here {own:?}");
    }
}

fn time_namespace() {
    let offsets = json!({"monotonic": {"secs": 10_000, "nanosecs": 5}, "boottime": {"secs": 20_000}});
    let running = Case::new(&["clocks", "sleep"])
        .set("/linux/namespaces/-", json!({"type": "time"}))
        .set("/linux/timeOffsets", offsets.clone())
        .start();
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/time")).unwrap();
    let pid = running.pid.to_string();
    assert_ne!(namespace(&pid), namespace("self"));
    // An exec is in it too, and so is who joins it by path; its own processes' children as well.
    let execed = in_container(&running, &["clocks", "readlink /proc/self/ns/time"], 0);
    shifted(&numbers(execed.answer(0)), [10_000, 20_000]);
    assert_eq!(execed.answer(1), namespace(&pid).to_str().unwrap());
    let joined = Case::new(&["clocks"])
        .set("/linux/namespaces/-", json!({"type": "time", "path": format!("/proc/{pid}/ns/time")}))
        .run()
        .unwrap();
    shifted(&numbers(joined.answer(0)), [10_000, 20_000]);
    let outcome = running.kill();
    shifted(&numbers(outcome.answer(0)), [10_000, 20_000]);
    shifted(&clocks(), [0, 0]);
    // Without offsets it is only another; with a user namespace it belongs to that.
    let plain = Case::new(&["clocks", "readlink /proc/self/ns/time"])
        .set("/linux/namespaces/-", json!({"type": "time"}))
        .run()
        .unwrap();
    shifted(&numbers(plain.answer(0)), [0, 0]);
    assert_ne!(plain.answer(1), namespace("self").to_str().unwrap());
    let both = user_case(&["clocks"], json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]))
        .set("/linux/namespaces/-", json!({"type": "time"}))
        .set("/linux/timeOffsets", offsets)
        .run()
        .unwrap();
    shifted(&numbers(both.answer(0)), [10_000, 20_000]);
    for (offsets, named) in [
        (json!({"realtime": {"secs": 1}}), "linux.timeOffsets.realtime: is neither"),
        (
            json!({"boottime": {"nanosecs": 1_000_000_000}}),
            "linux.timeOffsets.boottime: has a second or more",
        ),
        (json!({"boottime": {"secs": i64::MIN}}), "linux.timeOffsets: write("),
    ] {
        let case = Case::new(&[]).set("/linux/namespaces/-", json!({"type": "time"}));
        let error = case.set("/linux/timeOffsets", offsets).run().unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
    }
    let none = Case::new(&[]).set("/linux/timeOffsets", json!({"boottime": {"secs": 1}})).run().unwrap_err();
    assert!(none.to_string().contains("needs a new time namespace"), "{none}");
}

/// A container with a user namespace of these maps, its root the first user's.
fn user_case(commands: &[&str], maps: Value) -> Case {
    let owner = maps[0]["hostID"].as_u64().unwrap() as u32;
    let case = Case::new(commands)
        .set("/linux/namespaces/-", json!({"type": "user"}))
        .set("/linux/uidMappings", maps.clone())
        .set("/linux/gidMappings", maps);
    std::os::unix::fs::chown(&case.root.0, Some(owner), Some(owner)).unwrap();
    case
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn several_maps() {
    let maps = json!([
        {"containerID": 0, "hostID": 100_000, "size": 1000},
        {"containerID": 1000, "hostID": 300_000, "size": 1},
        {"containerID": 5000, "hostID": 200_000, "size": 10},
    ]);
    let case =
        user_case(&["cat /proc/self/uid_map", "cat /proc/self/gid_map", "ids", "write /tmp/x y"], maps);
    let case = case.set("/process/user", json!({"uid": 1000, "gid": 5003, "additionalGids": [7, 5009]}));
    let tmp = case.root.0.join("tmp");
    std::fs::create_dir(&tmp).unwrap();
    std::fs::set_permissions(&tmp, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut case = case;
    let (reader, stdio) = output();
    let created = create(case.request(stdio).unwrap()).unwrap();
    created.start.start().unwrap();
    let outcome = Outcome::collect(reader, &created.pidfd, Vec::new());
    let expected = ["0", "100000", "1000", "1000", "300000", "1", "5000", "200000", "10"];
    assert_eq!(words(outcome.answer(0)), expected);
    assert_eq!(words(outcome.answer(1)), expected);
    assert_eq!(outcome.answer(2), "1000 5003 [7, 5009]");
    assert_eq!(outcome.answer(3), "written");
    use std::os::unix::fs::MetadataExt;
    let made = std::fs::metadata(tmp.join("x")).unwrap();
    assert_eq!((made.uid(), made.gid()), (300_000, 200_003));
    // What has no map is nobody's to be.
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    let unmapped =
        user_case(&[], maps).set("/process/user", json!({"uid": 4000, "gid": 0})).run().unwrap_err();
    assert!(unmapped.to_string().ends_with("setresuid(4000): EINVAL"), "{unmapped}");
    let overlap = json!([
        {"containerID": 0, "hostID": 100_000, "size": 10}, {"containerID": 5, "hostID": 200_000, "size": 10},
    ]);
    let refused = user_case(&[], overlap).run().unwrap_err().to_string();
    assert!(refused.starts_with("map user and group IDs: write("), "{refused}");
    for (maps, named) in [
        (json!([]), "linux.uidMappings: is required"),
        (json!([{"containerID": 0, "hostID": 1, "size": 0}]), "linux.uidMappings: size 0"),
        (json!([{"containerID": 9, "hostID": 1, "size": u32::MAX}]), "linux.uidMappings: size"),
    ] {
        let case = Case::new(&[]).set("/linux/namespaces/-", json!({"type": "user"}));
        let case = case.set("/linux/gidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}]));
        let error = case.set("/linux/uidMappings", maps).run().unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
    }
}

fn without_a_0() {
    let case = user_case(
        &["ids", "cat /proc/self/uid_map", "pid", "hostname", "write /x y", "stat /dev/null"],
        json!([{"containerID": 1000, "hostID": 300_000, "size": 2}]),
    );
    let mut case = case.set("/process/user", json!({"uid": 1001, "gid": 1000}));
    // Terminals of group 5 need a 5.
    without_option(&mut case, "/dev/pts", "gid=5");
    let outcome = case.run().unwrap();
    assert!(outcome.answer(0).starts_with("1001 1000 "), "{outcome:?}");
    assert_eq!(words(outcome.answer(1)), ["1000", "300000", "2"]);
    assert_eq!(outcome.answer(2), "1");
    assert_eq!(outcome.answer(3), "inside");
    assert_eq!(outcome.answer(4), "EACCES", "it is the other's");
    assert!(outcome.answer(5).ends_with("1:3"), "{outcome:?}");
}

fn without_option(case: &mut Case, destination: &str, option: &str) {
    let mounts = case.spec["mounts"].as_array_mut().unwrap();
    let mount = mounts.iter_mut().find(|m| m["destination"] == destination).unwrap();
    mount["options"].as_array_mut().unwrap().retain(|o| o != option);
}

fn link(pid: i32, kind: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
}

/// Joining it takes rights that a process in a user namespace of its own does not have.
fn and_a_network_of_the_hosts() {
    let other = Case::new(&["sleep"]).start();
    let mut case = user_case(
        &[
            "readlink /proc/self/ns/net",
            "readlink /proc/self/ns/user",
            "pid",
            "cat /proc/self/uid_map",
            "ids",
        ],
        json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]),
    );
    replace(&mut case, "network", format!("/proc/{}/ns/net", other.pid));
    // A sysfs shows the network namespace's devices, and is its owner's to mount.
    let mounts = case.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/sys"));
    let outcome = case.run().unwrap();
    assert_eq!(outcome.answer(0), link(other.pid, "net"));
    assert_ne!(outcome.answer(1), link(other.pid, "user"));
    assert_eq!(outcome.answer(2), "1");
    assert_eq!(words(outcome.answer(3)), ["0", "100000", "1000"]);
    assert_eq!(outcome.answer(4), "0 0 []");
    // The process in between is gone, and reaped.
    other.kill();
    let left = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    assert_eq!(left, Err(nix::errno::Errno::ECHILD));
}

/// A process that holds a user namespace with a map of 1000 IDs from 100000 on, until dropped.
struct Holder {
    pid: i32,
    _alive: OwnedFd,
}

impl Holder {
    fn new(kinds: i32, setgroups: &str) -> Self {
        let (hold, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (ready, told) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        // SAFETY: this test process has one thread.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                drop((alive, ready));
                nix::sched::unshare(nix::sched::CloneFlags::from_bits_retain(kinds)).unwrap();
                drop(told);
                let mut byte = [0];
                rustix::io::read(&hold, &mut byte[..]).unwrap();
                // SAFETY: nothing of this copy of the process is to run.
                unsafe { libc::_exit(0) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                drop((hold, told));
                let mut byte = [0];
                rustix::io::read(&ready, &mut byte[..]).unwrap();
                let pid = child.as_raw();
                if kinds & libc::CLONE_NEWUSER != 0 {
                    std::fs::write(format!("/proc/{pid}/setgroups"), setgroups).unwrap();
                    for map in ["uid_map", "gid_map"] {
                        std::fs::write(format!("/proc/{pid}/{map}"), "0 100000 1000\n").unwrap();
                    }
                }
                Self { pid, _alive: alive }
            }
        }
    }
}

impl Holder {
    fn case(&self, commands: &[&str]) -> Case {
        let path = format!("/proc/{}/ns/user", self.pid);
        let case = Case::new(commands).set("/linux/namespaces/-", json!({"type": "user", "path": path}));
        std::os::unix::fs::chown(&case.root.0, Some(100_000), Some(100_000)).unwrap();
        case
    }
}

fn joining_a_user_namespace() {
    let holder = Holder::new(libc::CLONE_NEWUSER, "allow");
    let commands =
        ["readlink /proc/self/ns/user", "readlink /proc/self/ns/net", "pid", "ids", "hostname", "write /x y"];
    // podman gives a map for form's sake.
    let case = holder
        .case(&commands)
        .set("/linux/uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 1}]))
        .set("/process/user", json!({"uid": 7, "gid": 8, "additionalGids": [9]}));
    let outcome = case.run().unwrap();
    assert_eq!(outcome.answer(0), link(holder.pid, "user"));
    assert_ne!(outcome.answer(1), link(holder.pid, "net"));
    assert_eq!(outcome.answer(2), "1", "in a pid namespace that belongs to it");
    assert_eq!(outcome.answer(3), "7 8 [9]");
    assert_eq!(outcome.answer(4), "inside");
    assert_eq!(outcome.answer(5), "EACCES");
    // An exec into it, and one more container in the same pid and user namespaces.
    let running = holder.case(&["sleep"]).start();
    let execed = in_container(&running, &["readlink /proc/self/ns/user", "ids", "write /x y"], 0);
    assert_eq!(execed.answer(0), link(holder.pid, "user"));
    assert_eq!(execed.answer(1), "0 0 []");
    assert_eq!(execed.answer(2), "written");
    let mut shared = holder.case(&["pid", "readlink /proc/self/ns/pid"]);
    replace(&mut shared, "pid", format!("/proc/{}/ns/pid", running.pid));
    let shared = shared.run().unwrap();
    assert_ne!(shared.answer(0), "1");
    assert_eq!(shared.answer(1), link(running.pid, "pid"));
    running.kill();
}

fn denies_setgroups() {
    let holder = Holder::new(libc::CLONE_NEWUSER, "deny");
    let none = holder.case(&["ids"]).run().unwrap();
    assert_eq!((none.answer(0), &none.warnings[..]), ("0 0 []", &[][..]));
    let case = holder.case(&["ids"]).set("/process/user", json!({"uid": 0, "gid": 0, "additionalGids": [5]}));
    let some = case.run().unwrap();
    assert_eq!(some.answer(0), "0 0 []");
    assert!(some.warnings[0].contains("additional groups [5] refused"), "{some:?}");
}

fn replace(case: &mut Case, kind: &str, path: String) {
    let list = case.spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.iter_mut().find(|n| n["type"] == kind).unwrap()["path"] = path.into();
}

fn joining_by_path() {
    let other = Case::new(&["sleep"]).start();
    for (kind, file) in
        [("uts", "uts"), ("ipc", "ipc"), ("network", "net"), ("pid", "pid"), ("cgroup", "cgroup")]
    {
        let command = format!("readlink /proc/self/ns/{file}");
        let mut case = Case::new(&[&command, "pid"]);
        replace(&mut case, kind, format!("/proc/{}/ns/{file}", other.pid));
        let outcome = case.run().unwrap();
        assert_eq!(outcome.answer(0), link(other.pid, file));
        assert_eq!(outcome.answer(1) == "1", kind != "pid", "{kind}");
    }
    other.kill();
}

fn joining_a_mount_namespace() {
    let mut own = Case::new(&[]);
    replace(&mut own, "mount", "/proc/self/ns/mnt".into());
    let error = own.run().unwrap_err().to_string();
    assert!(error.contains("linux.namespaces: mnt: is the runtime's own"), "{error}");
    // Out of the runtime's own, but still not what everybody else lives in.
    crate::fixture::own_mount_namespace();
    let mut system = Case::new(&[]);
    replace(&mut system, "mount", "/proc/1/ns/mnt".into());
    let error = system.run().unwrap_err().to_string();
    // Here and there PID 1 has more rights than we, and cannot be looked at.
    let refused = [
        "linux.namespaces: mnt: is the system's own",
        "linux.namespaces: mnt: open(\"/proc/1/ns/mnt\"): EACCES",
    ];
    assert!(refused.iter().any(|text| error.starts_with(text)), "{error}");
    let before = crate::fixture::mount_table();
    let holder = Holder::new(libc::CLONE_NEWNS, "");
    let mut case = Case::new(&["readlink /proc/self/ns/mnt", "cat /in-root", "exists /dev/shm"]);
    replace(&mut case, "mount", format!("/proc/{}/ns/mnt", holder.pid));
    let outcome = case.run().unwrap();
    assert_eq!(outcome.answer(0), link(holder.pid, "mnt"));
    assert_eq!(outcome.answer(1), "yes");
    assert_eq!(outcome.answer(2), "yes");
    let added = &crate::fixture::mount_table() - &before;
    assert!(
        !added.iter().any(|line| line.contains("/dev/shm") && line.contains("podyard-test")),
        "{added:?}"
    );
}

fn joins_that_fail() {
    let directory = Directory::new();
    let file = directory.0.join("file");
    std::fs::write(&file, "").unwrap();
    let holder = Holder::new(libc::CLONE_NEWUSER, "allow");
    for (kind, path, named) in [
        ("network", "/nowhere".to_string(), "linux.namespaces: net: open(\"/nowhere\"): ENOENT"),
        ("network", file.display().to_string(), "join the net namespace: setns("),
        ("network", format!("/proc/{}/ns/uts", holder.pid), "join the net namespace: setns("),
    ] {
        let mut case = holder.case(&[]);
        replace(&mut case, kind, path);
        let error = case.run().unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
    }
    let mut wrong = Case::new(&[]);
    wrong.spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user", "path": "/proc/self/ns/uts"}));
    let error = wrong.run().unwrap_err().to_string();
    assert!(error.starts_with("join the user namespace: setns("), "{error}");
    drop(holder._alive);
    let pid = nix::unistd::Pid::from_raw(holder.pid);
    nix::sys::wait::waitpid(pid, None).unwrap();
    let left = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    assert_eq!(left, Err(nix::errno::Errno::ECHILD));
}

/// None of which it could give itself, nor write its score: the files are the host's.
fn limits_in_a_user_namespace() {
    // The caller may raise up to here.
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, setrlimit};
    setrlimit(RLIMIT_NOFILE, 300, 500).unwrap();
    let fields = json!({
        "oomScoreAdj": 321,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}],
        "ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 3},
        "scheduler": {"policy": "SCHED_BATCH", "nice": -3},
    });
    let commands = ["cat /proc/self/oom_score_adj", "rlimit-nofile", "ioprio", "sched"];
    let expected = ["321", "(100, 200)", "8195", "3 -3 0 0"];
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    let limited = |commands: &[&str]| {
        let case = user_case(commands, maps.clone());
        fields
            .as_object()
            .unwrap()
            .iter()
            .fold(case, |case, (k, v)| case.set(&format!("/process/{k}"), v.clone()))
    };
    let outcome = limited(&commands).run().unwrap();
    for (i, expected) in expected.iter().enumerate() {
        assert_eq!(outcome.answer(i), *expected, "{}", commands[i]);
    }
    assert_eq!(outcome.warnings, Vec::<String>::new());
    let high = limited(&["rlimit-nofile"])
        .set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 10_000_000}]))
        .run()
        .unwrap();
    if high.answer(0) != "(100, 10000000)" {
        assert_eq!(high.answer(0), "(100, 500)");
        assert!(high.warnings[0].contains("clamped to 500"), "{high:?}");
    }
    // The same for an exec.
    let running = user_case(&["sleep"], maps.clone()).start();
    let mut process = json!({"user": {"uid": 5, "gid": 5}, "args": ["/program", "--program"], "cwd": "/"});
    process["args"].as_array_mut().unwrap().extend(commands.map(Value::from));
    process.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let (reader, stdio) = output();
    let executed = exec(ExecRequest {
        target: running.pidfd.try_clone().unwrap(),
        process: runtime::exec::ProcessPlan::from_spec(&serde_json::from_value(process).unwrap()).unwrap(),
        seccomp: None,
        stdio,
        cgroup: None,
        parent: runtime::container::Parent::Caller,
        identity: Default::default(),
    })
    .unwrap();
    let outcome = Outcome::collect(reader, &executed.pidfd, executed.warnings);
    for (i, expected) in expected.iter().enumerate() {
        assert_eq!(outcome.answer(i), *expected, "{}", commands[i]);
    }
    running.kill();
}

fn keyring_is_not_the_callers() {
    let ours = crate::program::session_keyring();
    let outcome = Case::new(&["session-keyring"]).run().unwrap();
    if ours.is_empty() {
        println!("SKIP: no keyrings here");
        return;
    }
    assert_ne!(outcome.answer(0), ours);
    let mut case = Case::new(&["session-keyring"]);
    let (reader, stdio) = output();
    let mut request = case.request(stdio).unwrap();
    request.plan.process.new_keyring = false;
    let created = create(request).unwrap();
    created.start.start().unwrap();
    assert_eq!(Outcome::collect(reader, &created.pidfd, Vec::new()).answer(0), ours);
}
