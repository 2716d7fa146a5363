//! The node's network, as the yard wishes it.

use std::sync::Arc;

use netns::{Namespace, Node, NodeNet};

use crate::error::{Error, Kind, Result};
use crate::host::from_netns;
use crate::yard::Yard;

const MTU: u32 = 1500;

impl Yard {
    /// The pin of the namespace that plays the host in an isolated yard.
    pub fn host_netns(&self) -> std::path::PathBuf {
        self.netns_dir().join("host")
    }

    /// Begins the alias of every link of this yard's node.
    pub fn link_mark(&self) -> String {
        format!("podyard/{}/{}", self.name, self.node)
    }

    /// The network of the yard's own node.
    ///
    /// The gateway has the first address of the pod CIDR, the host the last: neither is given to a pod.
    ///
    /// # Errors
    /// `Invalid` for a pod CIDR without room.
    pub fn node_net(&self) -> Result<NodeNet> {
        let cidr = |cidr: crate::yard::Cidr| netns::Cidr::new(cidr.network, cidr.prefix).map_err(from_netns);
        let small = || Error::new(Kind::Invalid, format!("pod CIDR {}: too small", self.pod_cidr));
        let size = 1u32
            .checked_shl(32 - u32::from(self.pod_cidr.prefix))
            .filter(|size| *size >= 8)
            .ok_or_else(small)?;
        // A link name holds 15 bytes, and names of yards may begin alike.
        let hash = self
            .mark()
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Ok(NodeNet {
            mark: self.link_mark(),
            bridge: "pods".into(),
            uplink: "host".into(),
            host_link: format!("py{hash:08x}"),
            gateway: self.pod_cidr.nth(1).ok_or_else(small)?,
            host_address: self.pod_cidr.nth(size - 1).ok_or_else(small)?,
            pod_cidr: cidr(self.pod_cidr)?,
            service_cidr: cidr(self.service_cidr)?,
            mtu: MTU,
        })
    }
}

/// Makes the node's network namespace and its link to the host, or finds them. Idempotent. Answers what was done.
///
/// # Errors
/// What the kernel refuses; `Conflict` if the host routes one of our CIDRs elsewhere.
pub async fn ensure(yard: &Yard) -> Result<(Arc<Node>, Vec<netns::node::Step>)> {
    let (node, _) = Namespace::ensure(&yard.node_netns(&yard.node)).map_err(from_netns)?;
    let host = if yard.isolated {
        Namespace::ensure(&yard.host_netns()).map_err(from_netns)?.0
    } else {
        Namespace::current().map_err(from_netns)?
    };
    let (node, steps) = Node::ensure(yard.node_net()?, node, host).await.map_err(from_netns)?;
    Ok((Arc::new(node), steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_yard_has_its_own_link() {
        let one = Yard::isolated("one").unwrap().node_net().unwrap();
        let two = Yard::isolated("two").unwrap().node_net().unwrap();
        assert_ne!(one.host_link, two.host_link);
        assert_eq!(one.gateway.to_string(), "10.244.0.1");
        assert_eq!(one.host_address.to_string(), "10.244.0.255");
        one.validate().unwrap();
    }
}
