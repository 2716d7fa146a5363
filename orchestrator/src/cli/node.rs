//! `node`: further nodes. Each verb writes a wish into the Node object and waits for what it says; the daemon's node
//! manager does the rest, and `kubectl` could write the same.

use std::time::{Duration, Instant};

use ::node::Cidr;
use api::{Key, Object};
use client::{DeleteOptions, EventKind, ListOptions, PatchKind, WatchOptions, WriteOptions};
use serde_json::{Value, json};

use super::context::Context;
use super::delete::{delete_incarnation, until_gone};
use super::error::{Error, Outcome};
use super::print;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a node: an agent, a network namespace, a cgroup, and addresses for its pods
    Add(AddArgs),
    /// List the nodes: power, link, addresses, pods
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Keep new pods away, and let those that are there end and move
    Drain(DrainArgs),
    /// Keep new pods away
    Cordon(NameArgs),
    /// Let new pods come again
    Uncordon(NameArgs),
    /// Sever its link: no packet passes, and the API does not hear of it
    Cut(WaitArgs),
    /// Join its link, and give it power
    Heal(WaitArgs),
    /// Take its power: agent, shims and pods die at once
    Kill(WaitArgs),
    /// Remove it, and everything of it
    #[command(visible_alias = "delete")]
    Rm(RemoveArgs),
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    name: String,
    /// Addresses of its pods [default: the next free /24 of the cluster's]
    #[arg(long, value_name = "CIDR")]
    cidr: Option<Cidr>,
    #[command(flatten)]
    wait: Waiting,
}

#[derive(Debug, clap::Args)]
struct Waiting {
    /// Wait until it is so
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: bool,
    /// Give up waiting after this long
    #[arg(long, default_value = "30s", value_parser = super::wait::duration, value_name = "DURATION")]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// `json` for programs
    #[arg(long, short, value_name = "json", value_parser = ["json"])]
    output: Option<String>,
}

#[derive(Debug, clap::Args)]
struct NameArgs {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct WaitArgs {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    wait: Waiting,
}

#[derive(Debug, clap::Args)]
struct DrainArgs {
    name: String,
    /// Also pods that nothing makes again
    #[arg(long)]
    force: bool,
    /// Seconds between SIGTERM and SIGKILL; -1 for each pod's own
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "SECONDS")]
    grace_period: i64,
    /// Give up waiting after this long; 0 means never
    #[arg(long, default_value = "0", value_parser = super::wait::duration, value_name = "DURATION")]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
struct RemoveArgs {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Although there are pods: its power goes first, so that they die and may move
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: Waiting,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    match args.verb {
        Verb::Add(args) => add(context, &args).await,
        Verb::Ls(args) => ls(context, &args).await,
        Verb::Drain(args) => drain(context, &args).await,
        Verb::Cordon(args) => cordon(context, &args.names, true).await,
        Verb::Uncordon(args) => cordon(context, &args.names, false).await,
        Verb::Cut(args) => each(&args.names, |name| cut(context, name, &args.wait)).await,
        Verb::Heal(args) => each(&args.names, |name| heal(context, name, &args.wait)).await,
        Verb::Kill(args) => each(&args.names, |name| kill(context, name, &args.wait)).await,
        Verb::Rm(args) => each(&args.names, |name| remove(context, name, &args)).await,
    }
}

/// One node after the other; those that fail do not hold up the rest.
async fn each<'a, F: Future<Output = Result<(), Error>>>(
    names: &'a [String],
    act: impl Fn(&'a str) -> F,
) -> Outcome {
    let mut errors = Vec::new();
    for name in names {
        errors.extend(act(name).await.err());
    }
    Error::gather(errors).map(|()| 0)
}

fn key(name: &str) -> Key {
    Key::core("nodes", "", name)
}

