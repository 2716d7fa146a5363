//! Running another program in a container, through the pod's shim.
//!
//! Each exec has a connection of its own: the shim tells that connection how the program ended, and an exec whose
//! asker has left is killed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;
use shim::protocol::{Event, Exec, Reply, Target, Verb};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Result};
use crate::plan::Run;
use crate::pod::{Pod, id};
use crate::shim_client::{ShimClient, unexpected};

const SIGKILL: i32 = 9;

/// What is connected to the program.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Streams {
    /// Its input; else it reads nothing.
    pub stdin: bool,
    /// Its output; else it is dropped.
    pub stdout: bool,
    /// Its errors; else they are dropped.
    pub stderr: bool,
    /// A terminal for all three.
    pub tty: bool,
}

/// A program that runs. Dropping it kills the program.
#[derive(Debug)]
pub struct Session {
    /// Dropped to tell the program that its input ended.
    pub stdin: Option<Input>,
    /// Everything from the terminal, if there is one.
    pub stdout: Option<Output>,
    /// None with a terminal.
    pub stderr: Option<Output>,
    /// Changes the terminal's size, if there is one.
    pub terminal: Option<Terminal>,
    /// How it ends.
    pub exit: Exit,
}

/// The end of a program. Dropping it kills the program.
#[derive(Debug)]
pub struct Exit(oneshot::Receiver<Result<i32>>);

impl Exit {
    /// The exit code; 128 + n for a death by signal n.
    ///
    /// # Errors
    /// `Busy` if the shim died: nobody knows.
    pub async fn wait(self) -> Result<i32> {
        self.0.await.map_err(|_| Error::new(Kind::Busy, "the pod's shim is gone"))?
    }
}

/// Starts `command` in a running container.
///
/// # Errors
/// The shim's refusal: the container does not run, or has no such program.
pub async fn exec(pod: &Pod, run: &Run, command: &[String], streams: Streams) -> Result<Session> {
    let (client, mut events) = ShimClient::connect(&pod.paths().dir).await?;
    let process = json!({ "args": command, "terminal": streams.tty });
    let mut session_in = None;
    let mut session_out = None;
    let mut session_err = None;
    let mut fds = Vec::new();
    if !streams.tty {
        let (theirs, ours) = pipe_pair()?;
        fds.push(theirs);
        session_in =
            streams.stdin.then(|| pipe::Sender::from_owned_fd(ours)).transpose().map_err(pipe_error)?;
        for (wanted, slot) in [(streams.stdout, &mut session_out), (streams.stderr, &mut session_err)] {
            let (ours, theirs) = pipe_pair()?;
            fds.push(if wanted { theirs } else { null()? });
            *slot = wanted.then(|| pipe::Receiver::from_owned_fd(ours)).transpose().map_err(pipe_error)?;
        }
    }
    let verb = Verb::Exec(Box::new(Exec { container: id(run), process, deadline_ms: 0 }));
    let (reply, fds) = client.call(verb, fds).await?;
    let Reply::Executing { exec: number, .. } = reply else { return Err(unexpected(&reply)) };
    let terminal = if streams.tty { fds.into_iter().nth(1).map(Terminal::new).transpose()? } else { None };

    let (mut tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let end = async {
            loop {
                match events.recv().await {
                    Some(Event::ExecExited { exec, code }) if exec == number => return Some(code),
                    Some(_) => {}
                    None => return None,
                }
            }
        };
        tokio::select! {
            // A hang-up tells nothing: dropping the sender says so.
            code = end => if let Some(code) = code {
                // The asker may have left.
                let _ = tell.send(Ok(code));
            },
            () = tell.closed() => {
                let kill = Verb::Kill { target: Target::Exec(number), signal: SIGKILL };
                if let Err(error) = client.call(kill, vec![]).await {
                    tracing::debug!(%error, "kill abandoned exec");
                }
            }
        }
    });
    let stdin = match &terminal {
        Some(terminal) if streams.stdin => Some(Input::Terminal(terminal.clone())),
        _ => session_in.map(Input::Pipe),
    };
    let stdout = match &terminal {
        Some(terminal) => Some(Output::Terminal(terminal.clone())),
        None => session_out.map(Output::Pipe),
    };
    Ok(Session { stdin, stdout, stderr: session_err.map(Output::Pipe), terminal, exit: Exit(told) })
}

/// (read end, write end), close-on-exec.
fn pipe_pair() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Error::io("pipe2(O_CLOEXEC)", errno))
}

fn pipe_error(error: io::Error) -> Error {
    Error::io("register pipe", error)
}

fn null() -> Result<OwnedFd> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(|error| Error::io("open(/dev/null)", error))
}

/// A program's input.
#[derive(Debug)]
pub enum Input {
    /// A pipe; it ends when this is dropped.
    Pipe(pipe::Sender),
    /// The terminal.
    Terminal(Terminal),
}

/// A program's output or errors.
#[derive(Debug)]
pub enum Output {
    /// A pipe.
    Pipe(pipe::Receiver),
    /// The terminal.
    Terminal(Terminal),
}

/// The master side of a program's terminal.
#[derive(Clone, Debug)]
pub struct Terminal(std::sync::Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    fn new(master: OwnedFd) -> Result<Terminal> {
        rustix::io::ioctl_fionbio(&master, true).map_err(|errno| Error::io("ioctl(FIONBIO)", errno))?;
        #[expect(
            deprecated,
            reason = "an OwnedFd stays open for as long as it is registered; register is unsafe"
        )]
        let fd = AsyncFd::try_new(master).map_err(|error| Error::io("register terminal", error))?;
        Ok(Terminal(std::sync::Arc::new(fd)))
    }

    /// Tells the program how large its terminal is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        runtime::set_window_size(self.0.get_ref().as_fd(), rows, columns).map_err(crate::host::from_runtime)
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let outcome = guard.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), buffer.initialize_unfilled())?));
            match outcome {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // Nobody has the other side open any more: the end. Source: pty(7).
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(outcome) = guard.try_io(|fd| Ok(rustix::io::write(fd.as_fd(), bytes)?)) {
                return Poll::Ready(outcome);
            }
        }
    }
}

impl AsyncRead for Output {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Output::Pipe(pipe) => Pin::new(pipe).poll_read(cx, buffer),
            Output::Terminal(terminal) => terminal.poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Input {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Input::Pipe(pipe) => Pin::new(pipe).poll_write(cx, bytes),
            Input::Terminal(terminal) => terminal.poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
