//! What a container is: separate, rooted, populated.

use serde_json::json;

use crate::fixture::{Case, Group, Outcome, output, tmpfs};
use crate::harness::Test;
use runtime::container::{Created, create};

pub const TESTS: &[Test] = &[
    ("root_runs_a_program", runs_a_program),
    ("root_namespaces_differ", namespaces_differ),
    ("root_pivot_root_hides_the_host", pivot_root_hides_the_host),
    ("root_without_pivot_root_no_bare_sysfs_is_left", without_pivot_root_no_bare_sysfs_is_left),
    ("root_standard_mounts_devices_and_links", standard_mounts_devices_and_links),
    ("root_binds_and_detached_mounts", binds_and_detached_mounts),
    ("root_user_groups_umask_and_home", user_groups_umask_and_home),
    ("root_sysctls_and_domainname", sysctls_and_domainname),
    ("root_joins_a_namespace_by_path_and_by_descriptor", joins_namespaces),
    ("root_user_namespace", user_namespace),
    ("root_terminal", terminal),
    ("root_host_mount_table_is_untouched", host_mount_table_is_untouched),
];

fn runs_a_program() {
    let outcome =
        Case::new(&["pid", "hostname", "cat /in-root", "cwd", "env", "signals", "loopback"]).run().unwrap();
    assert_eq!(outcome.code, 0);
    assert_eq!(outcome.answer(0), "1");
    assert_eq!(outcome.answer(1), "inside");
    assert_eq!(outcome.answer(2), "yes");
    assert_eq!(outcome.answer(3), "/");
    assert_eq!(outcome.answer(4), "PATH=/bin\nA=b\nHOME=/");
    // The Rust runtime of the program itself ignores SIGPIPE (bit 12).
    let signals = outcome.answer(5);
    assert!(signals.contains("SigBlk:\t0000000000000000"), "{signals}");
    assert_eq!(outcome.answer(6), "connected");
}

fn namespaces_differ() {
    let kinds = ["mnt", "uts", "ipc", "pid", "net", "cgroup"];
    let commands: Vec<String> = kinds.iter().map(|k| format!("readlink /proc/self/ns/{k}")).collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let outcome = Case::new(&commands).run().unwrap();
    for (i, kind) in kinds.iter().enumerate() {
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(outcome.answer(i).starts_with(kind), "{outcome:?}");
        assert_ne!(outcome.answer(i), ours.to_str().unwrap());
    }
}

fn pivot_root_hides_the_host() {
    let outcome = Case::new(&["ls /", "cat /proc/self/mountinfo", "cat /proc/1/root/in-root"]).run().unwrap();
    assert_eq!(outcome.answer(0), "dev in-root proc program sys");
    // Nothing of the host's root is mounted: every mount is one of ours.
    for line in outcome.answer(1).lines() {
        let point = line.split(' ').nth(4).unwrap();
        let ours = ["/", "/proc", "/dev", "/sys", "/program"];
        assert!(
            ours.iter().any(|o| point == *o || (*o != "/" && point.starts_with(&format!("{o}/")))),
            "{line}"
        );
    }
    assert_eq!(outcome.answer(2), "yes");
}

fn without_pivot_root_no_bare_sysfs_is_left() {
    // A user, a mount and a network namespace.
    let commands = ["ls /", "exists /sys/kernel", "unshare 1342308352", "mount-sysfs /dev"];
    for pivot in [true, false] {
        let mut case = Case::new(&commands);
        let (reader, stdio) = output();
        let mut request = case.request(stdio).unwrap();
        request.plan.pivot = pivot;
        let Created { pidfd, start, warnings, .. } = create(request).unwrap();
        start.start().unwrap();
        let outcome = Outcome::collect(reader, &pidfd, warnings);
        assert_eq!(outcome.answer(0), "dev in-root proc program sys");
        assert_eq!((outcome.answer(1), outcome.answer(2)), ("yes", "unshared"), "{outcome:?}");
        // The one it was given is read-only, and another would not be.
        assert_eq!(outcome.answer(3), "EPERM", "{outcome:?}");
    }
}

