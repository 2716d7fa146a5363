//! Ways out that others left open: each is tried here, and fails.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use nix::libc;
use oci_spec::runtime::Spec;
use runtime::container::{Stdio, create};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::fixture::{Case, Directory, Group, output};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_cve_2024_21626_leaked_descriptors", leaked_descriptors),
    ("root_cve_2024_21626_by_the_command_line", leaked_by_the_command_line),
    ("root_cve_2026_41579_links_in_the_image", links_in_the_image),
    ("root_cve_2025_52565_console_is_a_link", console_is_a_link),
    ("root_cve_2025_52881_fake_proc", fake_proc),
    ("root_cve_2022_29162_nothing_inheritable", nothing_inheritable),
    ("root_cve_2022_0492_cgroups_cannot_be_written", cgroups_cannot_be_written),
    ("root_cve_2022_0185_default_profile", default_profile),
    ("root_cve_2021_43784_long_values", long_values),
    ("root_huge_passwd_is_bounded", huge_passwd),
    ("root_session_keyring_is_not_the_hosts", session_keyring),
    ("root_waiting_process_holds_nothing_of_the_hosts", waiting_holds_nothing),
    ("root_ids_out_of_range_are_refused", ids_out_of_range),
];

fn all(capabilities: &[&str]) -> Value {
    json!({"bounding": capabilities, "permitted": capabilities, "effective": capabilities})
}

/// A directory of the host's under every number there is, inheritable, as a careless caller leaves them.
fn leak(numbers: std::ops::Range<i32>) {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    let (_, hard) = getrlimit(RLIMIT_NOFILE).unwrap();
    setrlimit(RLIMIT_NOFILE, hard.min(4096), hard).unwrap();
    let host = std::fs::File::open("/").unwrap();
    for number in numbers {
        // SAFETY: F_GETFD looks only.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            // SAFETY: the number is free.
            assert!(unsafe { libc::dup2(host.as_raw_fd(), number) } >= 0);
        }
    }
}

fn leaked_descriptors() {
    leak(8..1024);
    let running = Case::new(&["sleep"]).start();
    let start = Instant::now();
    let mut tried = 0;
    for n in 0..1024 {
        // An emulated machine gets through fewer.
        if start.elapsed() > Duration::from_secs(40) {
            break;
        }
        let cwd = json!(format!("/proc/self/fd/{n}"));
        let error = Case::new(&["ls ."]).set("/process/cwd", cwd.clone()).run();
        assert!(error.is_err(), "create in {cwd}: {error:?}");
        let outcome = crate::exec::run(&running, &["ls ."], |process| process["cwd"] = cwd.clone());
        assert!(outcome.is_err(), "exec in {cwd}: {outcome:?}");
        tried += 1;
    }
    assert!(tried > 8, "none of the leaked ones was tried, only {tried}");
    // Nor does one of them reach a program.
    let outcome = Case::new(&["ls /proc/self/fd"]).run().unwrap();
    assert_eq!(outcome.answer(0), "0 1 2 3");
    let outcome = crate::exec::run(&running, &["ls /proc/self/fd"], |_| {}).unwrap();
    assert_eq!(outcome.answer(0), "0 1 2 3");
    running.kill();
}

fn leaked_by_the_command_line() {
    leak(8..64);
    let bundle = Bundle::new(&["sleep"]);
    symlink("/proc/self/fd/9", bundle.rootfs().join("w")).unwrap();
    let directory = bundle.directory.0.to_str().unwrap();
    for cwd in
        ["/proc/self/fd/8", "/proc/self/fd/40", "/proc/self/fd/9/..", "/w", "/proc/1/cwd", "/proc/1/root"]
    {
        bundle.edit(|spec| spec["process"]["cwd"] = json!(cwd));
        let refused = bundle.run(&["run", "--bundle", directory, &bundle.id]);
        assert!(!refused.status.success(), "{cwd}: {refused:?}");
    }
    bundle.edit(|spec| spec["process"]["cwd"] = json!("/"));
    bundle.start();
    for n in 3..64 {
        let cwd = format!("/proc/self/fd/{n}");
        let refused = bundle.run(&["exec", "--cwd", &cwd, &bundle.id, "/program", "--program", "ls ."]);
        assert!(!refused.status.success(), "{cwd}: {refused:?}");
    }
    assert_eq!(bundle.exec(&[], &["ls /proc/self/fd"])[0], "0 1 2 3");
    let first = std::fs::read_dir(format!("/proc/{}/fd", bundle.pid())).unwrap().count();
    assert_eq!(first, 3);
}

