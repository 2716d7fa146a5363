//! A client of the API server, over its unix socket: typed verbs for the command line and the tests.
//!
//! One connection per request: a unix socket connects in tens of microseconds, and a request that is cut off
//! then takes nothing else with it.
//!
//! Every refusal by the server is [`Error::Refused`] and holds its `Status`.
#![forbid(unsafe_code)]

mod connection;
mod error;
mod exec;
mod path;
mod verbs;
mod watch;

pub use connection::{Answer, Client, Request, Stream};
pub use error::Error;
pub use exec::{ExecInput, ExecOptions, ExecOutput, Output};
pub use hyper::Method;
pub use path::{encode, resource_path};
pub use verbs::{DeleteOptions, List, ListOptions, LogOptions, PatchKind, WriteOptions, Written};
pub use watch::{EventKind, Watch, WatchEvent, WatchOptions};
