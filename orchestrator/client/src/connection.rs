//! Requests and answers over one connection each, or one after the other over a [`Session`].

use std::fmt::{self, Write as _};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName};
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::error::Error;

/// Largest answer kept in memory, bytes.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Time to make a connection over TCP: a link that is cut answers nothing.
pub const CONNECT_DEADLINE: Duration = Duration::from_millis(1500);

/// Makes a TCP connection to an address, from wherever that can be reached: sockets belong to network namespaces.
pub type Connect = Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

/// A way to a server. Cheap to clone; connects anew for every request.
#[derive(Clone)]
pub struct Client {
    way: Way,
}

#[derive(Clone)]
enum Way {
    Unix(PathBuf),
    Tcp { address: SocketAddr, authorization: Arc<str>, connect: Connect },
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the token.
        match &self.way {
            Way::Unix(socket) => write!(f, "Client({})", socket.display()),
            Way::Tcp { address, .. } => write!(f, "Client({address})"),
        }
    }
}

/// One connection, for requests one after the other. Ends with the first failure.
pub struct Session {
    client: Client,
    sender: SendRequest<Full<Bytes>>,
}

impl Session {
    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// As [`Client::request`]. After anything but `Refused` the session is of no use any more.
    ///
    /// # Cancellation
    /// Ends the session.
    pub async fn request(&mut self, request: Request) -> Result<Answer, Error> {
        let name = format!("{} {}", request.method, request.path);
        let request = self.client.head(request, &name)?;
        self.sender.ready().await.map_err(|error| Error::broken(&name, error))?;
        let response =
            self.sender.send_request(request).await.map_err(|error| Error::broken(&name, error))?;
        read_whole(&name, response).await
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// HTTP method.
    pub method: Method,
    /// Path and query, encoded.
    pub path: String,
    /// What to send; empty for nothing.
    pub body: Bytes,
    /// Media type of the body.
    pub content_type: &'static str,
    /// Further headers.
    pub headers: Vec<(HeaderName, String)>,
}

impl Request {
    /// A request without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Request {
        Request {
            method,
            path: path.into(),
            body: Bytes::new(),
            content_type: "application/json",
            headers: Vec::new(),
        }
    }

    /// `GET path`
    pub fn get(path: impl Into<String>) -> Request {
        Request::new(Method::GET, path)
    }

    /// The same with a JSON body.
    pub fn json(mut self, body: &Value) -> Request {
        self.body = Bytes::from(body.to_string());
        self
    }
}

/// A whole answer that tells of success.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status, 200 to 299.
    pub code: StatusCode,
    /// The texts of `Warning` headers.
    pub warnings: Vec<String>,
    /// The body.
    pub body: Bytes,
}

/// The body of an answer that goes on.
pub struct Stream {
    request: String,
    body: Incoming,
}

impl Stream {
    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// `Broken` if the daemon goes away.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Some(Ok(bytes));
                    }
                }
                Err(error) => return Some(Err(Error::broken(&self.request, error))),
            }
        }
    }
}

