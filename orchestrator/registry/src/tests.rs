//! The rules, one test each.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use api::{
    Error, FieldSelector, Key, Kind, LabelSelector, Object, Part, Resource, Timestamp, resource_by_plural,
};
use futures::executor::block_on;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use store::{Memory, Record, Store};

use crate::*;

type Fixture = Registry<Memory>;

static SECONDS: AtomicI64 = AtomicI64::new(1_800_000_000);

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(SECONDS.load(Ordering::Relaxed)).unwrap()
}

fn registry() -> Fixture {
    with(|_| {})
}

fn with(change: impl FnOnce(&mut Config)) -> Fixture {
    let mut config =
        Config { clock: Box::new(now), rng: Box::new(StdRng::seed_from_u64(7)), ..Config::default() };
    change(&mut config);
    let registry = block_on(Registry::open(Memory::new(), config)).unwrap();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-0"}});
    create_in(&registry, "nodes", "", node).unwrap();
    registry
}

pub(crate) fn resource(plural: &str) -> &'static Resource {
    ["", "apps", "storage.k8s.io"].iter().find_map(|group| resource_by_plural(group, plural)).unwrap()
}

pub(crate) fn pod_json(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "image": "podyard.local/toolbox"}]}})
}

pub(crate) fn claim_json(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec":
        {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
}

pub(crate) fn service_json(name: &str, ip: Option<&str>) -> Value {
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    if let Some(ip) = ip {
        service["spec"]["clusterIP"] = ip.into();
    }
    service
}

fn create_in(registry: &Fixture, plural: &str, namespace: &str, value: Value) -> Result<Object, Error> {
    block_on(registry.create(resource(plural), namespace, value, &WriteOptions::default()))
        .map(|it| it.object)
}

fn create(registry: &Fixture, plural: &str, value: Value) -> Object {
    create_in(registry, plural, "default", value).unwrap()
}

fn update(registry: &Fixture, object: &Object, part: Part) -> Result<Object, Error> {
    let options = WriteOptions::default();
    block_on(registry.update(&object.key(), object.0.clone(), part, &options)).map(|it| it.object)
}

fn merge(registry: &Fixture, key: &Key, patch: Value, part: Part) -> Result<Object, Error> {
    let options = WriteOptions::default();
    block_on(registry.patch(key, PatchKind::Merge, &patch, part, &options)).map(|it| it.object)
}

fn delete(registry: &Fixture, key: &Key, options: DeleteOptions) -> Result<Deleted, Error> {
    block_on(registry.delete(key, &options))
}

fn plainly(registry: &Fixture, key: &Key) -> Deleted {
    delete(registry, key, DeleteOptions::default()).unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> Kind {
    result.unwrap_err().kind()
}

fn pod_key(name: &str) -> Key {
    Key::core("pods", "default", name)
}

fn bind(registry: &Fixture, name: &str, node: &str, ip: &str) -> Result<Object, Error> {
    block_on(registry.bind(&pod_key(name), None, node, Some(ip.parse().unwrap()))).map(|it| it.object)
}

/// Runs `verb` and says how many commits it made, in revisions.
fn revisions<T>(registry: &Fixture, verb: impl FnOnce() -> T) -> (u64, T) {
    let before = registry.store().revision();
    let result = verb();
    (registry.store().revision() - before, result)
}

#[test]
fn permanent_namespaces_exist_and_stay() {
    let registry = registry();
    for name in PERMANENT_NAMESPACES {
        let key = Key::core("namespaces", "", name);
        assert_eq!(registry.get(&key).unwrap().get_str("status.phase"), Some("Active"));
        assert_eq!(kind(delete(&registry, &key, DeleteOptions::default())), Kind::Denied);
    }
}

#[test]
fn a_new_object_gets_identity_and_revision() {
    let registry = registry();
    let (changes, pod) = revisions(&registry, || create(&registry, "pods", pod_json("a")));
    assert_eq!(changes, 1);
    assert_eq!(pod.resource_version(), Some(registry.store().revision()));
    assert_eq!(pod.uid().len(), 36);
    assert_eq!(pod.creation_timestamp(), Some(now()));
    assert_eq!(pod.get_str("status.phase"), Some("Pending"));
    assert_eq!(registry.get(&pod.key()).unwrap(), pod);
    assert_eq!(kind(create_in(&registry, "pods", "default", pod_json("a"))), Kind::AlreadyExists);
    assert_eq!(kind(registry.get(&pod_key("none"))), Kind::NotFound);
}

#[test]
fn names_are_generated() {
    let registry = registry();
    let mut pod = pod_json("");
    pod["metadata"] = json!({"generateName": "web-"});
    let names: Vec<_> = (0..50).map(|_| create(&registry, "pods", pod.clone()).name().to_owned()).collect();
    assert!(names.iter().all(|name| name.len() == 9 && name.starts_with("web-")), "{names:?}");
}

#[test]
fn dry_runs_write_nothing() {
    let registry = registry();
    let dry = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let (changes, _) = revisions(&registry, || {
        block_on(registry.create(resource("pods"), "default", pod_json("a"), &dry)).unwrap();
        block_on(registry.create(resource("services"), "default", service_json("a", None), &dry)).unwrap();
    });
    assert_eq!(changes, 0);
    create(&registry, "pods", pod_json("a"));
    let (changes, deleted) = revisions(&registry, || {
        let patch = json!({"metadata": {"labels": {"a": "b"}}});
        let patched =
            block_on(registry.patch(&pod_key("a"), PatchKind::Merge, &patch, Part::Main, &dry)).unwrap();
        assert_eq!(patched.object.label("a"), Some("b"));
        delete(&registry, &pod_key("a"), DeleteOptions { dry_run: true, ..DeleteOptions::default() }).unwrap()
    });
    assert_eq!((changes, deleted.is_gone), (0, true));
    assert!(registry.get(&pod_key("a")).is_ok());
}

#[test]
fn stale_writes_are_refused() {
    let registry = registry();
    let old = create(&registry, "pods", pod_json("a"));
    let new = merge(&registry, &old.key(), json!({"metadata": {"labels": {"a": "b"}}}), Part::Main).unwrap();
    assert_eq!(kind(update(&registry, &old, Part::Main)), Kind::Conflict);
    let stale = json!({"metadata": {"resourceVersion": old.0["metadata"]["resourceVersion"]}});
    assert_eq!(kind(merge(&registry, &old.key(), stale, Part::Main)), Kind::Conflict);
    let mut unconditional = new.clone();
    unconditional.set_resource_version(None);
    unconditional.set("metadata.labels.a", "c");
    assert_eq!(update(&registry, &unconditional, Part::Main).unwrap().label("a"), Some("c"));
    let mut other = unconditional.clone();
    other.set("metadata.uid", "another");
    assert_eq!(kind(update(&registry, &other, Part::Main)), Kind::Conflict);
    let mut renamed = unconditional;
    renamed.set("metadata.name", "b");
    let options = WriteOptions::default();
    assert_eq!(
        kind(block_on(registry.update(&old.key(), renamed.0, Part::Main, &options))),
        Kind::BadRequest
    );
}

#[test]
fn writes_that_change_nothing_are_not_written() {
    let registry = registry();
    let pod = create(&registry, "pods", pod_json("a"));
    let (changes, again) = revisions(&registry, || update(&registry, &pod, Part::Main).unwrap());
    assert_eq!((changes, again), (0, pod));
}

#[test]
fn parts_do_not_touch_each_other() {
    let registry = registry();
    let pod = create(&registry, "pods", pod_json("a"));
    let patch = json!({"status": {"phase": "Running"}, "metadata": {"labels": {"a": "b"}}});
    let after = merge(&registry, &pod.key(), patch.clone(), Part::Status).unwrap();
    assert_eq!(after.get_str("status.phase"), Some("Running"));
    let after = merge(&registry, &pod.key(), json!({"status": {"phase": "Failed"}}), Part::Main).unwrap();
    assert_eq!(after.get_str("status.phase"), Some("Running"));
}

#[test]
fn scale_changes_replicas_alone() {
    let registry = registry();
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"}, "spec":
        {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata":
            {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main", "image": "i"}]}}}});
    let set = create(&registry, "replicasets", set);
    let scaled = merge(&registry, &set.key(), json!({"spec": {"replicas": 3}}), Part::Scale).unwrap();
    assert_eq!(scaled.get_i64("spec.replicas"), Some(3));
    assert_eq!(scaled.get("spec.template"), set.get("spec.template"));
    let mut view = api::scale::of(&scaled);
    view["spec"]["replicas"] = 0.into();
    let options = WriteOptions::default();
    let scaled = block_on(registry.update(&set.key(), view.clone(), Part::Scale, &options)).unwrap().object;
    assert_eq!(scaled.get_i64("spec.replicas"), Some(0));
    assert_eq!(kind(block_on(registry.update(&set.key(), view, Part::Scale, &options))), Kind::Conflict);
}

#[test]
fn json_patches_apply_or_refuse() {
    let registry = registry();
    let key = create(&registry, "pods", pod_json("a")).key();
    let patch = |patch: Value| {
        block_on(registry.patch(&key, PatchKind::Json, &patch, Part::Main, &WriteOptions::default()))
    };
    let label = json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]);
    assert_eq!(patch(label).unwrap().object.label("a"), Some("b"));
    assert!(patch(json!([{"op": "test", "path": "/metadata/labels/a", "value": "c"}])).is_err());
}

#[test]
fn patches_race_and_none_is_lost() {
    let registry = Arc::new(registry());
    let key = create(&registry, "pods", pod_json("a")).key();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (registry, key) = (&registry, &key);
            scope.spawn(move || {
                for count in 0..20 {
                    let label = format!("l{writer}-{count}");
                    let patch = json!({"metadata": {"labels": {label: "x"}}});
                    merge(registry, key, patch, Part::Main).unwrap();
                }
            });
        }
    });
    assert_eq!(registry.get(&key).unwrap().labels().len(), 80);
}

