//! Names of the rest of the world: asked of the host's nameservers, or of another node's server.
//!
//! ```text
//!  request ─► flight (one per question) ─► upstreams in turn: UDP, then TCP if it was cut ─► answer to all who asked
//!                                            └─ first use: a probe with a name that only we know
//! ```
//! **Loops.** A nameserver that asks us again would multiply one question without end. It cannot here: the same question is
//! never asked twice at a time, so what comes back joins the flight it came from. And it is found out: whoever sees our
//! probe tells [`Forwarder::seen`], the upstream is refused with a warning, and tried again after [`LOOP_RETRY`] or when the
//! nameservers change.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use netns::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

use crate::message::{PAYLOAD_MAX, Request};

/// Time for everything; the C libraries wait five seconds.
const DEADLINE: Duration = Duration::from_secs(4);

/// Time for one upstream to answer.
const ATTEMPT: Duration = Duration::from_millis(1200);

/// How long an upstream that did not answer is asked after the others.
const REST: Duration = Duration::from_secs(5);

/// When an upstream that is a loop is tried again.
pub const LOOP_RETRY: Duration = Duration::from_secs(30);

/// Questions under way at once: each holds a socket and some kilobytes.
const FLIGHTS_MAX: usize = 256;

const HEADER_LEN: usize = 12;

/// Where to ask from.
#[derive(Debug)]
pub enum Place {
    /// The namespace of this process.
    Here,
    /// Another one.
    Inside(Namespace),
}

/// Asks upstreams.
#[derive(Debug)]
pub struct Forwarder {
    place: Place,
    /// Where we listen ourselves.
    own: Vec<SocketAddr>,
    upstreams: RwLock<Arc<[Arc<Upstream>]>>,
    flights: Mutex<HashMap<Flight, watch::Receiver<Option<Landed>>>>,
    room: Arc<Semaphore>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody to ask.
    NoUpstream,
    /// All there are would ask us.
    Loop,
    /// Nobody answered in time.
    Silence,
    /// Too many questions at once.
    Busy,
}

type Landed = Result<Arc<[u8]>, Failure>;

/// What makes two questions the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flight {
    /// Name in lower case, type, class: as they stand in a message.
    question: Vec<u8>,
    recursion_desired: bool,
    checking_disabled: bool,
    dnssec_ok: Option<bool>,
}

#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    proof: watch::Sender<Proof>,
    rests_until: Mutex<Option<Instant>>,
}

/// Whether an upstream asks us what we ask it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Proof {
    Unknown,
    /// A probe with this name is under way.
    Probing(Name),
    Sound,
    /// It is a loop, or was when last looked at.
    Loop(Instant),
    /// Its address is ours.
    Own,
}

impl Place {
    /// The place that `namespace` is, without a detour if it is this process' own.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn of(namespace: Namespace) -> netns::Result<Place> {
        let here = Namespace::current()?.inode()? == namespace.inode()?;
        Ok(if here { Place::Here } else { Place::Inside(namespace) })
    }

    async fn udp(&self, upstream: SocketAddr) -> io::Result<UdpSocket> {
        let any: SocketAddr = match upstream.ip() {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = match self {
            Place::Here => std::net::UdpSocket::bind(any)?,
            Place::Inside(namespace) => namespace.udp(any)?,
        };
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        // Connected: only this upstream is heard, and its kernel's refusal as well.
        socket.connect(upstream).await?;
        Ok(socket)
    }

    async fn tcp(&self, upstream: SocketAddr) -> io::Result<TcpStream> {
        match (self, upstream) {
            (Place::Inside(namespace), _) => namespace.connect(upstream).await,
            (Place::Here, SocketAddr::V4(_)) => TcpSocket::new_v4()?.connect(upstream).await,
            (Place::Here, SocketAddr::V6(_)) => TcpSocket::new_v6()?.connect(upstream).await,
        }
    }
}

impl Forwarder {
    /// Asks nobody yet. `own`: where we listen ourselves, never to be asked.
    pub fn new(place: Place, own: Vec<SocketAddr>) -> Arc<Forwarder> {
        Arc::new(Forwarder {
            place,
            own,
            upstreams: RwLock::new(Arc::new([])),
            flights: Mutex::default(),
            room: Arc::new(Semaphore::new(FLIGHTS_MAX)),
        })
    }

    /// Asks these from now on, in this order. What is known of those that stay is kept.
    pub fn set_upstreams(&self, addresses: &[SocketAddr]) {
        let mut upstreams = self.upstreams.write().unwrap_or_else(PoisonError::into_inner);
        let known = |address| upstreams.iter().find(|it| it.address == address && !it.is_loop()).cloned();
        *upstreams = addresses
            .iter()
            .map(|&address| known(address).unwrap_or_else(|| Arc::new(Upstream::new(address, &self.own))))
            .collect();
    }

