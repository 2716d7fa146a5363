//! Exec and attach over a WebSocket: one socket, numbered channels.
//!
//! ```text
//!   client                                server
//!     │ GET …/exec?command=…  Upgrade: websocket,  Sec-WebSocket-Protocol: v5.channel.k8s.io, v4…
//!     │◄──────────────── 101, the protocol chosen
//!     │ 0 stdin bytes ─────────►│
//!     │◄────── 1 stdout, 2 stderr bytes
//!     │ 4 {"Width":80,"Height":24} ──►│   size of the terminal
//!     │ 255 0 ─────────────────►│         v5 only: stdin has ended
//!     │◄────── 3 Status         │         success, or the exit code as a cause; then close
//! ```
//! Each binary message begins with its channel's number. Source: Kubernetes `k8s.io/apimachinery`,
//! remotecommand constants; KEP-4006 for v5.

use std::io;
use std::time::Duration;

use api::Error;
use futures::stream::{SplitSink, SplitStream};
use futures::{FutureExt, SinkExt, StreamExt};
use hyper::body::Bytes;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tracing::debug;

pub use crate::node_api::ExecRequest;
use crate::node_api::{ExecSession, TerminalSize};
use crate::query::Query;
use crate::respond::{Body, full, success};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Bytes of output in one message.
const CHUNK_BYTES: usize = 32 << 10;

/// Messages of output that may wait for a slow client before the process has to wait.
const OUTPUT_MESSAGES_MAX: usize = 8;

/// A process that left others behind keeps its output open: how long these may be silent before we go.
const DRAIN: Duration = Duration::from_secs(1);

/// Largest message a client may send.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A protocol we speak. v5 is v4 and a way to end stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    V4,
    V5,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::V4 => "v4.channel.k8s.io",
            Protocol::V5 => "v5.channel.k8s.io",
        }
    }

    /// The first protocol the client offers that we speak.
    fn choose(headers: &HeaderMap) -> Option<Protocol> {
        let offers =
            headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
        offers.flat_map(|offer| offer.split(',')).find_map(|name| {
            [Protocol::V5, Protocol::V4].into_iter().find(|protocol| protocol.name() == name.trim())
        })
    }
}

/// Reads `?command=…&container=…&stdin=…`.
///
/// # Errors
/// `BadRequest` if an exec has no command, or nothing is connected.
pub fn parse(pod: api::Key, query: &Query, attach: bool) -> Result<ExecRequest, Error> {
    let request = ExecRequest {
        pod,
        container: query.get("container").map(str::to_string),
        command: query.all("command"),
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        tty: query.flag("tty"),
    };
    if !attach && request.command.is_empty() {
        return Err(Error::bad_request("command: Required value: what to execute"));
    }
    if !(request.stdin || request.stdout || request.stderr) {
        return Err(Error::bad_request("one of stdin, stdout, stderr must be set"));
    }
    Ok(request)
}

/// A handshake that is checked and may be accepted.
pub struct Handshake {
    accept: String,
    protocol: Protocol,
    upgrade: hyper::upgrade::OnUpgrade,
}

/// Checks that a request is a WebSocket handshake for a protocol we speak.
///
/// # Errors
/// `BadRequest` naming what is missing.
pub fn handshake(request: &mut Request<Bytes>) -> Result<Handshake, Error> {
    let headers = request.headers();
    let says = |name, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value: &HeaderValue| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
    };
    if !(says(CONNECTION, "upgrade") && says(UPGRADE, "websocket")) {
        return Err(Error::bad_request("exec and attach need an upgrade to WebSocket (SPDY is not served)"));
    }
    let Some(protocol) = Protocol::choose(headers) else {
        return Err(Error::bad_request(
            "offer v5.channel.k8s.io or v4.channel.k8s.io in Sec-WebSocket-Protocol",
        ));
    };
    let key =
        headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| Error::bad_request("Sec-WebSocket-Key is missing"))?;
    let accept = derive_accept_key(key.as_bytes());
    Ok(Handshake { accept, protocol, upgrade: hyper::upgrade::on(request) })
}

/// Accepts the handshake and carries the session in a task of its own.
pub fn accept(handshake: Handshake, session: ExecSession) -> Response<Body> {
    let Handshake { accept, protocol, upgrade } = handshake;
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let config = WebSocketConfig::default()
                    .max_message_size(Some(MESSAGE_BYTES_MAX))
                    .max_frame_size(Some(MESSAGE_BYTES_MAX));
                let socket =
                    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config))
                        .await;
                carry(socket, protocol, session).await;
            }
            Err(error) => debug!(%error, "upgrade to websocket"),
        }
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol.name()));
    if let Ok(value) = HeaderValue::from_str(&accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, value);
    }
    response
}

