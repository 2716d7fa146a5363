//! A yard: one Podyard on this host, and every path and kernel name it uses.
//!
//! ```text
//! <data>  /var/lib/podyard   .podyard (mark)  store/ images/ snapshots/ volumes/ ephemeral/<uid>/<emptyDir>/
//! <run>   /run/podyard       .podyard (mark)  lock boot-id podyard.sock  netns/  pods/<uid>/
//! <logs>  /var/log/pods      <namespace>_<pod>_<uid>/{.podyard, <container>/<attempt>.log}
//! cgroup  /podyard           pods/pod<uid>/<container>.<attempt>   shims/<uid>
//! links   v<8 hex of uid>
//! ```
//!
//! A further node has the same things in places of its own, so that no sweep of one sees another's ([`Yard::of_node`]):
//!
//! ```text
//! <data>/nodes/<node>   snapshots/ ephemeral/            volumes and images are the yard's
//! <run>/nodes/<node>    lock boot-id  netns/ pods/  token agent.json agent.log
//! <logs>/nodes/<node>   <namespace>_<pod>_<uid>/...
//! cgroup <ours>/nodes/<node>   agent  pods/...  shims/...   killed as one
//! ```
//!
//! Names derive from identity, so a retry collides with itself. A directory without our mark is not ours,
//! and is neither used nor removed. The run directory belongs to one boot of the machine.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

pub use netns::Cidr;

use crate::error::{Error, Kind, Result};

/// The file that says a directory is ours. Its content is [`Yard::mark`].
pub const MARK: &str = ".podyard";

/// One Podyard: its configuration, and every path and name derived from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Yard {
    /// `podyard`, or the name given with `--name`: at most 20 of `a-z 0-9 -`.
    pub name: String,
    /// Keeps even the host-side link in a namespace of the yard's.
    pub isolated: bool,
    /// What must survive a reboot: store, images, snapshots, volumes.
    pub data_dir: PathBuf,
    /// What belongs to this boot: socket, pods, namespace pins.
    pub run_dir: PathBuf,
    /// Container logs, in Kubernetes' layout.
    pub log_dir: PathBuf,
    /// The API's unix socket.
    pub socket: PathBuf,
    /// Our cgroup under each hierarchy's root: `/podyard`.
    pub cgroup_parent: String,
    /// Addresses of this node's pods.
    pub pod_cidr: Cidr,
    /// Addresses of all nodes' pods: each node's block is part of it.
    pub cluster_cidr: Cidr,
    /// Virtual addresses of Services.
    pub service_cidr: Cidr,
    /// Name of the node: the one that lives in the daemon, unless this is a further node's part.
    pub node: String,
    /// Program to run as `<binary> shim ...`.
    pub binary: PathBuf,
    /// The yard's own directories, where this is a further node's part of it.
    pub whole: Option<Whole>,
}

/// The directories of a yard that a further node shares with all others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Whole {
    /// Its data directory: volumes and images.
    pub data_dir: PathBuf,
    /// Its run directory: namespace pins of nodes.
    pub run_dir: PathBuf,
}

/// Where further nodes are, in each of a yard's directories and in its cgroup.
const NODES: &str = "nodes";
const POD_CIDR: Cidr = Cidr::around(Ipv4Addr::new(10, 244, 0, 0), 24);
const CLUSTER_CIDR: Cidr = Cidr::around(Ipv4Addr::new(10, 244, 0, 0), 16);
const SERVICE_CIDR: Cidr = Cidr::around(Ipv4Addr::new(10, 96, 0, 0), 16);

impl Yard {
    /// The host's own yard, in the well-known places.
    pub fn host() -> Yard {
        Yard {
            name: "podyard".into(),
            isolated: false,
            data_dir: "/var/lib/podyard".into(),
            run_dir: "/run/podyard".into(),
            log_dir: "/var/log/pods".into(),
            socket: "/run/podyard/podyard.sock".into(),
            cgroup_parent: "/podyard".into(),
            pod_cidr: POD_CIDR,
            cluster_cidr: CLUSTER_CIDR,
            service_cidr: SERVICE_CIDR,
            node: "node-0".into(),
            binary: "/proc/self/exe".into(),
            whole: None,
        }
    }

