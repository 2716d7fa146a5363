//! The shim: one small process per pod that outlives the daemon.
//!
//! ```text
//!  daemon ──spawn──► podyard shim (launcher) ──clone3(CLONE_INTO_CGROUP)──► shim ──ready, pidfd──► daemon
//!     │                                                                      │
//!     │ <pod dir>/shim.sock, 0600: requests with fds, replies, exit events   │ holds uts, ipc, net (pid) namespaces
//!     └──────────────────────────────────────────────────────────────────────┤ pumps stdout and stderr to logs
//!                                                                            │ reaps, records exits
//!                                       worker (forked, deadline) ◄──fork────┤
//!                                          │ clone3(CLONE_PARENT)            │
//!                                          └────────► container init ────────┘ the shim is its parent
//! ```
//!
//! Invariants:
//! - One thread, no tokio, one poll loop that never waits for a container, a client or the disk's answer to a
//!   create: whatever may take long runs in a forked worker with a deadline.
//! - One shim per pod directory (flock); one attempt per container name (its exit record or its entry).
//! - The shim's death is the pod's death: nothing that it held is inherited, the daemon fences by cgroup.
//!
//! Words: a *container* is named by its name and attempt; a *worker* is a short-lived fork of the shim; an
//! *exit record* says how an attempt ended and is in its file before anybody is told.
#![deny(unsafe_code)]

mod build;
mod cgroup;
pub mod client;
mod clock;
mod connection;
mod container;
pub mod frame;
mod job;
mod launch;
mod log;
mod process;
mod program;
pub mod protocol;
pub mod record;
mod server;
mod setup;
pub mod spawn;
mod sys;
mod verbs;
mod worker;

pub use launch::run;
pub use program::launch;