#[test]
fn pods_on_no_node_are_removed_at_once() {
    let registry = registry();
    let pod = create(&registry, "pods", pod_json("a"));
    let (changes, deleted) = revisions(&registry, || plainly(&registry, &pod.key()));
    assert_eq!((changes, deleted.is_gone), (1, true));
    assert_eq!(kind(registry.get(&pod.key())), Kind::NotFound);
}

#[test]
fn pods_on_a_node_wait_for_their_agent() {
    let registry = registry();
    let pod = create(&registry, "pods", pod_json("a"));
    bind(&registry, "a", "node-0", "10.0.0.2").unwrap();
    let deleted = plainly(&registry, &pod.key());
    assert!(!deleted.is_gone);
    assert_eq!(deleted.object.deletion_grace_period_secs(), Some(30));
    assert_eq!(deleted.object.deletion_timestamp().unwrap().as_second(), now().as_second() + 30);

    // Again changes nothing, a shorter grace brings it forward, a longer one does not put it off.
    let (changes, _) = revisions(&registry, || plainly(&registry, &pod.key()));
    assert_eq!(changes, 0);
    let grace = |secs| DeleteOptions { grace_period_secs: Some(secs), ..DeleteOptions::default() };
    let shorter = delete(&registry, &pod.key(), grace(5)).unwrap().object;
    assert_eq!(shorter.deletion_timestamp().unwrap().as_second(), now().as_second() + 5);
    assert_eq!(delete(&registry, &pod.key(), grace(60)).unwrap().object, shorter);

    // Haste is not proof.
    let hasty = delete(&registry, &pod.key(), grace(0)).unwrap();
    assert_eq!((hasty.is_gone, hasty.object.deletion_grace_period_secs()), (false, Some(1)));

    // Finished is not gone either, and no status write removes it.
    merge(&registry, &pod.key(), json!({"status": {"phase": "Failed"}}), Part::Status).unwrap();
    assert!(!plainly(&registry, &pod.key()).is_gone);

    let wrong = DeleteOptions { uid: Some("another".into()), ..grace(0) };
    assert_eq!(kind(delete(&registry, &pod.key(), wrong)), Kind::Conflict);
    let word = DeleteOptions { uid: Some(pod.uid().into()), ..grace(0) };
    assert!(delete(&registry, &pod.key(), word).unwrap().is_gone);
}

