//! One error type: an operation that was refused or went wrong, with the kind callers decide by.

use std::fmt;

/// What callers decide by; the words are for people.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// The thing named is not there.
    NotFound,
    /// It is there already, and not ours to reuse.
    AlreadyExists,
    /// Somebody else holds it, or it changed meanwhile.
    Conflict,
    /// The request itself cannot be carried out as written.
    Invalid,
    /// This kernel, host or build lacks it.
    Unsupported,
    /// It may work later without a change of the request.
    Busy,
    /// Not allowed.
    Denied,
    /// Anything else: a bug of ours or of the host.
    Internal,
}

/// A failed operation. `Display` shows this level; [`std::error::Error::source`] holds the cause.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    operation: String,
    /// Kubernetes' word for a container's waiting reason, where the failure has one.
    reason: Option<&'static str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Shorthand used in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure without a deeper cause.
    pub fn new(kind: Kind, operation: impl Into<String>) -> Error {
        Error { kind, operation: operation.into(), reason: None, source: None }
    }

    /// A failure with its cause.
    pub fn with(
        kind: Kind,
        operation: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error { kind, operation: operation.into(), reason: None, source: Some(source.into()) }
    }

    /// A failed system or file operation; the kind follows the errno.
    pub fn io(operation: impl Into<String>, source: impl Into<std::io::Error>) -> Error {
        let source = source.into();
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::AlreadyExists => Kind::AlreadyExists,
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            std::io::ErrorKind::ResourceBusy | std::io::ErrorKind::WouldBlock => Kind::Busy,
            _ => Kind::Internal,
        };
        Error::with(kind, operation, source)
    }

    /// The same failure under Kubernetes' word for it (`CreateContainerError` ...).
    #[must_use]
    pub fn reason(mut self, reason: &'static str) -> Error {
        self.reason.get_or_insert(reason);
        self
    }

    /// What callers decide by.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Kubernetes' waiting reason, where one was given.
    pub fn waiting_reason(&self) -> Option<&'static str> {
        self.reason
    }

    /// The whole chain on one line: `create web-0: attach veth: EEXIST`.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.operation)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}
