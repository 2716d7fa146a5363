//! The socket: made 0600, answered only to root and our own user, bounded in connections.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::handler::Answer;
use crate::identity::Identity;

/// Connections served at once; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 1024;

/// A client gets this long to send a request's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// Makes the API's socket, in a directory that exists and is only root's to write. Replaces a socket that
/// nobody answers on, and nothing else.
///
/// # Errors
/// `AddrInUse` if another daemon answers there or the path is not a socket.
///
/// Source: unix(7).
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{} is not a socket", path.display()),
            ));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            let taken = format!("a daemon answers on {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, taken));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Bound under another name and renamed, so that nobody ever sees it with wider permissions or not yet listening.
    let fresh = path.with_extension(format!("new.{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Serves until `shutdown` completes; connections open then are dropped.
///
/// # Cancellation
/// Dropping the future stops accepting; connections end with the runtime.
pub async fn serve<A: Answer>(listener: UnixListener, server: Arc<A>, shutdown: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = tokio::task::JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accept = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let server = Arc::clone(&server);
                tasks.spawn(async move {
                    connection(stream, server).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // EMFILE and the like: the connection stays in the backlog, so do not spin on it.
                warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tasks.abort_all();
}

async fn connection<A: Answer>(stream: UnixStream, server: Arc<A>) {
    if let Err(error) = check_peer(&stream) {
        warn!(%error, "refuse connection");
        return;
    }
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, std::convert::Infallible>(server.answer(Identity::Root, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        debug!(%error, "connection");
    }
}

/// The file mode already keeps others out; this also holds if someone widens it.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let own = std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own))?;
    if uid == 0 || uid == own {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("peer has uid {uid}")))
}
