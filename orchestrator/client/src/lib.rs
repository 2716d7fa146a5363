//! A client of the API server, over its unix socket or over TCP with a token: typed verbs for the command line, the
//! agents and the tests.
//!
//! One connection per request: it is made in tens of microseconds on one host, and a request that is cut off then takes
//! nothing else with it. What repeats itself, as a heartbeat does, keeps one: [`Session`].
//!
//! Every refusal by the server is [`Error::Refused`] and holds its `Status`.
#![forbid(unsafe_code)]

mod connection;
mod error;
mod exec;
mod path;
mod verbs;
mod watch;

pub use connection::{Answer, CONNECT_DEADLINE, Client, Connect, Request, Session, Stream};
pub use error::Error;
pub use exec::{ExecInput, ExecOptions, ExecOutput, Output};
pub use hyper::Method;
pub use path::{encode, resource_path};
pub use verbs::{DeleteOptions, List, ListOptions, LogOptions, PatchKind, WriteOptions, Written};
pub use watch::{EventKind, Watch, WatchEvent, WatchOptions};
