//! What others do to our links, addresses and routes: the kernel tells, nobody polls.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::netlink::{u16_at, u32_at};
use crate::plan::{NodeNet, Uplink};
use crate::{address, link, route};

// linux/rtnetlink.h
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const HEADER_BYTES: usize = 16;

/// News of the links, addresses and routes of one namespace.
pub struct Monitor {
    socket: TokioSocket,
}

impl Monitor {
    /// Listens from now on. On a tokio runtime with IO enabled.
    ///
    /// # Errors
    /// The socket's.
    pub fn open(namespace: &Namespace) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let socket = namespace
            .run(|| {
                let _runtime = runtime.enter();
                let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
                socket.socket_mut().bind_auto()?;
                for group in [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE] {
                    socket.socket_mut().add_membership(group)?;
                }
                Ok::<_, std::io::Error>(socket)
            })?
            .map_err(|error| Error::io("socket(AF_NETLINK, NETLINK_ROUTE)", error))?;
        Ok(Self { socket })
    }

    /// Waits for news that may mean that something of `net` is no longer as wished. Pods that come and go are none.
    ///
    /// # Errors
    /// The socket's. Lost news are news.
    ///
    /// # Cancellation
    /// Loses nothing but what was already received.
    pub async fn concerns(&mut self, net: &NodeNet) -> Result<()> {
        loop {
            match self.socket.recv_from_full().await {
                Ok((bytes, _)) if messages(&bytes).iter().any(|message| concerns(net, message)) => {
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(error) => return Err(Error::io("recvfrom(AF_NETLINK)", error)),
            }
        }
    }
}

fn messages(bytes: &[u8]) -> Vec<RouteNetlinkMessage> {
    let (mut rest, mut found) = (bytes, Vec::new());
    while rest.len() >= HEADER_BYTES {
        let length = usize::try_from(u32_at(rest, 0)).unwrap_or(0);
        let Some(payload) = rest.get(HEADER_BYTES..length) else { break };
        let mut header = NetlinkHeader::default();
        header.message_type = u16_at(rest, 4);
        // What the decoder does not know is not ours.
        found.extend(RouteNetlinkMessage::deserialize(&header, payload));
        rest = rest.get((length + 3) & !3..).unwrap_or(&[]);
    }
    found
}

/// Pure: whether a message may be about something that was set up for `net`, on either end of its uplink.
fn concerns(net: &NodeNet, message: &RouteNetlinkMessage) -> bool {
    let (outer, port) = match &net.uplink {
        Uplink::Host(link) => (&link.host_link, None),
        Uplink::Fabric(link) => (&link.hub, Some(link.port.as_str())),
    };
    let names =
        [Some(net.bridge.as_str()), Some(net.uplink_name()), net.fabric_name(), Some(outer.as_str()), port];
    let hub_cidr = match &net.uplink {
        Uplink::Host(_) => None,
        Uplink::Fabric(link) => Some(link.hub_cidr),
    };
    match message {
        RouteNetlinkMessage::DelLink(gone) => link::parse(&RouteNetlinkMessage::NewLink(gone.clone()))
            .is_some_and(|link| names.contains(&Some(link.name.as_str()))),
        // A port that is down was cut, which is to be remembered.
        RouteNetlinkMessage::NewLink(_) => link::parse(message).is_some_and(|link| {
            names.contains(&Some(link.name.as_str())) && (!link.up || port == Some(link.name.as_str()))
        }),
        RouteNetlinkMessage::DelAddress(gone) => {
            address::parse(&RouteNetlinkMessage::NewAddress(gone.clone())).is_some_and(|address| {
                [Some(net.gateway), net.dns, Some(net.outer_address())].contains(&Some(address.address))
            })
        }
        RouteNetlinkMessage::NewRoute(changed) | RouteNetlinkMessage::DelRoute(changed) => {
            route::parse(&RouteNetlinkMessage::NewRoute(changed.clone())).is_some_and(|route| {
                let cidr = route.destination;
                let ours = [Some(net.pod_cidr), Some(net.cluster_cidr), Some(net.service_cidr), hub_cidr];
                let own = [net.gateway, net.outer_address()];
                cidr.prefix() == 0
                    || ours.contains(&Some(cidr))
                    || (cidr.prefix() == 32 && own.contains(&cidr.network()))
            })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::ipam::Cidr;
    use crate::plan::{HostLink, Hub};
    use crate::route::{Hop, Route};

    fn net() -> NodeNet {
        NodeNet {
            mark: "test/n0".into(),
            bridge: "pods".into(),
            uplink: Uplink::Host(HostLink {
                name: "host".into(),
                host_link: "py-n0".into(),
                host_address: [10, 88, 0, 255].into(),
                hub: Hub::Lazy("fabric".into()),
            }),
            gateway: [10, 88, 0, 1].into(),
            dns: Some([10, 96, 0, 10].into()),
            pod_cidr: "10.88.0.0/24".parse().unwrap(),
            cluster_cidr: "10.88.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            mtu: 1500,
        }
    }

    #[test]
    fn only_what_was_set_up_concerns() {
        let named = |message: RouteNetlinkMessage| match message {
            RouteNetlinkMessage::DelLink(message) => message,
            _ => unreachable!(),
        };
        let gone = |name: &str| RouteNetlinkMessage::DelLink(named(link::delete(name).message));
        let down = |name: &str| RouteNetlinkMessage::NewLink(named(link::delete(name).message));
        for (name, expect) in
            [("pods", true), ("host", true), ("py-n0", true), ("v00000001", false), ("eth0", false)]
        {
            assert_eq!(concerns(&net(), &gone(name)), expect, "{name} gone");
            assert_eq!(concerns(&net(), &down(name)), expect, "{name} down");
        }
        let route = |text: &str| {
            let destination: Cidr = text.parse().unwrap();
            route::ensure(Route { destination, hop: Hop::Direct, link: 3, source: None }).message
        };
        for (text, expect) in [
            ("0.0.0.0/0", true),
            ("10.88.0.0/16", true),
            ("10.96.0.0/16", true),
            ("10.88.0.255/32", true),
            ("10.88.0.9/32", false),
            ("192.168.0.0/16", false),
        ] {
            assert_eq!(concerns(&net(), &route(text)), expect, "{text}");
        }
        let gone = |address: Ipv4Addr| match address::ensure(3, address, address::Scope::Universe).message {
            RouteNetlinkMessage::NewAddress(message) => RouteNetlinkMessage::DelAddress(message),
            other => other,
        };
        assert!(
            concerns(&net(), &gone([10, 88, 0, 1].into())) && concerns(&net(), &gone([10, 96, 0, 10].into()))
        );
        assert!(!concerns(&net(), &gone([10, 88, 0, 9].into())));
    }
}
