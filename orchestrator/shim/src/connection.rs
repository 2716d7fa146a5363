//! A client's connection: frames in, frames out, never waiting.
#![forbid(unsafe_code)]

use crate::frame::{self, Decoder};
use crate::protocol::{Answer, Failure, FailureKind, Request};
use crate::sys::{Call, Result};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most answers waiting for a client that does not read; then it is dropped.
const OUTBOX_FRAMES_MAX: usize = 1024;

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    decoder: Decoder,
    outbox: VecDeque<Outgoing>,
    /// Hello has been said.
    pub greeted: bool,
    /// Wants exit events.
    pub subscribed: bool,
}

impl Connection {
    /// Takes over an accepted, non-blocking socket.
    ///
    /// # Errors
    /// `Denied` unless the peer is root: the socket's mode already says so, but a descriptor can be passed on.
    pub(crate) fn new(socket: OwnedFd) -> Result<Connection> {
        let peer =
            rustix::net::sockopt::socket_peercred(&socket).call(|| "getsockopt(SO_PEERCRED)".into())?;
        if !peer.uid.is_root() {
            return Err(Failure::new(FailureKind::Denied, format!("client has uid {}", peer.uid.as_raw())));
        }
        Ok(Connection {
            socket,
            decoder: Decoder::default(),
            outbox: VecDeque::new(),
            greeted: false,
            subscribed: false,
        })
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn has_outgoing(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Reads what is there, a bounded amount of it. `Ok(false)`: the client has hung up.
    pub(crate) fn read(&mut self) -> Result<bool> {
        let mut buffer = [0; 16 << 10];
        match frame::receive(self.socket.as_fd(), &mut buffer) {
            Ok(received) => {
                self.decoder.feed(&buffer[..received.count], received.fds);
                Ok(received.count > 0)
            }
            Err(Errno::AGAIN) => Ok(true),
            Err(Errno::CONNRESET) => Ok(false),
            Err(errno) => Err(errno).call(|| "recvmsg(client)".into()),
        }
    }

    /// The next whole request.
    pub(crate) fn next_request(&mut self) -> Result<Option<(Request, Vec<OwnedFd>)>> {
        self.decoder.next_frame().map_err(|error| Failure::new(FailureKind::Invalid, error.to_string()))
    }

    /// Queues an answer and sends what the socket takes.
    pub(crate) fn push(&mut self, answer: &Answer, fds: Vec<OwnedFd>) -> Result<()> {
        if self.outbox.len() >= OUTBOX_FRAMES_MAX {
            return Err(Failure::new(FailureKind::Busy, "client does not read its answers"));
        }
        let bytes = frame::encode(answer, fds.len())
            .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        self.outbox.push_back(Outgoing { bytes, sent: 0, fds });
        self.flush()
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while let Some(first) = self.outbox.front_mut() {
            let rest = first.bytes.get(first.sent..).unwrap_or_default();
            let fds: Vec<_> = first.fds.iter().map(AsFd::as_fd).collect();
            match frame::send(self.socket.as_fd(), rest, &fds) {
                Ok(count) => {
                    first.sent += count;
                    first.fds.clear();
                    if first.sent == first.bytes.len() {
                        self.outbox.pop_front();
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno).call(|| "sendmsg(client)".into()),
            }
        }
        Ok(())
    }
}
