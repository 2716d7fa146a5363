//! `logs`: what a container wrote.

use std::time::Duration;

use api::Object;
use client::LogOptions;

use super::context::Context;
use super::error::{Error, Outcome};
use super::target;

/// Names the container that is meant when none is given. kubectl's own annotation.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pod, as web-0 or pod/web-0
    pod: String,
    /// The container
    #[arg(value_name = "CONTAINER", conflicts_with = "container")]
    container_word: Option<String>,
    /// The container
    #[arg(long, short)]
    container: Option<String>,
    /// Go on with what is written later
    #[arg(long, short)]
    follow: bool,
    /// The attempt before the present one
    #[arg(long, short)]
    previous: bool,
    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
    /// Only so many lines from the end; -1 for all
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "LINES")]
    tail: i64,
    /// Only lines younger than this, as 10s or 5m
    #[arg(long, value_parser = super::wait::duration, value_name = "DURATION")]
    since: Option<Duration>,
    /// The logs of all containers, one after the other
    #[arg(long, conflicts_with_all = ["container", "follow"])]
    all_containers: bool,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let key = target::pod(&args.pod, context.namespace())?;
    let pod = context.client.get(&key).await?;
    let named = args.container.clone().or(args.container_word.clone());
    let chosen = if args.all_containers {
        containers(&pod)
    } else {
        vec![named.map_or_else(|| default_container(context, &pod), Ok)?]
    };
    for container in chosen {
        let options = LogOptions {
            container: Some(container),
            follow: args.follow,
            previous: args.previous,
            timestamps: args.timestamps,
            tail_lines: u64::try_from(args.tail).ok(),
            since_secs: args.since.map(|since| since.as_secs().max(1)),
            limit_bytes: None,
        };
        let mut log = context.client.logs(&key, &options).await?;
        while let Some(bytes) = log.next().await {
            context.bytes(&bytes?)?;
        }
    }
    Ok(0)
}

fn containers(pod: &Object) -> Vec<String> {
    let lists = ["spec.initContainers", "spec.containers"];
    let items = lists.iter().flat_map(|list| pod.get_array(list));
    items.filter_map(|item| item["name"].as_str().map(str::to_string)).collect()
}

/// The container that is meant, told if there was a choice.
///
/// # Errors
/// `Usage` if the pod has none: no admitted pod is so.
pub fn default_container(context: &Context, pod: &Object) -> Result<String, Error> {
    let names: Vec<&str> =
        pod.get_array("spec.containers").iter().filter_map(|container| container["name"].as_str()).collect();
    if let Some(name) = pod.annotation(DEFAULT_CONTAINER).filter(|name| names.contains(name)) {
        return Ok(name.to_string());
    }
    let first = names.first().ok_or_else(|| Error::Usage(format!("pod {} has no containers", pod.name())))?;
    if names.len() > 1 {
        context.note(format_args!("Defaulted container {first:?} out of: {}", names.join(", ")));
    }
    Ok((*first).to_string())
}
