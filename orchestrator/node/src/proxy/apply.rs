//! Carries a plan into the node's kernel, and reads the kernel back.

use std::time::Instant;

use api::{Key, Object};
use netns::nft::Kernel;
use netns::service::State;
use netns::{Conntrack, Endpoint, Node, Outcome, Result, ServiceTable, Step, VirtualPort};

use super::memory::Memory;
use super::plan::Warning;

/// The proxy of one node. Holds two sockets inside the node's namespace.
pub struct Proxy {
    table: ServiceTable<Kernel>,
    conntrack: Conntrack,
    memory: Memory,
    /// Served no longer, flows not yet forgotten.
    stale: Vec<(VirtualPort, Endpoint)>,
}

/// What one [`Proxy::sync`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Whether the kernel differed.
    pub outcome: Outcome,
    /// Elements written or removed.
    pub elements: usize,
    /// For the journal: decision, transaction, forgotten flows.
    pub steps: Vec<Step>,
    /// Parts of the objects that are passed over; the same on every call while the objects stay the same.
    pub warnings: Vec<Warning>,
}

impl Proxy {
    /// Opens the node's table and reads what a predecessor left in it; writes nothing.
    ///
    /// `table` names it in nf_tables (letters, digits, `-`, `_`, `.`); one yard, one name.
    ///
    /// # Errors
    /// [`netns::Kind::Unsupported`] when the kernel lacks nf_tables, [`netns::Kind::Invalid`] for the name.
    pub fn open(node: &Node, table: &str) -> Result<Self> {
        let service_cidr = node.net().service_cidr;
        let table = ServiceTable::open(Kernel::open(node.namespace())?, table, service_cidr)?;
        let conntrack = Conntrack::open(node.namespace())?;
        Ok(Self { table, conntrack, memory: Memory::new(service_cidr), stale: Vec::new() })
    }

