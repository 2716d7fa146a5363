//! A host, a hub and further nodes, two pods on each, all in namespaces of their own.

use std::net::Ipv4Addr;

use netns::node::Step;
use netns::{Cidr, FabricLink, HostLink, Hub, Moved, Namespace, Node, NodeNet, Peer, PodNet, Uplink};

use super::{Server, block_on};

pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
const PODS: u32 = 2;

pub fn cidr(node: usize) -> Cidr {
    Cidr::around(gateway(node), 24)
}

pub fn gateway(node: usize) -> Ipv4Addr {
    [10, 88, u8::try_from(node).unwrap(), 1].into()
}

pub fn pod_address(node: usize, index: u32) -> Ipv4Addr {
    cidr(node).nth(10 + index).unwrap()
}

pub fn port(node: usize) -> String {
    format!("f{node}")
}

pub fn pod(node: usize, index: u32) -> PodNet {
    PodNet {
        link: format!("v{node:04x}{index:04x}"),
        owner: format!("uid-{node}-{index}"),
        address: pod_address(node, index),
        mtu: 1500,
        group: 0,
    }
}

pub fn net(node: usize) -> NodeNet {
    let uplink = match node {
        0 => Uplink::Host(HostLink {
            name: "host".into(),
            host_link: "py-n0".into(),
            host_address: cidr(0).last(),
            hub: Hub::Lazy("fabric".into()),
        }),
        _ => Uplink::Fabric(FabricLink {
            name: "fabric".into(),
            port: port(node),
            hub: "fabric".into(),
            hub_gateway: gateway(0),
            hub_cidr: cidr(0),
        }),
    };
    NodeNet {
        mark: format!("test/n{node}"),
        bridge: "pods".into(),
        uplink,
        gateway: gateway(node),
        dns: Some([10, 96, 0, 10].into()),
        pod_cidr: cidr(node),
        cluster_cidr: "10.88.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        mtu: 1500,
    }
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pods: Vec<Vec<Namespace>>,
}

impl Cluster {
    /// The first of `count` nodes is the hub.
    pub fn new(count: usize) -> Self {
        let (namespace, host) = (Namespace::create().unwrap(), Namespace::create().unwrap());
        let hub = block_on(Node::ensure(net(0), namespace, host)).unwrap().0;
        let mut cluster = Self { nodes: vec![hub], pods: Vec::new() };
        for index in 1..count {
            cluster.ensure_hub();
            let (node, hub) = (Namespace::create().unwrap(), cluster.hub().try_clone().unwrap());
            cluster.nodes.push(block_on(Node::ensure(net(index), node, hub)).unwrap().0);
        }
        for (index, node) in cluster.nodes.iter().enumerate() {
            let attach = |number| {
                let namespace = Namespace::create().unwrap();
                node.attach(&pod(index, number), &namespace).unwrap();
                namespace
            };
            cluster.pods.push((0..PODS).map(attach).collect());
        }
        cluster.set_peers(&[]);
        cluster
    }

    fn ensure_hub(&self) -> Vec<Step> {
        let mut wish = net(0);
        if let Uplink::Host(link) = &mut wish.uplink {
            link.hub = Hub::Ready("fabric".into());
        }
        let (inside, outside) = (self.hub().try_clone().unwrap(), self.host().try_clone().unwrap());
        block_on(Node::ensure(wish, inside, outside)).unwrap().1
    }

    /// Sets a further node up again; the steps are the hub's and its own.
    pub fn ensure(&self, index: usize) -> (Node, Vec<Step>) {
        let mut steps = self.ensure_hub();
        let namespace = self.nodes[index].namespace().try_clone().unwrap();
        let (node, more) =
            block_on(Node::ensure(net(index), namespace, self.hub().try_clone().unwrap())).unwrap();
        steps.extend(more);
        (node, steps)
    }

    pub fn peers(&self) -> Vec<Peer> {
        (0..self.nodes.len()).map(|node| Peer { cidr: cidr(node), gateway: gateway(node) }).collect()
    }

    pub fn set_peers(&self, moved: &[Moved]) {
        let peers = self.peers();
        let peers = if peers.len() > 1 { &peers[..] } else { &[] };
        for node in &self.nodes {
            node.set_peers(peers, moved).unwrap();
        }
    }

    pub fn host(&self) -> &Namespace {
        self.nodes[0].outside()
    }

    pub fn hub(&self) -> &Namespace {
        self.nodes[0].namespace()
    }

    pub fn pod(&self, node: usize, index: u32) -> &Namespace {
        &self.pods[node][index as usize]
    }

    /// A server on the first pod of each node.
    pub fn serve(&self, port: u16) -> Vec<Server> {
        let start = |node: usize| {
            Server::start(self.pod(node, 0), pod_address(node, 0), port, &format!("pod-{node}-0"))
        };
        (0..self.nodes.len()).map(start).collect()
    }

    /// Every pod and the host, with the address that they are known by.
    pub fn everyone(&self) -> Vec<(&Namespace, Ipv4Addr)> {
        let mut all = vec![(self.host(), self.nodes[0].net().outer_address())];
        for (node, pods) in self.pods.iter().enumerate() {
            all.extend(pods.iter().zip(0..).map(|(pod, index)| (pod, pod_address(node, index))));
        }
        all
    }

    /// The node that a pod is on.
    pub fn node_of(&self, who: &Namespace) -> Option<usize> {
        self.pods.iter().position(|pods| pods.iter().any(|pod| std::ptr::eq(pod, who)))
    }

    /// The name of the server on a pod.
    pub fn name_of(&self, who: &Namespace) -> Option<String> {
        let node = self.node_of(who)?;
        std::ptr::eq(self.pod(node, 0), who).then(|| format!("pod-{node}-0"))
    }

    pub fn gateway_of(&self, who: &Namespace) -> Ipv4Addr {
        gateway(self.node_of(who).unwrap())
    }
}