#[test]
fn a_node_with_pods_stays_and_a_pod_without_a_node_can_be_forced_away() {
    let registry = registry();
    let node = Key::core("nodes", "", "node-0");
    let force = || DeleteOptions { grace_period_secs: Some(0), ..DeleteOptions::default() };
    for (name, ip, is_gone) in [("on-node-0", "node-0", false), ("nowhere", "node-7", true)] {
        create(&registry, "pods", pod_json(name));
        block_on(registry.bind(&pod_key(name), None, ip, None)).unwrap();
        assert!(!plainly(&registry, &pod_key(name)).is_gone);
        assert_eq!(kind(delete(&registry, &node, force())), Kind::Conflict);
        assert_eq!(delete(&registry, &pod_key(name), force()).unwrap().is_gone, is_gone);
    }
    let uid = registry.get(&pod_key("on-node-0")).unwrap().uid().to_owned();
    delete(&registry, &pod_key("on-node-0"), DeleteOptions { uid: Some(uid), ..force() }).unwrap();
    assert!(plainly(&registry, &node).is_gone);
}

#[test]
fn the_agents_word_waits_for_finalizers() {
    let registry = registry();
    let mut value = pod_json("a");
    value["metadata"]["finalizers"] = json!(["example.com/keep"]);
    let pod = create(&registry, "pods", value);
    bind(&registry, "a", "node-0", "10.0.0.2").unwrap();
    let word =
        DeleteOptions { grace_period_secs: Some(0), uid: Some(pod.uid().into()), ..DeleteOptions::default() };
    assert!(!delete(&registry, &pod.key(), word).unwrap().is_gone);
    let (changes, gone) = revisions(&registry, || {
        merge(&registry, &pod.key(), json!({"metadata": {"finalizers": null}}), Part::Main).unwrap()
    });
    assert_eq!((changes, gone.is_deleting()), (1, true));
    assert_eq!(kind(registry.get(&pod.key())), Kind::NotFound);
}

