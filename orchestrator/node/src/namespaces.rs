//! Every namespace of a yard, and who is in it: for people who look.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Result;
use crate::host::{Host, from_netns, from_runtime};
use crate::pod::Pod;

/// Kinds, as in /proc/PID/ns. Source: namespaces(7).
const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// One namespace.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NamespaceInfo {
    /// As in /proc/PID/ns.
    pub kind: String,
    /// Its identity on this boot.
    pub inode: u64,
    /// A path that opens it as long as it lives.
    pub path: Option<String>,
    /// Who uses it: `namespace/pod`, or `host` or `node` for the yard's own.
    pub users: Vec<String>,
    /// The processes in it.
    pub processes: Vec<ProcessInfo>,
}

/// A process of the yard.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ProcessInfo {
    /// As the host sees it.
    pub pid: i32,
    /// Its name. proc_pid_comm(5).
    pub command: String,
    /// `namespace/pod`.
    pub pod: Option<String>,
    /// The container; none for the shim.
    pub container: Option<String>,
}

#[derive(Default)]
struct Map(BTreeMap<(String, u64), NamespaceInfo>);

impl Map {
    fn at(&mut self, kind: &str, inode: u64) -> &mut NamespaceInfo {
        self.0.entry((kind.to_owned(), inode)).or_insert_with(|| NamespaceInfo {
            kind: kind.to_owned(),
            inode,
            ..NamespaceInfo::default()
        })
    }

    fn used_by(&mut self, kind: &str, inode: u64, user: &str) -> &mut NamespaceInfo {
        let namespace = self.at(kind, inode);
        if !namespace.users.iter().any(|known| known == user) {
            namespace.users.push(user.to_owned());
        }
        namespace
    }

    /// Adds a process to each of its namespaces. One that is gone meanwhile is left out.
    fn add(&mut self, process: &ProcessInfo, user: &str) {
        for kind in KINDS {
            let path = format!("/proc/{}/ns/{kind}", process.pid);
            let Some(inode) =
                std::fs::read_link(&path).ok().and_then(|link| inode_of(&link.to_string_lossy()))
            else {
                continue;
            };
            let namespace = self.used_by(kind, inode, user);
            namespace.path.get_or_insert(path);
            namespace.processes.push(process.clone());
        }
    }
}

/// Every namespace of the yard, sorted by kind and inode.
///
/// # Errors
/// What cannot be read.
pub async fn map(host: &Arc<Host>, pods: &[(String, Arc<Pod>)]) -> Result<Vec<NamespaceInfo>> {
    let mut map = Map::default();
    let node = map.used_by("net", host.network.namespace().inode().map_err(from_netns)?, "node");
    node.path = Some(host.yard.node_netns(&host.node).display().to_string());
    let outside = map.used_by("net", host.network.outside().inode().map_err(from_netns)?, "host");
    outside.path = Some(if host.yard.isolated {
        host.yard.host_netns().display().to_string()
    } else {
        "/proc/1/ns/net".into()
    });
    for (name, pod) in pods {
        let Some(client) = pod.shim().await? else { continue };
        let state = client.state().await?;
        for namespace in &state.namespaces {
            map.used_by(&namespace.kind, namespace.inode, name);
        }
        for known in &state.containers {
            for pid in host.cgroup(&known.cgroup)?.pids().map_err(from_runtime)? {
                let process = ProcessInfo {
                    pid,
                    command: command(pid),
                    pod: Some(name.clone()),
                    container: Some(known.container.name.clone()),
                };
                map.add(&process, name);
            }
        }
        if let Some(pause) = &state.pause {
            let process = ProcessInfo {
                pid: pause.pid,
                command: command(pause.pid),
                pod: Some(name.clone()),
                container: None,
            };
            map.add(&process, name);
        }
    }
    Ok(map.0.into_values().collect())
}

fn command(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// `net:[4026531840]`.
fn inode_of(link: &str) -> Option<u64> {
    link.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_tell_inodes() {
        assert_eq!(inode_of("net:[4026531840]"), Some(4_026_531_840));
        assert_eq!(inode_of("pipe:[x]"), None);
    }
}
