//! The API server: Kubernetes' paths and JSON over HTTP/1.1 on a unix socket.
//!
//! ```text
//!  kubectl · client libraries · podyard
//!        │ unix socket, 0600, peers of our own uid or root only
//!  ┌─────▼──────┐ route  ┌──────────┐ verbs  ┌──────────┐
//!  │ connection ├───────►│ handler  ├───────►│ registry │ every object
//!  └────────────┘        │          │        └──────────┘
//!                        │          ├───────► NodeApi     logs, exec, trace, namespaces, plan
//!                        └──────────┘
//! ```
//!
//! Invariant: the state of a connection never reaches an object. A watch, a log or an exec that is cut
//! off ends there; a write that was started is finished by the task that owns it, whoever still listens.
//!
//! Words: a *route* is a parsed path; a *verb* is what is done to it; a *yard* path (`/podyard/v1/…`) is
//! one that Kubernetes does not have.
#![forbid(unsafe_code)]

mod exec;
mod handler;
mod listen;
mod node_api;
mod objects;
mod plan;
mod query;
mod respond;
mod route;
mod watch;
pub mod yard;

pub use handler::Server;
pub use listen::{listen, serve};
pub use node_api::{ExecRequest, ExecSession, LogOptions, NodeApi, TerminalSize};
