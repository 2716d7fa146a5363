//! What a container must not be able to do.

use std::os::fd::AsRawFd;

use serde_json::json;

use crate::fixture::Case;
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_masked_paths_are_empty", masked_paths_are_empty),
    ("root_read_only_paths_and_root", read_only_paths_and_root),
    ("root_capabilities", capabilities),
    ("root_no_new_privileges", no_new_privileges),
    ("root_seccomp_refuses", seccomp_refuses),
    ("root_default_profile", default_profile),
    ("root_rlimits_are_set_and_clamped", rlimits),
    ("root_oom_score_adj", oom_score_adj),
    ("root_no_descriptor_leaks", no_descriptor_leaks),
    ("root_what_is_refused_is_named", refused_by_name),
];

fn masked_paths_are_empty() {
    let case = Case::new(&[
        "cat /proc/kcore",
        "cat /proc/version",
        "stat /proc/version",
        "ls /proc/acpi",
        "cat /secret/file",
        "ls /secret-dir",
        "write /secret-dir/x y",
        "write /secret/file x",
        "cat /secret/file",
    ])
    .set("/linux/maskedPaths/-", json!("/proc/version"))
    .set("/linux/maskedPaths/-", json!("/secret/file"))
    .set("/linux/maskedPaths/-", json!("/secret-dir"));
    std::fs::create_dir(case.root.0.join("secret")).unwrap();
    std::fs::create_dir(case.root.0.join("secret-dir")).unwrap();
    std::fs::write(case.root.0.join("secret/file"), "secret").unwrap();
    std::fs::write(case.root.0.join("secret-dir/file"), "secret").unwrap();
    let outcome = case.run().unwrap();
    // Not every kernel has it.
    assert!(["", "ENOENT"].contains(&outcome.answer(0)));
    assert_eq!(outcome.answer(1), "");
    assert_eq!(outcome.answer(2), "20666 0:0 1:3");
    let acpi = outcome.answer(3);
    assert!(acpi.is_empty() || acpi == "ENOENT", "{acpi}");
    assert_eq!(outcome.answer(4), "");
    assert_eq!(outcome.answer(5), "");
    assert_eq!(outcome.answer(6), "EROFS");
    assert_eq!(outcome.answer(7), "written", "to the null device");
    assert_eq!(outcome.answer(8), "");
}

fn read_only_paths_and_root() {
    let outcome = Case::new(&[
        "write /proc/sys/kernel/hostname x",
        "write /proc/sys/net/ipv4/ip_forward 1",
        "write /new x",
        "write /in-root x",
        "write /sys/fs/cgroup/x y",
        "mkdir /sys/fs/cgroup/x",
        "remount-rw /",
        "remount-rw /proc/sys",
        "umount /proc/sys",
        "write /dev/shm/x y",
    ])
    .set("/root/readonly", json!(true))
    .run()
    .unwrap();
    for i in 0..6 {
        assert_eq!(outcome.answer(i), "EROFS", "{i}");
    }
    for i in 6..9 {
        assert_eq!(outcome.answer(i), "EPERM", "{i}");
    }
    assert_eq!(outcome.answer(9), "written");
}

fn line<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim()
}

