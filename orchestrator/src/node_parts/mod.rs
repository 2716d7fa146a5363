//! What a node is made of, wherever it runs: in the daemon (node-0) or in an agent of its own.
//!
//! ```text
//!             daemon: StoreFeed, the registry         agent: RemoteFeed, the API over HTTP
//!                          │                                   │
//!  Feed ───► pods  ───► node::Agent ───► Upstream (over Objects) ───► status, events, claims
//!   ├──────► proxy ───► the kernel's virtual IPs
//!   └──────► dns ───► names, at a local address of the node
//! ```

pub(crate) mod dns;
pub(crate) mod feed;
pub(crate) mod local;
pub(crate) mod pods;
pub(crate) mod proxy;
pub(crate) mod upstream;

/// The port on which a further node's agent answers the daemon, at its node's gateway.
pub(crate) const AGENT_PORT: u16 = 10_250;