fn links_in_the_image() {
    // The image's own /dev, and in it links where filesystems are to be mounted.
    let host = Directory::new();
    let to = host.0.to_str().unwrap();
    for name in ["dev/shm", "dev/mqueue", "dev/pts", "sys", "proc"] {
        let mut case = Case::new(&["pid"]);
        case.spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev");
        let place = case.root.0.join(name);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(to, &place).unwrap();
        let error = case.run().expect_err(name);
        assert!(error.to_string().ends_with("ELOOP"), "{name}: {error}");
    }
    // Where links may be followed they end inside.
    let file = host.0.join("hosts");
    std::fs::write(&file, "bound").unwrap();
    let case = Case::new(&["cat /etc/hosts", "ls /elsewhere", "cwd"])
        .set("/mounts/-", json!({"destination": "/etc/hosts", "source": file, "options": ["bind"]}))
        .set("/process/cwd", json!("/work/deep"));
    symlink("/elsewhere", case.root.0.join("etc")).unwrap();
    symlink("../../../elsewhere", case.root.0.join("work")).unwrap();
    std::fs::create_dir(case.root.0.join("elsewhere")).unwrap();
    let outcome = case.run().unwrap();
    assert_eq!(outcome.answer(0), "bound");
    assert_eq!(outcome.answer(1), "deep hosts");
    assert_eq!(outcome.answer(2), "/elsewhere/deep");
    assert!(!std::path::Path::new("/elsewhere").exists());
}

fn console_is_a_link() {
    // No /dev of ours: the image has its own, with a link where the terminal is bound.
    let victim = Directory::new();
    std::fs::write(victim.0.join("file"), "precious").unwrap();
    for target in ["/proc/sys/kernel/core_pattern", victim.0.join("file").to_str().unwrap(), "/dev/pts/ptmx"]
    {
        let mut case = Case::new(&["write /dev/console x"]);
        case.spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev");
        std::fs::create_dir(case.root.0.join("dev")).unwrap();
        symlink(target, case.root.0.join("dev/console")).unwrap();
        let error = create(case.request(Stdio::Terminal(None)).unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("bind the terminal on /dev/console: "), "{error}");
        assert!(error.to_string().ends_with("ELOOP"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(victim.0.join("file")).unwrap(), "precious");
}

fn fake_proc() {
    // What is not a procfs does not go to /proc, before or after one.
    let volume = Directory::new();
    for name in ["self/attr", "sys/net/ipv4"] {
        std::fs::create_dir_all(volume.0.join(name)).unwrap();
    }
    std::fs::write(volume.0.join("sys/net/ipv4/ip_forward"), "untouched").unwrap();
    let fakes = [
        json!({"destination": "/proc", "source": volume.0, "options": ["bind"]}),
        json!({"destination": "/proc/", "source": volume.0, "options": ["rbind"]}),
        json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}),
        json!({"destination": "/proc/self/attr", "type": "tmpfs", "source": "tmpfs"}),
        json!({"destination": "/proc/self/attr/exec", "source": "/dev/null", "options": ["bind"]}),
        json!({"destination": "/proc/self/oom_score_adj", "source": "/dev/null", "options": ["bind"]}),
        json!({"destination": "/proc/1/uid_map", "source": "/dev/null", "options": ["bind"]}),
    ];
    for fake in &fakes {
        for first in [true, false] {
            let mut case = Case::new(&["pid"]).set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
            let mounts = case.spec["mounts"].as_array_mut().unwrap();
            // Before procfs is mounted nothing is there to be mounted on but the image's directory.
            if first && fake["destination"].as_str().unwrap().trim_end_matches('/') == "/proc" {
                mounts.insert(0, fake.clone());
            } else {
                mounts.push(fake.clone());
            }
            let error = case.run().expect_err("a fake procfs");
            assert!(error.to_string().contains("procfs"), "{fake}: {error}");
        }
    }
    assert_eq!(std::fs::read_to_string(volume.0.join("sys/net/ipv4/ip_forward")).unwrap(), "untouched");
    // A second procfs is one.
    let again = json!({"destination": "/proc", "type": "proc", "source": "proc"});
    let twice = Case::new(&["cat /proc/sys/net/ipv4/ip_forward"])
        .set("/mounts/-", again)
        .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    assert_eq!(twice.run().unwrap().answer(0), "1");
    // The image's own files there are not written to: there is no procfs at all, and yet the values arrive.
    let mut case = Case::new(&["pid"])
        .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))
        .set("/process/oomScoreAdj", json!(77));
    case.spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/proc");
    let fake = case.root.0.join("proc/self");
    std::fs::create_dir_all(&fake).unwrap();
    std::fs::write(fake.join("oom_score_adj"), "untouched").unwrap();
    let (_reader, stdio) = output();
    let created = create(case.request(stdio).unwrap()).unwrap();
    let value = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", created.pid)).unwrap();
    assert_eq!(value.trim(), "77");
    assert_eq!(std::fs::read_to_string(fake.join("oom_score_adj")).unwrap(), "untouched");
}

