//! `rollout`: how far an update of a set of pets is, what there was before, and going back to it.
//!
//! Words and order of output as kubectl's; so are the rules: status and history are read from the API alone.

use std::time::Duration;

use api::describe::describe_template;
use api::{Key, LabelSelector, Object, Resource, resource_by_plural};
use client::{EventKind, ListOptions, PatchKind, WatchOptions, WriteOptions};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::context::Context;
use super::error::{Error, Outcome};
use super::manifest::title;
use super::target::{self, Target};
use super::wait::duration;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Say how far the update is, until it is complete
    Status(Status),
    /// Show the revisions there were
    History(History),
    /// Go back to an earlier revision
    Undo(Undo),
    /// Replace each pod by a fresh one, as an update would
    Restart(Sets),
}

#[derive(Debug, clap::Args)]
struct Sets {
    /// Which sets: TYPE/NAME… or TYPE NAME…
    #[arg(required = true, value_name = "TYPE/NAME")]
    words: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Status {
    #[command(flatten)]
    sets: Sets,
    /// Go on until it is complete
    #[arg(long, short, default_value = "true", num_args = 0..=1, default_missing_value = "true",
        require_equals = true, action = clap::ArgAction::Set, value_name = "true|false")]
    watch: bool,
    /// Give up after this long, as 30s or 2m; 0 waits as long as it takes
    #[arg(long, default_value = "0s", value_parser = duration, value_name = "DURATION")]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
struct History {
    #[command(flatten)]
    sets: Sets,
    /// Show this one in detail
    #[arg(long, default_value_t = 0, value_name = "N")]
    revision: i64,
}

#[derive(Debug, clap::Args)]
struct Undo {
    #[command(flatten)]
    sets: Sets,
    /// To this one instead of the one before
    #[arg(long, default_value_t = 0, value_name = "N")]
    to_revision: i64,
    /// Only say what would be done: none, client or server
    #[arg(long, default_value = "none", num_args = 0..=1, default_missing_value = "client",
        require_equals = true, value_parser = ["none", "client", "server"])]
    dry_run: String,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    match args.verb {
        Verb::Status(args) => status(context, args).await,
        Verb::History(args) => history(context, args).await,
        Verb::Undo(args) => undo(context, args).await,
        Verb::Restart(args) => restart(context, args).await,
    }
}

/// A set on the command line, as it was asked for.
struct Set {
    resource: &'static Resource,
    key: Key,
}

impl Set {
    fn title(&self) -> String {
        title(self.resource, &self.key.name)
    }
}

impl Sets {
    fn read(&self, context: &Context, what: &str) -> Result<Vec<Set>, Error> {
        let set = |target| match target {
            Target::Object(resource, name) if resource.stored().kind == "StatefulSet" => {
                Ok(Set { resource, key: Key::new(resource, context.namespace(), name) })
            }
            Target::Object(resource, _) => Err(Error::Usage(format!(
                "no {what} has been implemented for {{{:?} {:?}}}",
                resource.group, resource.kind
            ))),
            Target::Kind(_) => Err(Error::Usage("name a set, as in petset/web".to_string())),
        };
        target::parse(&self.words)?.into_iter().map(set).collect()
    }
}

/// What there is to say of an update now, and whether it is complete.
fn progress(set: &Object) -> Result<(String, bool), String> {
    let number = |path: &str| set.get_i64(path).unwrap_or(0);
    let text = |path: &str| set.get_str(path).unwrap_or_default();
    let kind = text("spec.updateStrategy.type");
    if kind == "OnDelete" {
        return Err("rollout status is only available for RollingUpdate and Recreate strategy type".into());
    }
    if number("status.observedGeneration") < set.generation() {
        return Ok(("Waiting for statefulset spec update to be observed...".into(), false));
    }
    let replicas = set.get_i64("spec.replicas").unwrap_or(1);
    let (ready, updated) = (number("status.readyReplicas"), number("status.updatedReplicas"));
    if ready < replicas {
        return Ok((format!("Waiting for {} pods to be ready...", replicas - ready), false));
    }
    if let Some(partition) = set.get_i64("spec.updateStrategy.rollingUpdate.partition") {
        let wanted = (replicas - partition).max(0);
        if updated < wanted {
            let text = format!(
                "Waiting for partitioned roll out to finish: {updated} out of {wanted} new pods have been updated..."
            );
            return Ok((text, false));
        }
        return Ok((format!("partitioned roll out complete: {updated} new pods have been updated..."), true));
    }
    let update = text("status.updateRevision");
    if update != text("status.currentRevision") {
        let text = format!(
            "waiting for statefulset rolling update to complete {updated} pods at revision {update}..."
        );
        return Ok((text, false));
    }
    let (current, revision) = (number("status.currentReplicas"), text("status.currentRevision"));
    Ok((format!("statefulset rolling update complete {current} pods at revision {revision}..."), true))
}

