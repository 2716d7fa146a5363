//! `delete`: objects by name, file or selector; waits until they are gone.

use std::time::Duration;

use api::{Key, Resource};
use client::{Client, DeleteOptions, EventKind, WatchOptions};

use super::apply::DryRun;
use super::context::Context;
use super::error::{Error, Outcome};
use super::get::Selection;
use super::manifest::{self, title};
use super::target::{self, Target};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to delete: TYPE NAME…, TYPE/NAME…, or TYPE with -l or --all
    #[arg(value_name = "TYPE[/NAME] [NAME…]")]
    words: Vec<String>,
    /// Delete the objects that manifests name
    #[arg(long = "filename", short, value_name = "FILE|-|DIR", conflicts_with = "words")]
    files: Vec<String>,
    #[command(flatten)]
    selection: Selection,
    /// All objects of the kind, in the namespace
    #[arg(long)]
    all: bool,
    /// Seconds between SIGTERM and SIGKILL; -1 for the object's own
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "SECONDS")]
    grace_period: i64,
    /// At once: SIGKILL, without a grace period
    #[arg(long)]
    force: bool,
    /// The same as --grace-period=1
    #[arg(long, conflicts_with = "force")]
    now: bool,
    /// Wait until the objects are gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: bool,
    /// Give up waiting after this long, as 30s or 2m; 0 means never
    #[arg(long, default_value = "0", value_parser = super::wait::duration, value_name = "DURATION")]
    timeout: Duration,
    /// What becomes of the objects they own: background, foreground or orphan
    #[arg(long, default_value = "background", value_name = "POLICY")]
    cascade: Cascade,
    /// Succeed if an object is not there
    #[arg(long)]
    ignore_not_found: bool,
    /// Do everything but delete: `server` asks the daemon, `client` only reads
    #[arg(long, default_value = "none", num_args = 0..=1, default_missing_value = "client", require_equals = true)]
    dry_run: DryRun,
    /// `name` shows only names
    #[arg(long, short, value_name = "name")]
    output: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Cascade {
    Background,
    Foreground,
    Orphan,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let (keys, is_optional) = keys(context, &args).await?;
    let options = DeleteOptions {
        grace_period_secs: grace(&args)?,
        propagation: Some(match args.cascade {
            Cascade::Background => "Background",
            Cascade::Foreground => "Foreground",
            Cascade::Orphan => "Orphan",
        }),
        uid: None,
        dry_run: args.dry_run == DryRun::Server,
    };
    if args.force {
        context.note(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated.",
        );
    }
    let mut errors = Vec::new();
    let mut going = Vec::new();
    for (resource, key) in keys {
        // What waits for the end waits for this incarnation, not for a successor of the same name.
        let uid = match (args.wait, args.dry_run) {
            (true, DryRun::None) => context.client.get(&key).await.map(|object| object.uid().to_string()),
            (_, DryRun::Client) => context.client.get(&key).await.map(|_| String::new()),
            _ => Ok(String::new()),
        };
        let deleted = match (uid, args.dry_run) {
            (Ok(uid), DryRun::Client) => Ok((uid, None)),
            (Ok(uid), _) => context.client.delete(&key, &options).await.map(|left| (uid, left)),
            (Err(error), _) => Err(error),
        };
        match deleted {
            Ok((uid, left)) => {
                told(context, resource, &key, &args)?;
                if left.is_some() && args.wait && args.dry_run == DryRun::None {
                    going.push((key, uid));
                }
            }
            Err(error) if error.is_not_found() && (is_optional || args.ignore_not_found) => {}
            Err(error) => errors.push(error.into()),
        }
    }
    let limit = if args.timeout.is_zero() { Duration::from_secs(u64::from(u32::MAX)) } else { args.timeout };
    let end = tokio::time::Instant::now() + limit;
    for (key, uid) in going {
        match tokio::time::timeout_at(end, until_gone(&context.client, &key, Some(&uid))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => errors.push(error.into()),
            Err(_) => errors.push(Error::TimedOut(format!("{}/{}", key.resource.plural, key.name))),
        }
    }
    Error::gather(errors).map(|()| 0)
}

