//! Where the fuzzing starts: documents that say as much as they can, and are accepted.

use serde_json::{Value, json};

pub fn processes() -> Vec<Value> {
    let all = json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_SYS_ADMIN"]);
    vec![
        json!({
            "terminal": true,
            "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 7, "gid": 8, "umask": 18, "additionalGids": [9, 10]},
            "args": ["/bin/sh", "-c", "exit"],
            "env": ["PATH=/bin:/usr/bin", "HOME=/root"],
            "cwd": "/work",
            "capabilities": {"bounding": all, "effective": all, "permitted": all, "inheritable": [], "ambient": []},
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
            "noNewPrivileges": true,
            "oomScoreAdj": 100,
            "scheduler": {"policy": "SCHED_OTHER", "nice": 5},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        }),
        json!({"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"}),
    ]
}

pub fn profiles() -> Vec<Value> {
    vec![
        json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"names": ["read", "write", "exit_group"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]},
                {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [
                    {"index": 0, "value": 40, "op": "SCMP_CMP_NE"},
                    {"index": 1, "value": 3, "op": "SCMP_CMP_GT"}]},
                {"names": ["mount"], "action": "SCMP_ACT_KILL_PROCESS"},
            ],
        }),
        serde_json::to_value(runtime::seccomp::default_profile(&["CAP_SYS_CHROOT"])).unwrap(),
        json!({"defaultAction": "SCMP_ACT_ALLOW"}),
    ]
}

pub fn resources() -> Vec<Value> {
    vec![
        json!({"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
        ]}),
        json!({"memory": {"limit": 1 << 30, "reservation": 1 << 29}}),
        json!({"cpu": {"shares": 512, "quota": 50000, "period": 100000}, "pids": {"limit": 100}}),
        json!({}),
    ]
}

pub fn configs() -> Vec<Value> {
    let namespaces: Vec<Value> = ["mount", "uts", "ipc", "pid", "network", "cgroup", "time"]
        .iter()
        .map(|t| json!({"type": t}))
        .collect();
    let full = json!({
        "ociVersion": "1.2.0",
        "process": processes()[0],
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "inside",
        "domainname": "domain",
        "hooks": {
            "createRuntime": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}],
            "poststop": [{"path": "/bin/true"}],
        },
        "annotations": {"a": "b", "org.opencontainers.image.os": "linux"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=65536k"]},
            {"destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind", "ro", "rnosuid", "rslave"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "relatime"]},
        ],
        "linux": {
            "namespaces": namespaces,
            "devices": [
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 432, "uid": 0, "gid": 5},
                {"path": "/dev/pipe", "type": "p", "major": 0, "minor": 0},
            ],
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"},
            "resources": {"devices": [{"allow": false, "access": "rwm"}], "pids": {"limit": 10}},
            "cgroupsPath": "/a/b",
            "timeOffsets": {"boottime": {"secs": 10, "nanosecs": 0}},
            "rootfsPropagation": "rslave",
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
            "seccomp": profiles()[0],
        },
    });
    let mut user = full.clone();
    user["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    user["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    user["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    let small = json!({
        "ociVersion": "1.0.2",
        "process": processes()[1],
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "mount"}]},
    });
    vec![full, user, small]
}

pub fn states() -> Vec<Value> {
    vec![
        json!({
            "id": "c1", "bundle": "/b", "rootfs": "/b/rootfs", "cgroup": "/podyard-oci-c1", "pid": std::process::id(),
            "started_ticks": 12345, "created": "2026-01-01T00:00:00Z",
        }),
        json!({"id": "c2", "bundle": "/b", "cgroup": "/podyard-oci-c2", "pid": 0, "started_ticks": 0}),
    ]
}

pub fn reports() -> Vec<Value> {
    vec![
        json!({"Failed": {"kind": "NotFound", "text": "exec /bin/nope", "errno": 2}}),
        json!({"Failed": {"kind": "Internal", "text": "given up before start", "errno": null}}),
        json!({"Ready": {"warnings": ["RLIMIT_NOFILE 1000 clamped to 500", ""]}}),
    ]
}
