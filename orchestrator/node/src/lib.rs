//! The node agent: makes the pods bound to this node real, and says what became of them.
//!
//! ```text
//!  desired pods ──► agent ──► one worker per pod:  observe ─► plan (pure) ─► apply steps ─► status (pure)
//!                                                     ▲                         │             │
//!                                     shim, cgroups, links, files ◄─────────────┘      api sink ▼
//! ```
//!
//! The kernel is the truth: a worker keeps nothing that it could not read again from the shim, the cgroup
//! and the pod's directory, so a daemon that is killed at any instant adopts its pods when it returns.

#![forbid(unsafe_code)]

pub mod agent;
pub mod boot;
pub mod desired;
pub mod env;
pub mod error;
pub mod exec;
pub mod fault;
pub mod files;
pub mod gate;
pub mod gc;
pub mod handler;
pub mod hold;
pub mod hook;
pub mod host;
pub mod journal;
pub mod links;
pub mod logs;
pub mod namespaces;
pub mod network;
pub mod node_object;
pub mod observed;
pub mod plan;
pub mod pod;
pub mod probe;
pub mod proxy;
pub mod purge;
pub mod record;
pub mod shim_client;
pub mod spec;
pub mod status;
pub mod volumes;
pub mod worker;
pub mod yard;

pub use error::{Error, Kind, Result};
pub use yard::{Cidr, PodPaths, Yard};
