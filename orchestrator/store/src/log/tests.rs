//! Crashes, faults and damage. The promises common to every store are in `conformance`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use api::Key;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::fake::{FakeDisk, Fault};
use super::*;
use crate::conformance::{self, delete, key, pods, put};
use crate::{CommitError, Expect};

/// Little, so that compactions happen all the time.
const GARBAGE: u64 = 10_000;

/// Text by key.
type Model = BTreeMap<Key, String>;

fn open(disk: &FakeDisk) -> Result<Log, OpenError> {
    Log::open_on(Box::new(disk.clone()), Limits::default(), GARBAGE)
}

fn model_of(store: &impl Store) -> Model {
    let records = store.list(pods(), None).1.into_iter();
    records.map(|record| (record.key.clone(), record.object().name().to_owned())).collect()
}

#[test]
fn conforms() {
    conformance::suite(&|limits| Log::open_on(Box::new(FakeDisk::default()), limits, GARBAGE).unwrap());
}

#[test]
fn conforms_in_a_directory() {
    let root = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    conformance::suite(&|limits| {
        count.set(count.get() + 1);
        let directory = root.path().join(format!("deep/{}", count.get()));
        Log::open_on(Box::new(lock(&directory).unwrap()), limits, GARBAGE).unwrap()
    });
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let root = tempfile::tempdir().unwrap();
    let store = Log::open(root.path()).unwrap();
    store
        .commit(vec![put(&key("a"), "1", Expect::Absent), put(&key("b"), "2", Expect::Absent)])
        .wait()
        .unwrap();
    let gone = store.commit(vec![delete(&key("b"), Expect::Any)]).wait().unwrap();
    assert_eq!(store.check().unwrap().records, 1);
    drop(store.commit(vec![put(&key("queued"), "3", Expect::Any)]));
    drop(store);

    let store = Log::open(root.path()).unwrap();
    assert_eq!(model_of(&store).into_values().collect::<Vec<_>>(), ["1", "3"]);
    assert_eq!((store.opened().revision, store.opened().torn_bytes), (gone + 1, 0));
    // Watches go on across a restart.
    let mut watch = store.watch(Scope::default(), gone).unwrap();
    assert_eq!(watch.try_next().unwrap().record.key, key("queued"));
    assert_eq!(store.commit(vec![put(&key("b"), "4", Expect::Absent)]).wait(), Ok(gone + 2));
}

#[test]
fn a_store_has_one_owner() {
    let root = tempfile::tempdir().unwrap();
    let store = Log::open(root.path()).unwrap();
    assert!(matches!(Log::open(root.path()), Err(OpenError::Locked)));
    assert!(matches!(check(root.path()), Err(OpenError::Locked)));
    drop(store);
    assert_eq!(check(root.path()).unwrap().records, 0);
    drop(Log::open(root.path()).unwrap());
}

#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("store");
    drop(Log::open(&directory).unwrap());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&directory.join("log.1"))), (0o700, 0o600));
}

/// A store with some history: after each commit, the length of the segment and what it must hold.
fn written() -> (FakeDisk, Vec<(usize, u64, Model)>) {
    let disk = FakeDisk::default();
    let store = open(&disk).unwrap();
    let mut marks = vec![(disk.bytes("log.1").len(), 0, Model::new())];
    let mut rng = SmallRng::seed_from_u64(1);
    for step in 0..30 {
        let transaction = conformance::random_transaction(&mut rng, &BTreeMap::new(), step);
        let _ = store.commit(transaction).wait();
        marks.push((disk.bytes("log.1").len(), store.revision(), model_of(&store)));
    }
    (disk, marks)
}

#[test]
fn cut_anywhere_acknowledged_writes_survive() {
    let (disk, marks) = written();
    let bytes = disk.bytes("log.1");
    for cut in 0..=bytes.len() {
        let disk = FakeDisk::with_file("log.1", &bytes[..cut]);
        let Some((len, revision, model)) = marks.iter().rev().find(|mark| mark.0 <= cut) else {
            assert!(matches!(open(&disk), Err(OpenError::Corrupt { offset: 0, .. })), "cut at {cut}");
            continue;
        };
        let store = open(&disk).unwrap();
        assert_eq!((model_of(&store), store.revision()), (model.clone(), *revision), "cut at {cut}");
        assert_eq!(store.opened().torn_bytes, (cut - len) as u64);
        assert_eq!(store.check().unwrap().bytes, *len as u64);
        let next = store.commit(vec![put(&key("next"), "next", Expect::Any)]).wait().unwrap();
        drop(store);
        assert_eq!(open(&disk).unwrap().revision(), next, "cut at {cut}: it goes on");
    }
}

