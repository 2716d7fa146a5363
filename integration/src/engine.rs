//! Container engines of others, run with `podyard-oci` in runc's place: each with directories, cgroups and state of its
//! own, and with nothing left when it is dropped.
//!
//! Containers start from a root directory holding the toolbox, so no image and no registry is needed.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::{Ran, until};

/// No command of an engine may take longer: a hang is a failure that says where.
const COMMAND_SECONDS: &str = "60";

/// The applets that the containers' root has, as links to one binary.
const APPLETS: [&str; 12] =
    ["cat", "echo", "env", "exit", "false", "hostname", "ls", "mem", "sleep", "test", "true", "write"];

/// Whether the programs are installed; says so loudly if not.
pub fn is_installed(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|program| !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
        .collect();
    if !missing.is_empty() {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        let line = format!("SKIP {test}: not installed: {} (.ci/run installs them)\n", missing.join(", "));
        std::io::stderr().write_all(line.as_bytes()).expect("tell what is skipped");
    }
    missing.is_empty()
}

/// What every engine of a test has: a directory, a name for its cgroups, a root for its containers.
struct Place {
    dir: tempfile::TempDir,
    name: String,
}

impl Place {
    fn new(toolbox: &str) -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("podyard-e{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix(&name).tempdir().expect("make a directory");
        // Also for a container whose root is nobody special on the host.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("open the directory");
        let root = dir.path().join("rootfs");
        for below in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            std::fs::create_dir_all(root.join(below)).expect("make the containers' root");
        }
        let program = root.join("bin/toolbox");
        std::fs::copy(toolbox, &program).expect("copy the toolbox");
        for applet in APPLETS {
            std::os::unix::fs::symlink("toolbox", root.join("bin").join(applet)).expect("link an applet");
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/none\nweb:x:1000:1000::/home:/none\n")
            .expect("write passwd");
        // Readable, but not a program.
        std::fs::write(root.join("etc/data"), "data\n").expect("write data");
        Place { dir, name }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// What of the machine still bears this place's name: mounts, cgroups, processes.
    fn leftovers(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        found.extend(
            mounts.lines().filter(|line| line.contains(&self.name)).map(|line| format!("mount {line}")),
        );
        found.extend(self.cgroups().into_iter().map(|path| format!("cgroup {}", path.display())));
        for entry in std::fs::read_dir("/proc").expect("list processes").flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&self.name) {
                found.insert(format!("process {} {command}", entry.file_name().display()));
            }
        }
        found
    }

    /// The directories named after this place, in every hierarchy.
    fn cgroups(&self) -> Vec<PathBuf> {
        let below = |dir: &Path| -> Vec<PathBuf> {
            std::fs::read_dir(dir).map(|all| all.flatten().map(|e| e.path()).collect()).unwrap_or_default()
        };
        let root = Path::new("/sys/fs/cgroup");
        let candidates = below(root).into_iter().flat_map(|top| [below(&top), vec![top]].concat());
        candidates.filter(|path| path.file_name().is_some_and(|name| *name == *self.name)).collect()
    }

    /// Removes the engine's own empty cgroups, which engines leave, and waits until nothing is left.
    fn end(&self) {
        let look = || {
            for cgroup in self.cgroups() {
                for below in std::fs::read_dir(&cgroup).into_iter().flatten().flatten() {
                    // What is not empty yet is tried again.
                    _ = std::fs::remove_dir(below.path());
                }
                // podman also writes where only the name looks like a hierarchy. In a real one this removes nothing.
                _ = std::fs::remove_dir(&cgroup).or_else(|_| std::fs::remove_dir_all(&cgroup));
            }
            let left = self.leftovers();
            if left.is_empty() { Ok(()) } else { Err(left) }
        };
        match std::thread::panicking() {
            false => until("nothing of the engine is left", look),
            // The test has failed already, and says why.
            true => eprintln!("left: {:?}", look()),
        }
    }
}