fn nothing_inheritable() {
    let bundle = Bundle::new(&["sleep"]);
    bundle.edit(|spec| spec["process"]["capabilities"] = all(&["CAP_CHOWN"]));
    bundle.start();
    let inheritable = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapInh:"));
        line.unwrap_or_else(|| panic!("{status}")).trim().to_string()
    };
    let status = std::fs::read_to_string(format!("/proc/{}/status", bundle.pid())).unwrap();
    assert_eq!(inheritable(&status), "0000000000000000");
    for options in [&[][..], &["--cap", "CAP_NET_RAW"], &["--cap", "CAP_NET_RAW", "--user", "7:7"]] {
        let status = &bundle.exec(options, &["cat /proc/self/status"])[0];
        assert_eq!(inheritable(status), "0000000000000000", "{options:?}");
    }
    let status = &bundle.exec(&["--cap", "CAP_NET_RAW"], &["cat /proc/self/status"])[0];
    assert!(status.contains("CapEff:\t0000000000002001"), "{status}");
}

fn cgroups_cannot_be_written() {
    let group = Group::new();
    let limits = json!({"pids": {"limit": 100}, "memory": {"limit": 1 << 30}});
    group.0.apply_limits(&serde_json::from_value(limits).unwrap()).unwrap();
    let top = Case::new(&["ls /sys/fs/cgroup"]).cgroup(&group).run().unwrap();
    let names: Vec<String> = top.answer(0).split(' ').map(str::to_string).collect();
    // On cgroup v2 its files; on v1 its hierarchies.
    let directories: Vec<String> = match names.iter().any(|name| name == "cgroup.procs") {
        true => vec!["/sys/fs/cgroup".into()],
        false => names.iter().map(|name| format!("/sys/fs/cgroup/{name}")).collect(),
    };
    assert!(!directories.is_empty());
    let mut commands = Vec::new();
    for directory in &directories {
        for file in ["release_agent", "notify_on_release", "cgroup.procs", "tasks", "memory.max", "x"] {
            commands.push(format!("write {directory}/{file} 1"));
        }
        commands.push(format!("mkdir {directory}/below"));
        commands.push(format!("remount-rw {directory}"));
        commands.push(format!("umount {directory}"));
    }
    for fs in ["cgroup", "cgroup2"] {
        commands.push(format!("mount-on {fs} /dev/shm"));
    }
    commands.push("unshare 268435456".into());
    let profile = serde_json::to_value(runtime::seccomp::default_profile(&[])).unwrap();
    let words: Vec<&str> = commands.iter().map(String::as_str).collect();
    let outcome = Case::new(&words).cgroup(&group).set("/linux/seccomp", profile).run().unwrap();
    for (i, command) in commands.iter().enumerate() {
        assert!(["EROFS", "EPERM"].contains(&outcome.answer(i)), "{command}: {}", outcome.answer(i));
    }
}

fn default_profile() {
    // Seccomp refuses by itself, whatever the rights.
    let profile = serde_json::to_value(runtime::seccomp::default_profile(&["CAP_CHOWN"])).unwrap();
    let commands =
        ["mount", "fsopen", "unshare 268435456", "clone-user", "keyctl", "mount-on tmpfs /dev/shm"];
    let strong = Case::new(&commands).set("/process/capabilities", all(&["CAP_SYS_ADMIN"]));
    let outcome = strong.set("/linux/seccomp", profile).run().unwrap();
    for (i, command) in commands.iter().enumerate() {
        assert_eq!(outcome.answer(i), "EPERM", "{command}");
    }
}

fn long_values() {
    // What is reported back is bounded, however long what it is about.
    let long = "x".repeat(100_000);
    let running = Case::new(&["sleep"]).start();
    let text =
        crate::exec::run(&running, &[], |p| p["args"] = json!([format!("/{long}")])).unwrap_err().to_string();
    assert!(text.len() < 5000 && text.starts_with("exec /xxx"), "{} bytes", text.len());
    let error = Case::new(&[]).set("/process/args", json!([long])).run().unwrap_err();
    assert!(error.to_string().len() < 5000);
    let error = Case::new(&["pid"]).set("/process/cwd", json!(format!("/{long}"))).run().unwrap_err();
    assert!(error.to_string().len() < 5000);
    let error = Case::new(&["pid"]).set("/linux/maskedPaths/-", json!(format!("/{long}"))).run().unwrap_err();
    assert!(error.to_string().len() < 5000);
    // Thousands of values are as good as few, up to what execve takes.
    let env: Vec<String> = (0..5_000).map(|i| format!("V{i}={}", "y".repeat(100))).collect();
    let outcome = Case::new(&["pid"]).set("/process/env", json!(env)).run().unwrap();
    assert_eq!(outcome.answer(0), "1");
    let env: Vec<String> = (0..40).map(|i| format!("V{i}={long}")).collect();
    let outcome = Case::new(&["pid"]).set("/process/env", json!(env)).run();
    assert!(outcome.is_ok() || outcome.unwrap_err().to_string().ends_with("E2BIG"));
    running.kill();
}

