//! One row per rule: what a node may do, and beside it what it may not.

use super::*;
use Verb::*;
use serde_json::json;

struct World(Vec<Object>);

impl Lookup for World {
    fn get(&self, key: &Key) -> Option<Object> {
        self.0.iter().find(|object| object.key() == *key).cloned()
    }

    fn pod_by_uid(&self, namespace: &str, uid: &str) -> Option<Object> {
        let is_it = |it: &&Object| it.kind() == "Pod" && it.namespace() == namespace && it.uid() == uid;
        self.0.iter().find(is_it).cloned()
    }
}

fn pod(name: &str, node: &str) -> Object {
    Object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "d", "uid": format!("uid-{name}")},
        "spec": {
            "nodeName": node,
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": format!("data-{name}")}}],
        },
    }))
}

fn claim(name: &str, annotations: Value) -> Object {
    Object(json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name, "namespace": "d", "uid": "c", "resourceVersion": "7", "annotations": annotations,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"},
    }))
}

fn held(by: &str, node: &str, epoch: u64) -> Value {
    json!({"podyard.io/holder": by, "podyard.io/holder-node": node, "podyard.io/epoch": epoch.to_string(), "x": "y"})
}

fn let_go(epoch: u64) -> Value {
    json!({"podyard.io/epoch": epoch.to_string(), "x": "y"})
}

fn node(name: &str) -> Object {
    Object(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", "mine": "1"}},
        "spec": {"podCIDR": "10.244.1.0/24"},
    }))
}

fn event(name: &str, host: &str) -> Object {
    Object(json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "d"},
        "source": {"host": host},
    }))
}

fn world() -> World {
    World(vec![
        pod("mine", "n1"),
        pod("theirs", "n2"),
        claim("data-mine", let_go(4)),
        claim("data-theirs", held("uid-theirs", "n2", 2)),
        claim("data-held", held("uid-before", "n1", 2)),
        claim("data-old", json!({"podyard.io/holder": "uid-theirs", "podyard.io/epoch": "1", "x": "y"})),
        node("n1"),
        node("n2"),
        event("ours", "n1"),
        event("other", "n2"),
    ])
}

/// `pods/d/mine/status?fields`
fn ask(verb: Verb, path: &str, body: Value) -> Result<(), Error> {
    let (path, selector) = path.split_once('?').unwrap_or((path, ""));
    let fields = FieldSelector::parse(selector).unwrap();
    let pieces: Vec<&str> = path.split('/').collect();
    let piece = |at: usize| pieces.get(at).copied().filter(|piece| !piece.is_empty());
    let target = match pieces[0] {
        "discovery" => Target::Discovery,
        "heartbeat" => Target::Heartbeat(pieces[1]),
        "yard" => Target::Yard,
        plural => Target::Objects {
            resource: api::resource_by_any_name(plural).unwrap(),
            namespace: piece(1),
            name: piece(2),
            subresource: piece(3),
            fields: &fields,
        },
    };
    let request = Attributes { verb, target, body: &body };
    assert!(authorize(&Identity::Root, &request, &world()).is_ok(), "root may do everything");
    authorize(&Identity::Node("n1".into()), &request, &world())
}

#[track_caller]
fn may(verb: Verb, path: &str, body: Value) {
    if let Err(error) = ask(verb, path, body) {
        panic!("{verb:?} {path}: {error}");
    }
}

#[track_caller]
fn may_not(verb: Verb, path: &str, body: Value, why: &str) {
    let error = ask(verb, path, body).expect_err(&format!("{verb:?} {path} is forbidden"));
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.message.ends_with(why), "{verb:?} {path}: {error} does not end with {why:?}");
}

const NO_RULE: &str = "no rule allows a node to do this";

#[test]
fn what_all_nodes_need_is_read_by_all() {
    for plural in ["services", "endpointslices", "nodes", "namespaces"] {
        for verb in [Get, List, Watch] {
            may(verb, plural, Value::Null);
        }
        may_not(
            Create,
            &format!("{plural}/d"),
            Value::Null,
            if plural == "nodes" { "it may only write its own Node" } else { NO_RULE },
        );
    }
    may(Get, "discovery", Value::Null);
    may_not(Create, "discovery", Value::Null, "discovery can only be read");
    may(Get, "persistentvolumes//pv", Value::Null);
    may_not(List, "persistentvolumes", Value::Null, NO_RULE);
    may_not(Update, "persistentvolumes//pv", json!({}), NO_RULE);
}