fn grace(args: &Args) -> Result<Option<u64>, Error> {
    match (args.force, args.now, args.grace_period) {
        (true, _, 1..) => Err(Error::Usage(
            "--force and --grace-period greater than 0 cannot be specified together".to_string(),
        )),
        (true, ..) => Ok(Some(0)),
        (_, true, -1) => Ok(Some(1)),
        (_, true, _) => {
            Err(Error::Usage("--now and --grace-period cannot be specified together".to_string()))
        }
        // kubectl means "soon" by 0 without --force; only --force means "without waiting for the kernel".
        (_, _, 0) => Ok(Some(1)),
        (_, _, seconds) => Ok(u64::try_from(seconds).ok()),
    }
}

fn told(context: &Context, resource: &'static Resource, key: &Key, args: &Args) -> Result<(), Error> {
    if args.output.as_deref() == Some("name") {
        return context.line(title(resource, &key.name));
    }
    let kind = match resource.group {
        "" => resource.singular.to_string(),
        group => format!("{}.{group}", resource.singular),
    };
    let verb = if args.force { "force deleted" } else { "deleted" };
    context.line(format_args!("{kind} {:?} {verb}{}", key.name, args.dry_run.suffix()))
}

/// What to delete; and whether it is fine if something of it is gone by then.
async fn keys(context: &Context, args: &Args) -> Result<(Vec<(&'static Resource, Key)>, bool), Error> {
    if !args.files.is_empty() {
        // The last made goes first: what stands on something goes before it.
        let mut keys = Vec::new();
        for manifest in manifest::read_all(&args.files)? {
            let namespace = manifest.namespace(context.chosen.as_deref(), "default")?;
            keys.push((manifest.resource, Key::new(manifest.resource, namespace, manifest.name())));
        }
        keys.reverse();
        return Ok((keys, false));
    }
    let targets = target::parse(&args.words)?;
    let by_selector =
        args.all || args.selection.selector.is_some() || args.selection.field_selector.is_some();
    let mut keys = Vec::new();
    for target in &targets {
        match target {
            Target::Object(_, name) if by_selector => {
                return Err(Error::Usage(format!(
                    "name {name:?} cannot be given together with a selector or --all"
                )));
            }
            Target::Object(resource, name) => {
                keys.push((*resource, Key::new(resource, context.namespace(), name)));
            }
            Target::Kind(_) if !by_selector => {
                return Err(Error::Usage(
                    "resource(s) were provided, but no name was specified (or a selector, or --all)"
                        .to_string(),
                ));
            }
            Target::Kind(resource) => {
                let namespace = args.selection.namespace(context);
                let list = context.client.list(resource, namespace, &args.selection.list()).await?;
                keys.extend(
                    list.items
                        .iter()
                        .map(|item| (*resource, Key::new(resource, item.namespace(), item.name()))),
                );
            }
        }
    }
    if keys.is_empty() {
        context.note("No resources found");
    }
    Ok((keys, by_selector))
}

/// Asks for the end of one incarnation of an object; whether there was anything to end. Another object of the name
/// means that this one is gone.
///
/// # Errors
/// What the server refuses.
pub async fn delete_incarnation(
    client: &Client,
    key: &Key,
    uid: &str,
    grace_period_secs: Option<u64>,
) -> Result<bool, client::Error> {
    let options = DeleteOptions { grace_period_secs, uid: Some(uid.to_owned()), ..DeleteOptions::default() };
    match client.delete(key, &options).await {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), Some(api::Kind::NotFound | api::Kind::Conflict)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until an object is gone, or has another uid.
///
/// # Errors
/// Those of the watch.
pub async fn until_gone(client: &Client, key: &Key, uid: Option<&str>) -> Result<(), client::Error> {
    let is_other = |found: &str| uid.is_some_and(|uid| !uid.is_empty() && uid != found);
    loop {
        let present = match client.get(key).await {
            Ok(present) if is_other(present.uid()) => return Ok(()),
            Ok(present) => present,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        };
        let options = WatchOptions {
            fields: Some(format!("metadata.name={}", key.name)),
            resource_version: present.resource_version().map(|version| version.to_string()),
            ..WatchOptions::default()
        };
        let mut watch = match client.watch(key.resource, Some(&key.namespace), &options).await {
            Ok(watch) => watch,
            Err(error) if error.kind() == Some(api::Kind::Gone) => continue,
            Err(error) => return Err(error),
        };
        while let Some(event) = watch.next().await {
            match event {
                Ok(event) if event.kind == EventKind::Deleted || is_other(event.object.uid()) => {
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if error.kind() == Some(api::Kind::Gone) => break,
                Err(error) => return Err(error),
            }
        }
    }
}
