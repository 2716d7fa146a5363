//! What the log costs: `cargo run --release -p store --example measure [DIR]`. The directory should be on a real disk.

use std::path::Path;
use std::time::Instant;

use api::Key;
use store::{Expect, Log, Op, Store};

const OBJECTS: usize = 10_000;

/// A number from a file of /proc, by its label.
fn proc_number(file: &str, label: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(label)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

fn bytes_written() -> u64 {
    proc_number("/proc/self/io", "write_bytes:")
}

fn put(n: usize) -> Op {
    let bytes = format!(r#"{{"metadata":{{"name":"p{n}"}},"spec":"{}"}}"#, "x".repeat(1760));
    Op::Put {
        key: Key::core("pods", "default", format!("p{}", n % OBJECTS)),
        bytes: bytes.into_bytes().into(),
        expect: Expect::Any,
    }
}

fn measure(what: &str, commits: usize, run: impl FnOnce()) {
    let (before, start) = (bytes_written(), Instant::now());
    run();
    let per_second = commits as f64 / start.elapsed().as_secs_f64();
    let bytes = (bytes_written() - before) as f64 / commits as f64;
    println!("{what}: {per_second:.0} commits/s, {bytes:.0} bytes written per commit");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "/var/tmp/podyard-store-measure".to_owned());
    let store = Log::open(Path::new(&directory))?;
    for start in (0..OBJECTS).step_by(100) {
        store.commit((start..start + 100).map(put).collect()).wait()?;
    }
    measure("1 writer", 1000, || {
        (0..1000).for_each(|n| drop(store.commit(vec![put(n * 7919)]).wait()));
    });
    measure("16 writers", 1600, || {
        std::thread::scope(|scope| {
            for writer in 0..16 {
                let store = &store;
                scope.spawn(move || {
                    (0..100).for_each(|n| drop(store.commit(vec![put(writer * 100 + n)]).wait()))
                });
            }
        });
    });
    let before = bytes_written();
    std::thread::sleep(std::time::Duration::from_secs(2));
    println!("2 s idle: {} bytes written", bytes_written() - before);
    println!("resident: {} kB for {OBJECTS} objects", proc_number("/proc/self/status", "VmRSS:"));
    drop(store);
    let start = Instant::now();
    let store = Log::open(Path::new(&directory))?;
    println!("open: {:?}, {:?}", start.elapsed(), store.opened());
    drop(store);
    std::fs::remove_dir_all(directory)?;
    Ok(())
}
