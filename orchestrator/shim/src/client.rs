//! A blocking client: for tests, purge and tools. The daemon has an asynchronous one of its own.
#![forbid(unsafe_code)]

use crate::frame::{self, Decoder};
use crate::protocol::{
    Answer, Event, Failure, FailureKind, ProcessName, Reply, Request, SOCKET_FILE, VERSION, Verb,
};
use crate::sys::Call;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Connects to the shim of the pod directory, however long its path. Hello has not been said yet.
///
/// # Errors
/// `NotFound` if there is no socket; `Internal` with ECONNREFUSED if its shim is dead.
pub fn connect(pod_dir: &Path) -> Result<UnixStream, Failure> {
    let dir = rustix::fs::open(pod_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open({})", pod_dir.display()))?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd()))
        .call(|| format!("connect({}/{SOCKET_FILE})", pod_dir.display()))
}

/// A connection on which Hello has been said.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    decoder: Decoder,
    next_id: u64,
    events: VecDeque<Event>,
    /// The shim's process.
    pub shim: ProcessName,
}

impl Client {
    /// Connects and says Hello.
    ///
    /// # Errors
    /// As [`connect`]; `Unsupported` if the shim speaks another version.
    pub fn open(pod_dir: &Path) -> Result<Client, Failure> {
        let shim = ProcessName { pid: 0, start_time: 0, boot_id: String::new() };
        let mut client = Client {
            socket: connect(pod_dir)?,
            decoder: Decoder::default(),
            next_id: 1,
            events: VecDeque::new(),
            shim,
        };
        match client.call(Verb::Hello { version: VERSION }, &[])? {
            (Reply::Hello { process, .. }, _) => client.shim = process,
            (other, _) => return Err(Failure::new(FailureKind::Internal, format!("no Hello but {other:?}"))),
        }
        Ok(client)
    }

    /// Asks and waits for the answer, as long as it takes. Events on the way are kept for [`Client::event`].
    ///
    /// # Errors
    /// The shim's failure, or `Internal` if the connection breaks.
    pub fn call(&mut self, verb: Verb, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let id = self.next_id;
        self.next_id += 1;
        let bytes = frame::encode(&Request { id, verb }, fds.len())
            .map_err(|error| Failure::new(FailureKind::Invalid, error.to_string()))?;
        frame::send_all(self.socket.as_fd(), &bytes, fds).call(|| "sendmsg(shim)".into())?;
        loop {
            match self.receive(None)? {
                Some((Answer::Reply { id: answered, result }, fds)) if answered == id => {
                    return result.map(|reply| (reply, fds));
                }
                Some((Answer::Event(event), _)) => self.events.push_back(event),
                _ => {}
            }
        }
    }

    /// The next event, within `timeout`.
    ///
    /// # Errors
    /// `Internal` if the connection breaks.
    pub fn event(&mut self, timeout: Duration) -> Result<Option<Event>, Failure> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.receive(Some(deadline))? {
                Some((Answer::Event(event), _)) => return Ok(Some(event)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<(Answer, Vec<OwnedFd>)>, Failure> {
        let mut buffer = [0; 16 << 10];
        loop {
            let frame = self.decoder.next_frame::<Answer>();
            if let Some(frame) =
                frame.map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?
            {
                return Ok(Some(frame));
            }
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                let timeout =
                    Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
                match rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
                    Ok(0) => return Ok(None),
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(errno) => return Err(errno).call(|| "poll(shim)".into()),
                }
            }
            let received =
                frame::receive(self.socket.as_fd(), &mut buffer).call(|| "recvmsg(shim)".into())?;
            if received.count == 0 {
                return Err(Failure::new(FailureKind::Internal, "shim hung up"));
            }
            self.decoder.feed(&buffer[..received.count], received.fds);
        }
    }
}