fn standard_mounts_devices_and_links() {
    let outcome = Case::new(&[
        "stat /dev/null",
        "stat /dev/zero",
        "stat /dev/full",
        "stat /dev/random",
        "stat /dev/urandom",
        "stat /dev/tty",
        "readlink /dev/fd",
        "readlink /dev/stdin",
        "readlink /dev/stdout",
        "readlink /dev/stderr",
        "readlink /dev/ptmx",
        "write /dev/shm/x y",
        "write /sys/x y",
        "write /dev/null y",
        "ls /dev/mqueue",
        "stat /dev/fuse2",
        "ls /dev",
    ])
    .set(
        "/linux/devices",
        json!([{"path": "/dev/fuse2", "type": "c", "major": 10, "minor": 229,
        "fileMode": 0o640, "uid": 5, "gid": 6}]),
    )
    .run()
    .unwrap();
    let devices = ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0"];
    for (i, device) in devices.iter().enumerate() {
        assert_eq!(outcome.answer(i), format!("20666 0:0 {device}"));
    }
    let links = ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"];
    for (i, link) in links.iter().enumerate() {
        assert_eq!(outcome.answer(6 + i), *link);
    }
    assert_eq!(outcome.answer(11), "written");
    assert_eq!(outcome.answer(12), "EROFS");
    assert_eq!(outcome.answer(13), "written");
    assert_eq!(outcome.answer(14), "");
    assert_eq!(outcome.answer(15), "20640 5:6 10:229");
    assert_eq!(
        outcome.answer(16),
        "fd full fuse2 mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
}

fn binds_and_detached_mounts() {
    let host = crate::fixture::Directory::new();
    std::fs::write(host.0.join("file"), "bound").unwrap();
    let mut case = Case::new(&[
        "cat /data/deep/file",
        "write /data/deep/file x",
        "cat /volume/name",
        "write /volume/name new",
        "cat /fixed/name",
        "write /fixed/name x",
        "cat /etc/one-file",
        "cat /data/deep/inner/name",
    ])
    .set("/mounts/-", json!({"destination": "/data/deep", "source": host.0, "options": ["rbind", "ro"]}))
    .set(
        "/mounts/-",
        json!({"destination": "/etc/one-file", "source": host.0.join("file"), "options": ["bind"]}),
    );
    for (path, read_only) in [("/volume", false), ("/fixed", true), ("/data/deep/inner", false)] {
        std::fs::create_dir_all(host.0.join("inner")).unwrap();
        case.mounts.push(runtime::container::DetachedMount {
            fd: match crate::harness::lacks("move_mount") {
                true => std::fs::File::open("/").unwrap().into(),
                false => tmpfs("name", "mine"),
            },
            destination: path.into(),
            read_only,
        });
    }
    if crate::harness::lacks("move_mount") {
        let error = case.run().unwrap_err();
        assert_eq!(error.kind(), runtime::Kind::Unsupported);
        assert!(
            error.to_string().contains("a mount made by the caller: move_mount(2) is missing"),
            "{error}"
        );
        return;
    }
    let outcome = case.run().unwrap();
    assert_eq!(outcome.answer(0), "bound");
    assert_eq!(outcome.answer(1), "EROFS");
    assert_eq!(outcome.answer(2), "mine");
    assert_eq!(outcome.answer(3), "written");
    assert_eq!(outcome.answer(4), "mine");
    assert_eq!(outcome.answer(5), "EROFS");
    assert_eq!(outcome.answer(6), "bound");
    assert_eq!(outcome.answer(7), "mine");
}

fn user_groups_umask_and_home() {
    let case =
        Case::new(&["ids", "write /dev/shm/x y", "stat /dev/shm/x", "env", "cwd", "write /dev/stdout x"])
            .set("/process/user", json!({"uid": 1234, "gid": 77, "additionalGids": [5, 9], "umask": 0o027}))
            .set("/process/cwd", json!("/work/dir"));
    std::fs::create_dir(case.root.0.join("etc")).unwrap();
    std::fs::write(
        case.root.0.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nu:x:1234:77::/home/u:/bin/sh\n",
    )
    .unwrap();
    let outcome = case.run().unwrap();
    let ids = outcome.answer(0);
    assert!(ids == "1234 77 [5, 9]" || ids == "1234 77 [5, 9, 77]", "{ids}");
    assert_eq!(outcome.answer(2), "100640 1234:77 0:0");
    assert!(outcome.answer(3).contains("HOME=/home/u"), "{outcome:?}");
    assert_eq!(outcome.answer(4), "/work/dir");
    assert_eq!(outcome.answer(5), "xwritten", "the pipe is the user's");
}

fn sysctls_and_domainname() {
    let outcome = Case::new(&[
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        "cat /proc/sys/kernel/msgmax",
        "cat /proc/sys/kernel/domainname",
        "write /proc/sys/kernel/msgmax 1",
    ])
    .set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start": "7", "kernel.msgmax": "4321"}))
    .set("/domainname", json!("yard"))
    .run()
    .unwrap();
    assert_eq!(outcome.answer(0), "7");
    assert_eq!(outcome.answer(1), "4321");
    assert_eq!(outcome.answer(2), "yard");
    assert_eq!(outcome.answer(3), "EROFS");
    // The host's own would change.
    for name in ["vm.swappiness", "kernel.sysrq", "net.x/../../kernel/sysrq"] {
        let refused = Case::new(&[]).set("/linux/sysctl", json!({name: "1"})).plan().unwrap_err();
        assert_eq!(refused.kind(), runtime::Kind::Invalid, "{name}");
    }
}

fn joins_namespaces() {
    let first = Case::new(&["sleep"]).start();
    let ns = |kind: &str| format!("/proc/{}/ns/{kind}", first.pid);
    let commands = [
        "readlink /proc/self/ns/net",
        "readlink /proc/self/ns/pid",
        "readlink /proc/self/ns/uts",
        "pid",
        "hostname",
    ];
    let mut second = Case::new(&commands).set(
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "network", "path": ns("net")},
               {"type": "pid", "path": ns("pid")}, {"type": "uts"}, {"type": "ipc"}]),
    );
    let (reader, stdio) = crate::fixture::output();
    let mut request = second.request(stdio).unwrap();
    let uts = std::fs::File::open(ns("uts")).unwrap();
    request.plan.hostname = None;
    request.namespaces.insert(runtime::namespaces::Kind::Uts, uts.into());
    let created = runtime::container::create(request).unwrap();
    created.start.start().unwrap();
    let outcome = crate::fixture::Outcome::collect(reader, &created.pidfd, Vec::new());
    for (i, kind) in ["net", "pid", "uts"].iter().enumerate() {
        let theirs = std::fs::read_link(ns(kind)).unwrap();
        assert_eq!(outcome.answer(i), theirs.to_str().unwrap());
    }
    assert_eq!(outcome.answer(3), "2", "the second process of a shared pid namespace");
    assert_eq!(outcome.answer(4), "inside");
    // This process stayed where it was.
    let ours = std::fs::read_link("/proc/self/ns/pid_for_children").unwrap();
    assert_eq!(ours, std::fs::read_link("/proc/self/ns/pid").unwrap());
    first.kill();
}

