//! The spec's mounts: every option, and what it comes to inside.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::fixture::{Case, Directory, Group, own_mount_namespace};
use crate::harness::{Test, lacks};

pub const TESTS: &[Test] = &[
    ("root_mount_attributes", attributes),
    ("root_mount_filesystem_flags", filesystem_flags),
    ("root_mount_binds_keep_the_sources_flags", binds_keep_flags),
    ("root_mount_recursive_attributes", recursive_attributes),
    ("root_mount_binds_of_files_sockets_and_devices", kinds_of_files),
    ("root_mount_relative_paths", relative_paths),
    ("root_mount_destinations_through_dangling_links", dangling_links),
    ("root_mount_sources_inside_the_container", sources_inside),
    ("root_mount_refusals_name_what_is_wrong", refusals),
    ("root_mount_tmpfs_mode", tmpfs_mode),
    ("root_mount_tmpfs_read_only_when_filled", tmpfs_read_only),
    ("root_mount_tmpcopyup", copy_up),
    ("root_mount_remount", remount),
    ("root_mount_long_options", long_options),
    ("root_mount_idmap", idmap),
    ("root_mount_idmap_of_the_user_namespace", idmap_default),
    ("root_mount_idmap_recursive", idmap_recursive),
    ("root_mount_closed_source_in_a_user_namespace", closed_source),
    ("root_mount_locked_flags_in_a_user_namespace", locked_flags),
    ("root_mount_devices_in_a_user_namespace", devices_in_a_user_namespace),
    ("root_mount_kernel_interfaces_of_other_namespaces", interfaces_of_others),
    ("root_mount_cgroup_read_only", cgroup_read_only),
    ("root_mount_bound_dev_stays_as_it_is", bound_dev),
];

/// Mounts a tmpfs of the host's, in this test's own mount namespace.
fn host_tmpfs(at: &Path, flags: MsFlags) {
    std::fs::create_dir_all(at).unwrap();
    mount(Some("host"), at, Some("tmpfs"), flags, None::<&str>).unwrap();
}

/// The words before the first blank: a mount's own options.
fn own(answer: &str) -> &str {
    answer.split(' ').next().unwrap()
}

fn attributes() {
    let table = [
        ("", "rw,relatime"),
        ("ro nosuid nodev noexec", "ro,nosuid,nodev,noexec,relatime"),
        ("ro rw", "rw,relatime"),
        ("nosuid suid nodev dev noexec exec", "rw,relatime"),
        ("noatime", "rw,noatime"),
        ("noatime relatime", "rw,relatime"),
        ("noatime norelatime", "rw,relatime"),
        ("strictatime", "rw"),
        ("strictatime nostrictatime", "rw,relatime"),
        ("nodiratime", "rw,nodiratime,relatime"),
        ("nodiratime diratime", "rw,relatime"),
        ("nosymfollow", "rw,relatime,nosymfollow"),
        ("rnosuid rnodev", "rw,nosuid,nodev,relatime"),
        ("defaults", "rw,relatime"),
    ];
    let host = Directory::new();
    own_mount_namespace();
    host_tmpfs(&host.0.join("source"), MsFlags::empty());
    let commands: Vec<String> = (0..table.len())
        .flat_map(|i| [format!("mountinfo /new{i}"), format!("mountinfo /bound{i}")])
        .collect();
    let mut case = Case::new(&commands.iter().map(String::as_str).collect::<Vec<_>>());
    for (i, (options, _)) in table.iter().enumerate() {
        case = case.mount("tmpfs", Path::new("t"), &format!("/new{i}"), options);
        let options = format!("bind {options}");
        case = case.mount("bind", &host.0.join("source"), &format!("/bound{i}"), &options);
    }
    let outcome = case.run().unwrap();
    for (i, (options, expected)) in table.iter().enumerate() {
        assert_eq!(own(outcome.answer(2 * i)), *expected, "new: {options}");
        assert_eq!(own(outcome.answer(2 * i + 1)), *expected, "bound: {options}");
    }
    nix::mount::umount(&host.0.join("source")).unwrap();
}