#[test]
fn nothing_else_is_read_or_written() {
    for plural in ["replicasets", "statefulsets", "storageclasses"] {
        for verb in [Get, List, Watch, Create, Update, Patch, Delete, DeleteCollection] {
            may_not(verb, &format!("{plural}/d/a"), Value::Null, NO_RULE);
        }
    }
    may_not(Get, "yard", Value::Null, "this path is not for nodes");
    may_not(Create, "yard", Value::Null, "this path is not for nodes");
}

#[test]
fn pods_are_read_by_their_node() {
    may(Get, "pods/d/mine", Value::Null);
    may(Get, "pods/d/missing", Value::Null);
    may_not(Get, "pods/d/theirs", Value::Null, "the pod is not bound to this node");
    let select = "it must select its own pods, with fieldSelector=spec.nodeName";
    for verb in [List, Watch] {
        may(verb, "pods?spec.nodeName=n1", Value::Null);
        may(verb, "pods?spec.nodeName=n1,metadata.name=a", Value::Null);
        may_not(verb, "pods", Value::Null, select);
        may_not(verb, "pods?spec.nodeName=n2", Value::Null, select);
        may_not(verb, "pods?spec.nodeName!=n2", Value::Null, select);
    }
}

#[test]
fn pods_are_written_by_their_node_only_in_status_and_end() {
    may(Update, "pods/d/mine/status", json!({}));
    may_not(Update, "pods/d/theirs/status", json!({}), "the pod is not bound to this node");
    may_not(Patch, "pods/d/mine/status", json!({}), NO_RULE);
    may_not(Create, "pods/d", pod("new", "n1").0, NO_RULE);
    may_not(Update, "pods/d/mine", json!({}), NO_RULE);
    may_not(Create, "pods/d/mine/binding", json!({}), NO_RULE);
    may_not(Create, "pods/d/mine/eviction", json!({}), NO_RULE);
    may_not(DeleteCollection, "pods/d", json!({}), NO_RULE);
    for part in ["log", "exec", "attach"] {
        may_not(Connect, &format!("pods/d/mine/{part}"), Value::Null, NO_RULE);
    }
    let last_word = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "uid-mine"}});
    may(Delete, "pods/d/mine", last_word.clone());
    may_not(Delete, "pods/d/theirs", last_word, "the pod is not bound to this node");
    let finish = "it may only finish a deletion: grace period 0, and the uid";
    may_not(Delete, "pods/d/mine", Value::Null, finish);
    may_not(Delete, "pods/d/mine", json!({"gracePeriodSeconds": 0}), finish);
    let slow = json!({"gracePeriodSeconds": 30, "preconditions": {"uid": "uid-mine"}});
    may_not(Delete, "pods/d/mine", slow, finish);
}

#[test]
fn a_node_writes_its_own_node() {
    may(Update, "nodes//n1/status", json!({"status": {}}));
    may_not(Update, "nodes//n2/status", json!({"status": {}}), "it may only write its own Node");
    may_not(Delete, "nodes//n1", Value::Null, NO_RULE);
    may_not(Patch, "nodes//n1/status", json!({}), NO_RULE);
    may_not(Create, "nodes", node("n1").0, "it may only write its own Node");
    let changed = |path: &str, value: Value| {
        let mut node = node("n1");
        node.set(path, value);
        node.0
    };
    may(Update, "nodes//n1", node("n1").0);
    may(Update, "nodes//n1", changed("metadata.labels", json!({"kubernetes.io/os": "x", "mine": "1"})));
    may(Update, "nodes//n1", changed("status", json!({"phase": "x"})));
    let only = "it may only write its status and the labels that tell of the host";
    may_not(Update, "nodes//n1", changed("metadata.labels", json!({"mine": "2"})), only);
    may_not(Update, "nodes//n1", changed("metadata.annotations", json!({"podyard.io/power": "on"})), only);
    may_not(Update, "nodes//n1", changed("metadata.finalizers", json!([])), only);
    may_not(Update, "nodes//n1", changed("spec", json!({"podCIDR": "10.244.1.0/24", "taints": []})), only);
    may_not(Update, "nodes//n2", node("n2").0, "it may only write its own Node");
}

