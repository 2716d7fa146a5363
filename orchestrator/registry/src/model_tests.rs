//! Random verbs from several threads, and what must be true of the world after each round.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;

use api::{Key, Object, Part, RESOURCES};
use futures::executor::block_on;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use store::{Log, Memory, Record, Scope, Store};

use crate::index::{Index, pod_address, service_address};
use crate::tests::{claim_json, now, pod_json, resource, service_json};
use crate::*;

const NAMESPACES: [&str; 3] = ["default", "a", "b"];
const NAMES: [&str; 4] = ["w", "x", "y", "z"];

fn config() -> Config {
    Config {
        clock: Box::new(now),
        service_cidr: "10.9.0.0/28".parse().unwrap(),
        events_max: 10,
        ..Config::default()
    }
}

/// One random verb. What is refused is part of the game; that the rest is consistent is what counts.
fn act<S: Store>(registry: &Registry<S>, rng: &mut SmallRng, gone_by_word: &Mutex<HashSet<String>>) {
    let namespace = NAMESPACES[rng.random_range(0..3)];
    let name = NAMES[rng.random_range(0..4)];
    let pod = Key::core("pods", namespace, name);
    let options = WriteOptions::default();
    let create = |plural: &str, namespace: &str, value: Value| {
        drop(block_on(registry.create(resource(plural), namespace, value, &options)));
    };
    let merge = |key: &Key, patch: Value, part| {
        drop(block_on(registry.patch(key, PatchKind::Merge, &patch, part, &options)));
    };
    let some_key = |rng: &mut SmallRng| match rng.random_range(0..4) {
        0 => Key::core("services", namespace, name),
        1 => Key::core("persistentvolumeclaims", namespace, name),
        2 => Key::core("namespaces", "", namespace),
        _ => pod.clone(),
    };
    match rng.random_range(0..14) {
        0 | 1 => {
            let mut value = pod_json(name);
            if rng.random_bool(0.5) {
                value["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": NAMES[rng.random_range(0..4)]}}]);
            }
            if rng.random_bool(0.2) {
                value["metadata"]["finalizers"] = json!(["example.com/keep"]);
            }
            create("pods", namespace, value);
        }
        2 => create("services", namespace, service_json(name, rng.random_bool(0.3).then_some("10.9.0.5"))),
        3 => create("persistentvolumeclaims", namespace, claim_json(name)),
        4 => create(
            "namespaces",
            "",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        ),
        5 => {
            let about = json!({"kind": "Pod", "namespace": namespace, "name": name});
            let value = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"generateName": "e-"},
                "reason": "Test", "involvedObject": about});
            create("events", namespace, value);
        }
        6..8 => {
            let address = [10, 0, 0, rng.random_range(1..6)].into();
            drop(block_on(registry.bind(&pod, None, "node-0", Some(address))));
        }
        8 => {
            let phase = ["Running", "Succeeded", "Failed"][rng.random_range(0..3)];
            merge(&pod, json!({"status": {"phase": phase}}), Part::Status);
        }
        9 => {
            let theft = format!("10.0.0.{}", rng.random_range(1..6));
            merge(&pod, json!({"status": {"podIP": theft}}), Part::Status);
        }
        10 => {
            let Ok(object) = registry.get(&pod) else { return };
            gone_by_word.lock().unwrap().insert(object.uid().to_owned());
            let uid = Some(object.uid().to_owned());
            let word = DeleteOptions { grace_period_secs: Some(0), uid, ..DeleteOptions::default() };
            drop(block_on(registry.delete(&pod, &word)));
        }
        11 => merge(&some_key(rng), json!({"metadata": {"finalizers": null}}), Part::Main),
        12 => {
            let propagation = [None, Some(Propagation::Foreground)][rng.random_range(0..2)];
            let grace_period_secs = [None, Some(0), Some(3)][rng.random_range(0..3)];
            let options = DeleteOptions { propagation, grace_period_secs, ..DeleteOptions::default() };
            drop(block_on(registry.delete(&some_key(rng), &options)));
        }
        _ => {
            let plural = ["pods", "services", "persistentvolumeclaims"][rng.random_range(0..3)];
            let (list, options) = (ListOptions::default(), DeleteOptions::default());
            drop(block_on(registry.delete_collection(resource(plural), Some(namespace), &list, &options)));
        }
    }
}