fn capabilities() {
    let none = Case::new(&["cat /proc/self/status"]).run().unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(line(none.answer(0), set), "0000000000000000", "{set}");
    }
    let two = json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
    let one = json!(["CAP_NET_BIND_SERVICE"]);
    let sets = json!({"bounding": two, "permitted": two, "effective": one});
    let root = Case::new(&["cat /proc/self/status"]).set("/process/capabilities", sets.clone());
    let root = root.run().unwrap();
    // As root, execve gives what bounding permits, and nothing else.
    for (set, bits) in [("CapInh", 0), ("CapPrm", 0x401), ("CapBnd", 0x401), ("CapAmb", 0)] {
        assert_eq!(line(root.answer(0), set), format!("{bits:016x}"), "{set}");
    }
    let mut ambient = sets.clone();
    ambient["inheritable"] = one.clone();
    ambient["ambient"] = one;
    let user = Case::new(&["cat /proc/self/status"])
        .set("/process/user", json!({"uid": 7, "gid": 7}))
        .set("/process/capabilities", ambient)
        .run()
        .unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(line(user.answer(0), set), "0000000000000400", "{set}");
    }
    assert_eq!(line(user.answer(0), "CapBnd"), "0000000000000401");
    // One that is not inheritable cannot be ambient; the program does without.
    let mut idle = sets.clone();
    idle["inheritable"] = json!(["CAP_NET_BIND_SERVICE"]);
    idle["ambient"] = json!(["CAP_NET_BIND_SERVICE", "CAP_CHOWN"]);
    let idle = Case::new(&["cat /proc/self/status"])
        .set("/process/user", json!({"uid": 7, "gid": 7}))
        .set("/process/capabilities", idle)
        .run()
        .unwrap();
    assert_eq!(line(idle.answer(0), "CapAmb"), "0000000000000400");
    assert!(idle.warnings[0].starts_with("can't raise ambient capability CAP_CHOWN: "), "{idle:?}");
    // A user without ambient ones loses them all at execve.
    let plain = Case::new(&["cat /proc/self/status"])
        .set("/process/user", json!({"uid": 7, "gid": 7}))
        .set("/process/capabilities", sets)
        .run()
        .unwrap();
    assert_eq!(line(plain.answer(0), "CapEff"), "0000000000000000");
}

fn no_new_privileges() {
    for wanted in [true, false] {
        let outcome = Case::new(&["cat /proc/self/status"])
            .set("/process/noNewPrivileges", json!(wanted))
            .run()
            .unwrap();
        let found = line(outcome.answer(0), "NoNewPrivs");
        assert_eq!(found, if wanted { "1" } else { "0" });
    }
}

/// Every capability that matters, so that only seccomp can be what refuses.
fn strong(case: Case) -> Case {
    let all = json!(["CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_MKNOD"]);
    case.set("/process/capabilities", json!({"bounding": all, "permitted": all, "effective": all}))
}

fn seccomp_refuses() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mount", "no_such_call"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["unshare"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 0, "value": 0x4000000, "valueTwo": 0x4000000, "op": "SCMP_CMP_MASKED_EQ"}]},
        ],
    });
    for no_new_privileges in [true, false] {
        let commands = ["mount", "chroot", "unshare 67108864", "unshare 134217728", "cat /proc/self/status"];
        let outcome = strong(Case::new(&commands))
            .set("/process/noNewPrivileges", json!(no_new_privileges))
            .set("/linux/seccomp", profile.clone())
            .run()
            .unwrap();
        assert_eq!(outcome.answer(0), "EPERM");
        assert_eq!(outcome.answer(1), "ENOSPC");
        assert_eq!(outcome.answer(2), "EPERM");
        assert_eq!(outcome.answer(3), "unshared");
        assert_eq!(line(outcome.answer(4), "Seccomp"), "2");
        assert!(outcome.warnings[0].contains("no_such_call"), "{outcome:?}");
    }
    let without = strong(Case::new(&["mount"])).run().unwrap();
    assert_eq!(without.answer(0), "mounted", "the same without a filter");
}

fn default_profile() {
    let profile = runtime::seccomp::default_profile(&["CAP_CHOWN"]);
    let profile = serde_json::to_value(profile).unwrap();
    // Threads, sockets and processes work; the way out does not, whatever the capabilities.
    let commands = [
        "mount",
        "unshare 268435456",
        "unshare 67108864",
        "chroot",
        "threads 3",
        "loopback",
        "spawn-sleepers 1",
        "cat /in-root",
    ];
    let outcome = strong(Case::new(&commands)).set("/linux/seccomp", profile).run().unwrap();
    for (i, command) in commands.iter().take(4).enumerate() {
        assert_eq!(outcome.answer(i), "EPERM", "{command}");
    }
    assert_eq!(outcome.answer(4), "3");
    assert_eq!(outcome.answer(5), "connected");
    assert_eq!(outcome.answer(6), "spawned");
    assert_eq!(outcome.answer(7), "yes");
}

