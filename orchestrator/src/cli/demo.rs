//! `demo`: the story itself is `crate::demo`.

use super::error::{Error, Outcome};
use crate::demo::{self, Afterwards};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave the yard running, and say how to look around
    #[arg(long)]
    keep: bool,
}

pub async fn run(args: Args) -> Outcome {
    let afterwards = if args.keep { Afterwards::Keep } else { Afterwards::Purge };
    demo::run(afterwards).await.map_err(Error::Daemon)?;
    Ok(0)
}
