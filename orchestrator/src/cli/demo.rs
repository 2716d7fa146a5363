//! `demo`: the stories themselves are `crate::demo`.

use super::error::{Error, Outcome};
use crate::demo::{self, Afterwards, Tale};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave the yard running, and say how to look around
    #[arg(long, global = true)]
    keep: bool,
    #[command(subcommand)]
    tale: Option<Other>,
}

/// Stories other than the main one.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
enum Other {
    /// A pet loses its node, once killed and once cut off, and serves on elsewhere with its disk
    Failover,
}

pub async fn run(args: Args) -> Outcome {
    let afterwards = if args.keep { Afterwards::Keep } else { Afterwards::Purge };
    let tale = match args.tale {
        None => Tale::Main,
        Some(Other::Failover) => Tale::Failover,
    };
    demo::run(tale, afterwards).await.map_err(Error::Daemon)?;
    Ok(0)
}
