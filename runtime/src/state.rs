//! What `podyard-oci` remembers of a container between commands, and its status.
//!
//! ```text
//!   <root>/<id>/           0700, and what is in it 0600; its existence reserves the id
//!     config.json          the bundle's, as it was at create
//!     state.json           intent and identity: bundle, cgroup, pid and when it started
//!     start.sock           while the first process waits for `start`
//! ```
//!
//! The status is not stored: the process is looked at, by pid *and* start time, so that a reused
//! pid is not taken for it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, Hierarchies};
use crate::container::HostRoot;
use crate::error::{Call, Error, Kind, Result, Step};
use crate::pidfd;

/// Source: runtime-spec, runtime.md, "State".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The first process is being made.
    Creating,
    /// It waits for `start`.
    Created,
    /// It runs its program.
    Running,
    /// It stands still, and everything else in its cgroup.
    Paused,
    /// It has exited.
    Stopped,
}

/// What may be asked of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Run the program.
    Start,
    /// Send a signal.
    Kill,
    /// Forget the container.
    Delete,
    /// Run one more program.
    Exec,
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
}

impl Status {
    /// Whether `verb` may be asked in this status.
    ///
    /// # Errors
    /// `Invalid`, in words that callers of runc look for. Source: runtime-spec, runtime.md, "Operations".
    pub fn permits(self, verb: Verb) -> Result<()> {
        use Status::{Created, Paused, Running, Stopped};
        let refused = match (verb, self) {
            (Verb::Start, Created)
            | (Verb::Kill, Created | Running | Paused)
            // As runc and crun: what has run nothing loses nothing.
            | (Verb::Delete, Created | Stopped)
            | (Verb::Exec, Created | Running | Paused)
            | (Verb::Pause, Created | Running)
            | (Verb::Resume, Paused) => return Ok(()),
            (Verb::Start, Running | Paused) => "cannot start an already running container",
            (Verb::Start, _) => "cannot start a container that has stopped",
            // containerd's shim takes this for "it is gone already", and all is well.
            (Verb::Kill | Verb::Pause, _) => "container not running",
            (Verb::Delete, _) => "cannot delete container that is not stopped",
            (Verb::Exec, _) => "cannot exec in a stopped container",
            (Verb::Resume, _) => "container not paused",
        };
        Err(Error::new(Kind::Invalid, format!("{refused}: {}", self.name())))
    }