#[test]
fn damage_anywhere_is_refused_or_was_the_last_write() {
    let (disk, marks) = written();
    let bytes = disk.bytes("log.1");
    let last_start = marks.iter().rev().find(|mark| mark.0 < bytes.len()).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x15;
        let disk = FakeDisk::with_file("log.1", &damaged);
        match open(&disk) {
            Err(OpenError::Corrupt { offset, .. }) => {
                let frame = marks.iter().rev().map(|mark| mark.0 as u64).find(|it| *it <= at as u64);
                assert_eq!(offset, frame.unwrap_or(0), "damage at {at} is named");
                assert_eq!(disk.bytes("log.1"), damaged, "a refused store is not changed");
            }
            Err(error) => panic!("{error}"),
            Ok(store) => {
                assert!(at >= last_start.0, "damage at {at} of {} went unseen", bytes.len());
                assert_eq!(model_of(&store), last_start.2);
            }
        }
    }
}

#[test]
fn junk_is_refused_or_cut_off_and_never_believed() {
    let (disk, marks) = written();
    let bytes = disk.bytes("log.1");
    for seed in 0..500 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut junk = bytes.clone();
        for _ in 0..rng.random_range(1..8) {
            let (from, to) = (rng.random_range(0..junk.len()), rng.random_range(0..junk.len()));
            match rng.random_range(0..3) {
                0 => junk[from] = rng.random(),
                1 => drop(junk.drain(from.min(to)..from.max(to).min(from.min(to) + 50))),
                _ => {
                    let copied = junk[from..(from + 50).min(junk.len())].to_vec();
                    junk.splice(to..to, copied).for_each(drop);
                }
            }
        }
        if let Ok(store) = open(&FakeDisk::with_file("log.1", &junk)) {
            let found = (store.revision(), model_of(&store));
            let is_known = marks.iter().any(|(_, revision, model)| (*revision, model) == (found.0, &found.1));
            assert!(is_known, "seed {seed}: a state that never was");
        }
    }
}

#[test]
fn another_version_is_not_touched() {
    let start = frame::frame(b"podyard-log 2 revision 0 records 0\n");
    assert!(matches!(open(&FakeDisk::with_file("log.1", &start)), Err(OpenError::Corrupt { .. })));
    let mut unknown = frame::frame(&frame::encode_start(0, 0));
    unknown.extend(frame::frame(b"put 1 gizmos.example.com/a/b 2\n{}\n"));
    match open(&FakeDisk::with_file("log.1", &unknown)) {
        Err(OpenError::UnknownResource { resource, .. }) => assert_eq!(resource, "gizmos.example.com"),
        other => panic!("{other:?}"),
    }
}

/// Commits until the fault has hit and some more, checking every answer; returns what must be there, and what may.
fn commit_through_a_fault(disk: &FakeDisk, store: &Log, seed: u64) -> (Model, Vec<(Key, String)>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut model, mut unknown) = (model_of(store), Vec::new());
    for step in 0..40 {
        let key = key(["a", "b", "c"][rng.random_range(0..3)]);
        // Large enough that compactions happen on the way.
        let text = format!("{step}-{}", "x".repeat(900));
        let before = (store.revision(), model_of(store));
        match store.commit(vec![put(&key, &text, Expect::Any)]).wait() {
            Ok(_) => drop(model.insert(key, text)),
            Err(error) => {
                assert!(disk.is_hit(), "seed {seed}: {error}");
                assert_eq!((store.revision(), model_of(store)), before, "nothing is half-applied");
                if matches!(error, CommitError::Storage(_)) {
                    unknown.push((key, text));
                }
            }
        }
        assert_eq!(model_of(store), model, "seed {seed}: what is visible is what was acknowledged");
    }
    assert_eq!(store.failure().is_some(), !unknown.is_empty());
    (model, unknown)
}

