//! A node's network: observe, plan, apply; and the handle through which pods and services are served.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{AsyncSocket, TokioSocket};
use nix::errno::Errno;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use rtnetlink::Handle;

use crate::error::{Error, Errors, Kind, Result};
use crate::namespace::Namespace;
use crate::netlink::{Request, Route as Socket};
use crate::plan::{Action, NodeNet, Observed, Place, SYSCTLS, Uplink, bridge_sysctl, plan};
use crate::{Outcome, address, link, route};

/// A step taken, for the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The kernel's view: `RTM_NEWLINK(veth v0011aabb peer eth0)`.
    pub effect: String,
    /// How long it took.
    pub took: Duration,
}

/// A node whose network is set up. Keeps its namespace, that at the other end of its uplink, and a routing socket inside open.
pub struct Node {
    net: NodeNet,
    namespace: Namespace,
    outside: Namespace,
    bridge: u32,
    socket: Mutex<Socket>,
}

impl Node {
    /// Brings the node's network into the wished state, whatever state it is in. Idempotent; the steps tell what was missing.
    ///
    /// Runs on a tokio runtime with IO enabled.
    ///
    /// # Errors
    /// As [`plan`], or the kernel's refusals. What was done until then stays and is completed by the next call.
    ///
    /// # Cancellation
    /// May stop between two steps; the next call goes on.
    pub async fn ensure(net: NodeNet, namespace: Namespace, outside: Namespace) -> Result<(Self, Vec<Step>)> {
        let during = |error: Error| error.during(format!("set up the network of {}", net.mark));
        if namespace.inode()? == outside.inode()? {
            let text = "the node and what is outside it are the same namespace";
            return Err(during(Error::new(Kind::Invalid, text)));
        }
        let steps = Self::apply_plan(&net, &namespace, &outside).await.map_err(during)?;
        let node = Self::open(net, namespace, outside)?;
        if !steps.is_empty() {
            node.settle()
                .map_err(|error| error.during(format!("set up the network of {}", node.net.mark)))?;
        }
        Ok((node, steps))
    }

    /// A node that was set up before. Changes nothing, looks for its bridge only.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when the node was not set up.
    pub fn open(net: NodeNet, namespace: Namespace, outside: Namespace) -> Result<Self> {
        let mut socket = Socket::open(&namespace)?;
        let bridge = link::find(&mut socket, &net.bridge)?
            .ok_or_else(|| Error::new(Kind::NotFound, format!("bridge {} of {}", net.bridge, net.mark)))?
            .index;
        Ok(Self { net, namespace, outside, bridge, socket: Mutex::new(socket) })
    }

    /// Both ends of the uplink, the port before its bridge.
    fn settle(&self) -> Result<()> {
        let outer: &[&str] = match &self.net.uplink {
            Uplink::Host(link) => &[&link.host_link],
            Uplink::Fabric(link) => &[&link.port, &link.hub],
        };
        link::settle(&mut Socket::open(&self.outside)?, outer)?;
        link::settle(&mut self.socket(), &[self.net.uplink_name()])
    }

    /// What [`ensure`](Self::ensure) would do.
    ///
    /// # Errors
    /// As [`plan`].
    pub async fn plan(net: &NodeNet, namespace: &Namespace, outside: &Namespace) -> Result<Vec<Action>> {
        let mut node = Session::open(namespace)?.observe().await?;
        node.sysctls = read_sysctls(namespace, net)?;
        plan(net, &node, &Session::open(outside)?.observe().await?)
    }

    async fn apply_plan(net: &NodeNet, namespace: &Namespace, outside: &Namespace) -> Result<Vec<Step>> {
        let actions = Self::plan(net, namespace, outside).await?;
        if actions.is_empty() {
            return Ok(Vec::new());
        }
        let (mut inside, mut outside) = (Session::open(namespace)?, Session::open(outside)?);
        let mut steps = Vec::with_capacity(actions.len());
        for action in actions {
            let started = Instant::now();
            if let Action::Sysctl { path, value } = &action {
                write_sysctl(namespace, path, value)?;
            } else {
                let session = if place_of(&action) == Place::Node { &mut inside } else { &mut outside };
                let request = session.request_for(&action, namespace).await?;
                session.perform(request).await?;
            }
            steps.push(Step { effect: action.to_string(), took: started.elapsed() });
        }
        Ok(steps)
    }

