//! What parent and child say to each other while a container is made.
//!
//! ```text
//!   parent (create)                              child (init.rs, exec.rs)
//!      │                                             │
//!      ├──────────────── clone3 ───────────────────▶ │ born in its cgroup and namespaces
//!      │  write uid_map, gid_map                     │
//!      ├─ Go ──────────────────────────────────────▶ │ namespaces, mounts …
//!      │ ◀───────────────────────────────── Ask{what}┤ what takes the host's rights or namespaces:
//!      │  does it                                    │ maps of IDs, clocks, mounts, hooks outside
//!      ├─ Done ────────────────────────────────────▶ │ … pivot_root …
//!      │                                             │
//!      │ ◀──────────────────── Ready{warnings} [pty] ┤ every step done but the last
//!      │            or ◀────── Failed{error}, exits  │
//!      │                                             │
//!   create returns: Created{pid, pidfd, StartGate}   │ waits, holding nothing of the host
//!      │                                             │
//!   StartGate::start                                 │
//!      ├─ Start ───────────────────────────────────▶ │ seccomp, execve
//!      │ ◀─────────────────────── end of file: it is running (the socket is close-on-exec)
//!      │            or ◀────── Failed{error}, exits  │
//! ```
//!
//! The channel is a pair of `SOCK_SEQPACKET` sockets: one message, one packet, at most
//! [`MESSAGE_BYTES_MAX`]. End of file means that the other side is gone: the child then exits.
//! For `podyard-oci`, where `create` and `start` are different processes, the child is given a
//! listening socket too, and takes Start from the first who connects.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::{Deserialize, Serialize};

use crate::error::{Call, Error, Kind, Result};

/// Longest message. A longer error text is cut by its sender.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Longest warning or error text sent.
const TEXT_BYTES_MAX: usize = 4 * 1024;

/// From parent to child.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// User and group IDs are mapped: begin.
    Go,
    /// What was asked for is done. If it cannot be, the child is killed instead.
    Done,
    /// Run the program.
    Start,
}

/// What the child cannot do itself, having left the caller's namespaces or rights behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// What comes before Go, unasked: the maps of a user namespace that it was born in.
    Begin,
    /// Write the maps of the user namespace that it has made.
    MapIds,
    /// Give it the limits and priorities of its plan, which a user namespace has no right to raise.
    Limits,
    /// Fetch this descriptor of its, and send it to the agent of its seccomp filter.
    Listener(i32),
    /// Set the clocks of the time namespace that it has made, before it enters.
    TimeOffsets,
    /// Run the hooks that belong between the mounts and pivot_root, in the caller's namespaces.
    RuntimeHooks,
    /// Make the source of the plan's mount with this number, in its mount namespace.
    Source(usize),
}

/// From child to parent.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Everything is in place. With a terminal, its master end is attached.
    Ready {
        /// What was asked for and could only be done in part.
        warnings: Vec<String>,
    },
    /// The child waits until this is done.
    Ask(Ask),
    /// Not the sender goes on, but a process that it made, whose pidfd is attached: its PID namespace takes one.
    Reborn {
        /// As the parent numbers it.
        pid: i32,
    },
    /// A step failed; the child exits.
    Failed(Error),
}

/// One end of the channel.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends, both close-on-exec and above the standard descriptors.
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .call(|| "socketpair(AF_UNIX, SOCK_SEQPACKET)".into())?;
        Ok((Self(above_stdio(a)?), Self(above_stdio(b)?)))
    }

    /// The end that `fd` is.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The descriptor, to be passed to another process.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Sends one message, with a descriptor if given. Blocks.
    pub(crate) fn send<M: Serialize>(&self, message: &M, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let bytes = serde_json::to_vec(message)
            .map_err(|e| Error::new(Kind::Internal, format!("encode a message: {e}")))?;
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &control[..] };
        loop {
            let sent = sendmsg::<()>(
                self.0.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                Err(nix::errno::Errno::EINTR) => {}
                other => return other.call(|| "sendmsg(channel)".into()).map(drop),
            }
        }
    }

    /// Receives one message and its descriptor; `None` at end of file. Blocks.
    pub(crate) fn receive<M: for<'a> Deserialize<'a>>(&self) -> Result<Option<(M, Option<OwnedFd>)>> {
        // The length first: most messages have some tens of bytes.
        let mut buffer = vec![0; self.next_length()?.min(MESSAGE_BYTES_MAX)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let (len, fd) = loop {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received =
                recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
            let message = match received {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other.call(|| "recvmsg(channel)".into())?,
            };
            let mut fd = None;
            for control in message.cmsgs().call(|| "recvmsg(channel)".into())? {
                if let ControlMessageOwned::ScmRights(fds) = control {
                    // All are ours now; one is expected, and any others close here.
                    let mut owned = fds.into_iter().map(crate::sys::own).collect::<Vec<_>>().into_iter();
                    fd = owned.next();
                }
            }
            break (message.bytes, fd);
        };
        if len == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&buffer[..len])
            .map_err(|e| Error::new(Kind::Internal, format!("decode a message: {e}")))?;
        Ok(Some((message, fd)))
    }
}

