//! `podyard-oci` as its callers run it, with this test binary as the program inside.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::fixture::{Case, Directory, unique};

/// A bundle and a root for the states of its container.
pub struct Bundle {
    pub directory: Directory,
    pub id: String,
    /// What is run; a copy where it may be written to.
    pub program: PathBuf,
}

/// Built beside the tests, or packed beside them into a virtual machine.
pub fn podyard_oci() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_podyard-oci"));
    if built.exists() { built.into() } else { "/bin/podyard-oci".into() }
}

impl Bundle {
    /// A container that runs these commands of program.rs.
    pub fn new(commands: &[&str]) -> Self {
        let case = Case::new(commands);
        let mut spec = case.spec.clone();
        spec["root"] = json!({"path": "rootfs"});
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/program", "type": "bind", "source": std::env::current_exe().unwrap(),
            "options": ["ro", "nodev", "nosuid"],
        }));
        let bundle = Self { directory: Directory::new(), id: unique("oci"), program: podyard_oci() };
        std::fs::create_dir(bundle.rootfs()).unwrap();
        std::fs::write(bundle.rootfs().join("in-root"), "yes").unwrap();
        bundle.write(&spec);
        bundle
    }

    pub fn rootfs(&self) -> PathBuf {
        self.directory.0.join("rootfs")
    }

    pub fn states(&self) -> PathBuf {
        self.directory.0.join("states")
    }

    fn write(&self, spec: &Value) {
        std::fs::write(self.directory.0.join("config.json"), spec.to_string()).unwrap();
    }

    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        let path = self.directory.0.join("config.json");
        let mut spec = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut spec);
        self.write(&spec);
    }

    /// The arguments of a command, with where states are.
    pub fn words<'a>(&'a self, args: &[&'a str], states: &'a str) -> Vec<&'a str> {
        [&["--root", states][..], args].concat()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.states()).args(args).stdin(Stdio::null());
        command
    }

    /// Output through files: the container inherits them, and a pipe would not end before it.
    pub fn run(&self, args: &[&str]) -> Output {
        let (out, err) = (self.directory.0.join("out"), self.directory.0.join("err"));
        let file = |path: &Path| Stdio::from(std::fs::File::create(path).unwrap());
        // Whoever tries to write the file, and is refused, makes it busy for that instant (SECURITY.md).
        let started = || match self.command(args).stdout(file(&out)).stderr(file(&err)).status() {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
            other => Some(other.unwrap()),
        };
        let status = (0..10_000).find_map(|_| started()).expect("the program is not busy for ever");
        let read = |path: &Path| std::fs::read(path).unwrap();
        Output { status, stdout: read(&out), stderr: read(&err) }
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    pub fn fails(&self, args: &[&str], text: &str) {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(text), "{args:?}: {output:?}");
    }

    pub fn create(&self) {
        self.ok(&["create", "--bundle", self.directory.0.to_str().unwrap(), &self.id]);
    }

    /// Creates and starts.
    pub fn start(&self) {
        self.create();
        self.ok(&["start", &self.id]);
    }

    /// Runs one more process: the answers of its commands.
    pub fn exec(&self, options: &[&str], commands: &[&str]) -> Vec<String> {
        let mut args = vec!["exec"];
        args.extend(options);
        args.extend([self.id.as_str(), "/program", "--program"]);
        args.extend(commands);
        answers(&self.ok(&args))
    }

    pub fn pid(&self) -> i32 {
        let state: Value = serde_json::from_str(&self.ok(&["state", &self.id])).unwrap();
        state["pid"].as_i64().unwrap() as i32
    }

    /// Its cgroup, in every hierarchy that there is.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let name = self.id.clone();
        let below = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|e| e.unwrap().path());
        [PathBuf::from("/sys/fs/cgroup")].into_iter().chain(below).map(|h| h.join(&name)).collect()
    }
}

/// What a program printed, command by command.
pub fn answers(output: &str) -> Vec<String> {
    output.split_terminator('\x1e').map(|answer| answer.trim().to_string()).collect()
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let output = self.run(&["delete", "--force", &self.id]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "{output:?}");
        }
    }
}