    /// Removes the links, and with them the addresses and routes, that [`ensure`](Self::ensure) made in both namespaces. Pods' links
    /// go with the bridge's namespace, or by [`detach_many`](Self::detach_many); a hub's ports with theirs. The hub's routes to a
    /// node go by [`fabric::remove_port`](crate::fabric::remove_port). Idempotent, continues past failures.
    ///
    /// # Errors
    /// All that failed.
    pub fn remove(
        net: &NodeNet,
        namespace: Option<&Namespace>,
        outside: &Namespace,
    ) -> std::result::Result<Outcome, Errors> {
        let mut errors = Errors::default();
        let mut outcome = Outcome::Unchanged;
        let alias = net.alias();
        let mut doomed = vec![(namespace, net.uplink_name(), alias.clone())];
        match &net.uplink {
            Uplink::Host(link) => {
                doomed.insert(0, (Some(outside), &link.host_link, alias.clone()));
                doomed.extend(link.hub.name().map(|hub| (namespace, hub, alias.clone())));
            }
            Uplink::Fabric(link) => doomed.insert(0, (Some(outside), &link.port, net.port_alias())),
        }
        doomed.push((namespace, &net.bridge, alias));
        for (namespace, name, alias) in doomed {
            let Some(namespace) = namespace else { continue };
            let removed =
                Socket::open(namespace).and_then(|mut socket| remove_ours(&mut socket, name, &alias));
            if errors.note(removed) == Some(Outcome::Changed) {
                outcome = Outcome::Changed;
            }
        }
        errors.into_result().map(|()| outcome)
    }

    /// The wish this node was set up with.
    pub fn net(&self) -> &NodeNet {
        &self.net
    }

    /// The node's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The namespace at the other end of the uplink: the host's or what stands for it, or the hub's.
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// Index of the bridge.
    pub(crate) fn bridge(&self) -> u32 {
        self.bridge
    }

    pub(crate) fn socket(&self) -> MutexGuard<'_, Socket> {
        // A panic between two messages leaves the socket usable: answers carry sequence numbers.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An rtnetlink connection inside a namespace; its task ends when this is dropped.
struct Session {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    fn open(namespace: &Namespace) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let socket = namespace
            .run(|| {
                let _runtime = runtime.enter();
                let mut socket = TokioSocket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
                socket.socket_mut().bind_auto()?;
                socket.socket_mut().connect(&netlink_sys::SocketAddr::new(0, 0))?;
                Ok::<_, std::io::Error>(socket)
            })?
            .map_err(|error| Error::io("socket(AF_NETLINK, NETLINK_ROUTE)", error))?;
        let (connection, handle, _) = rtnetlink::from_socket(socket);
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    async fn observe(&self) -> Result<Observed> {
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("RTM_GETLINK", error))?;
        let addresses: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("RTM_GETADDR", error))?;
        let mut inet = RouteMessage::default();
        inet.header.address_family = AddressFamily::Inet;
        let routes: Vec<_> = self
            .handle
            .route()
            .get(inet)
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("RTM_GETROUTE", error))?;
        Ok(Observed {
            links: links
                .into_iter()
                .filter_map(|message| link::parse(&RouteNetlinkMessage::NewLink(message)))
                .collect(),
            addresses: addresses
                .into_iter()
                .filter_map(|message| address::parse(&RouteNetlinkMessage::NewAddress(message)))
                .collect(),
            routes: routes
                .into_iter()
                .filter_map(|message| route::parse(&RouteNetlinkMessage::NewRoute(message)))
                .collect(),
            sysctls: BTreeMap::new(),
        })
    }

    async fn index_of(&self, name: &str) -> Result<u32> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let message = found.try_next().await.map_err(|error| failed("RTM_GETLINK", error))?;
        message
            .map(|message| message.header.index)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("link {name}")))
    }

    async fn request_for(&self, action: &Action, node: &Namespace) -> Result<Request> {
        use std::os::fd::AsFd;
        Ok(match action {
            Action::Sysctl { .. } => return Err(Error::new(Kind::Internal, "a sysctl is no request")),
            Action::DeleteLink { link, .. } => link::delete(link),
            Action::CreateBridge { name, mac, mtu } => link::create_bridge(name, *mac, *mtu),
            Action::CreateVeth { link, bridge, uplink, uplink_mac, mtu, .. } => {
                let bridge = match bridge {
                    Some(bridge) => Some(self.index_of(bridge).await?),
                    None => None,
                };
                link::create_veth(&link::Veth {
                    name: link,
                    mtu: *mtu,
                    group: 0,
                    bridge,
                    mac: None,
                    peer_name: uplink,
                    peer_mac: *uplink_mac,
                    peer_namespace: node.as_fd(),
                })
            }
            Action::SetBridge { link, bridge, .. } => link::set_bridge(link, self.index_of(bridge).await?),
            Action::SetAlias { link, alias, .. } => link::set_alias(link, alias),
            Action::SetUp { link, .. } => link::set_up(link),
            Action::AddAddress { link, address, scope, .. } => {
                address::ensure(self.index_of(link).await?, *address, *scope)
            }
            Action::AddRoute { link, destination, hop, source, .. } => {
                let link = match link {
                    Some(link) => self.index_of(link).await?,
                    None => 0,
                };
                route::ensure(route::Route { destination: *destination, hop: *hop, link, source: *source })
            }
        })
    }

    async fn perform(&mut self, request: Request) -> Result<()> {
        let mut message = NetlinkMessage::from(request.message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
        let mut answers = self.handle.request(message).map_err(|error| failed(&request.name, error))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && let Some(code) = error.code
            {
                return Err(Error::sys(request.name, Errno::from_raw(-code.get())));
            }
        }
        Ok(())
    }
}

