//! What can go wrong between a client and the daemon.

use std::io;
use std::path::PathBuf;

/// A request that brought no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no podyard daemon answers on {}: start one with `podyard up`", socket.display())]
    NoDaemon {
        /// Where we asked.
        socket: PathBuf,
        /// What connect(2) said.
        #[source]
        source: io::Error,
    },
    /// Somebody listens, but not to us.
    #[error("{} belongs to root: run this as root, for example with sudo", socket.display())]
    NotRoot {
        /// Where we asked.
        socket: PathBuf,
        /// What connect(2) said.
        #[source]
        source: io::Error,
    },
    /// Nobody answers at an address: what lives there is dead or cut off.
    #[error("connect to {address}")]
    Unreachable {
        /// Where we asked.
        address: std::net::SocketAddr,
        /// What connect(2) said.
        #[source]
        source: io::Error,
    },
    /// The server understood and said no.
    #[error(transparent)]
    Refused(#[from] api::Error),
    /// The connection broke.
    #[error("{request}")]
    Broken {
        /// Method and path.
        request: String,
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what the protocol promises.
    #[error("{request}: {problem}")]
    Garbled {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    /// The refusal's kind, if the server answered at all.
    pub fn kind(&self) -> Option<api::Kind> {
        match self {
            Error::Refused(error) => Some(error.kind()),
            _ => None,
        }
    }

    /// Whether the server says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        self.kind() == Some(api::Kind::NotFound)
    }

    pub(crate) fn broken(
        request: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Broken { request: request.to_string(), source: source.into() }
    }
}
