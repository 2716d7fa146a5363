//! Limits that hold, kills that reach everything, emptiness that is observed.

use std::time::{Duration, Instant};

use runtime::Kind;
use runtime::cgroup::{Cgroup, Layout};
use serde_json::{Value, json};

use crate::fixture::{Case, Group, eventually};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_cgroup_birth", birth),
    ("root_cgroup_memory_limit", memory_limit),
    ("root_cgroup_pids_limit", pids_limit),
    ("root_cgroup_limit_of_a_parent", limit_of_a_parent),
    ("root_cgroup_device_refused", device_refused),
    ("root_cgroup_kill_and_wait_empty", kill_and_wait_empty),
    ("root_cgroup_remove", remove),
    ("root_cgroup_stats", stats),
    ("root_cgroup_cpu_limit_and_missing_controllers", cpu_and_missing),
    ("root_cgroup_killed_before", killed_before),
    ("root_cgroup_legacy_layout", legacy_layout),
    ("root_cgroup_kill_reaches_forkers", kill_reaches_forkers),
];

fn limit(group: &Cgroup, resources: Value) {
    group.apply_limits(&serde_json::from_value(resources).unwrap()).unwrap();
}

fn birth() {
    let group = Group::new();
    let running = Case::new(&["sleep"]).cgroup(&group).start();
    let seen = std::fs::read_to_string(format!("/proc/{}/cgroup", running.pid)).unwrap();
    let line = format!("0::{}", group.0.path().display());
    assert!(seen.lines().any(|l| l == line), "{seen}");
    assert_eq!(group.0.pids().unwrap(), [running.pid]);
    assert!(group.0.populated().unwrap());
    running.kill();
    assert!(group.0.wait_empty(Duration::from_secs(10)).unwrap());
    // Inside, the cgroup is the root, and cannot be changed.
    let outcome = Case::new(&["cat /proc/self/cgroup"]).cgroup(&group).run().unwrap();
    assert!(outcome.answer(0).lines().any(|l| l == "0::/"), "{outcome:?}");
}

fn memory_limit() {
    let group = Group::new();
    limit(&group.0, json!({"memory": {"limit": 32 << 20}}));
    assert_eq!(group.0.oom_kills().unwrap(), 0);
    let outcome = Case::new(&["allocate 8", "allocate 200"]).cgroup(&group).run().unwrap();
    assert_eq!(outcome.answer(0), "8");
    assert_eq!(outcome.code, 128 + 9, "{outcome:?}");
    assert!(group.0.oom_kills().unwrap() >= 1);
}

fn pids_limit() {
    let group = Group::new();
    limit(&group.0, json!({"pids": {"limit": 5}}));
    let outcome = Case::new(&["threads 10"]).cgroup(&group).run().unwrap();
    assert_eq!(outcome.answer(0), "4 EAGAIN");
}

fn limit_of_a_parent() {
    let pod = Group::new();
    limit(&pod.0, json!({"pids": {"limit": 6}}));
    let container = Cgroup::create(pod.0.path().join("container")).unwrap();
    let mut case = Case::new(&["threads 10"]);
    case.cgroup = Some(container);
    assert_eq!(case.run().unwrap().answer(0), "5 EAGAIN");
}

fn device_refused() {
    let group = Group::new();
    limit(
        &group.0,
        json!({"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
        ]}),
    );
    let outcome = Case::new(&["mknod 1 1", "cat /dev/kmsg2", "write /dev/null x", "cat /dev/mem2"])
        .set(
            "/linux/devices",
            json!([
                {"path": "/dev/kmsg2", "type": "c", "major": 1, "minor": 11},
                {"path": "/dev/mem2", "type": "c", "major": 1, "minor": 1},
            ]),
        )
        .set(
            "/process/capabilities",
            json!({"bounding": ["CAP_MKNOD"], "permitted": ["CAP_MKNOD"], "effective": ["CAP_MKNOD"]}),
        )
        .cgroup(&group)
        .run()
        .unwrap();
    assert_eq!(outcome.answer(0), "EPERM", "{outcome:?}");
    assert_eq!(outcome.answer(1), "EPERM");
    assert_eq!(outcome.answer(2), "written");
    assert_eq!(outcome.answer(3), "EPERM");
}

fn kill_and_wait_empty() {
    let group = Group::new();
    assert!(!group.0.populated().unwrap());
    let running = Case::new(&["spawn-sleepers 5", "sleep"]).cgroup(&group).start();
    eventually("six processes", || group.0.pids().unwrap().len() == 6);
    let before = Instant::now();
    assert!(!group.0.wait_empty(Duration::from_millis(50)).unwrap());
    assert!(before.elapsed() >= Duration::from_millis(50));
    let busy = group.0.remove().unwrap_err();
    assert_eq!(busy.kind(), Kind::Busy);
    group.0.kill().unwrap();
    assert!(group.0.wait_empty(Duration::from_secs(20)).unwrap());
    assert!(!group.0.populated().unwrap());
    assert!(group.0.pids().unwrap().is_empty());
    assert_eq!(running.kill().code, 128 + 9);
}

