//! `run`: a pod of one container; with `-i` a command in it has our streams, with `--step` it starts step by step.
//!
//! A container's own input is not served yet. So with `-i` the container sleeps, and the command runs beside it as an
//! exec; the pod's spec says so. Everything that a shell is wanted for works the same.

use std::io::BufRead as _;
use std::time::{Duration, Instant};

use api::{Key, Object};
use client::{EventKind, ExecOptions, LogOptions, Request, WatchOptions, WriteOptions};
use serde_json::{Map, Value, json};
use server::yard::{STEP_ANNOTATION, StepState, Trace};

use super::apply::DryRun;
use super::context::Context;
use super::delete::{delete_incarnation, until_gone};
use super::error::{Error, Outcome};
use super::print::{self, Format};
use super::{stdio, trace};

/// How long a node may take to look at a pod that was bound to it.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pod's name
    name: String,
    /// The image
    #[arg(long)]
    image: String,
    /// Always, OnFailure or Never
    #[arg(long, default_value = "Always", value_parser = ["Always", "OnFailure", "Never"], value_name = "POLICY")]
    restart: String,
    /// An environment variable, as NAME=value; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Labels, as a=b,c=d [default: run=NAME]
    #[arg(long, short, value_delimiter = ',', value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Annotations, as a=b; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    annotations: Vec<String>,
    /// A port that the container serves
    #[arg(long)]
    port: Option<u16>,
    /// Delete the pod once it has ended
    #[arg(long)]
    rm: bool,
    /// Run the command (default: sh) on our standard input, beside a container that sleeps
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Give the command a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// Join the container's output [default with -i or --rm]
    #[arg(long)]
    attach: bool,
    /// Pause after each step of the pod's start, so that you can look around
    #[arg(long)]
    step: bool,
    /// The words after -- are the command, not arguments of the image's own
    #[arg(long)]
    command: bool,
    /// Do everything but store: `server` asks the daemon, `client` only shows
    #[arg(long, default_value = "none", num_args = 0..=1, default_missing_value = "client", require_equals = true)]
    dry_run: DryRun,
    /// Show the pod instead of a line: yaml, json, name
    #[arg(long, short, value_parser = print::format, value_name = "FORMAT")]
    output: Option<Format>,
    /// Arguments, or with --command the command
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let joins = args.attach || args.stdin || args.rm;
    if args.rm && args.restart == "Always" && !args.stdin {
        // kubectl allows it; but a pod that never ends is never removed.
        context.note(
            "Note: with --restart=Always the container starts again whenever it ends; see --restart=Never",
        );
    }
    if args.tty && !args.stdin {
        return Err(Error::Usage("-i/--stdin is required for containers with -t/--tty=true".to_string()));
    }
    let pod = pod(&args, context.namespace())?;
    let key = Key::core("pods", context.namespace(), &args.name);
    let object = if args.dry_run == DryRun::Client {
        Object(pod)
    } else {
        let options = WriteOptions {
            dry_run: args.dry_run == DryRun::Server,
            field_manager: Some("kubectl-run".to_string()),
        };
        let written = context.client.create(key.resource, context.namespace(), &pod, &options).await?;
        context.warn(&written.warnings);
        written.object
    };
    match &args.output {
        Some(format) => {
            context.text(&print::whole(format, std::slice::from_ref(&object), true)?.unwrap_or_default())?
        }
        None if joins && args.dry_run == DryRun::None => {}
        None => context.line(format_args!("pod/{} created{}", args.name, args.dry_run.suffix()))?,
    }
    if args.dry_run != DryRun::None {
        return Ok(0);
    }
    let outcome = follow(context, &args, &key, joins).await;
    if args.rm {
        remove(context, &key, object.uid()).await?;
    }
    outcome
}

async fn follow(context: &Context, args: &Args, key: &Key, joins: bool) -> Outcome {
    if args.step {
        step(context, key).await?;
    }
    if !joins {
        return Ok(0);
    }
    let pod = until_started(context, key).await?;
    if args.stdin {
        if pod.get_str("status.phase") != Some("Running") {
            return Err(Error::Usage(format!("pod {} has ended already", key.name)));
        }
        let tty = args.tty && stdio::is_terminal();
        if tty {
            context.note("If you don't see a command prompt, try pressing enter.");
        }
        let options =
            ExecOptions { container: Some(args.name.clone()), command: inner(args), stdin: true, tty };
        return Ok(stdio::exit_code(stdio::carry(context, key, &options).await?));
    }
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut log = context.client.logs(key, &options).await?;
    while let Some(bytes) = log.next().await {
        context.bytes(&bytes?)?;
    }
    if args.restart == "Always" {
        return Ok(0);
    }
    let pod = until(context, key, |pod| matches!(pod.get_str("status.phase"), Some("Succeeded" | "Failed")))
        .await?;
    let code = pod.get_i64("status.containerStatuses.0.state.terminated.exitCode").unwrap_or(0);
    Ok(u8::try_from(code).unwrap_or(1))
}

