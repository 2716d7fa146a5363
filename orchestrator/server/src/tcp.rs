//! Connections over TCP: known by a token, bounded so that strangers take no room from nodes.
//!
//! ```text
//!   accepted ── a slot free? ──no──► closed at once
//!      │ of its address, where somebody with a token lives; of all strangers together otherwise
//!      ▼
//!   5 s to send a request with a token ──late──► closed
//!      │ no or wrong token: 401, closed
//!      ▼
//!   served, request by request, until the token is revoked
//! ```
//! Packets from pods reach the port: the token is all there is. It travels as it is, over links that live in this
//! host's kernel and that only root can listen on. Who takes an address of a node cannot take its slots: TCP needs the
//! answers, and these go to the node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{Error, Kind};
use futures::future::BoxFuture;
use hyper::header::{CONNECTION, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::handler::Answer;
use crate::identity::{Door, bearer};
use crate::respond::error_response;

/// Connections of all strangers together.
const STRANGERS_MAX: usize = 64;

/// Connections from one address where somebody with a token lives.
const PER_ADDRESS_MAX: usize = 256;

/// Time to send the first request with a token, and any further head.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// Silence after which the kernel asks a peer for signs of life; three unanswered, this far apart, end the connection.
const SILENCE: Duration = Duration::from_secs(20);

/// Serves until `shutdown` completes; connections open then are dropped.
///
/// # Cancellation
/// Dropping the future stops accepting and ends all connections.
pub async fn serve_tcp<A: Answer>(
    listener: TcpListener,
    server: Arc<A>,
    door: Arc<dyn Door>,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Slots::default();
    let mut tasks = tokio::task::JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let address = peer.ip().to_canonical();
                let known = door.is_expected_from(address).then_some(address);
                // Not told in the log: a flood shall not fill the disk either.
                let Some(slot) = slots.take(known) else { continue };
                let (server, door) = (Arc::clone(&server), Arc::clone(&door));
                tasks.spawn(async move {
                    connection(stream, server, door).await;
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

async fn connection<A: Answer>(stream: TcpStream, server: Arc<A>, door: Arc<dyn Door>) {
    if let Err(error) = tune(&stream) {
        debug!(%error, "tune connection");
    }
    let (shown, is_shown) = oneshot::channel::<BoxFuture<'static, ()>>();
    let shown = Mutex::new(Some(shown));
    let service = service_fn(|request| {
        let identity = bearer(request.headers()).and_then(|token| {
            let identity = door.identify(token)?;
            let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(shown) = shown.take() {
                // Nobody waits for it any more if the time was over just now: the connection ends.
                let _ = shown.send(door.revoked(token));
            }
            Some(identity)
        });
        let server = &server;
        async move {
            Ok::<_, std::convert::Infallible>(match identity {
                Some(identity) => server.answer(identity, request).await,
                None => unauthorized(),
            })
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let over = async {
        match tokio::time::timeout(HEAD_DEADLINE, is_shown).await {
            Ok(Ok(revoked)) => revoked.await,
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => {}
        }
    };
    tokio::select! {
        served = served => if let Err(error) = served { debug!(%error, "connection") },
        () = over => debug!("connection: no token in time, or revoked"),
    }
}

/// The connection ends with it: who guesses pays for a connection each time.
fn unauthorized() -> hyper::Response<crate::Body> {
    let mut response = error_response(&Error::new(Kind::Unauthorized, "Unauthorized"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Small answers at once; and a peer that vanished gives its slot back. There is no `TCP_USER_TIMEOUT`: it would also
/// end the streams of those who read slowly. Source: tcp(7).
fn tune(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE)?;
    sockopt::set_tcp_keepcnt(stream, 3)
}

/// How many connections there are, by known address; `None` for strangers. What is empty has no entry.
#[derive(Clone, Default)]
struct Slots(Arc<Mutex<BTreeMap<Option<IpAddr>, usize>>>);

struct Slot {
    slots: Slots,
    of: Option<IpAddr>,
}

impl Slots {
    fn take(&self, of: Option<IpAddr>) -> Option<Slot> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(of).or_default();
        let max = if of.is_some() { PER_ADDRESS_MAX } else { STRANGERS_MAX };
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Slot { slots: self.clone(), of })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_take_no_room_from_nodes() {
        let slots = Slots::default();
        let node = Some("10.244.1.1".parse().unwrap());
        let strangers: Vec<_> = std::iter::from_fn(|| slots.take(None)).collect();
        assert_eq!(strangers.len(), STRANGERS_MAX);
        let of_node: Vec<_> = std::iter::from_fn(|| slots.take(node)).collect();
        assert_eq!(of_node.len(), PER_ADDRESS_MAX);
        drop(strangers);
        assert!(slots.take(None).is_some() && slots.take(node).is_none());
        drop(of_node);
        assert!(slots.0.lock().unwrap().is_empty());
    }
}
