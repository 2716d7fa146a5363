//! What `podyard-oci` keeps on the host, and under which names: closed to others, and never outside its place.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::bundle::Bundle;
use crate::fixture::{Directory, Group, eventually};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_states_are_closed_to_others", states_are_closed),
    ("root_cve_2020_15257_no_abstract_sockets", no_abstract_sockets),
    ("root_ids_are_names", ids_are_names),
    ("root_cgroup_paths_stay_below_the_root", cgroup_paths),
    ("root_a_cgroup_of_others_is_left_alone", cgroup_of_others),
    ("root_documents_are_bounded", documents_are_bounded),
    ("root_pid_file_follows_no_link", pid_file_follows_no_link),
    ("root_rootfs_is_a_link", rootfs_is_a_link),
    ("root_a_create_cut_short_is_found", create_cut_short),
    ("root_kill_without_cgroup_kill", without_cgroup_kill),
];

/// Every path at and below `top`.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_path_buf()];
    if top.symlink_metadata().unwrap().is_dir() {
        for entry in std::fs::read_dir(top).unwrap() {
            found.extend(tree(&entry.unwrap().path()));
        }
    }
    found
}

fn states_are_closed() {
    // Whatever the caller's umask.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let bundle = Bundle::new(&["sleep"]);
    let check = |when: &str, sockets: usize| {
        let paths = tree(&bundle.states());
        assert!(paths.len() >= 4, "{when}: {paths:?}");
        let mut seen = 0;
        for path in paths {
            let meta = path.symlink_metadata().unwrap();
            seen += usize::from(meta.file_type().is_socket());
            let expected = if meta.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(meta.permissions().mode() & 0o7777, expected, "{when}: {path:?}");
        }
        assert_eq!(seen, sockets, "{when}");
    };
    bundle.create();
    check("created", 1);
    bundle.ok(&["start", &bundle.id]);
    check("running", 0);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
}

fn no_abstract_sockets() {
    // In a network namespace of this test's own, where nobody else has any.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let sockets = || std::fs::read_to_string("/proc/self/net/unix").unwrap();
    let bundle = Bundle::new(&["sleep"]);
    bundle.create();
    assert!(sockets().contains("start.sock"), "{}", sockets());
    assert!(!sockets().contains('@'), "{}", sockets());
    bundle.ok(&["start", &bundle.id]);
    bundle.exec(&[], &["pid"]);
    assert!(!sockets().contains('@'), "{}", sockets());
}

fn ids_are_names() {
    let bundle = Bundle::new(&["pid"]);
    let directory = bundle.directory.0.to_str().unwrap();
    let long = "x".repeat(1025);
    let ids = [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/",
        "/etc",
        "a b",
        "a\nb",
        "ä",
        "a\u{202e}b",
        ".hidden",
        "a:b",
        &long,
    ];
    for id in ids {
        for verb in ["create", "run"] {
            bundle.fails(&[verb, "--bundle", directory, "--", id], "");
        }
        for verb in ["start", "state", "kill", "pause", "ps"] {
            bundle.fails(&[verb, "--", id], "");
        }
        bundle.fails(&["delete", "--force", "--", id], "");
    }
    let left: Vec<_> =
        std::fs::read_dir(&bundle.directory.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(
        !bundle.states().exists() || std::fs::read_dir(bundle.states()).unwrap().count() == 0,
        "{left:?}"
    );
}

fn cgroup_paths() {
    let bundle = Bundle::new(&["pid"]);
    let directory = bundle.directory.0.to_str().unwrap();
    let outside = format!("/tmp/{}", bundle.id);
    let up = format!("../../../..{outside}");
    let paths = ["/../x", &up, "/a/../../x", "a/..", "/", "//", "/a\nb", "a.slice:b:c"];
    for path in paths {
        bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(path));
        bundle.fails(&["run", "--bundle", directory, &bundle.id], "group");
        assert_eq!(bundle.ok(&["list", "-q"]), "", "{path}");
    }
    let long = format!("/{}", "x".repeat(5000));
    bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(long));
    bundle.fails(&["run", "--bundle", directory, &bundle.id], "ENAMETOOLONG");
    assert!(!Path::new(&outside).exists());
}

fn cgroup_of_others() {
    // A spec that names a cgroup in which others live is refused, and they live on.
    let group = Group::new();
    let running = crate::fixture::Case::new(&["sleep"]).cgroup(&group).start();
    let bundle = Bundle::new(&["pid"]);
    bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(group.0.path()));
    let directory = bundle.directory.0.to_str().unwrap();
    for verb in ["create", "run"] {
        bundle.fails(&[verb, "--bundle", directory, &bundle.id], "is not empty");
        bundle.ok(&["delete", "--force", &bundle.id]);
    }
    assert_eq!(group.0.pids().unwrap(), [running.pid]);
    running.kill();
}

