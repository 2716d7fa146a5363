//! `podyard up`: the daemon. Puts the parts together and keeps none of their state.
//!
//! ```text
//!  lock, sweep ─► store ─► registry ─► node's network ─► agent, proxy ─► socket ─► controllers
//! ```
//! It may be SIGKILLed at any instant: what runs is held by shims and by the kernel, what is wished by the store.

mod controllers;
mod dns_service;
mod everywhere;
mod fabric;
mod nodes;
mod objects;
mod remote_node;
mod volumes;

use crate::agent::peers;
use crate::node_parts::feed::StoreFeed;
use crate::node_parts::{dns, local, pods, proxy, upstream};
use api::{Kind, Object};
use node::Yard;
use node::agent::{self, Agent};
use node::fault::Fault;
use node::host::Upstream;
use node::links::Links;
use registry::Registry;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// How long deleted volumes are kept, unless told otherwise.
const TRASH_GRACE: Duration = Duration::from_secs(24 * 3600);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How the daemon behaves, beside where it lives.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a further node may be silent before it counts as unreachable.
    pub node_grace_period: Duration,
    /// Whom to ask about names that are not the cluster's; empty: whom the host asks.
    pub nameservers: Vec<SocketAddr>,
    /// How long the data of deleted claims stays in the trash, unless their class says otherwise.
    pub trash_grace: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { node_grace_period: nodes::GRACE_PERIOD, nameservers: Vec::new(), trash_grace: TRASH_GRACE }
    }
}

/// Runs the daemon until SIGTERM or SIGINT. Pods run on after it.
///
/// # Errors
/// What keeps it from starting: another daemon on the yard, a kernel without a feature (named), the disk's answer.
pub fn run(yard: Yard, options: Options) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Two workers serve a host: what blocks has threads of its own.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(serve(yard, options))
}

