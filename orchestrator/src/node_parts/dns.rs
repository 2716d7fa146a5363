//! Serves DNS on a node: names as the Services and EndpointSlices say, everything else asked upstream.
//!
//! ```text
//!  Feed ──► Names ◄── Server ◄── 10.96.0.10:53 inside the node's namespace
//!                        └──► Forwarder ──► node-0: the host's nameservers, asked from the host's namespace
//!                                           others: node-0
//! ```
//! The three loops do not wait for each other: names change while sockets are bound anew, and are answered while the
//! host's nameservers cannot be read. When none of this runs pods go on: only names are gone, and come back with it.

use super::feed::{Feed, Told};
use dns::{Forwarder, Names, Net, Place, Resolv, Server, Sockets};
use netns::{Cidr, Namespace};
use node::links::Links;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// The kinds that [`run`] wants.
pub(crate) const KINDS: &[&str] = &["services", "endpointslices"];

/// Where the host says whom it asks for names.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Whom to ask about names that are not the cluster's.
#[derive(Clone, Debug)]
pub(crate) enum Upstreams {
    /// These.
    Given(Vec<SocketAddr>),
    /// Those of a resolv.conf, as it is now and as it will be.
    File(PathBuf),
}

/// What serves where.
pub(crate) struct Config {
    /// The node's namespace.
    pub(crate) node: Namespace,
    /// Where to listen in it; the first is the one that pods are given.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// Blocks of addresses whose names nobody else knows.
    pub(crate) reverse: Vec<Cidr>,
    /// Where upstreams are asked from.
    pub(crate) outside: Namespace,
    /// Whom to ask.
    pub(crate) upstreams: Upstreams,
    /// What containers are told of Services: the same feed keeps both.
    pub(crate) links: Arc<Links>,
}

/// Serves until the feed ends.
///
/// # Errors
/// For a namespace that cannot be told from our own.
///
/// # Cancellation
/// May stop anywhere; nothing is left but the objects.
pub(crate) async fn run(feed: impl Feed, config: Config) -> netns::Result<()> {
    let Config { node, addresses, reverse, outside, upstreams, links } = config;
    let server = addresses.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
    let names = Names::new(Net { domain: dns::DOMAIN.into(), reverse, server });
    let addresses: Vec<SocketAddr> =
        addresses.into_iter().map(|address| SocketAddr::from((address, dns::PORT))).collect();
    let forwarder = Forwarder::new(Place::of(outside)?, addresses.clone());
    let server = Server { names: Arc::clone(&names), forwarder: Arc::clone(&forwarder) };
    tokio::select! {
        () = follow(feed, &names, &links) => Ok(()),
        never = serve(&node, &addresses, server) => match never {},
        never = ask(upstreams, &forwarder) => match never {},
    }
}

/// Keeps the names, and what containers are told, as the objects say.
async fn follow(mut feed: impl Feed, names: &Names, links: &Links) {
    while let Some(told) = feed.next().await {
        match told {
            Told::All(objects) => {
                let of = |kind: &'static str| objects.iter().filter(move |object| object.kind() == kind);
                names.sync(of("Service"), of("EndpointSlice"));
                links.sync(&objects);
            }
            Told::Changed(object) => {
                names.update([&object], []);
                links.put(&object);
            }
            Told::Gone(object) => {
                let key = object.key();
                names.update([], [&key]);
                links.remove(&key);
            }
        }
    }
}

/// Answers, with sockets made anew whenever they fail.
async fn serve(node: &Namespace, addresses: &[SocketAddr], server: Server) -> Infallible {
    let mut said = String::new();
    loop {
        let sockets: std::io::Result<Vec<Sockets>> =
            addresses.iter().map(|&address| Sockets::bind(node, address)).collect();
        let ended = match sockets {
            Ok(sockets) => {
                info!(?addresses, "DNS is served");
                said.clear();
                dns::serve(server.clone(), sockets).await
            }
            Err(error) => Err(error),
        };
        // The same failure is said once, however often it is met.
        if let Err(error) = ended
            && said != error.to_string()
        {
            warn!(%error, ?addresses, "serve DNS");
            said = error.to_string();
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Keeps the forwarder to whom there is to ask.
async fn ask(upstreams: Upstreams, forwarder: &Forwarder) -> Infallible {
    let path = match upstreams {
        Upstreams::Given(addresses) => {
            forwarder.set_upstreams(&addresses);
            return std::future::pending().await;
        }
        Upstreams::File(path) => path,
    };
    let (told, mut heard) = watch::channel(Resolv::default());
    let hear = async {
        loop {
            let nameservers = heard.borrow_and_update().nameservers.clone();
            if nameservers != forwarder.upstreams() {
                info!(?nameservers, "names of the rest of the world are asked of");
                forwarder.set_upstreams(&nameservers);
            }
            if heard.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let watch = async {
        loop {
            if let Err(error) = dns::resolv::watch(&path, told.clone()).await {
                warn!(path = %path.display(), %error, "watch the host's nameservers");
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        never = hear => never,
        never = watch => never,
    }
}