async fn add(context: &Context, args: &AddArgs) -> Outcome {
    let name = &args.name;
    if !::node::yard::is_node_name(name) {
        let why = "at most 63 of a-z, 0-9 and -, neither first nor last; and not \"host\"";
        return Err(Error::Usage(format!("node name {name:?}: {why}")));
    }
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {api::node::MANAGED_LABEL: "true", "kubernetes.io/hostname": name},
            "finalizers": [api::node::FINALIZER],
        },
        "spec": {},
    });
    if let Some(cidr) = args.cidr {
        object["spec"] = json!({"podCIDR": cidr.to_string(), "podCIDRs": [cidr.to_string()]});
    }
    let begun = Instant::now();
    let written = context.client.create(key(name).resource, "", &object, &WriteOptions::default()).await?;
    context.warn(&written.warnings);
    context.line(format_args!("node/{name} created"))?;
    if args.wait.wait {
        let ready = until(context, name, &args.wait, |node| api::node::ready(node) == "True").await?;
        let cidr = ready.get_str("spec.podCIDR").unwrap_or("");
        context.line(format_args!("node/{name} ready: pods get {cidr}, after {}", took(begun)))?;
    }
    Ok(0)
}

async fn ls(context: &Context, args: &ListArgs) -> Outcome {
    let nodes = context.client.list(key("").resource, None, &ListOptions::default()).await?.items;
    if args.output.is_some() {
        let text = print::whole(&print::Format::Json, &nodes, false)?;
        context.text(&text.unwrap_or_default())?;
        return Ok(0);
    }
    let pods = Key::core("pods", "", "").resource;
    let pods = context.client.list(pods, None, &ListOptions::default()).await?.items;
    let rows = nodes.iter().map(|node| {
        let (name, is_managed) = (node.name(), api::node::is_managed(node));
        let here = pods.iter().filter(|pod| pod.get_str("spec.nodeName") == Some(name));
        let finished = |pod: &&Object| matches!(pod.get_str("status.phase"), Some("Succeeded" | "Failed"));
        let word = |is: bool, yes: &str, no: &str| if is { yes.to_owned() } else { no.to_owned() };
        vec![
            name.to_owned(),
            status(node),
            if is_managed { word(api::node::is_off(node), "off", "on") } else { "daemon".to_owned() },
            if is_managed { word(api::node::is_cut(node), "cut", "up") } else { "hub".to_owned() },
            node.get_str("spec.podCIDR").unwrap_or("<none>").to_owned(),
            here.filter(|pod| !finished(pod)).count().to_string(),
            age(context, node),
        ]
    });
    let headers = ["NAME", "STATUS", "POWER", "LINK", "POD-CIDR", "PODS", "AGE"];
    context.text(&print::columns(&headers, rows.collect()))?;
    Ok(0)
}

fn age(context: &Context, node: &Object) -> String {
    let created = node.creation_timestamp();
    created.map_or("<unknown>".to_owned(), |created| {
        api::time::human_duration(context.now().as_second() - created.as_second())
    })
}

/// Ready, NotReady (it is known to be down) or Unknown (it is not heard of); and what else is true of it.
fn status(node: &Object) -> String {
    let ready = match api::node::ready(node) {
        "True" => "Ready",
        "Unknown" => "Unknown",
        _ => "NotReady",
    };
    let mut words = vec![ready];
    if node.get_bool("spec.unschedulable") == Some(true) {
        words.push("SchedulingDisabled");
    }
    if node.is_deleting() {
        words.push("Terminating");
    }
    words.join(",")
}

async fn cordon(context: &Context, names: &[String], wanted: bool) -> Outcome {
    each(names, |name| async move {
        let node = context.client.get(&key(name)).await?;
        let done = if wanted { "cordoned" } else { "uncordoned" };
        if node.get_bool("spec.unschedulable").unwrap_or(false) == wanted {
            return context.line(format_args!("node/{name} already {done}"));
        }
        let wish = if wanted { Value::Bool(true) } else { Value::Null };
        patch(context, name, &json!({"spec": {"unschedulable": wish}})).await?;
        context.line(format_args!("node/{name} {done}"))
    })
    .await
}

