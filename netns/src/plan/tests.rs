use super::*;

fn wish() -> NodeNet {
    NodeNet {
        mark: "test/n0".into(),
        bridge: "pods".into(),
        uplink: Uplink::Host(HostLink {
            name: "host".into(),
            host_link: "py-n0".into(),
            host_address: [10, 88, 0, 2].into(),
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

fn hub() -> NodeNet {
    let mut wish = wish();
    if let Uplink::Host(link) = &mut wish.uplink {
        link.hub = Hub::Ready("fabric".into());
    }
    wish
}

fn further(index: u8) -> NodeNet {
    NodeNet {
        mark: format!("test/n{index}"),
        uplink: Uplink::Fabric(FabricLink {
            name: "fabric".into(),
            port: format!("f{index}"),
            hub: "fabric".into(),
            hub_gateway: wish().gateway,
            hub_cidr: wish().pod_cidr,
        }),
        gateway: [10, 88, index, 1].into(),
        pod_cidr: Cidr::around([10, 88, index, 0].into(), 24),
        ..wish()
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
fn perform(actions: &[Action], node: &mut Observed, outer: &mut Observed) {
    for action in actions {
        let mut next = u32::try_from(node.links.len() + outer.links.len()).unwrap() + 10;
        let mut make = |side: &mut Observed, name: &str, kind: &str| {
            next += 1;
            let (name, kind) = (name.into(), Some(kind.into()));
            side.links.push(Link { index: next, name, kind, ..Link::default() });
            next
        };
        let sides = [&mut *node, &mut *outer];
        let side = |place: Place| sides.into_iter().nth(usize::from(place != Place::Node)).unwrap();
        match action {
            Action::Sysctl { path, value } => drop(node.sysctls.insert(path.clone(), value.clone())),
            Action::CreateBridge { name, .. } => {
                make(node, name, "bridge");
                node.sysctls.insert(bridge_sysctl(name).0, "0".into());
            }
            Action::CreateVeth { link, bridge, uplink, .. } => {
                let controller = bridge.as_ref().map(|bridge| outer.find(bridge).unwrap().index);
                let (near, far) = (make(node, uplink, "veth"), make(outer, link, "veth"));
                node.links.last_mut().unwrap().peer = Some(far);
                let port = outer.links.last_mut().unwrap();
                (port.peer, port.controller, port.up) = (Some(near), controller, true);
            }
            Action::SetBridge { place, link, bridge } => {
                let side = side(*place);
                side.find_mut(link).controller = Some(side.find(bridge).unwrap().index);
            }
            Action::DeleteLink { place, link } => side(*place).links.retain(|there| there.name != *link),
            Action::SetAlias { place, link, alias } => {
                side(*place).find_mut(link).alias = Some(alias.clone());
            }
            Action::SetUp { place, link } => side(*place).find_mut(link).up = true,
            Action::AddAddress { place, link, address, .. } => {
                let side = side(*place);
                let link = side.find_mut(link).index;
                side.addresses.push(Address { link, address: *address, prefix: 32 });
            }
            Action::AddRoute { place, link, destination, hop, source } => {
                let side = side(*place);
                let link = link.as_ref().map_or(0, |link| side.find_mut(link).index);
                side.routes.push(Route { destination: *destination, hop: *hop, link, source: *source });
            }
        }
    }
}

impl Observed {
    fn find_mut(&mut self, name: &str) -> &mut Link {
        self.links.iter_mut().find(|link| link.name == name).unwrap()
    }
}

/// Each kind of node, with what there is outside it before.
fn kinds() -> [(NodeNet, Observed); 3] {
    let (mut node, mut host) = (fresh(), Observed::default());
    perform(&plan(&hub(), &node, &host).unwrap(), &mut node, &mut host);
    [(wish(), Observed::default()), (hub(), Observed::default()), (further(1), node)]
}

#[test]
fn from_nothing_and_then_nothing() {
    for (wish, mut outer) in kinds() {
        let mut node = fresh();
        let actions = plan(&wish, &node, &outer).unwrap();
        perform(&actions, &mut node, &mut outer);
        assert_eq!(plan(&wish, &node, &outer).unwrap(), []);
    }
}

/// Whatever prefix of the actions a crash let through, the next plan completes it.
#[test]
fn completes_after_a_crash_anywhere() {
    for (wish, before) in kinds() {
        let all = plan(&wish, &fresh(), &before).unwrap();
        for cut in 0..all.len() {
            let (mut node, mut outer) = (fresh(), before.clone());
            perform(&all[..cut], &mut node, &mut outer);
            let rest = plan(&wish, &node, &outer).unwrap();
            perform(&rest, &mut node, &mut outer);
            assert_eq!(plan(&wish, &node, &outer).unwrap(), [], "cut at {cut}: {}", all[cut]);
        }
    }
}

#[test]
fn a_node_becomes_a_hub_and_is_asked_to_be_none_no_more() {
    let (mut node, mut host) = (fresh(), Observed::default());
    perform(&plan(&wish(), &node, &host).unwrap(), &mut node, &mut host);
    let actions = plan(&hub(), &node, &host).unwrap();
    let words: Vec<_> = actions.iter().map(ToString::to_string).collect();
    assert_eq!(
        words,
        [
            "host: add route 10.88.0.0/16 via 10.88.0.1 link py-n0",
            "node: create bridge fabric",
            "node: mark link fabric as test/n0/node",
            "node: set link fabric up",
            "node: add route 10.88.0.0/16 unreachable",
        ]
    );
    perform(&actions, &mut node, &mut host);
    assert_eq!(plan(&wish(), &node, &host).unwrap(), [], "what is there for others stays");
    host.routes.retain(|route| route.destination != wish().cluster_cidr);
    let words: Vec<_> = plan(&wish(), &node, &host).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(words, ["host: add route 10.88.0.0/16 via 10.88.0.1 link py-n0"], "and is kept whole");
}

#[test]
fn a_cut_port_stays_cut_and_a_lost_one_comes_back() {
    let [.., (wish, mut outer)] = kinds();
    let mut node = fresh();
    perform(&plan(&wish, &node, &outer).unwrap(), &mut node, &mut outer);
    outer.find_mut("f1").up = false;
    assert_eq!(plan(&wish, &node, &outer).unwrap(), []);
    outer.find_mut("f1").controller = None;
    let words = |node: &Observed, outer: &Observed| -> Vec<String> {
        plan(&wish, node, outer).unwrap().iter().map(ToString::to_string).collect()
    };
    assert_eq!(words(&node, &outer), ["hub: make link f1 a port of fabric"]);
    outer.links.retain(|link| link.name != "f1");
    assert!(words(&node, &outer).contains(&"hub: create veth f1, its peer fabric in node".to_owned()));
    outer.links.retain(|link| link.name != "fabric");
    assert_eq!(plan(&wish, &node, &outer).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn two_nodes_cannot_have_the_same_addresses() {
    let [.., (one, mut outer)] = kinds();
    perform(&plan(&one, &fresh(), &outer).unwrap(), &mut fresh(), &mut outer);
    let mut two = further(2);
    assert!(plan(&two, &fresh(), &outer).is_ok());
    (two.pod_cidr, two.gateway) = (one.pod_cidr, one.gateway);
    assert_eq!(plan(&two, &fresh(), &outer).unwrap_err().kind(), Kind::Conflict);
    two.pod_cidr = "10.88.1.128/25".parse().unwrap();
    two.gateway = [10, 88, 1, 129].into();
    assert_eq!(plan(&two, &fresh(), &outer).unwrap_err().kind(), Kind::Conflict);
    // A pod that moved is no node.
    let fabric = outer.find("fabric").unwrap().index;
    let destination = "10.88.2.9/32".parse().unwrap();
    let hop = Hop::OnLink(one.gateway);
    outer.routes.push(Route { destination, hop, link: fabric, source: None });
    assert!(plan(&further(2), &fresh(), &outer).is_ok());
}

#[test]
fn refuses_what_is_not_ours() {
    let mut host = Observed::default();
    host.links.push(Link { index: 7, name: "py-n0".into(), alias: Some("docker".into()), ..Link::default() });
    assert_eq!(plan(&wish(), &fresh(), &host).unwrap_err().kind(), Kind::AlreadyExists);
    let mut node = fresh();
    node.links.push(Link { index: 7, name: "pods".into(), kind: Some("dummy".into()), ..Link::default() });
    assert_eq!(plan(&wish(), &node, &Observed::default()).unwrap_err().kind(), Kind::AlreadyExists);
}

#[test]
fn refuses_overlap_with_the_host() {
    let route = |text: &str, hop| Route { destination: text.parse().unwrap(), hop, link: 2, source: None };
    let (direct, nowhere) = (Hop::Direct, Hop::Unreachable);
    let conflict = Some(Kind::Conflict);
    for (text, hop, alone, with_others) in [
        ("10.0.0.0/8", direct, conflict, conflict),
        ("10.0.0.0/8", nowhere, None, None),
        ("10.96.3.0/24", direct, conflict, conflict),
        // The cluster's addresses are checked once they are routed.
        ("10.88.7.0/24", direct, None, conflict),
        ("0.0.0.0/0", direct, None, None),
        ("192.168.0.0/16", direct, None, None),
    ] {
        let host = Observed { routes: vec![route(text, hop)], ..Observed::default() };
        let refusal = |wish: &NodeNet| plan(wish, &fresh(), &host).err().map(|error| error.kind());
        assert_eq!((refusal(&wish()), refusal(&hub())), (alone, with_others), "{text}");
    }
}

#[test]
fn refuses_impossible_wishes() {
    let refused = |change: fn(&mut NodeNet)| {
        [wish(), hub(), further(1)].into_iter().all(|mut wish| {
            wish.validate().unwrap();
            change(&mut wish);
            wish.validate().is_err_and(|error| error.kind() == Kind::Invalid)
        })
    };
    assert!(refused(|wish| wish.bridge = "a-name-of-16-byte".into()));
    assert!(refused(|wish| wish.bridge = wish.uplink_name().into()));
    assert!(refused(|wish| wish.service_cidr = "10.88.0.0/16".parse().unwrap()));
    assert!(refused(|wish| wish.cluster_cidr = "10.0.0.0/8".parse().unwrap()));
    assert!(refused(|wish| wish.cluster_cidr = "10.99.0.0/16".parse().unwrap()));
    assert!(refused(|wish| wish.gateway = [10, 96, 0, 1].into()));
    assert!(refused(|wish| wish.gateway = wish.outer_address()));
    assert!(refused(|wish| wish.dns = Some(wish.gateway)));
    assert!(refused(|wish| wish.mark.clear()));
    assert!(refused(|wish| wish.mtu = 20));
    let mut overlap = further(1);
    overlap.pod_cidr = "10.88.0.128/25".parse().unwrap();
    assert!(overlap.validate().is_err());
}