impl Client {
    /// A client of the daemon that listens on `socket`. Does not connect yet.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { way: Way::Unix(socket.into()) }
    }

    /// A client of a server at `address`, to which `connect` leads, by a token. Does not connect yet.
    pub fn tcp(address: SocketAddr, token: &str, connect: Connect) -> Client {
        Client { way: Way::Tcp { address, authorization: format!("Bearer {token}").into(), connect } }
    }

    /// Connects for several requests, one after the other.
    ///
    /// # Errors
    /// `NoDaemon`, `Unreachable`.
    pub async fn session(&self) -> Result<Session, Error> {
        Ok(Session { client: self.clone(), sender: self.connect("connect").await? })
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// `Refused` with the server's `Status` unless it answers 2xx.
    pub async fn request(&self, request: Request) -> Result<Answer, Error> {
        let name = format!("{} {}", request.method, request.path);
        let response = self.send(request).await?;
        read_whole(&name, response).await
    }

    /// Sends a request and reads a JSON answer, with its warnings.
    ///
    /// # Errors
    /// As [`Client::request`]; `Garbled` if the answer is not JSON.
    pub async fn request_json(&self, request: Request) -> Result<(Value, Vec<String>), Error> {
        let name = format!("{} {}", request.method, request.path);
        let answer = self.request(request).await?;
        let value = serde_json::from_slice(&answer.body)
            .map_err(|error| Error::Garbled { request: name, problem: error.to_string() })?;
        Ok((value, answer.warnings))
    }

    /// Sends a request and reads the answer as it comes.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn stream(&self, request: Request) -> Result<Stream, Error> {
        let name = format!("{} {}", request.method, request.path);
        let response = self.send(request).await?;
        let code = response.status();
        if code.is_success() {
            return Ok(Stream { request: name, body: response.into_body() });
        }
        let body = response.into_body().collect().await.map_err(|error| Error::broken(&name, error))?;
        Err(refusal(&name, code, &body.to_bytes()))
    }

    /// Sends a request; answers with head and running body, whatever the code.
    pub(crate) async fn send(&self, request: Request) -> Result<Response<Incoming>, Error> {
        let name = format!("{} {}", request.method, request.path);
        let request = self.head(request, &name)?;
        let mut sender = self.connect(&name).await?;
        sender.send_request(request).await.map_err(|error| Error::broken(&name, error))
    }

    fn head(&self, request: Request, name: &str) -> Result<hyper::Request<Full<Bytes>>, Error> {
        let mut head =
            hyper::Request::builder().method(request.method).uri(&request.path).header(HOST, "podyard");
        if !request.headers.iter().any(|(header, _)| header == ACCEPT) {
            head = head.header(ACCEPT, "application/json, */*;q=0.1");
        }
        if !request.body.is_empty() {
            head = head.header(CONTENT_TYPE, request.content_type);
        }
        if let Way::Tcp { authorization, .. } = &self.way {
            head = head.header(AUTHORIZATION, &**authorization);
        }
        for (header, value) in &request.headers {
            head = head.header(header, value);
        }
        head.body(Full::new(request.body)).map_err(|error| Error::broken(name, error))
    }

    async fn connect(&self, name: &str) -> Result<SendRequest<Full<Bytes>>, Error> {
        match &self.way {
            Way::Unix(socket) => {
                let stream =
                    UnixStream::connect(socket).await.map_err(|source| no_daemon(socket.clone(), source))?;
                shake(name, stream).await
            }
            Way::Tcp { address, connect, .. } => {
                let unreachable = |source| Error::Unreachable { address: *address, source };
                let stream = tokio::time::timeout(CONNECT_DEADLINE, connect(*address))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(unreachable)?;
                // Small requests at once.
                stream.set_nodelay(true).map_err(unreachable)?;
                shake(name, stream).await
            }
        }
    }
}

async fn shake<T>(name: &str, stream: T) -> Result<SendRequest<Full<Bytes>>, Error>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Error::broken(name, error))?;
    // Ends with the answer's body or the upgraded stream; errors reach the reader of either.
    tokio::spawn(async move { connection.with_upgrades().await });
    Ok(sender)
}

async fn read_whole(name: &str, response: Response<Incoming>) -> Result<Answer, Error> {
    let (code, warnings) = (response.status(), warnings(&response));
    let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| Error::broken(name, error))?
        .to_bytes();
    if code.is_success() { Ok(Answer { code, warnings, body }) } else { Err(refusal(name, code, &body)) }
}

fn no_daemon(socket: PathBuf, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::PermissionDenied => Error::NotRoot { socket, source },
        _ => Error::NoDaemon { socket, source },
    }
}

/// The server's `Status`, or whatever it says instead.
pub(crate) fn refusal(request: &str, code: StatusCode, body: &[u8]) -> Error {
    let status: Option<Value> = serde_json::from_slice(body).ok();
    match status.as_ref().and_then(api::Error::from_status_json) {
        Some(error) => Error::Refused(error),
        None => {
            let mut problem = format!("the server answers {code}");
            let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
            if !text.trim().is_empty() {
                _ = write!(problem, ": {}", text.trim());
            }
            Error::Garbled { request: request.to_string(), problem }
        }
    }
}

/// The texts in `Warning: 299 - "…"` headers.
fn warnings(response: &Response<Incoming>) -> Vec<String> {
    let headers = response.headers().get_all("warning").into_iter();
    headers.filter_map(|value| unquote(value.to_str().ok()?)).collect()
}

fn unquote(header: &str) -> Option<String> {
    let quoted = header.split_once('"')?.1;
    let mut text = String::new();
    let mut letters = quoted.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => return Some(text),
            '\\' => text.extend(letters.next()),
            other => text.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warning_headers() {
        assert_eq!(unquote(r#"299 - "field \"a\" is ignored""#).as_deref(), Some(r#"field "a" is ignored"#));
        assert_eq!(unquote("299 - none"), None);
    }

    #[test]
    fn refusals_without_a_status_are_still_told() {
        let error = refusal("GET /x", StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(error.to_string(), "GET /x: the server answers 502 Bad Gateway: <html>");
    }
}