/// Runs a command to its end, or to that of [`COMMAND_SECONDS`], with this input.
fn run(command: &mut Command, input: &str) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // A program that does not read its input may close it first.
    _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}")).into()
}

fn limited(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal", "KILL", COMMAND_SECONDS, program]);
    command
}

/// Runs a command with a terminal of its own; what it shows is its output.
fn at_a_terminal(command: &mut Command) -> Ran {
    let terminal = nix::pty::openpty(None, None).expect("open a terminal");
    let end = || Stdio::from(terminal.slave.try_clone().expect("copy a descriptor"));
    command.stdin(end()).stdout(end()).stderr(end());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // The command's own copies would keep the terminal open.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    drop(terminal.slave);
    let (mut master, mut shown) = (std::fs::File::from(terminal.master), Vec::new());
    // EIO when the last one has closed it.
    _ = master.read_to_end(&mut shown);
    let status = child.wait().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&shown).into_owned();
    Ran { code: status.code().unwrap_or(-1), stdout, stderr: String::new() }
}

/// podman, and conmon below it.
pub struct Podman {
    place: Place,
    runtime: String,
}

impl Podman {
    /// An engine with `runtime` in runc's place, whose containers start from a root with `toolbox`.
    pub fn new(runtime: &str, toolbox: &str) -> Podman {
        let place = Place::new(toolbox);
        let at = |name: &str| place.shown(name);
        // Locks in files: the default is one piece of shared memory for the whole machine.
        let configuration = format!(
            "[containers]\nlog_driver = \"k8s-file\"\n\
             [engine]\nlock_type = \"file\"\nevents_logger = \"file\"\ncgroup_manager = \"cgroupfs\"\n\
             tmp_dir = {:?}\nvolume_path = {:?}\n\
             [network]\nnetwork_config_dir = {:?}\n",
            at("tmp"),
            at("volumes"),
            at("networks")
        );
        std::fs::write(place.path("containers.conf"), configuration).expect("write containers.conf");
        Podman { place, runtime: runtime.to_owned() }
    }

    fn command(&self) -> Command {
        let mut command = limited("podman");
        // conmon leaves a file there when a container runs out of memory.
        command.current_dir(self.place.dir.path());
        command.env("CONTAINERS_CONF", self.place.path("containers.conf"));
        command.args(["--root", &self.place.shown("storage"), "--runroot", &self.place.shown("run")]);
        command.args(["--storage-driver", "vfs", "--runtime", &self.runtime]);
        command
    }

    /// `podman <args>`.
    pub fn call(&self, args: &[&str]) -> Ran {
        self.call_with(args, "")
    }

    /// `podman <args>` with this input.
    pub fn call_with(&self, args: &[&str], input: &str) -> Ran {
        run(self.command().args(args), input)
    }

    /// `podman run --rm <options> ROOT <program>`.
    pub fn run(&self, options: &[&str], program: &[&str]) -> Ran {
        self.container(&["run", "--rm"], options, program)
    }

