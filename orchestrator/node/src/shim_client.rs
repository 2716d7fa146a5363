//! The daemon's end of a shim's socket.
//!
//! One task owns the connection: it sends requests, matches answers to them by id, and passes events on.
//! When the shim hangs up (it died, or it does not speak our protocol) every open call fails with `Busy` and the
//! events end; the worker then looks at the kernel for what is true.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use shim::frame::{self, Decoder};
use shim::protocol::{
    Answer, Event, Failure, FailureKind, PodState, ProcessName, Reply, Request, SOCKET_FILE, VERSION, Verb,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Kind, Result};

/// Requests under way at most; more wait for their turn.
const REQUESTS_MAX: usize = 64;
/// Events kept for a slow reader; those that overflow are lost, and State tells them again.
const EVENTS_MAX: usize = 64;

type Answered = Result<(Reply, Vec<OwnedFd>)>;

struct Call {
    verb: Verb,
    fds: Vec<OwnedFd>,
    answer: oneshot::Sender<Answered>,
}

/// A connection to a pod's shim. Clones share it; it closes when the last one is dropped.
#[derive(Clone, Debug)]
pub struct ShimClient {
    calls: mpsc::Sender<Call>,
    process: Arc<ProcessName>,
}

impl ShimClient {
    /// Connects to the shim of this pod directory and greets. The receiver gets the shim's events, and ends with the connection.
    ///
    /// # Errors
    /// `NotFound` if nobody listens: the shim is dead or was never there. `Unsupported` for another version.
    pub async fn connect(pod_dir: &Path) -> Result<(ShimClient, mpsc::Receiver<Event>)> {
        let what = || format!("connect to the shim in {}", pod_dir.display());
        // From inside: a socket address holds 107 bytes of path, and the pod directory may be longer.
        let dir =
            rustix::fs::open(pod_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| Error::io(what(), errno))?;
        let socket = format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd());
        let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::with(Kind::NotFound, what(), error),
            _ => Error::io(what(), error),
        })?;
        let (calls, inbox) = mpsc::channel(REQUESTS_MAX);
        let (events, outbox) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(Connection::new(stream, events).run(inbox));
        let nobody = ProcessName { pid: 0, start_time: 0, boot_id: String::new() };
        let mut client = ShimClient { calls, process: Arc::new(nobody) };
        match client.call(Verb::Hello { version: VERSION }, vec![]).await? {
            (Reply::Hello { version: VERSION, process, .. }, _) => client.process = Arc::new(process),
            (other, _) => {
                let text = format!("the shim in {} answers hello with {other:?}", pod_dir.display());
                return Err(Error::new(Kind::Unsupported, text));
            }
        }
        Ok((client, outbox))
    }

    /// The shim's process.
    pub fn process(&self) -> &ProcessName {
        &self.process
    }

    /// Whether the shim has hung up.
    pub fn is_closed(&self) -> bool {
        self.calls.is_closed()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The shim's refusal, or `Busy` if it hung up before answering.
    ///
    /// # Cancellation
    /// The shim carries the request out all the same.
    pub async fn call(&self, verb: Verb, fds: Vec<OwnedFd>) -> Answered {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call { verb, fds, answer }).await.map_err(|_| hung_up())?;
        answered.await.map_err(|_| hung_up())?
    }

    /// The pod as its shim sees it.
    ///
    /// # Errors
    /// As [`ShimClient::call`].
    pub async fn state(&self) -> Result<PodState> {
        self.expect_state(Verb::State).await
    }

    /// The pod as it is now; what happens later comes as events.
    ///
    /// # Errors
    /// As [`ShimClient::call`].
    pub async fn subscribe(&self) -> Result<PodState> {
        self.expect_state(Verb::Subscribe).await
    }

    async fn expect_state(&self, verb: Verb) -> Result<PodState> {
        match self.call(verb, vec![]).await? {
            (Reply::State(state), _) => Ok(state),
            (other, _) => Err(unexpected(&other)),
        }
    }
}

/// An answer of the wrong kind: a bug of the shim's.
pub(crate) fn unexpected(reply: &Reply) -> Error {
    Error::new(Kind::Internal, format!("shim gave an answer of the wrong kind: {reply:?}"))
}

fn hung_up() -> Error {
    Error::new(Kind::Busy, "shim hung up")
}

/// A shim's refusal in this crate's terms.
pub fn from_shim(failure: Failure) -> Error {
    let kind = match failure.kind {
        FailureKind::NotFound => Kind::NotFound,
        FailureKind::AlreadyExists => Kind::AlreadyExists,
        FailureKind::Conflict => Kind::Conflict,
        FailureKind::Invalid => Kind::Invalid,
        FailureKind::Unsupported => Kind::Unsupported,
        FailureKind::Busy | FailureKind::Timeout => Kind::Busy,
        FailureKind::Denied => Kind::Denied,
        FailureKind::Internal => Kind::Internal,
    };
    Error::new(kind, failure.message)
}

