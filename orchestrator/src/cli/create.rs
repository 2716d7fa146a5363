//! `create -f`: new objects only.

use api::Object;
use client::WriteOptions;

use super::apply::DryRun;
use super::context::Context;
use super::error::{Error, Outcome};
use super::manifest::{self, Manifest};
use super::print::{self, Format};

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

pub async fn run(context: &Context, args: Args) -> Outcome {
    let mut errors = Vec::new();
    let mut shown = Vec::new();
    for manifest in manifest::read_all(&args.files)? {
        match one(context, &manifest, args.dry_run).await {
            Ok(object) if args.output.is_none() => {
                let title = manifest::title(manifest.resource, object.name());
                context.line(format_args!("{title} created{}", args.dry_run.suffix()))?;
            }
            Ok(object) => shown.push(object),
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

async fn one(context: &Context, manifest: &Manifest, dry_run: DryRun) -> Result<Object, Error> {
    let namespace = manifest.namespace(context.chosen.as_deref(), "default")?;
    if dry_run == DryRun::Client {
        return Ok(Object(manifest.object.clone()));
    }
    let options = WriteOptions {
        dry_run: dry_run == DryRun::Server,
        field_manager: Some("kubectl-create".to_string()),
    };
    let written = context.client.create(manifest.resource, &namespace, &manifest.object, &options).await?;
    context.warn(&written.warnings);
    Ok(written.object)
}