async fn serve(yard: Yard, options: Options) -> Result<(), Failure> {
    let begun = std::time::Instant::now();
    let lock = yard.open()?;
    let store = Arc::new(store::Log::open(&yard.store_dir())?);
    let config = registry::Config {
        service_cidr: registry::Cidr::new(yard.service_cidr.network(), yard.service_cidr.prefix()),
        ..registry::Config::default()
    };
    let registry = Arc::new(Registry::open(Arc::clone(&store), config).await?);
    ensure_storage_classes(&registry).await?;
    let dns_address = yard.dns_address();
    dns_service::ensure(&registry, dns_address).await?;
    let (network, steps) = node::network::ensure(&yard).await?;
    for step in steps {
        tracing::debug!(effect = step.effect, micros = step.took.as_micros() as u64, "node network");
    }
    let proxy = proxy::Shared::new(node::proxy::Proxy::open(&network, &yard.table())?);
    let links = Arc::new(Links::default());
    let config = agent::Config {
        yard: yard.clone(),
        network: Arc::clone(&network),
        applets: crate::toolbox::names().map(str::to_owned).collect(),
        nameservers: dns_address.into_iter().collect(),
        links: Arc::clone(&links),
        resolv_conf: (!yard.isolated).then(|| dns::RESOLV_CONF.into()),
        fault: Fault::from_environment()?,
    };
    let dns = dns::Config {
        node: network.namespace().try_clone()?,
        // Further nodes ask at the gateway, and so does who sits in the node's own namespace.
        addresses: dns_address.into_iter().chain([network.net().gateway]).collect(),
        reverse: vec![yard.service_cidr, yard.cluster_cidr],
        outside: network.outside().try_clone()?,
        upstreams: match options.nameservers {
            given if yard.isolated || !given.is_empty() => dns::Upstreams::Given(given),
            _ => dns::Upstreams::File(dns::RESOLV_CONF.into()),
        },
        links: Arc::clone(&links),
    };
    let upstream = Arc::new(upstream::Registrar::open(Arc::clone(&registry), &yard.node));
    let agent = Agent::new(config, Arc::clone(&upstream) as Arc<dyn Upstream>)?;
    upstream.node(agent.node_object()).await?;

    let keeper = volumes::Keeper::new(
        Arc::clone(&registry),
        Arc::clone(&upstream) as Arc<dyn Upstream>,
        rootfs::Volumes::new(yard.volumes_dir()),
        options.trash_grace,
    );
    let local =
        local::LocalNode { agent: Arc::clone(&agent), proxy: Arc::clone(&proxy), info: local::info(&yard) };
    let liveness = Arc::new(nodes::Liveness::default());
    let beats = Arc::clone(&liveness);
    let fabric = fabric::Fabric::new(Arc::clone(&agent.host().network), move |node| beats.beat(node));
    let parts = (liveness, Arc::clone(&fabric));
    let nodes = nodes::Nodes::new(Arc::clone(&registry), yard.clone(), options.node_grace_period, parts)?;
    let everywhere = everywhere::Everywhere {
        registry: Arc::clone(&registry),
        local: Arc::new(local),
        name: yard.node.clone(),
        fabric: Arc::clone(&fabric),
    };
    let server = server::Server::new(Arc::clone(&registry), Arc::new(everywhere));
    let server = server.with_door(Arc::clone(&fabric) as Arc<dyn server::Door>);
    let server = Arc::new(server.with_volumes(Arc::clone(&keeper) as Arc<dyn server::volumes::VolumesApi>));
    let listener = server::listen(&yard.socket)?;
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    info!(
        socket = %yard.socket.display(),
        fresh_boot = lock.fresh_boot,
        took_ms = begun.elapsed().as_millis() as u64,
        "the yard {} is up",
        yard.name
    );
    let shutdown = async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
    };
    let others = StoreFeed::new(Arc::clone(&store), &["nodes"]);
    let routes = peers::run(others, Arc::clone(&agent.host().network), yard.node.clone(), peers::Of::First);
    let own_pods = StoreFeed::new(Arc::clone(&store), pods::KINDS);
    tokio::select! {
        () = fabric.serve(Arc::clone(&server)) => {}
        () = server::serve(listener, server, shutdown) => info!("asked to end; pods run on"),
        () = controllers::drive(registry, Arc::clone(&nodes)) => {
            return Err("the store closed under the controllers".into());
        }
        () = routes => return Err("the store closed under the routes to other nodes".into()),
        () = node::network::watch(&yard) => return Err("the watch of the node's network ended".into()),
        () = nodes.run() => return Err("the store closed under the node manager".into()),
        () = proxy::run(StoreFeed::new(Arc::clone(&store), proxy::KINDS), proxy) => {
            return Err("the store closed under the proxy".into());
        }
        ended = dns::run(StoreFeed::new(Arc::clone(&store), dns::KINDS), dns) => {
            return Err(ended.err().map_or_else(|| "the store closed under the DNS".into(), Failure::from));
        }
        () = async {
            links.known().await;
            pods::feed(own_pods, Arc::clone(&agent)).await;
        } => {
            return Err("the agent stopped".into());
        }
        () = keeper.run(StoreFeed::new(store, volumes::KINDS)) => {
            return Err("the store closed under the volumes".into());
        }
    }
    Ok(())
}

/// The classes that are there from the start: claims that name none get `host`, whose volumes hold what they were
/// asked for and no more; `directory` is for those who want plain directories.
async fn ensure_storage_classes<S: store::Store>(registry: &Registry<S>) -> Result<(), api::Error> {
    for (name, is_default, parameters) in
        [("host", "true", json!({})), ("directory", "false", json!({"enforcement": "none"}))]
    {
        let class = Object(json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": name,
                "annotations": {"storageclass.kubernetes.io/is-default-class": is_default},
            },
            "provisioner": node::volumes::DRIVER,
            "parameters": parameters,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
            "allowVolumeExpansion": true,
        }));
        let key = class.key();
        match registry.create(key.resource, "", class.0, &registry::WriteOptions::default()).await {
            Err(error) if error.kind() == Kind::AlreadyExists => {}
            other => drop(other?),
        }
    }
    Ok(())
}