    /// A yard beside others: names carry `name`, and nothing of it touches the host's network.
    ///
    /// Paths default to the well-known places with `-<name>`; set the fields to change them.
    ///
    /// # Errors
    /// `Invalid` for a name that cannot be part of paths and cgroup names.
    pub fn isolated(name: &str) -> Result<Yard> {
        check_name(name)?;
        let run_dir = PathBuf::from(format!("/run/podyard-{name}"));
        Ok(Yard {
            name: name.into(),
            isolated: true,
            data_dir: format!("/var/lib/podyard-{name}").into(),
            log_dir: run_dir.join("logs"),
            socket: run_dir.join("podyard.sock"),
            run_dir,
            cgroup_parent: format!("/podyard-{name}"),
            ..Yard::host()
        })
    }

    /// An isolated yard with all its directories below `root`, as tests and the demo use it.
    ///
    /// # Errors
    /// `Invalid` for a name that cannot be part of paths and cgroup names.
    pub fn beneath(root: &Path, name: &str) -> Result<Yard> {
        let mut yard = Yard::isolated(name)?;
        yard.data_dir = root.join("data");
        yard.run_dir = root.join("run");
        yard.log_dir = root.join("logs");
        yard.socket = yard.run_dir.join("podyard.sock");
        Ok(yard)
    }

    /// A further node's part of this yard: what it shares with others is the same, all else is its own.
    ///
    /// `node` is a DNS label ([`is_node_name`]): it becomes part of paths and of cgroup names.
    #[must_use]
    pub fn of_node(&self, node: &str, pod_cidr: Cidr) -> Yard {
        let run_dir = self.nodes_run_dir().join(node);
        Yard {
            data_dir: self.data_dir.join(NODES).join(node),
            log_dir: self.log_dir.join(NODES).join(node),
            socket: run_dir.join("podyard.sock"),
            run_dir,
            cgroup_parent: format!("{}/{node}", self.nodes_cgroup()),
            pod_cidr,
            node: node.into(),
            whole: Some(Whole { data_dir: self.data_dir.clone(), run_dir: self.run_dir.clone() }),
            ..self.clone()
        }
    }

    /// The run directories of further nodes.
    pub fn nodes_run_dir(&self) -> PathBuf {
        self.run_dir.join(NODES)
    }

    /// The layers and ephemeral volumes of further nodes.
    pub fn nodes_data_dir(&self) -> PathBuf {
        self.data_dir.join(NODES)
    }

    /// The logs of further nodes' pods.
    pub fn nodes_log_dir(&self) -> PathBuf {
        self.log_dir.join(NODES)
    }

    /// The cgroup that holds all further nodes.
    pub fn nodes_cgroup(&self) -> String {
        format!("{}/{NODES}", self.cgroup_parent)
    }

    /// The cgroup of a further node's agent.
    pub fn agent_cgroup(&self) -> String {
        format!("{}/agent", self.cgroup_parent)
    }

    /// What a further node's agent shows to the API server, and is asked for. Mode 0600.
    pub fn token_file(&self) -> PathBuf {
        self.run_dir.join("token")
    }

    /// Which process is a further node's agent.
    pub fn agent_file(&self) -> PathBuf {
        self.run_dir.join("agent.json")
    }

    /// What a further node's agent says.
    pub fn agent_log(&self) -> PathBuf {
        self.run_dir.join("agent.log")
    }

    /// What our directories are marked with: the yard's name and run directory.
    pub fn mark(&self) -> String {
        format!("podyard yard {} at {}\n", self.name, self.shared_run_dir().display())
    }

    /// The durable store.
    pub fn store_dir(&self) -> PathBuf {
        self.shared_data_dir().join("store")
    }

    /// The content of images.
    pub fn images_dir(&self) -> PathBuf {
        self.shared_data_dir().join("images")
    }

    fn shared_data_dir(&self) -> &Path {
        self.whole.as_ref().map_or(&self.data_dir, |whole| &whole.data_dir)
    }

    fn shared_run_dir(&self) -> &Path {
        self.whole.as_ref().map_or(&self.run_dir, |whole| &whole.run_dir)
    }