fn user_namespace() {
    let case = Case::new(&["ids", "cat /proc/self/uid_map", "write /etc/x y", "stat /dev/null"])
        .set("/linux/namespaces/-", json!({"type": "user"}))
        .set("/linux/uidMappings", json!([{"containerID": 0, "hostID": 100000, "size": 65536}]))
        .set("/linux/gidMappings", json!([{"containerID": 0, "hostID": 100000, "size": 65536}]));
    std::fs::create_dir(case.root.0.join("etc")).unwrap();
    std::os::unix::fs::chown(&case.root.0, Some(100000), Some(100000)).unwrap();
    std::os::unix::fs::chown(case.root.0.join("etc"), Some(100000), Some(100000)).unwrap();
    let etc = case.root.0.join("etc/x");
    let mut case = case;
    let (reader, stdio) = crate::fixture::output();
    let request = case.request(stdio).unwrap();
    let created = runtime::container::create(request).unwrap();
    created.start.start().unwrap();
    let outcome = crate::fixture::Outcome::collect(reader, &created.pidfd, Vec::new());
    assert_eq!(outcome.answer(0), "0 0 []");
    assert_eq!(outcome.answer(1).split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    assert_eq!(outcome.answer(2), "written");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(etc).unwrap().uid(), 100000);
    assert!(outcome.answer(3).ends_with("1:3"), "{outcome:?}");
}

fn terminal() {
    use std::io::Read;
    let mut case = Case::new(&["isatty", "ttyname", "stat /dev/console"]);
    let size = runtime::WindowSize { rows: 40, columns: 100 };
    let request = case.request(runtime::container::Stdio::Terminal(Some(size))).unwrap();
    let created = runtime::container::create(request).unwrap();
    let master = created.console.expect("a terminal");
    created.start.start().unwrap();
    let mut text = Vec::new();
    // EIO is how a master learns that the last terminal end was closed.
    let mut master = std::fs::File::from(master);
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..n]);
    }
    assert_eq!(crate::fixture::wait(&created.pidfd), 0);
    let text = String::from_utf8_lossy(&text);
    let answers: Vec<&str> = text.split('\x1e').collect();
    assert_eq!(answers[0], "true");
    assert_eq!(answers[1], "/dev/pts/0");
    assert!(answers[2].ends_with("136:0"), "{text}");
}

fn host_mount_table_is_untouched() {
    // A mount namespace of this test's own, so that neighbours add nothing.
    crate::fixture::own_mount_namespace();
    let before = crate::fixture::mount_table();
    let group = Group::new();
    let running = Case::new(&["sleep"]).cgroup(&group).start();
    assert!(crate::fixture::mount_table().is_subset(&before));
    running.kill();
    assert!(crate::fixture::mount_table().is_subset(&before));
}
