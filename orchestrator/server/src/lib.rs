//! The API server: Kubernetes' paths and JSON over HTTP/1.1, on a unix socket and on the fabric.
//!
//! ```text
//!  kubectl · client libraries · podyard        agents of further nodes
//!        │ unix socket, 0600, root only          │ TCP, a token each
//!  ┌─────▼───────────────────────────────────────▼───┐ route, identity ┌───────────┐ verbs ┌──────────┐
//!  │ connection                                      ├────────────────►│ authorize ├──────►│ registry │ every object
//!  └─────────────────────────────────────────────────┘                 │  handler  │       └──────────┘
//!                                                                      │           ├─────► NodeApi      logs, exec, trace, …
//!                                                                      └───────────┘
//! ```
//! [`NodeServer`] is the part of it that an agent serves to the daemon.
//!
//! Invariant: the state of a connection never reaches an object. A watch, a log or an exec that is cut
//! off ends there; a write that was started is finished by the task that owns it, whoever still listens.
//!
//! Words: a *route* is a parsed path; a *verb* is what is done to it; a *yard* path (`/podyard/v1/…`) is
//! one that Kubernetes does not have; a *stranger* is who has not shown a token yet.
#![forbid(unsafe_code)]

mod access;
pub mod authorize;
mod exec;
mod handler;
mod identity;
mod listen;
mod node_api;
mod node_paths;
mod node_server;
mod objects;
mod plan;
mod query;
mod respond;
mod route;
mod tcp;
pub mod volumes;
mod watch;
pub mod yard;

pub use handler::{Answer, Server};
pub use identity::{Door, Identity, is_same_secret};
pub use listen::{listen, serve};
pub use node_api::{ExecRequest, ExecSession, LogOptions, NodeApi, TerminalSize};
pub use node_server::NodeServer;
pub use respond::Body;
pub use tcp::serve_tcp;