#[test]
fn the_last_finalizer_takes_the_object_along() {
    let registry = registry();
    let mut value = service_json("a", None);
    value["metadata"]["finalizers"] = json!(["example.com/one", "example.com/two"]);
    let key = create(&registry, "services", value).key();
    assert!(!plainly(&registry, &key).is_gone);
    let finalizers = |names: Value| json!({"metadata": {"finalizers": names}});
    let more = finalizers(json!(["example.com/one", "example.com/three"]));
    assert_eq!(kind(merge(&registry, &key, more, Part::Main)), Kind::Denied);
    merge(&registry, &key, finalizers(json!(["example.com/one"])), Part::Main).unwrap();
    assert!(registry.get(&key).is_ok());
    merge(&registry, &key, finalizers(json!([])), Part::Main).unwrap();
    assert_eq!(kind(registry.get(&key)), Kind::NotFound);
}

#[test]
fn propagation_becomes_finalizers() {
    let registry = registry();
    let check = |propagation, expect: &[&str]| {
        let key = create(&registry, "services", service_json("a", None)).key();
        let options = DeleteOptions { propagation, ..DeleteOptions::default() };
        let deleted = delete(&registry, &key, options).unwrap();
        assert_eq!((deleted.is_gone, deleted.object.finalizers().as_slice()), (expect.is_empty(), expect));
        // A second thought replaces the first.
        let background =
            DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        assert_eq!(delete(&registry, &key, background).is_ok(), !expect.is_empty());
        assert_eq!(kind(registry.get(&key)), Kind::NotFound);
    };
    check(None, &[]);
    check(Some(Propagation::Background), &[]);
    check(Some(Propagation::Foreground), &["foregroundDeletion"]);
    check(Some(Propagation::Orphan), &["orphan"]);
}

#[test]
fn deletions_have_preconditions() {
    let registry = registry();
    let service = create(&registry, "services", service_json("a", None));
    let old = service.resource_version();
    let new =
        merge(&registry, &service.key(), json!({"metadata": {"labels": {"a": "b"}}}), Part::Main).unwrap();
    let at = |resource_version| DeleteOptions { resource_version, ..DeleteOptions::default() };
    assert_eq!(kind(delete(&registry, &service.key(), at(old))), Kind::Conflict);
    assert!(delete(&registry, &service.key(), at(new.resource_version())).unwrap().is_gone);
}

#[test]
fn collections_are_deleted_in_one_commit() {
    let registry = registry();
    for name in ["a", "b", "c"] {
        let mut pod = pod_json(name);
        pod["metadata"]["labels"] = json!({"app": if name == "c" { "other" } else { "web" }});
        create(&registry, "pods", pod);
    }
    bind(&registry, "b", "node-0", "10.0.0.2").unwrap();
    let list = ListOptions { labels: LabelSelector::parse("app=web").unwrap(), ..ListOptions::default() };
    let deleted = block_on(registry.delete_collection(
        resource("pods"),
        Some("default"),
        &list,
        &DeleteOptions::default(),
    ))
    .unwrap();
    assert_eq!(deleted.iter().map(|it| it.is_gone).collect::<Vec<_>>(), [true, false]);
    let names: Vec<_> = pods(&registry).into_iter().map(|record| record.key.name).collect();
    assert_eq!(names, ["b", "c"]);
}

fn pods(registry: &Fixture) -> Vec<Record> {
    registry.list(resource("pods"), None, &ListOptions::default()).unwrap().items
}

#[test]
fn namespaces_live_and_die() {
    let registry = registry();
    assert_eq!(kind(create_in(&registry, "pods", "shop", pod_json("a"))), Kind::NotFound);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    let namespace = create_in(&registry, "namespaces", "", namespace).unwrap();
    let pod = create_in(&registry, "pods", "shop", pod_json("a")).unwrap();
    let deleted = plainly(&registry, &namespace.key());
    assert_eq!((deleted.is_gone, deleted.object.get_str("status.phase")), (false, Some("Terminating")));
    assert_eq!(kind(create_in(&registry, "pods", "shop", pod_json("b"))), Kind::Denied);
    assert_eq!(kind(delete(&registry, &namespace.key(), DeleteOptions::default())), Kind::Conflict);
    let finalized = json!({"spec": {"finalizers": []}});
    assert_eq!(kind(merge(&registry, &namespace.key(), finalized, Part::Main)), Kind::Conflict);
    plainly(&registry, &pod.key());
    assert!(plainly(&registry, &namespace.key()).is_gone);
    assert_eq!(kind(create_in(&registry, "pods", "shop", pod_json("b"))), Kind::NotFound);
}

