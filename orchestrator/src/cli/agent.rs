//! `agent`: a further node's agent, which the node manager starts. The agent itself is `crate::agent`.

use std::net::SocketAddr;
use std::path::PathBuf;

use node::yard::Cidr;

use super::Globals;
use super::error::{Error, Outcome};
use super::up::Place;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// The node
    #[arg(long)]
    node: String,
    /// Addresses of its pods
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Cidr,
    /// Addresses of the first node's pods
    #[arg(long, value_name = "CIDR")]
    first_cidr: Option<Cidr>,
    /// Addresses of all pods
    #[arg(long, value_name = "CIDR")]
    cluster_cidr: Option<Cidr>,
    /// Virtual addresses of services
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<Cidr>,
    /// Where the API is
    #[arg(long, value_name = "IP:PORT")]
    api: SocketAddr,
    /// Holds the token
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
}

pub fn run(globals: &Globals, args: Args) -> Outcome {
    let mut yard = args.place.yard(globals)?;
    let given = [
        (args.first_cidr, &mut yard.pod_cidr),
        (args.cluster_cidr, &mut yard.cluster_cidr),
        (args.service_cidr, &mut yard.service_cidr),
    ];
    for (cidr, place) in given {
        *place = cidr.unwrap_or(*place);
    }
    let Args { node, pod_cidr, api, token_file, .. } = args;
    let config = crate::agent::Config { yard, node, pod_cidr, api, token_file };
    crate::agent::run(config).map_err(Error::Daemon)?;
    Ok(0)
}
