//! Drives the `podyard` binary from outside: the harness of the end-to-end tests and benchmarks.
//!
//! Every test makes a yard of its own, with its own directories, cgroup parent and namespaces, so
//! that tests run in parallel and leave the machine as it was.
#![forbid(unsafe_code)]

pub mod caller;
pub mod engine;
pub mod harness;
pub mod snapshot;
pub mod torture;
pub mod watcher;
