//! A table: limits in JSON, and what is written on either version.

use super::*;

/// `field: file = value`, one of several ways after the other.
fn shown(limits: &Limits) -> Vec<String> {
    let way = |(file, value): &(String, String)| format!("{file} = {value}");
    let ways = |w: &Write| w.ways.iter().map(way).collect::<Vec<_>>().join(" or ");
    limits.writes.iter().map(|w| format!("{}{}", ways(w), if w.optional { "?" } else { "" })).collect()
}

fn plan(json: &str, version: Version) -> Result<Limits> {
    Limits::plan(&serde_json::from_str(json).unwrap(), version, &Observed::default())
}

fn check(json: &str, v1: &[&str], v2: &[&str]) {
    assert_eq!(shown(&plan(json, Version::V1).unwrap()), v1, "v1: {json}");
    assert_eq!(shown(&plan(json, Version::V2).unwrap()), v2, "v2: {json}");
}

fn refused(json: &str, version: Version, named: &str) {
    let error = plan(json, version).unwrap_err().to_string();
    assert!(error.starts_with("linux.resources.") && error.contains(named), "{json}: {error}");
}

#[test]
fn memory() {
    check("{}", &[], &[]);
    check(
        r#"{"memory":{"limit":1048576,"reservation":524288}}"#,
        &["memory.limit_in_bytes = 1048576", "memory.soft_limit_in_bytes = 524288"],
        &["memory.max = 1048576", "memory.low = 524288"],
    );
    // Memory and swap together on v1, swap alone on v2.
    check(
        r#"{"memory":{"limit":100,"swap":300}}"#,
        &["memory.limit_in_bytes = 100", "memory.memsw.limit_in_bytes = 300"],
        &["memory.max = 100", "memory.swap.max = 200"],
    );
    check(
        r#"{"memory":{"limit":100,"swap":100}}"#,
        &["memory.limit_in_bytes = 100", "memory.memsw.limit_in_bytes = 100"],
        &["memory.max = 100", "memory.swap.max = 0?"],
    );
    check(
        r#"{"memory":{"limit":100,"swap":-1}}"#,
        &["memory.limit_in_bytes = 100", "memory.memsw.limit_in_bytes = -1?"],
        &["memory.max = 100", "memory.swap.max = max?"],
    );
    check(
        r#"{"memory":{"limit":-1}}"#,
        &["memory.limit_in_bytes = -1", "memory.memsw.limit_in_bytes = -1?"],
        &["memory.max = max", "memory.swap.max = max?"],
    );
    check(
        r#"{"memory":{"swappiness":60,"disableOOMKiller":true,"useHierarchy":true,"kernel":5}}"#,
        &["memory.swappiness = 60", "memory.oom_control = 1", "memory.use_hierarchy = 1?"],
        &[],
    );
    let v2 = plan(r#"{"memory":{"swappiness":60,"disableOOMKiller":true,"kernel":5}}"#, Version::V2).unwrap();
    assert_eq!(v2.warnings.len(), 3, "{:?}", v2.warnings);
    let checked = plan(r#"{"memory":{"limit":7,"checkBeforeUpdate":true}}"#, Version::V2).unwrap();
    assert_eq!(checked.memory_bytes_at_most, Some(7));
    refused(r#"{"memory":{"limit":100,"swap":50}}"#, Version::V1, "memory.swap");
    refused(r#"{"memory":{"swap":50}}"#, Version::V2, "memory.swap");
    refused(r#"{"memory":{"limit":-2}}"#, Version::V2, "memory.limit");
    refused(r#"{"memory":{"swappiness":101}}"#, Version::V1, "memory.swappiness");
    refused(r#"{"memory":{"useHierarchy":false}}"#, Version::V2, "memory.useHierarchy");
}

#[test]
fn cpu_and_pids() {
    check(
        r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"burst":1000},"pids":{"limit":100}}"#,
        &[
            "cpu.shares = 1024",
            "cpu.cfs_period_us = 100000",
            "cpu.cfs_quota_us = 50000",
            "cpu.cfs_burst_us = 1000",
            "pids.max = 100",
        ],
        &["cpu.weight = 100", "cpu.max = 50000 100000", "cpu.max.burst = 1000", "pids.max = 100"],
    );
    check(
        r#"{"cpu":{"quota":-1},"pids":{"limit":-1}}"#,
        &["cpu.cfs_quota_us = -1", "pids.max = max"],
        &["cpu.max = max", "pids.max = max"],
    );
    check(r#"{"cpu":{"shares":0,"quota":0,"period":0,"cpus":"","mems":""},"pids":{"limit":0}}"#, &[], &[]);
    check(r#"{"cpu":{"idle":1,"shares":2}}"#, &["cpu.shares = 2", "cpu.idle = 1"], &["cpu.idle = 1"]);
    check(
        r#"{"cpu":{"cpus":"0-1","mems":"0"}}"#,
        &["cpuset.cpus = 0-1", "cpuset.mems = 0"],
        &["cpuset.cpus = 0-1", "cpuset.mems = 0"],
    );
    let realtime = r#"{"cpu":{"realtimePeriod":1000000,"realtimeRuntime":950000}}"#;
    let v1 = plan(realtime, Version::V1).unwrap();
    assert_eq!(shown(&v1), ["cpu.rt_period_us = 1000000", "cpu.rt_runtime_us = 950000"]);
    refused(realtime, Version::V2, "cpu.realtimeRuntime");
    let period: LinuxResources = serde_json::from_str(r#"{"cpu":{"period":50000}}"#).unwrap();
    let observed = Observed { quota: Some("20000".into()) };
    let kept = Limits::plan(&period, Version::V2, &observed).unwrap();
    assert_eq!(shown(&kept), ["cpu.max = 20000 50000"]);
}

#[test]
fn shares_and_weights() {
    for (shares, weight) in
        [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000), (512, 59), (2048, 174)]
    {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
    let all: Vec<u64> = (2..2000).map(weight_of_shares).collect();
    assert!(all.is_sorted());
}

#[test]
fn block_devices() {
    check(
        r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#,
        &[
            "blkio.bfq.weight = 500 or blkio.weight = 500",
            "blkio.bfq.weight_device = 8:0 10 or blkio.weight_device = 8:0 10",
            "blkio.throttle.read_bps_device = 8:0 1000",
            "blkio.throttle.write_iops_device = 8:16 0",
        ],
        &[
            "io.bfq.weight = 500 or io.weight = 4950",
            "io.bfq.weight = 8:0 10 or io.weight = 8:0 1",
            "io.max = 8:0 rbps=1000",
            "io.max = 8:16 wiops=max",
        ],
    );
    let leaf = r#"{"blockIO":{"leafWeight":300,"weightDevice":[{"major":8,"minor":0,"leafWeight":10}]}}"#;
    let v1 = plan(leaf, Version::V1).unwrap();
    assert_eq!(shown(&v1), ["blkio.leaf_weight = 300", "blkio.leaf_weight_device = 8:0 10"]);
    refused(leaf, Version::V2, "blockIO.leafWeight");
    refused(r#"{"blockIO":{"weight":5}}"#, Version::V1, "blockIO.weight");
    refused(
        r#"{"blockIO":{"throttleReadBpsDevice":[{"major":-1,"minor":0,"rate":1}]}}"#,
        Version::V2,
        "throttleReadBpsDevice",
    );
}

#[test]
fn the_rest() {
    check(
        r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
        &["hugetlb.2MB.limit_in_bytes = 4194304", "hugetlb.2MB.rsvd.limit_in_bytes = 4194304?"],
        &["hugetlb.2MB.max = 4194304", "hugetlb.2MB.rsvd.max = 4194304?"],
    );
    check(
        r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},"a":{"hcaObjects":1}}}"#,
        &["rdma.max = a hca_object=1", "rdma.max = mlx5_1 hca_handle=3 hca_object=10000"],
        &["rdma.max = a hca_object=1", "rdma.max = mlx5_1 hca_handle=3 hca_object=10000"],
    );
    let network = r#"{"network":{"classID":1048577,"priorities":[{"name":"eth0","priority":5}]}}"#;
    let v1 = plan(network, Version::V1).unwrap();
    assert_eq!(shown(&v1), ["net_cls.classid = 1048577", "net_prio.ifpriomap = eth0 5"]);
    refused(network, Version::V2, "network");
    let unified = r#"{"unified":{"memory.high":"10000","cpu.weight":"5"}}"#;
    assert_eq!(shown(&plan(unified, Version::V2).unwrap()), ["cpu.weight = 5", "memory.high = 10000"]);
    refused(unified, Version::V1, "unified");
    refused(r#"{"unified":{"../memory.max":"1"}}"#, Version::V2, "unified");
    refused(r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#, Version::V2, "hugepageLimits");
    refused(r#"{"rdma":{"a b":{}}}"#, Version::V1, "rdma");
}
