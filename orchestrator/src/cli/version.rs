//! `version`: of this program, and of the daemon if one answers.

use client::Request;
use serde_json::{Value, json};

use super::context::Context;
use super::error::Outcome;
use super::{print, yaml};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this program's
    #[arg(long)]
    client: bool,
    /// json or yaml
    #[arg(long, short, value_name = "FORMAT", value_parser = ["json", "yaml"])]
    output: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    let server = match args.client {
        true => Ok(Value::Null),
        false => context.client.request_json(Request::get("/version")).await.map(|(value, _)| value),
    };
    let mut document = json!({"clientVersion": {"gitVersion": format!("v{own}"), "platform": platform()}});
    if let Ok(version @ Value::Object(_)) = &server {
        document["serverVersion"] = version.clone();
    }
    match args.output.as_deref() {
        Some("json") => context.text(&print::json(&document))?,
        Some(_) => context.text(&yaml::write(&document))?,
        None => {
            context.line(format_args!("Client Version: v{own}"))?;
            if let Some(version) = document["serverVersion"]["gitVersion"].as_str() {
                context.line(format_args!("Server Version: {version}"))?;
            }
        }
    }
    server.map(|_| 0).map_err(Into::into)
}

fn platform() -> String {
    format!("linux/{}", std::env::consts::ARCH)
}
