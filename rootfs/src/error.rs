//! The crate's errors: a value naming the operation, with a kind that callers may act on.
#![forbid(unsafe_code)]

use rustix::io::Errno;

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No such image, snapshot or volume.
    NotFound,
    /// It exists and is not what was asked for.
    AlreadyExists,
    /// Somebody else owns it, or a newer epoch does.
    Conflict,
    /// The argument is malformed.
    Invalid,
    /// This kernel or this filesystem lacks what is needed; the text names the fix.
    Unsupported,
    /// In use; try later.
    Busy,
    /// Not permitted.
    Denied,
    /// Anything else: a disk or kernel failure.
    Internal,
}

/// A failed operation. `Display` is this level only; `source()` holds the cause.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: Kind,
    what: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A failed system call, shown as strace(1) would show it.
#[derive(Debug, thiserror::Error)]
#[error("{call}")]
pub struct SysError {
    /// The call with its arguments.
    pub call: String,
    /// What the kernel answered.
    #[source]
    pub errno: Errno,
}

impl Error {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The whole chain on one line: `prepare web-0: mkdir /x: No space left on device`.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }

    pub(crate) fn new(kind: Kind, what: impl Into<String>) -> Error {
        Error { kind, what: what.into(), source: None }
    }

    pub(crate) fn caused(what: impl Into<String>, cause: Error) -> Error {
        Error { kind: cause.kind, what: what.into(), source: Some(Box::new(cause)) }
    }

    /// `operation object`, with the kind derived from the cause.
    pub(crate) fn io(what: impl Into<String>, cause: std::io::Error) -> Error {
        let kind = match cause.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::AlreadyExists => Kind::AlreadyExists,
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            std::io::ErrorKind::ResourceBusy => Kind::Busy,
            std::io::ErrorKind::Unsupported => Kind::Unsupported,
            _ => Kind::Internal,
        };
        Error { kind, what: what.into(), source: Some(Box::new(cause)) }
    }

    pub(crate) fn with_kind(mut self, kind: Kind) -> Error {
        self.kind = kind;
        self
    }
}

impl From<SysError> for Error {
    fn from(error: SysError) -> Error {
        let kind = match error.errno {
            Errno::NOENT => Kind::NotFound,
            Errno::EXIST => Kind::AlreadyExists,
            Errno::PERM | Errno::ACCESS => Kind::Denied,
            Errno::BUSY => Kind::Busy,
            Errno::NOSYS | Errno::OPNOTSUPP | Errno::NODEV => Kind::Unsupported,
            _ => Kind::Internal,
        };
        Error { kind, what: error.call, source: Some(Box::new(error.errno)) }
    }
}

/// Errors of one operation with the operation's name in front.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::io(what(), cause))
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|errno| SysError { call: what(), errno }.into())
    }
}

impl<T> Context<T> for Result<T, Error> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::caused(what(), cause))
    }
}
