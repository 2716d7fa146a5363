//! What a node's network lacks. Pure: (wished, observed) → actions, in the order that the kernel needs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use crate::address::Address;
use crate::error::{Error, Kind, Result};
use crate::ipam::Cidr;
use crate::link::{Link, Mac, check_name, mac_of};
use crate::route::Route;

/// The network of one node, as wished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNet {
    /// Begins the alias of every link of ours: `podyard/yard/node-0`. No other may use it in the same host namespace.
    pub mark: String,
    /// Name of the bridge, in the node's namespace.
    pub bridge: String,
    /// Name of the link to the host, in the node's namespace.
    pub uplink: String,
    /// Name of the link to the node, in the host's namespace; unique on the host.
    pub host_link: String,
    /// Address of the bridge: every pod's next hop, and the node's own address.
    pub gateway: Ipv4Addr,
    /// The host's address on its link to the node: what pods see as the source when the host connects.
    pub host_address: Ipv4Addr,
    /// Where the node's pods have their addresses.
    pub pod_cidr: Cidr,
    /// Where virtual IPs live.
    pub service_cidr: Cidr,
    /// Bytes; of the bridge and the link to the host.
    pub mtu: u32,
}

/// Which namespace an action takes place in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The node's.
    Node,
    /// The host's, or what stands for it in an isolated yard.
    Host,
}

/// What there is in one namespace.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// All links.
    pub links: Vec<Link>,
    /// All IPv4 addresses.
    pub addresses: Vec<Address>,
    /// All IPv4 unicast routes of the main table.
    pub routes: Vec<Route>,
    /// Values of [`SYSCTLS`] and of the bridge's, by path beneath `/proc/sys/net`; absent ones are missing.
    pub sysctls: BTreeMap<String, String>,
}

/// One step towards the wish. Links go by name, because an index is known only once the link exists.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the like-named request")]
pub enum Action {
    /// Writes a file beneath `/proc/sys/net` of the node's namespace.
    Sysctl {
        path: String,
        value: String,
    },
    /// Removes a half of a pair whose other half is gone or wrong.
    DeleteLink {
        place: Place,
        link: String,
    },
    CreateBridge {
        name: String,
        mac: Mac,
        mtu: u32,
    },
    /// In the host's namespace, the other end in the node's.
    CreateVeth {
        host_link: String,
        uplink: String,
        mtu: u32,
    },
    SetAlias {
        place: Place,
        link: String,
        alias: String,
    },
    SetUp {
        place: Place,
        link: String,
    },
    AddAddress {
        place: Place,
        link: String,
        address: Ipv4Addr,
    },
    AddRoute {
        place: Place,
        link: String,
        destination: Cidr,
        via: Option<Ipv4Addr>,
        source: Option<Ipv4Addr>,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl { path, value } => write!(f, "node: write {value} to /proc/sys/net/{path}"),
            Self::DeleteLink { place, link } => write!(f, "{place}: delete link {link}"),
            Self::CreateBridge { name, .. } => write!(f, "node: create bridge {name}"),
            Self::CreateVeth { host_link, uplink, .. } => {
                write!(f, "host: create veth {host_link}, its peer {uplink} in node")
            }
            Self::SetAlias { place, link, alias } => write!(f, "{place}: mark link {link} as {alias}"),
            Self::SetUp { place, link } => write!(f, "{place}: set link {link} up"),
            Self::AddAddress { place, link, address } => {
                write!(f, "{place}: add address {address}/32 to {link}")
            }
            Self::AddRoute { place, link, destination, via: Some(via), .. } => {
                write!(f, "{place}: add route {destination} via {via} link {link}")
            }
            Self::AddRoute { place, link, destination, .. } => {
                write!(f, "{place}: add route {destination} link {link}")
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Host => "host",
        })
    }
}

