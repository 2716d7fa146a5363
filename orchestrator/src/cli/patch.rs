//! `patch`: some fields of an object.

use api::Key;
use client::{PatchKind, WriteOptions};

use super::context::Context;
use super::error::{Error, Outcome};
use super::manifest::title;
use super::target::{self, Target};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to patch: TYPE/NAME or TYPE NAME
    #[arg(required = true, value_name = "TYPE/NAME")]
    words: Vec<String>,
    /// The patch, as JSON
    #[arg(long, short, value_name = "JSON")]
    patch: String,
    /// Its dialect
    #[arg(long = "type", value_enum, default_value = "strategic")]
    dialect: Dialect,
    /// Patch this part only
    #[arg(long, value_parser = ["status", "scale"])]
    subresource: Option<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Dialect {
    Json,
    Merge,
    Strategic,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let patch = serde_json::from_str(&args.patch)
        .map_err(|error| Error::Usage(format!("--patch is no JSON: {error}")))?;
    let kind = match args.dialect {
        Dialect::Json => PatchKind::Json,
        Dialect::Merge => PatchKind::Merge,
        Dialect::Strategic => PatchKind::Strategic,
    };
    let options = WriteOptions { dry_run: false, field_manager: Some("kubectl-patch".to_string()) };
    let mut errors = Vec::new();
    for target in target::parse(&args.words)? {
        let Target::Object(resource, name) = target else {
            return Err(Error::Usage("name what to patch, as in pod/web".to_string()));
        };
        let key = Key::new(resource, context.namespace(), &name);
        match context.client.patch(&key, args.subresource.as_deref(), kind, &patch, &options).await {
            Ok(written) => {
                context.warn(&written.warnings);
                context.line(format_args!("{} patched", title(resource, &name)))?;
            }
            Err(error) => errors.push(error.into()),
        }
    }
    Error::gather(errors).map(|()| 0)
}