/// Carries bytes both ways until the process has ended and its output is sent, or the client leaves.
async fn carry(socket: Socket, protocol: Protocol, session: ExecSession) {
    let ExecSession { stdin, stdout, stderr, resize, exit } = session;
    let (mut sink, source) = socket.split();
    // Bounded: a client that does not read makes the process wait, as a full pipe would.
    let (output, mut messages) = mpsc::channel::<Message>(OUTPUT_MESSAGES_MAX);
    let (ended, is_ended) = watch::channel(false);
    let pumps = futures::future::join(
        pump(STDOUT, stdout, output.clone(), is_ended.clone()),
        pump(STDERR, stderr, output, is_ended),
    );
    let outward = async {
        let forward = async {
            while let Some(message) = messages.recv().await {
                sink.send(message).await?;
            }
            Ok::<(), tokio_tungstenite::tungstenite::Error>(())
        };
        let wait = exit.inspect(|_| _ = ended.send(true));
        let (code, _, sent) = futures::future::join3(wait, pumps, forward).await;
        sent?;
        finish(&mut sink, code).await
    };
    tokio::select! {
        // `inward` ends only when the client leaves: then the session is dropped and the node ends the process.
        () = inward(source, protocol, stdin, resize) => debug!("exec: client left"),
        sent = outward => if let Err(error) = sent { debug!(%error, "exec: send") },
    }
}

/// Sends the outcome, then closes.
async fn finish(
    sink: &mut SplitSink<Socket, Message>,
    code: Result<i32, Error>,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    sink.send(message(STATUS, outcome(code).to_string().as_bytes())).await?;
    // A close without a code reads as 1005, which kubectl takes for a broken connection.
    sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await?;
    sink.close().await
}

/// How an exit code travels. Source: Kubernetes `remotecommand`, v4 status decoding.
fn outcome(code: Result<i32, Error>) -> Value {
    match code {
        Ok(0) => {
            let mut status = success(Value::Null);
            if let Some(map) = status.as_object_mut() {
                map.remove("details");
            }
            status
        }
        Ok(code) => json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => error.to_status_json(),
    }
}

/// Passes output on until it ends, or until the process has ended and its heirs stay silent.
async fn pump(
    channel: u8,
    from: Option<Box<dyn AsyncRead + Send + Unpin>>,
    to: mpsc::Sender<Message>,
    mut is_ended: watch::Receiver<bool>,
) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let silence = async {
            if is_ended.wait_for(|ended| *ended).await.is_ok() {
                tokio::time::sleep(DRAIN).await;
            }
        };
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read,
            () = silence => return,
        };
        match read {
            // A terminal whose process has ended reads EIO: an end like any other.
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if to.send(message(channel, &buffer[..count])).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut framed = Vec::with_capacity(bytes.len() + 1);
    framed.push(channel);
    framed.extend_from_slice(bytes);
    Message::Binary(Bytes::from(framed))
}

/// Takes what the client sends until it leaves. What cannot be delivered any more is dropped.
async fn inward(
    mut source: SplitStream<Socket>,
    protocol: Protocol,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<mpsc::Sender<TerminalSize>>,
) {
    while let Some(Ok(received)) = source.next().await {
        let bytes = match received {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        match (bytes.first().copied(), &bytes[1.min(bytes.len())..]) {
            (Some(STDIN), input) => {
                let written = match &mut stdin {
                    Some(open) => write(open, input).await,
                    None => Ok(()),
                };
                if written.is_err() {
                    stdin = None;
                }
            }
            (Some(RESIZE), size) => {
                if let (Some(resize), Some(size)) = (&resize, parse_size(size)) {
                    // Only the latest size counts; if the node lags, a later one will come.
                    let _ = resize.try_send(size);
                }
            }
            (Some(CLOSE), [STDIN]) if protocol == Protocol::V5 => stdin = None,
            _ => {}
        }
    }
}

async fn write(stdin: &mut (dyn AsyncWrite + Send + Unpin), input: &[u8]) -> io::Result<()> {
    stdin.write_all(input).await?;
    stdin.flush().await
}

fn parse_size(text: &[u8]) -> Option<TerminalSize> {
    let size: Value = serde_json::from_slice(text).ok()?;
    let side = |name: &str| u16::try_from(size[name].as_u64()?).ok();
    Some(TerminalSize { columns: side("Width")?, rows: side("Height")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(text: &'static str) -> Option<Protocol> {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(text));
        Protocol::choose(&headers)
    }

    #[test]
    fn the_clients_order_decides() {
        assert_eq!(offer("v5.channel.k8s.io"), Some(Protocol::V5));
        assert_eq!(offer("v4.channel.k8s.io,v5.channel.k8s.io"), Some(Protocol::V4));
        assert_eq!(offer("channel.k8s.io, v4.channel.k8s.io"), Some(Protocol::V4));
        assert_eq!(offer("base64.channel.k8s.io"), None);
    }

    #[test]
    fn exit_codes_travel_as_causes() {
        assert_eq!(outcome(Ok(0))["status"], "Success");
        let failure = outcome(Ok(7));
        assert_eq!(failure["reason"], "NonZeroExitCode");
        assert_eq!(failure["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size(br#"{"Width":80,"Height":24}"#), Some(TerminalSize { columns: 80, rows: 24 }));
        assert_eq!(parse_size(br#"{"Width":99999,"Height":24}"#), None);
        assert_eq!(parse_size(b"x"), None);
    }
}