async fn drain(context: &Context, args: &DrainArgs) -> Outcome {
    let name = &args.name;
    let mut pods = pods_on(context, name).await?;
    cordon(context, std::slice::from_ref(name), true).await?;
    let lone = |pod: &&Object| pod.controller_owner().is_none();
    let lonely: Vec<String> = pods.iter().filter(lone).map(|pod| pod.key().to_string()).collect();
    if !args.force && !lonely.is_empty() {
        let text =
            format!("cannot delete pods that nothing makes again (--force does): {}", lonely.join(", "));
        return Err(Error::Usage(text));
    }
    let begun = Instant::now();
    let limit = if args.timeout.is_zero() { Duration::from_secs(u64::from(u32::MAX)) } else { args.timeout };
    let end = tokio::time::Instant::now() + limit;
    let mut gone = 0;
    loop {
        let mut errors = Vec::new();
        for pod in pods.iter().filter(|pod| !pod.is_deleting()) {
            match delete_incarnation(
                &context.client,
                &pod.key(),
                pod.uid(),
                u64::try_from(args.grace_period).ok(),
            )
            .await
            {
                Ok(true) => context.line(format_args!("evicting pod {}/{}", pod.namespace(), pod.name()))?,
                Ok(false) => {}
                Err(error) => errors.push(error.into()),
            }
        }
        Error::gather(errors)?;
        for pod in &pods {
            let key = pod.key();
            let waited = until_gone(&context.client, &key, Some(pod.uid()));
            match tokio::time::timeout_at(end, waited).await {
                Ok(waited) => waited?,
                Err(_) => return Err(Error::TimedOut(format!("pods/{}", pod.name()))),
            }
            gone += 1;
            context.line(format_args!("pod/{} evicted", pod.name()))?;
        }
        // One that was bound here before the node was cordoned may have come meanwhile.
        pods = pods_on(context, name).await?;
        if pods.is_empty() {
            break;
        }
    }
    context.line(format_args!("node/{name} drained: {gone} pods, {}", took(begun)))?;
    Ok(0)
}

async fn cut(context: &Context, name: &str, wait: &Waiting) -> Result<(), Error> {
    managed(context, name, "cut").await?;
    annotate(context, name, json!({api::node::FABRIC_ANNOTATION: api::node::FABRIC_CUT})).await?;
    context.line(format_args!("node/{name} cut"))?;
    let begun = Instant::now();
    if wait.wait {
        until(context, name, wait, |node| api::node::ready(node) != "True").await?;
        context.line(format_args!("node/{name} not heard of any more, after {}", took(begun)))?;
    }
    Ok(())
}

async fn heal(context: &Context, name: &str, wait: &Waiting) -> Result<(), Error> {
    managed(context, name, "healed").await?;
    let nothing = json!({api::node::FABRIC_ANNOTATION: null, api::node::POWER_ANNOTATION: null});
    annotate(context, name, nothing).await?;
    context.line(format_args!("node/{name} healed"))?;
    let begun = Instant::now();
    if wait.wait {
        until(context, name, wait, |node| api::node::ready(node) == "True").await?;
        context.line(format_args!("node/{name} ready, after {}", took(begun)))?;
    }
    Ok(())
}

async fn kill(context: &Context, name: &str, wait: &Waiting) -> Result<(), Error> {
    managed(context, name, "killed").await?;
    let begun = Instant::now();
    annotate(context, name, json!({api::node::POWER_ANNOTATION: api::node::POWER_OFF})).await?;
    if wait.wait {
        until(context, name, wait, |node| api::node::ready(node) == "False").await?;
    }
    context.line(format_args!("node/{name} killed, after {}", took(begun)))
}

async fn remove(context: &Context, name: &str, args: &RemoveArgs) -> Result<(), Error> {
    let node = managed(context, name, "removed").await?;
    let begun = Instant::now();
    let end = tokio::time::Instant::now() + args.wait.timeout;
    if args.force {
        patch(
            context,
            name,
            &json!({
                "spec": {"unschedulable": true},
                "metadata": {"annotations": {api::node::POWER_ANNOTATION: api::node::POWER_OFF}},
            }),
        )
        .await?;
        loop {
            let pods = pods_on(context, name).await?;
            if pods.is_empty() {
                break;
            }
            for pod in &pods {
                delete_incarnation(&context.client, &pod.key(), pod.uid(), None).await?;
            }
            for pod in &pods {
                let key = pod.key();
                let waited = until_gone(&context.client, &key, Some(pod.uid()));
                match tokio::time::timeout_at(end, waited).await {
                    Ok(waited) => waited?,
                    Err(_) => return Err(late(context, name).await),
                }
            }
        }
    }
    let options = DeleteOptions { uid: Some(node.uid().to_owned()), ..DeleteOptions::default() };
    context.client.delete(&key(name), &options).await?;
    if args.wait.wait {
        match tokio::time::timeout_at(end, until_gone(&context.client, &key(name), Some(node.uid()))).await {
            Ok(waited) => waited?,
            Err(_) => return Err(late(context, name).await),
        }
    }
    context.line(format_args!("node/{name} removed, after {}", took(begun)))
}

