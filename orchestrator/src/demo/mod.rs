//! `podyard demo`: the whole machine at work, told as a story, in a yard that is gone afterwards.

mod chapters;
mod elements;
mod failover;
mod leftovers;
mod story;
mod yard;

use story::Story;
use yard::DemoYard;

/// What went wrong, with its whole chain.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What becomes of the yard after the story.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Afterwards {
    /// It is purged, and the demo shows that nothing is left.
    Purge,
    /// It runs on, for the reader to look around.
    Keep,
}

/// Which story is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tale {
    /// Pods, Services, pets, the daemon.
    Main,
    /// A pet that loses its node, twice.
    Failover,
}

/// Tells the story. The yard is purged also when a chapter fails.
///
/// # Errors
/// What did not go as told; without root, the line to run instead.
pub async fn run(tale: Tale, afterwards: Afterwards) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        let program = std::env::current_exe().map_or("podyard".into(), |path| path.display().to_string());
        let tale = if tale == Tale::Failover { " failover" } else { "" };
        let keep = if afterwards == Afterwards::Keep { " --keep" } else { "" };
        return Err(format!(
            "namespaces, mounts and cgroups need root; run:\n\n    sudo {program} demo{tale}{keep}\n"
        )
        .into());
    }
    println!("Podyard: Kubernetes' objects on this machine's kernel, in a yard of its own, offline.");
    let mut story = Story::begin();
    let mut yard = DemoYard::new()?;
    let told = match tale {
        Tale::Main => chapters::tell(&mut story, &mut yard).await,
        Tale::Failover => failover::tell(&mut story, &mut yard).await,
    };
    if told.is_ok() && afterwards == Afterwards::Keep {
        chapters::keep(&mut story, &mut yard);
        return Ok(());
    }
    let cleaned = chapters::clean_up(&mut story, &mut yard).await;
    let took = story.end();
    // A failed chapter is the better reason; a clean-up that failed as well is not lost.
    match (told, cleaned) {
        (Ok(()), Ok(())) => {
            let next = match tale {
                Tale::Main => "`podyard demo failover`, `podyard demo --keep` to look around",
                Tale::Failover => "`podyard demo failover --keep` to look around",
            };
            println!("\nDone in {:.1} s. Try {next}, and the README's tour.", took.as_secs_f64());
            Ok(())
        }
        (Err(first), Err(second)) => Err(format!("{first}\nand cleaning up: {second}").into()),
        (Err(error), Ok(())) | (Ok(()), Err(error)) => Err(error),
    }
}