fn remove() {
    let group = Group::new();
    limit(&group.0, json!({"memory": {"limit": 1 << 30}, "pids": {"limit": 50}}));
    for below in ["a", "a/b", "c"] {
        let below = Cgroup::create(group.0.path().join(below)).unwrap();
        limit(&below, json!({"pids": {"limit": 10}}));
    }
    Cgroup::create(group.0.path()).unwrap();
    group.0.remove().unwrap();
    assert!(!group.0.exists());
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
        let left = hierarchy.unwrap().path().join(group.0.path().strip_prefix("/").unwrap());
        assert!(!left.exists(), "{left:?}");
    }
    group.0.remove().unwrap();
    group.0.kill().unwrap();
    assert!(group.0.wait_empty(Duration::ZERO).unwrap());
    assert_eq!(Cgroup::open(group.0.path()).unwrap_err().kind(), Kind::NotFound);
}

fn stats() {
    let group = Group::new();
    group.0.account().unwrap();
    let running = Case::new(&["allocate 20", "sleep"]).cgroup(&group).start();
    eventually("CPU time", || group.0.stats().unwrap().cpu.usage.usage_total > 0);
    eventually("memory", || group.0.stats().unwrap().memory.memory.usage > 100_000);
    assert!(group.0.stats().unwrap().pids.current >= 1);
    running.kill();
    let bare = Group::new();
    if bare.0.layout() != Layout::Unified {
        assert_eq!(bare.0.stats().unwrap_err().kind(), Kind::Unsupported);
    }
}

fn cpu_and_missing() {
    let group = Group::new();
    limit(&group.0, json!({"cpu": {"shares": 512, "quota": 50000, "period": 100000}}));
    let outcome = Case::new(&["pid"]).cgroup(&group).run().unwrap();
    assert_eq!(outcome.code, 0);
    let wanted =
        serde_json::from_value(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]})).unwrap();
    if let Err(error) = group.0.apply_limits(&wanted) {
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        assert!(error.to_string().contains("hugepageLimits"), "{error}");
    }
}

fn killed_before() {
    // Kernels that count kills take a process born into such a cgroup for one that escaped.
    let group = Group::new();
    for _ in 0..2 {
        group.0.kill().unwrap();
        let running = Case::new(&["sleep"]).cgroup(&group).start();
        assert_eq!(group.0.pids().unwrap(), [running.pid]);
        let inside = std::fs::read_to_string(format!("/proc/{}/cgroup", running.pid)).unwrap();
        assert!(inside.lines().any(|l| l == format!("0::{}", group.0.path().display())), "{inside}");
        running.kill();
    }
    // The other way round: this process's own cgroup was killed once, before it came.
    let own = Group::new();
    own.0.kill().unwrap();
    let home = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let home = home.lines().find_map(|l| l.strip_prefix("0::")).unwrap().trim_start_matches('/').to_owned();
    own.0.attach(std::process::id() as i32).unwrap();
    let fresh = Group::new();
    let outcome = Case::new(&["pid"]).cgroup(&fresh).run();
    let root = match own.0.layout() {
        Layout::Unified => std::path::Path::new("/sys/fs/cgroup"),
        _ => std::path::Path::new("/sys/fs/cgroup/unified"),
    };
    std::fs::write(root.join(home).join("cgroup.procs"), "0").unwrap();
    assert_eq!(outcome.unwrap().answer(0), "1");
}

fn legacy_layout() {
    // In a mount namespace of this test's own cgroup2 is not mounted: it mounts it privately.
    use nix::mount::{MntFlags, umount2};
    crate::fixture::own_mount_namespace();
    let hybrid = std::path::Path::new("/sys/fs/cgroup/unified");
    let point = if hybrid.exists() { hybrid } else { std::path::Path::new("/sys/fs/cgroup") };
    umount2(point, MntFlags::MNT_DETACH).unwrap();
    if crate::harness::lacks("fsopen") {
        // mount(2) would show it to all.
        let error = Cgroup::create(format!("/{}", crate::fixture::unique("cgroup"))).unwrap_err();
        assert_eq!(error.kind(), runtime::Kind::Unsupported, "{error}");
        return;
    }
    let group = Group::new();
    assert_eq!(group.0.layout(), Layout::Legacy);
    let running = Case::new(&["spawn-sleepers 2", "sleep"]).cgroup(&group).start();
    eventually("three processes", || group.0.pids().unwrap().len() == 3);
    group.0.kill().unwrap();
    assert!(group.0.wait_empty(Duration::from_secs(20)).unwrap());
    running.kill();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains("- cgroup2 "), "the private mount is in no table");
    if hybrid.exists() {
        limit(&group.0, json!({"pids": {"limit": 5}}));
        assert_eq!(Case::new(&["threads 10"]).cgroup(&group).run().unwrap().answer(0), "4 EAGAIN");
    }
}

fn kill_reaches_forkers() {
    let group = Group::new();
    let running = Case::new(&["spawn-sleepers 50", "spawn-sleepers 50", "sleep"]).cgroup(&group).start();
    eventually("some forks", || group.0.pids().unwrap().len() > 3);
    group.0.kill().unwrap();
    assert!(group.0.wait_empty(Duration::from_secs(20)).unwrap());
    running.kill();
}
