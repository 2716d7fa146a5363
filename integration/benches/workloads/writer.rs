//! The writer: one number after the other, and a line in its log for each that was acknowledged.
//!
//! It runs as a process of its own in the namespace that is the host to the yard, and ends when its stdin does. A
//! number whose answer was lost is written again until it is acknowledged: what the log holds is 1 to N without a gap.

use crate::store::{Store, Workload};
use integration::harness::{Yard, until};
use std::cell::{RefCell, RefMut};
use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most writes a second: what is written must be read back soon.
const PACE: Duration = Duration::from_millis(2);
/// How soon a refused connection is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// One acknowledged write. Times are microseconds of the machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// What was written.
    pub number: u64,
    /// When its last, successful attempt began.
    pub begun: u64,
    /// When the answer came.
    pub at: u64,
}

/// Now, on the clock of [`Ack`].
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
    u64::try_from(since.as_micros()).expect("the clock is before the year 500000")
}

/// Writes until stdin ends. The process that [`Writer::start`] starts.
pub fn write(workload: &Workload, address: &str, log: &str) {
    let address: SocketAddr = address.parse().expect("IP:PORT");
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("open the log");
    let ended = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Whoever started us holds the other end.
            let _ = std::io::stdin().read(&mut [0]);
            ended.store(true, Ordering::Relaxed);
        });
        let (mut number, mut store): (u64, Option<Box<dyn Store>>) = (1, None);
        while !ended.load(Ordering::Relaxed) {
            let begun = now();
            let outcome = match &mut store {
                Some(store) => store.put(number),
                None => (workload.open)(address).and_then(|mut opened| {
                    if number == 1 {
                        opened.prepare()?;
                    }
                    opened.put(number)?;
                    store = Some(opened);
                    Ok(())
                }),
            };
            match outcome {
                Ok(()) => {
                    writeln!(log, "{number} {begun} {}", now()).expect("write the log");
                    number += 1;
                    std::thread::sleep(PACE.saturating_sub(Duration::from_micros(now() - begun)));
                }
                Err(error) => {
                    store = None;
                    writeln!(log, "# {} {number}: {error}", now()).expect("write the log");
                    std::thread::sleep(RETRY);
                }
            }
        }
    });
}

/// Prints every number that one server has.
pub fn read(workload: &Workload, address: &str) {
    let mut store = (workload.open)(address.parse().expect("IP:PORT")).expect("connect");
    let all = store.all().expect("read everything back");
    let lines: String = all.iter().map(|number| format!("{number}\n")).collect();
    std::io::stdout().write_all(lines.as_bytes()).expect("print");
}

/// This program, as it is run in the namespace that is the host to the yard.
fn ourselves() -> String {
    std::env::current_exe().expect("our own path").to_string_lossy().into_owned()
}

/// What one pet has, read from itself.
pub fn read_from(yard: &Yard, workload: &Workload, pet: &str) -> Result<BTreeSet<u64>, String> {
    let pod = yard.get(&["pod", pet]).ok_or("the pod is gone")?;
    let address = format!("{}:{}", pod["status"]["podIP"].as_str().unwrap_or("none"), workload.port);
    let ran = yard.podyard(&["ns", "enter", "--host", "--", &ourselves(), "read", workload.name, &address]);
    if ran.code != 0 {
        return Err(ran.stderr);
    }
    ran.stdout.lines().map(|line| line.parse().map_err(|_| format!("read prints {line:?}"))).collect()
}

/// A running writer.
pub struct Writer {
    process: Child,
    log: PathBuf,
    seen: RefCell<Seen>,
}

/// What was read of the log so far.
#[derive(Default)]
struct Seen {
    bytes: u64,
    acks: Vec<Ack>,
    last_refusal: String,
}

impl Writer {
    /// Starts one that writes to the workload's Service, and waits for its first acknowledged write.
    pub fn start(yard: &Yard, workload: &Workload) -> Writer {
        let log = yard.dir().join(format!("written-{}.log", workload.name));
        let address = format!("{}:{}", yard.vip(workload.service), workload.port);
        let path = log.to_string_lossy().into_owned();
        let words = ["ns", "enter", "--host", "--", &ourselves(), "write", workload.name, &address, &path];
        let writer = Writer { process: yard.spawn(&words), log, seen: RefCell::default() };
        writer.progress(1);
        writer
    }

    /// Reads on, and answers what was seen so far.
    fn seen(&self) -> RefMut<'_, Seen> {
        let mut seen = self.seen.borrow_mut();
        let mut text = String::new();
        // The writer makes it with its first line.
        if let Ok(mut log) = std::fs::File::open(&self.log) {
            log.seek(SeekFrom::Start(seen.bytes)).expect("seek in the log");
            log.read_to_string(&mut text).expect("read the log");
        }
        // The last line may be half written.
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        seen.bytes += text.len() as u64;
        for line in text.lines() {
            if line.starts_with('#') {
                line.clone_into(&mut seen.last_refusal);
                continue;
            }
            let mut numbers = line.split(' ').map(|word| word.parse().expect("the log holds numbers"));
            let mut next = || numbers.next().expect("three of them");
            seen.acks.push(Ack { number: next(), begun: next(), at: next() });
        }
        seen
    }

    /// Waits for so many more acknowledged writes.
    pub fn progress(&self, count: usize) {
        let wanted = self.seen().acks.len() + count;
        until("writes are acknowledged", || {
            let seen = self.seen();
            let acks = seen.acks.len();
            if acks >= wanted { Ok(()) } else { Err(format!("{acks} of {wanted}; {}", seen.last_refusal)) }
        });
    }

    /// Waits for a write that began and was acknowledged after `moment`.
    pub fn progress_after(&self, moment: u64) {
        until("a write that began later is acknowledged", || {
            let seen = self.seen();
            let found = seen.acks.last().is_some_and(|ack| ack.begun >= moment);
            if found { Ok(()) } else { Err(seen.last_refusal.clone()) }
        });
    }

    /// The longest time without an acknowledged write since `moment`, and when it ended.
    pub fn longest_pause(&self, moment: u64) -> Pause {
        let seen = self.seen();
        let from = seen.acks.partition_point(|ack| ack.at < moment);
        let mut last = moment;
        let mut longest = Pause { length: Duration::ZERO, ended: moment };
        for ack in &seen.acks[from..] {
            let length = Duration::from_micros(ack.at - last);
            if length > longest.length {
                longest = Pause { length, ended: ack.at };
            }
            last = ack.at;
        }
        longest
    }

    /// Ends the writer; everything that was acknowledged.
    pub fn stop(mut self) -> BTreeSet<u64> {
        drop(self.process.stdin.take());
        self.process.wait().expect("reap the writer");
        let seen = self.seen();
        let numbers: BTreeSet<u64> = seen.acks.iter().map(|ack| ack.number).collect();
        assert!(numbers.iter().copied().eq(1..=seen.acks.len() as u64), "the writer leaves no gap");
        numbers
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // The yard is about to go; whatever it says no longer matters.
        let _ = self.process.wait();
    }
}

/// A time in which nothing was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// How long.
    pub length: Duration,
    /// When it ended.
    pub ended: u64,
}
