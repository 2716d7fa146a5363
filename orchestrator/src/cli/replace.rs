//! `replace -f`: whole objects, or their status, instead of those that are there.

use api::Key;
use client::WriteOptions;

use super::context::Context;
use super::error::{Error, Outcome};
use super::manifest;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// File or directory of manifests, or - for standard input; may be given several times
    #[arg(long = "filename", short, required = true, value_name = "FILE|-|DIR")]
    files: Vec<String>,
    /// Replace this part only
    #[arg(long, value_parser = ["status", "scale"])]
    subresource: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let options = WriteOptions { dry_run: false, field_manager: Some("kubectl-replace".to_string()) };
    let mut errors = Vec::new();
    for manifest in manifest::read_all(&args.files)? {
        let namespace = manifest.namespace(context.chosen.as_deref(), "default")?;
        let key = Key::new(manifest.resource, &namespace, manifest.name());
        let part = args.subresource.as_deref();
        match context.client.update(&key, part, &manifest.object, &options).await {
            Ok(written) => {
                context.warn(&written.warnings);
                context.line(format_args!("{} replaced", manifest.title()))?;
            }
            Err(error) => errors.push(error.into()),
        }
    }
    Error::gather(errors).map(|()| 0)
}