fn objects<S: Store>(registry: &Registry<S>, plural: &str) -> Vec<Object> {
    registry.list(resource(plural), None, &ListOptions::default()).unwrap().objects().collect()
}

fn check<S: Store>(registry: &Registry<S>, seed: u64) {
    let unique = |addresses: Vec<std::net::IpAddr>| {
        let count = addresses.len();
        assert_eq!(
            addresses.into_iter().collect::<HashSet<_>>().len(),
            count,
            "seed {seed}: an address twice"
        );
    };
    let pods = objects(registry, "pods");
    unique(pods.iter().filter_map(pod_address).collect());
    unique(objects(registry, "services").iter().filter_map(service_address).collect());
    assert!(objects(registry, "events").len() <= 10 + 4, "seed {seed}: one more for each thread at most");

    let namespaces: HashSet<String> =
        objects(registry, "namespaces").iter().map(|it| it.name().to_owned()).collect();
    for resource in RESOURCES.iter().filter(|it| it.namespaced && it.stored_as.is_none()) {
        for record in registry.list(resource, None, &ListOptions::default()).unwrap().items {
            assert!(
                namespaces.contains(&record.key.namespace),
                "seed {seed}: {} has no namespace",
                record.key
            );
            assert_eq!(record.object().key(), record.key, "seed {seed}");
        }
    }
    for object in pods.iter().chain(&objects(registry, "services")) {
        let is_left_over = object.is_deleting() && object.finalizers().is_empty();
        let is_awaited = object.kind() == "Pod" && object.deletion_grace_period_secs() != Some(0);
        assert!(!is_left_over || is_awaited, "seed {seed}: {object:?} waits for nothing");
    }
    let is_true = registry.index(|index| index.agrees(&Index::new(registry.store())));
    assert!(is_true, "seed {seed}: the index has lost its way");
}

/// The watch's tale, told again, must be the list.
fn replay(told: &mut BTreeMap<Key, Record>, watch: &mut store::Watch, seed: u64, by_word: &HashSet<String>) {
    while let Some(event) = watch.try_next() {
        assert_eq!(told.get(&event.record.key), event.previous.as_ref(), "seed {seed}");
        if event.kind == store::EventKind::Deleted {
            let object = event.record.object();
            if object.kind() == "Pod" && object.get_str("spec.nodeName").is_some() {
                assert!(
                    by_word.contains(object.uid()),
                    "seed {seed}: {} went without its agent",
                    event.record.key
                );
            }
            told.remove(&event.record.key);
        } else {
            told.insert(event.record.key.clone(), event.record);
        }
    }
    assert_eq!(watch.end(), None);
}

fn play<S: Store>(store: S, seed: u64, threads: u64) {
    println!("seed {seed}");
    let mut watch = store.watch(Scope::default(), 0).unwrap();
    let registry = block_on(Registry::open(store, config())).unwrap();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-0"}});
    block_on(registry.create(resource("nodes"), "", node, &WriteOptions::default())).unwrap();
    let (mut told, by_word) = (BTreeMap::new(), Mutex::new(HashSet::new()));
    for round in 0..10 {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (registry, by_word) = (&registry, &by_word);
                scope.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(seed * 1000 + round * 10 + thread);
                    (0..40).for_each(|_| act(registry, &mut rng, by_word));
                });
            }
        });
        check(&registry, seed);
        replay(&mut told, &mut watch, seed, &by_word.lock().unwrap());
        for plural in ["pods", "services", "persistentvolumeclaims", "events", "namespaces"] {
            let list = registry.list(resource(plural), None, &ListOptions::default()).unwrap().items;
            let told: Vec<_> =
                told.values().filter(|it| it.key.resource == resource(plural)).cloned().collect();
            assert_eq!(list, told, "seed {seed}: {plural}");
        }
    }
}

