//! Applets that speak HTTP: small servers for pods to run, and a client to ask them.

use super::files::{block_on, own_hostname, stopped_within};
use super::{Outcome, take_flag};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

const PORT_DEFAULT: u16 = 8080;
/// A file larger than this is not served: the whole file is held in memory while it is sent.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// What a server answers to every request.
enum Content {
    /// The same text.
    Text(String),
    /// The host name, which in a pod is the pod's name: shows which replica answered.
    Hostname,
    /// The files of a directory.
    Directory(PathBuf),
    /// A number kept in a file, one more at each visit.
    Counter(PathBuf),
}

pub(super) fn serve(args: &[String]) -> Outcome {
    let mut args = args.to_vec();
    let port = port(&mut args)?;
    let text = take_flag(&mut args, "--text")?;
    let dir = take_flag(&mut args, "--dir")?;
    if let Some(extra) = args.first() {
        return Err(format!("unknown argument {extra:?}"));
    }
    let content = match (text, dir) {
        (Some(_), Some(_)) => return Err("--text and --dir exclude each other".into()),
        (Some(text), None) => Content::Text(text),
        (None, Some(dir)) => Content::Directory(dir.into()),
        (None, None) => Content::Hostname,
    };
    block_on(listen(port, content))
}

pub(super) fn counter(args: &[String]) -> Outcome {
    let mut args = args.to_vec();
    let port = port(&mut args)?;
    let file = PathBuf::from(take_flag(&mut args, "--file")?.ok_or("--file is needed")?);
    let lock = lock(&file)?;
    let outcome = block_on(listen(port, Content::Counter(file)));
    drop(lock);
    outcome
}

/// Makes sure that nobody else counts in this file, and leaves a trace beside it if somebody does: a witness for tests of
/// the law that no two incarnations of a pet hold its disk. The kernel ends the lock with the process. flock(2).
fn lock(file: &Path) -> Result<fs::File, String> {
    let path = file.with_extension("lock");
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let held = fs::File::options().create(true).append(true).open(&path).map_err(failed)?;
    match held.try_lock() {
        Ok(()) => Ok(held),
        Err(fs::TryLockError::WouldBlock) => {
            let witness = file.with_extension("twice");
            fs::write(&witness, format!("{}\n", own_hostname()))
                .map_err(|error| format!("{}: {error}", witness.display()))?;
            Err(format!("{} is counted in by another process", file.display()))
        }
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn port(args: &mut Vec<String>) -> Result<u16, String> {
    match take_flag(args, "--port")? {
        Some(text) => text.parse().map_err(|_| format!("--port {text:?} is not in 1..=65535")),
        None => Ok(PORT_DEFAULT),
    }
}

async fn listen(port: u16, content: Content) -> Outcome {
    let content = Rc::new(content);
    let listener =
        TcpListener::bind(("0.0.0.0", port)).await.map_err(|e| format!("listen on port {port}: {e}"))?;
    println!("{} serves port {port}", own_hostname());
    let local = tokio::task::LocalSet::new();
    let accept = async {
        loop {
            // A refused accept (a client that left, no descriptors) concerns one connection only.
            let Ok((stream, _)) = listener.accept().await else { continue };
            let content = content.clone();
            tokio::task::spawn_local(async move {
                let answer = service_fn(|request| {
                    let content = content.clone();
                    async move { Ok::<_, std::convert::Infallible>(answer(&content, &request)) }
                });
                let served =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                if let Err(error) = served.await {
                    eprintln!("connection: {error}");
                }
            });
        }
    };
    local
        .run_until(async {
            tokio::select! {
                code = stopped_within(None) => Ok(code?.unwrap_or(ExitCode::SUCCESS)),
                never = accept => never,
            }
        })
        .await
}

fn answer(content: &Content, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let body = match content {
        Content::Text(text) => Ok(format!("{text}\n").into_bytes()),
        Content::Hostname => Ok(format!("{}\n", own_hostname()).into_bytes()),
        Content::Directory(dir) => read_beneath(dir, request.uri().path()),
        Content::Counter(file) => {
            count(file, request.uri().path()).map(|n| format!("{} {n}\n", own_hostname()).into_bytes())
        }
    };
    let (status, body) = match body {
        Ok(body) => (StatusCode::OK, body),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            (StatusCode::NOT_FOUND, format!("{error}\n").into_bytes())
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n").into_bytes()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

fn read_beneath(dir: &Path, path: &str) -> std::io::Result<Vec<u8>> {
    let relative = Path::new(path.trim_start_matches('/'));
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let file = dir.join(relative);
    if fs::metadata(&file)?.len() > FILE_BYTES_MAX {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    fs::read(file)
}

/// Counts one visit, durably, and returns the count; `/peek` reads without counting.
fn count(file: &Path, path: &str) -> std::io::Result<u64> {
    let before = match fs::read_to_string(file) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|_| std::io::Error::other(format!("{} holds no number", file.display())))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    if path == "/peek" {
        return Ok(before);
    }
    let fresh = file.with_extension("new");
    let mut out = fs::File::create(&fresh)?;
    writeln!(out, "{}", before + 1)?;
    out.sync_all()?;
    fs::rename(&fresh, file)?;
    if let Some(dir) = file.parent() {
        fs::File::open(dir)?.sync_all()?;
    }
    Ok(before + 1)
}

pub(super) fn fetch(args: &[String]) -> Outcome {
    let mut args = args.to_vec();
    let number = |text: Option<String>, default: u64| match text {
        Some(text) => text.parse::<u64>().map_err(|_| format!("{text:?} is not a number")),
        None => Ok(default),
    };
    let times = number(take_flag(&mut args, "--times")?, 1)?;
    let timeout = Duration::from_millis(number(take_flag(&mut args, "--timeout-ms")?, 5_000)?);
    let [url] = args.as_slice() else { return Err("takes one URL".into()) };
    block_on(async {
        for _ in 0..times {
            let (status, body) = tokio::time::timeout(timeout, get(url))
                .await
                .map_err(|_| format!("GET {url}: no answer within {} ms", timeout.as_millis()))??;
            std::io::stdout().write_all(&body).map_err(|e| format!("write to stdout: {e}"))?;
            if !status.is_success() {
                return Err(format!("GET {url}: {status}"));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// One GET over a new connection. Names are asked of DNS alone (NSS is not linked).
pub(crate) async fn get(url: &str) -> Result<(StatusCode, Bytes), String> {
    let uri: hyper::Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
    let host = uri.host().ok_or_else(|| format!("{url}: no host"))?;
    let address: std::net::IpAddr = match host.parse() {
        Ok(address) => address,
        Err(_) if host == "localhost" => std::net::Ipv4Addr::LOCALHOST.into(),
        Err(_) => {
            let name = host.to_owned();
            let asked = tokio::task::spawn_blocking(move || super::lookup::host(&name)).await;
            asked.map_err(|e| format!("{url}: {e}"))?.map_err(|e| format!("{url}: {e}"))?.into()
        }
    };
    let stream = TcpStream::connect((address, uri.port_u16().unwrap_or(80)))
        .await
        .map_err(|e| format!("connect to {url}: {e}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| format!("GET {url}: {e}"))?;
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(hyper::header::HOST, host)
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| format!("{url}: {e}"))?;
    let asked = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    // The connection must be driven while the answer is awaited; its own end is the answer's end.
    let driven = async {
        let (answer, _) = tokio::join!(asked, connection);
        answer
    };
    driven.await.map_err(|e| format!("GET {url}: {e}"))
}