/// What runs beside a container that sleeps.
fn inner(args: &Args) -> Vec<String> {
    if args.args.is_empty() { vec!["sh".to_string()] } else { args.args.clone() }
}

async fn remove(context: &Context, key: &Key, uid: &str) -> Result<(), Error> {
    if delete_incarnation(&context.client, key, uid, None).await? {
        context.note(format_args!("pod {:?} deleted", key.name));
        until_gone(&context.client, key, Some(uid)).await?;
    }
    Ok(())
}

/// Waits until the container runs, has ended, or cannot start.
async fn until_started(context: &Context, key: &Key) -> Result<Object, Error> {
    let pod = until(context, key, |pod| {
        matches!(pod.get_str("status.phase"), Some("Running" | "Succeeded" | "Failed"))
            || refusal(pod).is_some()
    })
    .await?;
    match refusal(&pod) {
        Some(reason) => Err(Error::Usage(format!("pod {} cannot start: {reason}", key.name))),
        None => Ok(pod),
    }
}

/// Why the container waits for something that will not come by itself.
fn refusal(pod: &Object) -> Option<String> {
    let waiting = pod.get("status.containerStatuses.0.state.waiting")?;
    let reason = waiting["reason"].as_str()?;
    let is_final = ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"]
        .contains(&reason)
        || reason.starts_with("Create") && reason.ends_with("Error")
        || reason == "RunContainerError";
    is_final.then(|| format!("{reason}: {}", waiting["message"].as_str().unwrap_or("")))
}

/// Waits until a pod is as wanted.
async fn until(context: &Context, key: &Key, is_so: impl Fn(&Object) -> bool) -> Result<Object, Error> {
    loop {
        let pod = context.client.get(key).await?;
        if is_so(&pod) {
            return Ok(pod);
        }
        let options = WatchOptions {
            fields: Some(format!("metadata.name={}", key.name)),
            resource_version: pod.resource_version().map(|version| version.to_string()),
            ..WatchOptions::default()
        };
        let mut watch = context.client.watch(key.resource, Some(&key.namespace), &options).await?;
        while let Some(event) = watch.next().await {
            let event = event?;
            if event.kind == EventKind::Deleted {
                break;
            }
            if event.kind != EventKind::Bookmark && is_so(&event.object) {
                return Ok(event.object);
            }
        }
    }
}

/// Shows each step as it is taken, and lets the next one go when Enter is pressed.
///
/// The pod's annotation holds it, not this program: leave, and it stays paused until `q` or another `--step` is done.
async fn step(context: &Context, key: &Key) -> Result<(), Error> {
    let path = format!("/podyard/v1/step/{}/{}", client::encode(&key.namespace), client::encode(&key.name));
    until(context, key, |pod| pod.get_str("spec.nodeName").is_some()).await?;
    context.note(
        "Enter: one step.  r: run the rest.  Meanwhile look around, for example with `podyard ns map`.",
    );
    let mut request = Request::get(&path);
    let seen_by = Instant::now() + SEEN_WITHIN;
    let mut shown = 0;
    loop {
        let state = match context.client.request_json(request).await {
            Ok((state, _)) => state,
            // The node has not seen its new pod yet.
            Err(error) if error.is_not_found() && Instant::now() < seen_by => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                context.client.get(key).await?;
                request = Request::get(&path);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let state: StepState = serde_json::from_value(state)
            .map_err(|error| Error::Usage(format!("the daemon's answer is garbled: {error}")))?;
        shown = tell(context, key, shown).await?;
        if state.done {
            return Ok(());
        }
        let action = match (&state.next, state.paused) {
            (next, true) => {
                context.note(format_args!("next: {}", next.as_deref().unwrap_or("?")));
                ask().await?
            }
            (_, false) => {
                request = Request::get(&path);
                continue;
            }
        };
        request = Request::new(client::Method::POST, format!("{path}?action={action}"));
    }
}

/// Shows what was done after the step `shown`, each with its effect; gives the last one shown.
async fn tell(context: &Context, key: &Key, shown: u64) -> Result<u64, Error> {
    let trace = match trace::fetch(context, key).await {
        Ok(trace) => trace,
        // It pauses before the first step already.
        Err(error) if error.is_not_found() => return Ok(shown),
        Err(error) => return Err(error),
    };
    let trace: Trace = serde_json::from_value(trace)
        .map_err(|error| Error::Usage(format!("the daemon's answer is garbled: {error}")))?;
    for step in trace.steps.iter().filter(|step| step.sequence > shown) {
        context.line(trace::line(step))?;
    }
    Ok(trace.steps.last().map_or(shown, |step| step.sequence.max(shown)))
}

/// `next`, or `run` for `r`, `q` and the end of input.
async fn ask() -> Result<&'static str, Error> {
    let asked = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|count| (count, line))
    });
    let (count, line) = asked
        .await
        .map_err(|error| Error::io("read standard input", std::io::Error::other(error)))?
        .map_err(|error| Error::io("read standard input", error))?;
    Ok(if count == 0 || matches!(line.trim(), "r" | "q") { "run" } else { "next" })
}