#[test]
fn the_world_stays_consistent() {
    for seed in 0..30 {
        play(Memory::new(), seed, 1);
    }
}

#[test]
fn the_world_stays_consistent_under_races() {
    for seed in 0..10 {
        play(Memory::new(), seed, 4);
    }
}

#[test]
fn the_world_stays_consistent_on_disk_and_after_reopening() {
    let root = tempfile::tempdir().unwrap();
    play(Log::open(root.path()).unwrap(), 1, 4);
    let store = Log::open(root.path()).unwrap();
    store.check().unwrap();
    let registry = block_on(Registry::open(store, config())).unwrap();
    check(&registry, 1);
}

/// Runs `act` on four threads that start together. On disk a commit takes long enough for decisions to overlap.
fn race<T: Send>(act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        let start = |n| {
            let (barrier, act) = (&barrier, &act);
            scope.spawn(move || {
                barrier.wait();
                act(n)
            })
        };
        let threads: Vec<_> = (0..4).map(start).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

fn on_disk() -> (tempfile::TempDir, Registry<Log>) {
    let root = tempfile::tempdir().unwrap();
    let registry = block_on(Registry::open(Log::open(root.path()).unwrap(), config())).unwrap();
    (root, registry)
}

fn create(
    registry: &Registry<Log>,
    plural: &str,
    namespace: &str,
    value: Value,
) -> Result<Object, api::Error> {
    let options = WriteOptions::default();
    let created = registry.create(resource(plural), namespace, value, &options);
    block_on(created).map(|it| it.object)
}

#[test]
fn one_of_four_racing_pods_gets_the_address() {
    let (_root, registry) = on_disk();
    for round in 1..40 {
        let address = [10, 0, 0, round].into();
        let bound = race(|n| {
            let name = format!("p{round}-{n}");
            create(&registry, "pods", "default", pod_json(&name)).unwrap();
            block_on(registry.bind(&Key::core("pods", "default", name), None, "node-0", Some(address)))
                .is_ok()
        });
        assert_eq!(bound.iter().filter(|it| **it).count(), 1, "round {round}: {bound:?}");
    }
}

#[test]
fn one_of_four_racing_services_gets_the_address() {
    let (_root, registry) = on_disk();
    for round in 0..40 {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("n{round}")}});
        create(&registry, "namespaces", "", namespace).unwrap();
        let created = race(|n| {
            let service = service_json(&format!("s{n}"), Some("10.9.0.5"));
            create(&registry, "services", &format!("n{round}"), service).ok()
        });
        let winners: Vec<_> = created.into_iter().flatten().collect();
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        block_on(registry.delete(&winners[0].key(), &DeleteOptions::default())).unwrap();
    }
}

#[test]
fn nothing_outlives_its_namespace() {
    let (_root, registry) = on_disk();
    for round in 0..60 {
        let name = format!("n{round}");
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let key = create(&registry, "namespaces", "", namespace).unwrap().key();
        race(|n| match n {
            0 => {
                let is_gone =
                    || block_on(registry.delete(&key, &DeleteOptions::default())).is_ok_and(|it| it.is_gone);
                while !is_gone() {
                    let (list, options) = (ListOptions::default(), DeleteOptions::default());
                    let emptied = registry.delete_collection(resource("pods"), Some(&name), &list, &options);
                    block_on(emptied).unwrap();
                }
            }
            _ => (0..20).for_each(|i| drop(create(&registry, "pods", &name, pod_json(&format!("p{n}-{i}"))))),
        });
        check(&registry, round);
    }
}