#[test]
fn an_empty_namespace_ends_when_it_is_finalized() {
    let registry = registry();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    let key = create_in(&registry, "namespaces", "", namespace).unwrap().key();
    let finalized = json!({"spec": {"finalizers": []}});
    merge(&registry, &key, finalized.clone(), Part::Main).unwrap();
    assert!(registry.get(&key).is_ok(), "only one in deletion ends");
    merge(&registry, &key, json!({"spec": {"finalizers": ["kubernetes"]}}), Part::Main).unwrap();
    plainly(&registry, &key);
    merge(&registry, &key, finalized, Part::Main).unwrap();
    assert_eq!(kind(registry.get(&key)), Kind::NotFound);
}

#[test]
fn strategic_patches_merge_lists_by_key() {
    let registry = registry();
    let key = create(&registry, "services", service_json("a", None)).key();
    let patch = json!({"spec": {"ports": [{"port": 443, "name": "tls"}, {"port": 80, "name": "web"}]}});
    let options = WriteOptions::default();
    let written = block_on(registry.patch(&key, PatchKind::Strategic, &patch, Part::Main, &options)).unwrap();
    assert_eq!(written.object.get_array("spec.ports").len(), 2);
}

#[test]
fn nothing_is_created_in_a_namespace_that_goes_away_meanwhile() {
    for round in 0..20 {
        let registry = registry();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
        let key = create_in(&registry, "namespaces", "", namespace).unwrap().key();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..50).for_each(|n| drop(create_in(&registry, "pods", "shop", pod_json(&n.to_string()))))
            });
            scope.spawn(|| {
                while !delete(&registry, &key, DeleteOptions::default()).is_ok_and(|it| it.is_gone) {
                    block_on(registry.delete_collection(
                        resource("pods"),
                        Some("shop"),
                        &ListOptions::default(),
                        &DeleteOptions::default(),
                    ))
                    .unwrap();
                }
            });
        });
        assert_eq!(pods(&registry), [], "round {round}");
    }
}

#[test]
fn services_get_a_virtual_ip_of_their_own() {
    let registry = with(|config| config.service_cidr = "10.9.0.0/28".parse().unwrap());
    let ip = |service: &Object| service.get_str("spec.clusterIP").unwrap().to_owned();
    let fixed = create(&registry, "services", service_json("fixed", Some("10.9.0.10")));
    assert_eq!(ip(&fixed), "10.9.0.10");
    assert_eq!(fixed.get("spec.clusterIPs"), Some(&json!(["10.9.0.10"])));
    let refused = |ip| create_in(&registry, "services", "default", service_json("x", Some(ip)));
    assert_eq!(kind(refused("10.9.0.10")), Kind::Invalid);
    assert_eq!(refused("10.8.0.1").unwrap_err().details.causes[0].field, "spec.clusterIP");
    assert_eq!(kind(refused("10.9.0.15")), Kind::Invalid);
    assert_eq!(kind(refused("junk")), Kind::Invalid);
    let headless = create(&registry, "services", service_json("headless", Some("None")));
    assert_eq!(ip(&headless), "None");

    let mut taken: Vec<_> =
        (0..13).map(|n| ip(&create(&registry, "services", service_json(&format!("s{n}"), None)))).collect();
    taken.sort();
    taken.dedup();
    assert_eq!(taken.len(), 13);
    assert!(!taken.contains(&"10.9.0.10".to_owned()));
    assert_eq!(kind(create_in(&registry, "services", "default", service_json("full", None))), Kind::Denied);
    plainly(&registry, &fixed.key());
    assert_eq!(ip(&create(&registry, "services", service_json("again", None))), "10.9.0.10");

    // It stays: an update that does not name it keeps it, one that names another is refused.
    let mut service = registry.get(&Key::core("services", "default", "s0")).unwrap();
    let address = ip(&service);
    service.remove("spec.clusterIP");
    service.set("metadata.labels", json!({"a": "b"}));
    let mut service = update(&registry, &service, Part::Main).unwrap();
    assert_eq!((ip(&service), service.generation()), (address, 1));
    service.set("spec.clusterIP", "10.9.0.14");
    assert_eq!(kind(update(&registry, &service, Part::Main)), Kind::Invalid);
}

#[test]
fn virtual_ips_are_unique_under_a_race() {
    let registry = with(|config| config.service_cidr = "10.9.0.0/24".parse().unwrap());
    let created = |n: usize| (0..50).map(move |i| format!("s{n}-{i}"));
    std::thread::scope(|scope| {
        for n in 0..4 {
            let registry = &registry;
            scope.spawn(move || {
                created(n).for_each(|name| drop(create(registry, "services", service_json(&name, None))))
            });
        }
    });
    let list = registry.list(resource("services"), None, &ListOptions::default()).unwrap();
    let ips: std::collections::HashSet<_> =
        list.objects().map(|it| it.get_str("spec.clusterIP").unwrap().to_owned()).collect();
    assert_eq!((list.items.len(), ips.len()), (200, 200));
}

