//! Images and containers that attack the runtime: each test is an incident of another one.

use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::fixture::{Case, Directory};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_cve_2019_16884_proc_is_a_link", proc_is_a_link),
    ("root_cve_2026_41579_dev_is_a_link", dev_is_a_link),
    ("root_cve_2024_21626_working_directory_is_a_descriptor", working_directory_is_a_descriptor),
    ("root_cve_2024_45310_mount_points_stay_inside", mount_points_stay_inside),
    ("root_cve_2021_30465_mount_target_race", mount_target_race),
    ("root_cve_2025_31133_null_is_a_link", null_is_a_link),
    ("root_volume_on_proc_is_refused", volume_on_proc_is_refused),
    ("root_passwd_is_a_pipe", passwd_is_a_pipe),
    ("root_cve_2025_52565_terminal_of_the_image", terminal_of_the_image),
    ("root_cve_2019_5736_runtime_binary", runtime_binary),
    ("root_process_cannot_be_traced_half_made", not_traceable),
];

fn proc_is_a_link() {
    for name in ["proc", "sys"] {
        let case = Case::new(&["pid"]);
        let evil = case.root.0.join("evil");
        std::fs::create_dir(&evil).unwrap();
        symlink("/evil", case.root.0.join(name)).unwrap();
        let error = case.run().unwrap_err();
        assert!(error.to_string().contains(&format!("on /{name}: ")), "{error}");
        assert!(error.to_string().ends_with("ELOOP"), "{error}");
    }
}

fn dev_is_a_link() {
    let host = Directory::new();
    for link in [host.0.to_str().unwrap(), "/../../..", "/proc/self/cwd"] {
        let case = Case::new(&["pid"]);
        symlink(link, case.root.0.join("dev")).unwrap();
        assert!(case.run().is_err(), "{link}");
    }
    assert_eq!(std::fs::read_dir(&host.0).unwrap().count(), 0);
}

fn working_directory_is_a_descriptor() {
    let host = std::fs::File::open("/").unwrap();
    let _leaky = nix::unistd::dup(&host).unwrap();
    let start = std::time::Instant::now();
    for n in 0..64 {
        // An emulated machine gets through fewer.
        if start.elapsed() > std::time::Duration::from_secs(60) {
            break;
        }
        for cwd in [format!("/proc/self/fd/{n}"), format!("/proc/1/fd/{n}")] {
            let outcome = Case::new(&["cwd"]).set("/process/cwd", json!(cwd)).run();
            assert!(outcome.is_err(), "{cwd}: {outcome:?}");
        }
    }
    let case = Case::new(&["cwd"]).set("/process/cwd", json!("/w"));
    symlink("/proc/self/fd/7", case.root.0.join("w")).unwrap();
    assert!(case.run().is_err());
}

fn mount_points_stay_inside() {
    let host = Directory::new();
    let case = Case::new(&["cat /data/new/f"]);
    // As seen from the host, the link leads out; inside, to a place of the image.
    symlink(&host.0, case.root.0.join("data")).unwrap();
    std::fs::create_dir_all(case.root.0.join(host.0.strip_prefix("/").unwrap())).unwrap();
    let volume = Directory::new();
    std::fs::write(volume.0.join("f"), "volume").unwrap();
    let outcome = case
        .set("/mounts/-", json!({"destination": "/data/new", "source": volume.0, "options": ["bind"]}))
        .run()
        .unwrap();
    assert_eq!(outcome.answer(0), "volume");
    assert_eq!(std::fs::read_dir(&host.0).unwrap().count(), 0);
}

fn mount_target_race() {
    // Another container sharing a volume swaps the mount target for a link to the root.
    let shared = Directory::new();
    let (place, link, spare) = (shared.0.join("place"), shared.0.join("link"), "place");
    std::fs::create_dir(&place).unwrap();
    symlink("/", &link).unwrap();
    let stop = AtomicBool::new(false);
    // The swapper is a process, because this one must keep a single thread.
    // SAFETY: this test process has one thread.
    let swapper = match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, &place, cwd, &link, flags).unwrap();
            }
            unreachable!("killed");
        }
        nix::unistd::ForkResult::Parent { child } => child,
    };
    let volume = Directory::new();
    std::fs::write(volume.0.join("mark"), "volume").unwrap();
    let host = std::fs::read_dir("/").unwrap().count();
    let mut mounted = 0;
    let start = std::time::Instant::now();
    for _ in 0..100 {
        // An emulated machine gets through fewer.
        if start.elapsed() > std::time::Duration::from_secs(30) {
            break;
        }
        let outcome = Case::new(&["ls /", "exists /in-root"])
            .set("/mounts/-", json!({"destination": "/shared", "source": shared.0, "options": ["bind"]}))
            .set(
                "/mounts/-",
                json!({"destination": format!("/shared/{spare}"), "source": volume.0, "options": ["bind"]}),
            )
            .run();
        // Mounted where asked, on the container's own root, or refused: never on the host.
        mounted += u32::from(outcome.is_ok());
        assert!(!std::path::Path::new("/mark").exists());
    }
    nix::sys::signal::kill(swapper, nix::sys::signal::SIGKILL).unwrap();
    nix::sys::wait::waitpid(swapper, None).unwrap();
    assert_eq!(std::fs::read_dir("/").unwrap().count(), host);
    assert!(mounted > 0);
}