#[test]
fn every_call_may_fail_and_nothing_acknowledged_is_lost() {
    for fault in [Fault::FullOnce, Fault::ErrorOnce, Fault::Broken] {
        for step in 1.. {
            let disk = FakeDisk::default();
            let store = open(&disk).unwrap();
            disk.fail_at(step, fault);
            let (model, unknown) = commit_through_a_fault(&disk, &store, step);
            if fault == Fault::FullOnce {
                assert!(unknown.len() < 40, "a disk that was full for a moment takes writes again");
            }
            drop(store);
            if !disk.is_hit() {
                assert!(step > 80, "{step} steps only: the workload has shrunk");
                break;
            }
            disk.fail_at(u64::MAX, fault);
            let mut rng = SmallRng::seed_from_u64(step);
            for disk in [disk.after_power_cut(&mut rng), disk] {
                let found =
                    model_of(&open(&disk).unwrap_or_else(|error| panic!("{fault:?} at {step}: {error}")));
                for (key, text) in &found {
                    let is_known = model.get(key) == Some(text)
                        || unknown.iter().any(|(other, it)| (other, it) == (key, text));
                    assert!(is_known, "{fault:?} at {step}: {key}");
                }
                assert!(model.keys().all(|key| found.contains_key(key)), "{fault:?} at {step}");
                if unknown.is_empty() {
                    assert_eq!(found, model, "{fault:?} at {step}");
                }
            }
        }
    }
}

#[test]
fn opening_may_fail_at_every_call_and_be_tried_again() {
    let (written, marks) = written();
    let torn = &written.bytes("log.1")[..marks[29].0 + 5];
    for old in [None, Some(torn)] {
        for step in 1.. {
            let disk = old.map_or_else(FakeDisk::default, |bytes| FakeDisk::with_file("log.1", bytes));
            disk.fail_at(step, Fault::ErrorOnce);
            let first = open(&disk).map(drop);
            assert_eq!(first.is_err(), disk.is_hit(), "step {step}");
            if !disk.is_hit() {
                break;
            }
            assert_eq!(open(&disk).unwrap().revision(), old.map_or(0, |_| marks[29].1));
        }
    }
}

#[test]
fn a_power_cut_keeps_what_was_acknowledged() {
    for seed in 0..200 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut disk = FakeDisk::default();
        let (mut model, mut revision) = (Model::new(), 0);
        for life in 0..4 {
            let store = open(&disk).unwrap_or_else(|error| panic!("seed {seed} life {life}: {error}"));
            let found = model_of(&store);
            assert!(model.iter().all(|(key, text)| found.get(key) == Some(text)), "seed {seed} life {life}");
            assert!(store.revision() >= revision, "revisions never go back");
            for n in 0..rng.random_range(1..10) {
                let (key, text) =
                    (key(&format!("{life}-{n}")), format!("{n}{}", "x".repeat(rng.random_range(0..2000))));
                revision = store.commit(vec![put(&key, &text, Expect::Any)]).wait().unwrap();
                model.insert(key, text);
            }
            // Some more that nobody waits for.
            let waiting: Vec<_> = (0..rng.random_range(0..5))
                .map(|n| store.commit(vec![put(&key(&format!("w{n}")), "unacknowledged", Expect::Any)]))
                .collect();
            let after = disk.after_power_cut(&mut rng);
            drop((waiting, store));
            disk = after;
        }
    }
}

#[test]
fn the_segment_is_bounded_by_what_lives() {
    let disk = FakeDisk::default();
    let store = open(&disk).unwrap();
    let text = "x".repeat(10_000);
    for n in 0..1000 {
        store.commit(vec![put(&key(&format!("k{}", n % 20)), &text, Expect::Any)]).wait().unwrap();
        let newest = newest_segment(&disk).unwrap().unwrap();
        let live = 20 * 10_100;
        assert!(disk.bytes(&segment_name(newest)).len() < 2 * live + 10_000 + 20_000);
    }
    // The last compaction may be under way: a check waits for it.
    let report = store.check().unwrap();
    assert_eq!((report.records, report.revision), (20, 1000));
    assert!(newest_segment(&disk).unwrap().unwrap() > 5);
    assert_eq!(disk.names().unwrap().len(), 1, "old segments are removed");
    drop(store);
    let store = open(&disk).unwrap();
    assert_eq!(store.revision(), 1000);
    assert!(store.watch(Scope::default(), 1).is_err(), "the history starts at the snapshot");
}

