//! Workers: forks of the shim that may block, each with a deadline.
//!
//! A worker has the shim's memory as of its birth and only the descriptors it was given. It sends one outcome with
//! descriptors and ends. Killed or crashed, it sends nothing, and the shim sees its end.
#![forbid(unsafe_code)]

use crate::frame::{self, Decoder};
use crate::protocol::{ExitRecord, Failure, FailureKind, ProcessName, Step};
use crate::sys::{self, Call, Forked, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a worker has done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Fds: pidfd, start gate.
    Created { process: ProcessName, steps: Vec<Step> },
    /// Nothing was made for the container: there is nothing to undo.
    Refused(Failure),
    /// Fds: pidfd, and the terminal's master if there is one.
    Executing { process: ProcessName },
    /// The record is written, or the reason why not.
    Recorded { record: ExitRecord, stored: std::result::Result<(), Failure> },
    /// What was asked.
    Done,
}

/// An outcome, with the descriptors that belong to it.
pub(crate) type Work = Result<(Outcome, Vec<OwnedFd>)>;

/// A running worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub pid: i32,
    pidfd: OwnedFd,
    channel: OwnedFd,
    decoder: Decoder,
    /// None once it has been killed.
    pub deadline: Option<Instant>,
}

impl Worker {
    /// Forks. The child keeps `keep` and runs `body`; its outcome comes by [`Worker::receive`].
    pub(crate) fn spawn(
        name: &CStr,
        deadline: Duration,
        keep: &[BorrowedFd<'_>],
        body: impl FnOnce() -> Work,
    ) -> Result<Worker> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .call(|| "socketpair(AF_UNIX, SOCK_STREAM)".into())?;
        rustix::io::ioctl_fionbio(&ours, true).call(|| "ioctl(FIONBIO)".into())?;
        let shim = std::process::id().cast_signed();
        match sys::fork(0, None)? {
            Forked::Parent { pid, pidfd } => Ok(Worker {
                pid,
                pidfd,
                channel: ours,
                decoder: Decoder::default(),
                deadline: Some(Instant::now() + deadline),
            }),
            Forked::Child => {
                let keep: Vec<RawFd> =
                    keep.iter().map(AsRawFd::as_raw_fd).chain([theirs.as_raw_fd()]).collect();
                sys::exit_now(work(name, shim, &keep, theirs.as_fd(), body))
            }
        }
    }

    pub(crate) fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// What it has sent; none if it has not yet.
    pub(crate) fn receive(&mut self) -> Option<Work> {
        let mut buffer = [0; 4096];
        // An error or the end of file is a crashed worker, which the shim learns from its end.
        while let Ok(received) = frame::receive(self.channel.as_fd(), &mut buffer) {
            if received.count == 0 {
                break;
            }
            self.decoder.feed(&buffer[..received.count], received.fds);
        }
        match self.decoder.next_frame::<Result<Outcome>>() {
            Ok(None) => None,
            Ok(Some((result, fds))) => Some(result.map(|outcome| (outcome, fds))),
            Err(error) => {
                Some(Err(Failure::new(FailureKind::Internal, format!("worker's outcome: {error}"))))
            }
        }
    }

    /// Kills it for good. It is reaped when it ends.
    pub(crate) fn kill(&mut self) {
        self.deadline = None;
        // ESRCH is success: it is a zombie already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

fn work(name: &CStr, shim: i32, keep: &[RawFd], channel: BorrowedFd<'_>, body: impl FnOnce() -> Work) -> i32 {
    let prepared =
        sys::close_all_but(keep).and_then(|()| sys::die_with_parent(shim)).and_then(|()| sys::set_name(name));
    let work = prepared.and_then(|()| {
        // A panic must not unwind into the copy of the shim's loop.
        catch_unwind(AssertUnwindSafe(body))
            .unwrap_or_else(|_| Err(Failure::new(FailureKind::Internal, "worker panicked; see shim.log")))
    });
    let (result, fds) = match work {
        Ok((outcome, fds)) => (Ok(outcome), fds),
        Err(failure) => (Err(failure), Vec::new()),
    };
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let sent = frame::encode(&result, fds.len())
        .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
        .and_then(|bytes| {
            frame::send_all(channel, &bytes, &borrowed).call(|| "sendmsg(worker channel)".into())
        });
    i32::from(sent.is_err())
}