    /// As the specification spells it.
    fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The content of `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The container's name.
    pub id: String,
    /// Absolute.
    pub bundle: PathBuf,
    /// The root directory, absolute.
    #[serde(default)]
    pub rootfs: PathBuf,
    /// Path below every hierarchy.
    pub cgroup: PathBuf,
    /// The first process; 0 while creating.
    pub pid: i32,
    /// Clock ticks after boot. Source: proc_pid_stat(5), field 22.
    pub started_ticks: u64,
    /// When it was created, RFC 3339.
    #[serde(default)]
    pub created: String,
    /// Whether others' processes are in its PID namespace too, so that its own do not end with the first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shares_pids: bool,
    /// What is to be released at its end, if it has no mount namespace of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_root: Option<HostRoot>,
}

/// What a container is called: what hooks and others are told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The spec's version of the specification.
    pub version: String,
    /// The container's name.
    pub id: String,
    /// Absolute.
    pub bundle: PathBuf,
    /// The spec's, sorted.
    pub annotations: BTreeMap<String, String>,
}

impl Identity {
    /// What the spec itself says; id and bundle are the caller's to add.
    pub fn of(spec: &Spec) -> Self {
        let annotations = spec.annotations().iter().flatten();
        Self {
            version: spec.version().clone(),
            annotations: annotations.map(|(k, v)| (k.clone(), v.clone())).collect(),
            ..Self::default()
        }
    }

    /// The state in the specification's form, as hooks read it. `pid` as its reader numbers processes.
    ///
    /// Source: runtime-spec, runtime.md, "State".
    pub fn state(&self, status: Status, pid: Option<i32>) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": self.version,
            "id": self.id,
            "status": status,
            "bundle": self.bundle,
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        if !self.annotations.is_empty() {
            state["annotations"] = serde_json::json!(self.annotations);
        }
        state
    }
}

/// A container's directory.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Names the directory of container `id` below `root`.
    ///
    /// # Errors
    /// `Invalid` for an id that is not letters, digits and `_+-.`.
    pub fn of(root: &Path, id: &str) -> Result<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.chars().all(fits) {
            return Err(Error::invalid(
                format!("container id {id:?}"),
                "has other than letters, digits and _+-.",
            ));
        }
        Ok(Self(root.join(id)))
    }

    /// The container's id.
    pub fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether the id is taken.
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Reserves the id.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub fn create(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        let mut created = builder.create(&self.0);
        // Only the first container of a root finds none.
        if let (Err(e), Some(parent)) = (&created, self.0.parent())
            && e.kind() == std::io::ErrorKind::NotFound
        {
            builder.recursive(true).create(parent).call(|| format!("mkdir({parent:?})"))?;
            created = builder.recursive(false).create(&self.0);
        }
        created.call(|| format!("mkdir({:?})", self.0)).step("reserve the container's id")
    }

    /// Frees the id.
    ///
    /// # Errors
    /// The kernel's; not there is success.
    pub fn remove(&self) -> Result<()> {
        // What is there as a rule; the rest is for the walk below.
        for name in ["state.json", "config.json"] {
            match std::fs::remove_file(self.0.join(name)) {
                Ok(()) | Err(_) => {}
            }
        }
        if std::fs::remove_dir(&self.0).is_ok() {
            return Ok(());
        }
        match std::fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).call(|| format!("rm({:?})", self.0)),
            _ => Ok(()),
        }
    }

    /// Where the waiting first process listens.
    pub fn start_socket(&self) -> PathBuf {
        self.0.join("start.sock")
    }

    /// Keeps the bundle's `config.json`, as it was read, for execs. Nobody looks at it before there is a state.
    ///
    /// # Errors
    /// The kernel's.
    pub fn save_config(&self, config: &[u8]) -> Result<()> {
        let path = self.0.join("config.json");
        write_closed(&path, config)
    }

    /// The spec at create.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn spec(&self) -> Result<Spec> {
        let path = self.0.join("config.json");
        let bytes = std::fs::read(&path).call(|| format!("read({path:?})"))?;
        // What there is to warn about was said at create.
        crate::document::read(&bytes, &mut Vec::new()).map_err(|e| Error::invalid(path.display(), e))
    }

    /// The spec at create if it may name `field`. Most specs have no hooks, and that is seen without parsing them.
    ///
    /// # Errors
    /// As [`Directory::spec`].
    pub fn spec_naming(&self, field: &str) -> Result<Option<Spec>> {
        let path = self.0.join("config.json");
        let bytes = std::fs::read(&path).call(|| format!("read({path:?})"))?;
        let has = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
        // JSON may write any letter of a name as an escape.
        if !has(field.as_bytes()) && !has(b"\\u") {
            return Ok(None);
        }
        self.spec().map(Some)
    }

    /// Writes `state.json`, whole or not at all.
    ///
    /// # Errors
    /// The kernel's.
    pub fn save_state(&self, state: &State) -> Result<()> {
        self.save("state.json", state)
    }

    /// Reads `state.json`.
    ///
    /// # Errors
    /// `NotFound` if there is no such container, or one whose create was cut short.
    pub fn state(&self) -> Result<State> {
        self.load("state.json")
    }

    /// The status, by looking.
    ///
    /// # Errors
    /// The kernel's.
    pub fn status(&self, state: &State) -> Result<Status> {
        if state.pid == 0 {
            return Ok(Status::Creating);
        }
        Ok(match (state.process()?, self.start_socket().exists()) {
            (None, _) => Status::Stopped,
            (Some(_), _) if Cgroup::name(&Hierarchies::detect()?, &state.cgroup)?.freezing()? => {
                Status::Paused
            }
            (Some(_), true) => Status::Created,
            (Some(_), false) => Status::Running,
        })
    }

    fn save(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let (path, new) = (self.0.join(name), self.0.join(format!(".{name}")));
        let bytes = serde_json::to_vec(value).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        write_closed(&new, &bytes)?;
        std::fs::rename(&new, &path).call(|| format!("rename({new:?})"))
    }

    fn load<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<T> {
        let path = self.0.join(name);
        let bytes = std::fs::read(&path).call(|| format!("read({path:?})"))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::invalid(path.display(), e))
    }
}

/// Writes a file that nobody else may read.
fn write_closed(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.write(true).create(true).truncate(true).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, bytes)).call(|| format!("write({path:?})"))
}

impl State {
    /// What its hooks are told of it; `spec` is the one it was created from.
    pub fn identity(&self, spec: &Spec) -> Identity {
        Identity { id: self.id.clone(), bundle: self.bundle.clone(), ..Identity::of(spec) }
    }

    /// The first process, if it still is the one recorded and has not exited.
    ///
    /// # Errors
    /// The kernel's.
    pub fn process(&self) -> Result<Option<OwnedFd>> {
        let Some(pidfd) = pidfd::open(self.pid)? else {
            return Ok(None);
        };
        // Read after the pidfd was opened: if it is the right process now, the pidfd names it.
        match process_start(self.pid)? {
            Some((state, ticks)) if ticks == self.started_ticks && !"ZX".contains(state) => Ok(Some(pidfd)),
            _ => Ok(None),
        }
    }
}

/// A process's state letter and when it started; `None` if it is gone.
///
/// # Errors
/// The kernel's.
///
/// Source: proc_pid_stat(5).
pub fn process_start(pid: i32) -> Result<Option<(char, u64)>> {
    let path = format!("/proc/{pid}/stat");
    let text = match std::fs::read_to_string(&path) {
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ESRCH)) => return Ok(None),
        other => other.call(|| format!("read({path:?})"))?,
    };
    // The name, in parentheses, may contain anything.
    let fields = text.rsplit_once(") ").map(|(_, rest)| rest.split(' '));
    let parsed = fields.and_then(|mut fields| {
        let state = fields.next()?.chars().next()?;
        Some((state, fields.nth(18)?.parse().ok()?))
    });
    parsed.map(Some).ok_or_else(|| Error::new(Kind::Internal, format!("{path}: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_in_each_status() {
        let permitted = |status: Status| {
            [Verb::Start, Verb::Kill, Verb::Delete, Verb::Exec, Verb::Pause, Verb::Resume]
                .map(|v| status.permits(v).is_ok())
        };
        assert_eq!(permitted(Status::Creating), [false; 6]);
        assert_eq!(permitted(Status::Created), [true, true, true, true, true, false]);
        assert_eq!(permitted(Status::Running), [false, true, false, true, true, false]);
        assert_eq!(permitted(Status::Paused), [false, true, false, true, false, true]);
        assert_eq!(permitted(Status::Stopped), [false, false, true, false, false, false]);
    }

    #[test]
    fn a_state_has_what_is_known() {
        let spec = serde_json::json!({"ociVersion": "1.2.0", "annotations": {"b": "2", "a": "1"}});
        let mut identity = Identity::of(&serde_json::from_value(spec).unwrap());
        (identity.id, identity.bundle) = ("c1".into(), "/b".into());
        assert_eq!(
            identity.state(Status::Running, Some(7)).to_string(),
            r#"{"annotations":{"a":"1","b":"2"},"bundle":"/b","id":"c1","ociVersion":"1.2.0","pid":7,"status":"running"}"#
        );
        identity.annotations.clear();
        assert_eq!(
            identity.state(Status::Stopped, None).to_string(),
            r#"{"bundle":"/b","id":"c1","ociVersion":"1.2.0","status":"stopped"}"#
        );
    }

    #[test]
    fn fields_are_found_however_they_are_written() {
        let directory =
            Directory(std::env::temp_dir().join(format!("podyard-test-spec-{}", std::process::id())));
        directory.create().unwrap();
        for (text, found) in [
            (r#"{"ociVersion":"1.2.0"}"#, false),
            (r#"{"ociVersion":"1.2.0","hooks":{"poststart":[]}}"#, true),
            (r#"{"ociVersion":"1.2.0","hooks":{"\u0070oststart":[]}}"#, true),
        ] {
            directory.save_config(text.as_bytes()).unwrap();
            let spec = directory.spec_naming("poststart").unwrap();
            assert_eq!(spec.is_some(), found, "{text}");
            let hooks =
                spec.and_then(|spec| spec.hooks().clone()).and_then(|hooks| hooks.poststart().clone());
            assert_eq!(hooks.is_some(), found, "{text}");
        }
        directory.remove().unwrap();
    }

    #[test]
    fn ids_are_names() {
        let root = Path::new("/run/x");
        assert!(Directory::of(root, "web-0_a+b.c").is_ok());
        for bad in ["", ".", "..", "a/b", "../x", "a b", "ä"] {
            assert!(Directory::of(root, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn this_process_started() {
        let (state, ticks) = process_start(std::process::id() as i32).unwrap().unwrap();
        assert!("RS".contains(state) && ticks > 0);
        assert_eq!(process_start(i32::MAX).unwrap(), None);
    }
}
