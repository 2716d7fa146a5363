//! An OCI runtime as a library: a spec becomes a plan, a plan becomes a process.
//!
//! ```text
//!   Spec ──Plan::from_spec──▶ Plan ──container::create──▶ Created ──StartGate::start──▶ running
//!          pure, validated          clone3, mounts,        waits for     execve
//!                                   pivot_root, caps       the order
//!
//!   pidfd of a running one + process ──exec::exec──▶ one more process in the same namespaces
//!   Cgroup::kill, ::wait_empty, ::remove: the end, observed
//! ```
//!
//! `create` and `exec` clone this process and so must be called from a single-threaded one: the
//! shim's worker, `podyard-oci`, a test's re-executed child. They never touch the caller's own
//! mount table, and leave nothing behind when they fail. [`cgroup`] has no such condition and no
//! state of its own; the daemon uses it too.
//!
//! README.md beside this crate lists the guarantees, KERNEL.md the kernel features used.
#![deny(unsafe_code)]

mod attributes;
mod birth;
mod capabilities;
pub mod cgroup;
mod console;
pub mod container;
pub mod document;
mod error;
pub mod exec;
pub mod features;
pub mod hooks;
mod init;
mod labels;
mod mounts;
pub mod namespaces;
pub mod pidfd;
pub mod plan;
mod process;
mod program;
mod protect;
mod protocol;
pub mod seccomp;
pub mod signal;
pub mod state;
mod sys;
mod validate;

pub use console::WindowSize;
pub use error::{Error, Kind, Result};
pub use plan::Plan;
pub use protect::run_from_read_only_clone;
pub use sys::{set_window_size, window_size};
