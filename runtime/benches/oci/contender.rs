//! Who runs, with which words, and how one run is timed.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::bundle::{Bundles, Variant};
use crate::sys;

/// How long one command may take: youki has been seen to wait for ever.
const DEADLINE: Duration = Duration::from_secs(3);

/// A runtime, or the floor.
#[derive(Clone, Debug)]
pub struct Contender {
    /// In the tables.
    pub name: String,
    kind: Kind,
    program: PathBuf,
}

#[derive(Clone, Debug)]
enum Kind {
    Oci { state: PathBuf },
    Floor { v1: Vec<PathBuf>, unified: Option<PathBuf> },
}

/// One run's cost.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// From before the spawn until it is reaped.
    pub wall_ms: f64,
    /// Of the runtime and all that it waited for.
    pub cpu_ms: f64,
    /// The largest resident set.
    pub rss_kb: i64,
}

impl Contender {
    /// An OCI runtime.
    pub fn oci(name: &str, program: &Path, top: &Path) -> Self {
        let kind = Kind::Oci { state: top.join("state").join(name) };
        Self { name: name.to_string(), kind, program: program.to_path_buf() }
    }

    /// The floor, in these hierarchies.
    pub fn floor(name: &str, program: &Path, v1: Vec<PathBuf>, unified: Option<PathBuf>) -> Self {
        Self { name: name.to_string(), kind: Kind::Floor { v1, unified }, program: program.to_path_buf() }
    }

    /// Whether it is no runtime.
    pub fn is_floor(&self) -> bool {
        matches!(self.kind, Kind::Floor { .. })
    }

    /// One whole container.
    pub fn run(&self, id: &str, variant: Variant, bundles: &Bundles) -> Result<Sample, String> {
        let mut command = Command::new(&self.program);
        match &self.kind {
            Kind::Oci { state } => {
                command.arg("--root").arg(state).args(["run", "--bundle"]).arg(bundles.of(variant)).arg(id)
            }
            Kind::Floor { v1, unified } => {
                let filter = if variant == Variant::Seccomp { &bundles.filter } else { Path::new("-") };
                let limits = if variant == Variant::Limits { "limits" } else { "-" };
                let unified = unified.as_deref().unwrap_or(Path::new("-"));
                command.arg("floor").arg(&bundles.root).arg(id).arg(filter).arg(limits).arg(unified).args(v1)
            }
        };
        timed(&mut command)
    }

    /// One command of a runtime's.
    pub fn command(&self, words: &[&str]) -> Result<Sample, String> {
        let Kind::Oci { state } = &self.kind else {
            return Err("the floor has no commands".into());
        };
        timed(Command::new(&self.program).arg("--root").arg(state).args(words))
    }

    /// Ends and forgets a container, if it is still there.
    pub fn clean_up(&self, id: &str) {
        if let Kind::Oci { state } = &self.kind {
            let mut command = Command::new(&self.program);
            command.arg("--root").arg(state).args(["delete", "--force", id]);
            // There may be nothing to delete.
            match quiet(&mut command).status() {
                Ok(_) | Err(_) => {}
            }
        }
    }
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Without `pre_exec` the standard library spawns as vfork(2) does, so that this process's size does not count.
fn timed(command: &mut Command) -> Result<Sample, String> {
    quiet(command);
    let begun = Instant::now();
    let child = command.spawn().map_err(|e| e.to_string())?;
    let pid = child.id() as i32;
    let pidfd = Pid::from_raw(pid).ok_or("no pid")?;
    let pidfd = pidfd_open(pidfd, PidfdFlags::empty()).map_err(|e| format!("pidfd_open: {e}"))?;
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
    let late = poll(&mut fds, Some(&limit)) == Ok(0);
    if late {
        pidfd_send_signal(&pidfd, Signal::KILL).map_err(|e| format!("kill: {e}"))?;
    }
    let usage = sys::wait4(pid).ok_or("wait4")?;
    let wall_ms = begun.elapsed().as_secs_f64() * 1e3;
    match (late, usage.status) {
        (true, _) => Err(format!("killed after {DEADLINE:?}")),
        (_, 0) => Ok(Sample { wall_ms, cpu_ms: usage.cpu_ms, rss_kb: usage.rss_kb }),
        (_, status) => Err(format!("wait status {status:#x}")),
    }
}

/// Runs a runtime once with its errors shown: why it failed.
pub fn complaint(contender: &Contender, id: &str, bundles: &Bundles) -> String {
    let mut command = Command::new(&contender.program);
    if let Kind::Oci { state } = &contender.kind {
        command.arg("--root").arg(state).args(["run", "--bundle"]).arg(bundles.of(Variant::Plain)).arg(id);
    }
    let output = command.stdin(Stdio::null()).output();
    output.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stderr).trim().to_string())
}
