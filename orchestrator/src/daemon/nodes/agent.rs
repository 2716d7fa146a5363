//! A further node's agent as a process: started in its cgroup, found again after a restart of the daemon, and watched
//! by pidfd, which tells of its end at once.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use node::error::{Error, Kind, Result};
use node::shim_client::from_shim;
use node::{Cidr, Yard};
use rand::{RngCore, SeedableRng};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use shim::protocol::ProcessName;
use shim::spawn::{LaunchRequest, Spawned};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::daemon::fabric::API_PORT;

/// An agent's log is begun anew when it has grown to this.
const LOG_BYTES_MAX: u64 = 4 << 20;
/// What an agent gets of our environment.
const ENVIRONMENT: [&str; 3] = ["RUST_LOG", "RUST_BACKTRACE", "PODYARD_AGENT_FAULT"];

/// A living agent.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) process: ProcessName,
    /// When we started it; none if it was found.
    pub(super) started: Option<Instant>,
    pidfd: Arc<AsyncFd<OwnedFd>>,
}

impl Agent {
    /// The agent that the daemon before us started, if it lives.
    pub(super) fn find(yard: &Yard) -> Result<Option<Agent>> {
        let path = yard.agent_file();
        let what = || format!("read {}", path.display());
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| Error::io(what(), error))?,
        };
        // Half a file is as good as none: the process is found by its cgroup then, and ended.
        let Ok(process) = serde_json::from_slice::<ProcessName>(&bytes) else { return Ok(None) };
        let Some(pid) = Pid::from_raw(process.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            other => other.map_err(|errno| Error::io(format!("pidfd_open({})", process.pid), errno))?,
        };
        // In this order: what has the name now is what the descriptor names.
        if !process.exists() {
            return Ok(None);
        }
        let agent = Agent { process, started: None, pidfd: watched(pidfd)? };
        Ok(if agent.has_ended()? { None } else { Some(agent) })
    }

    /// Starts the agent of a node. Its cgroup has no processes. Blocks for some milliseconds.
    pub(super) fn start(whole: &Yard, yard: &Yard, binary: &Path) -> Result<Agent> {
        bound_log(&yard.agent_log(), 0)?;
        let words = words(whole, yard)?;
        let environment: Vec<_> = ENVIRONMENT
            .iter()
            .filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)))
            .collect();
        let Spawned { process, pidfd } = shim::spawn::launch(&LaunchRequest {
            binary,
            words: &words,
            environment: &environment,
            cgroup: &yard.agent_cgroup(),
            log: &yard.agent_log(),
        })
        .map_err(from_shim)?;
        let text = serde_json::json!(process).to_string();
        // A daemon that dies before this finds the process by its cgroup.
        write_private(&yard.agent_file(), text.as_bytes())?;
        Ok(Agent { process, started: Some(Instant::now()), pidfd: watched(pidfd)? })
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) -> Result<()> {
        self.pidfd.readable().await.map(drop).map_err(|error| Error::io("poll(pidfd)", error))
    }

    /// Whether it has ended already.
    pub(super) fn has_ended(&self) -> Result<bool> {
        let mut poll = [rustix::event::PollFd::new(&*self.pidfd, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready =
            rustix::event::poll(&mut poll, Some(&now)).map_err(|errno| Error::io("poll(pidfd)", errno))?;
        Ok(ready > 0)
    }
}

/// Begins the log anew when it has grown beyond `LOG_BYTES_MAX`; what is appended later goes to its new end.
pub(super) fn bound_log(path: &Path, spare: u64) -> Result<()> {
    let what = || format!("bound {}", path.display());
    match std::fs::metadata(path) {
        Ok(found) if found.len() + spare >= LOG_BYTES_MAX => {
            let file = std::fs::OpenOptions::new().write(true).open(path);
            file.and_then(|file| file.set_len(0)).map_err(|error| Error::io(what(), error))
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(what(), error)),
        _ => Ok(()),
    }
}

/// What the agent shows to the API server, and is asked with: made once, readable by root alone.
pub(super) fn ensure_token(yard: &Yard) -> Result<String> {
    let path = yard.token_file();
    match std::fs::read_to_string(&path) {
        Ok(token) => return Ok(token),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
    }
    let mut bytes = [0_u8; 32];
    rand::rngs::StdRng::from_os_rng().fill_bytes(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    write_private(&path, hex.as_bytes())?;
    Ok(hex)
}

/// The words that make `podyard` the agent of this node.
fn words(whole: &Yard, yard: &Yard) -> Result<Vec<OsString>> {
    let small = || Error::new(Kind::Invalid, format!("pod CIDR {}: too small", whole.pod_cidr));
    let gateway = whole.pod_cidr.nth(1).ok_or_else(small)?;
    let mut words: Vec<OsString> = vec!["agent".into()];
    let mut flag = |name: &str, value: OsString| words.extend([name.into(), value]);
    flag("--node", yard.node.clone().into());
    flag("--pod-cidr", yard.pod_cidr.to_string().into());
    flag("--api", format!("{gateway}:{API_PORT}").into());
    flag("--token-file", yard.token_file().into());
    flag("--data-dir", whole.data_dir.clone().into());
    flag("--run-dir", whole.run_dir.clone().into());
    flag("--log-dir", whole.log_dir.clone().into());
    flag("--first-cidr", whole.pod_cidr.to_string().into());
    flag("--cluster-cidr", whole.cluster_cidr.to_string().into());
    flag("--service-cidr", whole.service_cidr.to_string().into());
    // The host's own yard has no name on a command line: `--name podyard` is another one.
    if whole.cgroup_parent != Yard::host().cgroup_parent {
        flag("--name", whole.name.clone().into());
    }
    if whole.isolated {
        words.push("--isolated".into());
    }
    Ok(words)
}

fn watched(pidfd: OwnedFd) -> Result<Arc<AsyncFd<OwnedFd>>> {
    #[expect(
        deprecated,
        reason = "an OwnedFd stays open for as long as it is registered; register is unsafe"
    )]
    let watched = AsyncFd::try_new(pidfd);
    watched.map(Arc::new).map_err(|error| Error::io("watch pidfd", error))
}

