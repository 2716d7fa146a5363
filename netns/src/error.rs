//! Errors: inside, the operation with its arguments; outside, a [`Kind`] to decide by.

use std::fmt;

use nix::errno::Errno;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, for callers that decide without reading text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The object is not there.
    NotFound,
    /// An object of that name is there and is not ours.
    AlreadyExists,
    /// The wish contradicts the present state.
    Conflict,
    /// The arguments make no sense.
    Invalid,
    /// This kernel cannot do it.
    Unsupported,
    /// Worth another try later.
    Busy,
    /// Missing privilege.
    Denied,
    /// Anything else.
    Internal,
}

/// A failed operation. `Display` prints this level; `{:#}` the chain; `source()` holds the cause.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    operation: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of our own making.
    pub fn new(kind: Kind, operation: impl Into<String>) -> Self {
        Self { kind, operation: operation.into(), source: None }
    }

    /// The kernel refused `call`.
    pub fn sys(call: impl Into<String>, errno: Errno) -> Self {
        Self { kind: kind_of(errno), operation: call.into(), source: Some(Box::new(errno)) }
    }

    /// `operation` failed in the standard library or a socket.
    pub fn io(operation: impl Into<String>, error: std::io::Error) -> Self {
        let kind = error.raw_os_error().map_or(Kind::Internal, |raw| kind_of(Errno::from_raw(raw)));
        Self { kind, operation: operation.into(), source: Some(Box::new(error)) }
    }

    /// Adds the operation that was under way when this error happened.
    #[must_use]
    pub fn during(self, operation: impl Into<String>) -> Self {
        Self { kind: self.kind, operation: operation.into(), source: Some(Box::new(self)) }
    }

    /// What to decide by.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The errno at the end of the chain, if the kernel said no.
    pub fn errno(&self) -> Option<Errno> {
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            if let Some(errno) = error.downcast_ref::<Errno>() {
                return Some(*errno);
            }
            if let Some(raw) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
                return Some(Errno::from_raw(raw));
            }
            source = error.source();
        }
        None
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.operation)?;
        if f.alternate() {
            let mut source = std::error::Error::source(self);
            while let Some(error) = source {
                write!(f, ": {error}")?;
                source = error.source();
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

/// Every failure of a teardown that went on regardless.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<Error>);

impl Errors {
    /// `Ok` when nothing failed.
    ///
    /// # Errors
    /// All that failed.
    pub fn into_result(self) -> std::result::Result<(), Errors> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// Keeps the failure of `result`, if it is one.
    pub fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{error:#}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

fn kind_of(errno: Errno) -> Kind {
    match errno {
        Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::ENXIO | Errno::EADDRNOTAVAIL => Kind::NotFound,
        Errno::EEXIST => Kind::AlreadyExists,
        Errno::EINVAL | Errno::ERANGE | Errno::ENAMETOOLONG => Kind::Invalid,
        Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => Kind::Unsupported,
        // EXFULL: a bridge carries at most 1,023 ports.
        Errno::EBUSY | Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM | Errno::EXFULL => {
            Kind::Busy
        }
        Errno::EPERM | Errno::EACCES => Kind::Denied,
        _ => Kind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_prints_one_level_and_alternate_the_chain() {
        let error = Error::sys("RTM_NEWLINK(vab)", Errno::EEXIST).during("attach vab");
        assert_eq!(error.to_string(), "attach vab");
        assert_eq!(format!("{error:#}"), "attach vab: RTM_NEWLINK(vab): EEXIST: File exists");
        assert_eq!(error.kind(), Kind::AlreadyExists);
        assert_eq!(error.errno(), Some(Errno::EEXIST));
    }
}
