//! The agent that decides for a filter: how it is given the descriptor to listen with.
#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::json;

use crate::error::{Call, Error, Result, Step};
use crate::state::{Identity, Status};

/// Who decides what a filter leaves open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The socket where it takes descriptors.
    pub(super) path: PathBuf,
    /// Handed to it as it is.
    pub(super) metadata: String,
}

/// What the descriptor is called. Source: runtime-spec, config-linux.md, "The Container Process State".
const FD_NAME: &str = "seccompFd";

impl Agent {
    /// Fetches descriptor `number` of process `pid`, and sends it to the agent with the container's state.
    ///
    /// # Errors
    /// `ECONNREFUSED`, `ENOENT` if nobody listens; `EPERM` without `CAP_SYS_PTRACE` over the process.
    ///
    /// Source: pidfd_getfd(2), since 5.6.
    pub(crate) fn introduce(
        &self,
        (pid, pidfd, number): (i32, &OwnedFd, i32),
        identity: &Identity,
        status: Status,
    ) -> Result<()> {
        let give = || -> Result<()> {
            let listener =
                rustix::process::pidfd_getfd(pidfd, number, rustix::process::PidfdGetfdFlags::empty())
                    .call(|| format!("pidfd_getfd({pid}, {number})"))?;
            let path = &self.path;
            let socket =
                std::os::unix::net::UnixStream::connect(path).call(|| format!("connect({path:?})"))?;
            let state = json!({
                "ociVersion": identity.version,
                "fds": [FD_NAME],
                "pid": pid,
                "metadata": self.metadata,
                "state": identity.state(status, Some(pid)),
            })
            .to_string();
            let fds = [listener.as_raw_fd()];
            let control = [ControlMessage::ScmRights(&fds)];
            let data = [std::io::IoSlice::new(state.as_bytes())];
            let sent = sendmsg::<()>(socket.as_raw_fd(), &data, &control, MsgFlags::MSG_NOSIGNAL, None)
                .call(|| format!("sendmsg({path:?})"))?;
            match sent == state.len() {
                true => Ok(()),
                false => Err(Error::sys(format!("sendmsg({path:?})"), nix::errno::Errno::EMSGSIZE)),
            }
        };
        give().step("linux.seccomp.listenerPath")
    }
}
