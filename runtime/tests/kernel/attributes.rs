//! How a process is scheduled, where it runs and allocates, what machine it believes to be on, what confines it.

use runtime::exec::{ExecRequest, Executed, ProcessPlan, exec};
use serde_json::{Value, json};

use crate::fixture::{Case, Outcome, Running, output};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_scheduler", scheduler),
    ("root_io_priority", io_priority),
    ("root_personality", personality),
    ("root_memory_policy", memory_policy),
    ("root_exec_cpu_affinity", exec_cpu_affinity),
    ("root_labels_are_applied_or_refused", labels),
];

fn with(field: &str, value: Value, commands: &[&str]) -> runtime::Result<Outcome> {
    Case::new(commands).set(field, value).run()
}

fn exec_with(running: &Running, fields: Value, commands: &[&str]) -> runtime::Result<Outcome> {
    let mut args = vec!["/program", "--program"];
    args.extend(commands);
    let mut process = json!({"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/"], "cwd": "/"});
    process.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let (reader, stdio) = output();
    let Executed { pidfd, warnings, .. } = exec(ExecRequest {
        target: running.pidfd.try_clone().unwrap(),
        process: ProcessPlan::from_spec(&serde_json::from_value(process).unwrap())?,
        seccomp: None,
        stdio,
        cgroup: None,
        parent: runtime::container::Parent::Caller,
        identity: Default::default(),
    })?;
    Ok(Outcome::collect(reader, &pidfd, warnings))
}

fn scheduler() {
    let answer = |spec: Value| with("/process/scheduler", spec, &["sched"]).map(|o| o.answer(0).to_string());
    // Policy, nice, real-time priority, flags.
    for (spec, expected) in [
        (json!({"policy": "SCHED_OTHER", "nice": 7}), "0 7 0 0"),
        (json!({"policy": "SCHED_BATCH", "nice": 3}), "3 3 0 0"),
        (json!({"policy": "SCHED_IDLE"}), "5 0 0 0"),
        (json!({"policy": "SCHED_OTHER", "nice": 1, "flags": ["SCHED_RESET_ON_FORK"]}), "0 1 0 1"),
    ] {
        assert_eq!(answer(spec.clone()).unwrap(), expected, "{spec}");
    }
    // These may lack room (groups of real-time tasks, deadlines) or rights; then the whole is refused by name.
    for (spec, expected) in [
        (json!({"policy": "SCHED_OTHER", "nice": -4}), "0 -4 0 0"),
        (json!({"policy": "SCHED_FIFO", "priority": 3}), "1 0 3 0"),
        (json!({"policy": "SCHED_RR", "priority": 2}), "2 0 2 0"),
        (
            json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 50_000_000, "period": 100_000_000}),
            "6 0 0 0",
        ),
    ] {
        match answer(spec.clone()) {
            Ok(found) => assert_eq!(found, expected, "{spec}"),
            Err(e) => {
                println!("{spec}: {e}");
                assert!(e.to_string().starts_with("process.scheduler: sched_setattr("), "{e}");
                let errno = e.errno().unwrap();
                assert!([nix::errno::Errno::EPERM, nix::errno::Errno::EBUSY].contains(&errno), "{e}");
            }
        }
    }
    let running = Case::new(&["sleep"]).start();
    let exec =
        exec_with(&running, json!({"scheduler": {"policy": "SCHED_BATCH", "nice": 9}}), &["sched"]).unwrap();
    assert_eq!(exec.answer(0), "3 9 0 0");
    running.kill();
}

fn io_priority() {
    for (class, level, number) in
        [("IOPRIO_CLASS_BE", 6, 0x4006), ("IOPRIO_CLASS_IDLE", 0, 0x6000), ("IOPRIO_CLASS_RT", 3, 0x2003)]
    {
        let spec = json!({"class": class, "priority": level});
        let outcome = with("/process/ioPriority", spec.clone(), &["ioprio"]).unwrap();
        assert_eq!(outcome.answer(0), number.to_string(), "{class}");
        let running = Case::new(&["sleep"]).start();
        let exec = exec_with(&running, json!({"ioPriority": spec}), &["ioprio"]).unwrap();
        assert_eq!(exec.answer(0), number.to_string(), "{class}");
        running.kill();
    }
}