/// The node, if this daemon made it.
async fn managed(context: &Context, name: &str, done: &str) -> Result<Object, Error> {
    let node = context.client.get(&key(name)).await?;
    if !api::node::is_managed(&node) {
        let why = "it lives in the daemon, and only nodes of `podyard node add` can be";
        return Err(Error::Usage(format!("node {name} cannot be {done}: {why}")));
    }
    Ok(node)
}

async fn annotate(context: &Context, name: &str, annotations: Value) -> Result<Object, Error> {
    patch(context, name, &json!({"metadata": {"annotations": annotations}})).await
}

async fn patch(context: &Context, name: &str, patch: &Value) -> Result<Object, Error> {
    let options = WriteOptions::default();
    let written = context.client.patch(&key(name), None, PatchKind::Merge, patch, &options).await?;
    Ok(written.object)
}

/// Pods of a node that its agent has to do with.
async fn pods_on(context: &Context, name: &str) -> Result<Vec<Object>, Error> {
    let options = ListOptions { fields: Some(format!("spec.nodeName={name}")), ..ListOptions::default() };
    Ok(context.client.list(Key::core("pods", "", "").resource, None, &options).await?.items)
}

/// Waits until the node is as wanted; what keeps it from that is told.
async fn until(
    context: &Context,
    name: &str,
    wait: &Waiting,
    is_so: impl Fn(&Object) -> bool,
) -> Result<Object, Error> {
    let watched = async {
        loop {
            let node = context.client.get(&key(name)).await?;
            if is_so(&node) {
                return Ok(node);
            }
            let options = WatchOptions {
                fields: Some(format!("metadata.name={name}")),
                resource_version: node.resource_version().map(|version| version.to_string()),
                ..WatchOptions::default()
            };
            let mut watch = match context.client.watch(key(name).resource, None, &options).await {
                Err(error) if error.kind() == Some(api::Kind::Gone) => continue,
                other => other?,
            };
            while let Some(event) = watch.next().await {
                match event {
                    Ok(event) if event.kind == EventKind::Deleted => break,
                    Ok(event) if event.kind != EventKind::Bookmark && is_so(&event.object) => {
                        return Ok(event.object);
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == Some(api::Kind::Gone) => break,
                    Err(error) => return Err(Error::from(error)),
                }
            }
        }
    };
    match tokio::time::timeout(wait.timeout, watched).await {
        Ok(outcome) => outcome,
        Err(_) => Err(late(context, name).await),
    }
}

/// What was waited for in vain, after telling the last warnings about the node.
async fn late(context: &Context, name: &str) -> Error {
    let options = ListOptions {
        fields: Some(format!("involvedObject.kind=Node,involvedObject.name={name},type=Warning")),
        ..ListOptions::default()
    };
    if let Ok(events) = context.client.list(Key::core("events", "", "").resource, None, &options).await {
        for event in events.items {
            let text = |field: &str| event.get_str(field).unwrap_or("").to_owned();
            context.note(format_args!("{}: {}", text("reason"), text("message")));
        }
    }
    Error::TimedOut(format!("nodes/{name}"))
}

fn took(begun: Instant) -> String {
    let took = begun.elapsed();
    match took.as_millis() {
        millis @ ..1000 => format!("{millis} ms"),
        millis => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_in_a_word() {
        let node = |status: &str| {
            Object(json!({
                "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": status}]},
            }))
        };
        assert_eq!(super::status(&node("True")), "Ready,SchedulingDisabled");
        assert_eq!(super::status(&node("Unknown")), "Unknown,SchedulingDisabled");
        assert_eq!(super::status(&Object(json!({}))), "NotReady");
    }
}
