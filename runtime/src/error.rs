//! Errors: what was attempted, on what, and the kernel's answer.
//!
//! An error made in the container's child process crosses to the parent as data (see
//! `protocol.rs`), so the chain of steps is kept as one line of text, outermost first, with the
//! errno beside it: `mount proc on /proc: fsopen("proc"): EPERM`. That is also why `Display`
//! prints the whole chain, and there is no `source`.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// What went wrong, for callers that decide without reading text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// The spec or the request is wrong; it will be wrong again.
    Invalid,
    /// Valid, but this runtime or this kernel does not do it.
    Unsupported,
    /// The container, process, program or path does not exist.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// It is in use: retry after its processes are gone.
    Busy,
    /// The kernel refused for want of rights.
    Denied,
    /// A deadline passed.
    Timeout,
    /// Anything else the kernel said.
    Internal,
}

/// A failed operation of the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    kind: Kind,
    text: String,
    errno: Option<i32>,
}

/// The result of every fallible function here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a system call behind it.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), errno: None }
    }

    /// The spec's `field` cannot be accepted because of `reason`.
    pub fn invalid(field: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self::new(Kind::Invalid, format!("{field}: {reason}"))
    }

    /// `what` is valid but not offered here.
    pub fn unsupported(what: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self::new(Kind::Unsupported, format!("{what}: {reason}"))
    }

    /// A failed system call; `call` shows it as strace(1) would.
    pub fn sys(call: impl Into<String>, errno: Errno) -> Self {
        let kind = match errno {
            Errno::ENOENT | Errno::ESRCH => Kind::NotFound,
            Errno::EEXIST => Kind::AlreadyExists,
            Errno::EBUSY => Kind::Busy,
            Errno::EPERM | Errno::EACCES => Kind::Denied,
            Errno::ENOSYS | Errno::EOPNOTSUPP => Kind::Unsupported,
            Errno::ETIMEDOUT => Kind::Timeout,
            _ => Kind::Internal,
        };
        Self { kind, text: call.into(), errno: Some(errno as i32) }
    }

    /// The same error, one step further out.
    #[must_use]
    pub fn within(mut self, step: impl std::fmt::Display) -> Self {
        self.text = format!("{step}: {}", self.text);
        self
    }

    /// The same error, its text at most `bytes` long.
    #[must_use]
    pub(crate) fn bounded(mut self, bytes: usize) -> Self {
        cut(&mut self.text, bytes);
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The kernel's answer, if a system call failed.
    pub fn errno(&self) -> Option<Errno> {
        self.errno.map(Errno::from_raw)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.errno() {
            Some(errno) => write!(f, "{}: {errno:?}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl std::error::Error for Error {}

/// Shortens `text` to at most `bytes`, at a character's end.
pub(crate) fn cut(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|i| text.is_char_boundary(*i));
        text.truncate(end.unwrap_or(0));
    }
}

/// Adds the step that failed.
pub(crate) trait Step<T> {
    /// Prefixes the error with `step`.
    fn step(self, step: impl std::fmt::Display) -> Result<T>;
}

impl<T> Step<T> for Result<T> {
    fn step(self, step: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| error.within(step))
    }
}

/// Names the system call that failed.
pub(crate) trait Call<T> {
    /// Turns the errno into an [`Error`] showing `call`.
    fn call(self, call: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Call<T> for nix::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::sys(call(), errno))
    }
}

impl<T> Call<T> for rustix::io::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::sys(call(), Errno::from_raw(errno.raw_os_error())))
    }
}

impl<T> Call<T> for std::io::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| match error.raw_os_error() {
            Some(raw) => Error::sys(call(), Errno::from_raw(raw)),
            None => Error::new(Kind::Internal, format!("{}: {error}", call())),
        })
    }
}