struct Connection {
    stream: UnixStream,
    events: mpsc::Sender<Event>,
    decoder: Decoder,
    pending: HashMap<u64, oneshot::Sender<Answered>>,
    next_id: u64,
}

impl Connection {
    fn new(stream: UnixStream, events: mpsc::Sender<Event>) -> Connection {
        Connection { stream, events, decoder: Decoder::default(), pending: HashMap::new(), next_id: 1 }
    }

    /// Until the shim hangs up or nobody holds a client any more.
    async fn run(mut self, mut inbox: mpsc::Receiver<Call>) {
        let mut buffer = vec![0; 8 << 10];
        loop {
            let done = tokio::select! {
                call = inbox.recv() => match call {
                    Some(call) => self.send(call).await,
                    // Nobody can ask any more: who only waits for events keeps a client.
                    None => return,
                },
                ready = self.stream.readable() => ready.map_err(|_| ()).and_then(|()| self.receive(&mut buffer)),
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn send(&mut self, call: Call) -> Result<(), ()> {
        let id = self.next_id;
        self.next_id += 1;
        let bytes = match frame::encode(&Request { id, verb: call.verb }, call.fds.len()) {
            Ok(bytes) => bytes,
            Err(error) => {
                // Only this request is at fault. The asker may have left.
                let _ = call.answer.send(Err(Error::with(Kind::Invalid, "encode request", error)));
                return Ok(());
            }
        };
        self.pending.insert(id, call.answer);
        let mut sent = 0;
        while sent < bytes.len() {
            self.stream.writable().await.map_err(|_| ())?;
            // The descriptors travel with the first byte.
            let fds: Vec<_> = if sent == 0 { call.fds.iter().map(AsFd::as_fd).collect() } else { vec![] };
            let attempt = self
                .stream
                .try_io(Interest::WRITABLE, || Ok(frame::send(self.stream.as_fd(), &bytes[sent..], &fds)?));
            match attempt {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Err(()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<(), ()> {
        let received =
            match self.stream.try_io(Interest::READABLE, || Ok(frame::receive(self.stream.as_fd(), buffer)?))
            {
                Ok(received) if received.count == 0 => return Err(()),
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(()),
            };
        self.decoder.feed(&buffer[..received.count], received.fds);
        loop {
            match self.decoder.next_frame::<Answer>() {
                Ok(Some((Answer::Reply { id, result }, fds))) => {
                    if let Some(asker) = self.pending.remove(&id) {
                        // The asker may have left.
                        let _ = asker.send(result.map(|reply| (reply, fds)).map_err(from_shim));
                    }
                }
                Ok(Some((Answer::Event(event), _))) => {
                    // A full channel: the reader has a wake-up waiting already.
                    let _ = self.events.try_send(event);
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "shim does not speak our protocol");
                    return Err(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A shim that answers hello, then each State with an empty pod and an event, until told to stop.
    fn fake_shim(path: &Path) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut decoder = Decoder::default();
            let mut buffer = [0; 512];
            let answer = |answer: &Answer| {
                frame::send_all(stream.as_fd(), &frame::encode(answer, 0).unwrap(), &[]).unwrap();
            };
            loop {
                let received = frame::receive(stream.as_fd(), &mut buffer).unwrap();
                decoder.feed(&buffer[..received.count], received.fds);
                while let Some((request, _)) = decoder.next_frame::<Request>().unwrap() {
                    let result = match request.verb {
                        Verb::Hello { .. } => Ok(Reply::Hello {
                            version: VERSION,
                            pod_uid: "u".into(),
                            process: ProcessName { pid: 7, start_time: 1, boot_id: "b".into() },
                        }),
                        Verb::State => Ok(Reply::State(PodState::default())),
                        Verb::Subscribe => {
                            answer(&Answer::Event(Event::ExecExited { exec: 1, code: 3 }));
                            Err(Failure::new(FailureKind::Conflict, "no"))
                        }
                        _ => return,
                    };
                    answer(&Answer::Reply { id: request.id, result });
                }
            }
        })
    }

    #[tokio::test]
    async fn calls_events_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.sock");
        assert_eq!(ShimClient::connect(dir.path()).await.unwrap_err().kind(), Kind::NotFound);
        let thread = fake_shim(&path);
        let (client, mut events) = ShimClient::connect(dir.path()).await.unwrap();
        assert_eq!(client.process().pid, 7);
        let (one, two) = tokio::join!(client.state(), client.state());
        assert_eq!(one.unwrap(), two.unwrap());
        assert_eq!(client.subscribe().await.unwrap_err().kind(), Kind::Conflict);
        assert_eq!(events.recv().await, Some(Event::ExecExited { exec: 1, code: 3 }));
        assert_eq!(client.call(Verb::Shutdown, vec![]).await.unwrap_err().kind(), Kind::Busy);
        assert_eq!(events.recv().await, None);
        thread.join().unwrap();
        assert_eq!(ShimClient::connect(dir.path()).await.unwrap_err().kind(), Kind::NotFound);
    }
}
