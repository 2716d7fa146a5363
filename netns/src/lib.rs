//! Namespaces, links, addresses, routes and virtual IPs of a node, over netlink only.
//!
//! Nothing here knows what a pod of which API is: callers hand in plain data ([`NodeNet`], [`PodNet`], [`Services`])
//! and get the kernel into that state. No program is executed (`ip`, `nft`, `iptables`), ever.
//!
//! ```text
//!  host namespace          node namespace (one per node)                    pod namespaces
//!  ┌───────────────┐ veth  ┌──────────────────────────────────────┐  veth   ┌─────────────────┐
//!  │ host address  ├───────┤ uplink      bridge: gateway /32 ├────┼─────────┤ eth0: address/32│
//!  │ pod CIDR      │       │ nftables: VIP ► endpoint        │    │         │ default via     │
//!  │ service CIDR ►│       │ routes: each pod /32 on bridge  ├────┼─────────┤ gateway         │
//!  └───────────────┘       └──────────────────────────────────────┘         └─────────────────┘
//! ```
//!
//! Every packet between pods is routed (addresses are /32), so the rules of the node namespace see all of it.
//!
//! Reading order: [`namespace`], [`ipam`], [`plan`] (pure), [`node`], [`pod`], [`fabric`] (between nodes), [`service`], [`nft`].
#![forbid(unsafe_code)]

pub mod address;
pub mod conntrack;
pub mod error;
pub mod fabric;
pub mod ipam;
pub mod link;
pub mod monitor;
pub mod namespace;
pub mod netlink;
pub mod nft;
pub mod node;
pub mod plan;
pub mod pod;
pub mod route;
pub mod service;

pub use conntrack::Conntrack;
pub use error::{Error, Errors, Kind, Result};
pub use fabric::{Moved, Peer};
pub use ipam::{Cidr, Pool};
pub use monitor::Monitor;
pub use namespace::Namespace;
pub use node::{Node, Step};
pub use plan::{FabricLink, HostLink, Hub, NodeNet, Uplink};
pub use pod::{Attachment, PodNet};
pub use service::{Applied, Endpoint, Protocol, ServiceTable, Services, VirtualPort};

/// Whether an idempotent operation had anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Already as wished.
    Unchanged,
    /// Something was created, changed or removed.
    Changed,
}
