//! Waiting for a process in the foreground: its terminal here, our signals there.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use runtime::{Error, Result};

/// Signals handed on. Blocked from before the process exists, so that none is lost.
pub struct Signals(SignalFd);

/// Not handed on: faults of our own, stops of our own terminal's job control, and what means something to us alone.
/// SIGKILL and SIGSTOP cannot be.
const OWN: [Signal; 11] = [
    Signal::SIGCHLD,
    Signal::SIGPIPE,
    Signal::SIGURG,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGABRT,
    Signal::SIGTRAP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

impl Signals {
    /// Blocks them from now on.
    pub fn block() -> Result<Self> {
        let mut set = SigSet::all();
        OWN.iter().for_each(|s| set.remove(*s));
        set.thread_block().map_err(sys("sigprocmask"))?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        Ok(Self(fd.map_err(sys("signalfd"))?))
    }
}

/// Our own terminal, raw until dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        let Ok(before) = tcgetattr(&stdin) else {
            return Self(None);
        };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        // The terminal inside leaves the ends of lines to this one.
        raw.output_flags.insert(nix::sys::termios::OutputFlags::OPOST);
        match tcsetattr(&stdin, SetArg::TCSANOW, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The shell resets what we cannot.
            match tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, before) {
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// Waits for the process, copying between its terminal and ours. Its exit code, or 128 and the
/// signal.
pub fn wait(pidfd: &OwnedFd, console: Option<OwnedFd>, signals: Signals) -> Result<u8> {
    let _raw = console.as_ref().map(|_| Raw::enter());
    let mut console = console.map(std::fs::File::from);
    let mut input = console.is_some();
    resize(console.as_ref());
    loop {
        let stdin = std::io::stdin();
        let mut fds = vec![
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.0.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(console) = &console {
            fds.push(PollFd::new(console.as_fd(), PollFlags::POLLIN));
            if input {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(sys("poll")(e)),
        }
        let ready: Vec<bool> = fds.iter().map(|f| f.revents().is_some_and(|r| !r.is_empty())).collect();
        drop(fds);
        if ready[1] {
            forward(pidfd, console.as_ref(), &signals)?;
        }
        if ready.get(2) == Some(&true) {
            copy_out(&mut console);
        }
        if ready.get(3) == Some(&true) {
            input = copy_in(console.as_mut());
        }
        if ready[0] && (console.is_none() || ready.get(2) != Some(&true)) {
            return reap(pidfd);
        }
    }
}

fn copy_out(console: &mut Option<std::fs::File>) {
    let mut buffer = [0; 16384];
    // EIO: the last process has closed the terminal.
    match console.as_mut().map(|c| c.read(&mut buffer)) {
        Some(Ok(n @ 1..)) => {
            let mut out = std::io::stdout();
            match out.write_all(&buffer[..n]).and_then(|()| out.flush()) {
                Ok(()) | Err(_) => {}
            }
        }
        _ => *console = None,
    }
}

/// Whether there may be more.
fn copy_in(console: Option<&mut std::fs::File>) -> bool {
    let mut buffer = [0; 4096];
    match (nix::unistd::read(std::io::stdin(), &mut buffer), console) {
        (Ok(n @ 1..), Some(console)) => console.write_all(&buffer[..n]).is_ok(),
        _ => false,
    }
}

fn forward(pidfd: &OwnedFd, console: Option<&std::fs::File>, signals: &Signals) -> Result<()> {
    while let Some(info) = signals.0.read_signal().map_err(sys("read(signalfd)"))? {
        if info.ssi_signo == Signal::SIGWINCH as u32 {
            resize(console);
        } else if let Some(signal) = runtime::signal::from_number(info.ssi_signo as i32) {
            match runtime::pidfd::send_signal(pidfd, signal) {
                // It may just have exited.
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}

/// The terminal inside takes the size of ours.
fn resize(console: Option<&std::fs::File>) {
    let size = own_size();
    if let (Some(console), Some((rows, columns))) = (console, size) {
        match runtime::set_window_size(console.as_fd(), rows, columns) {
            Ok(()) | Err(_) => {}
        }
    }
}

fn own_size() -> Option<(u16, u16)> {
    runtime::window_size(std::io::stdin().as_fd()).ok().map(|size| (size.rows, size.columns))
}

fn reap(pidfd: &OwnedFd) -> Result<u8> {
    Ok(u8::try_from(runtime::pidfd::wait(pidfd)?).unwrap_or(255))
}

fn sys(call: &'static str) -> impl Fn(nix::errno::Errno) -> Error {
    move |errno| Error::sys(call, errno)
}
