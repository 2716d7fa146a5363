//! What of later mounts crosses between host and container, and what does not.

use std::path::Path;

use nix::mount::{MsFlags, mount, umount};
use runtime::container::HostRoot;
use serde_json::json;

use crate::fixture::{Case, Directory, mount_table};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_propagation_of_a_mount", of_a_mount),
    ("root_propagation_of_the_root", of_the_root),
    ("root_propagation_slaves_follow_the_host", slaves_follow),
    ("root_propagation_shared_reaches_the_host", shared_reaches_the_host),
    ("root_propagation_shared_root_stays_inside", shared_root_stays_inside),
    ("root_without_a_mount_namespace", without_a_namespace),
];

/// A mount namespace whose mounts are shared, as systemd leaves a host's, and with one of its own at `at`.
fn shared_namespace(at: &Path) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let set = |flags| mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
    set(MsFlags::MS_PRIVATE | MsFlags::MS_REC);
    set(MsFlags::MS_SHARED | MsFlags::MS_REC);
    std::fs::create_dir_all(at).unwrap();
    mount(Some("host"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    std::fs::create_dir(at.join("later")).unwrap();
}

/// The propagation in what the program's `mountinfo` answers, without numbers.
fn kinds(answer: &str) -> String {
    let (mount, _) = answer.split_once(" - ").unwrap_or_else(|| panic!("{answer}"));
    let words = mount.split(' ').skip(1).map(|word| word.split(':').next().unwrap());
    words.collect::<Vec<_>>().join(" ")
}

fn of_a_mount() {
    let host = Directory::new();
    let source = host.0.join("source");
    shared_namespace(&source);
    mount(Some("below"), &source.join("later"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    // Options, of the mount, of the one below. The host's are shared; in the container they begin as slaves.
    let table = [
        ("rbind", "", ""),
        ("rbind private", "", "master"),
        ("rbind rprivate", "", ""),
        ("rbind slave", "master", "master"),
        ("rbind rslave", "master", "master"),
        ("rbind shared", "shared master", "master"),
        ("rbind rshared", "shared master", "shared master"),
        ("rbind unbindable", "unbindable", "master"),
        ("rbind runbindable", "unbindable", "unbindable"),
        ("rbind rprivate shared", "shared", ""),
        ("rbind rslave rshared private", "", "shared master"),
    ];
    let commands: Vec<String> = (0..table.len())
        .flat_map(|i| [format!("mountinfo /m{i}"), format!("mountinfo /m{i}/later")])
        .collect();
    let mut case = Case::new(&commands.iter().map(String::as_str).collect::<Vec<_>>());
    for (i, (options, ..)) in table.iter().enumerate() {
        case = case.mount("bind", &source, &format!("/m{i}"), options);
    }
    let outcome = case.run().unwrap();
    for (i, (options, top, below)) in table.iter().enumerate() {
        assert_eq!(kinds(outcome.answer(2 * i)), *top, "{options}");
        assert_eq!(kinds(outcome.answer(2 * i + 1)), *below, "{options}: below");
    }
    umount(&source.join("later")).unwrap();
    umount(&source).unwrap();
}

fn of_the_root() {
    let host = Directory::new();
    shared_namespace(&host.0.join("source"));
    let before = mount_table();
    for (propagation, expected) in [
        ("", ""),
        ("private", ""),
        ("rprivate", ""),
        ("slave", "master"),
        ("rslave", "master"),
        ("shared", "shared"),
        ("rshared", "shared"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ] {
        let outcome =
            Case::new(&["mountinfo /"]).set("/linux/rootfsPropagation", json!(propagation)).run().unwrap();
        assert_eq!(kinds(outcome.answer(0)), expected, "{propagation}");
        assert!(mount_table().is_subset(&before), "{propagation}: the host's mount table has changed");
    }
    umount(&host.0.join("source")).unwrap();
}

fn slaves_follow() {
    let host = Directory::new();
    let source = host.0.join("source");
    shared_namespace(&source);
    let running = Case::new(&["sleep"])
        .mount("bind", &source, "/slave", "rbind rslave")
        .mount("bind", &source, "/private", "rbind rprivate")
        .mount("bind", &source, "/unsaid", "rbind")
        .start();
    mount(Some("new"), &source.join("later"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", running.pid)).unwrap();
    let seen = |path: &str| table.lines().any(|line| line.split(' ').nth(4) == Some(path));
    assert!(seen("/slave/later"), "{table}");
    assert!(!seen("/private/later"), "{table}");
    assert!(!seen("/unsaid/later"), "{table}");
    running.kill();
    umount(&source.join("later")).unwrap();
    umount(&source).unwrap();
}

fn shared_reaches_the_host() {
    let host = Directory::new();
    let source = host.0.join("source");
    shared_namespace(&source);
    for (root, reaches) in [("rshared", true), ("rslave", false), ("", false)] {
        let outcome = Case::new(&["mount-tmpfs /data/later"])
            .capable(&["CAP_SYS_ADMIN"])
            .mount("bind", &source, "/data", "rbind rshared")
            .set("/linux/rootfsPropagation", json!(root))
            .run()
            .unwrap();
        assert_eq!(outcome.answer(0), "mounted");
        let at = source.join("later");
        let seen = mount_table().iter().any(|line| line.split(' ').nth(4) == at.to_str());
        assert_eq!(seen, reaches, "rootfsPropagation {root:?}");
        if seen {
            umount(&at).unwrap();
        }
    }
    umount(&source).unwrap();
}

/// With a shared root the host's mounts are shared with the container's mount namespace while its own are made: none of
/// them may be seen outside, also where the root lies on a mount of its own.
fn shared_root_stays_inside() {
    let host = Directory::new();
    shared_namespace(&host.0.join("source"));
    let case = Case::new(&["sleep"]).set("/linux/rootfsPropagation", json!("rshared"));
    mount(Some(&case.root.0), &case.root.0, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let root = case.root.0.clone();
    let before = mount_table();
    let running = case.start();
    assert!(mount_table().is_subset(&before));
    umount(&root).unwrap();
    running.kill();
    umount(&host.0.join("source")).unwrap();
}

/// Its mounts are the host's, below its root, and are let go of with it; also where it fails.
fn without_a_namespace() {
    let host = Directory::new();
    shared_namespace(&host.0.join("source"));
    let before = mount_table();
    let kinds = ["uts", "ipc", "pid", "network", "cgroup"].map(|kind| json!({"type": kind}));
    let case = || Case::new(&["sleep"]).set("/linux/namespaces", json!(kinds));
    let one = case();
    let root = one.root.0.clone();
    let mounts = HostRoot::of(&one.plan().unwrap(), &root).unwrap().unwrap();
    let running = one.start();
    let link = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/mnt")).unwrap();
    assert_eq!(link(&running.pid.to_string()), link("self"));
    let proc = root.join("proc");
    assert!(mount_table().iter().any(|line| line.split(' ').nth(4) == proc.to_str()));
    let seen = crate::exec::run(&running, &["cat /in-root", "cwd", "ls /proc/self/root"], |_| {}).unwrap();
    assert_eq!((seen.answer(0), seen.answer(1)), ("yes", "/"));
    assert!(seen.answer(2).contains("in-root"), "{}", seen.answer(2));
    mounts.release().unwrap();
    assert_eq!(mount_table(), before);
    mounts.release().unwrap();
    running.kill();
    let error = case().mount("no-such-filesystem", Path::new("none"), "/x", "").run().unwrap_err();
    assert!(error.to_string().contains("no-such-filesystem"), "{error}");
    assert_eq!(mount_table(), before);
    let error = case().set("/linux/rootfsPropagation", json!("rslave")).run().unwrap_err();
    assert!(error.to_string().contains("linux.rootfsPropagation"), "{error}");
    assert_eq!(mount_table(), before);
    umount(&host.0.join("source")).unwrap();
}
