//! The service proxy: what Services and EndpointSlices say, as virtual IPs in the node's kernel. No process is in the data path.
//!
//! ```text
//! all Services, all EndpointSlices ── plan (pure) ──► netns::Services ── diff against the kernel's elements ──► one transaction
//! ```
//!
//! Level-triggered: [`Proxy::sync`] gets full lists and makes the kernel equal to them, so a doubled event changes nothing, and a
//! daemon that starts anew takes over what its predecessor programmed. [`Proxy::update`] is the short way for what a watch tells;
//! both end in the same state.

pub mod apply;
pub mod memory;
pub mod plan;
mod view;

pub use apply::{Proxy, Synced};
pub use memory::Memory;
pub use plan::{Plan, Warning, plan};
pub use view::PROXY_NAME;