/// What a node's namespace needs, beneath `/proc/sys/net`. A new namespace may inherit the host's settings
/// (`net.core.devconf_inherit_init_net`), so those that matter are written even where zero is the kernel's default.
/// Files that this kernel lacks are passed over, except the first.
pub const SYSCTLS: [(&str, &str); 7] = [
    ("ipv4/ip_forward", "1"),
    // Pods are /32 on one bridge: each forwarded packet leaves where it came in, which would earn a redirect.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    // The link to the host has no address of its own: it must answer for the bridge's.
    ("ipv4/conf/all/arp_ignore", "0"),
    ("ipv4/conf/default/arp_ignore", "0"),
    // Where br_netfilter is loaded: frames would be translated and delivered below IP, unseen by the forward hook. The data
    // path works either way (see `link::set_hairpin`), because the module may come later, with 1 for everyone.
    ("bridge/bridge-nf-call-iptables", "0"),
    // Nothing speaks IPv6 here yet; without this each link sends router solicitations and multicast reports.
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// The sysctl of the bridge itself; the kernel takes the logical or of this and `all`.
pub fn bridge_sysctl(bridge: &str) -> (String, &'static str) {
    (format!("ipv4/conf/{bridge}/send_redirects"), "0")
}

impl NodeNet {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`Kind::Invalid`], naming the field.
    pub fn validate(&self) -> Result<()> {
        for name in [&self.bridge, &self.uplink, &self.host_link] {
            check_name(name)?;
        }
        let invalid = |text: String| Err(Error::new(Kind::Invalid, text));
        if self.bridge == self.uplink {
            return invalid(format!("bridge and uplink are both named {}", self.bridge));
        }
        if self.mark.is_empty() || self.mark.len() > 100 || self.mark.contains('@') {
            return invalid(format!("mark {:?}: 1 to 100 bytes without '@'", self.mark));
        }
        if self.pod_cidr.overlaps(self.service_cidr) {
            return invalid(format!(
                "pod CIDR {} and service CIDR {} overlap",
                self.pod_cidr, self.service_cidr
            ));
        }
        if self.service_cidr.contains(self.gateway) || self.service_cidr.contains(self.host_address) {
            return invalid(format!("service CIDR {} contains an address of the node", self.service_cidr));
        }
        if self.gateway == self.host_address {
            return invalid(format!("gateway and host address are both {}", self.gateway));
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
}

/// What is lacking. Empty when all is as wished.
///
/// # Errors
/// [`Kind::AlreadyExists`] for a link of someone else's under our name, [`Kind::Conflict`] for a route of the host's into our
/// CIDRs, [`Kind::Invalid`] for a wish that cannot work.
pub fn plan(wish: &NodeNet, node: &Observed, host: &Observed) -> Result<Vec<Action>> {
    wish.validate()?;
    let mut actions = Vec::new();
    for (path, value) in SYSCTLS {
        let there = node.sysctls.get(path).map(String::as_str);
        if there != Some(value) && (there.is_some() || path == SYSCTLS[0].0) {
            actions.push(Action::Sysctl { path: path.into(), value: value.into() });
        }
    }
    // The node's own packets to itself go by loopback, a refusal of its own connection among them.
    if node.find("lo").is_some_and(|lo| !lo.up) {
        actions.push(Action::SetUp { place: Place::Node, link: "lo".into() });
    }
    let bridge = plan_bridge(wish, node, &mut actions)?;
    let (uplink, host_link) = plan_veth(wish, node, host, &mut actions)?;
    check_routes(wish, host, host_link)?;

    let mut layer3 = |place: Place,
                      observed: &Observed,
                      link: Option<&Link>,
                      name: &str,
                      address: Option<Ipv4Addr>,
                      routes: &[Wanted]| {
        if !link.is_some_and(|link| link.up) {
            actions.push(Action::SetUp { place, link: name.into() });
        }
        let index = link.map(|link| link.index);
        if let Some(address) = address
            && !observed
                .addresses
                .iter()
                .any(|there| Some(there.link) == index && there.address == address && there.prefix == 32)
        {
            actions.push(Action::AddAddress { place, link: name.into(), address });
        }
        for &(destination, via, source) in routes {
            let there = |route: &Route| {
                Some(route.link) == index
                    && (route.destination, route.via, route.source) == (destination, via, source)
            };
            if !observed.routes.iter().any(there) {
                actions.push(Action::AddRoute { place, link: name.into(), destination, via, source });
            }
        }
    };
    let everywhere = Cidr::new(Ipv4Addr::UNSPECIFIED, 0)?;
    let (gateway, host_address) = (wish.gateway, wish.host_address);
    layer3(Place::Node, node, bridge, &wish.bridge, Some(gateway), &[]);
    let out =
        [(Cidr::single(host_address), None, Some(gateway)), (everywhere, Some(host_address), Some(gateway))];
    layer3(Place::Node, node, uplink, &wish.uplink, None, &out);
    let back = [
        (Cidr::single(gateway), None, Some(host_address)),
        (wish.pod_cidr, Some(gateway), Some(host_address)),
        (wish.service_cidr, Some(gateway), Some(host_address)),
    ];
    layer3(Place::Host, host, host_link, &wish.host_link, Some(host_address), &back);

    let (path, value) = bridge_sysctl(&wish.bridge);
    // A new bridge takes over `default`, which is right by then.
    if bridge.is_some() && node.sysctls.get(&path).is_some_and(|there| there != value) {
        actions.push(Action::Sysctl { path, value: value.into() });
    }
    Ok(actions)
}

type Wanted = (Cidr, Option<Ipv4Addr>, Option<Ipv4Addr>);

fn plan_bridge<'a>(
    wish: &NodeNet,
    node: &'a Observed,
    actions: &mut Vec<Action>,
) -> Result<Option<&'a Link>> {
    let bridge = node.find(&wish.bridge);
    let alias = wish.alias();
    if let Some(link) = bridge {
        // Without an alias: made by us just before a crash; nobody else makes links in the node's namespace.
        let ours =
            link.kind.as_deref() == Some("bridge") && link.alias.as_ref().is_none_or(|there| *there == alias);
        if !ours {
            return Err(foreign(Place::Node, link));
        }
    } else {
        actions.push(Action::CreateBridge {
            name: wish.bridge.clone(),
            mac: mac_of(wish.gateway),
            mtu: wish.mtu,
        });
    }
    if bridge.and_then(|link| link.alias.as_ref()) != Some(&alias) {
        actions.push(Action::SetAlias { place: Place::Node, link: wish.bridge.clone(), alias });
    }
    Ok(bridge)
}

