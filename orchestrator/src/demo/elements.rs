//! The map elements behind a virtual IP, as the kernel holds them.

use super::Failure;
use netns::nft::kernel::Kernel;
use netns::nft::ruleset;
use netns::service::ServiceTable;
use node::Yard;
use std::net::Ipv4Addr;

/// One line an element, in nft's own words.
pub(super) fn behind(yard: &Yard, vip: &str) -> Result<Vec<String>, Failure> {
    let address: Ipv4Addr = vip.parse().map_err(|_| format!("{vip:?} is not an address"))?;
    let namespace = netns::Namespace::open(&yard.node_netns(&yard.node))?;
    let mut table = ServiceTable::open(Kernel::open(&namespace)?, &yard.table(), yard.service_cidr)?;
    let mut lines = Vec::new();
    for (port, endpoints) in table.dump()?.ports.iter().filter(|(port, _)| port.address == address) {
        let key = format!("{} . {} . {}", port.address, port.protocol, port.port);
        lines.push(format!("set {:6} {{ {key} }}", ruleset::service_set(endpoints.len())));
        for (slot, endpoint) in endpoints.iter().enumerate() {
            let value = format!("{} . {}", endpoint.address, endpoint.port);
            lines.push(format!("map {:6} {{ {key} : {value} }}", ruleset::slot(slot)));
        }
    }
    Ok(lines)
}
