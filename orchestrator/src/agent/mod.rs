//! `podyard agent`: a further node's agent, a process of its own. The node manager in the daemon starts it.
//!
//! ```text
//!  the node's network namespace, entered before there is a second thread
//!
//!  link   heartbeat every second ──────────────┐
//!  feeds  pods of this node ──► node::Agent    ├──► API, <node-0's gateway>:6443, by token
//!         services, slices  ──► proxy, DNS     │
//!         nodes             ──► routes         │
//!  objects  status, events, claims ────────────┘
//!  server   <own gateway>:10250 ◄── the daemon: logs, exec, trace, …, by the same token
//! ```
//! It reaches the API over the fabric only. When that is lost it says so, keeps its pods running and its kernel as it
//! is, and goes on from where it was when the API is back. It knows of no pod but those on its list: what is not there
//! any more when it is back is torn down.
//!
//! **Law: at most one.** That this process may be wrong about the world is no danger: before its pods' claims are given
//! to others, its whole cgroup is killed, itself included; and each holder is written at the resource version at which
//! the claim was read.

mod door;
mod feed;
mod link;
mod objects;
pub(crate) mod peers;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, Connect};
use futures::future::FutureExt;
use node::agent::{self, Agent};
use node::fault::Fault;
use node::host::Upstream;
use node::links::Links;
use node::{Cidr, Yard};
use server::{Door, NodeServer};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::node_parts::upstream::Registrar;
use crate::node_parts::{AGENT_PORT, dns, local, pods, proxy};
use feed::{Kind, RemoteFeed};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Pause before the node's object is written again after a refusal.
const RETRY: Duration = Duration::from_secs(1);

/// Which node, and how to reach the API.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The whole yard.
    pub(crate) yard: Yard,
    /// The node.
    pub(crate) node: String,
    /// Addresses of its pods.
    pub(crate) pod_cidr: Cidr,
    /// Where the API is.
    pub(crate) api: SocketAddr,
    /// Holds the token.
    pub(crate) token_file: PathBuf,
}

/// Runs the agent until SIGTERM. Pods run on after it.
///
/// # Errors
/// What keeps it from starting: another agent on the node, no network, the disk's answer.
pub(crate) fn run(config: Config) -> Result<(), Failure> {
    // Before any other thread: each thread has the namespace of the one that started it. setns(2).
    let namespace = netns::Namespace::open(&config.yard.node_netns(&config.node))?;
    nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
    drop(namespace);
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // On a worker: what this thread runs itself, it is woken for by another one, each second.
    runtime.block_on(async { tokio::spawn(serve(config)).await? })
}

async fn serve(config: Config) -> Result<(), Failure> {
    let begun = std::time::Instant::now();
    let Config { yard: whole, node: name, pod_cidr, api, token_file } = config;
    let yard = whole.of_node(&name, pod_cidr);
    let lock = yard.open()?;
    let token = std::fs::read_to_string(&token_file)
        .map_err(|error| format!("read {}: {error}", token_file.display()))?;
    let token: Arc<str> = token.trim().into();
    let network = node::network::open_node(&whole, &name, pod_cidr)?;
    let gateway = network.net().gateway;
    let client = Client::tcp(api, &token, from(gateway.into()));

    let (up, link) = watch::channel(false);
    let objects = Arc::new(objects::Remote::new(client.clone(), link.clone()));
    let upstream = Arc::new(Registrar::open(objects, &name));
    let proxy = proxy::Shared::new(node::proxy::Proxy::open(&network, &yard.table())?);
    let links = Arc::new(Links::default());
    let agent_config = agent::Config {
        yard: yard.clone(),
        network: Arc::clone(&network),
        applets: crate::toolbox::names().map(str::to_owned).collect(),
        nameservers: network.net().dns.into_iter().collect(),
        links: Arc::clone(&links),
        resolv_conf: (!yard.isolated).then(|| dns::RESOLV_CONF.into()),
        fault: Fault::of_agents()?,
    };
    let dns = dns::Config {
        node: network.namespace().try_clone()?,
        addresses: network.net().dns.into_iter().chain([gateway]).collect(),
        reverse: vec![whole.service_cidr, whole.cluster_cidr],
        // From this node: the first one knows whom the host asks.
        outside: network.namespace().try_clone()?,
        upstreams: dns::Upstreams::Given(vec![(api.ip(), ::dns::PORT).into()]),
        links: Arc::clone(&links),
    };
    let agent = Agent::new(agent_config, Arc::clone(&upstream) as Arc<dyn Upstream>)?;

    let local =
        local::LocalNode { agent: Arc::clone(&agent), proxy: Arc::clone(&proxy), info: local::info(&yard) };
    let server = Arc::new(NodeServer::new(Arc::new(local)));
    let door = Arc::new(door::DaemonsDoor::new(Arc::clone(&token), api.ip())) as Arc<dyn Door>;
    let listener = TcpListener::bind((gateway, AGENT_PORT)).await?;
    let mut term = signal(SignalKind::terminate())?;
    info!(
        node = name,
        %api,
        fresh_boot = lock.fresh_boot,
        took_ms = begun.elapsed().as_millis() as u64,
        "the agent of node {name} is up"
    );

    let beats = tokio::spawn(link::keep(client.clone(), name.clone(), up));
    let feed = |kinds: Vec<Kind>| RemoteFeed::start(client.clone(), link.clone(), kinds);
    let own = format!("spec.nodeName={name}");
    let own_pods = feed(pods::KINDS.iter().map(|plural| Kind::selected(plural, &own)).collect());
    let shutdown = async move {
        let _ = term.recv().await;
    };
    tokio::select! {
        () = server::serve_tcp(listener, server, door, shutdown) => info!("asked to end; pods run on"),
        ended = beats => match ended? {},
        never = tell_node(upstream, Arc::clone(&agent), link.clone()) => match never {},
        () = async {
            links.known().await;
            pods::feed(own_pods, agent).await;
        } => return Err("the agent stopped".into()),
        () = proxy::run(feed(proxy::KINDS.iter().map(|plural| Kind::all(plural)).collect()), proxy) => {
            return Err("the feed of services ended".into());
        }
        ended = dns::run(feed(dns::KINDS.iter().map(|plural| Kind::all(plural)).collect()), dns) => {
            return Err(ended.err().map_or_else(|| "the feed of names ended".into(), Failure::from));
        }
        () = peers::run(feed(vec![Kind::all("nodes")]), network, name, peers::Of::Further) => {
            return Err("the feed of nodes ended".into());
        }
    }
    Ok(())
}

/// Connects from one address: the one at which the daemon expects this node.
fn from(source: std::net::IpAddr) -> Connect {
    Arc::new(move |address| {
        async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind((source, 0).into())?;
            socket.connect(address).await
        }
        .boxed()
    })
}

/// Writes the node's object each time the API is there again: others may have written meanwhile that it is gone.
async fn tell_node(
    upstream: Arc<dyn Upstream>,
    agent: Arc<Agent>,
    mut link: watch::Receiver<bool>,
) -> std::convert::Infallible {
    loop {
        link::wait_up(&mut link).await;
        match upstream.node(agent.node_object()).await {
            Ok(()) => link::wait_down(&mut link).await,
            Err(error) => {
                warn!(%error, "write the node's object");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
