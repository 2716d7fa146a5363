//! A server over an in-memory store and a fake node, on a socket of its own.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use api::{Error, Key, Kind, Object};
use client::Client;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use registry::{Config, Registry};
use serde_json::{Value, json};
use server::yard::{Info, NamespaceMap, PodPlan, ServiceMap, Step, StepAction, StepState, Trace};
use server::{ExecRequest, ExecSession, LogOptions, NodeApi, Server, TerminalSize};
use store::Memory;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};

/// What a running test server is.
pub struct Yard {
    pub client: Client,
    pub registry: Arc<Registry<Memory>>,
    pub node: Arc<FakeNode>,
    pub socket: PathBuf,
    _dir: tempfile::TempDir,
    _stop: oneshot::Sender<()>,
}

/// Starts a server; it ends when the yard is dropped.
pub async fn yard() -> Yard {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podyard.sock");
    let registry = Arc::new(Registry::open(Memory::new(), Config::default()).await.unwrap());
    let node = Arc::new(FakeNode::default());
    let server = Arc::new(Server::new(Arc::clone(&registry), Arc::clone(&node) as Arc<dyn NodeApi>));
    let listener = server::listen(&socket).unwrap();
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(server::serve(listener, server, async move { _ = stopped.await }));
    Yard { client: Client::new(&socket), registry, node, socket, _dir: dir, _stop: stop }
}

/// A pod of one container.
pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "podyard.local/host"}]},
    })
}

pub fn pods() -> &'static api::Resource {
    api::resource_by_any_name("pods").unwrap()
}

pub fn key(name: &str) -> Key {
    Key::core("pods", "default", name)
}

/// A node that plays a few programs: `cat`, `exit N`, `size`, `both`.
#[derive(Default)]
pub struct FakeNode {
    /// Each notification adds a line to a followed log.
    pub more_log: Arc<Notify>,
    /// Told when an exec's streams are dropped before it ends.
    pub left: Arc<Notify>,
}

struct TellWhenDropped(Arc<Notify>);

impl Drop for TellWhenDropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl NodeApi for FakeNode {
    fn logs(
        &self,
        pod: Key,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<hyper::body::Bytes>>, Error>> {
        let more = Arc::clone(&self.more_log);
        Box::pin(async move {
            let container = options.container.unwrap_or_default();
            let first = format!("{} {container} tail={:?}\n", pod.name, options.tail_lines);
            let first = stream::once(async move { Ok(first.into()) });
            if !options.follow {
                return Ok(first.boxed());
            }
            let rest = stream::unfold((more, 0), |(more, n)| async move {
                more.notified().await;
                (n < 3).then(|| (Ok(format!("line {n}\n").into()), (more, n + 1)))
            });
            Ok(first.chain(rest).boxed())
        })
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>> {
        let left = Arc::clone(&self.left);
        Box::pin(async move {
            let (stdin, mut read_stdin) = tokio::io::duplex(64);
            let (mut write_stdout, stdout) = tokio::io::duplex(64);
            let (mut write_stderr, stderr) = tokio::io::duplex(64);
            let (resize, mut sizes) = mpsc::channel::<TerminalSize>(4);
            let words: Vec<&str> = request.command.iter().map(String::as_str).collect();
            let exit: BoxFuture<'static, Result<i32, Error>> = match words.as_slice() {
                ["cat"] => Box::pin(async move {
                    tokio::io::copy(&mut read_stdin, &mut write_stdout).await.unwrap();
                    Ok(0)
                }),
                ["exit", code] => {
                    let code = code.parse().unwrap();
                    Box::pin(async move { Ok(code) })
                }
                ["size"] => Box::pin(async move {
                    let size = sizes.recv().await.unwrap();
                    write_stdout
                        .write_all(format!("{}x{}", size.columns, size.rows).as_bytes())
                        .await
                        .unwrap();
                    Ok(0)
                }),
                ["both"] => Box::pin(async move {
                    write_stdout.write_all(b"out").await.unwrap();
                    write_stderr.write_all(b"err").await.unwrap();
                    Ok(3)
                }),
                ["flood"] => Box::pin(async move {
                    write_stdout.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
                    Ok(0)
                }),
                ["wait"] => Box::pin(async move {
                    let _tell = TellWhenDropped(left);
                    let mut nothing = Vec::new();
                    read_stdin.read_to_end(&mut nothing).await.unwrap();
                    std::future::pending().await
                }),
                _ => {
                    let message = format!("exec {:?}: no such file or directory", request.command);
                    return Err(Error::new(Kind::Internal, message));
                }
            };
            Ok(ExecSession {
                stdin: request.stdin.then_some(Box::new(stdin) as _),
                stdout: Some(Box::new(stdout)),
                stderr: (!request.tty).then_some(Box::new(stderr) as _),
                resize: request.tty.then_some(resize),
                exit,
            })
        })
    }

    fn attach(&self, _request: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>> {
        Box::pin(async { Err(Error::new(Kind::Unsupported, "attach: the container has no stdin")) })
    }

    fn trace(&self, pod: Key) -> BoxFuture<'_, Result<Trace, Error>> {
        let step = Step { sequence: 1, step: "netns create".into(), micros: Some(120), ..Step::default() };
        let trace =
            Trace { pod: format!("{}/{}", pod.namespace, pod.name), steps: vec![step], ..Trace::default() };
        Box::pin(async move { Ok(trace) })
    }

    fn step(&self, _pod: Key, action: StepAction) -> BoxFuture<'_, Result<StepState, Error>> {
        Box::pin(async move { Ok(StepState { done: action == StepAction::Run, ..StepState::default() }) })
    }

    fn services(&self, _node: Option<String>) -> BoxFuture<'_, Result<ServiceMap, Error>> {
        Box::pin(async { Ok(ServiceMap::default()) })
    }

    fn namespaces(&self) -> BoxFuture<'_, Result<NamespaceMap, Error>> {
        Box::pin(async { Ok(NamespaceMap::default()) })
    }

    fn plan(&self, pod: Object) -> BoxFuture<'_, Result<PodPlan, Error>> {
        let steps = pod.get_array("spec.containers").iter().map(|container| Step {
            step: format!("container {} start", container["name"].as_str().unwrap_or("")),
            ..Step::default()
        });
        let plan = PodPlan { steps: steps.collect(), ..PodPlan::default() };
        Box::pin(async move { Ok(plan) })
    }

    fn info(&self) -> BoxFuture<'_, Result<Info, Error>> {
        Box::pin(async { Ok(Info { name: "test".into(), isolated: true, ..Info::default() }) })
    }
}