fn filesystem_flags() {
    let table = [
        ("sync", "sync"),
        ("dirsync", "dirsync"),
        ("lazytime", "lazytime"),
        ("sync async lazytime nolazytime", ""),
        ("size=1m nr_inodes=7", "size=1024k,nr_inodes=7"),
        ("mode=0700 uid=5 gid=6", "mode=700,uid=5,gid=6"),
        ("silent loud iversion noiversion mand nomand", ""),
        ("iversion size=1m", "size=1024k"),
        ("silent", ""),
    ];
    let commands: Vec<String> = (0..table.len()).map(|i| format!("mountinfo /t{i}")).collect();
    let mut case = Case::new(&commands.iter().map(String::as_str).collect::<Vec<_>>());
    for (i, (options, _)) in table.iter().enumerate() {
        case = case.mount("tmpfs", Path::new("t"), &format!("/t{i}"), options);
    }
    let outcome = case.run().unwrap();
    for (i, (options, expected)) in table.iter().enumerate() {
        let shown = outcome.answer(i).rsplit(' ').next().unwrap();
        let shown: Vec<&str> = shown.split(',').skip(1).filter(|word| *word != "inode64").collect();
        assert_eq!(shown.join(","), *expected, "{options}");
    }
}

fn binds_keep_flags() {
    let host = Directory::new();
    own_mount_namespace();
    let source = host.0.join("source");
    host_tmpfs(&source, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME);
    let outcome = Case::new(&["mountinfo /a", "mountinfo /b", "mountinfo /c"])
        .mount("bind", &source, "/a", "bind ro")
        .mount("bind", &source, "/b", "bind suid relatime")
        .mount("bind", &source, "/c", "rbind")
        .run()
        .unwrap();
    assert_eq!(own(outcome.answer(0)), "ro,nosuid,nodev,noatime");
    assert_eq!(own(outcome.answer(1)), "rw,nodev,relatime");
    assert_eq!(own(outcome.answer(2)), "rw,nosuid,nodev,noatime");
    nix::mount::umount(&source).unwrap();
}

fn recursive_attributes() {
    let host = Directory::new();
    own_mount_namespace();
    let source = host.0.join("source");
    host_tmpfs(&source, MsFlags::empty());
    host_tmpfs(&source.join("a\tb"), MsFlags::empty());
    host_tmpfs(&source.join("a\tb/c"), MsFlags::MS_NOSUID);
    let mut case = Case::new(&[
        "write /once/x y",
        "write /once/a\tb/x y",
        "mountinfo /below/a\\011b",
        "mountinfo /below/a\\011b/c",
        "mountinfo /below",
        "mountinfo /atime/a\\011b/c",
        "mountinfo /single/a\\011b",
    ]);
    case = case
        .mount("bind", &source, "/once", "rbind ro")
        .mount("bind", &source, "/below", "rbind rro rnodev rsuid")
        .mount("bind", &source, "/atime", "rbind rnoatime")
        .mount("bind", &source, "/single", "bind rro");
    let outcome = case.run().unwrap();
    assert_eq!(outcome.answer(0), "EROFS");
    assert_eq!(outcome.answer(1), "written", "ro is not for the mounts below");
    assert_eq!(own(outcome.answer(2)), "ro,nodev,relatime");
    assert_eq!(own(outcome.answer(3)), "ro,nodev,relatime");
    assert_eq!(own(outcome.answer(4)), "ro,nodev,relatime");
    assert_eq!(own(outcome.answer(5)), "rw,nosuid,noatime");
    assert_eq!(outcome.answer(6), "not mounted");
    for path in ["a\tb/c", "a\tb", ""] {
        nix::mount::umount(&source.join(path)).unwrap();
    }
}