fn personality() {
    let outcome =
        with("/linux/personality", json!({"domain": "LINUX32"}), &["personality", "machine"]).unwrap();
    assert_eq!(outcome.answer(0), "8");
    let expected = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    assert_eq!(outcome.answer(1), expected);
    let outcome =
        with("/linux/personality", json!({"domain": "LINUX"}), &["personality", "machine"]).unwrap();
    assert_eq!(outcome.answer(0), "0");
    assert_ne!(outcome.answer(1), expected);
}

fn memory_policy() {
    if !std::path::Path::new("/sys/devices/system/node/node0").exists() {
        println!("SKIP: this kernel has no NUMA nodes");
        return;
    }
    let set = |policy: Value| with("/linux/memoryPolicy", policy, &["mempolicy"]);
    let bound = set(json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]})).unwrap();
    assert_eq!(bound.answer(0), format!("{} 1", 0x8002));
    let default = set(json!({"mode": "MPOL_DEFAULT"})).unwrap();
    assert_eq!(default.answer(0), "0 0");
    let missing = set(json!({"mode": "MPOL_BIND", "nodes": "900"})).unwrap_err().to_string();
    assert!(missing.starts_with("linux.memoryPolicy: set_mempolicy("), "{missing}");
}

fn exec_cpu_affinity() {
    let own = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let cpus: Vec<usize> = (0..1024).filter(|cpu| own.is_set(*cpu).unwrap()).collect();
    let last = *cpus.last().unwrap();
    let running = Case::new(&["sleep"]).start();
    let set = |affinity: Value| exec_with(&running, json!({"execCPUAffinity": affinity}), &["affinity"]);
    assert_eq!(
        set(json!({"initial": "0-1023", "final": last.to_string()})).unwrap().answer(0),
        last.to_string()
    );
    // Without a last word the process stays where it was made.
    assert_eq!(set(json!({"initial": last.to_string()})).unwrap().answer(0), last.to_string());
    let after = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    assert_eq!(after, own, "the caller is where it was");
    let error = set(json!({"final": "1000"})).unwrap_err().to_string();
    assert!(error.starts_with("process.execCPUAffinity.final: sched_setaffinity("), "{error}");
    // It is about execs: a first process is not moved; and nobody is pinned to where the caller is.
    let mut pinned = nix::sched::CpuSet::new();
    pinned.set(cpus[0]).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &pinned).unwrap();
    let first = with("/process/execCPUAffinity", json!({"final": last.to_string()}), &["affinity"]).unwrap();
    for found in [first, exec_with(&running, json!({}), &["affinity"]).unwrap()] {
        let found: Vec<usize> = found.answer(0).split(',').map(|cpu| cpu.parse().unwrap()).collect();
        assert!(cpus.iter().all(|cpu| found.contains(cpu)), "{found:?} of {cpus:?}");
    }
    running.kill();
}

fn labels() {
    let modules = std::fs::read_to_string("/proc/filesystems").unwrap();
    let apparmor = std::path::Path::new("/proc/self/attr/apparmor/exec").exists();
    let running = Case::new(&["sleep"]).start();
    let inside = |field: &str, label: &str| {
        exec_with(&running, json!({field: label}), &["cat /proc/self/attr/current"])
    };
    for (field, present, missing) in [
        ("apparmorProfile", apparmor, "process.apparmorProfile: this kernel runs without AppArmor"),
        (
            "selinuxLabel",
            modules.contains("selinuxfs"),
            "process.selinuxLabel: this kernel runs without SELinux",
        ),
    ] {
        let created = with(&format!("/process/{field}"), json!("podyard-no-such"), &["pid"]).unwrap_err();
        let executed = inside(field, "podyard-no-such").unwrap_err();
        for error in [created, executed] {
            match present {
                false => {
                    assert!(error.to_string().ends_with(missing), "{error}");
                    assert_eq!(error.kind(), runtime::Kind::Unsupported);
                }
                // What is not loaded confines nothing, so nothing runs.
                true => assert!(error.errno().is_some(), "{error}"),
            }
        }
    }
    if apparmor {
        let confined = inside("apparmorProfile", "unconfined").unwrap();
        assert_eq!(confined.answer(0), "unconfined");
    }
    if !modules.contains("selinuxfs") {
        let error = with("/linux/mountLabel", json!("system_u:object_r:x:s0"), &["pid"]).unwrap_err();
        assert_eq!(error.to_string(), "linux.mountLabel: this kernel runs without SELinux");
    }
    running.kill();
}
