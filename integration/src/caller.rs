//! A client of one pet that never stops asking: every answer is a count that the pet has on its disk.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Given up then: a packet that was under way when its node died is lost for good.
const TIMEOUT: Duration = Duration::from_millis(100);
/// Between two requests: every answer costs the pet an fsync.
const PAUSE: Duration = Duration::from_millis(3);

/// What was answered.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When the last answer came, and its count.
    pub last: Option<(Instant, u64)>,
    /// Requests that were answered.
    pub answered: u64,
    /// The longest time between two answers since [`Caller::begin_gap`].
    pub gap: Duration,
    /// Answers whose count was not larger than one before: lost data.
    pub lost: Vec<String>,
}

/// Asks until it is ended.
pub struct Caller {
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Caller {
    /// Asks `address:80` from inside the network namespace pinned at `netns`.
    pub fn start(netns: PathBuf, address: Ipv4Addr) -> Caller {
        let (record, stop) = (Arc::new(Mutex::new(Record::default())), Arc::new(AtomicBool::new(false)));
        let (theirs, ended) = (Arc::clone(&record), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let namespace = netns::Namespace::open(&netns).expect("open the host's namespace");
            let asking = || {
                while !ended.load(Ordering::Relaxed) {
                    if let Some(count) = ask(SocketAddr::from((address, 80))) {
                        note(&theirs, count);
                    }
                    std::thread::sleep(PAUSE);
                }
            };
            namespace.run(asking).expect("enter the host's namespace");
        });
        Caller { record, stop, thread }
    }

    /// What is known now.
    pub fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the longest gap: what follows is measured anew.
    pub fn begin_gap(&self) {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).gap = Duration::ZERO;
    }

    /// Ends the asking. Panics if it could not ask.
    pub fn end(self) -> Record {
        self.stop.store(true, Ordering::Relaxed);
        let record = self.record();
        self.thread.join().expect("the caller asked to the end");
        record
    }
}

fn note(record: &Mutex<Record>, count: u64) {
    let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    if let Some((at, known)) = record.last {
        if count <= known {
            record.lost.push(format!("{count} was answered after {known}"));
        }
        record.gap = record.gap.max(now.duration_since(at));
    }
    record.answered += 1;
    record.last = Some((now, count));
}

/// The count that the pet answers; `None` for any failure, which is what is measured here.
fn ask(address: SocketAddr) -> Option<u64> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pet\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.strip_prefix("HTTP/1.1 200")?.split_whitespace().last()?.parse().ok()
}