fn kinds_of_files() {
    let host = Directory::new();
    std::fs::write(host.0.join("file"), "content").unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(host.0.join("socket")).unwrap();
    nix::unistd::mkfifo(&host.0.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    symlink("file", host.0.join("link")).unwrap();
    let case = Case::new(&["cat /etc/file", "cat /etc/link", "stat /s", "stat /f", "stat /zero"])
        .mount("bind", &host.0.join("file"), "/etc/file", "bind ro")
        .mount("bind", &host.0.join("link"), "/etc/link", "bind")
        .mount("bind", &host.0.join("socket"), "/s", "bind")
        .mount("bind", &host.0.join("fifo"), "/f", "bind")
        .mount("bind", Path::new("/dev/zero"), "/zero", "bind");
    let etc = case.root.0.join("etc");
    let (reader, stdio) = crate::fixture::output();
    let mut case = case;
    let created = runtime::container::create(case.request(stdio).unwrap()).unwrap();
    created.start.start().unwrap();
    let outcome = crate::fixture::Outcome::collect(reader, &created.pidfd, Vec::new());
    assert_eq!(outcome.answer(0), "content");
    assert_eq!(outcome.answer(1), "content");
    assert!(outcome.answer(2).starts_with("14"), "{outcome:?}");
    assert!(outcome.answer(3).starts_with("10600"), "{outcome:?}");
    assert!(outcome.answer(4).ends_with("1:5"), "{outcome:?}");
    // What was made for them is an empty file and nothing else.
    for name in ["file", "link"] {
        let made = std::fs::symlink_metadata(etc.join(name)).unwrap();
        assert!(made.is_file() && made.len() == 0 && !made.file_type().is_socket(), "{name}");
    }
}

fn relative_paths() {
    let host = Directory::new();
    std::fs::write(host.0.join("file"), "content").unwrap();
    std::env::set_current_dir(&host.0).unwrap();
    let case = Case::new(&["cat /data/here/file", "cat /up"])
        .mount("bind", Path::new("."), "data/here", "bind")
        .mount("bind", Path::new("./file"), "/a/../../up", "bind");
    let outcome = case.run().unwrap();
    assert_eq!(outcome.answer(0), "content");
    assert_eq!(outcome.answer(1), "content");
    assert_eq!(outcome.warnings.len(), 1);
    assert!(outcome.warnings[0].contains("data/here"), "{:?}", outcome.warnings);
    std::env::set_current_dir("/").unwrap();
}

fn dangling_links() {
    let host = Directory::new();
    std::fs::write(host.0.join("hosts"), "content").unwrap();
    let case = Case::new(&["cat /tmp/foo/bar/hosts", "cat /real/x", "mountinfo /deep/down/stack"])
        .mount("bind", &host.0.join("hosts"), "/etc/hosts", "bind")
        .mount("bind", &host.0.join("hosts"), "/last", "bind")
        .mount("tmpfs", Path::new("t"), "/conf/stack", "ro");
    std::fs::create_dir(case.root.0.join("etc")).unwrap();
    symlink("/tmp/foo", case.root.0.join("jump")).unwrap();
    symlink("/jump/bar/hosts", case.root.0.join("etc/hosts")).unwrap();
    symlink("/../../real/x", case.root.0.join("last")).unwrap();
    symlink("/deep/down", case.root.0.join("conf")).unwrap();
    let outcome = case.run().unwrap();
    assert_eq!(outcome.answer(0), "content");
    assert_eq!(outcome.answer(1), "content");
    assert!(outcome.answer(2).starts_with("ro,"), "{outcome:?}");
}

/// A source below the root, as the host names it, is what the container has mounted there.
fn sources_inside() {
    let host = Directory::new();
    std::fs::write(host.0.join("file"), "content").unwrap();
    for user in [false, true] {
        let mut case = Case::new(&["cat /second/file"]);
        if user {
            case = case.in_user_namespace();
        }
        let inside = case.root.0.join("first");
        let outcome = case
            .mount("bind", &host.0, "/first", "bind")
            .mount("bind", &inside, "/second", "rbind")
            .run()
            .unwrap();
        assert_eq!(outcome.answer(0), "content", "user namespace: {user}");
    }
}

fn refusals() {
    let tmp = Path::new("/tmp");
    for (typ, destination, options, text) in [
        ("bind", "/", "bind", "mounts[7]: destination: / is the root itself"),
        ("bind", "/a/..", "bind", "mounts[7]: destination: /a/.. is the root itself"),
        ("bind", "/root-link", "bind", "mount /tmp on /root-link: the destination is the root itself"),
        ("proc", "/x", "tmpcopyup", "mounts[7]: options: tmpcopyup: is an option of a new tmpfs"),
        ("bind", "/x", "bind idmap", "mounts[7].uidMappings: is required without a user namespace"),
        ("sysfs", "/sys", "remount ro", "mounts[7].options: remount: without bind is for a tmpfs"),
        ("bind", "/in-root", "bind remount ro", "mount anew on /in-root: remount: nothing is mounted there"),
        ("bind", "/proc", "bind", "mount /tmp on /proc: only a procfs may be on /proc"),
        ("tmpfs", "/proc", "", "mount tmpfs on /proc: only a procfs may be on /proc"),
        ("tmpfs", "/x", "nosuch=1", "mount tmpfs on /x: "),
    ] {
        let case = Case::new(&[]).mount(typ, tmp, destination, options);
        symlink("/", case.root.0.join("root-link")).unwrap();
        let error = case.run().expect_err(text);
        assert!(error.to_string().contains(text), "{error}");
    }
    let relative = Case::new(&[]).set("/linux/rootfsPropagation", json!("sharded")).plan().unwrap_err();
    assert!(relative.to_string().contains("linux.rootfsPropagation"), "{relative}");
}

fn tmpfs_mode() {
    let case = Case::new(&["stat /kept", "stat /told", "stat /made/deep", "mountinfo /made/deep"])
        .mount("tmpfs", Path::new("t"), "/kept", "")
        .mount("tmpfs", Path::new("t"), "/told", "mode=1500")
        .mount("tmpfs", Path::new("t"), "/made/deep", "");
    for name in ["kept", "told"] {
        let path = case.root.0.join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o2710)).unwrap();
    }
    let outcome = case.run().unwrap();
    assert!(outcome.answer(0).starts_with("42710 "), "{outcome:?}");
    assert!(outcome.answer(1).starts_with("41500 "), "{outcome:?}");
    assert!(outcome.answer(2).starts_with("41777 "), "{outcome:?}");
    assert!(!outcome.answer(3).contains("mode="), "{outcome:?}");
}