fn huge_passwd() {
    for (name, size) in [("passwd", 1 << 30), ("group", 1 << 30)] {
        let case = Case::new(&["env"]).set("/process/user", json!({"uid": 7, "gid": 7}));
        std::fs::create_dir(case.root.0.join("etc")).unwrap();
        let path = case.root.0.join("etc").join(name);
        // One line without end.
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        let start = Instant::now();
        assert!(case.run().unwrap().answer(0).contains("HOME=/"));
        assert!(start.elapsed() < Duration::from_secs(30), "{name}: {:?}", start.elapsed());
    }
}

/// keyctl(2) with integers and a text.
fn add_secret() -> std::io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name asks for a new keyring.
    if unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0_usize) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the texts are NUL-terminated constants, the payload has the length that is given.
    let key = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            c"podyard-test-secret".as_ptr(),
            c"secret".as_ptr(),
            6,
            -3,
        )
    };
    if key < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn session_keyring() {
    if let Err(error) = add_secret() {
        println!("SKIP: no keys here: {error}");
        return;
    }
    let outcome = Case::new(&["find-secret"]).run().unwrap();
    assert_eq!(outcome.answer(0), "ENOKEY");
    let running = Case::new(&["sleep"]).start();
    let outcome = crate::exec::run(&running, &["find-secret"], |_| {}).unwrap();
    assert_eq!(outcome.answer(0), "ENOKEY");
    running.kill();
    // Asked to, it keeps the caller's: the attack does see what there is to see.
    let mut case = Case::new(&["find-secret"]);
    let (reader, stdio) = output();
    let mut request = case.request(stdio).unwrap();
    request.plan.process.new_keyring = false;
    let created = create(request).unwrap();
    created.start.start().unwrap();
    let outcome = crate::fixture::Outcome::collect(reader, &created.pidfd, Vec::new());
    assert_eq!(outcome.answer(0), "found");
}

fn waiting_holds_nothing() {
    leak(8..64);
    let bundle = Bundle::new(&["pid"]);
    bundle.create();
    let pid = bundle.pid();
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // It lets go of them once it has said that it is ready.
    crate::fixture::eventually("few descriptors", || descriptors().count() <= 5);
    let held: Vec<_> = descriptors().map(|e| e.unwrap().path()).collect();
    let shown: Vec<_> = held.iter().map(|path| std::fs::read_link(path).unwrap()).collect();
    assert!(held.len() <= 5, "{shown:?}");
    for (path, shown) in held.iter().zip(&shown) {
        assert!(!path.metadata().unwrap().is_dir(), "{shown:?}");
    }
    let root = std::fs::metadata(format!("/proc/{pid}/root/")).unwrap();
    assert_eq!(
        (root.dev(), root.ino()),
        (bundle.rootfs().metadata().unwrap().dev(), bundle.rootfs().metadata().unwrap().ino())
    );
    // Only root of the host can look at it.
    let mode = std::fs::metadata(format!("/proc/{pid}/fd")).unwrap();
    assert_eq!((mode.uid(), mode.permissions().mode() & 0o077), (0, 0));
}

fn ids_out_of_range() {
    for id in [json!(-1), json!(1_u64 << 31), json!(1_u64 << 32), json!(u64::MAX), json!(4294967295_u32)] {
        for field in ["uid", "gid"] {
            let mut user = json!({"uid": 1, "gid": 1});
            user[field] = id.clone();
            let spec = Case::new(&["ids"]).set("/process/user", user).spec;
            let plan = serde_json::from_value::<Spec>(spec).map(|spec| runtime::Plan::from_spec(&spec));
            assert!(!matches!(plan, Ok(Ok(_))), "{field} {id}");
        }
        let user = json!({"uid": 1, "gid": 1, "additionalGids": [id]});
        let spec = Case::new(&["ids"]).set("/process/user", user).spec;
        let plan = serde_json::from_value::<Spec>(spec).map(|spec| runtime::Plan::from_spec(&spec));
        assert!(!matches!(plan, Ok(Ok(_))), "additional group {id}");
    }
    let bundle = Bundle::new(&["sleep"]);
    bundle.start();
    for user in
        ["-1", "2147483648", "4294967295", "4294967296", "18446744073709551616", "+0x0", "0:-1", "root"]
    {
        bundle.fails(&["exec", "--user", user, &bundle.id, "/program"], "");
    }
    assert!(
        bundle.exec(&["--user", "2147483647:2147483647"], &["ids"])[0].starts_with("2147483647 2147483647")
    );
}
