//! The cluster's DNS: names of Services, of the pods behind them and of pets, as Kubernetes has them.
//!
//! ```text
//!  Services, EndpointSlices ──► Memory ──► Zone ◄── names, types ── Server ◄── UDP, TCP
//!                              (what changed)                         │
//!                                             all other names ──► Forwarder ──► upstreams
//! ```
//! [`Memory`] reads objects, [`Zone`] answers, both pure; [`message`] stands between the zone and the wire. An update costs
//! what changed: one Service is read anew, and put in its place while no answer waits for longer than that.
//! Nothing is kept besides the zone: whatever it was, deleting it and reading the objects again gives the same answers.
//!
//! Source: Kubernetes DNS-Based Service Discovery (github.com/kubernetes/dns, docs/specification.md), RFC 1034, 1035, 2308,
//! 2782, 6891, 7766, 8020.

#![forbid(unsafe_code)]

pub mod client;
pub mod forward;
pub mod memory;
pub mod message;
pub mod names;
pub mod resolv;
pub mod server;
pub mod zone;

pub use forward::{Forwarder, Place};
pub use memory::{Memory, ServiceName};
pub use names::Names;
pub use resolv::Resolv;
pub use server::{Server, Sockets, serve};
pub use zone::{Net, Zone};

/// The domain of every cluster that nobody named otherwise.
pub const DOMAIN: &str = "cluster.local";

/// The port of DNS.
pub const PORT: u16 = 53;
