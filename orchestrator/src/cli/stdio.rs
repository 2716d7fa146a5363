//! Our own terminal and streams, joined to an exec or attach.
//!
//! Raw mode is left again however the session ends. Standard input is read by a thread of its own, because a read
//! of a terminal cannot be cancelled; the thread ends with the program.

use std::io::Read as _;
use std::io::Write as _;

use api::Key;
use client::{ExecInput, ExecOptions, Output};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::context::Context;
use super::error::Error;

/// Whether standard input is a terminal.
pub fn is_terminal() -> bool {
    rustix::termios::isatty(std::io::stdin())
}

/// What a program may end with; what the container's process ended with, cut to that.
pub fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(1)
}

/// The terminal in raw mode; as it was, once dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Raw, Error> {
        let before =
            tcgetattr(std::io::stdin()).map_err(|errno| Error::errno("read terminal mode", errno))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .map_err(|errno| Error::errno("set terminal to raw mode", errno))?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone; there is nobody left to tell.
        _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Runs an exec or attach to its end on our own streams; gives the exit code.
///
/// # Errors
/// The refusal, or that the connection ended before the process did.
pub async fn carry(context: &Context, pod: &Key, options: &ExecOptions) -> Result<i32, Error> {
    let (mut send, mut receive) = context.client.exec(pod, options).await?;
    let _raw = if options.tty { Some(Raw::enter()?) } else { None };
    let mut resized =
        signal(SignalKind::window_change()).map_err(|error| Error::io("watch terminal size", error))?;
    if options.tty {
        resize(&mut send).await?;
    }
    // The terminal must be as it was, also when we are told to go.
    let mut ended = signal(SignalKind::terminate()).map_err(|error| Error::io("watch for SIGTERM", error))?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(|error| Error::io("watch for SIGHUP", error))?;
    let mut input = if options.stdin { read_stdin() } else { closed() };
    let mut has_input = options.stdin;
    loop {
        tokio::select! {
            said = receive.next() => match said {
                Some(Ok(Output::Stdout(bytes))) => context.bytes(&bytes)?,
                Some(Ok(Output::Stderr(bytes))) => {
                    let mut stderr = std::io::stderr().lock();
                    stderr.write_all(&bytes).map_err(|error| Error::io("write standard error", error))?;
                }
                Some(Ok(Output::Exit(code))) => return Ok(code),
                Some(Err(error)) => return Err(error.into()),
                None => return Err(Error::Usage("the connection ended before the command did".to_string())),
            },
            piece = input.recv(), if has_input => match piece {
                Some(bytes) => send.write(&bytes).await?,
                None => {
                    has_input = false;
                    send.end().await?;
                }
            },
            Some(()) = resized.recv(), if options.tty => resize(&mut send).await?,
            Some(()) = ended.recv() => return Ok(128 + 15),
            Some(()) = hung_up.recv() => return Ok(128 + 1),
        }
    }
}

async fn resize(send: &mut ExecInput) -> Result<(), Error> {
    // A terminal without a size keeps the default.
    if let Ok(size) = tcgetwinsize(std::io::stdout())
        && size.ws_col > 0
    {
        send.resize(size.ws_col, size.ws_row).await?;
    }
    Ok(())
}

fn closed() -> mpsc::Receiver<Vec<u8>> {
    mpsc::channel(1).1
}

fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; 32 << 10];
        while let Ok(count @ 1..) = stdin.read(&mut buffer) {
            if send.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receive
}
