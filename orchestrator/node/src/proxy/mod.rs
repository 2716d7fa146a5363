//! The service proxy: what Services and EndpointSlices say, as virtual IPs in the node's kernel. No process is in the data path.
//!
//! ```text
//! all Services, all EndpointSlices ── plan (pure) ──► netns::Services ── diff against the kernel's elements ──► one transaction
//! ```
//!
//! Level-triggered: each [`Proxy::sync`] gets full lists and makes the kernel equal to them, so a lost or doubled event changes
//! nothing, and a daemon that starts anew takes over what its predecessor programmed.

pub mod apply;
pub mod plan;
mod view;

pub use apply::{Proxy, Synced};
pub use plan::{Memory, Plan, Warning, plan};
