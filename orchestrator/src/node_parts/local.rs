//! What is asked of the node in this process: its agent's answers in the server's words.

use super::proxy;
use api::{Error, Key, Kind, Object};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, StreamExt};
use hyper::body::Bytes;
use node::Yard;
use node::agent::Agent;
use node::exec::{Session, Streams};
use node::gate::{Go, Stand};
use node::journal;
use node::plan::Step;
use server::yard;
use server::{ExecRequest, ExecSession, LogOptions, NodeApi, TerminalSize};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// The node that lives in this process.
pub(crate) struct LocalNode {
    pub(crate) agent: Arc<Agent>,
    pub(crate) proxy: Arc<proxy::Shared>,
    pub(crate) info: yard::Info,
}

impl NodeApi for LocalNode {
    fn logs(
        &self,
        pod: Key,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<Bytes>>, Error>> {
        async move {
            let since = options.since_secs.map(|secs| {
                let ago = jiff::SignedDuration::from_secs(i64::try_from(secs).unwrap_or(i64::MAX));
                jiff::Timestamp::now().saturating_sub(ago).unwrap_or(jiff::Timestamp::MIN)
            });
            let part = node::logs::LogOptions {
                follow: options.follow,
                previous: options.previous,
                timestamps: options.timestamps,
                tail_lines: options.tail_lines,
                since,
                limit_bytes: options.limit_bytes,
            };
            let log = self.agent.logs(&pod, options.container.as_deref(), part).map_err(refusal)?;
            let pieces = futures::stream::unfold(log, |mut log| async move {
                let piece = log.next().await?;
                Some((piece, log))
            });
            Ok(pieces.boxed())
        }
        .boxed()
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>> {
        async move {
            let streams = Streams {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                tty: request.tty,
            };
            let container = request.container.as_deref();
            let session =
                self.agent.exec(&request.pod, container, &request.command, streams).await.map_err(refusal)?;
            Ok(exec_session(session))
        }
        .boxed()
    }

    fn attach(&self, _: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>> {
        let text = "attach: a container's own input is not kept open; use exec, or logs -f for its output";
        async move { Err(Error::new(Kind::Unsupported, text)) }.boxed()
    }

    fn trace(&self, pod: Key) -> BoxFuture<'_, Result<yard::Trace, Error>> {
        async move {
            let trace = self.agent.trace(&pod).ok_or_else(|| {
                Error::new(
                    Kind::NotFound,
                    format!("no step was taken for pod {}/{}", pod.namespace, pod.name),
                )
            })?;
            Ok(yard::Trace {
                pod: trace.pod,
                uid: trace.uid,
                steps: trace.entries.into_iter().map(step_taken).collect(),
                dropped: trace.dropped,
            })
        }
        .boxed()
    }

    fn step(&self, pod: Key, action: yard::StepAction) -> BoxFuture<'_, Result<yard::StepState, Error>> {
        async move {
            let go = match action {
                yard::StepAction::Show => Go::Show,
                yard::StepAction::Next => Go::Next,
                yard::StepAction::Run => Go::Run,
            };
            let Stand { last, next, paused, done, .. } = self.agent.step(&pod, go).await.map_err(refusal)?;
            // The journal knows what the step did; the gate only which one it was.
            let taken = self.agent.trace(&pod).and_then(|trace| trace.entries.back().cloned());
            let last = match (last, taken) {
                (Some(_), Some(entry)) => Some(step_taken(entry)),
                (Some(step), None) => Some(yard::Step { step, ..yard::Step::default() }),
                (None, _) => None,
            };
            Ok(yard::StepState { last, next, paused, done })
        }
        .boxed()
    }

    fn namespaces(&self) -> BoxFuture<'_, Result<yard::NamespaceMap, Error>> {
        async move {
            let all = self.agent.namespaces().await.map_err(refusal)?;
            let process = |process: node::namespaces::ProcessInfo| yard::Process {
                pid: process.pid.unsigned_abs(),
                command: process.command,
                pod: process.pod,
                container: process.container,
            };
            let namespaces = all.into_iter().map(|one| yard::Namespace {
                kind: one.kind,
                inode: one.inode,
                path: one.path,
                pods: one.users,
                processes: one.processes.into_iter().map(process).collect(),
            });
            Ok(yard::NamespaceMap { namespaces: namespaces.collect(), unreachable: Vec::new() })
        }
        .boxed()
    }