/// A file that only root may read, whole or not at all.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file =
            std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        std::fs::rename(&new, path)
    };
    write().map_err(|error| Error::io(format!("write {}", path.display()), error))
}

/// The block of a node's pods, as its object says.
pub(super) fn pod_cidr(object: &api::Object) -> Result<Option<Cidr>> {
    let text = object.get_str("spec.podCIDR").filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(node::host::from_netns)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_yard_has_no_name() {
        let text = |whole: &Yard| {
            let yard = whole.of_node("n1", "10.244.1.0/24".parse().unwrap());
            let words: Vec<_> =
                words(whole, &yard).unwrap().into_iter().map(|word| word.into_string().unwrap()).collect();
            words.join(" ")
        };
        let host = text(&Yard::host());
        assert!(host.starts_with("agent --node n1 --pod-cidr 10.244.1.0/24 --api 10.244.0.1:6443"), "{host}");
        assert!(
            host.contains("--token-file /run/podyard/nodes/n1/token") && !host.contains("--name"),
            "{host}"
        );
        let other = text(&Yard::isolated("x").unwrap());
        assert!(
            other.ends_with("--name x --isolated") && other.contains("--run-dir /run/podyard-x "),
            "{other}"
        );
    }

    #[test]
    fn a_log_is_bounded_and_a_token_stays() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("agent.log");
        bound_log(&log, 0).unwrap();
        std::fs::write(&log, "x").unwrap();
        bound_log(&log, 0).unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"x");
        bound_log(&log, LOG_BYTES_MAX).unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"");
        let yard = Yard::beneath(dir.path(), "t").unwrap();
        std::fs::create_dir_all(&yard.run_dir).unwrap();
        ensure_token(&yard).unwrap();
        let token = std::fs::read(yard.token_file()).unwrap();
        ensure_token(&yard).unwrap();
        assert_eq!((token.len(), std::fs::read(yard.token_file()).unwrap()), (64, token));
    }
}