fn null_is_a_link() {
    // No /dev of ours: the image's own, in which null is a link to something worth writing.
    let mut case = Case::new(&["pid"]);
    case.spec["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    std::fs::create_dir(case.root.0.join("dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", case.root.0.join("dev/null")).unwrap();
    let error = case.run().unwrap_err();
    assert!(error.to_string().contains("/dev/null"), "{error}");
}

fn volume_on_proc_is_refused() {
    let volume = Directory::new();
    let bind = |to: &str| {
        let mount = json!({"destination": to, "source": volume.0, "options": ["bind"]});
        Case::new(&["pid"]).set("/mounts/-", mount).run().map(drop)
    };
    for to in ["/proc", "/proc/self", "/proc/sys/net"] {
        let error = bind(to).unwrap_err();
        assert!(error.to_string().contains("a procfs"), "{to}: {error}");
    }
    // By way of a link in the image, too.
    let mut case = Case::new(&["pid"]);
    symlink("/proc", case.root.0.join("p")).unwrap();
    if crate::harness::lacks("move_mount") {
        case = case.mount("bind", &volume.0, "/p/sys", "bind");
    } else {
        case.mounts.push(runtime::container::DetachedMount {
            fd: crate::fixture::tmpfs("x", "y"),
            destination: "/p/sys".into(),
            read_only: false,
        });
    }
    let error = case.run().unwrap_err();
    assert!(error.to_string().contains("in a procfs"), "{error}");
}

fn passwd_is_a_pipe() {
    let case = Case::new(&["env"]);
    std::fs::create_dir(case.root.0.join("etc")).unwrap();
    nix::unistd::mkfifo(&case.root.0.join("etc/passwd"), nix::sys::stat::Mode::from_bits_truncate(0o644))
        .unwrap();
    assert!(case.run().unwrap().answer(0).contains("HOME=/"));
    let case = Case::new(&["env"]);
    std::fs::create_dir(case.root.0.join("etc")).unwrap();
    symlink("/proc/1/environ", case.root.0.join("etc/passwd")).unwrap();
    assert!(case.run().unwrap().answer(0).contains("HOME=/"));
}

fn terminal_of_the_image() {
    // No devpts of ours: the image's own multiplexer, which is none.
    let attempt = |make: fn(&std::path::Path)| {
        let mut case = Case::new(&["pid"]);
        case.spec["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
        case.spec["linux"]["maskedPaths"] = json!([]);
        std::fs::create_dir_all(case.root.0.join("dev/pts")).unwrap();
        make(&case.root.0.join("dev/pts/ptmx"));
        let terminal = runtime::container::Stdio::Terminal(None);
        let error = runtime::container::create(case.request(terminal).unwrap()).unwrap_err();
        error.to_string()
    };
    let text = attempt(|ptmx| std::fs::write(ptmx, "").unwrap());
    assert!(text.ends_with("is not a terminal multiplexer"), "{text}");
    // The host's own number, on a filesystem that is not devpts; and a pipe, which must not block.
    let text = attempt(|ptmx| {
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        let number = nix::sys::stat::makedev(1, 3);
        nix::sys::stat::mknod(ptmx, nix::sys::stat::SFlag::S_IFCHR, mode, number).unwrap();
    });
    assert!(text.ends_with("is not a terminal multiplexer"), "{text}");
    let text =
        attempt(|ptmx| nix::unistd::mkfifo(ptmx, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap());
    assert!(text.ends_with("is not a terminal multiplexer"), "{text}");
    let text = attempt(|ptmx| symlink("/dev/ptmx", ptmx).unwrap());
    assert!(text.ends_with("ELOOP"), "{text}");
}

fn runtime_binary() {
    use std::io::Write;
    // Starts over, once, from the read-only clone or the sealed copy, with the same arguments.
    runtime::run_from_read_only_clone().unwrap();
    let before = std::fs::read("/proc/self/exe").unwrap();
    // A program that is the runtime itself: what an image gets by `#!/proc/self/exe`.
    let sleeper = json!(["/proc/self/exe", "--program", "sleep"]);
    let running = Case::new(&[]).set("/process/args", sleeper).start();
    let path = format!("/proc/{}/exe", running.pid);
    let exe = std::fs::File::open(&path).unwrap();
    let paths = [path, "/proc/self/exe".into(), format!("/proc/self/fd/{}", exe.as_raw_fd())];
    let truncate = |path: &str| std::fs::OpenOptions::new().write(true).truncate(true).open(path).map(drop);
    let append = |path: &str| std::fs::OpenOptions::new().append(true).open(path)?.write_all(b"x");
    let refused = [nix::libc::EROFS, nix::libc::ETXTBSY, nix::libc::EPERM].map(Some);
    for path in &paths {
        for error in [truncate(path).unwrap_err(), append(path).unwrap_err()] {
            assert!(refused.contains(&error.raw_os_error()), "{path}: {error}");
        }
    }
    running.kill();
    for error in [truncate(&paths[2]).unwrap_err(), append(&paths[2]).unwrap_err()] {
        assert!(refused.contains(&error.raw_os_error()), "{error}");
    }
    assert_eq!(std::fs::read("/proc/self/exe").unwrap(), before);
}

fn not_traceable() {
    // Until its program runs, the process cannot be attached to by others of its user.
    let mut case = Case::new(&["pid"]);
    let (_reader, stdio) = crate::fixture::output();
    let created = runtime::container::create(case.request(stdio).unwrap()).unwrap();
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(format!("/proc/{}/mem", created.pid)).unwrap().uid();
    assert_eq!(owner, 0);
    let mut case = Case::new(&["pid"]).set("/process/user", json!({"uid": 77, "gid": 77}));
    let (_reader, stdio) = crate::fixture::output();
    let other = runtime::container::create(case.request(stdio).unwrap()).unwrap();
    let owner = std::fs::metadata(format!("/proc/{}/mem", other.pid)).unwrap().uid();
    assert_eq!(owner, 0, "not dumpable: its files are root's");
}