/// The pod that is asked for.
fn pod(args: &Args, namespace: &str) -> Result<Value, Error> {
    let mut container = json!({"name": args.name, "image": args.image});
    let words = Value::from(args.args.clone());
    if args.stdin {
        container["command"] = json!(["sleep", "infinity"]);
    } else if args.command {
        if args.args.is_empty() {
            return Err(Error::Usage("--command needs a command after --".to_string()));
        }
        container["command"] = words;
    } else if !args.args.is_empty() {
        container["args"] = words;
    }
    let env = pairs("--env", &args.env)?;
    if !env.is_empty() {
        container["env"] = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    }
    if let Some(port) = args.port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    let mut labels: Map<String, Value> = pairs("--labels", &args.labels)?.into_iter().collect();
    if labels.is_empty() {
        labels.insert("run".to_string(), args.name.clone().into());
    }
    let mut annotations: Map<String, Value> =
        pairs("--annotations", &args.annotations)?.into_iter().collect();
    if args.step {
        annotations.insert(STEP_ANNOTATION.to_string(), "true".into());
    }
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": args.name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [container], "restartPolicy": args.restart},
    });
    if args.stdin {
        // The first process of a PID namespace does not hear SIGTERM unless it asks to; `sleep` does not.
        pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
    }
    if !annotations.is_empty() {
        pod["metadata"]["annotations"] = annotations.into();
    }
    Ok(pod)
}

fn pairs(flag: &str, words: &[String]) -> Result<Vec<(String, Value)>, Error> {
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_string(), Value::from(value))),
        _ => Err(Error::Usage(format!("{flag}: {word:?} is not of the form NAME=VALUE"))),
    };
    words.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn made(line: &str) -> Result<Value, Error> {
        pod(&Line::try_parse_from(line.split(' ')).unwrap().args, "default")
    }

    #[test]
    fn pods() {
        let pod =
            made("run web --image i --env A=b=c --port 80 --labels x=y,z=w --step --command -- sh -c true")
                .unwrap();
        assert_eq!(pod["metadata"]["labels"], json!({"x": "y", "z": "w"}));
        assert_eq!(pod["metadata"]["annotations"], json!({STEP_ANNOTATION: "true"}));
        assert_eq!(
            pod["spec"]["containers"][0],
            json!({"name": "web", "image": "i", "command": ["sh", "-c", "true"],
                "env": [{"name": "A", "value": "b=c"}], "ports": [{"containerPort": 80}]})
        );
        assert_eq!(made("run a --image i").unwrap()["metadata"]["labels"], json!({"run": "a"}));
        assert_eq!(made("run a --image i -- x").unwrap()["spec"]["containers"][0]["args"], json!(["x"]));
        let shell = made("run a --image i -it -- bash").unwrap();
        assert_eq!(
            shell["spec"]["containers"][0]["command"],
            json!(["sleep", "infinity"]),
            "bash is an exec"
        );
        assert!(made("run a --image i --env A").is_err());
        assert!(made("run a --image i --command").is_err());
    }

    #[test]
    fn what_cannot_start_is_told() {
        let waiting = |reason: &str| {
            let state = json!({"waiting": {"reason": reason, "message": "m"}});
            Object(json!({"status": {"containerStatuses": [{"state": state}]}}))
        };
        assert_eq!(refusal(&waiting("CreateContainerError")).as_deref(), Some("CreateContainerError: m"));
        assert_eq!(refusal(&waiting("ContainerCreating")), None);
    }
}