fn documents_are_bounded() {
    let bundle = Bundle::new(&["sleep"]);
    bundle.start();
    let endless = "/dev/zero";
    bundle.fails(&["update", "--resources", endless, &bundle.id], "is longer than");
    bundle.fails(&["exec", "--process", endless, &bundle.id], "is longer than");
    let other = Directory::new();
    std::os::unix::fs::symlink(endless, other.0.join("config.json")).unwrap();
    bundle.fails(&["create", "--bundle", other.0.to_str().unwrap(), "podyard-test-never"], "is longer than");
    // Nested deeper than any document is.
    let deep = format!("{}1{}", r#"{"process":"#.repeat(100_000), "}".repeat(100_000));
    std::fs::remove_file(other.0.join("config.json")).unwrap();
    std::fs::write(other.0.join("config.json"), deep).unwrap();
    bundle.fails(&["create", "--bundle", other.0.to_str().unwrap(), "podyard-test-never"], "config.json");
}

fn pid_file_follows_no_link() {
    let bundle = Bundle::new(&["sleep"]);
    let victim = bundle.directory.0.join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let pid_file = bundle.directory.0.join("pid");
    for link in ["pid", "pid.new", ".pid", "pid.tmp"] {
        std::os::unix::fs::symlink(&victim, bundle.directory.0.join(link)).unwrap();
    }
    let directory = bundle.directory.0.to_str().unwrap();
    bundle.ok(&["create", "--bundle", directory, "--pid-file", pid_file.to_str().unwrap(), &bundle.id]);
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), bundle.pid().to_string());
    assert!(!pid_file.is_symlink());
}

fn rootfs_is_a_link() {
    // The bundle is its owner's to arrange: the link is followed by the host's names, once, to one root.
    let bundle = Bundle::new(&["ls /"]);
    let real = Directory::new();
    std::fs::write(real.0.join("only-here"), "").unwrap();
    std::fs::remove_dir_all(bundle.rootfs()).unwrap();
    std::os::unix::fs::symlink(&real.0, bundle.rootfs()).unwrap();
    let directory = bundle.directory.0.to_str().unwrap();
    let shown = bundle.ok(&["run", "--bundle", directory, &bundle.id]);
    assert!(shown.contains("only-here"), "{shown}");
    std::fs::remove_file(bundle.rootfs()).unwrap();
    for nowhere in ["/proc/self/exe", "/nowhere", "/dev/null"] {
        std::os::unix::fs::symlink(nowhere, bundle.rootfs()).unwrap();
        bundle.fails(&["run", "--bundle", directory, &bundle.id], "");
        std::fs::remove_file(bundle.rootfs()).unwrap();
    }
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

#[cfg(target_arch = "x86_64")]
const RENAMES: &[i64] = &[nix::libc::SYS_rename, nix::libc::SYS_renameat, nix::libc::SYS_renameat2];
#[cfg(not(target_arch = "x86_64"))]
const RENAMES: &[i64] = &[nix::libc::SYS_renameat, nix::libc::SYS_renameat2];

fn create_cut_short() {
    use crate::supervise::{Call, Supervised, Verdict, output};
    // Killed when the process is made already, and its pid is on no record yet: at the last rename.
    let bundle = Bundle::new(&["sleep"]);
    let (directory, states) = (bundle.directory.0.to_str().unwrap(), bundle.states());
    let args = ["create", "--bundle", directory, &bundle.id];
    let states = states.to_str().unwrap();
    let mut cloned = 0;
    let judge = move |call: &Call| {
        cloned += usize::from([nix::libc::SYS_clone3, nix::libc::SYS_clone].contains(&call.number));
        match cloned > 0 && RENAMES.contains(&call.number) {
            true => Verdict::Kill,
            false => Verdict::Go,
        }
    };
    let run = Supervised::start(&bundle.program, &bundle.words(&args, states), &output(), judge);
    assert_eq!(run.wait(std::time::Duration::from_secs(100)), Some(128 + nix::libc::SIGKILL));
    assert!(bundle.ok(&["list"]).contains("creating"));
    bundle.fails(&["delete", &bundle.id], "creating");
    bundle.fails(&["start", &bundle.id], "creating");
    let left = || bundle.cgroups().into_iter().filter(|path| path.exists()).count();
    assert!(left() > 0);
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(left(), 0);
    assert_eq!(bundle.ok(&["list", "-q"]), "");
}

fn without_cgroup_kill() {
    use crate::supervise::{Call, Supervised, Verdict, output, text_at, written};
    // Before Linux 5.14 there was no such file.
    let bundle = Bundle::new(&["spawn-sleepers 20", "sleep"]);
    bundle.start();
    eventually("all are there", || {
        bundle.ok(&["ps", "--format", "json", &bundle.id]).matches(',').count() == 20
    });
    let judge = |call: &Call| {
        let opens =
            call.number == nix::libc::SYS_openat && text_at(call, call.args[1]).ends_with("cgroup.kill");
        if opens { Verdict::Fail(nix::libc::ENOENT) } else { Verdict::Go }
    };
    let (file, states) = (output(), bundle.states());
    let args = ["delete", "--force", &bundle.id];
    let run =
        Supervised::start(&bundle.program, &bundle.words(&args, states.to_str().unwrap()), &file, judge);
    assert_eq!(run.wait(std::time::Duration::from_secs(100)), Some(0), "{}", written(&file));
    assert!(bundle.cgroups().iter().all(|path| !path.exists()));
}
