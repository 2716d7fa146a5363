//! Promise: a container never uses more than its limits, and what it sees of its cgroup is its own, read-only.
//!
//! Runs here, and by `cargo vm integration:limits` on a kernel with cgroup v2 alone.
#![allow(clippy::unwrap_used, reason = "tests")]

use integration::harness::{Yard, first_status, is_root};

/// The program: in the virtual machine it is not where cargo built it.
fn start(test: &str) -> Option<Yard> {
    let program = std::env::var("PODYARD_UNDER_TEST");
    let program = program.unwrap_or(env!("CARGO_BIN_EXE_podyard-under-test").into());
    is_root(test).then(|| Yard::start(&program, test)).flatten()
}

#[test]
fn root_a_container_over_its_memory_limit_is_killed_and_says_why() {
    let Some(yard) = start("oom") else { return };
    yard.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: mem
    image: podyard.local/toolbox
    command: [mem, "200000000"]
    resources: {limits: {memory: 48Mi}}
"#,
    );
    let over = |pod: &serde_json::Value| first_status(pod)["state"]["terminated"].is_object();
    let pod = yard.pod_until("greedy", "has ended", over);
    let ended = &first_status(&pod)["state"]["terminated"];
    assert_eq!(ended["reason"], "OOMKilled", "{ended}");
    assert_eq!(ended["exitCode"], 137);
}

#[test]
fn root_a_container_sees_its_own_limits_and_cannot_raise_them() {
    let Some(yard) = start("limits") else { return };
    yard.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec:
  containers:
  - name: sleep
    image: podyard.local/toolbox
    command: [sleep, infinity]
    resources: {limits: {memory: 64Mi, cpu: 250m}}
"#,
    );
    yard.ready("modest");
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (memory, cpu, cpu_text) = match v2 {
        true => ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max", "25000 100000"),
        false => {
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000")
        }
    };
    let seen = |file: &str| yard.ok(&["exec", "modest", "--", "cat", file]).trim().to_owned();
    assert_eq!(seen(memory), (64 << 20).to_string());
    assert_eq!(seen(cpu), cpu_text);
    let raise = yard.podyard(&["exec", "modest", "--", "write", memory, "max"]);
    assert_ne!(raise.code, 0, "{raise:?}");
    assert_eq!(seen(memory), (64 << 20).to_string());
}