#[test]
fn claims_are_held_for_pods_of_the_node_and_let_go_by_it() {
    let update = |name: &str, annotations: Value| {
        let mut claim = claim(name, annotations);
        claim.remove("status");
        (format!("persistentvolumeclaims/d/{name}"), claim.0)
    };
    let good = |name: &str, annotations: Value| {
        let (path, body) = update(name, annotations);
        may(Update, &path, body);
    };
    let bad = |name: &str, annotations: Value, why: &str| {
        let (path, body) = update(name, annotations);
        may_not(Update, &path, body, why);
    };
    may(Get, "persistentvolumeclaims/d/data-theirs", Value::Null);
    may_not(List, "persistentvolumeclaims/d", Value::Null, NO_RULE);
    may_not(Delete, "persistentvolumeclaims/d/data-mine", Value::Null, NO_RULE);
    may_not(Create, "persistentvolumeclaims/d", Value::Null, NO_RULE);
    // Nobody holds it.
    good("data-mine", let_go(4));
    good("data-mine", held("uid-mine", "n1", 5));
    bad("data-mine", held("uid-mine", "n2", 5), "it may only hold the claim for itself");
    bad("data-mine", held("uid-mine", "n1", 4), "one after the other");
    bad("data-mine", held("uid-mine", "n1", 9), "one after the other");
    bad("data-mine", held("uid-theirs", "n1", 5), "no pod of this node with that uid uses the claim");
    bad("data-mine", held("uid-nobody", "n1", 5), "no pod of this node with that uid uses the claim");
    // A pod of another node holds it: only that node, or its fence, takes that back.
    bad("data-theirs", let_go(2), "it does not hold the claim");
    bad("data-theirs", held("uid-mine", "n1", 3), "a pod of another node holds the claim");
    bad("data-old", let_go(1), "it does not hold the claim");
    // An earlier pod of this node held it, and this node knows that it is gone.
    good("data-held", let_go(2));
    bad("data-held", let_go(1), "it does not hold the claim");
    bad("data-held", held("uid-mine", "n1", 3), "no pod of this node with that uid uses the claim");
    // Nothing else of a claim is a node's.
    let mut grown = claim("data-mine", held("uid-mine", "n1", 5));
    grown.set("spec.resources", json!({"requests": {"storage": "1Ti"}}));
    let only = "it may only hold the claim or let it go";
    may_not(Update, "persistentvolumeclaims/d/data-mine", grown.0, only);
    bad("data-mine", json!({"podyard.io/epoch": "4", "x": "z"}), only);
    bad("data-mine", json!({"podyard.io/epoch": "4", "x": "y", "podyard.io/fenced": "{}"}), only);
    // Without a resource version, what was checked need not be what is written.
    let mut blind = claim("data-mine", held("uid-mine", "n1", 5));
    blind.remove("metadata.resourceVersion");
    let path = "persistentvolumeclaims/d/data-mine";
    may_not(Update, path, blind.0, "it must name the resource version");
    let mut stale = claim("data-mine", json!({}));
    stale.set("metadata.resourceVersion", "6");
    may(Update, path, stale.0);
}

#[test]
fn events_of_the_node_are_written_by_it() {
    may(Create, "events/d", event("new", "n1").0);
    may(Get, "events/d/ours", Value::Null);
    may(Update, "events/d/ours", event("ours", "n1").0);
    may_not(Create, "events/d", event("new", "n2").0, "an Event of a node names it as source.host");
    may_not(Update, "events/d/other", event("other", "n1").0, "the Event is of another source");
    may_not(Update, "events/d/ours", event("ours", "n2").0, "the Event is of another source");
    may_not(Get, "events/d/other", Value::Null, "the Event is of another source");
    may_not(List, "events/d", Value::Null, NO_RULE);
    may_not(Delete, "events/d/ours", Value::Null, NO_RULE);
}

#[test]
fn a_heart_beats_for_itself() {
    may(Create, "heartbeat/n1", Value::Null);
    may_not(Create, "heartbeat/n2", Value::Null, "it may only send its own heartbeat");
}
