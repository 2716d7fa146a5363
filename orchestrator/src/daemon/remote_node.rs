//! A further node, asked over the fabric: each question is one request to its agent, which answers with the handlers
//! that this daemon has, too.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::{Error, Key, Kind, Object};
use client::{Client, ExecInput, ExecOptions, ExecOutput, Method, Output, Request};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, StreamExt};
use hyper::body::Bytes;
use serde::de::DeserializeOwned;
use server::yard::{Info, NamespaceMap, PodPlan, ServiceMap, StepAction, StepState, Trace};
use server::{ExecRequest, ExecSession, LogOptions, NodeApi, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};

use super::fabric::Fabric;

/// Time for a whole answer that needs no waiting; less than people wait.
const DEADLINE: Duration = Duration::from_millis(1_900);

/// Bytes of one stream on their way.
const PIPE_BYTES: usize = 64 << 10;

/// A further node.
#[derive(Clone)]
pub(super) struct RemoteNode {
    name: String,
    client: Client,
    fabric: Arc<Fabric>,
}

impl RemoteNode {
    pub(super) fn new(name: &str, client: Client, fabric: Arc<Fabric>) -> RemoteNode {
        RemoteNode { name: name.to_owned(), client, fabric }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// One question with one answer, soon.
    async fn ask<T: DeserializeOwned>(&self, request: Request) -> Result<T, Error> {
        let answer = tokio::time::timeout(DEADLINE, self.client.request_json(request)).await;
        let (value, _) = answer.map_err(|_| self.silent())?.map_err(|error| self.refusal(error))?;
        serde_json::from_value(value).map_err(Error::internal)
    }

    /// What may take its time, unless the node is lost meanwhile.
    async fn wait_for<T>(&self, work: impl Future<Output = Result<T, client::Error>>) -> Result<T, Error> {
        tokio::select! {
            outcome = work => outcome.map_err(|error| self.refusal(error)),
            () = self.fabric.lost(&self.name) => Err(self.silent()),
        }
    }

    fn silent(&self) -> Error {
        Error::new(
            Kind::Unavailable,
            format!("node {:?} does not answer: it is cut off, dead or busy", self.name),
        )
    }

    /// What the agent refuses is the answer. What keeps us from asking is told with the node's name.
    fn refusal(&self, error: client::Error) -> Error {
        match error {
            client::Error::Refused(error) if error.kind() != Kind::Unauthorized => error,
            other => {
                let why = node::error::chain(&other);
                Error::new(Kind::Unavailable, format!("node {:?} cannot be reached: {why}", self.name))
            }
        }
    }

    async fn open(&self, wanted: ExecRequest) -> Result<ExecSession, Error> {
        let options = ExecOptions {
            container: wanted.container.clone(),
            command: wanted.command.clone(),
            stdin: wanted.stdin,
            tty: wanted.tty,
        };
        let (input, output) = self.wait_for(self.client.exec(&wanted.pod, &options)).await?;
        let pipe = |is_wanted: bool| is_wanted.then(|| tokio::io::duplex(PIPE_BYTES)).unzip();
        let (stdin, from_user) = pipe(wanted.stdin);
        let (stdout, to_stdout) = pipe(wanted.stdout);
        let (stderr, to_stderr) = pipe(wanted.stderr && !wanted.tty);
        let (resize, sizes) = wanted.tty.then(|| mpsc::channel(4)).unzip();
        let (exit, ended) = oneshot::channel();
        let node = self.clone();
        tokio::spawn(carry(node, (input, output), (from_user, sizes), (to_stdout, to_stderr), exit));
        let silent = self.silent();
        Ok(ExecSession {
            stdin: stdin.map(|stdin| Box::new(stdin) as _),
            stdout: stdout.map(|stdout| Box::new(stdout) as _),
            stderr: stderr.map(|stderr| Box::new(stderr) as _),
            resize,
            exit: async move { ended.await.unwrap_or(Err(silent)) }.boxed(),
        })
    }
}

/// Carries one exec between the session's pipes and the agent, until the process ends, the session is dropped, or the
/// node is lost.
async fn carry(
    node: RemoteNode,
    (input, mut output): (ExecInput, ExecOutput),
    (from_user, sizes): (Option<DuplexStream>, Option<mpsc::Receiver<TerminalSize>>),
    (mut to_stdout, mut to_stderr): (Option<DuplexStream>, Option<DuplexStream>),
    mut exit: oneshot::Sender<Result<i32, Error>>,
) {
    let inward = inward(input, from_user, sizes);
    let outward = async {
        loop {
            let written = match output.next().await {
                Some(Ok(Output::Stdout(bytes))) => write(&mut to_stdout, &bytes).await,
                Some(Ok(Output::Stderr(bytes))) => write(&mut to_stderr, &bytes).await,
                Some(Ok(Output::Exit(code))) => return Ok(code),
                Some(Err(error)) => return Err(node.refusal(error)),
                None => return Err(node.silent()),
            };
            if written.is_err() {
                // Nobody reads this stream any more; the process may go on with the others.
                continue;
            }
        }
    };
    let outcome = tokio::select! {
        outcome = outward => outcome,
        // The client left: the agent sees the connection end, and ends the process.
        () = exit.closed() => return,
        () = node.fabric.lost(&node.name) => Err(node.silent()),
        never = inward => match never {},
    };
    // The output ends before the exit code is told; who does not wait for it has left.
    drop((to_stdout, to_stderr));
    let _ = exit.send(outcome);
}

async fn write(to: &mut Option<DuplexStream>, bytes: &[u8]) -> io::Result<()> {
    let Some(open) = to else { return Ok(()) };
    let written = open.write_all(bytes).await;
    if written.is_err() {
        *to = None;
    }
    written
}

/// Sends on what the user types, and the sizes of the terminal. Never ends: the process's end does that.
async fn inward(
    mut input: ExecInput,
    mut from_user: Option<DuplexStream>,
    mut sizes: Option<mpsc::Receiver<TerminalSize>>,
) -> std::convert::Infallible {
    let mut buffer = vec![0; PIPE_BYTES / 2];
    loop {
        let read = async {
            match &mut from_user {
                Some(from_user) => from_user.read(&mut buffer).await,
                None => std::future::pending().await,
            }
        };
        let resized = async {
            match &mut sizes {
                Some(sizes) => sizes.recv().await,
                None => std::future::pending().await,
            }
        };
        // What cannot be sent is told by the output's end.
        let sent = tokio::select! {
            read = read => match read {
                Ok(count @ 1..) => input.write(&buffer[..count]).await,
                Ok(0) | Err(_) => {
                    from_user = None;
                    input.end().await
                }
            },
            size = resized => match size {
                Some(size) => input.resize(size.columns, size.rows).await,
                None => {
                    sizes = None;
                    Ok(())
                }
            },
        };
        if sent.is_err() {
            return std::future::pending().await;
        }
    }
}

fn yard_path(verb: &str, pod: &Key) -> String {
    format!("/podyard/v1/{verb}/{}/{}", client::encode(&pod.namespace), client::encode(&pod.name))
}

impl NodeApi for RemoteNode {
    fn logs(
        &self,
        pod: Key,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<Bytes>>, Error>> {
        async move {
            let options = client::LogOptions {
                container: options.container,
                follow: options.follow,
                previous: options.previous,
                timestamps: options.timestamps,
                tail_lines: options.tail_lines,
                since_secs: options.since_secs,
                limit_bytes: options.limit_bytes,
            };
            let log = self.wait_for(self.client.logs(&pod, &options)).await?;
            let node = self.clone();
            let pieces = futures::stream::unfold(Some((log, node)), |open| async move {
                let (mut log, node) = open?;
                let piece = tokio::select! {
                    piece = log.next() => piece?.map_err(io::Error::other),
                    () = node.fabric.lost(&node.name) => Err(io::Error::other(node.silent())),
                };
                let rest = piece.is_ok().then_some((log, node));
                Some((piece, rest))
            });
            Ok(pieces.boxed())
        }
        .boxed()
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>> {
        self.open(request).boxed()
    }

    fn attach(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>> {
        self.open(ExecRequest { command: Vec::new(), ..request }).boxed()
    }

    fn trace(&self, pod: Key) -> BoxFuture<'_, Result<Trace, Error>> {
        self.ask(Request::get(yard_path("trace", &pod))).boxed()
    }

    fn step(&self, pod: Key, action: StepAction) -> BoxFuture<'_, Result<StepState, Error>> {
        async move {
            let path = yard_path("step", &pod);
            let request = match action {
                StepAction::Show => Request::get(path),
                StepAction::Next => Request::new(Method::POST, format!("{path}?action=next")),
                StepAction::Run => Request::new(Method::POST, format!("{path}?action=run")),
            };
            let (state, _) = self.wait_for(self.client.request_json(request)).await?;
            serde_json::from_value(state).map_err(Error::internal)
        }
        .boxed()
    }

    fn namespaces(&self) -> BoxFuture<'_, Result<NamespaceMap, Error>> {
        self.ask(Request::get("/podyard/v1/namespaces")).boxed()
    }

    fn plan(&self, pod: Object) -> BoxFuture<'_, Result<PodPlan, Error>> {
        self.ask(Request::new(Method::POST, "/podyard/v1/pod-plan").json(&pod.0)).boxed()
    }

    fn services(&self, _: Option<String>) -> BoxFuture<'_, Result<ServiceMap, Error>> {
        self.ask(Request::get("/podyard/v1/services")).boxed()
    }

    fn info(&self) -> BoxFuture<'_, Result<Info, Error>> {
        self.ask(Request::get("/podyard/v1/info")).boxed()
    }
}
