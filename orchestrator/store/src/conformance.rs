//! What every store promises, run over both of them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Resource, resource_by_plural};
use futures::executor::block_on;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::{Commit, CommitError, Compacted, End, Event, EventKind, Expect, Limits, Op, Scope, Store};

pub(crate) fn pods() -> &'static Resource {
    resource_by_plural("", "pods").unwrap()
}

fn nodes() -> &'static Resource {
    resource_by_plural("", "nodes").unwrap()
}

pub(crate) fn key(name: &str) -> Key {
    Key::core("pods", "default", name)
}

pub(crate) fn put(key: &Key, text: &str, expect: Expect) -> Op {
    Op::Put { key: key.clone(), bytes: body(text), expect }
}

pub(crate) fn delete(key: &Key, expect: Expect) -> Op {
    Op::Delete { key: key.clone(), expect }
}

pub(crate) fn body(text: &str) -> Arc<[u8]> {
    format!(r#"{{"metadata":{{"name":"{text}"}}}}"#).into_bytes().into()
}

fn conflict(commit: Commit) -> (Key, Option<u64>) {
    match commit.wait() {
        Err(CommitError::Conflict { key, actual }) => (key, actual),
        other => panic!("{other:?} is no conflict"),
    }
}

/// Runs the suite. `make` gives an empty store whose history has these limits.
pub(crate) fn suite<S: Store>(make: &dyn Fn(Limits) -> S) {
    let new = || make(Limits::default());
    reads_its_writes(&new());
    expectations_are_checked(&new());
    transactions_are_atomic(&new());
    lists_are_ranges(&new());
    watches_have_no_gap_and_no_repetition(&new());
    watches_end(new());
    history_is_bounded(make);
    writers_race(Arc::new(new()));
    for seed in 0..20 {
        agrees_with_a_map(&new(), seed);
    }
}

fn reads_its_writes(store: &impl Store) {
    assert_eq!((store.revision(), store.get(&key("a"))), (0, None));
    let first = store.commit(vec![put(&key("a"), "one", Expect::Any)]).wait().unwrap();
    let record = store.get(&key("a")).unwrap();
    assert_eq!((record.revision, &record.bytes), (first, &body("one")));
    assert_eq!(record.object().resource_version(), Some(first));

    let second = block_on(store.commit(vec![put(&key("a"), "two", Expect::Revision(first))])).unwrap();
    assert!(second > first);
    assert_eq!(store.get(&key("a")).unwrap().bytes, body("two"));

    let third = store.commit(vec![delete(&key("a"), Expect::Any)]).wait().unwrap();
    assert!(third > second);
    assert_eq!((store.revision(), store.get(&key("a"))), (third, None));
    assert_eq!(
        store.commit(vec![delete(&key("a"), Expect::Any)]).wait(),
        Ok(third),
        "no change, no revision"
    );
    assert_eq!(store.commit(vec![]).wait(), Ok(third));
    drop(store.commit(vec![put(&key("dropped"), "", Expect::Any)]));
    assert_eq!(
        store.commit(vec![]).wait(),
        Ok(third + 1),
        "dropping the answer does not take the write back"
    );
}

fn expectations_are_checked(store: &impl Store) {
    let (a, b) = (key("a"), key("b"));
    let revision = store.commit(vec![put(&a, "", Expect::Absent)]).wait().unwrap();
    assert_eq!(conflict(store.commit(vec![put(&a, "", Expect::Absent)])), (a.clone(), Some(revision)));
    assert_eq!(conflict(store.commit(vec![put(&a, "", Expect::Revision(9))])), (a.clone(), Some(revision)));
    assert_eq!(conflict(store.commit(vec![put(&b, "", Expect::Revision(1))])), (b.clone(), None));
    assert_eq!(conflict(store.commit(vec![delete(&b, Expect::Revision(1))])), (b, None));
    assert_eq!(conflict(store.commit(vec![delete(&a, Expect::Absent)])), (a.clone(), Some(revision)));
    assert_eq!(store.revision(), revision);
    let check = |expect| Op::Check { key: a.clone(), expect };
    let guarded = vec![check(Expect::Revision(9)), put(&key("c"), "", Expect::Any)];
    assert_eq!(conflict(store.commit(guarded)), (a.clone(), Some(revision)));
    assert_eq!(store.commit(vec![check(Expect::Revision(revision))]).wait(), Ok(revision), "no change");
    assert_eq!(store.commit(vec![check(Expect::Present)]).wait(), Ok(revision));
    assert_eq!(conflict(store.commit(vec![put(&key("c"), "", Expect::Present)])), (key("c"), None));
    store.commit(vec![delete(&a, Expect::Revision(revision))]).wait().unwrap();
    assert!(store.commit(vec![put(&a, "", Expect::Absent)]).wait().unwrap() > revision);
}

fn transactions_are_atomic(store: &impl Store) {
    let (a, b) = (key("a"), key("b"));
    let refused =
        vec![put(&a, "", Expect::Absent), delete(&a, Expect::Any), put(&b, "", Expect::Revision(3))];
    assert_eq!(conflict(store.commit(refused)), (b.clone(), None));
    assert_eq!((store.revision(), store.get(&a)), (0, None));

    // Operations see those before them, and each has its own revision.
    let mut watch = store.watch(Scope::default(), 0).unwrap();
    let last = store
        .commit(vec![
            put(&a, "1", Expect::Absent),
            put(&a, "2", Expect::Revision(1)),
            put(&b, "", Expect::Any),
        ])
        .wait()
        .unwrap();
    assert_eq!((last, store.get(&a).unwrap().revision, store.get(&b).unwrap().revision), (3, 2, 3));
    let told: Vec<_> =
        std::iter::from_fn(|| watch.try_next()).map(|event| (event.revision, event.kind)).collect();
    assert_eq!(told, [(1, EventKind::Created), (2, EventKind::Updated), (3, EventKind::Created)]);
}

fn lists_are_ranges(store: &impl Store) {
    let keys = [
        Key::core("pods", "a", "z"),
        Key::core("pods", "b", "a"),
        Key::core("pods", "b", "b"),
        Key::core("pods", "b-c", "a"),
    ];
    let node = Key::core("nodes", "", "node-0");
    for key in keys.iter().chain([&node]) {
        store.commit(vec![put(key, "", Expect::Absent)]).wait().unwrap();
    }
    let names = |resource, namespace| {
        let (revision, records) = store.list(resource, namespace);
        assert_eq!(revision, 5);
        records.into_iter().map(|record| record.key).collect::<Vec<_>>()
    };
    assert_eq!(names(pods(), None), keys);
    assert_eq!(names(pods(), Some("b")), keys[1..3]);
    assert_eq!(names(pods(), Some("c")), []);
    assert_eq!(names(nodes(), None), [node]);
    assert_eq!(names(resource_by_plural("", "services").unwrap(), None), []);
}

fn watches_have_no_gap_and_no_repetition(store: &impl Store) {
    let (a, b) = (key("a"), Key::core("pods", "other", "b"));
    let one = store.commit(vec![put(&a, "1", Expect::Any)]).wait().unwrap();
    let mut all = store.watch(Scope::default(), 0).unwrap();
    let mut live = store.watch(Scope::default(), one).unwrap();
    let mut other =
        store.watch(Scope { resource: Some(pods()), namespace: Some("other".into()) }, 0).unwrap();
    let mut wrong = store.watch(Scope { resource: Some(nodes()), namespace: None }, 0).unwrap();
    let two = store.commit(vec![put(&a, "2", Expect::Any)]).wait().unwrap();
    let three = store.commit(vec![put(&b, "", Expect::Any)]).wait().unwrap();
    let four = store.commit(vec![delete(&a, Expect::Any)]).wait().unwrap();

    let drain = |watch: &mut crate::Watch| std::iter::from_fn(|| watch.try_next()).collect::<Vec<Event>>();
    let events = drain(&mut all);
    let told: Vec<_> = events.iter().map(|event| (event.revision, event.kind)).collect();
    use EventKind::{Created, Deleted, Updated};
    assert_eq!(told, [(one, Created), (two, Updated), (three, Created), (four, Deleted)]);
    assert_eq!(events[1].previous.as_ref().unwrap().bytes, body("1"));
    assert_eq!((&events[3].record.bytes, events[3].record.revision), (&body("2"), four));
    assert_eq!(events[3].previous.as_ref().unwrap().revision, two);
    assert_eq!(drain(&mut live), events[1..]);
    assert_eq!(drain(&mut other), events[2..3]);
    assert_eq!(drain(&mut wrong), []);
    assert_eq!(wrong.revision(), four, "what is out of scope counts as told");
    assert_eq!(drain(&mut store.watch(Scope::default(), two).unwrap()), events[2..]);
    assert_eq!(store.watch(Scope::default(), 99).unwrap_err(), Compacted { since: 99, oldest: four });

    // A list and a watch from its revision meet exactly.
    let (revision, _) = store.list(pods(), None);
    let mut after = store.watch(Scope::default(), revision).unwrap();
    assert_eq!(after.try_next(), None);
    store.commit(vec![put(&a, "3", Expect::Any)]).wait().unwrap();
    assert_eq!(block_on(after.next()).unwrap().revision, revision + 1);
}

fn watches_end(store: impl Store) {
    let mut watch = store.watch(Scope::default(), 0).unwrap();
    store.commit(vec![put(&key("a"), "", Expect::Any)]).wait().unwrap();
    let waiter = std::thread::spawn(move || {
        let told = [block_on(watch.next()).is_some(), block_on(watch.next()).is_some()];
        (told, watch.end(), watch.try_next())
    });
    drop(store);
    assert_eq!(waiter.join().unwrap(), ([true, false], Some(End::Closed), None));
}

fn history_is_bounded<S: Store>(make: &dyn Fn(Limits) -> S) {
    for limits in [Limits { events_max: 4, bytes_max: 1 << 20 }, Limits { events_max: 1000, bytes_max: 2000 }]
    {
        let store = make(limits);
        let mut slow = store.watch(Scope::default(), 0).unwrap();
        for _ in 0..20 {
            store.commit(vec![put(&key("a"), "some bytes", Expect::Any)]).wait().unwrap();
        }
        assert_eq!(slow.try_next(), None);
        assert!(matches!(slow.end(), Some(End::Lagged(Compacted { since: 0, .. }))));
        let Compacted { oldest, .. } = store.watch(Scope::default(), 0).unwrap_err();
        assert!(store.watch(Scope::default(), oldest - 1).is_err());
        let mut rest = store.watch(Scope::default(), oldest).unwrap();
        assert_eq!(rest.try_next().unwrap().revision, oldest + 1);
        assert!(20 - oldest >= 1 && 20 - oldest <= 4 + 6, "{oldest}");
    }
}

fn writers_race(store: Arc<impl Store>) {
    let counter = key("counter");
    store.commit(vec![put(&counter, "0", Expect::Absent)]).wait().unwrap();
    let mut watch = store.watch(Scope::default(), 1).unwrap();
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (store, counter) = (Arc::clone(&store), counter.clone());
            std::thread::spawn(move || {
                for _ in 0..25 {
                    loop {
                        let record = store.get(&counter).unwrap();
                        let count: u32 = record.object().name().parse().unwrap();
                        let next =
                            vec![put(&counter, &(count + 1).to_string(), Expect::Revision(record.revision))];
                        match store.commit(next).wait() {
                            Ok(revision) => break assert!(store.revision() >= revision),
                            Err(CommitError::Conflict { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for count in 1..=100 {
        let event = block_on(watch.next()).unwrap();
        assert_eq!(event.record.object().name(), count.to_string());
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert_eq!(watch.try_next(), None);
}

/// Random transactions against a map of (revision, text).
fn agrees_with_a_map(store: &impl Store, seed: u64) {
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut model: BTreeMap<Key, (u64, String)> = BTreeMap::new();
    let mut revision = 0;
    let mut told = 0;
    let mut watch = store.watch(Scope::default(), 0).unwrap();
    for step in 0..100 {
        let transaction = random_transaction(&mut rng, &model, step);
        let expected = model_commit(&mut model, &mut revision, &transaction);
        let answer = store.commit(transaction).wait();
        match (&answer, &expected) {
            (Ok(one), Ok(other)) => assert_eq!(one, other),
            (Err(CommitError::Conflict { key, actual }), Err(other)) => {
                assert_eq!((key.clone(), *actual), *other)
            }
            _ => panic!("seed {seed} step {step}: {answer:?}, expected {expected:?}"),
        }
        while let Some(event) = watch.try_next() {
            told += 1;
            assert_eq!(event.revision, told, "seed {seed}: every revision is told once");
        }
        let found: BTreeMap<_, _> = store
            .list(pods(), None)
            .1
            .into_iter()
            .map(|it| (it.key.clone(), (it.revision, it.object().name().to_owned())))
            .collect();
        assert_eq!(found, model, "seed {seed} step {step}");
        assert_eq!((store.revision(), told), (revision, revision), "seed {seed} step {step}");
    }
}

pub(crate) fn random_transaction(
    rng: &mut SmallRng,
    model: &BTreeMap<Key, (u64, String)>,
    step: u32,
) -> Vec<Op> {
    let length = rng.random_range(1..4);
    let op = || {
        let key =
            Key::core("pods", ["a", "b"][rng.random_range(0..2)], ["x", "y", "z"][rng.random_range(0..3)]);
        let expect = match rng.random_range(0..5) {
            4 => Expect::Present,
            0 => Expect::Absent,
            1 => Expect::Revision(model.get(&key).map_or(0, |it| it.0)),
            _ => Expect::Any,
        };
        if rng.random_bool(0.3) { delete(&key, expect) } else { put(&key, &format!("n{step}"), expect) }
    };
    std::iter::repeat_with(op).take(length).collect()
}

fn model_commit(
    model: &mut BTreeMap<Key, (u64, String)>,
    revision: &mut u64,
    transaction: &[Op],
) -> Result<u64, (Key, Option<u64>)> {
    let (mut draft, mut last) = (model.clone(), *revision);
    for op in transaction {
        let actual = draft.get(op.key()).map(|it| it.0);
        if !op.expect().holds(actual) {
            return Err((op.key().clone(), actual));
        }
        match op {
            Op::Put { key, bytes, .. } => {
                last += 1;
                let name = serde_json::from_slice::<serde_json::Value>(bytes).unwrap()["metadata"]["name"]
                    .as_str()
                    .unwrap()
                    .to_owned();
                draft.insert(key.clone(), (last, name));
            }
            Op::Delete { key, .. } => {
                if draft.remove(key).is_some() {
                    last += 1;
                }
            }
            Op::Check { .. } => {}
        }
    }
    (*model, *revision) = (draft, last);
    Ok(last)
}