    fn plan(&self, pod: Object) -> BoxFuture<'_, Result<yard::PodPlan, Error>> {
        async move {
            let steps = self.agent.plan(&pod).into_iter().enumerate();
            Ok(yard::PodPlan {
                pod: format!("{}/{}", pod.namespace(), pod.name()),
                owner: String::new(),
                steps: steps.map(|(at, step)| step_planned(at as u64 + 1, &step)).collect(),
                error: None,
            })
        }
        .boxed()
    }

    fn info(&self) -> BoxFuture<'_, Result<yard::Info, Error>> {
        async move { Ok(self.info.clone()) }.boxed()
    }

    fn services(&self, _node: Option<String>) -> BoxFuture<'_, Result<yard::ServiceMap, Error>> {
        async move {
            let (state, work) =
                self.proxy.look().map_err(|error| Error::internal(format!("read the kernel: {error}")))?;
            let services = state.ports.iter().map(|(port, endpoints)| yard::VirtualService {
                ip: port.address.to_string(),
                port: port.port,
                protocol: port.protocol.to_string(),
                endpoints: endpoints.iter().map(ToString::to_string).collect(),
            });
            Ok(yard::ServiceMap {
                services: services.collect(),
                transactions: work.transactions,
                elements: work.elements,
            })
        }
        .boxed()
    }
}

/// What a process that runs a node, or a yard with its first node, knows of itself.
pub(crate) fn info(of: &Yard) -> yard::Info {
    let path = |path: &std::path::Path| path.display().to_string();
    let host_netns = of.isolated.then(|| path(&of.host_netns()));
    yard::Info {
        name: of.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        node: of.node.clone(),
        isolated: of.isolated,
        data_dir: path(&of.data_dir),
        run_dir: path(&of.run_dir),
        log_dir: path(&of.log_dir),
        socket: path(&of.socket),
        cgroup: of.cgroup_parent.clone(),
        pod_cidr: of.pod_cidr.to_string(),
        service_cidr: of.service_cidr.to_string(),
        node_netns: Some(path(&of.node_netns(&of.node))),
        host_netns,
        started_at: api::time::seconds(jiff::Timestamp::now()),
    }
}

fn exec_session(session: Session) -> ExecSession {
    let Session { stdin, stdout, stderr, terminal, exit } = session;
    let resize = terminal.map(|terminal| {
        let (sender, mut sizes) = mpsc::channel::<TerminalSize>(4);
        tokio::spawn(async move {
            while let Some(size) = sizes.recv().await {
                if let Err(error) = terminal.resize(size.rows, size.columns) {
                    tracing::debug!(error = %error.chain(), "resize a terminal");
                }
            }
        });
        sender
    });
    ExecSession {
        stdin: stdin.map(|input| Box::new(input) as Box<dyn AsyncWrite + Send + Unpin>),
        stdout: stdout.map(|output| Box::new(output) as Box<dyn AsyncRead + Send + Unpin>),
        stderr: stderr.map(|errors| Box::new(errors) as Box<dyn AsyncRead + Send + Unpin>),
        resize,
        exit: async move { exit.wait().await.map_err(refusal) }.boxed(),
    }
}

fn step_taken(entry: journal::Entry) -> yard::Step {
    yard::Step {
        sequence: entry.sequence,
        at: Some(api::time::micros(entry.at)),
        step: entry.step,
        effect: entry.effect,
        micros: Some(entry.micros),
        error: entry.error,
    }
}

fn step_planned(sequence: u64, step: &Step) -> yard::Step {
    yard::Step { sequence, step: step.to_string(), effect: step.effect().into(), ..yard::Step::default() }
}

/// The agent's error as an answer to a client.
fn refusal(error: node::Error) -> Error {
    let kind = match error.kind() {
        node::Kind::NotFound => Kind::NotFound,
        node::Kind::AlreadyExists => Kind::AlreadyExists,
        node::Kind::Conflict => Kind::Conflict,
        node::Kind::Invalid => Kind::BadRequest,
        node::Kind::Unsupported => Kind::Unsupported,
        node::Kind::Busy => Kind::Busy,
        node::Kind::Denied => Kind::Denied,
        node::Kind::Internal => Kind::Internal,
    };
    Error::new(kind, error.chain())
}