    /// Whom it asks.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.list().iter().map(|upstream| upstream.address).collect()
    }

    /// To be told of every name that is asked of us before it is asked elsewhere. True: it is our own probe come back; the
    /// upstream it was sent to is refused from now on.
    pub fn seen(&self, name: &Name, asked: RecordType) -> bool {
        // The form of a probe, so that other names cost nothing.
        if asked != RecordType::HINFO || name.num_labels() != 2 {
            return false;
        }
        self.list().iter().any(|upstream| {
            let ours = upstream.proof.send_if_modified(|proof| {
                let ours = matches!(proof, Proof::Probing(token) if token == name);
                if ours {
                    *proof = Proof::Loop(Instant::now() + LOOP_RETRY);
                }
                ours
            });
            if ours {
                warn!(nameserver = %upstream.address,
                    "the nameserver asks us what we ask it: a loop; it is not asked again until that changes");
            }
            ours
        })
    }

    /// Another server's answer to a request: whole, with the number of somebody else's request.
    ///
    /// # Errors
    /// Why there is none; never later than [`DEADLINE`] allows.
    ///
    /// # Cancellation
    /// The question goes on for others who asked the same.
    pub async fn ask(self: &Arc<Self>, request: &Request) -> Landed {
        let Some(flight) = Flight::of(request) else { return Err(Failure::Silence) };
        let mut landed = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            match flights.get(&flight) {
                Some(landed) => landed.clone(),
                None => {
                    let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| Failure::Busy)?;
                    let (tell, landed) = watch::channel(None);
                    flights.insert(flight.clone(), landed.clone());
                    let leader = Leader { forwarder: Arc::clone(self), flight };
                    tokio::spawn(async move {
                        let outcome = leader.forwarder.fly(&leader.flight).await;
                        drop(leader);
                        tell.send_replace(Some(outcome));
                        drop(room);
                    });
                    landed
                }
            }
        };
        match landed.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(Failure::Silence)),
            Err(_) => Err(Failure::Silence),
        }
    }

    fn list(&self) -> Arc<[Arc<Upstream>]> {
        Arc::clone(&self.upstreams.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks one after the other, and again, until one answers.
    async fn fly(&self, flight: &Flight) -> Landed {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let rounds = async {
            let mut excuse = None;
            loop {
                let list = self.list();
                if list.is_empty() {
                    return Err(Failure::NoUpstream);
                }
                let mut order: Vec<&Arc<Upstream>> = list.iter().collect();
                order.sort_by_key(|upstream| upstream.rests());
                let (mut sound, begun) = (false, tokio::time::Instant::now());
                for upstream in order {
                    match self.attempt(upstream, flight).await {
                        Ok(answer) if !is_excuse(&answer) => return Ok(answer),
                        Ok(answer) => {
                            sound = true;
                            excuse = Some(answer);
                        }
                        Err(Failure::Loop) => {}
                        Err(_) => sound = true,
                    }
                }
                match excuse {
                    // They did answer: that they cannot help.
                    Some(answer) => return Ok(answer),
                    None if !sound => return Err(Failure::Loop),
                    // A kernel's refusal comes at once; that is no reason to ask as fast.
                    None => tokio::time::sleep_until(begun + ATTEMPT).await,
                }
            }
        };
        tokio::time::timeout_at(deadline, rounds).await.unwrap_or(Err(Failure::Silence))
    }

    async fn attempt(&self, upstream: &Arc<Upstream>, flight: &Flight) -> Landed {
        if !upstream.may_be_asked() {
            return Err(Failure::Loop);
        }
        let mut proof = upstream.proof.subscribe();
        let asking = async {
            tokio::join!(self.probe(upstream), async {
                match tokio::time::timeout(ATTEMPT, exchange(&self.place, upstream.address, flight)).await {
                    Ok(Ok(answer)) => {
                        upstream.set_rest(None);
                        Ok(answer)
                    }
                    failed => {
                        debug!(nameserver = %upstream.address, ?failed, "no answer");
                        upstream.set_rest(Some(Instant::now() + REST));
                        Err(Failure::Silence)
                    }
                }
            })
            .1
        };
        tokio::select! {
            biased;
            _ = proof.wait_for(|proof| matches!(proof, Proof::Loop(_))) => Err(Failure::Loop),
            answer = asking => answer,
        }
    }

    /// Starts to find out whether an upstream leads back to us, if that is not known. Does not wait for it.
    async fn probe(&self, upstream: &Arc<Upstream>) {
        let token = format!("{:016x}.{:016x}.", rand::random::<u64>(), rand::random::<u64>());
        let Ok(name) = Name::from_ascii(&token) else { return };
        let Some(flight) = Flight::probe(&name) else { return };
        let mine = upstream.proof.send_if_modified(|proof| {
            let unknown = *proof == Proof::Unknown;
            if unknown {
                *proof = Proof::Probing(name.clone());
            }
            unknown
        });
        if !mine {
            return;
        }
        // Sent from here, awaited elsewhere: the first question shall not wait for the probe's answer.
        let place = match &self.place {
            Place::Here => Place::Here,
            Place::Inside(namespace) => match namespace.try_clone() {
                Ok(namespace) => Place::Inside(namespace),
                Err(error) => return warn!(%error, "probe a nameserver"),
            },
        };
        let upstream = Arc::clone(upstream);
        tokio::spawn(async move {
            let answer = tokio::time::timeout(ATTEMPT, exchange(&place, upstream.address, &flight)).await;
            upstream.proof.send_if_modified(|proof| {
                // Seen meanwhile, or asked anew: not ours to say.
                if *proof == Proof::Probing(name) {
                    *proof = if matches!(answer, Ok(Ok(_))) { Proof::Sound } else { Proof::Unknown };
                }
                true
            });
        });
    }
}

/// Takes its flight off the list when it ends, however it ends.
struct Leader {
    forwarder: Arc<Forwarder>,
    flight: Flight,
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.forwarder.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.flight);
    }
}