async fn status(context: &Context, args: Status) -> Outcome {
    let end = Instant::now() + args.timeout;
    let mut errors = Vec::new();
    for set in args.sets.read(context, "status viewer")? {
        let followed = follow(context, &set, args.watch);
        let outcome = if args.timeout.is_zero() {
            followed.await
        } else {
            let late = || Error::TimedOut(set.title());
            timeout_at(end, followed).await.unwrap_or_else(|_| Err(late()))
        };
        if let Err(error) = outcome {
            errors.push(error);
        }
    }
    Error::gather(errors).map(|()| 0)
}

/// Tells each change of an update's progress until it is complete, or once.
async fn follow(context: &Context, set: &Set, is_watching: bool) -> Result<(), Error> {
    let mut last = String::new();
    let mut tell = |object: &Object| -> Result<bool, Error> {
        let (text, is_complete) = progress(object).map_err(Error::Usage)?;
        if text != last {
            context.line(&text)?;
            last = text;
        }
        Ok(is_complete || !is_watching)
    };
    loop {
        let object = context.client.get(&set.key).await?;
        if tell(&object)? {
            return Ok(());
        }
        let options = WatchOptions {
            fields: Some(format!("metadata.name={}", set.key.name)),
            resource_version: object.resource_version().map(|version| version.to_string()),
            ..WatchOptions::default()
        };
        let watched = context.client.watch(set.key.resource, Some(&set.key.namespace), &options).await;
        let mut watch = match watched {
            Ok(watch) => watch,
            Err(error) if error.kind() == Some(api::Kind::Gone) => continue,
            Err(error) => return Err(error.into()),
        };
        while let Some(event) = watch.next().await {
            match event {
                Ok(event) if event.kind == EventKind::Deleted => {
                    return Err(Error::Usage("object has been deleted".to_string()));
                }
                Ok(event) if event.kind != EventKind::Bookmark && tell(&event.object)? => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == Some(api::Kind::Gone) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The revisions of a set, from the oldest.
async fn revisions(context: &Context, set: &Object) -> Result<Vec<Object>, Error> {
    let Some(resource) = resource_by_plural("apps", "controllerrevisions") else { return Ok(Vec::new()) };
    let selector = LabelSelector::from_spec(set.get("spec.selector").unwrap_or(&Value::Null))?;
    let options = ListOptions { labels: Some(selector.to_string()), ..ListOptions::default() };
    let mut all = context.client.list(resource, Some(set.namespace()), &options).await?.items;
    all.retain(|it| it.controller_owner().is_some_and(|owner| owner.uid == set.uid()));
    all.sort_by_key(number);
    Ok(all)
}

fn number(revision: &Object) -> i64 {
    revision.get_i64("revision").unwrap_or(0)
}

async fn history(context: &Context, args: History) -> Outcome {
    let mut errors = Vec::new();
    for set in args.sets.read(context, "history viewer")? {
        let shown = async {
            let object = context.client.get(&set.key).await?;
            let all = revisions(context, &object).await?;
            if args.revision > 0 {
                let wanted = all.iter().find(|it| number(it) == args.revision);
                let missing =
                    || Error::Usage(format!("unable to find the specified revision {}", args.revision));
                let template = describe_template(&Object(wanted.ok_or_else(missing)?.0["data"].clone()));
                return Ok(format!("{} with revision #{}\n{template}", set.title(), args.revision));
            }
            Ok(format!("{} \n{}", set.title(), table(&all)))
        };
        match shown.await {
            Ok(text) => context.line(text)?,
            Err(error) => errors.push(error),
        }
    }
    Error::gather(errors).map(|()| 0)
}

fn table(revisions: &[Object]) -> String {
    let mut text = "REVISION  CHANGE-CAUSE\n".to_string();
    for revision in revisions {
        let cause = revision.annotation("kubernetes.io/change-cause").filter(|cause| !cause.is_empty());
        text += &format!("{:<8}  {}\n", number(revision), cause.unwrap_or("<none>"));
    }
    text
}

async fn undo(context: &Context, args: Undo) -> Outcome {
    let mut errors = Vec::new();
    for set in args.sets.read(context, "rollbacker")? {
        match roll_back(context, &set, &args).await {
            Ok(text) => context.line(format_args!("{} {text}", set.title()))?,
            Err(error) => errors.push(error),
        }
    }
    Error::gather(errors).map(|()| 0)
}

async fn roll_back(context: &Context, set: &Set, args: &Undo) -> Result<String, Error> {
    let object = context.client.get(&set.key).await?;
    let all = revisions(context, &object).await?;
    let target = choose(&all, args.to_revision).map_err(Error::Usage)?;
    let mut template = target.0["data"]["spec"]["template"].clone();
    if let Some(template) = template.as_object_mut() {
        template.remove("$patch");
    }
    if object.get("spec.template") == Some(&template) {
        return Ok(format!(
            "skipped rollback (current template already matches revision {})",
            number(target)
        ));
    }
    if args.dry_run == "client" {
        return Ok(format!("{}\n(dry run)", describe_template(&Object(target.0["data"].clone()))));
    }
    let is_dry = args.dry_run == "server";
    let data = &target.0["data"];
    patch(context, set, data, "kubectl-rollout", is_dry).await?;
    Ok(format!("rolled back{}", if is_dry { " (server dry run)" } else { "" }))
}

/// The revision to go back to: the one asked for, or the last but one.
fn choose(all: &[Object], wanted: i64) -> Result<&Object, String> {
    if wanted != 0 {
        let missing = || format!("unable to find specified revision {wanted} in history");
        return all.iter().find(|it| number(it) == wanted).ok_or_else(missing);
    }
    match all {
        [.., before, _] => Ok(before),
        _ => Err("no last revision to roll back to".into()),
    }
}

async fn restart(context: &Context, args: Sets) -> Outcome {
    let now = api::time::seconds(context.now());
    let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
    let change = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
    let mut errors = Vec::new();
    for set in args.read(context, "restarter")? {
        match patch(context, &set, &change, "kubectl-rollout", false).await {
            Ok(()) => context.line(format_args!("{} restarted", set.title()))?,
            Err(error) => errors.push(error),
        }
    }
    Error::gather(errors).map(|()| 0)
}

async fn patch(
    context: &Context,
    set: &Set,
    patch: &Value,
    manager: &str,
    dry_run: bool,
) -> Result<(), Error> {
    let options = WriteOptions { dry_run, field_manager: Some(manager.to_string()) };
    let written = context.client.patch(&set.key, None, PatchKind::Strategic, patch, &options).await?;
    context.warn(&written.warnings);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_as_kubectl_tells_it() {
        let check = |spec: Value, status: Value, expect: Result<(&str, bool), &str>| {
            let set = Object(json!({"metadata": {"generation": 2}, "spec": spec, "status": status}));
            let said = progress(&set);
            let said = said.as_ref().map(|(text, is)| (text.as_str(), *is)).map_err(String::as_str);
            assert_eq!(said, expect);
        };
        let rolling = |partition: i64| json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}});
        let status = |ready: i64, updated: i64| {
            json!({"observedGeneration": 2, "readyReplicas": ready, "updatedReplicas": updated,
                "currentReplicas": 3 - updated, "currentRevision": "a", "updateRevision": if updated == 3 { "a" } else { "b" }})
        };
        check(
            rolling(0),
            json!({"observedGeneration": 1}),
            Ok(("Waiting for statefulset spec update to be observed...", false)),
        );
        check(rolling(0), status(1, 3), Ok(("Waiting for 2 pods to be ready...", false)));
        check(
            rolling(1),
            status(3, 1),
            Ok((
                "Waiting for partitioned roll out to finish: 1 out of 2 new pods have been updated...",
                false,
            )),
        );
        check(
            rolling(2),
            status(3, 1),
            Ok(("partitioned roll out complete: 1 new pods have been updated...", true)),
        );
        let recreate = || json!({"replicas": 3, "updateStrategy": {"type": "Recreate"}});
        check(
            recreate(),
            status(3, 2),
            Ok(("waiting for statefulset rolling update to complete 2 pods at revision b...", false)),
        );
        check(
            recreate(),
            status(3, 3),
            Ok(("statefulset rolling update complete 0 pods at revision a...", true)),
        );
        check(
            json!({"updateStrategy": {"type": "OnDelete"}}),
            json!({}),
            Err("rollout status is only available for RollingUpdate and Recreate strategy type"),
        );
    }

    #[test]
    fn the_last_but_one_is_gone_back_to_unless_another_is_named() {
        let all: Vec<Object> = [1, 4, 5].map(|number| Object(json!({"revision": number}))).into();
        let check = |all: &[Object], wanted: i64, expect: Result<i64, &str>| {
            let chosen = choose(all, wanted);
            assert_eq!(chosen.as_ref().map(|it| number(it)).map_err(String::as_str), expect);
        };
        check(&all, 0, Ok(4));
        check(&all, 1, Ok(1));
        check(&all, 2, Err("unable to find specified revision 2 in history"));
        check(&all[..1], 0, Err("no last revision to roll back to"));
    }

    #[test]
    fn history_is_a_table() {
        let cause = json!({"kubernetes.io/change-cause": "image v2"});
        let all = [
            Object(json!({"revision": 1})),
            Object(json!({"revision": 12, "metadata": {"annotations": cause}})),
        ];
        assert_eq!(table(&all), "REVISION  CHANGE-CAUSE\n1         <none>\n12        image v2\n");
    }
}
