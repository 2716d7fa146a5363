//! `scale`: the number of pods.

use api::Key;

use super::context::Context;
use super::error::{Error, Outcome};
use super::manifest::title;
use super::target::{self, Target};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to scale: TYPE/NAME… or TYPE NAME…
    #[arg(required = true, value_name = "TYPE/NAME")]
    words: Vec<String>,
    /// How many pods
    #[arg(long)]
    replicas: u32,
    /// Only if there are so many now
    #[arg(long, value_name = "N")]
    current_replicas: Option<i64>,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let mut errors = Vec::new();
    for target in target::parse(&args.words)? {
        let Target::Object(resource, name) = target else {
            return Err(Error::Usage("name what to scale, as in replicaset/web".to_string()));
        };
        match one(context, &args, Key::new(resource, context.namespace(), &name)).await {
            Ok(()) => context.line(format_args!("{} scaled", title(resource, &name)))?,
            Err(error) => errors.push(error),
        }
    }
    Error::gather(errors).map(|()| 0)
}

async fn one(context: &Context, args: &Args, key: Key) -> Result<(), Error> {
    if let Some(expected) = args.current_replicas {
        let actual = context.client.get(&key).await?.get_i64("spec.replicas").unwrap_or(1);
        if actual != expected {
            return Err(Error::Usage(format!("expected replicas to be {expected}, was {actual}")));
        }
    }
    let scaled = context.client.scale(&key, args.replicas).await?;
    context.warn(&scaled.warnings);
    Ok(())
}