fn place_of(action: &Action) -> Place {
    match action {
        Action::Sysctl { .. } | Action::CreateBridge { .. } => Place::Node,
        Action::CreateVeth { place, .. }
        | Action::SetBridge { place, .. }
        | Action::DeleteLink { place, .. }
        | Action::SetAlias { place, .. }
        | Action::SetUp { place, .. }
        | Action::AddAddress { place, .. }
        | Action::AddRoute { place, .. } => *place,
    }
}

fn failed(call: &str, error: rtnetlink::Error) -> Error {
    match &error {
        rtnetlink::Error::NetlinkError(message) => {
            Error::sys(call, message.code.map_or(Errno::UnknownErrno, |code| Errno::from_raw(-code.get())))
        }
        _ => Error::new(Kind::Internal, format!("{call}: {error}")),
    }
}

fn remove_ours(socket: &mut Socket, name: &str, alias: &str) -> Result<Outcome> {
    match link::find(socket, name)? {
        Some(link) if link.alias.as_deref() == Some(alias) => match socket.perform(link::delete(name)) {
            Ok(()) => Ok(Outcome::Changed),
            Err(error) if error.kind() == Kind::NotFound => Ok(Outcome::Unchanged),
            Err(error) => Err(error),
        },
        _ => Ok(Outcome::Unchanged),
    }
}

/// `/proc/sys/net` shows the namespace of the thread that opens a file in it.
fn read_sysctls(namespace: &Namespace, net: &NodeNet) -> Result<BTreeMap<String, String>> {
    let paths = SYSCTLS.iter().map(|(path, _)| (*path).to_owned()).chain([bridge_sysctl(&net.bridge).0]);
    namespace.run(|| {
        let mut values = BTreeMap::new();
        for path in paths {
            let mut text = String::new();
            if let Ok(mut file) = fs::File::open(format!("/proc/sys/net/{path}"))
                && file.read_to_string(&mut text).is_ok()
            {
                values.insert(path, text.trim_end().to_owned());
            }
        }
        values
    })
}

fn write_sysctl(namespace: &Namespace, path: &str, value: &str) -> Result<()> {
    let full = format!("/proc/sys/net/{path}");
    namespace.run(|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(&full)
            .map_err(|error| Error::io(format!("open({full})"), error))?;
        // Whoever mounted something else over /proc must not receive our writes.
        let stat = fstatfs(&file).map_err(|errno| Error::sys(format!("fstatfs({full})"), errno))?;
        if stat.filesystem_type() != PROC_SUPER_MAGIC {
            return Err(Error::new(Kind::Denied, format!("{full} is not on procfs")));
        }
        file.write_all(value.as_bytes()).map_err(|error| Error::io(format!("write({full}, {value})"), error))
    })?
}
