//! `trace`: each step taken for a pod, what it did to the kernel, and how long it took.

use api::{Key, Timestamp};
use client::Request;
use serde_json::Value;
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

/// What the daemon tells of the steps taken for a pod.
pub async fn fetch(context: &Context, key: &Key) -> Result<Value, Error> {
    let path = format!("/podyard/v1/trace/{}/{}", client::encode(&key.namespace), client::encode(&key.name));
    Ok(context.client.request_json(Request::get(path)).await?.0)
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let key = target::pod(&args.pod, context.namespace())?;
    let value = fetch(context, &key).await?;
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
    if let Some(took) = took(&trace.steps) {
        context.line(format_args!("{} steps in {took} µs", trace.steps.len()))?;
    }
    Ok(0)
}

/// From the first step's begin to the last one's end; steps may lie within others, and beside them.
fn took(steps: &[Step]) -> Option<i64> {
    let begin = |step: &Step| step.at.as_deref()?.parse::<Timestamp>().ok().map(Timestamp::as_microsecond);
    let end = |step: &Step| Some(begin(step)? + i64::try_from(step.micros?).ok()?);
    Some(steps.iter().filter_map(end).max()? - steps.iter().filter_map(begin).min()?)
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
    fn time_is_not_counted_twice() {
        let step = |at: &str, micros| Step { at: Some(at.into()), micros: Some(micros), ..Step::default() };
        let inner = step("2026-01-01T00:00:00.000100Z", 50);
        let outer = step("2026-01-01T00:00:00Z", 200);
        assert_eq!(took(&[inner, outer]), Some(200));
        assert_eq!(took(&[Step::default()]), None);
    }

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