/// Both ends when they are a pair of ours; otherwise the pair is made anew.
fn plan_veth<'a>(
    wish: &NodeNet,
    node: &'a Observed,
    host: &'a Observed,
    actions: &mut Vec<Action>,
) -> Result<(Option<&'a Link>, Option<&'a Link>)> {
    let (uplink, host_link) = (node.find(&wish.uplink), host.find(&wish.host_link));
    let alias = wish.alias();
    let pair = uplink
        .zip(host_link)
        .filter(|(near, far)| near.peer == Some(far.index) && far.peer == Some(near.index));
    if let Some(link) = host_link {
        // Without an alias, the other end in our node's namespace proves that we made it.
        let ours = match &link.alias {
            Some(there) => *there == alias,
            None => pair.is_some(),
        };
        if !ours {
            return Err(foreign(Place::Host, link));
        }
    }
    if pair.is_none() {
        for (place, link) in [(Place::Node, uplink), (Place::Host, host_link)] {
            actions.extend(link.map(|link| Action::DeleteLink { place, link: link.name.clone() }));
        }
        actions.push(Action::CreateVeth {
            host_link: wish.host_link.clone(),
            uplink: wish.uplink.clone(),
            mtu: wish.mtu,
        });
    }
    let (uplink, host_link) = pair.unzip();
    for (place, link, name) in
        [(Place::Host, host_link, &wish.host_link), (Place::Node, uplink, &wish.uplink)]
    {
        if link.and_then(|link| link.alias.as_ref()) != Some(&alias) {
            actions.push(Action::SetAlias { place, link: name.clone(), alias: alias.clone() });
        }
    }
    Ok((uplink, host_link))
}

/// A route of the host's into one of our CIDRs would lead its traffic, or ours, astray.
fn check_routes(wish: &NodeNet, host: &Observed, ours: Option<&Link>) -> Result<()> {
    for route in &host.routes {
        let foreign = ours.is_none_or(|link| route.link != link.index);
        for cidr in [wish.pod_cidr, wish.service_cidr] {
            if foreign && route.destination.prefix() > 0 && route.destination.overlaps(cidr) {
                let link =
                    host.links.iter().find(|link| link.index == route.link).map_or("?", |link| &link.name);
                let text = format!(
                    "{cidr} overlaps the host's route {} on {link}: choose another CIDR",
                    route.destination
                );
                return Err(Error::new(Kind::Conflict, text));
            }
        }
    }
    Ok(())
}

impl Observed {
    fn find(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }
}

