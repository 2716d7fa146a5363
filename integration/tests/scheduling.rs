//! Where pods go: selectors, affinity, spread and taints, over three nodes on the real kernel.

use integration::harness::{Yard, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");
const ZONES: [(&str, &str); 3] = [("n1", "a"), ("n2", "b"), ("n3", "b")];

/// Three nodes in two zones; the daemon's own takes no pods.
fn cluster(test: &str) -> Option<Yard> {
    let yard = Yard::start(PROGRAM, test)?;
    for (node, zone) in ZONES {
        yard.ok(&["node", "add", node]);
        patch(&yard, node, &json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}}));
    }
    yard.ok(&["node", "cordon", "node-0"]);
    Some(yard)
}

fn patch(yard: &Yard, node: &str, change: &Value) {
    yard.ok(&["patch", "node", node, "--type", "merge", "-p", &change.to_string()]);
}

/// `count` pods of a ReplicaSet `name` whose pods have this in their spec, as YAML's flow style.
fn replicas(yard: &Yard, name: &str, count: usize, placement: &str) {
    yard.apply(&format!(
        "
apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: {name}}}
spec:
  replicas: {count}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      {placement}
      containers: [{{name: main, image: podyard.local/toolbox, command: [sleep, infinity]}}]
"
    ));
}

/// Pods of `app` by node; those without one under "".
fn places(yard: &Yard, app: &str) -> BTreeMap<String, usize> {
    let mut places = BTreeMap::new();
    for pod in yard.list(&["pods", "-l", &format!("app={app}")]) {
        *places.entry(pod["spec"]["nodeName"].as_str().unwrap_or("").to_owned()).or_default() += 1;
    }
    places
}

fn map(places: &[(&str, usize)]) -> BTreeMap<String, usize> {
    places.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect()
}

/// Waits until a pod of `app` says why it has no node.
fn says(yard: &Yard, app: &str, why: &str) {
    until(&format!("a pod of {app} says {why:?}"), || {
        let pods = yard.list(&["pods", "-l", &format!("app={app}")]);
        let said = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let one = conditions.into_iter().find(|one| one["type"] == "PodScheduled").unwrap_or_default();
            one["message"].as_str().unwrap_or("").to_owned()
        };
        let all: Vec<String> = pods.iter().map(said).collect();
        if all.iter().any(|text| text.contains(why)) { Ok(()) } else { Err(all) }
    });
}

#[test]
fn root_pods_go_where_selectors_affinity_and_spread_want_them() {
    let Some(yard) = cluster("places") else { return };
    replicas(&yard, "chosen", 2, "nodeSelector: {kubernetes.io/hostname: n2}");
    yard.ready_count("app=chosen", 2);
    assert_eq!(places(&yard, "chosen"), map(&[("n2", 2)]));

    let zone_a = "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: \
                  [{matchExpressions: [{key: topology.kubernetes.io/zone, operator: NotIn, values: [b]}, \
                  {key: podyard.io/managed, operator: Exists}]}]}}}";
    replicas(&yard, "zoned", 2, zone_a);
    yard.ready_count("app=zoned", 2);
    assert_eq!(places(&yard, "zoned"), map(&[("n1", 2)]));

    // Beside another, by zone.
    let beside = "affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                  [{topologyKey: topology.kubernetes.io/zone, labelSelector: {matchLabels: {app: zoned}}}]}}";
    replicas(&yard, "beside", 2, beside);
    yard.ready_count("app=beside", 2);
    assert_eq!(places(&yard, "beside"), map(&[("n1", 2)]));

    // One per node, and no more than there are nodes.
    let alone = "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                 [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: alone}}}]}}";
    replicas(&yard, "alone", 4, alone);
    says(&yard, "alone", "didn't match pod anti-affinity rules");
    until("three of four have a node each", || {
        let places = places(&yard, "alone");
        if places == map(&[("", 1), ("n1", 1), ("n2", 1), ("n3", 1)]) { Ok(()) } else { Err(places) }
    });

    // As many in zone a, which has one node, as in zone b, which has two.
    let spread = "topologySpreadConstraints: [{maxSkew: 1, topologyKey: topology.kubernetes.io/zone, \
                  whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: spread}}}]";
    replicas(&yard, "spread", 6, spread);
    yard.ready_count("app=spread", 6);
    let found = places(&yard, "spread");
    assert_eq!(found["n1"], 3, "{found:?}");
    // A zone without a node that takes pods still counts: its own would be one too many elsewhere.
    yard.ok(&["node", "cordon", "n1"]);
    yard.ok(&["scale", "rs/spread", "--replicas", "8"]);
    says(&yard, "spread", "didn't match pod topology spread constraints");
    let found = places(&yard, "spread");
    assert_eq!((found["n1"], found[""]), (3, 1), "one more in zone b is within the skew: {found:?}");
    yard.ok(&["node", "uncordon", "n1"]);
    yard.ready_count("app=spread", 8);
    assert_eq!(places(&yard, "spread")["n1"], 4);
}