#[test]
fn node_ports_are_warned_about() {
    let registry = registry();
    let mut service = service_json("a", None);
    service["spec"]["type"] = "NodePort".into();
    let written =
        block_on(registry.create(resource("services"), "default", service, &WriteOptions::default()))
            .unwrap();
    assert!(written.warnings.iter().any(|warning| warning.contains("NodePort")), "{:?}", written.warnings);
}

#[test]
fn pods_are_bound_once() {
    let registry = registry();
    let pod = create(&registry, "pods", pod_json("a"));
    let (changes, bound) = revisions(&registry, || bind(&registry, "a", "node-0", "10.0.0.2").unwrap());
    assert_eq!((changes, bound.get_str("spec.nodeName")), (1, Some("node-0")));
    assert_eq!(bound.get("status.podIPs"), Some(&json!([{"ip": "10.0.0.2"}])));
    assert_eq!(bound.get_str("status.conditions.0.type"), Some("PodScheduled"));
    let (changes, again) = revisions(&registry, || bind(&registry, "a", "node-0", "10.0.0.2").unwrap());
    assert_eq!((changes, again), (0, bound));
    assert_eq!(kind(bind(&registry, "a", "node-1", "10.0.0.2")), Kind::Conflict);
    assert_eq!(kind(bind(&registry, "a", "node-0", "10.0.0.3")), Kind::Conflict);
    assert_eq!(kind(block_on(registry.bind(&pod.key(), Some("another"), "node-0", None))), Kind::Conflict);
    plainly(&registry, &pod.key());
    assert_eq!(kind(bind(&registry, "a", "node-0", "10.0.0.2")), Kind::Conflict);
    assert_eq!(kind(bind(&registry, "none", "node-0", "10.0.0.2")), Kind::NotFound);
}

#[test]
fn pod_addresses_are_unique_while_pods_run() {
    let registry = registry();
    for name in ["a", "b"] {
        create(&registry, "pods", pod_json(name));
    }
    bind(&registry, "a", "node-0", "10.0.0.2").unwrap();
    assert_eq!(kind(bind(&registry, "b", "node-0", "10.0.0.2")), Kind::Conflict);
    let theft = json!({"status": {"podIP": "10.0.0.2"}});
    assert_eq!(kind(merge(&registry, &pod_key("b"), theft, Part::Status)), Kind::Conflict);

    // A status that does not speak of the address keeps it.
    let mut pod = registry.get(&pod_key("a")).unwrap();
    pod.set("status", json!({"phase": "Running"}));
    assert_eq!(update(&registry, &pod, Part::Status).unwrap().get_str("status.podIP"), Some("10.0.0.2"));

    merge(&registry, &pod_key("a"), json!({"status": {"phase": "Succeeded"}}), Part::Status).unwrap();
    bind(&registry, "b", "node-0", "10.0.0.2").unwrap();
}

#[test]
fn claims_stay_while_pods_use_them() {
    let registry = registry();
    let claim = create(&registry, "persistentvolumeclaims", claim_json("data")).key();
    let mut value = pod_json("a");
    value["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    let pod = create(&registry, "pods", value.clone());
    bind(&registry, "a", "node-0", "10.0.0.2").unwrap();
    assert!(!plainly(&registry, &claim).is_gone);

    // Going away: no further pod starts on it.
    value["metadata"]["name"] = "b".into();
    create(&registry, "pods", value.clone());
    assert_eq!(kind(bind(&registry, "b", "node-0", "10.0.0.3")), Kind::Conflict);
    plainly(&registry, &pod_key("b"));
    assert!(registry.get(&claim).is_ok());

    let word =
        DeleteOptions { grace_period_secs: Some(0), uid: Some(pod.uid().into()), ..DeleteOptions::default() };
    let (changes, _) = revisions(&registry, || delete(&registry, &pod.key(), word).unwrap());
    assert_eq!(changes, 2, "the pod and the claim that waited for it, in one commit");
    assert_eq!(kind(registry.get(&claim)), Kind::NotFound);

    create(&registry, "pods", value);
    assert_eq!(kind(bind(&registry, "b", "node-0", "10.0.0.3")), Kind::Conflict);
    create(&registry, "persistentvolumeclaims", claim_json("unused"));
    assert!(plainly(&registry, &Key::core("persistentvolumeclaims", "default", "unused")).is_gone);
}

#[test]
fn events_make_room_for_newer_ones() {
    let registry = with(|config| config.events_max = 3);
    let event = |n: u32| {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": format!("e{n}")}, "reason": "Test",
            "involvedObject": {"kind": "Pod", "name": "a", "namespace": "default"}})
    };
    for n in 0..3 {
        create(&registry, "events", event(n));
    }
    // An event that happens again is young again.
    merge(&registry, &Key::core("events", "default", "e0"), json!({"count": 2}), Part::Main).unwrap();
    for n in 3..5 {
        let (changes, _) = revisions(&registry, || create(&registry, "events", event(n)));
        assert_eq!(changes, 2, "one in, one out");
    }
    let list = registry.list(resource("events"), None, &ListOptions::default()).unwrap();
    let names: Vec<_> = list.items.iter().map(|it| it.key.name.as_str()).collect();
    assert_eq!(names, ["e0", "e3", "e4"]);
}