impl Upstream {
    fn new(address: SocketAddr, own: &[SocketAddr]) -> Upstream {
        let proof = if own.contains(&address) {
            warn!(nameserver = %address, "the nameserver is ourselves: it is not asked");
            Proof::Own
        } else {
            Proof::Unknown
        };
        Upstream { address, proof: watch::Sender::new(proof), rests_until: Mutex::default() }
    }

    fn is_loop(&self) -> bool {
        matches!(*self.proof.borrow(), Proof::Loop(_) | Proof::Own)
    }

    /// A loop is looked at again after a while.
    fn may_be_asked(&self) -> bool {
        self.proof.send_if_modified(|proof| {
            let over = matches!(proof, Proof::Loop(until) if *until <= Instant::now());
            if over {
                *proof = Proof::Unknown;
            }
            over
        });
        !self.is_loop()
    }

    fn rests(&self) -> bool {
        let until = *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| until > Instant::now())
    }

    /// One that does not answer may have become a loop.
    fn set_rest(&self, until: Option<Instant>) {
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        if until.is_some() {
            self.proof.send_if_modified(|proof| {
                let sound = *proof == Proof::Sound;
                if sound {
                    *proof = Proof::Unknown;
                }
                sound
            });
        }
    }
}

impl Flight {
    fn of(request: &Request) -> Option<Flight> {
        Some(Flight {
            question: question(&request.question.name, request.question.query_type)?,
            recursion_desired: request.recursion_desired,
            checking_disabled: request.checking_disabled,
            dnssec_ok: request.dnssec_ok,
        })
    }

    fn probe(name: &Name) -> Option<Flight> {
        let question = question(name, RecordType::HINFO)?;
        Some(Flight { question, recursion_desired: true, checking_disabled: false, dnssec_ok: None })
    }

    /// The message that asks.
    fn message(&self, id: u16) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER_LEN + self.question.len() + 11);
        message.extend(id.to_be_bytes());
        message.push(u8::from(self.recursion_desired));
        message.push(u8::from(self.checking_disabled) << 4);
        message.extend([0, 1, 0, 0, 0, 0, 0, u8::from(self.dnssec_ok.is_some())]);
        message.extend(&self.question);
        if let Some(dnssec_ok) = self.dnssec_ok {
            let [high, low] = PAYLOAD_MAX.to_be_bytes();
            message.extend([0, 0, 41, high, low, 0, 0, u8::from(dnssec_ok) << 7, 0, 0, 0]);
        }
        message
    }

    /// Whether `message` answers what was asked under `id`.
    fn is_answered_by(&self, message: &[u8], id: u16) -> bool {
        let end = HEADER_LEN + self.question.len();
        let Some(question) = message.get(HEADER_LEN..end) else { return false };
        let (name, kind) = question.split_at(self.question.len() - 4);
        let (own_name, own_kind) = self.question.split_at(self.question.len() - 4);
        message[..2] == id.to_be_bytes()
            && message[2] & 0x80 != 0
            && message[4..6] == [0, 1]
            && name.eq_ignore_ascii_case(own_name)
            && kind == own_kind
    }
}

/// Name in lower case, type, class IN.
fn question(name: &Name, asked: RecordType) -> Option<Vec<u8>> {
    let mut bytes = name.to_lowercase().to_bytes().ok()?;
    bytes.extend(u16::from(asked).to_be_bytes());
    bytes.extend([0, 1]);
    Some(bytes)
}

/// SERVFAIL or REFUSED: another may know better.
fn is_excuse(message: &[u8]) -> bool {
    matches!(message.get(3).map(|flags| flags & 0x0f), Some(2 | 5))
}

/// One question and its whole answer.
async fn exchange(place: &Place, upstream: SocketAddr, flight: &Flight) -> io::Result<Arc<[u8]>> {
    let socket = place.udp(upstream).await?;
    let id = rand::random();
    let message = flight.message(id);
    socket.send(&message).await?;
    let mut buffer = vec![0; 4096];
    let answer = loop {
        let length = socket.recv(&mut buffer).await?;
        // Whoever guesses at our port is not listened to.
        if flight.is_answered_by(&buffer[..length], id) {
            break &buffer[..length];
        }
    };
    if answer[2] & 0x02 == 0 {
        return Ok(answer.into());
    }
    let mut stream = place.tcp(upstream).await?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message.as_slice()].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if flight.is_answered_by(&answer, id) {
        Ok(answer.into())
    } else {
        Err(io::Error::other("an answer to another question"))
    }
}
