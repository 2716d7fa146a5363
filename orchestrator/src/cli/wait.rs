//! `wait`: until objects have a condition, a value, or are gone.

use std::time::Duration;

use api::{Key, Object, Resource};
use client::{EventKind, WatchOptions};
use tokio::time::{Instant, timeout_at};

use super::context::Context;
use super::delete::until_gone;
use super::error::{Error, Outcome};
use super::get::Selection;
use super::jsonpath::{self, Path};
use super::manifest::{self, title};
use super::target::{self, Target};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to wait for: TYPE/NAME…, TYPE NAME…, or TYPE with -l or --all
    #[arg(value_name = "TYPE[/NAME] [NAME…]")]
    words: Vec<String>,
    /// Wait for the objects that manifests name
    #[arg(long = "filename", short, value_name = "FILE|-|DIR", conflicts_with = "words")]
    files: Vec<String>,
    #[command(flatten)]
    selection: Selection,
    /// All objects of the kind, in the namespace
    #[arg(long)]
    all: bool,
    /// delete, create, condition=Ready[=True], or jsonpath={.status.phase}[=Running]
    #[arg(long = "for", value_parser = goal, value_name = "GOAL")]
    goal: Goal,
    /// Give up after this long, as 30s or 2m
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "DURATION")]
    timeout: Duration,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq)]
enum Goal {
    Delete,
    Create,
    Condition { name: String, value: String },
    Value { path: Path, value: Option<String> },
}

fn goal(text: &str) -> Result<Goal, String> {
    match text.split_once('=') {
        None if text.eq_ignore_ascii_case("delete") => Ok(Goal::Delete),
        None if text.eq_ignore_ascii_case("create") => Ok(Goal::Create),
        Some(("condition", condition)) if !condition.is_empty() => {
            let (name, value) = condition.split_once('=').unwrap_or((condition, "True"));
            Ok(Goal::Condition { name: name.to_string(), value: value.to_string() })
        }
        Some(("jsonpath", rest)) => {
            let inside = rest.trim_matches('\'').strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let (path, after) =
                inside.ok_or("jsonpath needs braces, as in jsonpath={.status.phase}=Running")?;
            let value = after
                .trim_start_matches('\'')
                .strip_prefix('=')
                .map(|value| value.trim_matches(['\'', '"']).to_string());
            Ok(Goal::Value { path: Path::parse(path)?, value })
        }
        _ => Err(format!(
            "{text:?} is not one of delete, create, condition=NAME[=VALUE], jsonpath={{PATH}}[=VALUE]"
        )),
    }
}