fn tmpfs_read_only() {
    let host = Directory::new();
    std::fs::write(host.0.join("file"), "content").unwrap();
    let mut case = Case::new(&["stat /dev/null", "write /dev/x y", "cat /fixed/in/file", "write /fixed/x y"]);
    case.spec["mounts"][1]["options"].as_array_mut().unwrap().push(json!("ro"));
    let outcome = case
        .mount("tmpfs", Path::new("t"), "/fixed", "ro")
        .mount("bind", &host.0, "/fixed/in", "bind")
        .run()
        .unwrap();
    assert!(outcome.answer(0).ends_with("1:3"), "{outcome:?}");
    assert_eq!(outcome.answer(1), "EROFS");
    assert_eq!(outcome.answer(2), "content");
    assert_eq!(outcome.answer(3), "EROFS");
}

fn copy_up() {
    for user in [false, true] {
        let mut case = Case::new(&[
            "cat /d/file",
            "stat /d/file",
            "stat /d/sub",
            "readlink /d/link",
            "cat /d/sub/deep",
            "stat /d/fifo",
            "write /d/file new",
            "ls /d",
            "write /fixed/x y",
            "cat /fixed/file",
        ]);
        if user {
            case = case.in_user_namespace();
        }
        let base = if user { 100000 } else { 0 };
        for name in ["d", "fixed"] {
            let d = case.root.0.join(name);
            std::fs::create_dir_all(d.join("sub")).unwrap();
            std::fs::write(d.join("file"), "of the image").unwrap();
            std::fs::write(d.join("sub/deep"), "deep").unwrap();
            symlink("/nowhere", d.join("link")).unwrap();
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
            nix::unistd::mkfifo(&d.join("fifo"), mode).unwrap();
            for path in ["", "sub", "file", "sub/deep", "link", "fifo"] {
                std::os::unix::fs::lchown(d.join(path), Some(base), Some(base)).unwrap();
            }
            chown(d.join("file"), Some(base + 5), Some(base + 6)).unwrap();
            std::fs::set_permissions(d.join("file"), std::fs::Permissions::from_mode(0o4646)).unwrap();
            std::fs::set_permissions(d.join("sub"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        }
        let image = case.root.0.join("d/file");
        let mut case = case.mount("tmpfs", Path::new("t"), "/d", "tmpcopyup").mount(
            "tmpfs",
            Path::new("t"),
            "/fixed",
            "tmpcopyup ro",
        );
        let (reader, stdio) = crate::fixture::output();
        let created = runtime::container::create(case.request(stdio).unwrap()).unwrap();
        created.start.start().unwrap();
        let outcome = crate::fixture::Outcome::collect(reader, &created.pidfd, Vec::new());
        assert_eq!(outcome.answer(0), "of the image");
        assert_eq!(outcome.answer(1), "104646 5:6 0:0");
        assert_eq!(outcome.answer(2), "41777 0:0 0:0");
        assert_eq!(outcome.answer(3), "/nowhere");
        assert_eq!(outcome.answer(4), "deep");
        assert!(outcome.answer(5).starts_with("10640 "), "{outcome:?}");
        assert_eq!(outcome.answer(6), "written");
        assert_eq!(outcome.answer(7), "fifo file link sub");
        assert_eq!(outcome.answer(8), "EROFS");
        assert_eq!(outcome.answer(9), "of the image");
        assert_eq!(std::fs::read_to_string(&image).unwrap(), "of the image");
    }
}

fn remount() {
    let host = Directory::new();
    own_mount_namespace();
    let source = host.0.join("source");
    host_tmpfs(&source, MsFlags::MS_NODEV);
    let outcome = Case::new(&["mountinfo /b", "mountinfo /t", "mountinfo /c"])
        .mount("bind", &source, "/b", "bind")
        .mount("bind", &source, "/b", "bind remount ro nosuid")
        .mount("tmpfs", Path::new("t"), "/t", "nosuid size=1m")
        .mount("tmpfs", Path::new("t"), "/t", "remount noexec size=2m sync")
        .mount("bind", &source, "/c", "bind ro")
        .mount("bind", &source, "/c", "bind remount rw")
        .run()
        .unwrap();
    assert_eq!(own(outcome.answer(0)), "ro,nosuid,nodev,relatime");
    assert_eq!(own(outcome.answer(1)), "rw,nosuid,noexec,relatime");
    assert!(outcome.answer(1).contains("sync") && outcome.answer(1).contains("size=2048k"), "{outcome:?}");
    assert_eq!(own(outcome.answer(2)), "rw,nodev,relatime");
    nix::mount::umount(&source).unwrap();
}

/// A value too long for fsconfig(2), which takes 255 bytes: an overlay of many layers.
fn long_options() {
    let host = Directory::new();
    own_mount_namespace();
    let top = host.0.join("top");
    host_tmpfs(&top, MsFlags::empty());
    let layers: Vec<String> = (0..10).map(|i| top.join(format!("layer-{i}")).display().to_string()).collect();
    for layer in &layers {
        std::fs::create_dir(layer).unwrap();
    }
    std::fs::write(format!("{}/file", layers[9]), "lowest").unwrap();
    let lower = layers.join(":");
    assert!(lower.len() > 255);
    let outcome = Case::new(&["cat /o/file", "mountinfo /o"])
        .mount("overlay", Path::new("overlay"), "/o", &format!("nosuid ro lowerdir={lower}"))
        .run();
    nix::mount::umount2(&top, nix::mount::MntFlags::MNT_DETACH).unwrap();
    match outcome {
        Err(e) if e.to_string().ends_with("ENODEV") => println!("SKIP: this kernel has no overlay: {e}"),
        outcome => {
            let outcome = outcome.unwrap();
            assert_eq!(outcome.answer(0), "lowest");
            assert_eq!(own(outcome.answer(1)), "ro,nosuid,relatime");
        }
    }
}

/// Files of several owners.
fn owned(files: &[(&str, u32, u32)]) -> Directory {
    let host = Directory::new();
    for (name, uid, gid) in files {
        std::fs::write(host.0.join(name), "").unwrap();
        chown(host.0.join(name), Some(*uid), Some(*gid)).unwrap();
    }
    host
}

/// Runs a container with ID-mapped mounts; none where this kernel knows none on the filesystem of the test.
fn run_mapped(case: Case) -> Option<crate::fixture::Outcome> {
    match case.run() {
        Err(e) if e.to_string().contains("map IDs: mount_setattr") && e.to_string().ends_with("EINVAL") => {
            println!("SKIP: {e}");
            None
        }
        other => Some(other.unwrap()),
    }
}

fn ids(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

fn idmap() {
    if lacks("mount_setattr") {
        let maps = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
        let mount = json!({"destination": "/m", "source": "/tmp", "options": ["bind"],
                           "uidMappings": maps, "gidMappings": maps});
        let error = Case::new(&[]).set("/mounts/-", mount).run().unwrap_err();
        assert!(error.to_string().contains("an ID-mapped mount: mount_setattr(2) is missing"), "{error}");
        return;
    }
    let host = owned(&[("a", 100, 211), ("b", 101, 222), ("c", 102, 233)]);
    let mount = |destination: &str, first: u32| {
        json!({"destination": destination, "source": host.0, "options": ["bind"],
            "uidMappings": [{"containerID": 100, "hostID": first, "size": 2},
                            {"containerID": 102, "hostID": first + 1000, "size": 1}],
            "gidMappings": [{"containerID": 200, "hostID": first, "size": 50}]})
    };
    for user in [false, true] {
        let mut case = Case::new(&[
            "stat /one/a",
            "stat /one/b",
            "stat /one/c",
            "stat /two/a",
            "stat /plain/a",
            "stat /same/c",
        ]);
        let base = if user { 100_000 } else { 0 };
        if user {
            case = case.in_user_namespace();
        }
        let case = case
            .set("/mounts/-", mount("/one", base + 5000))
            .set("/mounts/-", mount("/two", base + 7000))
            .set("/mounts/-", mount("/same", base + 5000))
            .mount("bind", &host.0, "/plain", "bind");
        let Some(outcome) = run_mapped(case) else {
            return;
        };
        assert_eq!(ids(outcome.answer(0)), "5000:5011");
        assert_eq!(ids(outcome.answer(1)), "5001:5022");
        assert_eq!(ids(outcome.answer(2)), "6000:5033");
        assert_eq!(ids(outcome.answer(3)), "7000:7011");
        assert_eq!(ids(outcome.answer(4)), if user { "65534:65534" } else { "100:211" });
        assert_eq!(ids(outcome.answer(5)), "6000:5033");
    }
    // The files are who they were.
    assert_eq!(std::fs::metadata(host.0.join("a")).unwrap().uid(), 100);
}

fn idmap_default() {
    if lacks("mount_setattr") {
        println!("SKIP: there are no ID-mapped mounts without mount_setattr");
        return;
    }
    let host = owned(&[("a", 0, 0), ("b", 5, 6)]);
    std::fs::set_permissions(&host.0, std::fs::Permissions::from_mode(0o777)).unwrap();
    let case = Case::new(&["stat /m/a", "stat /m/b", "write /m/new x", "stat /m/new", "stat /file"])
        .in_user_namespace()
        .mount("bind", &host.0, "/m", "bind idmap")
        .mount("bind", &host.0.join("b"), "/file", "bind ridmap ro");
    let Some(outcome) = run_mapped(case) else {
        return;
    };
    assert_eq!(ids(outcome.answer(0)), "0:0");
    assert_eq!(ids(outcome.answer(1)), "5:6");
    assert_eq!(outcome.answer(2), "written");
    assert_eq!(ids(outcome.answer(3)), "0:0");
    assert_eq!(ids(outcome.answer(4)), "5:6");
    // What its root made is root's on disk.
    assert_eq!(std::fs::metadata(host.0.join("new")).unwrap().uid(), 0);
}

fn idmap_recursive() {
    if lacks("mount_setattr") {
        println!("SKIP: there are no ID-mapped mounts without mount_setattr");
        return;
    }
    let (top, inner) = (owned(&[("a", 100, 100)]), owned(&[("b", 100, 100)]));
    own_mount_namespace();
    let below = top.0.join("below");
    std::fs::create_dir(&below).unwrap();
    mount(Some(&inner.0), &below, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let maps = json!([{"containerID": 100, "hostID": 300, "size": 10}]);
    let entry = |destination: &str, option: &str| {
        json!({"destination": destination, "source": top.0, "options": ["rbind", option],
               "uidMappings": maps, "gidMappings": maps})
    };
    let case = Case::new(&["stat /once/a", "stat /once/below/b", "stat /all/a", "stat /all/below/b"])
        .set("/mounts/-", entry("/once", "idmap"))
        .set("/mounts/-", entry("/all", "ridmap"));
    let Some(outcome) = run_mapped(case) else {
        nix::mount::umount(&below).unwrap();
        return;
    };
    let shown: Vec<&str> = (0..4).map(|i| ids(outcome.answer(i))).collect();
    assert_eq!(shown, ["300:300", "100:100", "300:300", "300:300"]);
    nix::mount::umount(&below).unwrap();
}

/// The path to a source is closed to the user namespace's root, and open to who made the container.
fn closed_source() {
    let host = Directory::new();
    let closed = host.0.join("closed");
    std::fs::create_dir_all(closed.join("data")).unwrap();
    std::fs::write(closed.join("data/file"), "content").unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let case = Case::new(&["cat /data/file", "mountinfo /data"]).in_user_namespace().mount(
        "bind",
        &closed.join("data"),
        "/data",
        "bind ro",
    );
    let outcome = case.run();
    if lacks("mount_setattr") {
        // Only a mount made by the parent gets there.
        let error = outcome.unwrap_err();
        assert!(error.to_string().ends_with("EACCES"), "{error}");
        return;
    }
    let outcome = outcome.unwrap();
    assert_eq!(outcome.answer(0), "content");
    assert!(own(outcome.answer(1)).starts_with("ro"), "{outcome:?}");
}

/// What the host has read-only stays so, whatever rights the container has in its user namespace.
fn locked_flags() {
    let host = Directory::new();
    own_mount_namespace();
    let source = host.0.join("source");
    host_tmpfs(&source, MsFlags::empty());
    std::fs::create_dir_all(source.join("closed/data")).unwrap();
    std::fs::set_permissions(source.join("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC;
    mount(None::<&str>, &source, None::<&str>, flags, None::<&str>).unwrap();
    let new = |commands: &[&str]| Case::new(commands).in_user_namespace().capable(&["CAP_SYS_ADMIN"]);
    let mut paths = vec![source.clone()];
    if !lacks("mount_setattr") {
        paths.push(source.join("closed/data"));
    }
    for path in paths {
        let outcome = new(&["mountinfo /d", "remount-rw /d", "write /d/x y"])
            .mount("bind", &path, "/d", "bind nosuid")
            .run()
            .unwrap();
        assert_eq!(own(outcome.answer(0)), "ro,nosuid,noexec,relatime", "{path:?}");
        assert_eq!(outcome.answer(1), "EPERM", "{path:?}");
        assert_eq!(outcome.answer(2), "EROFS", "{path:?}");
        let error = new(&[]).mount("bind", &path, "/d", "bind rw").run().unwrap_err();
        assert!(error.to_string().ends_with("EPERM"), "{error}");
    }
    nix::mount::umount(&source).unwrap();
}

fn devices_in_a_user_namespace() {
    let outcome =
        Case::new(&["stat /dev/null", "write /dev/null x", "stat /dev/deep/tun", "readlink /dev/ptmx"])
            .in_user_namespace()
            .set(
                "/linux/devices",
                json!([{"path": "/dev/deep/tun", "type": "c", "major": 1, "minor": 5},
                   {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}]),
            )
            .run();
    // There is no such device on the host to be bound.
    let error = outcome.unwrap_err();
    assert!(error.to_string().starts_with("make device /dev/deep/tun: "), "{error}");
    assert!(error.to_string().ends_with("ENOENT"), "{error}");
    let outcome = Case::new(&["stat /dev/null", "write /dev/null x", "readlink /dev/ptmx"])
        .in_user_namespace()
        .set("/linux/devices", json!([{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}]))
        .run()
        .unwrap();
    assert!(outcome.answer(0).ends_with("1:3"), "{outcome:?}");
    assert_eq!(outcome.answer(1), "written");
    assert_eq!(outcome.answer(2), "pts/ptmx");
}

/// sysfs is of a network namespace, mqueue of an IPC namespace: of the host's there is only the host's own mount.
fn interfaces_of_others() {
    let case =
        Case::new(&["mountinfo /sys", "write /sys/kernel/x y", "ls /sys/class/net"]).in_user_namespace().set(
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "uts"}, {"type": "pid"}, {"type": "user"}, {"type": "ipc"}]),
        );
    let outcome = case.run().unwrap();
    assert!(own(outcome.answer(0)).starts_with("ro,nosuid,nodev,noexec"), "{outcome:?}");
    assert_eq!(outcome.answer(1), "EROFS");
    assert!(outcome.answer(2).contains("lo"), "{outcome:?}");
}

fn cgroup_read_only() {
    let group = Group::new();
    for separate in [true, false] {
        let mut case =
            Case::new(&["cat /proc/self/mountinfo", "ls /sys/fs/cgroup", "mkdir /sys/fs/cgroup/x"]);
        if !separate {
            case.spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|ns| ns["type"] != "cgroup");
        }
        let outcome = case.cgroup(&group).run().unwrap();
        let lines = outcome.answer(0).lines().filter(|line| line.contains("/sys/fs/cgroup"));
        let options: Vec<&str> = lines.map(|line| line.split(' ').nth(5).unwrap()).collect();
        assert!(!options.is_empty());
        assert!(options.iter().all(|o| o.starts_with("ro,nosuid,nodev,noexec")), "{options:?}");
        assert_eq!(outcome.answer(2), "EROFS");
        // Each controller of a joint hierarchy is found by its own name.
        let names: Vec<&str> = outcome.answer(1).split(' ').collect();
        for joint in names.iter().filter(|name| name.contains(',')) {
            assert!(joint.split(',').all(|one| names.contains(&one)), "{names:?}");
        }
    }
}

/// The host's own `/dev`, bound: nothing is made in it.
fn bound_dev() {
    let host = Directory::new();
    std::fs::create_dir(host.0.join("shm")).unwrap();
    std::fs::write(host.0.join("null"), "not a device").unwrap();
    let mut case = Case::new(&["ls /dev", "cat /dev/null"]);
    case.spec["mounts"][1] =
        json!({"destination": "/dev", "type": "bind", "source": host.0, "options": ["rbind"]});
    let mounts = case.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev/"));
    let outcome = case.set("/linux/maskedPaths", json!([])).run().unwrap();
    assert_eq!(outcome.answer(0), "null shm");
    assert_eq!(outcome.answer(1), "not a device");
}
