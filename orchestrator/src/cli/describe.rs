//! `describe`: one object for people, with what belongs to it. What is said is `api::describe`'s.

use api::describe::{Related, describe};
use api::{LabelSelector, Object};
use client::ListOptions;
use serde_json::Value;

use super::context::Context;
use super::error::{Error, Outcome};
use super::get::{Selection, read};
use super::print::printable;
use super::target::{self, Target};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to describe: TYPE, TYPE NAME…, or TYPE/NAME…
    #[arg(value_name = "TYPE[/NAME] [NAME…]")]
    words: Vec<String>,
    #[command(flatten)]
    selection: Selection,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let mut errors = Vec::new();
    let mut is_first = true;
    for target in target::parse(&args.words)? {
        let objects = match &target {
            Target::Object(resource, name) => match read(context, resource, name).await {
                Ok(object) => vec![object],
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            },
            Target::Kind(resource) => {
                let namespace = args.selection.namespace(context);
                context.client.list(resource, namespace, &args.selection.list()).await?.items
            }
        };
        for object in objects {
            if !std::mem::take(&mut is_first) {
                context.text("\n\n")?;
            }
            for line in page(context, &object).await?.lines() {
                context.line(printable(line))?;
            }
        }
    }
    if is_first && errors.is_empty() {
        context.note("No resources found");
    }
    Error::gather(errors).map(|()| 0)
}

async fn page(context: &Context, object: &Object) -> Result<String, Error> {
    let mut about = format!("involvedObject.name={}", object.name());
    if !object.uid().is_empty() {
        about += &format!(",involvedObject.uid={}", object.uid());
    }
    let events =
        list(context, "", "events", object.namespace(), ListOptions { fields: Some(about), ..all() }).await?;
    let pods = pods(context, object).await?;
    let endpoint_slices = match object.kind() {
        "Service" => {
            let labels = Some(format!("kubernetes.io/service-name={}", object.name()));
            let options = ListOptions { labels, ..all() };
            list(context, "discovery.k8s.io", "endpointslices", object.namespace(), options).await?
        }
        _ => Vec::new(),
    };
    let volume = volume(context, object).await;
    let related = Related {
        events: &events,
        pods: &pods,
        endpoint_slices: &endpoint_slices,
        volume: volume.as_ref(),
        now: context.now(),
    };
    Ok(describe(object, &related))
}

/// The pods that belong to an object: a set's own, a node's, or the users of a claim.
async fn pods(context: &Context, object: &Object) -> Result<Vec<Object>, Error> {
    let of = |options| list(context, "", "pods", object.namespace(), options);
    match object.kind() {
        "ReplicaSet" | "StatefulSet" | "PetSet" => {
            let selector = LabelSelector::from_spec(object.get("spec.selector").unwrap_or(&Value::Null))?;
            let mut pods = of(ListOptions { labels: Some(selector.to_string()), ..all() }).await?;
            pods.retain(|pod| pod.controller_owner().is_some_and(|owner| owner.uid == object.uid()));
            Ok(pods)
        }
        "Node" => of(ListOptions { fields: Some(format!("spec.nodeName={}", object.name())), ..all() }).await,
        "PersistentVolumeClaim" => {
            let mut pods = of(all()).await?;
            let uses = |pod: &Object| {
                let volumes = pod.get_array("spec.volumes").iter();
                let mut claims =
                    volumes.filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
                claims.any(|claim| claim == object.name())
            };
            pods.retain(uses);
            Ok(pods)
        }
        _ => Ok(Vec::new()),
    }
}

/// The volume that a claim is bound to. One that is gone or not yet there is simply not shown.
async fn volume(context: &Context, object: &Object) -> Option<Object> {
    let name = object.get_str("spec.volumeName").filter(|_| object.kind() == "PersistentVolumeClaim")?;
    context.client.get(&api::Key::core("persistentvolumes", "", name)).await.ok()
}

fn all() -> ListOptions {
    ListOptions::default()
}

async fn list(
    context: &Context,
    group: &str,
    plural: &str,
    namespace: &str,
    options: ListOptions,
) -> Result<Vec<Object>, Error> {
    let Some(resource) = api::resource_by_plural(group, plural) else { return Ok(Vec::new()) };
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
    Ok(context.client.list(resource, namespace, &options).await?.items)
}
