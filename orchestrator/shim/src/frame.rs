//! Frames on a stream socket: four bytes of length (little endian), then JSON `{"fds":N,"body":…}`; the N
//! descriptors travel as `SCM_RIGHTS` with the frame's first byte.
//!
//! [`Decoder`] and [`encode`] are pure, so that blocking, polled and async ends share them; [`send`] and
//! [`receive`] are the one system call each of the ends needs.
#![forbid(unsafe_code)]

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Longest JSON of one frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Most descriptors with one frame.
pub const FDS_MAX: usize = 8;
const HEADER_BYTES: usize = 4;

/// What is wrong with a stream. The connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("frame of {0} bytes exceeds {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// Not the JSON of this protocol.
    #[error("frame is not of this protocol")]
    Malformed(#[source] serde_json::Error),
    /// The frame announces descriptors that did not come with it, or too many.
    #[error("frame announces {announced} descriptors, {received} arrived")]
    Descriptors {
        /// As the frame says.
        announced: usize,
        /// As arrived.
        received: usize,
    },
}

#[derive(Serialize)]
struct EnvelopeRef<'a, T> {
    fds: usize,
    body: &'a T,
}

#[derive(Deserialize)]
struct Envelope<T> {
    #[serde(default)]
    fds: usize,
    body: T,
}

/// The bytes of a frame that goes with `fds` descriptors.
///
/// # Errors
/// `TooLong`; `Descriptors` for more than [`FDS_MAX`].
pub fn encode<T: Serialize>(body: &T, fds: usize) -> Result<Vec<u8>, FrameError> {
    if fds > FDS_MAX {
        return Err(FrameError::Descriptors { announced: fds, received: FDS_MAX });
    }
    let mut bytes = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut bytes, &EnvelopeRef { fds, body }).map_err(FrameError::Malformed)?;
    let length = bytes.len() - HEADER_BYTES;
    match u32::try_from(length) {
        Ok(prefix) if length <= FRAME_BYTES_MAX => {
            bytes[..HEADER_BYTES].copy_from_slice(&prefix.to_le_bytes())
        }
        _ => return Err(FrameError::TooLong(length)),
    }
    Ok(bytes)
}

/// Cuts a stream into frames. Feed it what [`receive`] returned; take frames until there are none.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Adds what arrived.
    pub fn feed(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = OwnedFd>) {
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds);
    }

    /// The next whole frame with its descriptors, or none yet.
    ///
    /// # Errors
    /// The peer does not speak this protocol; drop the connection.
    pub fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, FrameError> {
        let Some(header) = self.bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*header) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let Some(json) = self.bytes.get(HEADER_BYTES..HEADER_BYTES + length) else { return Ok(None) };
        let envelope: Envelope<T> = serde_json::from_slice(json).map_err(FrameError::Malformed)?;
        let received = self.fds.len();
        if envelope.fds > FDS_MAX || envelope.fds > received {
            return Err(FrameError::Descriptors { announced: envelope.fds, received });
        }
        self.bytes.drain(..HEADER_BYTES + length);
        if self.bytes.is_empty() {
            // A large frame must not cost memory for ever.
            self.bytes.shrink_to(4096);
        }
        Ok(Some((envelope.body, self.fds.drain(..envelope.fds).collect())))
    }
}

/// Sends bytes, and with the first of them the descriptors. Returns how many bytes went; the descriptors went with
/// them, so the rest is sent without.
///
/// # Errors
/// `EAGAIN` on a full non-blocking socket: nothing was sent. `EPIPE` if the peer is gone; never a SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))
}

/// Sends a whole frame on a blocking socket.
///
/// # Errors
/// As [`send`].
pub fn send_all(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut sent = send(socket, bytes, fds)?;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += send(socket, rest, &[])?;
    }
    Ok(())
}

/// What one receive brought. No bytes: the peer has hung up.
#[derive(Debug, Default)]
pub struct Received {
    /// How many bytes of the buffer are filled.
    pub count: usize,
    /// Descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Receives once into `buffer`.
///
/// # Errors
/// `EAGAIN` if a non-blocking socket has nothing.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> rustix::io::Result<Received> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    Ok(Received { count: message.bytes, fds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Request, Verb};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn frames_arrive_however_they_are_cut() {
        let requests: Vec<_> = (0..3).map(|id| Request { id, verb: Verb::Hello { version: 1 } }).collect();
        let stream: Vec<u8> = requests.iter().flat_map(|request| encode(request, 0).unwrap()).collect();
        for step in 1..stream.len() {
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in stream.chunks(step) {
                decoder.feed(piece, []);
                while let Some((request, _)) = decoder.next_frame::<Request>().unwrap() {
                    got.push(request);
                }
            }
            assert_eq!(got, requests, "pieces of {step}");
        }
    }

    #[test]
    fn descriptors_belong_to_their_frame() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (file, other) = UnixStream::pair().unwrap();
        let first = encode(&1u64, 0).unwrap();
        let second = encode(&2u64, 2).unwrap();
        send_all(ours.as_fd(), &first, &[]).unwrap();
        send_all(ours.as_fd(), &second, &[file.as_fd(), other.as_fd()]).unwrap();
        drop(ours);
        let mut decoder = Decoder::default();
        let mut buffer = [0; 7];
        let mut got = Vec::new();
        loop {
            let received = receive(theirs.as_fd(), &mut buffer).unwrap();
            if received.count == 0 {
                break;
            }
            decoder.feed(&buffer[..received.count], received.fds);
            while let Some((number, fds)) = decoder.next_frame::<u64>().unwrap() {
                got.push((number, fds.len()));
            }
        }
        assert_eq!(got, [(1, 0), (2, 2)]);
    }

    #[test]
    fn refuses_what_is_not_the_protocol() {
        let mut decoder = Decoder::default();
        decoder.feed(&u32::MAX.to_le_bytes(), []);
        assert!(matches!(decoder.next_frame::<u64>(), Err(FrameError::TooLong(_))));
        let mut decoder = Decoder::default();
        decoder.feed(&[2, 0, 0, 0, b'{', b'{'], []);
        assert!(matches!(decoder.next_frame::<u64>(), Err(FrameError::Malformed(_))));
        let mut decoder = Decoder::default();
        decoder.feed(&encode(&1u64, 1).unwrap(), []);
        assert!(matches!(
            decoder.next_frame::<u64>(),
            Err(FrameError::Descriptors { announced: 1, received: 0 })
        ));
    }
}
