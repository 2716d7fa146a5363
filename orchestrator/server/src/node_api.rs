//! What only a node can answer: the door from the API server to the agents.

use std::io;

use api::{Error, Key, Object};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::yard::{Info, NamespaceMap, PodPlan, ServiceMap, StepAction, StepState, Trace};

/// Which part of a container's log to read. Source: Kubernetes API reference, "read log of the specified Pod".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// The container; may be left out of a pod that has one.
    pub container: Option<String>,
    /// Go on with what is written later, until the container ends or the reader leaves.
    pub follow: bool,
    /// The attempt before the present one.
    pub previous: bool,
    /// Begin each line with its time, RFC 3339 in UTC.
    pub timestamps: bool,
    /// At most this many lines from the end of what is there.
    pub tail_lines: Option<u64>,
    /// Only lines younger than this many seconds.
    pub since_secs: Option<u64>,
    /// Stop after this many bytes.
    pub limit_bytes: Option<u64>,
}

/// A process to run beside a container's own, or (`attach`) the wish to join the container's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    /// The pod.
    pub pod: Key,
    /// The container; may be left out of a pod that has one.
    pub container: Option<String>,
    /// Program and arguments; empty for attach.
    pub command: Vec<String>,
    /// Connect standard input.
    pub stdin: bool,
    /// Connect standard output.
    pub stdout: bool,
    /// Connect standard error; meaningless with a terminal.
    pub stderr: bool,
    /// Give the process a terminal: output and errors then share one stream.
    pub tty: bool,
}

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// A running exec. Dropping it drops the streams; the node then ends the process.
pub struct ExecSession {
    /// Dropped to tell the process that its input ended.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Everything from the terminal, if there is one.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Changes of the terminal's size; `None` without a terminal.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The exit code; 128 + n for a death by signal n.
    pub exit: BoxFuture<'static, Result<i32, Error>>,
}

/// What the daemon answers from the node. Implemented over the agent; tests have a fake.
pub trait NodeApi: Send + Sync + 'static {
    /// The container's log as it is to be shown, without CRI framing.
    fn logs(
        &self,
        pod: Key,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<Bytes>>, Error>>;

    /// Starts a process in a running container.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>>;

    /// Joins the streams of a container's own process.
    fn attach(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>>;

    /// The steps taken for a pod, oldest first, from the bounded journal.
    fn trace(&self, pod: Key) -> BoxFuture<'_, Result<Trace, Error>>;

    /// Looks at or releases a pod that pauses after each step; answers when it pauses again or is done.
    fn step(&self, pod: Key, action: StepAction) -> BoxFuture<'_, Result<StepState, Error>>;

    /// Every namespace of the yard and who is in it.
    fn namespaces(&self) -> BoxFuture<'_, Result<NamespaceMap, Error>>;

    /// What would be done for this admitted pod, which need not exist.
    fn plan(&self, pod: Object) -> BoxFuture<'_, Result<PodPlan, Error>>;

    /// What stands behind every virtual port, read from the kernel of a node; the first one, unless it is named.
    fn services(&self, node: Option<String>) -> BoxFuture<'_, Result<ServiceMap, Error>>;

    /// The yard: paths, addresses, versions.
    fn info(&self) -> BoxFuture<'_, Result<Info, Error>>;
}
