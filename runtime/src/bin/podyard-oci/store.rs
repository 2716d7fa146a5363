//! Finding containers, and small things that several commands need.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use runtime::cgroup::{Cgroup, Hierarchies};
use runtime::seccomp::Cache;
use runtime::state::{Directory, State};
use runtime::{Error, Kind, Result};

use crate::log::Log;
use crate::options::Command;

/// The container that the command names.
///
/// # Errors
/// `NotFound`, with the words that callers look for.
pub fn find(command: &Command) -> Result<(Directory, State)> {
    let directory = Directory::of(&command.root(), command.id()?)?;
    match directory.state() {
        Err(e) if e.kind() == Kind::NotFound => {
            Err(Error::new(Kind::NotFound, format!("container {} does not exist", directory.name())))
        }
        other => other.map(|state| (directory, state)),
    }
}

/// A container's cgroup, which may or may not exist.
pub fn cgroup_of(state: &State) -> Result<Cgroup> {
    Cgroup::name(&Hierarchies::detect()?, &state.cgroup)
}

/// How many descriptors, from 3 on, the program gets: those of `LISTEN_FDS`, and as many as `--preserve-fds` says.
///
/// # Errors
/// `Invalid` for a number that is none.
pub fn preserved(command: &Command) -> Result<u32> {
    let asked: u32 = command.number("--preserve-fds")?.unwrap_or(0);
    Ok(listening(command)?.saturating_add(asked))
}

/// The sockets that systemd's protocol hands to `create` and `run`: none if `LISTEN_PID` means somebody else.
///
/// Source: sd_listen_fds(3). An exec gets none, as with runc.
pub fn listening(command: &Command) -> Result<u32> {
    let variable = |name: &str| std::env::var(name).ok();
    let ours = variable("LISTEN_PID").is_some_and(|pid| pid.parse() == Ok(std::process::id()));
    match variable("LISTEN_FDS").filter(|_| ours && command.verb != "exec") {
        Some(count) => {
            count.parse().map_err(|_| Error::invalid("LISTEN_FDS", format!("{count:?} is not a number")))
        }
        None => Ok(0),
    }
}

/// Refuses to hand on a descriptor that the caller did not open: by now nothing of ours has its number, later it might.
pub fn check_preserved(command: &Command) -> Result<()> {
    let listening = listening(command)?;
    for at in 0..preserved(command)? {
        let fd = 3_u32.saturating_add(at);
        let path = format!("/proc/self/fd/{fd}");
        if std::fs::symlink_metadata(&path).is_err() {
            let field = if at < listening { "LISTEN_FDS" } else { "--preserve-fds" };
            return Err(Error::invalid(field, format!("descriptor {fd} is not open")));
        }
    }
    Ok(())
}

/// Copies of our own standard streams.
pub fn own_stdio() -> Result<[OwnedFd; 3]> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned().map_err(|e| Error::new(Kind::Internal, format!("dup(stdio): {e}")))
    };
    Ok([copy(std::io::stdin().as_fd())?, copy(std::io::stdout().as_fd())?, copy(std::io::stderr().as_fd())?])
}

/// Written whole: who watches for it may read it at once. The directory may be another user's, so that nothing there
/// is written through: the file is new.
pub fn write_pid_file(command: &Command, pid: i32) -> Result<()> {
    let Some(path) = command.path("--pid-file") else {
        return Ok(());
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&new)
        .and_then(|mut file| std::io::Write::write_all(&mut file, pid.to_string().as_bytes()));
    written.and_then(|()| std::fs::rename(&new, path)).map_err(io(path))
}

/// Sends the terminal to whoever listens on the console socket; gives it back if nobody is asked for.
pub fn hand_over(command: &Command, console: Option<OwnedFd>) -> Result<Option<OwnedFd>> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;
    let (Some(path), Some(master)) = (command.path("--console-socket"), &console) else {
        return Ok(console);
    };
    let socket = std::os::unix::net::UnixStream::connect(path).map_err(io(path))?;
    let data = [std::io::IoSlice::new(b"/dev/ptmx")];
    let fds = [master.as_fd().as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_raw_fd(), &data, &control, MsgFlags::empty(), None)
        .map_err(|errno| Error::sys("sendmsg(console socket)", errno))?;
    Ok(None)
}

/// Reads a spec or a process, which may ask for more than there is.
pub fn load_document<T: serde::de::DeserializeOwned>(path: &Path, log: &Log) -> Result<T> {
    parse_document(path, &read(path)?, log)
}

/// The same, of what was read from `path`.
pub fn parse_document<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8], log: &Log) -> Result<T> {
    let mut warnings = Vec::new();
    let read = runtime::document::read(bytes, &mut warnings);
    warnings.iter().for_each(|warning| log.warning(warning));
    read.map_err(|e| Error::invalid(path.display(), e))
}

/// Reads a JSON file; `-` is standard input.
pub fn load<T: for<'a> serde::Deserialize<'a>>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?).map_err(|e| Error::invalid(path.display(), e))
}

/// Longest document read. A real config.json has some tens of kilobytes.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

/// Room for most documents, or the reads begin with 32 bytes.
const DOCUMENT_BYTES_USUAL: usize = 16 << 10;

/// Reads a file of at most [`DOCUMENT_BYTES_MAX`]; `-` is standard input.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let source: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(path).map_err(io(path))?),
    };
    let mut bytes = Vec::with_capacity(DOCUMENT_BYTES_USUAL);
    source.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io(path))?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(Error::invalid(path.display(), format!("is longer than {DOCUMENT_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// Filters compiled before, for the containers of this root.
pub fn filters(command: &Command) -> Cache {
    Cache::at(command.root().join(".filters"))
}

/// A line on standard output.
///
/// # Errors
/// The kernel's, for one who has asked and does not listen: `EPIPE`, `EIO` of a terminal that has hung up, `ENOSPC`.
pub fn print(text: impl std::fmt::Display) -> Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}").map_err(io(Path::new("standard output")))
}

/// An error about a file.
pub fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let shown = path.display().to_string();
    move |e| match e.raw_os_error() {
        Some(raw) => Error::sys(shown.clone(), nix::errno::Errno::from_raw(raw)),
        None => Error::new(Kind::Internal, format!("{shown}: {e}")),
    }
}