    /// `podman run --detach --name <name> <options> ROOT <program>`.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn start(&self, name: &str, options: &[&str], program: &[&str]) {
        let ran = self.container(&["run", "--detach", "--name", name], options, program);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
    }

    fn container(&self, verb: &[&str], options: &[&str], program: &[&str]) -> Ran {
        let (parent, root) = (format!("/{}", self.place.name), self.place.shown("rootfs"));
        let network = if options.contains(&"--network") { &[][..] } else { &["--network", "none"] };
        let own = ["--cgroup-parent", &parent];
        self.call(&[verb, network, &own, options, &["--rootfs", &root], program].concat())
    }

    /// `podman <args>` as a person at a terminal types it, and what that shows.
    pub fn at_a_terminal(&self, args: &[&str]) -> Ran {
        at_a_terminal(self.command().args(args))
    }

    /// The memory limit of a container, as the kernel has it, in bytes.
    pub fn memory_limit(&self, name: &str) -> String {
        let id = self.call(&["inspect", "--format", "{{.Id}}", name]).stdout;
        let cgroup = format!("{}/libpod-{}", self.place.name, id.trim());
        // v1 or hybrid, and v2.
        let files = [format!("memory/{cgroup}/memory.limit_in_bytes"), format!("{cgroup}/memory.max")];
        let read = |file: &String| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok();
        let text = files.iter().find_map(read).unwrap_or_else(|| panic!("none of {files:?}"));
        text.trim().to_owned()
    }

    /// A directory of the host's with one file, `data`, to be mounted.
    pub fn volume(&self) -> String {
        let path = self.place.path("volume");
        std::fs::create_dir_all(&path).expect("make a volume");
        std::fs::write(path.join("data"), "of the host").expect("fill it");
        path.display().to_string()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?}", self.call(&["ps", "--all"]));
        }
        // One whose namespaces another shares goes only after that: podman takes them in any order.
        let rounds = self.call(&["ps", "--all", "--quiet"]).stdout.lines().count();
        for _ in 0..rounds {
            self.call(&["rm", "--all", "--force", "--time", "0"]);
        }
        self.place.end();
    }
}

/// containerd, and containerd-shim-runc-v2 below it.
pub struct Containerd {
    place: Place,
    runtime: String,
    daemon: Option<Child>,
}

impl Containerd {
    /// A daemon whose shim calls `runtime`, and whose containers start from a root with `toolbox`.
    pub fn start(runtime: &str, toolbox: &str) -> Containerd {
        let place = Place::new(toolbox);
        let configuration = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            place.shown("root"),
            place.shown("state"),
            place.shown("socket"),
            place.shown("ttrpc")
        );
        std::fs::write(place.path("config.toml"), configuration).expect("write config.toml");
        let mut engine = Containerd { place, runtime: runtime.to_owned(), daemon: None };
        engine.restart();
        engine
    }

    /// Ends the daemon, as an upgrade does, and starts it again. Containers run on.
    pub fn restart(&mut self) {
        self.stop();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.place.path("log"));
        let log = log.expect("open the log");
        let mut command = Command::new("containerd");
        command.args(["--config", &self.place.shown("config.toml")]).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("copy a descriptor")).stderr(log);
        self.daemon = Some(command.spawn().expect("start containerd"));
        until("containerd answers", || {
            let ran = self.call(&["version"]);
            if ran.code == 0 { Ok(()) } else { Err(ran) }
        });
    }

    fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let pid = nix::unistd::Pid::from_raw(daemon.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("end containerd");
        daemon.wait().expect("wait for containerd");
    }

    fn command(&self) -> Command {
        let mut command = limited("ctr");
        command.args(["--address", &self.place.shown("socket"), "--namespace", &self.place.name]);
        command
    }

    /// `ctr <args>`.
    pub fn call(&self, args: &[&str]) -> Ran {
        run(self.command().args(args), "")
    }

    /// `ctr <args>` as a person at a terminal types it, and what that shows.
    pub fn at_a_terminal(&self, args: &[&str]) -> Ran {
        at_a_terminal(self.command().args(args))
    }

    /// `ctr run <options> --rootfs ROOT <id> <program>`.
    pub fn run(&self, options: &[&str], id: &str, program: &[&str]) -> Ran {
        let (oci, root) = (self.place.shown("oci"), self.place.shown("rootfs"));
        let cgroup = format!("/{}/{id}", self.place.name);
        let own = ["run", "--runc-binary", &self.runtime, "--runc-root", &oci, "--cgroup", &cgroup];
        self.call(&[&own[..], options, &["--rootfs", &root, id], program].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let list = self.call(&["containers", "list", "--quiet"]).stdout;
        for id in list.lines() {
            self.call(&["tasks", "delete", "--force", id]);
            self.call(&["containers", "delete", id]);
        }
        self.stop();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.place.path("log")).unwrap_or_default());
        }
        self.place.end();
    }
}
