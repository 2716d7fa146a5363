//! The network of one node, as wished.

use std::net::Ipv4Addr;

use crate::error::{Error, Kind, Result};
use crate::ipam::Cidr;
use crate::link::check_name;

/// The network of one node, as wished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNet {
    /// Begins the alias of every link of ours: `podyard/yard/node-0`. No other may use it in the same outer namespace.
    pub mark: String,
    /// Name of the bridge that pods are on, in the node's namespace.
    pub bridge: String,
    /// How the node reaches what is outside it.
    pub uplink: Uplink,
    /// Address of the bridge: every pod's next hop, and the node's own address.
    pub gateway: Ipv4Addr,
    /// A further address of the node's own: where its pods find a name server. May lie in the service CIDR, and is then never a
    /// virtual IP.
    pub dns: Option<Ipv4Addr>,
    /// Where the node's pods have their addresses.
    pub pod_cidr: Cidr,
    /// Where the pods of all nodes have theirs; contains the pod CIDR.
    pub cluster_cidr: Cidr,
    /// Where virtual IPs live.
    pub service_cidr: Cidr,
    /// Bytes; of the bridges and the uplink.
    pub mtu: u32,
}

/// The link by which a node reaches what is outside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// To the host.
    Host(HostLink),
    /// To the node that has the link to the host.
    Fabric(FabricLink),
}

/// A pair of links between the node and the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    /// Its name in the node's namespace.
    pub name: String,
    /// Its name in the host's namespace; unique on the host.
    pub host_link: String,
    /// The host's address on it: what pods see as the source when the host connects.
    pub host_address: Ipv4Addr,
    /// Whether other nodes are reached through this one.
    pub hub: Hub,
}

/// The bridge for other nodes' ports, in the namespace of the node with the link to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hub {
    /// There are no other nodes, ever.
    No,
    /// There may be: a bridge of this name is completed and removed, but not asked for.
    Lazy(String),
    /// There are: a bridge of this name, and the cluster CIDR routed by the host.
    Ready(String),
}

impl Hub {
    /// Name of the bridge.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::No => None,
            Self::Lazy(name) | Self::Ready(name) => Some(name),
        }
    }
}

/// A pair of links between the node and the hub, which is the node with the link to the host. The link has no address: that of the
/// node's bridge answers on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FabricLink {
    /// Its name in the node's namespace.
    pub name: String,
    /// Its name in the hub's namespace. Created up, and never set up afterwards: one that is down was cut.
    pub port: String,
    /// Name of the bridge that the port is on, in the hub's namespace.
    pub hub: String,
    /// The hub's own address.
    pub hub_gateway: Ipv4Addr,
    /// Where the hub's pods have their addresses.
    pub hub_cidr: Cidr,
}

impl NodeNet {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`Kind::Invalid`], naming the field.
    pub fn validate(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::new(Kind::Invalid, text));
        let (inner, outer) = match &self.uplink {
            Uplink::Host(link) => {
                let mut inner = vec![self.bridge.as_str(), &link.name];
                inner.extend(link.hub.name());
                (inner, vec![link.host_link.as_str()])
            }
            Uplink::Fabric(link) => {
                (vec![self.bridge.as_str(), &link.name], vec![link.port.as_str(), &link.hub])
            }
        };
        for names in [&inner, &outer] {
            for (index, name) in names.iter().enumerate() {
                check_name(name)?;
                if names[..index].contains(name) {
                    return invalid(format!("two links are named {name}"));
                }
            }
        }
        if self.mark.is_empty() || self.mark.len() > 100 || self.mark.contains('@') {
            return invalid(format!("mark {:?}: 1 to 100 bytes without '@'", self.mark));
        }
        if !self.cluster_cidr.contains_all(self.pod_cidr) {
            return invalid(format!(
                "pod CIDR {} is not inside the cluster CIDR {}",
                self.pod_cidr, self.cluster_cidr
            ));
        }
        if self.cluster_cidr.overlaps(self.service_cidr) {
            return invalid(format!(
                "cluster CIDR {} and service CIDR {} overlap",
                self.cluster_cidr, self.service_cidr
            ));
        }
        if let Uplink::Fabric(link) = &self.uplink
            && link.hub_cidr.overlaps(self.pod_cidr)
        {
            return invalid(format!("pod CIDR {} overlaps the hub's {}", self.pod_cidr, link.hub_cidr));
        }
        if self.service_cidr.contains(self.gateway) || self.service_cidr.contains(self.outer_address()) {
            return invalid(format!("service CIDR {} contains an address of the node", self.service_cidr));
        }
        if self.gateway == self.outer_address() {
            return invalid(format!("both ends of the uplink have the address {}", self.gateway));
        }
        if let Some(dns) = self.dns
            && (dns == self.gateway || dns == self.outer_address() || self.cluster_cidr.contains(dns))
        {
            return invalid(format!("dns {dns}: an address of the node or of pods"));
        }
        if !(68..=65535).contains(&self.mtu) {
            return invalid(format!("mtu {}: 68 to 65535", self.mtu));
        }
        Ok(())
    }

    /// Alias of the node's own links.
    pub fn alias(&self) -> String {
        format!("{}/node", self.mark)
    }

    /// Alias of the node's port on the hub: it tells which routes must go with it.
    pub fn port_alias(&self) -> String {
        format!("{}{}", port_prefix(&self.mark), self.gateway)
    }

    /// Name of the link to the outside, in the node's namespace.
    pub fn uplink_name(&self) -> &str {
        match &self.uplink {
            Uplink::Host(link) => &link.name,
            Uplink::Fabric(link) => &link.name,
        }
    }

    /// Name of the link that leads to the other nodes, if any do.
    pub fn fabric_name(&self) -> Option<&str> {
        match &self.uplink {
            Uplink::Host(link) => link.hub.name(),
            Uplink::Fabric(link) => Some(&link.name),
        }
    }

    /// The next hop out: the host's address, or the hub's.
    pub fn outer_address(&self) -> Ipv4Addr {
        match &self.uplink {
            Uplink::Host(link) => link.host_address,
            Uplink::Fabric(link) => link.hub_gateway,
        }
    }
}

/// How the alias of a port begins; its address follows.
pub(crate) fn port_prefix(mark: &str) -> String {
    format!("{mark}/port@")
}

/// The address in a port's alias, whichever node's it is.
pub(crate) fn port_address(alias: &str) -> Option<Ipv4Addr> {
    alias.rsplit_once("/port@")?.1.parse().ok()
}