    /// Writable layers of containers.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.data_dir.join("snapshots")
    }

    /// Claim volumes, with their identities.
    pub fn volumes_dir(&self) -> PathBuf {
        self.shared_data_dir().join("volumes")
    }

    /// The emptyDirs of all pods: on disk, because the run directory may be memory.
    pub fn ephemeral_dir(&self) -> PathBuf {
        self.data_dir.join("ephemeral")
    }

    /// Namespace pins.
    pub fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    /// The pin of a node's network namespace.
    pub fn node_netns(&self, node: &str) -> PathBuf {
        self.shared_run_dir().join("netns").join(node)
    }

    /// The node's nf_tables table, in the node's own namespace.
    pub fn table(&self) -> String {
        format!("podyard-{}", self.name)
    }

    /// Held by the daemon for as long as it lives.
    pub fn lock_file(&self) -> PathBuf {
        self.run_dir.join("lock")
    }

    /// Which boot the run directory belongs to.
    pub fn boot_id_file(&self) -> PathBuf {
        self.run_dir.join("boot-id")
    }

    /// All pods' run directories.
    pub fn pods_dir(&self) -> PathBuf {
        self.run_dir.join("pods")
    }

    /// The directory, cgroups and names of the pod with this uid.
    pub fn pod(&self, uid: &str) -> PodPaths {
        PodPaths {
            dir: self.pods_dir().join(uid),
            ephemeral: self.ephemeral_dir().join(uid),
            uid: uid.into(),
            cgroup_parent: self.cgroup_parent.clone(),
        }
    }

    /// Where the logs of a pod's containers are.
    pub fn pod_log_dir(&self, namespace: &str, pod: &str, uid: &str) -> PathBuf {
        self.log_dir.join(format!("{namespace}_{pod}_{uid}"))
    }

    /// The log of one run of one container.
    pub fn container_log(&self, pod: (&str, &str, &str), container: &str, attempt: u32) -> PathBuf {
        self.pod_log_dir(pod.0, pod.1, pod.2).join(container).join(format!("{attempt}.log"))
    }

    /// The cgroup that holds all pods.
    pub fn pods_cgroup(&self) -> String {
        format!("{}/pods", self.cgroup_parent)
    }

    /// The cgroup that holds all shims, outside every pod's.
    pub fn shims_cgroup(&self) -> String {
        format!("{}/shims", self.cgroup_parent)
    }
}

/// Where one pod's runtime state is, and what its kernel objects are called.
///
/// ```text
/// <run>/pods/<uid>/  pod.json  shim.sock  shim.lock  files/{hosts,hostname,resolv.conf}
///                    runs/<container>.<attempt>.json  exits/<container>.<attempt>.json
///                    shm/  trace.json
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodPaths {
    /// `<run>/pods/<uid>`, mode 0700.
    pub dir: PathBuf,
    ephemeral: PathBuf,
    uid: String,
    cgroup_parent: String,
}

impl PodPaths {
    /// What the pod is, written before anything is made for it and removed after everything is gone.
    pub fn record(&self) -> PathBuf {
        self.dir.join("pod.json")
    }

    /// Where the shim listens.
    pub fn shim_socket(&self) -> PathBuf {
        self.dir.join("shim.sock")
    }

    /// How containers ended: `<container>.<attempt>.json`.
    pub fn exits_dir(&self) -> PathBuf {
        self.dir.join("exits")
    }

    /// What was begun: `<container>.<attempt>.json`.
    pub fn runs_dir(&self) -> PathBuf {
        self.dir.join("runs")
    }

    /// Generated files that containers see: hosts, hostname, resolv.conf.
    pub fn files_dir(&self) -> PathBuf {
        self.dir.join("files")
    }

    /// The pod's emptyDir volumes.
    pub fn volumes_dir(&self) -> PathBuf {
        self.ephemeral.clone()
    }

    /// The tmpfs that its containers share as /dev/shm.
    pub fn shm_dir(&self) -> PathBuf {
        self.dir.join("shm")
    }

    /// The last steps taken, so that they can be read after a restart of the daemon.
    pub fn trace_file(&self) -> PathBuf {
        self.dir.join("trace.json")
    }

    /// The pod's cgroup.
    pub fn cgroup(&self) -> String {
        format!("{}/pods/pod{}", self.cgroup_parent, self.uid)
    }

