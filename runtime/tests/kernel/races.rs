//! Somebody changes paths while they are being used: another container with the same volume.
//!
//! Each race runs for a while (`PODYARD_RACE_SECONDS`, 6 unless set) or some thousand starts, whichever ends first.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use runtime::container::{Stdio, create};
use serde_json::json;

use crate::fixture::{Case, Directory};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_cve_2021_30465_mount_target_race_between_containers", mount_target_race),
    ("root_cve_2024_45310_mount_point_race", mount_point_race),
    ("root_cve_2025_31133_null_race", null_race),
    ("root_cve_2025_52565_console_race", console_race),
    ("root_cve_2026_41579_device_race", device_race),
    ("root_working_directory_race", working_directory_race),
];

const STARTS_MAX: usize = 10_000;

/// Exchanges two paths for as long as it lives.
struct Swapper(nix::unistd::Pid);

impl Swapper {
    /// A process, because this one must keep a single thread.
    fn start(a: PathBuf, b: PathBuf) -> Self {
        // SAFETY: this test process has one thread.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
                loop {
                    let (cwd, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
                    // What the other side removes or makes meanwhile is none of its business.
                    _ = rustix::fs::renameat_with(cwd, &a, cwd, &b, flags);
                }
            }
            nix::unistd::ForkResult::Parent { child } => Self(child),
        }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(self.0, None).unwrap();
    }
}

