//! What a verb may end with, and how it is told: the server's words as kubectl prints them, chains once.

use std::error::Error as _;
use std::fmt::{self, Write as _};
use std::io;

use api::Kind;

/// Why a verb did not do what was asked.
#[derive(Debug)]
pub enum Error {
    /// The daemon refused, or was not there.
    Client(client::Error),
    /// The command line asks for something that makes no sense.
    Usage(String),
    /// An operation on this host.
    Io {
        /// Operation and object, as `read pod.yaml`.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is no manifest.
    Manifest {
        /// Which file, and which document in it.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Several objects failed, one by one; the others are done.
    Several(Vec<Error>),
    /// What was waited for did not happen.
    TimedOut(String),
    /// The daemon, the demo or the purge ended so.
    Daemon(Box<dyn std::error::Error + Send + Sync>),
    /// Nobody reads our output any more.
    PipeClosed,
}

/// What a verb ends with: the exit code.
pub type Outcome = Result<u8, Error>;

impl Error {
    /// An operation on this host that failed.
    pub fn io(what: impl Into<String>, source: io::Error) -> Error {
        Error::Io { what: what.into(), source }
    }

    /// The same for errors of the kernel-near crates.
    pub fn errno(what: impl Into<String>, errno: impl Into<io::Error>) -> Error {
        Error::io(what, errno.into())
    }

    /// One error from many, or none.
    ///
    /// # Errors
    /// The one, or `Several`.
    pub fn gather(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }

    /// Whether the server says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Client(error) if error.is_not_found())
    }

    /// The whole story, one line per error, each beginning with what kubectl begins it with.
    pub fn report(&self) -> String {
        match self {
            Error::Client(client::Error::Refused(error)) => refusal(error),
            Error::Several(errors) => errors.iter().map(Error::report).collect::<Vec<_>>().join("\n"),
            Error::TimedOut(what) => format!("error: timed out waiting for the condition on {what}"),
            other => {
                let mut text = format!("error: {other}");
                // The connection's own words add nothing where the message says what to do.
                let told = matches!(
                    other,
                    Error::Client(client::Error::NoDaemon { .. } | client::Error::NotRoot { .. })
                );
                let mut cause = if told { None } else { other.source() };
                while let Some(next) = cause {
                    _ = write!(text, ": {next}");
                    cause = next.source();
                }
                text
            }
        }
    }
}

/// Source: kubectl's `cmd/util/helpers.go`: the forms its users know.
fn refusal(error: &api::Error) -> String {
    let causes = &error.details.causes;
    match error.kind() {
        Kind::Invalid if causes.len() > 1 => {
            let kind = &error.details.kind;
            let mut text = format!("The {kind} {:?} is invalid:", error.details.name);
            for cause in causes {
                _ = write!(text, "\n* {}: {}", cause.field, cause.message);
            }
            text
        }
        Kind::Invalid if error.message.contains(" is invalid: ") => format!("The {}", error.message),
        _ => format!("Error from server ({}): {}", error.reason(), error.message),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Client(error) => write!(f, "{error}"),
            Error::Usage(text) => f.write_str(text),
            Error::Io { what, .. } => f.write_str(what),
            Error::Manifest { place, problem } => write!(f, "{place}: {problem}"),
            Error::Several(errors) => write!(f, "{} errors", errors.len()),
            Error::TimedOut(what) => write!(f, "timed out waiting for {what}"),
            Error::Daemon(error) => write!(f, "{error}"),
            Error::PipeClosed => f.write_str("write output: broken pipe"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Client(error) => error.source(),
            Error::Io { source, .. } => Some(source),
            Error::Daemon(error) => error.source(),
            _ => None,
        }
    }
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Error {
        Error::Client(error)
    }
}

impl From<api::Error> for Error {
    fn from(error: api::Error) -> Error {
        Error::Client(client::Error::Refused(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{Cause, Details};

    #[test]
    fn words_are_kubectls() {
        let not_found = api::Error::new(Kind::NotFound, "pods \"x\" not found");
        assert_eq!(Error::from(not_found).report(), "Error from server (NotFound): pods \"x\" not found");
        let cause =
            |field: &str| Cause { field: field.into(), message: "Required value".into(), ..Cause::default() };
        let details = Details {
            kind: "Pod".into(),
            name: "x".into(),
            causes: vec![cause("a"), cause("b")],
            ..Details::default()
        };
        let invalid = api::Error { details: Box::new(details), ..api::Error::new(Kind::Invalid, "…") };
        assert_eq!(
            Error::from(invalid).report(),
            "The Pod \"x\" is invalid:\n* a: Required value\n* b: Required value"
        );
    }

    #[test]
    fn a_missing_daemon_is_told_with_its_remedy() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error = client::Error::NoDaemon { socket: "/run/podyard/podyard.sock".into(), source };
        assert_eq!(
            Error::from(error).report(),
            "error: no podyard daemon answers on /run/podyard/podyard.sock: start one with `podyard up`"
        );
    }

    #[test]
    fn chains_are_told_once() {
        let error = Error::io("read x.yaml", io::Error::other("EIO"));
        assert_eq!(error.report(), "error: read x.yaml: EIO");
    }
}