impl Channel {
    /// Waits for a message, and leaves it there; 0 at end of file. Source: recv(2), `MSG_TRUNC`.
    fn next_length(&self) -> Result<usize> {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_CMSG_CLOEXEC;
        loop {
            match recvmsg::<()>(self.0.as_raw_fd(), &mut [], None, flags) {
                Err(nix::errno::Errno::EINTR) => {}
                other => return other.call(|| "recvmsg(channel)".into()).map(|message| message.bytes),
            }
        }
    }

    /// Asks the parent for something, and returns once it is done, with the descriptor that it made.
    pub(crate) fn ask(&self, what: Ask) -> Result<Option<OwnedFd>> {
        // Not sendmsg(2): a seccomp filter may ask an agent about that, and the agent is what is asked for here.
        let bytes = serde_json::to_vec(&Report::Ask(what))
            .map_err(|e| Error::new(Kind::Internal, format!("encode a message: {e}")))?;
        rustix::io::write(&self.0, &bytes).call(|| "write(channel)".into())?;
        match self.receive::<Order>()? {
            Some((Order::Done, fd)) => Ok(fd),
            // Told why not, it would be killed before it could say so.
            _ => crate::sys::exit_now(127),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Report {
    /// A failure, its text bounded.
    pub(crate) fn failed(error: Error) -> Self {
        Self::Failed(error.bounded(TEXT_BYTES_MAX))
    }

    /// Success, its warnings bounded in number and length.
    pub(crate) fn ready(mut warnings: Vec<String>) -> Self {
        warnings.truncate(6);
        for warning in &mut warnings {
            crate::error::cut(warning, TEXT_BYTES_MAX);
        }
        Self::Ready { warnings }
    }
}

/// Moves a descriptor out of the way of 0, 1 and 2, which the child overwrites.
pub(crate) fn above_stdio(fd: OwnedFd) -> Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    rustix::io::fcntl_dupfd_cloexec(&fd, 3).call(|| format!("fcntl({}, F_DUPFD)", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_cross_and_end_of_file_is_seen() {
        let (a, b) = Channel::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        a.send(&Report::ready(vec!["w".into()]), Some(null.as_fd())).unwrap();
        let (report, fd) = b.receive::<Report>().unwrap().unwrap();
        assert_eq!(report, Report::Ready { warnings: vec!["w".into()] });
        assert!(fd.is_some());
        drop(a);
        assert!(b.receive::<Report>().unwrap().is_none());
    }

    #[test]
    fn any_bytes_are_an_error_and_not_a_panic() {
        let (a, b) = Channel::pair().unwrap();
        let whole = serde_json::to_vec(&Report::ready(vec!["a warning".into()])).unwrap();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..2000 {
            // xorshift: any bytes will do, but the same each time.
            let mut next = || {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed as usize
            };
            let mut bytes = whole.clone();
            for _ in 0..=round % 4 {
                let at = next() % bytes.len();
                bytes[at] = next() as u8;
            }
            bytes.truncate(1 + next() % bytes.len());
            rustix::net::send(&b, &bytes, rustix::net::SendFlags::empty()).unwrap();
            match a.receive::<Report>() {
                Ok(Some(_)) | Err(_) => {}
                Ok(None) => panic!("a message taken for the end of file"),
            }
        }
    }

    #[test]
    fn long_texts_fit_a_packet() {
        let (a, b) = Channel::pair().unwrap();
        let long = "ä\"\\\n".repeat(10_000);
        a.send(&Report::ready(vec![long.clone(); 100]), None).unwrap();
        assert!(b.receive::<Report>().unwrap().is_some());
        a.send(&Report::failed(Error::new(Kind::Internal, long)), None).unwrap();
        assert!(matches!(b.receive::<Report>().unwrap().unwrap().0, Report::Failed(_)));
    }
}
