//! Exec and attach: one WebSocket, numbered channels. The picture is in `server/src/exec.rs`.

use api::Key;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::connection::{Client, Request, refusal};
use crate::error::Error;
use crate::path::{encode, resource_path};

const PROTOCOL: &str = "v5.channel.k8s.io";

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What to run, and what to connect.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// The container; may be left out of a pod that has one.
    pub container: Option<String>,
    /// Program and arguments; empty to attach to the container's own process.
    pub command: Vec<String>,
    /// Send input.
    pub stdin: bool,
    /// Ask for a terminal: errors then come with the output.
    pub tty: bool,
}

/// The sending half of an exec.
pub struct ExecInput(SplitSink<Socket, Message>);

/// The receiving half of an exec.
pub struct ExecOutput(SplitStream<Socket>);

/// What a process says.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// On standard output, or on its terminal.
    Stdout(Bytes),
    /// On standard error.
    Stderr(Bytes),
    /// That it ended, with this code. Comes last.
    Exit(i32),
}

impl Client {
    /// Runs a command in a container, or attaches to the container's own process.
    ///
    /// # Errors
    /// `Refused` if the container does not run or the command does not start.
    pub async fn exec(&self, pod: &Key, options: &ExecOptions) -> Result<(ExecInput, ExecOutput), Error> {
        let part = if options.command.is_empty() { "attach" } else { "exec" };
        let mut path = resource_path(pod.resource, Some(&pod.namespace), Some(&pod.name), Some(part));
        path.push_str("?stdout=true");
        let flags = [("stdin", options.stdin), ("stderr", !options.tty), ("tty", options.tty)];
        for (name, _) in flags.into_iter().filter(|(_, set)| *set) {
            path.push_str(&format!("&{name}=true"));
        }
        if let Some(container) = &options.container {
            path.push_str(&format!("&container={}", encode(container)));
        }
        for word in &options.command {
            path.push_str(&format!("&command={}", encode(word)));
        }
        let name = format!("GET {path}");
        let key = generate_key();
        let mut request = Request::get(path);
        request.headers = vec![
            (CONNECTION, "Upgrade".to_string()),
            (UPGRADE, "websocket".to_string()),
            (SEC_WEBSOCKET_VERSION, "13".to_string()),
            (SEC_WEBSOCKET_KEY, key.clone()),
            (SEC_WEBSOCKET_PROTOCOL, PROTOCOL.to_string()),
        ];
        let response = self.send(request).await?;
        let code = response.status();
        if code != StatusCode::SWITCHING_PROTOCOLS {
            let body = response.into_body().collect().await.map_err(|error| Error::broken(&name, error))?;
            return Err(refusal(&name, code, &body.to_bytes()));
        }
        let header = |name| response.headers().get(&name).and_then(|value| value.to_str().ok());
        if header(SEC_WEBSOCKET_ACCEPT) != Some(derive_accept_key(key.as_bytes()).as_str())
            || header(SEC_WEBSOCKET_PROTOCOL) != Some(PROTOCOL)
        {
            return Err(Error::Garbled {
                request: name,
                problem: "not the WebSocket we asked for".to_string(),
            });
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| Error::broken(&name, error))?;
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
        let (sink, source) = socket.split();
        Ok((ExecInput(sink), ExecOutput(source)))
    }
}

impl ExecInput {
    /// Sends input to the process.
    ///
    /// # Errors
    /// `Broken` if the server went away.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.send(0, bytes).await
    }

    /// Tells the process that its input ended.
    ///
    /// # Errors
    /// As [`ExecInput::write`].
    pub async fn end(&mut self) -> Result<(), Error> {
        self.send(255, &[0]).await
    }

    /// Tells the process the size of its terminal.
    ///
    /// # Errors
    /// As [`ExecInput::write`].
    pub async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), Error> {
        self.send(4, json!({"Width": columns, "Height": rows}).to_string().as_bytes()).await
    }

    async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<(), Error> {
        let mut framed = Vec::with_capacity(bytes.len() + 1);
        framed.push(channel);
        framed.extend_from_slice(bytes);
        self.0.send(Message::Binary(framed.into())).await.map_err(|error| Error::broken("exec: send", error))
    }
}

impl ExecOutput {
    /// The next thing the process says; `None` if the connection ends before the process does.
    ///
    /// # Errors
    /// `Refused` with what the node says went wrong.
    pub async fn next(&mut self) -> Option<Result<Output, Error>> {
        loop {
            let bytes = match self.0.next().await? {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Close(_)) => return None,
                Ok(_) => continue,
                Err(error) => return Some(Err(Error::broken("exec: receive", error))),
            };
            match bytes.first() {
                Some(1) => return Some(Ok(Output::Stdout(bytes.slice(1..)))),
                Some(2) => return Some(Ok(Output::Stderr(bytes.slice(1..)))),
                Some(3) => return Some(outcome(&bytes[1..]).map(Output::Exit)),
                _ => {}
            }
        }
    }
}

/// Reads the last message: success, an exit code as a cause, or an error of the node's.
fn outcome(bytes: &[u8]) -> Result<i32, Error> {
    let garbled = |problem: String| Error::Garbled { request: "exec".to_string(), problem };
    let status: Value = serde_json::from_slice(bytes).map_err(|error| garbled(error.to_string()))?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    if let Some(code) = code.and_then(|cause| cause["message"].as_str()?.parse().ok()) {
        return Ok(code);
    }
    Err(api::Error::from_status_json(&status).map_or_else(|| garbled(status.to_string()), Error::Refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes() {
        assert_eq!(outcome(br#"{"kind":"Status","status":"Success"}"#).unwrap(), 0);
        let seven = br#"{"kind":"Status","status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(outcome(seven).unwrap(), 7);
        let refused = br#"{"kind":"Status","status":"Failure","reason":"InternalError","message":"no such file","code":500}"#;
        assert_eq!(outcome(refused).unwrap_err().to_string(), "no such file");
    }
}
