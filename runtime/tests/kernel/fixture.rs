//! A container to try things in: the test binary itself in an otherwise empty root.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use runtime::cgroup::Cgroup;
use runtime::container::{CreateRequest, Created, DetachedMount, Parent, Root, Stdio, create};
use runtime::{Plan, Result};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use serde_json::{Value, json};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A name no other test has.
pub fn unique(what: &str) -> String {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("podyard-test-{what}-{}-{count}", std::process::id())
}

/// A directory that goes away.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        // A test that was killed leaves its own, and its pid is given away again.
        loop {
            let path = std::env::temp_dir().join(unique("dir"));
            match std::fs::create_dir(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| Self(path)).unwrap(),
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A cgroup that goes away, with what is in it.
pub struct Group(pub Cgroup);

impl Group {
    pub fn new() -> Self {
        Self(Cgroup::create(format!("/{}", unique("cgroup"))).unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        assert!(self.0.wait_empty(Duration::from_secs(20)).unwrap());
        self.0.remove().unwrap();
        assert!(!self.0.exists());
    }
}

/// What a case is made from; tests change what they are about.
pub struct Case {
    pub spec: Value,
    pub root: Directory,
    pub mounts: Vec<DetachedMount>,
    pub cgroup: Option<Cgroup>,
}

impl Case {
    /// A container that runs these commands of program.rs.
    pub fn new(commands: &[&str]) -> Self {
        let mut args = vec!["/program", "--program"];
        args.extend(commands);
        let all = ["mount", "uts", "ipc", "pid", "network", "cgroup"];
        let namespaces: Vec<Value> = all.iter().map(|t| json!({"type": t})).collect();
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": ["PATH=/bin", "A=b"],
                "cwd": "/",
                "noNewPrivileges": true,
            },
            "root": {"path": "unused", "readonly": false},
            "hostname": "inside",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                 "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            ],
            "linux": {
                "namespaces": namespaces,
                "maskedPaths": ["/proc/kcore", "/proc/acpi", "/proc/keys", "/sys/firmware", "/nowhere"],
                "readonlyPaths": ["/proc/sys", "/proc/bus", "/proc/irq", "/nowhere"],
            },
        });
        let root = Directory::new();
        std::fs::write(root.0.join("in-root"), "yes").unwrap();
        Self { spec, root, mounts: Vec::new(), cgroup: None }
    }

    /// Changes the spec at a JSON pointer, whose last name may be new.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = self.spec.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
        match parent {
            Value::Array(list) => list.push(value),
            other => other[name] = value,
        }
        self
    }

    /// One more entry of `mounts`.
    pub fn mount(self, typ: &str, source: &Path, destination: &str, options: &str) -> Self {
        let options: Vec<&str> = options.split(' ').filter(|option| !option.is_empty()).collect();
        self.set(
            "/mounts/-",
            json!({"type": typ, "source": source, "destination": destination, "options": options}),
        )
    }

    /// In a user namespace whose IDs begin at 100000, with a root that is its root user's.
    pub fn in_user_namespace(self) -> Self {
        std::os::unix::fs::chown(&self.root.0, Some(100000), Some(100000)).unwrap();
        let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
        self.set("/linux/namespaces/-", json!({"type": "user"}))
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map)
    }

    /// With these capabilities.
    pub fn capable(self, names: &[&str]) -> Self {
        let sets = json!({"bounding": names, "effective": names, "permitted": names});
        self.set("/process/capabilities", sets)
    }

    pub fn cgroup(mut self, group: &Group) -> Self {
        self.cgroup = Some(group.0.clone());
        self
    }

    pub fn plan(&self) -> Result<Plan> {
        let spec = serde_json::from_value(self.spec.clone()).unwrap();
        Plan::from_spec(&spec)
    }

    pub fn request(&mut self, stdio: Stdio) -> Result<CreateRequest> {
        let mut mounts = std::mem::take(&mut self.mounts);
        let program = crate::harness::binary();
        let mut spec = self.spec.clone();
        // Detached mounts are of the mount API; without it the spec has them all.
        if crate::harness::lacks("move_mount") {
            let mount =
                json!({"destination": "/program", "type": "bind", "source": program, "options": ["ro"]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        } else {
            mounts.push(DetachedMount {
                fd: clone_mount(&program),
                destination: "/program".into(),
                read_only: true,
            });
        }
        Ok(CreateRequest {
            plan: Plan::from_spec(&serde_json::from_value(spec).unwrap())?,
            root: Root::Path(self.root.0.clone()),
            mounts,
            stdio,
            namespaces: Default::default(),
            cgroup: self.cgroup.clone(),
            parent: Parent::Caller,
            start_listener: None,
        })
    }

    /// Creates, starts, and collects everything.
    pub fn run(mut self) -> Result<Outcome> {
        let (reader, stdio) = output();
        let request = self.request(stdio)?;
        let created = create(request)?;
        let warnings = created.warnings.clone();
        let pidfd = created.pidfd;
        if let Err(e) = created.start.start() {
            wait(&pidfd);
            return Err(e);
        }
        Ok(Outcome::collect(reader, &pidfd, warnings))
    }

    /// Creates and starts one that goes on running.
    pub fn start(mut self) -> Running {
        let (reader, stdio) = output();
        let request = self.request(stdio).unwrap();
        let Created { pid, pidfd, start, warnings, .. } = create(request).unwrap();
        start.start().unwrap();
        Running {
            pid,
            pidfd,
            reader,
            warnings,
            plan: self.plan().unwrap(),
            cgroup: self.cgroup.clone(),
            _root: self.root,
        }
    }
}

/// A container that runs.
pub struct Running {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub reader: std::fs::File,
    pub warnings: Vec<String>,
    pub plan: Plan,
    pub cgroup: Option<Cgroup>,
    _root: Directory,
}

impl Running {
    pub fn kill(self) -> Outcome {
        runtime::pidfd::send_signal(&self.pidfd, rustix::process::Signal::KILL).unwrap();
        Outcome::collect(self.reader, &self.pidfd, self.warnings)
    }
}

/// What became of a process.
#[derive(Debug)]
pub struct Outcome {
    pub output: String,
    /// Exit code, or 128 and the signal.
    pub code: i32,
    pub warnings: Vec<String>,
}

impl Outcome {
    pub fn collect(mut reader: std::fs::File, pidfd: &OwnedFd, warnings: Vec<String>) -> Self {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        Self { output: String::from_utf8_lossy(&bytes).into_owned(), code: wait(pidfd), warnings }
    }

    /// What the n-th command printed.
    #[track_caller]
    pub fn answer(&self, n: usize) -> &str {
        let answers: Vec<&str> = self.output.split('\x1e').collect();
        answers.get(n).unwrap_or_else(|| panic!("{self:?}")).trim()
    }
}

/// Reaps a child: its exit code, or 128 and the signal.
pub fn wait(pidfd: &OwnedFd) -> i32 {
    runtime::pidfd::wait(pidfd).unwrap()
}

/// Standard streams: nothing in, a pipe out.
pub fn output() -> (std::fs::File, Stdio) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let copy = write.try_clone().unwrap();
    (std::fs::File::from(read), Stdio::Fds([null.unwrap(), write, copy]))
}

/// A detached copy of the mount at a path.
pub fn clone_mount(path: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).unwrap()
}

/// A detached tmpfs holding one file.
pub fn tmpfs(name: &str, content: &str) -> OwnedFd {
    use rustix::mount::*;
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_create(&fs).unwrap();
    let fd = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&fd, name, flags, Mode::from_raw_mode(0o644)).unwrap();
    rustix::io::write(file, content.as_bytes()).unwrap();
    fd
}

/// Polls a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Leaves the host's mount namespace for one that neighbours' mounts do not reach.
pub fn own_mount_namespace() {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
}

/// The mounts of this mount namespace. They may become fewer by themselves: removing the directory that one is on,
/// in another namespace, takes it away in all.
pub fn mount_table() -> std::collections::BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().map(str::to_owned).collect()
}
