//! `trace`: each step taken for a pod, what it did to the kernel, and how long it took.

use client::Request;
use server::yard::{Step, Trace};

use super::context::Context;
use super::error::{Error, Outcome};
use super::print::printable;
use super::{print, target};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pod, as web-0 or pod/web-0
    pod: String,
    /// `json` for programs
    #[arg(long, short, value_name = "json", value_parser = ["json"])]
    output: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let key = target::pod(&args.pod, context.namespace())?;
    let path = format!("/podyard/v1/trace/{}/{}", client::encode(&key.namespace), client::encode(&key.name));
    let (value, _) = context.client.request_json(Request::get(path)).await?;
    if args.output.is_some() {
        context.text(&print::json(&value))?;
        return Ok(0);
    }
    let trace: Trace = serde_json::from_value(value)
        .map_err(|error| Error::Usage(format!("the daemon's answer is garbled: {error}")))?;
    if trace.dropped > 0 {
        context.note(format_args!("{} older steps are forgotten", trace.dropped));
    }
    if trace.steps.is_empty() {
        context.note(format_args!("no steps were taken yet for pod {}", trace.pod));
        return Ok(0);
    }
    let rows = trace.steps.iter().map(|step| {
        let micros = step.micros.map(|micros| micros.to_string()).unwrap_or_default();
        vec![step.sequence.to_string(), format!("{micros:>8}"), printable(&step.step), effect(step)]
    });
    context.text(&print::columns(&["#", "      µs", "STEP", "KERNEL EFFECT"], rows.collect()))?;
    let total: u64 = trace.steps.iter().filter_map(|step| step.micros).sum();
    context.line(format_args!("{} steps, {total} µs in all", trace.steps.len()))?;
    Ok(0)
}

/// The effect, or why there was none.
fn effect(step: &Step) -> String {
    match &step.error {
        Some(error) => format!("FAILED: {}", printable(error)),
        None => printable(&step.effect),
    }
}

/// One step in one line, for `run --step`.
pub fn line(step: &Step) -> String {
    let micros = step.micros.map(|micros| format!("{micros} µs")).unwrap_or_default();
    format!("{:>3}  {}: {}  {micros}", step.sequence, printable(&step.step), effect(step))
        .trim_end()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let step = Step {
            sequence: 3,
            step: "netns create".into(),
            effect: "net:[4026532841]".into(),
            micros: Some(120),
            ..Step::default()
        };
        assert_eq!(line(&step), "  3  netns create: net:[4026532841]  120 µs");
        let failed = Step { error: Some("EEXIST".into()), ..step };
        assert_eq!(line(&failed), "  3  netns create: FAILED: EEXIST  120 µs");
    }
}
