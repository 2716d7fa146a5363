//! Every limit, read back from the kernel's own files; and limits that depend on each other, changed in any order.

use std::path::{Path, PathBuf};

use runtime::Kind;
use runtime::cgroup::{Cgroup, Layout};
use serde_json::{Value, json};

use crate::fixture::Group;
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_resources_are_read_back", read_back),
    ("root_resources_of_a_block_device", block_device),
    ("root_resources_change_in_any_order", any_order),
    ("root_resources_unified", unified),
    ("root_resources_refused_by_name", refused),
    ("root_resources_checked_before_update", checked_before_update),
];

fn apply(group: &Cgroup, resources: &Value) -> runtime::Result<Vec<String>> {
    group.apply_limits(&serde_json::from_value(resources.clone()).unwrap())
}

/// A file of the cgroup, in the hierarchy of a controller.
fn file(group: &Cgroup, controller: &str, name: &str) -> PathBuf {
    let path = group.path();
    let below = path.strip_prefix("/").unwrap();
    let root = Path::new("/sys/fs/cgroup");
    match group.layout() {
        Layout::Unified => root.join(below).join(name),
        _ => root.join(controller).join(below).join(name),
    }
}

#[track_caller]
fn reads(group: &Cgroup, controller: &str, name: &str, expect: &str) {
    let path = file(group, controller, name);
    let found = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    assert!(found.lines().any(|line| line.trim() == expect), "{path:?}: {found:?} instead of {expect:?}");
}

type Expected = (&'static str, &'static str, &'static str);

/// The files and values must be there, unless this kernel has no such file: then it is refused by the field's name.
#[track_caller]
fn check(resources: Value, v1: &[Expected], v2: &[Expected]) {
    let group = Group::new();
    let expected = if group.0.layout() == Layout::Unified { v2 } else { v1 };
    match apply(&group.0, &resources) {
        Ok(_) => {
            expected.iter().for_each(|(controller, name, value)| reads(&group.0, controller, name, value))
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::Unsupported, "{resources}: {error}");
            let (group_name, fields) = resources.as_object().unwrap().iter().next().unwrap();
            assert!(error.to_string().contains(&format!("linux.resources.{group_name}")), "{error}");
            let there =
                expected.iter().all(|(controller, name, _)| file(&group.0, controller, name).exists());
            assert!(expected.is_empty() || !there, "{fields} is refused, and the kernel has it: {error}");
            eprintln!("SKIP: not in this kernel: {error}");
        }
    }
}

fn read_back() {
    check(
        json!({"memory": {"limit": 64 << 20, "reservation": 32 << 20}}),
        &[
            ("memory", "memory.limit_in_bytes", "67108864"),
            ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ],
        &[("memory", "memory.max", "67108864"), ("memory", "memory.low", "33554432")],
    );
    check(
        json!({"memory": {"limit": 64 << 20, "swap": 96 << 20}}),
        &[("memory", "memory.memsw.limit_in_bytes", "100663296")],
        &[("memory", "memory.swap.max", "33554432")],
    );
    check(
        json!({"memory": {"limit": 64 << 20, "swap": -1}}),
        &[("memory", "memory.limit_in_bytes", "67108864")],
        &[("memory", "memory.max", "67108864")],
    );
    check(json!({"memory": {"swappiness": 37}}), &[("memory", "memory.swappiness", "37")], &[]);
    check(
        json!({"memory": {"disableOOMKiller": true}}),
        &[("memory", "memory.oom_control", "oom_kill_disable 1")],
        &[],
    );
    check(
        json!({"cpu": {"shares": 512, "quota": 50000, "period": 200000}}),
        &[
            ("cpu", "cpu.shares", "512"),
            ("cpu", "cpu.cfs_quota_us", "50000"),
            ("cpu", "cpu.cfs_period_us", "200000"),
        ],
        &[("cpu", "cpu.weight", "59"), ("cpu", "cpu.max", "50000 200000")],
    );
    check(
        json!({"cpu": {"quota": 50000, "period": 100000, "burst": 20000}}),
        &[("cpu", "cpu.cfs_burst_us", "20000")],
        &[("cpu", "cpu.max.burst", "20000")],
    );
    check(json!({"cpu": {"idle": 1}}), &[("cpu", "cpu.idle", "1")], &[("cpu", "cpu.idle", "1")]);
    check(
        json!({"cpu": {"cpus": "0", "mems": "0"}}),
        &[("cpuset", "cpuset.cpus", "0"), ("cpuset", "cpuset.mems", "0")],
        &[("cpuset", "cpuset.cpus", "0"), ("cpuset", "cpuset.mems", "0")],
    );
    check(json!({"cpu": {"realtimePeriod": 500_000}}), &[("cpu", "cpu.rt_period_us", "500000")], &[]);
    check(json!({"pids": {"limit": 77}}), &[("pids", "pids.max", "77")], &[("pids", "pids.max", "77")]);
    check(json!({"pids": {"limit": -1}}), &[("pids", "pids.max", "max")], &[("pids", "pids.max", "max")]);
    check(
        json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}),
        &[("hugetlb", "hugetlb.2MB.limit_in_bytes", "4194304")],
        &[("hugetlb", "hugetlb.2MB.max", "4194304")],
    );
    check(json!({"network": {"classID": 65537}}), &[("net_cls", "net_cls.classid", "65537")], &[]);
    check(
        json!({"network": {"priorities": [{"name": "lo", "priority": 5}]}}),
        &[("net_prio", "net_prio.ifpriomap", "lo 5")],
        &[],
    );
    check(
        json!({"devices": [{"allow": false}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]}),
        &[("devices", "devices.list", "c 10:229 rw"), ("devices", "devices.list", "c 1:3 rwm")],
        &[],
    );
}