#[test]
fn lists_select_and_page() {
    let registry = registry();
    for n in 0..5 {
        let mut pod = pod_json(&format!("p{n}"));
        pod["metadata"]["labels"] = json!({"even": (n % 2 == 0).to_string()});
        create(&registry, "pods", pod);
    }
    let list = |options: &ListOptions| registry.list(resource("pods"), Some("default"), options).unwrap();
    let names = |list: &List| list.items.iter().map(|it| it.key.name.clone()).collect::<Vec<_>>();
    let even = ListOptions { labels: LabelSelector::parse("even=true").unwrap(), ..ListOptions::default() };
    assert_eq!(names(&list(&even)), ["p0", "p2", "p4"]);
    let named = |name| ListOptions { fields: FieldSelector::parse(name).unwrap(), ..ListOptions::default() };
    assert_eq!(names(&list(&named("metadata.name=p3"))), ["p3"]);
    assert_eq!(names(&list(&named("metadata.name!=p3,status.phase=Pending"))), ["p0", "p1", "p2", "p4"]);
    assert_eq!(kind(registry.list(resource("pods"), None, &named("spec.image=x"))), Kind::BadRequest);

    let mut page = list(&ListOptions { limit: 2, ..ListOptions::default() });
    let first = page.revision;
    assert_eq!((page.remaining, names(&page)), (Some(3), vec!["p0".to_owned(), "p1".into()]));
    plainly(&registry, &pod_key("p2"));
    create(&registry, "pods", pod_json("p9"));
    let mut seen = names(&page);
    while let Some(continue_token) = page.continue_token.take() {
        page =
            list(&ListOptions { limit: 2, continue_token: Some(continue_token), ..ListOptions::default() });
        assert_eq!(page.revision, first, "a watch from here tells what changed between the pages");
        seen.extend(names(&page));
    }
    assert_eq!(seen, ["p0", "p1", "p3", "p4", "p9"]);
    let bad = ListOptions { continue_token: Some("junk".into()), ..ListOptions::default() };
    assert_eq!(kind(registry.list(resource("pods"), None, &bad)), Kind::BadRequest);
}

#[test]
fn watches_translate_events_through_selectors() {
    let registry = registry();
    let mut pod = pod_json("a");
    pod["metadata"]["labels"] = json!({"app": "web"});
    let key = create(&registry, "pods", pod).key();
    create(&registry, "pods", pod_json("other"));
    let options = WatchOptions {
        labels: LabelSelector::parse("app=web").unwrap(),
        mark_initial_end: true,
        ..WatchOptions::default()
    };
    let mut watch = registry.watch(resource("pods"), Some("default"), &options).unwrap();
    let start = registry.store().revision();
    assert_eq!(watch.bookmark(), None, "not before the first objects");
    let label =
        |value: Value| merge(&registry, &key, json!({"metadata": {"labels": {"app": value}}}), Part::Main);
    label(json!("db")).unwrap();
    label(json!("cache")).unwrap();
    label(json!("web")).unwrap();
    merge(&registry, &key, json!({"metadata": {"labels": {"tier": "front"}}}), Part::Main).unwrap();
    plainly(&registry, &key);

    let mut told = Vec::new();
    while let Some(event) = watch.try_next() {
        told.push(match event.unwrap() {
            WatchEvent::Added(record) => (
                "ADDED",
                record.revision.saturating_sub(start),
                record.object().label("app").map(String::from),
            ),
            WatchEvent::Modified(record) => (
                "MODIFIED",
                record.revision.saturating_sub(start),
                record.object().label("app").map(String::from),
            ),
            WatchEvent::Deleted(record) => (
                "DELETED",
                record.revision.saturating_sub(start),
                record.object().label("app").map(String::from),
            ),
            WatchEvent::Bookmark { revision, is_initial_end } => {
                assert!(is_initial_end);
                ("BOOKMARK", revision - start, None)
            }
        });
    }
    let web = || Some("web".to_owned());
    let expect = [
        ("ADDED", 0, web()),
        ("BOOKMARK", 0, None),
        ("DELETED", 1, web()),
        ("ADDED", 3, web()),
        ("MODIFIED", 4, web()),
        ("DELETED", 5, web()),
    ];
    assert_eq!(told, expect);
    assert_eq!(watch.bookmark(), Some(WatchEvent::Bookmark { revision: start + 5, is_initial_end: false }));
}