#[test]
fn compaction_goes_on_beside_readers_and_writers() {
    let root = tempfile::tempdir().unwrap();
    let store = Log::open(root.path()).unwrap();
    let mut watch = store.watch(Scope::default(), 0).unwrap();
    let text = "x".repeat(20_000);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (store, text) = (&store, &text);
            scope.spawn(move || {
                for n in 0..100 {
                    let key = key(&format!("{writer}-{}", n % 5));
                    store.commit(vec![put(&key, &format!("{n}{text}"), Expect::Any)]).wait().unwrap();
                    assert!(store.get(&key).unwrap().object().name().starts_with(&n.to_string()));
                }
            });
        }
        for expected in 1..=400 {
            match futures::executor::block_on(watch.next()) {
                Some(event) => assert_eq!(event.revision, expected),
                None => break, // Slower than the history is long: allowed, and said.
            }
        }
    });
    assert_eq!(store.check().unwrap().records, 20);
    assert!(std::fs::read_dir(root.path()).unwrap().count() <= 2, "one segment and the lock");
    assert!(!root.path().join("log.1").exists());
}

#[test]
fn idle_means_idle() {
    let root = tempfile::tempdir().unwrap();
    let store = Log::open(root.path()).unwrap();
    store.commit(vec![put(&key("a"), "1", Expect::Any)]).wait().unwrap();
    let stat =
        || std::fs::metadata(root.path().join("log.1")).map(|it| (it.len(), it.modified().unwrap())).unwrap();
    let before = stat();
    // Reads, refused writes and writes of nothing touch no disk.
    store.commit(vec![put(&key("a"), "2", Expect::Absent)]).wait().unwrap_err();
    store.commit(vec![delete(&key("none"), Expect::Any)]).wait().unwrap();
    store.list(pods(), None);
    drop(store);
    assert_eq!(stat(), before);
    drop(Log::open(root.path()).unwrap());
    assert_eq!(stat(), before, "nor does opening a store that was closed well");
}

#[test]
fn names_that_would_break_the_format_are_refused() {
    let store = open(&FakeDisk::default()).unwrap();
    for name in ["a b", "a\nput", "a/b", "\u{85}"] {
        let answer = store.commit(vec![put(&key(name), "", Expect::Any)]).wait();
        assert!(matches!(answer, Err(CommitError::Refused(_))), "{name:?}: {answer:?}");
    }
}

const CHILD: &str = "PODYARD_STORE_CRASH_CHILD";

/// The body of [`killed_at_any_instant`]'s child: writes for ever and says what was acknowledged.
#[test]
fn crash_child() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    let store = Log::open(Path::new(&directory)).unwrap();
    let text = "x".repeat(3000);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (store, text) = (&store, &text);
            scope.spawn(move || {
                for n in 0.. {
                    let name = format!("{writer}-{}", n % 50);
                    let revision = store
                        .commit(vec![put(&key(&name), &format!("{n}{text}"), Expect::Any)])
                        .wait()
                        .unwrap();
                    println!("\nacknowledged {revision} {name} {n}");
                }
            });
        }
    });
}

#[test]
fn killed_at_any_instant() {
    let root = tempfile::tempdir().unwrap();
    let mut rng = SmallRng::seed_from_u64(std::process::id().into());
    let (mut newest, mut lives) = (BTreeMap::<String, u64>::new(), 0);
    let deadline = Instant::now() + Duration::from_secs(3);
    while lives < 8 || (lives < 30 && Instant::now() < deadline) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "log::tests::crash_child", "--nocapture"])
            .env(CHILD, root.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The kill comes after a random number of acknowledgements, wherever the writer is by then.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for count in 0..2000 {
            if count == rng.random_range(5..400) {
                break;
            }
            note(&mut newest, &lines.next().unwrap().unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lines.for_each(|line| note(&mut newest, &line.unwrap()));
        let report = check(root.path()).unwrap();
        let store = Log::open(root.path()).unwrap();
        assert_eq!(report.revision, store.revision());
        for (name, revision) in &newest {
            let found = store.get(&key(name)).unwrap_or_else(|| panic!("{name} is lost")).revision;
            assert!(found >= *revision, "{name} went back from {revision} to {found}");
        }
        lives += 1;
    }
    println!("{lives} lives, {} keys", newest.len());
}

fn note(newest: &mut BTreeMap<String, u64>, line: &str) {
    let words: Vec<_> = line.split(' ').collect();
    if let ["acknowledged", revision, name, _] = words[..] {
        let revision: u64 = revision.parse().unwrap();
        let known = newest.entry(name.to_owned()).or_default();
        *known = revision.max(*known);
    }
}