/// Calls `attempt` again and again; it says whether a container came to be. How many did and did not.
fn race(mut attempt: impl FnMut() -> bool) {
    let seconds = std::env::var("PODYARD_RACE_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(6);
    let start = Instant::now();
    let (mut made, mut refused) = (0, 0);
    // A slow machine, or an emulated one, takes longer for a few.
    let goes_on = |count: usize| match start.elapsed() < Duration::from_secs(seconds) {
        true => count < STARTS_MAX,
        false => count < 10 && start.elapsed() < Duration::from_secs(60),
    };
    while goes_on(made + refused) {
        match attempt() {
            true => made += 1,
            false => refused += 1,
        }
    }
    println!("{made} made, {refused} refused in {:?}", start.elapsed());
    assert!(made + refused > 0);
}

/// What is not to be touched: a directory with a file in it.
struct Victim {
    directory: Directory,
    before: (u32, u32, u32, u64),
}

impl Victim {
    fn new() -> Self {
        let directory = Directory::new();
        std::fs::write(directory.0.join("file"), "precious").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(directory.0.join("file"), mode).unwrap();
        std::os::unix::fs::chown(directory.0.join("file"), Some(55), Some(66)).unwrap();
        let mut victim = Self { directory, before: (0, 0, 0, 0) };
        victim.before = victim.now();
        victim
    }

    fn file(&self) -> PathBuf {
        self.directory.0.join("file")
    }

    fn now(&self) -> (u32, u32, u32, u64) {
        let meta = std::fs::metadata(self.file()).unwrap();
        (meta.mode(), meta.uid(), meta.gid(), meta.size())
    }

    #[track_caller]
    fn check(&self) {
        assert_eq!(self.now(), self.before);
        assert_eq!(std::fs::read_dir(&self.directory.0).unwrap().count(), 1, "something was made there");
    }
}

fn bind(to: &str, from: &Path) -> serde_json::Value {
    json!({"destination": to, "source": from, "options": ["bind"]})
}

fn mount_target_race() {
    let (shared, volume, host) =
        (Directory::new(), Directory::new(), std::fs::read_dir("/").unwrap().count());
    std::fs::create_dir(shared.0.join("place")).unwrap();
    symlink("/", shared.0.join("link")).unwrap();
    std::fs::write(volume.0.join("mark"), "volume").unwrap();
    let swapper = Swapper::start(shared.0.join("place"), shared.0.join("link"));
    race(|| {
        let case = Case::new(&["pid"]).set("/mounts/-", bind("/shared", &shared.0));
        let made = case.set("/mounts/-", bind("/shared/place", &volume.0)).run().is_ok();
        assert!(!Path::new("/mark").exists());
        made
    });
    drop(swapper);
    assert_eq!(std::fs::read_dir("/").unwrap().count(), host);
}

fn mount_point_race() {
    // Directories that are missing are made: inside, wherever the path leads meanwhile.
    let (shared, victim) = (Directory::new(), Victim::new());
    std::fs::create_dir(shared.0.join("a")).unwrap();
    symlink(&victim.directory.0, shared.0.join("link")).unwrap();
    let swapper = Swapper::start(shared.0.join("a"), shared.0.join("link"));
    let mut n = 0;
    race(|| {
        n += 1;
        let case = Case::new(&["pid"]).set("/mounts/-", bind("/shared", &shared.0));
        let file =
            json!({"destination": format!("/shared/a/f{n}"), "source": "/dev/null", "options": ["bind"]});
        let tmpfs = json!({"destination": format!("/shared/a/d{n}/e"), "type": "tmpfs", "source": "tmpfs"});
        let made = case.set("/mounts/-", tmpfs).set("/mounts/-", file).run().is_ok();
        victim.check();
        made
    });
    drop(swapper);
}

/// A container whose `/dev` is a volume that others write.
fn with_shared_dev(commands: &[&str], dev: &Path) -> Case {
    let mut case = Case::new(commands);
    for mount in case.spec["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/dev" {
            *mount = bind("/dev", dev);
        }
    }
    case
}

fn null_race() {
    let shared = Directory::new();
    symlink("/victim", shared.0.join("evil")).unwrap();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    let number = nix::sys::stat::makedev(1, 3);
    nix::sys::stat::mknod(&shared.0.join("null"), nix::sys::stat::SFlag::S_IFCHR, mode, number).unwrap();
    let swapper = Swapper::start(shared.0.join("null"), shared.0.join("evil"));
    race(|| {
        let case = with_shared_dev(&["stat /secret", "cat /secret"], &shared.0)
            .set("/linux/maskedPaths", json!(["/secret"]))
            .set("/process/capabilities", json!({}));
        std::fs::write(case.root.0.join("secret"), "secret").unwrap();
        std::fs::write(case.root.0.join("victim"), "victim").unwrap();
        match case.run() {
            Ok(outcome) => {
                // Masked by the null device, and nothing else.
                assert!(outcome.answer(0).ends_with(" 1:3"), "{outcome:?}");
                assert_eq!(outcome.answer(1), "");
                true
            }
            Err(_) => false,
        }
    });
    drop(swapper);
}

fn console_race() {
    let (shared, victim) = (Directory::new(), Victim::new());
    symlink(victim.file(), shared.0.join("evil")).unwrap();
    std::fs::write(shared.0.join("console"), "").unwrap();
    let swapper = Swapper::start(shared.0.join("console"), shared.0.join("evil"));
    race(|| {
        let mut case = with_shared_dev(&["write /dev/console x"], &shared.0);
        let made = match create(case.request(Stdio::Terminal(None)).unwrap()) {
            Ok(created) => {
                created.start.start().unwrap();
                crate::fixture::wait(&created.pidfd);
                true
            }
            Err(_) => false,
        };
        victim.check();
        made
    });
    drop(swapper);
}

fn device_race() {
    let (shared, victim) = (Directory::new(), Victim::new());
    symlink(victim.file(), shared.0.join("evil")).unwrap();
    // Removed and made again each time, so that the node is new when it is given its owner.
    let node = shared.0.join("made");
    let swapper = Swapper::start(node.clone(), shared.0.join("evil"));
    race(|| {
        let device = json!([{"path": "/dev/made", "type": "c", "major": 1, "minor": 3,
            "fileMode": 0o666, "uid": 7, "gid": 8}]);
        let made = with_shared_dev(&["pid"], &shared.0).set("/linux/devices", device).run().is_ok();
        victim.check();
        for name in ["made", "evil"] {
            let path = shared.0.join(name);
            if path.symlink_metadata().is_ok_and(|meta| !meta.is_symlink()) {
                // It may just have been exchanged.
                _ = std::fs::remove_file(path);
            }
        }
        // Alone, the link is not exchanged.
        if node.is_symlink() {
            std::fs::rename(&node, shared.0.join("evil")).unwrap();
        }
        made
    });
    drop(swapper);
}

fn working_directory_race() {
    let (shared, victim) = (Directory::new(), Victim::new());
    std::fs::create_dir_all(shared.0.join("a/work")).unwrap();
    symlink(&victim.directory.0, shared.0.join("link")).unwrap();
    let swapper = Swapper::start(shared.0.join("a"), shared.0.join("link"));
    race(|| {
        let case = Case::new(&["cwd"]).set("/mounts/-", bind("/shared", &shared.0));
        let outcome = case.set("/process/cwd", json!("/shared/a/work")).run();
        victim.check();
        match outcome {
            Ok(outcome) => {
                // In the volume, or in a directory of the image that the link, read inside, leads to.
                let inside = outcome.answer(0);
                assert!(
                    inside.starts_with("/shared/")
                        || inside.starts_with(victim.directory.0.to_str().unwrap())
                );
                true
            }
            Err(_) => false,
        }
    });
    drop(swapper);
}