    /// The cgroup of one run of one container.
    pub fn container_cgroup(&self, container: &str, attempt: u32) -> String {
        format!("{}/{container}.{attempt}", self.cgroup())
    }

    /// The shim's cgroup.
    pub fn shim_cgroup(&self) -> String {
        format!("{}/shims/{}", self.cgroup_parent, self.uid)
    }

    /// The key of one run's writable layer.
    pub fn snapshot(&self, container: &str, attempt: u32) -> String {
        format!("{}.{container}.{attempt}", self.uid)
    }

    /// The pod's uid.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The node's end of the pod's veth pair: 9 bytes of the 15 that the kernel allows.
    pub fn link(&self) -> String {
        let hex: String = self.uid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
        format!("v{}", hex.to_ascii_lowercase())
    }
}

/// Whether a node can have this name: a DNS label. It becomes part of paths, cgroup names and host names.
pub fn is_node_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = |c: char| c != '-';
    (1..=63).contains(&name.len())
        && name.chars().all(allowed)
        && name.starts_with(ends)
        && name.ends_with(ends)
        // The pin of the namespace that plays the host has this name.
        && name != "host"
}

/// Refuses a name that cannot be part of a path or cgroup name.
fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 20 || name.starts_with('-') || !name.chars().all(allowed) {
        return Err(Error::new(Kind::Invalid, format!("yard name {name:?}: at most 20 of a-z, 0-9 and -")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_derive_from_identity() {
        let pod = Yard::host().pod("0f8fad5b-d9cb-469f-a165-70867728950e");
        assert_eq!(pod.link(), "v0f8fad5b");
        assert_eq!(
            pod.container_cgroup("web", 2),
            "/podyard/pods/pod0f8fad5b-d9cb-469f-a165-70867728950e/web.2"
        );
        assert_eq!(pod.shim_cgroup(), "/podyard/shims/0f8fad5b-d9cb-469f-a165-70867728950e");
        assert_eq!(
            Yard::host().container_log(("default", "web-0", "u"), "c", 3),
            Path::new("/var/log/pods/default_web-0_u/c/3.log")
        );
    }

    #[test]
    fn a_further_node_has_its_own_places() {
        let yard = Yard::beneath(Path::new("/t"), "y").unwrap();
        let node = yard.of_node("n1", "10.244.1.0/24".parse().unwrap());
        let pod = node.pod("0f8fad5b");
        assert_eq!(pod.cgroup(), "/podyard-y/nodes/n1/pods/pod0f8fad5b");
        assert_eq!(pod.shim_cgroup(), "/podyard-y/nodes/n1/shims/0f8fad5b");
        assert_eq!(node.agent_cgroup(), "/podyard-y/nodes/n1/agent");
        assert_eq!(pod.dir, Path::new("/t/run/nodes/n1/pods/0f8fad5b"));
        assert_eq!(pod.volumes_dir(), Path::new("/t/data/nodes/n1/ephemeral/0f8fad5b"));
        assert_eq!(node.snapshots_dir(), Path::new("/t/data/nodes/n1/snapshots"));
        assert_eq!(node.log_dir, Path::new("/t/logs/nodes/n1"));
        assert_eq!(node.lock_file(), Path::new("/t/run/nodes/n1/lock"));
        // Shared.
        assert_eq!((node.volumes_dir(), node.images_dir()), (yard.volumes_dir(), yard.images_dir()));
        assert_eq!(node.node_netns("n1"), Path::new("/t/run/netns/n1"));
        assert_eq!((node.mark(), node.table()), (yard.mark(), yard.table()));
    }

    #[test]
    fn node_names_are_labels() {
        for good in ["n1", "a", "node-1", "1"] {
            assert!(is_node_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a.b", "A", "a/b", "..", "host", &"a".repeat(64)] {
            assert!(!is_node_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_yard_name_cannot_leave_its_place() {
        for bad in ["", "../x", "a/b", "A", "-a", "abcdefghijklmnopqrstu"] {
            assert!(Yard::isolated(bad).is_err(), "{bad}");
        }
        let yard = Yard::isolated("demo-1").unwrap();
        assert_eq!(yard.cgroup_parent, "/podyard-demo-1");
        assert_eq!(yard.socket, Path::new("/run/podyard-demo-1/podyard.sock"));
    }
}
