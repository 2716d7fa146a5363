//! `ns`: every namespace of the yard, who shares what, and a way in.

mod enter;
mod map;

use client::Request;
use server::yard::{Namespace, NamespaceMap, ServiceMap};

use super::context::Context;
use super::error::{Error, Outcome};
use super::print::{self, printable};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the namespaces: kind, inode, pods, processes
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Show who shares what, container by container
    Map(ListArgs),
    /// Run a program of the host's inside a pod's namespaces
    Enter(enter::Args),
    /// List what stands behind each virtual IP, as the kernel has it
    Services(ServicesArgs),
    /// Compare the namespaces of two pods or containers
    Diff(DiffArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// `json` for programs
    #[arg(long, short, value_name = "json", value_parser = ["json"])]
    output: Option<String>,
    /// Only kinds such as net,pid
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    kind: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct ServicesArgs {
    /// The node whose kernel is read; the first one if none is named
    #[arg(long)]
    node: Option<String>,
    /// `json` for programs
    #[arg(long, short, value_name = "json", value_parser = ["json"])]
    output: Option<String>,
}

#[derive(Debug, clap::Args)]
struct DiffArgs {
    /// POD or POD/CONTAINER
    a: String,
    /// POD or POD/CONTAINER
    b: String,
    /// `json` for programs
    #[arg(long, short, value_name = "json", value_parser = ["json"])]
    output: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    match args.verb {
        Verb::Ls(args) => ls(context, &args).await,
        Verb::Map(args) => {
            let yard = fetch(context, &args.kind).await?;
            match args.output {
                Some(_) => context.text(&print::json(&map::table(&yard)))?,
                None => context.text(&map::page(&yard))?,
            }
            Ok(0)
        }
        Verb::Enter(args) => enter::run(context, args).await,
        Verb::Diff(args) => diff(context, &args).await,
        Verb::Services(args) => services(context, &args).await,
    }
}

/// The namespaces of the yard, of the wanted kinds.
async fn fetch(context: &Context, kinds: &[String]) -> Result<NamespaceMap, Error> {
    let (value, _) = context.client.request_json(Request::get("/podyard/v1/namespaces")).await?;
    let mut yard: NamespaceMap = serde_json::from_value(value)
        .map_err(|error| Error::Usage(format!("the daemon's answer is garbled: {error}")))?;
    for node in &yard.unreachable {
        context.note(format_args!("Warning: {node}"));
    }
    if !kinds.is_empty() {
        yard.namespaces.retain(|namespace| kinds.contains(&namespace.kind));
    }
    Ok(yard)
}

async fn ls(context: &Context, args: &ListArgs) -> Outcome {
    let yard = fetch(context, &args.kind).await?;
    if args.output.is_some() {
        context.text(&print::json(&yard))?;
        return Ok(0);
    }
    if yard.namespaces.is_empty() {
        context.note("no namespaces: no pod runs");
        return Ok(0);
    }
    let rows = yard.namespaces.iter().map(|namespace| {
        let pids: Vec<String> = namespace
            .processes
            .iter()
            .map(|process| format!("{} {}", process.pid, printable(&process.command)))
            .collect();
        vec![
            namespace.kind.clone(),
            namespace.inode.to_string(),
            listed(&namespace.pods, 3),
            listed(&pids, 4),
        ]
    });
    context.text(&print::columns(&["KIND", "INODE", "PODS", "PROCESSES"], rows.collect()))?;
    Ok(0)
}

async fn services(context: &Context, args: &ServicesArgs) -> Outcome {
    let node = args.node.as_ref().map(|node| format!("?node={}", client::encode(node))).unwrap_or_default();
    let path = format!("/podyard/v1/services{node}");
    let (value, _) = context.client.request_json(Request::get(path)).await?;
    let map: ServiceMap = serde_json::from_value(value)
        .map_err(|error| Error::Usage(format!("the daemon's answer is garbled: {error}")))?;
    if args.output.is_some() {
        context.text(&print::json(&map))?;
        return Ok(0);
    }
    let rows = map.services.iter().map(|service| {
        let port = format!("{}:{}/{}", service.ip, service.port, service.protocol);
        vec![port, listed(&service.endpoints, 6)]
    });
    context.text(&print::columns(&["VIRTUAL PORT", "ENDPOINTS"], rows.collect()))?;
    Ok(0)
}

/// The first few, and how many more.
fn listed(items: &[String], max: usize) -> String {
    let shown: Vec<String> = items.iter().take(max).map(|item| printable(item)).collect();
    match items.len() {
        0 => "-".to_string(),
        count if count > max => format!("{}, +{} more", shown.join(", "), count - max),
        _ => shown.join(", "),
    }
}

async fn diff(context: &Context, args: &DiffArgs) -> Outcome {
    let yard = fetch(context, &[]).await?;
    let place = |word: &str| Place::parse(word, context.namespace());
    let (a, b) = (place(&args.a), place(&args.b));
    let (of_a, of_b) = (a.namespaces(&yard)?, b.namespaces(&yard)?);
    let mut kinds: Vec<&str> = of_a.iter().chain(&of_b).map(|namespace| namespace.kind.as_str()).collect();
    kinds.sort_by_key(|kind| map::rank(kind));
    kinds.dedup();
    let inode = |of: &[&Namespace], kind: &str| {
        of.iter().find(|namespace| namespace.kind == kind).map(|found| found.inode)
    };
    let rows: Vec<(&str, Option<u64>, Option<u64>)> =
        kinds.into_iter().map(|kind| (kind, inode(&of_a, kind), inode(&of_b, kind))).collect();
    if args.output.is_some() {
        let list: Vec<_> = rows
            .iter()
            .map(|(kind, a, b)| serde_json::json!({"kind": kind, "a": a, "b": b, "shared": a == b}))
            .collect();
        context.text(&print::json(&list))?;
        return Ok(0);
    }
    let show = |inode: Option<u64>| inode.map_or("-".to_string(), |inode| inode.to_string());
    let lines = rows.iter().map(|(kind, a, b)| {
        let verdict = if a == b { "shared" } else { "apart" };
        vec![(*kind).to_string(), show(*a), show(*b), verdict.to_string()]
    });
    context.text(&print::columns(
        &["KIND", &args.a.to_uppercase(), &args.b.to_uppercase(), ""],
        lines.collect(),
    ))?;
    Ok(0)
}

/// A pod, or a container in it, as `POD[/CONTAINER]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// `namespace/pod`
    pod: String,
    container: Option<String>,
}

