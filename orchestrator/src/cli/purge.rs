//! `purge`: the host as it was before. The work itself is `crate::up::purge`.

use super::Globals;
use super::error::{Error, Outcome};
use super::up::Place;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Really: every pod, volume, image and object of the yard is deleted
    #[arg(long)]
    yes: bool,
}

pub fn run(globals: &Globals, args: Args) -> Outcome {
    let yard = args.place.yard(globals)?;
    if !args.yes {
        return Err(Error::Usage(format!(
            "this deletes every pod, object, image and volume of yard {} ({}, {}, {}); add --yes if you mean it",
            yard.name,
            yard.data_dir.display(),
            yard.run_dir.display(),
            yard.log_dir.display()
        )));
    }
    Err(Error::Usage(format!("this build holds no daemon for yard {}", yard.name)))
}
