//! `volume`: the data behind claims, and the trash that it goes to when they are deleted.

use std::time::Duration;

use api::Timestamp;
use clap::Subcommand;
use client::Request;
use hyper::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use server::volumes::{Emptied, Undeleted, VolumeList};

use super::context::Context;
use super::error::{Error, Outcome};
use super::print;

/// Between two looks at how far a deletion is.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the volumes on this host: whose they are, what enforces their size, what they take
    Ls(Output),
    /// Show deleted volumes that can be taken back
    Trash(Output),
    /// Take a deleted volume back: its claim is there again, with its data
    Undelete {
        /// Its name in the trash, or its claim's, as data-web-0 or namespace/data-web-0
        volume: String,
        /// The name of the claim to make [default: the old one]
        #[arg(long, value_name = "NAME")]
        claim: Option<String>,
    },
    /// Delete volumes in the trash now, for good
    Empty {
        /// Their names in the trash
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        volumes: Vec<String>,
        /// Everything in the trash
        #[arg(long)]
        all: bool,
        /// Return at once, while the data is still being deleted
        #[arg(long, default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true)]
        wait: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Output {
    /// `json` for programs
    #[arg(long, short, value_name = "json", value_parser = ["json"])]
    output: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    match args.verb {
        Verb::Ls(output) => {
            let list = list(context).await?;
            if output.output.is_some() {
                context.text(&print::json(&list.volumes))?;
                return Ok(0);
            }
            if list.volumes.is_empty() {
                context.note(format_args!("no volumes"));
                return Ok(0);
            }
            let rows = list.volumes.iter().map(|volume| {
                let none = || "<none>".to_owned();
                let size = if volume.size_bytes == 0 { none() } else { size(volume.size_bytes) };
                let claim = volume.claim.clone().unwrap_or_else(none);
                let owned = if volume.owner.is_some() { volume.epoch.to_string() } else { none() };
                vec![
                    volume.name.clone(),
                    claim,
                    owned,
                    size,
                    self::size(volume.used_bytes),
                    volume.enforcement.clone(),
                ]
            });
            context.text(&print::columns(
                &["NAME", "CLAIM", "EPOCH", "SIZE", "USED", "ENFORCED"],
                rows.collect(),
            ))?;
        }
        Verb::Trash(output) => {
            let list = list(context).await?;
            if output.output.is_some() {
                context.text(&print::json(&list.trash))?;
                return Ok(0);
            }
            if list.trash.is_empty() {
                context.note(format_args!("the trash is empty"));
                return Ok(0);
            }
            let now = context.now();
            let rows = list.trash.iter().map(|deleted| {
                let claim = deleted.claim.clone().unwrap_or_else(|| "<unknown>".into());
                let ago =
                    deleted.deleted_at.parse().ok().map(|then: Timestamp| api::time::age(Some(then), now));
                let left =
                    deleted.expires_at.parse().ok().map(|then: Timestamp| api::time::age(Some(now), then));
                let text = |age: Option<String>| age.unwrap_or_else(|| "<unknown>".into());
                vec![deleted.id.clone(), claim, size(deleted.size_bytes), text(ago), text(left)]
            });
            context
                .text(&print::columns(&["NAME", "CLAIM", "SIZE", "DELETED", "GONE IN"], rows.collect()))?;
        }
        Verb::Undelete { volume, claim } => {
            let id = find(context, &list(context).await?, &volume)?;
            let wish = json!({"id": id, "claim": claim});
            let back: Undeleted = ask(context, "volumes/undelete", &wish).await?;
            context.line(format_args!(
                "persistentvolumeclaim/{} undeleted in namespace {}, with the data of volume {}",
                back.claim, back.namespace, back.volume
            ))?;
        }
        Verb::Empty { volumes, all, wait } => {
            let emptied: Emptied =
                ask(context, "volumes/empty", &json!({"ids": volumes, "all": all})).await?;
            for id in &emptied.ids {
                context.line(format_args!("volume {id} given up"))?;
            }
            let mut told = None;
            while let (true, Some(deleting)) =
                (wait && !emptied.ids.is_empty(), list(context).await?.deleting)
            {
                if told != Some(deleting.entries) {
                    let freed = size(deleting.bytes);
                    context.note(format_args!(
                        "{} files and directories deleted, {freed} given back",
                        deleting.entries
                    ));
                    told = Some(deleting.entries);
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
    Ok(0)
}

/// The name in the trash of what was meant: that name, or the claim's.
fn find(context: &Context, list: &VolumeList, meant: &str) -> Result<String, Error> {
    let claim = match meant.contains('/') {
        true => meant.to_owned(),
        false => format!("{}/{meant}", context.namespace()),
    };
    let of_claim: Vec<&str> =
        list.trash.iter().filter(|it| it.claim.as_ref() == Some(&claim)).map(|it| it.id.as_str()).collect();
    match of_claim[..] {
        _ if list.trash.iter().any(|it| it.id == meant) => Ok(meant.to_owned()),
        [one] => Ok(one.to_owned()),
        // Perhaps one that is on its way back since a crash.
        [] => Ok(meant.to_owned()),
        ref several => {
            let text =
                format!("claim {claim} was deleted several times; choose one of: {}", several.join(" "));
            Err(Error::Usage(text))
        }
    }
}

async fn list(context: &Context) -> Result<VolumeList, Error> {
    parse(context.client.request_json(Request::get("/podyard/v1/volumes")).await?.0)
}

async fn ask<T: DeserializeOwned>(context: &Context, path: &str, body: &Value) -> Result<T, Error> {
    let request = Request::new(Method::POST, format!("/podyard/v1/{path}")).json(body);
    parse(context.client.request_json(request).await?.0)
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value)
        .map_err(|error| Error::Usage(format!("the daemon's answer is garbled: {error}")))
}

/// Bytes in the largest binary unit in which at least one is there, to a tenth.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["Ki", "Mi", "Gi", "Ti", "Pi"];
    let mut shown = (bytes as f64, "");
    for unit in UNITS {
        if shown.0 < 1024.0 {
            break;
        }
        shown = (shown.0 / 1024.0, unit);
    }
    let text = format!("{:.1}", shown.0);
    format!("{}{}", text.strip_suffix(".0").unwrap_or(&text), shown.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, expect) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1Ki"),
            (16 << 20, "16Mi"),
            (1_610_612_736, "1.5Gi"),
            (1 << 60, "1024Pi"),
        ] {
            assert_eq!(size(bytes), expect);
        }
    }
}
