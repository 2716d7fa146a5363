//! The command line: kubectl's verbs, flags and columns over the daemon's socket, one file per verb.
//!
//! A verb takes its arguments and a [`Context`] and ends with an exit code or an [`Error`], which is told once, here.
#![forbid(unsafe_code)]

mod agent;
mod api_resources;
mod apply;
mod context;
mod create;
mod delete;
mod demo;
mod describe;
mod doctor;
mod error;
mod events;
mod exec;
mod get;
mod jsonpath;
mod logs;
pub mod manifest;
mod merge;
mod node;
mod ns;
mod patch;
mod plan;
mod print;
mod purge;
mod replace;
mod rollout;
mod run;
mod scale;
mod stdio;
mod target;
mod trace;
mod up;
mod version;
mod volume;
mod wait;
mod yaml;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use context::Context;
pub use error::{Error, Outcome};

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/podyard/podyard.sock";

/// Chooses the daemon that client verbs ask. Does not move a daemon: that takes `up --socket`.
pub const SOCKET_VARIABLE: &str = "PODYARD_SOCKET";

/// What a shell shows for a program that SIGPIPE ended: 128 + 13.
const EXIT_PIPE: u8 = 141;

#[derive(Debug, Parser)]
#[command(
    name = "podyard",
    version,
    about = "Kubernetes objects on one Linux host, for real",
    max_term_width = 110
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags of every verb.
#[derive(Debug, clap::Args)]
pub struct Globals {
    /// The daemon's socket [env: PODYARD_SOCKET, not for `up`] [default: /run/podyard/podyard.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The namespace [default: default]
    #[arg(long, short, global = true, env = "PODYARD_NAMESPACE")]
    pub namespace: Option<String>,
}

impl Globals {
    /// The socket of the daemon to ask.
    pub fn socket(&self) -> PathBuf {
        let chosen = self.socket.clone().or_else(|| std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from));
        chosen.unwrap_or_else(|| DEFAULT_SOCKET.into())
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make objects as the manifests say, whatever they are now
    Apply(apply::Args),
    /// Create objects from manifests; fails if they exist
    Create(create::Args),
    /// Show objects
    Get(get::Args),
    /// Show an object in detail, with its events
    Describe(describe::Args),
    /// Delete objects
    Delete(delete::Args),
    /// Change some fields of an object
    Patch(patch::Args),
    /// Put whole objects in the place of those that are there
    Replace(replace::Args),
    /// Show a container's output
    Logs(logs::Args),
    /// Run a command in a container
    Exec(exec::Args),
    /// Start a pod of one container
    Run(run::Args),
    /// Set the number of pods
    Scale(scale::Args),
    /// Follow, look back at, undo or restart an update of pets
    Rollout(rollout::Args),
    /// Show what happened
    Events(events::Args),
    /// Wait until objects are ready, gone, or as said
    Wait(wait::Args),
    /// Show the kinds that are served
    #[command(name = "api-resources")]
    ApiResources(api_resources::Args),
    /// Show the versions of this program and of the daemon
    Version(version::Args),
    /// Make further nodes; cut them off, kill, heal and remove them
    Node(node::Args),
    /// Look at the data behind claims, and take back what was deleted
    Volume(volume::Args),
    /// Look at namespaces and go into them
    Ns(ns::Args),
    /// Show each step taken for a pod: kernel effect, microseconds
    Trace(trace::Args),
    /// Show what would be done for manifests, pod by pod, before doing it
    Plan(plan::Args),
    /// Show what this kernel and host offer, what is missing, and the fix
    Doctor(doctor::Args),
    /// Start the daemon
    Up(up::Args),
    /// Run a further node's agent; the daemon does that
    #[command(hide = true)]
    Agent(agent::Args),
    /// Show the main job on this machine's kernel, as a story
    Demo(demo::Args),
    /// Remove everything that Podyard made on this host
    Purge(purge::Args),
}

/// Runs the command line; the first argument is the program's name. The exit code is kubectl's: 0, 1, or the
/// command's own for `exec` and `run`.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" that go to standard output and end with 0.
            let code = if error.use_stderr() { 1 } else { 0 };
            _ = error.print();
            return ExitCode::from(code);
        }
    };
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(Error::PipeClosed) => ExitCode::from(EXIT_PIPE),
        Err(error) => {
            _ = writeln!(std::io::stderr(), "{}", error.report());
            ExitCode::from(1)
        }
    }
}