fn block_device() {
    let Some(device) = disk() else {
        eprintln!("SKIP: there is no disk here");
        return;
    };
    let (major, minor) = device.split_once(':').unwrap();
    let rate = json!([{"major": major.parse::<i64>().unwrap(), "minor": minor.parse::<i64>().unwrap(), "rate": 1 << 20}]);
    let v1: String = format!("{device} 1048576");
    let v2: String = format!("{device} rbps=1048576 wbps=max riops=max wiops=max");
    let (v1, v2): (&str, &str) = (v1.leak(), v2.leak());
    check(
        json!({"blockIO": {"throttleReadBpsDevice": rate}}),
        &[("blkio", "blkio.throttle.read_bps_device", v1)],
        &[("io", "io.max", v2)],
    );
    check(
        json!({"blockIO": {"throttleWriteIOPSDevice": rate}}),
        &[("blkio", "blkio.throttle.write_iops_device", v1)],
        &[],
    );
    // Which file takes a weight, if any, depends on the schedulers built in.
    check(json!({"blockIO": {"weight": 300}}), &[("blkio", "blkio.bfq.weight", "300")], &[]);
}

/// `major:minor` of a whole disk.
fn disk() -> Option<String> {
    let virtual_ =
        |path: &Path| std::fs::canonicalize(path).is_ok_and(|p| p.starts_with("/sys/devices/virtual"));
    let disks = std::fs::read_dir("/sys/block").ok()?.flatten().map(|entry| entry.path());
    let disk = disks.filter(|path| !virtual_(path)).min()?;
    std::fs::read_to_string(disk.join("dev")).ok().map(|text| text.trim().to_string())
}

fn any_order() {
    let group = Group::new();
    // Growing and shrinking: neither "memory first" nor "swap first" is right for both.
    for mebibytes in [64, 256, 32] {
        let limit = mebibytes << 20;
        apply(&group.0, &json!({"memory": {"limit": limit, "swap": limit}})).unwrap();
        let name = if group.0.layout() == Layout::Unified { "memory.max" } else { "memory.limit_in_bytes" };
        reads(&group.0, "memory", name, &limit.to_string());
    }
    // A parent bounds the share of time that a child may have, so a period must not come before its quota.
    let child = Cgroup::create(group.0.path().join("child")).unwrap();
    apply(&group.0, &json!({"cpu": {"quota": 50000, "period": 100_000}})).unwrap();
    for (quota, period) in [(40000, 100_000), (10000, 20000), (400_000, 1_000_000)] {
        apply(&child, &json!({"cpu": {"quota": quota, "period": period}})).unwrap();
        match group.0.layout() {
            Layout::Unified => reads(&child, "cpu", "cpu.max", &format!("{quota} {period}")),
            _ => reads(&child, "cpu", "cpu.cfs_quota_us", &quota.to_string()),
        }
    }
    // A period alone leaves the quota.
    apply(&child, &json!({"cpu": {"period": 900_000}})).unwrap();
    match group.0.layout() {
        Layout::Unified => reads(&child, "cpu", "cpu.max", "400000 900000"),
        _ => reads(&child, "cpu", "cpu.cfs_quota_us", "400000"),
    }
}

fn unified() {
    let group = Group::new();
    let outcome = apply(&group.0, &json!({"unified": {"memory.high": "33554432", "pids.max": "12"}}));
    match group.0.layout() {
        Layout::Unified => {
            outcome.unwrap();
            reads(&group.0, "memory", "memory.high", "33554432");
            reads(&group.0, "pids", "pids.max", "12");
            let error = apply(&group.0, &json!({"unified": {"nosuch.max": "1"}})).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{error}");
            assert!(error.to_string().contains("unified.nosuch.max"), "{error}");
        }
        _ => {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{error}");
            assert!(error.to_string().contains("linux.resources.unified"), "{error}");
        }
    }
}

fn refused() {
    let group = Group::new();
    for (resources, named) in [
        (json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}), "linux.resources.rdma"),
        (json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}), "linux.resources.hugepageLimits"),
    ] {
        let error = apply(&group.0, &resources).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
    // A value that the kernel refuses is named with its file.
    let error = apply(&group.0, &json!({"cpu": {"cpus": "4000"}})).unwrap_err().to_string();
    assert!(error.contains("linux.resources.cpu.cpus") && error.contains("cpuset.cpus"), "{error}");
    let warned = apply(&group.0, &json!({"memory": {"kernel": 1 << 20}})).unwrap();
    assert!(warned.iter().any(|w| w.contains("linux.resources.memory.kernel")), "{warned:?}");
}

fn checked_before_update() {
    let group = Group::new();
    apply(&group.0, &json!({"memory": {"limit": 128 << 20}})).unwrap();
    let running = crate::fixture::Case::new(&["sleep"]).cgroup(&group).start();
    let usage = if group.0.layout() == Layout::Unified { "memory.current" } else { "memory.usage_in_bytes" };
    crate::fixture::eventually("memory in use", || {
        let text = std::fs::read_to_string(file(&group.0, "memory", usage)).unwrap();
        text.trim().parse::<u64>().unwrap() > 64 << 10
    });
    // v1 refuses by itself what is in use and cannot be reclaimed.
    let error = apply(&group.0, &json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}})).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    running.kill();
}