#[test]
fn root_taints_keep_pods_away_and_drive_them_away() {
    let Some(yard) = cluster("taints") else { return };
    let taint = |node: &str, taints: Value| patch(&yard, node, &json!({"spec": {"taints": taints}}));
    taint("n1", json!([{"key": "only", "value": "pets", "effect": "NoSchedule"}]));
    replicas(&yard, "any", 4, "restartPolicy: Always");
    yard.ready_count("app=any", 4);
    assert_eq!(places(&yard, "any"), map(&[("n2", 2), ("n3", 2)]));
    let tolerant = "tolerations: [{key: only, operator: Equal, value: pets, effect: NoSchedule}]\n      \
                    nodeSelector: {kubernetes.io/hostname: n1}";
    replicas(&yard, "tolerant", 1, tolerant);
    yard.ready_count("app=tolerant", 1);
    replicas(&yard, "refused", 1, "nodeSelector: {kubernetes.io/hostname: n1}");
    says(&yard, "refused", "had untolerated taint {only: pets}");

    // Who is there goes, but who tolerates it, and who does for a while goes then.
    replicas(
        &yard,
        "stays",
        1,
        "tolerations: [{operator: Exists}]\n      nodeSelector: {kubernetes.io/hostname: n2}",
    );
    let for_a_while = "tolerations: [{key: out, operator: Exists, effect: NoExecute, tolerationSeconds: 2}]\n      \
                       nodeSelector: {podyard.io/managed: 'true'}\n      \
                       affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, \
                       preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n2]}]}}]}}";
    replicas(&yard, "lingers", 1, for_a_while);
    let stays = yard.ready_count("app=stays", 1)[0]["metadata"]["uid"].clone();
    let lingers = yard.ready_count("app=lingers", 1)[0]["metadata"]["uid"].clone();
    assert_eq!(places(&yard, "lingers"), map(&[("n2", 1)]));
    let begun = std::time::Instant::now();
    taint("n2", json!([{"key": "out", "effect": "NoExecute"}]));
    until("nobody else is on n2", || {
        let places = places(&yard, "any");
        if places == map(&[("n3", 4)]) { Ok(()) } else { Err(places) }
    });
    yard.ready_count("app=any", 4);
    until("the other's time is up", || {
        let pods = yard.list(&["pods", "-l", "app=lingers"]);
        let is_it = |pod: &&Value| pod["metadata"]["uid"] == lingers;
        let stays = pods.iter().find(is_it).is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        if stays { Err(pods) } else { Ok(()) }
    });
    // Two of whole seconds, which is how times of the API are written: the first may be nearly over.
    assert!(begun.elapsed() > std::time::Duration::from_secs(1), "not before: {:?}", begun.elapsed());
    assert_eq!(yard.ready_count("app=stays", 1)[0]["metadata"]["uid"], stays);
}