/// Reads `30s`, `1m30s`, `2h`, `500ms`, or plain seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 30s or 1m30s");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits =
            rest.find(|letter: char| !(letter.is_ascii_digit() || letter == '.')).ok_or_else(wrong)?;
        let unit =
            rest[digits..].find(|letter: char| letter.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let seconds = match &rest[digits..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += rest[..digits].parse::<f64>().map_err(|_| wrong())? * seconds;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}

impl Goal {
    fn is_met(&self, object: &Object) -> bool {
        match self {
            Goal::Delete => false,
            Goal::Create => true,
            Goal::Condition { name, value } => {
                object.get_array("status.conditions").iter().any(|condition| {
                    let is = |field: &str, text: &str| {
                        condition[field].as_str().is_some_and(|found| found.eq_ignore_ascii_case(text))
                    };
                    is("type", name) && is("status", value)
                })
            }
            Goal::Value { path, value } => {
                let found = path.find(&object.0);
                match value {
                    None => !found.is_empty(),
                    Some(value) => found.iter().any(|found| jsonpath::show(found) == *value),
                }
            }
        }
    }
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let end = Instant::now() + args.timeout;
    let keys = keys(context, &args).await?;
    if keys.is_empty() {
        if args.goal == Goal::Delete {
            return Ok(0);
        }
        return Err(Error::Usage("no matching resources found".to_string()));
    }
    let mut errors = Vec::new();
    for (resource, key) in keys {
        let named = title(resource, &key.name);
        let waited = async {
            match args.goal {
                Goal::Delete => until_gone(&context.client, &key, None).await,
                _ => until(context, &key, &args.goal).await,
            }
        };
        match timeout_at(end, waited).await {
            Ok(Ok(())) if args.goal == Goal::Delete => context.line(format_args!("{named} deleted"))?,
            Ok(Ok(())) => context.line(format_args!("{named} condition met"))?,
            Ok(Err(error)) => errors.push(error.into()),
            Err(_) => errors.push(Error::TimedOut(format!("{}/{}", key.resource.plural, key.name))),
        }
    }
    Error::gather(errors).map(|()| 0)
}

/// The objects, each with the kind it was asked for as.
async fn keys(context: &Context, args: &Args) -> Result<Vec<(&'static Resource, Key)>, Error> {
    if !args.files.is_empty() {
        let manifests = manifest::read_all(&args.files)?;
        let keys = manifests.iter().map(|manifest| {
            let namespace = manifest.namespace(context.chosen.as_deref(), "default")?;
            Ok((manifest.resource, Key::new(manifest.resource, namespace, manifest.name())))
        });
        return keys.collect();
    }
    let by_selector =
        args.all || args.selection.selector.is_some() || args.selection.field_selector.is_some();
    let mut keys = Vec::new();
    for target in target::parse(&args.words)? {
        match target {
            Target::Object(resource, name) => {
                keys.push((resource, Key::new(resource, context.namespace(), name)))
            }
            Target::Kind(resource) if by_selector => {
                let list = context
                    .client
                    .list(resource, args.selection.namespace(context), &args.selection.list())
                    .await?;
                keys.extend(
                    list.items
                        .iter()
                        .map(|item| (resource, Key::new(resource, item.namespace(), item.name()))),
                );
            }
            Target::Kind(_) => {
                return Err(Error::Usage("name what to wait for, or give -l or --all".to_string()));
            }
        }
    }
    Ok(keys)
}

/// Waits until an object meets a goal. One that is not there is an error, except for `create`.
async fn until(context: &Context, key: &Key, goal: &Goal) -> Result<(), client::Error> {
    loop {
        let since = match context.client.get(key).await {
            Ok(object) if goal.is_met(&object) => return Ok(()),
            Ok(object) => object.resource_version().map(|version| version.to_string()),
            Err(error) if error.is_not_found() && *goal == Goal::Create => None,
            Err(error) => return Err(error),
        };
        let options = WatchOptions {
            fields: Some(format!("metadata.name={}", key.name)),
            resource_version: since,
            ..WatchOptions::default()
        };
        let mut watch = match context.client.watch(key.resource, Some(&key.namespace), &options).await {
            Ok(watch) => watch,
            Err(error) if error.kind() == Some(api::Kind::Gone) => continue,
            Err(error) => return Err(error),
        };
        while let Some(event) = watch.next().await {
            match event {
                Ok(event) if event.kind == EventKind::Deleted => break,
                Ok(event) if event.kind != EventKind::Bookmark && goal.is_met(&event.object) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == Some(api::Kind::Gone) => break,
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn goals() {
        let pod = Object(
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
        );
        let check = |text: &str, expect: bool| assert_eq!(goal(text).unwrap().is_met(&pod), expect, "{text}");
        check("condition=Ready", true);
        check("condition=ready=false", false);
        check("condition=PodScheduled", false);
        check("jsonpath={.status.phase}=Running", true);
        check("jsonpath='{.status.phase}'=Pending", false);
        check("jsonpath={.status.podIP}", false);
        check("create", true);
        for wrong in ["", "condition=", "jsonpath=.a", "Ready"] {
            assert!(goal(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        let check =
            |text: &str, millis: u64| assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        check("30s", 30_000);
        check("1m30s", 90_000);
        check("0.5h", 1_800_000);
        check("250ms", 250);
        check("7", 7_000);
        for wrong in ["s", "1x", "-1s", "1.2.3s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
