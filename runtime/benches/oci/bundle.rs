//! The bundles: one root, a config.json for each variant.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use runtime::seccomp::{Filter, default_profile};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

/// Hidden in the container. Source: runc's and Docker's default, names only.
pub const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
];

/// Read-only in the container.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// What is asked of a container beside the usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Nothing.
    Plain,
    /// A Docker-like seccomp profile.
    Seccomp,
    /// Memory, pids and CPU.
    Limits,
    /// Nothing, in four commands instead of one.
    Split,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Seccomp, Self::Limits, Self::Split];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Seccomp => "seccomp",
            Self::Limits => "limits",
            Self::Split => "split",
        }
    }
}

/// The bundles of a run, gone with it.
pub struct Bundles {
    /// Where everything of the run is.
    pub top: PathBuf,
    /// The root filesystem.
    pub root: PathBuf,
    /// The seccomp profile, compiled, as the floor loads it.
    pub filter: PathBuf,
}

impl Bundles {
    /// Writes them below the temporary directory.
    pub fn make(profile: Option<&Path>) -> std::io::Result<Self> {
        let top = std::env::temp_dir().join(format!("podyard-bench-{}", std::process::id()));
        let (root, filter) = (top.join("rootfs"), top.join("filter"));
        // As `/run` is on most hosts: the runtimes' records are not to wait for a disk.
        std::fs::create_dir_all(top.join("state"))?;
        mount("state", top.join("state"), "tmpfs", MountFlags::empty(), None)?;
        for directory in ["bin", "proc", "sys", "dev"] {
            std::fs::create_dir_all(root.join(directory))?;
        }
        let program = root.join("bin/true");
        std::fs::copy(std::env::current_exe()?, &program)?;
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
        std::fs::hard_link(&program, root.join("bin/pause"))?;
        let profile = match profile {
            Some(path) => resolve(&serde_json::from_slice(&std::fs::read(path)?)?),
            None => own(),
        };
        let parsed = serde_json::from_value(profile.clone())?;
        let begun = std::time::Instant::now();
        let compiled = Filter::compile(&parsed, &mut Vec::new()).map_err(std::io::Error::other)?;
        println!("filter: {} instructions, compiled in {:?}", compiled.program().len(), begun.elapsed());
        let code = compiled.program().iter().flat_map(|i| {
            let [a, b] = i.code.to_ne_bytes();
            let [w, x, y, z] = i.k.to_ne_bytes();
            [a, b, i.jt, i.jf, w, x, y, z]
        });
        std::fs::write(&filter, code.collect::<Vec<u8>>())?;
        for variant in Variant::ALL {
            let bundle = top.join(variant.name());
            std::fs::create_dir(&bundle)?;
            std::os::unix::fs::symlink(&root, bundle.join("rootfs"))?;
            let config = config(variant, &root, &profile);
            std::fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        }
        Ok(Self { top, root, filter })
    }

    /// The bundle of a variant.
    pub fn of(&self, variant: Variant) -> PathBuf {
        self.top.join(variant.name())
    }
}

impl Drop for Bundles {
    fn drop(&mut self) {
        // In the run's own mount namespace, which ends with it anyway; but the directory is the host's.
        if let Err(error) = unmount(self.top.join("state"), UnmountFlags::DETACH) {
            eprintln!("oci: unmount {}/state: {error}", self.top.display());
        }
        if let Err(error) = std::fs::remove_dir_all(&self.top) {
            eprintln!("oci: remove {}: {error}", self.top.display());
        }
    }
}

/// What `runc spec` writes, with a program that ends at once and without ambient capabilities.
fn config(variant: Variant, root: &Path, profile: &Value) -> Value {
    let program = if variant == Variant::Split { "/bin/pause" } else { "/bin/true" };
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let all = ["nosuid", "noexec", "nodev"];
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [program],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": root, "readonly": true},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &all),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    });
    match variant {
        Variant::Seccomp => config["linux"]["seccomp"] = profile.clone(),
        Variant::Limits => {
            let resources = &mut config["linux"]["resources"];
            resources["memory"] = json!({"limit": 128 << 20});
            resources["pids"] = json!({"limit": 100});
            resources["cpu"] = json!({"shares": 512, "quota": 50_000, "period": 100_000});
        }
        Variant::Plain | Variant::Split => {}
    }
    config
}

/// Our own profile, for three architectures as the known ones are.
fn own() -> Value {
    let mut profile = serde_json::to_value(default_profile(&CAPABILITIES)).unwrap_or_default();
    profile["architectures"] = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    profile
}

/// A profile of containers-common's form, for these capabilities on x86-64.
fn resolve(profile: &Value) -> Value {
    let any = |list: &Value, of: &[&str]| {
        list.as_array().into_iter().flatten().any(|v| v.as_str().is_some_and(|v| of.contains(&v)))
    };
    let applies = |entry: &&Value| {
        let (includes, excludes) = (&entry["includes"], &entry["excludes"]);
        let wanted = |key: &str, have: &[&str]| includes[key].is_null() || any(&includes[key], have);
        wanted("caps", &CAPABILITIES)
            && wanted("arches", &["amd64"])
            && !any(&excludes["caps"], &CAPABILITIES)
            && !any(&excludes["arches"], &["amd64"])
    };
    let calls = profile["syscalls"].as_array().into_iter().flatten().filter(applies).map(|entry| {
        let mut call = json!({"names": entry["names"], "action": entry["action"]});
        for key in ["args", "errnoRet"] {
            if !entry[key].is_null() {
                call[key] = entry[key].clone();
            }
        }
        call
    });
    let mut resolved = json!({
        "defaultAction": profile["defaultAction"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": calls.collect::<Vec<_>>(),
    });
    if !profile["defaultErrnoRet"].is_null() {
        resolved["defaultErrnoRet"] = profile["defaultErrnoRet"].clone();
    }
    resolved
}