    /// Makes the kernel serve exactly these Services with these EndpointSlices, in one transaction. Idempotent.
    ///
    /// Blocks for tens of microseconds plus what the difference costs.
    ///
    /// Not to be called before the first full list: an empty one means that nothing shall be served.
    ///
    /// # Errors
    /// The kernel's refusal; what it served before goes on. To be tried again with the lists of then.
    pub fn sync<'a>(
        &mut self,
        services: impl IntoIterator<Item = &'a Object>,
        slices: impl IntoIterator<Item = &'a Object>,
    ) -> Result<Synced> {
        let started = Instant::now();
        self.memory.replace(services, slices);
        self.program(started)
    }

    /// As [`sync`](Self::sync), told only what changed since the last call. Costs what changed, and one walk over the virtual ports.
    ///
    /// # Errors
    /// As [`sync`](Self::sync). What it was told is not forgotten: the next call programs it too.
    pub fn update<'a>(
        &mut self,
        changed: impl IntoIterator<Item = &'a Object>,
        gone: impl IntoIterator<Item = &'a Key>,
    ) -> Result<Synced> {
        let started = Instant::now();
        changed.into_iter().for_each(|object| self.memory.put(object));
        gone.into_iter().for_each(|key| self.memory.remove(key));
        self.program(started)
    }

    fn program(&mut self, started: Instant) -> Result<Synced> {
        let wish = self.memory.wish();
        let effect = format!("plan {} virtual ports", wish.0.len());
        let mut steps = vec![Step { effect, took: started.elapsed() }];
        let applied = self.table.apply(wish)?;
        if applied.outcome == Outcome::Changed {
            let why = applied
                .rebuilt
                .map(|reason| format!(", the whole table because {reason}"))
                .unwrap_or_default();
            let (messages, elements) = (applied.work.messages, applied.work.elements);
            let effect = format!("nf_tables transaction: {messages} messages, {elements} elements{why}");
            steps.push(Step { effect, took: applied.took });
        }
        let started = Instant::now();
        // The rules are right by now. What a failure leaves, the next call tries again; what serves again, it leaves alone.
        self.stale.extend(applied.removed);
        self.stale.retain(|(port, endpoint)| {
            !wish.0.get(port).is_some_and(|endpoints| endpoints.contains(endpoint))
        });
        let forgotten = self.conntrack.forget(&self.stale)?;
        self.stale.clear();
        if forgotten > 0 {
            let effect = format!("forget UDP flows of {forgotten} removed endpoints");
            steps.push(Step { effect, took: started.elapsed() });
        }
        Ok(Synced {
            outcome: applied.outcome,
            elements: applied.work.elements,
            steps,
            warnings: self.memory.warnings(),
        })
    }

    /// The kernel's elements, read now: the endpoints behind each virtual port, by slot of the maps `ep-0`, `ep-1`, …
    ///
    /// # Errors
    /// [`netns::Kind::NotFound`] before the first [`sync`](Self::sync).
    pub fn dump(&mut self) -> Result<State> {
        self.table.dump()
    }

    /// Compares the kernel with what was programmed; after a difference the next [`sync`](Self::sync) corrects it.
    ///
    /// # Errors
    /// The socket's.
    pub fn verify(&mut self) -> Result<Outcome> {
        self.table.verify()
    }

    /// Serves nothing any more. Idempotent.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove(&mut self) -> Result<Outcome> {
        self.table.remove()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use netns::{HostLink, Hub, Namespace, NodeNet, PodNet, Uplink};
    use serde_json::json;

    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

    /// A node with two pods, all in namespaces of the test's own.
    fn yard() -> (Node, Vec<Namespace>) {
        let net = NodeNet {
            mark: "test/proxy".into(),
            bridge: "pods".into(),
            uplink: Uplink::Host(HostLink {
                name: "host".into(),
                host_link: "py-proxy".into(),
                host_address: [10, 88, 0, 2].into(),
                hub: Hub::No,
            }),
            gateway: [10, 88, 0, 1].into(),
            dns: None,
            pod_cidr: "10.88.0.0/24".parse().unwrap(),
            cluster_cidr: "10.88.0.0/24".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            mtu: 1500,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ensure = Node::ensure(net, Namespace::create().unwrap(), Namespace::create().unwrap());
        let node = runtime.block_on(ensure).unwrap().0;
        let attach = |index: u8| {
            let namespace = Namespace::create().unwrap();
            let pod = PodNet {
                link: format!("v{index:08x}"),
                owner: format!("uid-{index}"),
                address: [10, 88, 0, 10 + index].into(),
                mtu: 1500,
                group: 0,
            };
            node.attach(&pod, &namespace).unwrap();
            namespace
        };
        let pods = (0..2).map(attach).collect();
        (node, pods)
    }

    fn service() -> Object {
        Object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": VIP, "ports": [{"port": 80, "targetPort": 8080}]},
        }))
    }

    fn slice(ready: bool) -> Object {
        Object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-a", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.88.0.11"], "conditions": {"ready": ready}}],
        }))
    }

    #[test]
    fn root_objects_become_a_virtual_ip() {
        if !nix::unistd::geteuid().is_root() {
            // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
            _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: needs root\n");
            return;
        }
        let (node, pods) = yard();
        let listener = pods[1].listen((Ipv4Addr::UNSPECIFIED, 8080).into()).unwrap();
        let connect = || pods[0].connect_blocking((VIP, 80).into(), Duration::from_secs(3));
        let mut proxy = Proxy::open(&node, "yard").unwrap();
        assert_eq!(proxy.dump().unwrap_err().kind(), netns::Kind::NotFound);

        assert_eq!(proxy.sync([&service()], [&slice(true)]).unwrap().outcome, Outcome::Changed);
        let again = proxy.sync([&service()], [&slice(true)]).unwrap();
        assert_eq!((again.outcome, again.steps.len()), (Outcome::Unchanged, 1));
        let mut client = connect().unwrap();
        let mut server = listener.accept().unwrap().0;

        // The next daemon takes over; nothing is programmed anew and the connection lives.
        drop(proxy);
        let mut proxy = Proxy::open(&node, "yard").unwrap();
        assert_eq!(proxy.sync([&service()], [&slice(true)]).unwrap().outcome, Outcome::Unchanged);
        assert_eq!(proxy.dump().unwrap().ports.len(), 1);
        server.write_all(b"ok").unwrap();
        drop(server);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ok");

        proxy.update([&slice(false)], []).unwrap();
        assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let key = service().key();
        assert_eq!(proxy.update([], [&key]).unwrap().outcome, Outcome::Changed);
        assert_eq!(proxy.dump().unwrap().addresses, [].into());
        assert_eq!(proxy.update([], [&key]).unwrap().outcome, Outcome::Unchanged);
        assert_eq!(proxy.remove().unwrap(), Outcome::Changed);
        assert_eq!(proxy.remove().unwrap(), Outcome::Unchanged);
    }
}
