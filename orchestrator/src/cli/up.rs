//! `up`: the daemon's flags. The daemon itself is `crate::daemon`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use node::yard::{Cidr, Yard};

use super::Globals;
use super::error::{Error, Outcome};

/// Two heartbeats: with less, a healthy node would be given up.
const NODE_GRACE_PERIOD_MIN: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Addresses of the first node's pods
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Option<Cidr>,
    /// Addresses of all nodes' pods [default: the /16 around the first node's]
    #[arg(long, value_name = "CIDR")]
    cluster_cidr: Option<Cidr>,
    /// How long a further node may be silent before it counts as unreachable and its pods move
    #[arg(long, value_name = "TIME", default_value = "4s", value_parser = super::wait::duration)]
    node_grace_period: Duration,
    /// How long the data of deleted claims can be taken back, as 30m, 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = grace)]
    trash_grace: Duration,
    /// Virtual addresses of services
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<Cidr>,
    /// Whom to ask about names outside of the cluster, from the host; repeatable [default: /etc/resolv.conf]
    #[arg(long = "nameserver", value_name = "IP[:PORT]", value_parser = nameserver)]
    nameservers: Vec<SocketAddr>,
}

fn nameserver(text: &str) -> Result<SocketAddr, String> {
    let plain = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, dns::PORT));
    text.parse().or_else(|_| plain()).map_err(|_| format!("{text:?} is neither an address nor address:port"))
}

/// Which yard, and where it lives.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// A yard that touches nothing of the host's network
    #[arg(long, requires = "name")]
    isolated: bool,
    /// The yard's name, beside any others
    #[arg(long)]
    name: Option<String>,
    /// Store, images, volumes
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Sockets and runtime state
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Container logs
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
}

impl Place {
    /// Whether any flag says something.
    pub fn is_given(&self) -> bool {
        self.name.is_some() || self.data_dir.is_some() || self.run_dir.is_some() || self.log_dir.is_some()
    }

    /// The yard that is meant.
    ///
    /// # Errors
    /// `Usage` for a name that cannot be part of paths.
    pub fn yard(&self, globals: &Globals) -> Result<Yard, Error> {
        let mut yard = match &self.name {
            Some(name) => {
                let named = Yard::isolated(name).map_err(|error| Error::Usage(error.to_string()))?;
                Yard { isolated: self.isolated, ..named }
            }
            None => Yard::host(),
        };
        if let Some(dir) = &self.data_dir {
            yard.data_dir.clone_from(dir);
        }
        if let Some(dir) = &self.run_dir {
            yard.run_dir.clone_from(dir);
            yard.socket = dir.join("podyard.sock");
            if self.name.is_some() {
                yard.log_dir = dir.join("logs");
            }
        }
        if let Some(dir) = &self.log_dir {
            yard.log_dir.clone_from(dir);
        }
        if let Some(socket) = &globals.socket {
            yard.socket.clone_from(socket);
        }
        // Shims and agents have other working directories.
        for path in [&mut yard.data_dir, &mut yard.run_dir, &mut yard.log_dir, &mut yard.socket] {
            *path = std::path::absolute(&*path)
                .map_err(|error| Error::Usage(format!("{}: {error}", path.display())))?;
        }
        Ok(yard)
    }
}

fn grace(text: &str) -> Result<Duration, String> {
    api::storage::duration(text).ok_or_else(|| "must be a duration such as 0s, 30m, 24h, 7d".into())
}

pub fn run(globals: &Globals, args: Args) -> Outcome {
    let mut yard = args.place.yard(globals)?;
    if let Some(cidr) = args.pod_cidr {
        yard.pod_cidr = cidr;
        yard.cluster_cidr = cidr.widened(16);
    }
    if let Some(cidr) = args.cluster_cidr {
        yard.cluster_cidr = cidr;
    }
    if !yard.cluster_cidr.contains_all(yard.pod_cidr) {
        let text =
            format!("--pod-cidr {} is not part of --cluster-cidr {}", yard.pod_cidr, yard.cluster_cidr);
        return Err(Error::Usage(text));
    }
    if let Some(cidr) = args.service_cidr {
        yard.service_cidr = cidr;
    }
    if args.node_grace_period < NODE_GRACE_PERIOD_MIN {
        let text = format!(
            "--node-grace-period: at least {NODE_GRACE_PERIOD_MIN:?}: nodes are heard of once a second"
        );
        return Err(Error::Usage(text));
    }
    let options = crate::daemon::Options {
        node_grace_period: args.node_grace_period,
        nameservers: args.nameservers,
        trash_grace: args.trash_grace,
    };
    crate::daemon::run(yard, options).map_err(Error::Daemon)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        place: Place,
    }

    fn yard(line: &str, socket: Option<&str>) -> Yard {
        let globals = Globals { socket: socket.map(PathBuf::from), namespace: None };
        Line::try_parse_from(line.split(' ')).unwrap().place.yard(&globals).unwrap()
    }

    #[test]
    fn yards() {
        assert_eq!(yard("up", None), Yard::host());
        let test = yard("up --isolated --name t --data-dir /d --run-dir /r", None);
        assert_eq!((test.name.as_str(), test.isolated), ("t", true));
        assert_eq!(test.socket, PathBuf::from("/r/podyard.sock"));
        assert_eq!(yard("up", Some("/s")).socket, PathBuf::from("/s"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(yard("up --isolated --name t --run-dir r", None).socket, here.join("r/podyard.sock"));
        assert!(Line::try_parse_from(["up", "--isolated"]).is_err());
        let named = yard("up --name t", None);
        assert_eq!((named.isolated, named.cgroup_parent.as_str()), (false, "/podyard-t"));
    }
}