#[test]
fn a_list_and_its_watch_meet() {
    let registry = registry();
    create(&registry, "pods", pod_json("a"));
    let list = registry.list(resource("pods"), None, &ListOptions::default()).unwrap();
    create(&registry, "pods", pod_json("b"));
    let since = |since| WatchOptions { since: Some(since), ..WatchOptions::default() };
    let mut watch = registry.watch(resource("pods"), None, &since(list.revision)).unwrap();
    let Some(Ok(WatchEvent::Added(record))) = watch.try_next() else { panic!() };
    assert_eq!(record.key.name, "b");
    assert!(watch.try_next().is_none());
    assert_eq!(kind(registry.watch(resource("pods"), None, &since(10_000))), Kind::Gone);
}

#[test]
fn slow_watches_are_told_to_list_again() {
    let store = Memory::with_limits(store::Limits { events_max: 4, bytes_max: 1 << 20 });
    let registry = block_on(Registry::open(store, Config::default())).unwrap();
    let mut watch = registry.watch(resource("pods"), None, &WatchOptions::default()).unwrap();
    for n in 0..10 {
        create(&registry, "pods", pod_json(&format!("p{n}")));
    }
    assert_eq!(watch.try_next().unwrap().unwrap_err().kind(), Kind::Gone);
    assert!(watch.try_next().is_none());
    let token =
        ListOptions { limit: 2, continue_token: Some("3.default/p1".into()), ..ListOptions::default() };
    assert_eq!(kind(registry.list(resource("pods"), None, &token)), Kind::Gone);
}

#[test]
fn pets_are_stateful_sets() {
    let registry = registry();
    let pets = json!({"apiVersion": "apps/v1alpha1", "kind": "PetSet", "metadata": {"name": "db"}, "spec":
        {"serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": {"metadata":
            {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "main", "image": "i"}]}}}});
    let stored = create(&registry, "petsets", pets);
    assert_eq!((stored.kind(), stored.api_version()), ("StatefulSet", "apps/v1"));
    let mut watch = registry.watch(resource("petsets"), None, &WatchOptions::default()).unwrap();
    assert!(matches!(watch.try_next(), Some(Ok(WatchEvent::Added(_)))));
    let list = registry.list(resource("petsets"), None, &ListOptions::default()).unwrap();
    assert_eq!(list.items.len(), 1);
    assert!(plainly(&registry, &Key::new(resource("petsets"), "default", "db")).is_gone);
}

#[test]
fn large_objects_are_refused() {
    let registry = registry();
    let mut pod = pod_json("a");
    pod["metadata"]["annotations"] = json!({"big": "x".repeat(OBJECT_BYTES_MAX)});
    assert!(create_in(&registry, "pods", "default", pod).is_err());
}

#[test]
fn the_index_survives_a_history_that_is_too_short() {
    let store = Memory::with_limits(store::Limits { events_max: 2, bytes_max: 1 << 20 });
    let registry = block_on(Registry::open(store, Config::default())).unwrap();
    for n in 0..5 {
        create(&registry, "pods", pod_json(&format!("p{n}")));
        bind(&registry, &format!("p{n}"), "node-0", &format!("10.0.0.{n}")).unwrap();
        merge(&registry, &pod_key(&format!("p{n}")), json!({"metadata": {"labels": {"a": "b"}}}), Part::Main)
            .unwrap();
    }
    create(&registry, "pods", pod_json("last"));
    for n in 0..5 {
        assert_eq!(kind(bind(&registry, "last", "node-0", &format!("10.0.0.{n}"))), Kind::Conflict);
    }
}

#[test]
fn verbs_can_run_on_any_thread() {
    fn is_send<T: Send>(_: T) {}
    let registry = registry();
    let key = pod_key("a");
    is_send(registry.create(resource("pods"), "default", Value::Null, &WriteOptions::default()));
    is_send(registry.delete(&key, &DeleteOptions::default()));
    is_send(registry.bind(&key, None, "node-0", None));
}

#[test]
fn a_claim_that_names_no_class_gets_the_default_one() {
    let registry = registry();
    let without = create(&registry, "persistentvolumeclaims", claim_json("early"));
    assert_eq!(without.get_str("spec.storageClassName"), None);
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "podyard.io/host",
        "metadata": {"name": "host", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    });
    create(&registry, "storageclasses", class);
    let with = create(&registry, "persistentvolumeclaims", claim_json("late"));
    assert_eq!(with.get_str("spec.storageClassName"), Some("host"));
    let mut by_hand = claim_json("by-hand");
    by_hand["spec"]["storageClassName"] = "".into();
    let by_hand = create(&registry, "persistentvolumeclaims", by_hand);
    assert_eq!(by_hand.get_str("spec.storageClassName"), Some(""), "no class is a wish too");
}
