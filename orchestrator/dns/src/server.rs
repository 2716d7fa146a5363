//! The loops at the sockets. Names of ours are answered on the spot; a task is made only to ask elsewhere, and there are
//! never more than [`ASKS_MAX`] of them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::Record;
use netns::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

use crate::forward::Forwarder;
use crate::message::{self, Outcome, Request, Transport};
use crate::names::Names;

/// Requests by UDP that wait for an upstream; more are refused.
const ASKS_MAX: usize = 1024;

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;

/// How long a connection may say nothing, or not take its answer.
const IDLE: Duration = Duration::from_secs(5);

/// The longest request that makes sense; a datagram beyond it is cut and refused.
const REQUEST_MAX: usize = 4096;

/// Where requests come in.
#[derive(Debug)]
pub struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

/// Who answers.
#[derive(Clone, Debug)]
pub struct Server {
    /// Our names.
    pub names: Arc<Names>,
    /// Everybody else's.
    pub forwarder: Arc<Forwarder>,
}

impl Sockets {
    /// Takes the address inside a namespace, for UDP and TCP. Port 0: any, the same for both.
    ///
    /// # Errors
    /// `EADDRINUSE`, or `EADDRNOTAVAIL` while no link has the address.
    pub fn bind(namespace: &Namespace, address: SocketAddr) -> io::Result<Sockets> {
        let tcp = namespace.listen(address)?;
        let udp = namespace.udp(tcp.local_addr()?)?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        Ok(Sockets { udp, tcp })
    }

    /// The address they have.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// Answers at all sockets until one of them fails.
///
/// # Errors
/// The failure of a socket.
///
/// # Cancellation
/// Dropping the future closes the sockets; whoever waits for an answer gets none.
pub async fn serve(server: Server, sockets: Vec<Sockets>) -> io::Result<()> {
    let mut loops = JoinSet::new();
    for Sockets { udp, tcp } in sockets {
        loops.spawn(datagrams(server.clone(), UdpSocket::from_std(udp)?));
        loops.spawn(connections(server.clone(), TcpListener::from_std(tcp)?));
    }
    match loops.join_next().await {
        Some(ended) => ended.map_err(io::Error::other)?,
        None => Ok(()),
    }
}

impl Server {
    fn look(&self, message: &[u8], transport: Transport, turn: usize) -> Outcome {
        match message::answer(&self.names.zone(), message, transport, turn) {
            Outcome::Ask(request)
                if self.forwarder.seen(&request.question.name, request.question.query_type) =>
            {
                Outcome::Reply(request.refuse(ResponseCode::Refused))
            }
            outcome => outcome,
        }
    }

    /// The answer to what is to be asked elsewhere.
    async fn finish(&self, request: Request, alias: Option<Box<Record>>) -> Vec<u8> {
        let outcome = match &alias {
            None => self.forwarder.ask(&request).await.map(|answer| request.relay(&answer)),
            Some(alias) => self.chase(&request, alias).await,
        };
        outcome.unwrap_or_else(|failure| {
            debug!(name = %request.question.name, ?failure, "not answered");
            request.refuse(ResponseCode::ServFail)
        })
    }

    async fn chase(&self, request: &Request, alias: &Record) -> Result<Vec<u8>, crate::forward::Failure> {
        let unreadable = || Ok(request.refuse(ResponseCode::ServFail));
        let Some(target) = message::alias_target(alias) else { return unreadable() };
        let mut second = request.clone();
        second.question = Query::query(target.clone(), request.question.query_type);
        let answer = self.forwarder.ask(&second).await?;
        let Ok(answer) = Message::from_vec(&answer) else { return unreadable() };
        let mut reply = request.reply(answer.metadata.response_code);
        reply.answers = std::iter::once(alias.clone()).chain(answer.answers).collect();
        Ok(request.write(reply))
    }
}

async fn datagrams(server: Server, socket: UdpSocket) -> io::Result<()> {
    let socket = Arc::new(socket);
    let room = Arc::new(Semaphore::new(ASKS_MAX));
    let mut asks = JoinSet::new();
    let mut buffer = vec![0; REQUEST_MAX];
    let mut turn = 0_usize;
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await?;
        while asks.try_join_next().is_some() {}
        turn = turn.wrapping_add(1);
        let (request, alias) = match server.look(&buffer[..length], Transport::Udp, turn) {
            Outcome::Silence => continue,
            Outcome::Reply(reply) => {
                send(&socket, &reply, client).await;
                continue;
            }
            Outcome::Ask(request) => (request, None),
            Outcome::Chase(request, alias) => (request, Some(alias)),
        };
        let Ok(room) = Arc::clone(&room).try_acquire_owned() else {
            send(&socket, &request.refuse(ResponseCode::ServFail), client).await;
            continue;
        };
        let (server, socket) = (server.clone(), Arc::clone(&socket));
        asks.spawn(async move {
            let reply = server.finish(request, alias).await;
            send(&socket, &reply, client).await;
            drop(room);
        });
    }
}

/// A client that cannot be reached any more is no trouble of ours.
async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        debug!(%client, %error, "send an answer");
    }
}

async fn connections(server: Server, listener: TcpListener) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        let room = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, client) = match listener.accept().await {
            // It was gone before we came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            accepted => accepted?,
        };
        let server = server.clone();
        open.spawn(async move {
            if let Err(error) = connection(server, stream).await {
                debug!(%client, %error, "a connection ends");
            }
            drop(room);
        });
    }
}

/// Requests one after the other, each behind its length. Source: RFC 7766, 8.
async fn connection(server: Server, mut stream: TcpStream) -> io::Result<()> {
    let mut turn = usize::from(rand::random::<u16>());
    loop {
        let request = tokio::time::timeout(IDLE, async {
            let mut request = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut request).await?;
            Ok::<_, io::Error>(request)
        });
        let Ok(request) = request.await else { return Ok(()) };
        let request = match request {
            // The client is done.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            request => request?,
        };
        turn += 1;
        let reply = match server.look(&request, Transport::Tcp, turn) {
            Outcome::Silence => return Ok(()),
            Outcome::Reply(reply) => reply,
            Outcome::Ask(request) => server.finish(request, None).await,
            Outcome::Chase(request, alias) => server.finish(request, Some(alias)).await,
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await.map_err(io::Error::other)??;
    }
}