fn foreign(place: Place, link: &Link) -> Error {
    let alias = link.alias.as_deref().unwrap_or("none");
    Error::new(Kind::AlreadyExists, format!("{place}: link {} is not ours (alias {alias})", link.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> NodeNet {
        NodeNet {
            mark: "test/n0".into(),
            bridge: "pods".into(),
            uplink: "host".into(),
            host_link: "py-n0".into(),
            gateway: [10, 88, 0, 1].into(),
            host_address: [10, 88, 0, 2].into(),
            pod_cidr: "10.88.0.0/24".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            mtu: 1500,
        }
    }

    fn fresh() -> Observed {
        Observed {
            links: vec![Link { index: 1, name: "lo".into(), ..Link::default() }],
            sysctls: SYSCTLS.iter().map(|(path, _)| ((*path).into(), "x".into())).collect(),
            ..Observed::default()
        }
    }

    /// A toy kernel: what the world looks like after the actions.
    fn perform(actions: &[Action], node: &mut Observed, host: &mut Observed) {
        for action in actions {
            let mut next = u32::try_from(node.links.len() + host.links.len()).unwrap() + 10;
            let mut make = |side: &mut Observed, name: &str, kind: &str| {
                next += 1;
                side.links.push(Link {
                    index: next,
                    name: name.into(),
                    kind: Some(kind.into()),
                    ..Link::default()
                });
                next
            };
            let side = |place: Place| if place == Place::Node { 0 } else { 1 };
            match action {
                Action::Sysctl { path, value } => drop(node.sysctls.insert(path.clone(), value.clone())),
                Action::CreateBridge { name, .. } => {
                    make(node, name, "bridge");
                    node.sysctls.insert(bridge_sysctl(name).0, "0".into());
                }
                Action::CreateVeth { host_link, uplink, .. } => {
                    let (near, far) = (make(node, uplink, "veth"), make(host, host_link, "veth"));
                    node.links.last_mut().unwrap().peer = Some(far);
                    host.links.last_mut().unwrap().peer = Some(near);
                }
                Action::DeleteLink { place, link } => {
                    [&mut *node, &mut *host][side(*place)].links.retain(|there| there.name != *link);
                }
                Action::SetAlias { place, link, alias } => {
                    let sides = [&mut *node, &mut *host];
                    sides.into_iter().nth(side(*place)).unwrap().find_mut(link).alias = Some(alias.clone());
                }
                Action::SetUp { place, link } => {
                    let sides = [&mut *node, &mut *host];
                    sides.into_iter().nth(side(*place)).unwrap().find_mut(link).up = true;
                }
                Action::AddAddress { place, link, address } => {
                    let side = [&mut *node, &mut *host].into_iter().nth(side(*place)).unwrap();
                    let link = side.find_mut(link).index;
                    side.addresses.push(Address { link, address: *address, prefix: 32 });
                }
                Action::AddRoute { place, link, destination, via, source } => {
                    let side = [&mut *node, &mut *host].into_iter().nth(side(*place)).unwrap();
                    let link = side.find_mut(link).index;
                    side.routes.push(Route { destination: *destination, via: *via, link, source: *source });
                }
            }
        }
    }

    impl Observed {
        fn find_mut(&mut self, name: &str) -> &mut Link {
            self.links.iter_mut().find(|link| link.name == name).unwrap()
        }
    }

    #[test]
    fn from_nothing_and_then_nothing() {
        let (mut node, mut host) = (fresh(), Observed::default());
        let actions = plan(&wish(), &node, &host).unwrap();
        perform(&actions, &mut node, &mut host);
        assert_eq!(plan(&wish(), &node, &host).unwrap(), []);
    }

    /// Whatever prefix of the actions a crash let through, the next plan completes it.
    #[test]
    fn completes_after_a_crash_anywhere() {
        let all = plan(&wish(), &fresh(), &Observed::default()).unwrap();
        for cut in 0..all.len() {
            let (mut node, mut host) = (fresh(), Observed::default());
            perform(&all[..cut], &mut node, &mut host);
            let rest = plan(&wish(), &node, &host).unwrap();
            perform(&rest, &mut node, &mut host);
            assert_eq!(plan(&wish(), &node, &host).unwrap(), [], "cut at {cut}: {}", all[cut]);
        }
    }

    #[test]
    fn refuses_what_is_not_ours() {
        let mut host = Observed::default();
        host.links.push(Link {
            index: 7,
            name: "py-n0".into(),
            alias: Some("docker".into()),
            ..Link::default()
        });
        assert_eq!(plan(&wish(), &fresh(), &host).unwrap_err().kind(), Kind::AlreadyExists);
        let mut node = fresh();
        node.links.push(Link {
            index: 7,
            name: "pods".into(),
            kind: Some("dummy".into()),
            ..Link::default()
        });
        assert_eq!(plan(&wish(), &node, &Observed::default()).unwrap_err().kind(), Kind::AlreadyExists);
    }

    #[test]
    fn refuses_overlap_with_the_host() {
        let route =
            |text: &str| Route { destination: text.parse().unwrap(), via: None, link: 2, source: None };
        for (text, kind) in [
            ("10.0.0.0/8", Some(Kind::Conflict)),
            ("10.96.3.0/24", Some(Kind::Conflict)),
            ("0.0.0.0/0", None),
            ("192.168.0.0/16", None),
        ] {
            let host = Observed { routes: vec![route(text)], ..Observed::default() };
            assert_eq!(plan(&wish(), &fresh(), &host).err().map(|error| error.kind()), kind, "{text}");
        }
    }

    #[test]
    fn refuses_impossible_wishes() {
        let refused = |change: fn(&mut NodeNet)| {
            let mut wish = wish();
            change(&mut wish);
            wish.validate().unwrap_err().kind() == Kind::Invalid
        };
        assert!(refused(|wish| wish.bridge = "a-name-of-16-byte".into()));
        assert!(refused(|wish| wish.uplink = "a/b".into()));
        assert!(refused(|wish| wish.service_cidr = "10.88.0.0/16".parse().unwrap()));
        assert!(refused(|wish| wish.gateway = [10, 96, 0, 1].into()));
        assert!(refused(|wish| wish.mark.clear()));
        assert!(refused(|wish| wish.mtu = 20));
    }
}