impl Place {
    fn parse(word: &str, namespace: &str) -> Place {
        let (pod, container) = match word.split_once('/') {
            Some((pod, container)) => (pod, Some(container.to_string())),
            None => (word, None),
        };
        Place { pod: format!("{namespace}/{pod}"), container }
    }

    /// The namespaces it is in. A pod's own are those of its first container, as far as containers differ.
    fn namespaces<'a>(&self, yard: &'a NamespaceMap) -> Result<Vec<&'a Namespace>, Error> {
        let pid = self.process(yard);
        let found: Vec<&Namespace> = yard
            .namespaces
            .iter()
            .filter(|namespace| match pid {
                Some(pid) => namespace.processes.iter().any(|process| process.pid == pid),
                None => self.container.is_none() && namespace.pods.contains(&self.pod),
            })
            .collect();
        if found.is_empty() {
            return Err(Error::Usage(match &self.container {
                Some(container) => format!("no process of container {container} of pod {} runs", self.pod),
                None => format!("pod {} has no namespaces: it does not run here", self.pod),
            }));
        }
        Ok(found)
    }

    /// A process in it: the oldest of the container that is meant, or of the first container.
    fn process(&self, yard: &NamespaceMap) -> Option<u32> {
        let processes = yard.namespaces.iter().flat_map(|namespace| &namespace.processes);
        let ours = processes.filter(|process| {
            process.pod.as_deref() == Some(&self.pod)
                && process.container.is_some()
                && (self.container.is_none() || process.container == self.container)
        });
        ours.map(|process| process.pid).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use server::yard::Process;

    /// Pods `a` (containers x and y) and `b` (container z), as the daemon tells them.
    pub(super) fn yard() -> NamespaceMap {
        let process = |pid, pod: &str, container: &str| Process {
            pid,
            command: "sh".into(),
            pod: Some(format!("default/{pod}")),
            container: Some(container.into()),
        };
        let (x, y, z) = (process(10, "a", "x"), process(11, "a", "y"), process(20, "b", "z"));
        let space = |kind: &str, inode, pods: &[&str], processes: &[&Process]| Namespace {
            kind: kind.into(),
            inode,
            path: None,
            pods: pods.iter().map(|pod| format!("default/{pod}")).collect(),
            processes: processes.iter().map(|process| (*process).clone()).collect(),
        };
        NamespaceMap {
            namespaces: vec![
                space("net", 1, &["a"], &[&x, &y]),
                space("net", 2, &["b"], &[&z]),
                space("pid", 3, &["a"], &[&x]),
                space("pid", 4, &["a"], &[&y]),
                space("pid", 5, &["b"], &[&z]),
                space("uts", 6, &["a", "b"], &[&x, &y, &z]),
            ],
            unreachable: Vec::new(),
        }
    }

    #[test]
    fn places() {
        let inodes = |word: &str| {
            let found = Place::parse(word, "default")
                .namespaces(&yard())
                .map(|found| found.iter().map(|namespace| namespace.inode).collect::<Vec<_>>());
            found.unwrap_or_default()
        };
        assert_eq!(inodes("a"), [1, 3, 6]);
        assert_eq!(inodes("a/y"), [1, 4, 6]);
        assert_eq!(inodes("b"), [2, 5, 6]);
        assert_eq!(inodes("a/q"), Vec::<u64>::new());
        assert_eq!(inodes("c"), Vec::<u64>::new());
    }

    #[test]
    fn long_lists_are_cut() {
        let items: Vec<String> = (0..5).map(|n| n.to_string()).collect();
        assert_eq!(listed(&items, 3), "0, 1, 2, +2 more");
        assert_eq!(listed(&[], 3), "-");
    }
}