fn dispatch(cli: Cli) -> Outcome {
    // The daemon and what works on the host alone choose their own runtime, or need none.
    let verb = match cli.verb {
        Verb::Up(args) => return up::run(&cli.globals, args),
        Verb::Agent(args) => return agent::run(&cli.globals, args),
        Verb::Purge(args) => return purge::run(&cli.globals, args),
        Verb::Doctor(args) => return doctor::run(&cli.globals, &args),
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("start", error))?;
    let context = Context::new(&cli.globals);
    let outcome = runtime.block_on(async {
        match verb {
            Verb::Apply(args) => apply::run(&context, args).await,
            Verb::Create(args) => create::run(&context, args).await,
            Verb::Get(args) => get::run(&context, args).await,
            Verb::Describe(args) => describe::run(&context, args).await,
            Verb::Delete(args) => delete::run(&context, args).await,
            Verb::Patch(args) => patch::run(&context, args).await,
            Verb::Replace(args) => replace::run(&context, args).await,
            Verb::Logs(args) => logs::run(&context, args).await,
            Verb::Exec(args) => exec::run(&context, args).await,
            Verb::Run(args) => run::run(&context, args).await,
            Verb::Scale(args) => scale::run(&context, args).await,
            Verb::Rollout(args) => rollout::run(&context, args).await,
            Verb::Events(args) => events::run(&context, args).await,
            Verb::Wait(args) => wait::run(&context, args).await,
            Verb::ApiResources(args) => api_resources::run(&context, &args),
            Verb::Demo(args) => demo::run(args).await,
            Verb::Version(args) => version::run(&context, args).await,
            Verb::Node(args) => node::run(&context, args).await,
            Verb::Volume(args) => volume::run(&context, args).await,
            Verb::Ns(args) => ns::run(&context, args).await,
            Verb::Trace(args) => trace::run(&context, args).await,
            Verb::Plan(args) => plan::run(&context, args).await,
            Verb::Up(_) | Verb::Agent(_) | Verb::Purge(_) | Verb::Doctor(_) => Ok(0),
        }
    });
    // A thread that reads standard input cannot be told to stop: do not wait for it.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn kubectls_lines_are_understood() {
        let lines = [
            "podyard get pods",
            "podyard get po,svc -A -o wide",
            "podyard get pod/a svc/b -o yaml",
            "podyard get pods -l app=web --field-selector spec.nodeName=node-0 -w --no-headers",
            "podyard -n web get pods",
            "podyard get pods -n web",
            "podyard apply -f a.yaml -f dir --dry-run=server",
            "podyard apply -f -",
            "podyard create -f a.yaml",
            "podyard delete pod a b --grace-period 0 --force --wait=false",
            "podyard delete -f a.yaml",
            "podyard delete pods --all",
            "podyard delete pods -l app=web",
            "podyard logs -f a -c b --tail 10 --timestamps -p",
            "podyard logs a --tail=-1 --since=5m",
            "podyard exec -it a -c b -- sh -c true",
            "podyard exec a -i -- cat",
            "podyard run a --image podyard.local/host --rm -it --restart Never --env A=1 --labels a=b --port 80 --command -- sh -c true",
            "podyard run a --image=podyard.local/host --step -- sleep 1",
            "podyard scale rs/web --replicas 3",
            "podyard scale statefulset web --replicas=3",
            "podyard rollout status petset/web --timeout 30s",
            "podyard rollout status sts web --watch=false",
            "podyard rollout history statefulset/web --revision=2",
            "podyard rollout undo sts/web --to-revision 1 --dry-run=server",
            "podyard rollout restart petset web",
            "podyard events -w -A",
            "podyard version -o json",
            "podyard wait --for=condition=Ready pod/a --timeout=10s",
            "podyard wait --for=delete pod -l app=web",
            "podyard wait --for=jsonpath={.status.phase}=Running pod a",
            "podyard node add n1 --cidr 10.244.7.0/24 --wait=false",
            "podyard node ls -o json",
            "podyard node drain n1 --force --grace-period 1 --timeout 30s",
            "podyard node cordon n1 n2",
            "podyard node cut n1",
            "podyard node heal n1 --timeout=5s",
            "podyard node kill n1 n2",
            "podyard node rm n1 --force",
            "podyard volume ls -o json",
            "podyard volume trash",
            "podyard volume undelete default/data-web-0 --claim other",
            "podyard volume empty pvc-1 pvc-2 --wait=false",
            "podyard volume empty --all",
            "podyard ns ls",
            "podyard ns map",
            "podyard ns enter web-0/app --net --pid -- ip addr",
            "podyard ns enter --host -- ip route",
            "podyard ns diff web-0 web-1",
            "podyard trace web-0 -o json",
            "podyard plan -f a.yaml",
            "podyard doctor -o json",
            "podyard purge --yes",
            "podyard agent --node n1 --pod-cidr 10.244.1.0/24 --api 10.244.0.1:6443 --token-file /t --name x --isolated",
            "podyard up --trash-grace 7d --isolated --name x --data-dir /d --run-dir /r --log-dir /l --socket /s",
        ];
        for line in lines {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in
            ["podyard", "podyard fly", "podyard get pods --nope", "podyard delete -f", "podyard apply"]
        {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
