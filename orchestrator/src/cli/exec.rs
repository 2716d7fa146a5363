//! `exec`: a command in a container, with its streams, its terminal and its exit code.

use client::ExecOptions;

use super::context::Context;
use super::error::{Error, Outcome};
use super::logs::default_container;
use super::stdio;
use super::target;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pod, as web-0 or pod/web-0
    pod: String,
    /// The container
    #[arg(long, short)]
    container: Option<String>,
    /// Pass our standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Give the command a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let key = target::pod(&args.pod, context.namespace())?;
    let pod = context.client.get(&key).await?;
    let phase = pod.get_str("status.phase").unwrap_or("");
    if matches!(phase, "Succeeded" | "Failed") {
        let said = format!("cannot exec into a container in a completed pod; current phase is {phase}");
        return Err(Error::Usage(said));
    }
    let container = match args.container {
        Some(container) => container,
        None => default_container(context, &pod)?,
    };
    let tty = args.tty && args.stdin && stdio::is_terminal();
    if args.tty && !tty {
        context.note("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let options = ExecOptions { container: Some(container), command: args.command, stdin: args.stdin, tty };
    let code = stdio::carry(context, &key, &options).await?;
    if code != 0 {
        context.note(format_args!("command terminated with exit code {code}"));
    }
    Ok(stdio::exit_code(code))
}
