//! `apply`: make objects as manifests say, keeping what others have set. Client-side, as kubectl's default.

use api::{Key, Kind, Object};
use client::{PatchKind, WriteOptions};
use serde_json::Value;

use super::context::Context;
use super::error::{Error, Outcome};
use super::manifest::{self, Manifest};
use super::merge;
use super::print::{self, Format};

/// How often a write is tried again when somebody else was faster; kubectl's own number.
const ATTEMPTS: usize = 5;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// File or directory of manifests, or - for standard input; may be given several times
    #[arg(long = "filename", short, required = true, value_name = "FILE|-|DIR")]
    files: Vec<String>,
    /// Do everything but store: `server` asks the daemon, `client` only reads
    #[arg(long, default_value = "none", num_args = 0..=1, default_missing_value = "client", require_equals = true)]
    dry_run: DryRun,
    /// Show the objects instead of a line each
    #[arg(long, short, value_parser = print::format, value_name = "FORMAT")]
    output: Option<Format>,
}

/// How much of a write is only shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    /// Write.
    None,
    /// Let the daemon try, and store nothing.
    Server,
    /// Do not even try.
    Client,
}

impl DryRun {
    /// What a line about an object ends with.
    pub fn suffix(self) -> &'static str {
        match self {
            DryRun::None => "",
            DryRun::Server => " (server dry run)",
            DryRun::Client => " (dry run)",
        }
    }
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let mut errors = Vec::new();
    let mut shown = Vec::new();
    for manifest in manifest::read_all(&args.files)? {
        match one(context, &manifest, args.dry_run).await {
            Ok((object, verb)) => match &args.output {
                None => context.line(format_args!("{} {verb}{}", manifest.title(), args.dry_run.suffix()))?,
                Some(_) => shown.push(object),
            },
            // Nobody there: the others would only say the same.
            Err(error @ Error::Client(client::Error::NoDaemon { .. } | client::Error::NotRoot { .. })) => {
                return Err(error);
            }
            Err(error) => errors.push(error),
        }
    }
    if let Some(text) =
        args.output.as_ref().map(|format| print::whole(format, &shown, shown.len() == 1)).transpose()?
    {
        context.text(&text.unwrap_or_default())?;
    }
    Error::gather(errors).map(|()| 0)
}

/// Applies one object; says what became of it.
async fn one(
    context: &Context,
    manifest: &Manifest,
    dry_run: DryRun,
) -> Result<(Object, &'static str), Error> {
    if manifest.name().is_empty() {
        return Err(Error::Manifest {
            place: manifest.place.clone(),
            problem: "resource name may not be empty (generateName is for `create`)".to_string(),
        });
    }
    let namespace = manifest.namespace(context.chosen.as_deref(), "default")?;
    let mut wanted = manifest.object.clone();
    if manifest.resource.namespaced {
        wanted["metadata"]["namespace"] = namespace.clone().into();
    }
    let wanted = merge::annotated(&wanted);
    let options = WriteOptions {
        dry_run: dry_run == DryRun::Server,
        field_manager: Some("kubectl-client-side-apply".to_string()),
    };
    let key = Key::new(manifest.resource, &namespace, manifest.name());
    let mut attempt = 1;
    loop {
        let outcome = match context.client.get(&key).await {
            Ok(present) => configure(context, manifest, &key, &present, &wanted, dry_run, &options).await,
            Err(error) if error.is_not_found() => {
                create(context, manifest, &namespace, &wanted, dry_run, &options).await
            }
            Err(error) => Err(error.into()),
        };
        match outcome {
            // Changed, created or deleted meanwhile: look again.
            Err(Error::Client(ref error))
                if attempt < ATTEMPTS
                    && matches!(error.kind(), Some(Kind::Conflict | Kind::AlreadyExists)) =>
            {
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

async fn create(
    context: &Context,
    manifest: &Manifest,
    namespace: &str,
    wanted: &Value,
    dry_run: DryRun,
    options: &WriteOptions,
) -> Result<(Object, &'static str), Error> {
    if dry_run == DryRun::Client {
        return Ok((Object(wanted.clone()), "created"));
    }
    let written = context.client.create(manifest.resource, namespace, wanted, options).await?;
    context.warn(&written.warnings);
    Ok((written.object, "created"))
}

async fn configure(
    context: &Context,
    manifest: &Manifest,
    key: &Key,
    present: &Object,
    wanted: &Value,
    dry_run: DryRun,
    options: &WriteOptions,
) -> Result<(Object, &'static str), Error> {
    // The stored kind may have another name than the one in the file.
    let mut wanted = wanted.clone();
    for field in ["kind", "apiVersion"] {
        wanted[field] = present.0[field].clone();
    }
    let last = merge::last_applied(&present.0);
    if last.is_none() {
        context.note(format_args!(
            "Warning: resource {} is missing the {} annotation which is required by apply. \
             It will be patched automatically.",
            manifest.title(),
            merge::LAST_APPLIED
        ));
    }
    let last = last.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let next = merge::three_way(&last, &wanted, &present.0);
    let Some(mut patch) = merge::diff(&present.0, &next) else { return Ok((present.clone(), "unchanged")) };
    if dry_run == DryRun::Client {
        return Ok((Object(next), "configured"));
    }
    // The patch holds whole lists: it is only right against the state it was made for.
    patch["metadata"]["resourceVersion"] = present.0["metadata"]["resourceVersion"].clone();
    let written = context.client.patch(key, None, PatchKind::Merge, &patch, options).await?;
    context.warn(&written.warnings);
    let same = written.object.resource_version() == present.resource_version() && dry_run == DryRun::None;
    Ok((written.object, if same { "unchanged" } else { "configured" }))
}