fn rlimits() {
    let set = |hard: u64| {
        Case::new(&["rlimit-nofile"])
            .set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": hard}]))
    };
    let outcome = set(200).run().unwrap();
    assert_eq!(outcome.answer(0), "(100, 200)");
    assert_eq!(outcome.warnings, Vec::<String>::new());
    // The hard limit of this very process is lowered first: raising it needs CAP_SYS_RESOURCE.
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, setrlimit};
    setrlimit(RLIMIT_NOFILE, 500, 500).unwrap();
    let may_raise = setrlimit(RLIMIT_NOFILE, 500, 501).is_ok();
    setrlimit(RLIMIT_NOFILE, 500, 500).unwrap();
    let outcome = set(1000).run().unwrap();
    match may_raise {
        true => assert_eq!(outcome.answer(0), "(100, 1000)"),
        false => {
            assert_eq!(outcome.answer(0), "(100, 500)");
            assert!(outcome.warnings[0].contains("RLIMIT_NOFILE 1000 clamped to 500"), "{outcome:?}");
        }
    }
}

fn oom_score_adj() {
    let outcome =
        Case::new(&["cat /proc/self/oom_score_adj"]).set("/process/oomScoreAdj", json!(321)).run().unwrap();
    assert_eq!(outcome.answer(0), "321");
    let lower =
        Case::new(&["cat /proc/self/oom_score_adj"]).set("/process/oomScoreAdj", json!(-500)).run().unwrap();
    match lower.answer(0) {
        "-500" => {}
        _ => assert!(lower.warnings[0].contains("oom_score_adj -500 refused"), "{lower:?}"),
    }
}

fn no_descriptor_leaks() {
    // What a careless caller leaves open and inheritable.
    let host = std::fs::File::open("/").unwrap();
    let leaky = nix::unistd::dup(&host).unwrap();
    assert!(leaky.as_raw_fd() > 2);
    let outcome = Case::new(&["ls /proc/self/fd", "readlink /proc/1/fd/3"]).run().unwrap();
    // The fourth is the directory being read.
    assert_eq!(outcome.answer(0), "0 1 2 3");
    assert_eq!(outcome.answer(1), "ENOENT");
}

fn refused_by_name() {
    let refusal = |pointer: &str, value| Case::new(&[]).set(pointer, value).plan().unwrap_err();
    let cases = [
        ("/hooks", json!({"poststop": [{"path": "bin/true"}]}), "hooks.poststop[0].path"),
        ("/process/apparmorProfile", json!("p\nq"), "process.apparmorProfile"),
        ("/process/selinuxLabel", json!("p\0"), "process.selinuxLabel"),
        ("/linux/timeOffsets", json!({"boottime": {"secs": 1}}), "linux.timeOffsets.boottime"),
        ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 1}]), "linux.uidMappings"),
        ("/linux/namespaces/-", json!({"type": "uts"}), "is listed twice"),
        ("/linux/netDevices", json!({"eth0": {}}), "linux.netDevices"),
        ("/linux/intelRdt", json!({}), "linux.intelRdt"),
        ("/linux/personality", json!({"domain": "LINUX32", "flags": ["X"]}), "linux.personality.flags"),
        ("/mounts/-", json!({"destination": "/x", "type": "proc", "options": ["tmpcopyup"]}), "mounts[7]"),
        ("/process/user", json!({"uid": 4294967295u32, "gid": 0}), "process.user"),
        ("/process/args", json!([]), "process.args"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/linux/maskedPaths/-", json!("/a/../b"), "linux.maskedPaths"),
        ("/ociVersion", json!("2.0"), "ociVersion"),
    ];
    for (pointer, value, text) in cases {
        let error = refusal(pointer, value).to_string();
        assert!(error.contains(text), "{error}");
    }
}
