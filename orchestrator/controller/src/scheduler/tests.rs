use super::*;
use crate::ledger::Amount;
use crate::testing::{cache, look, now, pod, ready, with};

fn node(name: &str, patch: Value) -> Object {
    let base = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": {"disk": "ssd"}},
        "spec": {"podCIDR": "10.0.0.0/29"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"cpu": "1", "memory": "1Gi", "pods": "3"}},
    });
    with(&Object(base), patch)
}

#[track_caller]
fn check(wanting: Object, others: &[Object], expect: &str) {
    let key = wanting.key();
    let plan = look(super::look, &key, others.iter().cloned().chain([wanting]));
    let said = plan.steps.iter().map(|step| match &step.call {
        Call::Bind { node, pod_ip, .. } => match pod_ip {
            Some(address) => format!("{node} {address}"),
            None => node.clone(),
        },
        Call::Update { object, .. } => object.0["status"]["conditions"][0]["message"].to_string(),
        other => format!("{other:?}"),
    });
    assert_eq!(said.collect::<Vec<_>>().join("; ").replace('"', ""), expect);
}

fn wanting(patch: Value) -> Object {
    pod("w", patch)
}

#[test]
fn node_and_address_come_in_one_write() {
    check(wanting(json!({})), &[node("node-0", json!({}))], "node-0 10.0.0.5");
}

#[test]
fn no_address_is_given_twice() {
    let taken = pod("a", ready("10.0.0.5"));
    check(wanting(json!({})), &[node("node-0", json!({})), taken], "node-0 10.0.0.6");
    let ended = pod("a", with(&Object(ready("10.0.0.5")), json!({"status": {"phase": "Failed"}})).0);
    check(wanting(json!({})), &[node("node-0", json!({})), ended], "node-0 10.0.0.5");
}

#[test]
fn what_is_being_bound_is_taken() {
    let cache = cache([node("node-0", json!({})), wanting(json!({}))]);
    let amount = Amount { millicpu: 0, memory_bytes: 0, pods: 1 };
    let binding = Binding { node: "node-0".into(), address: Some("10.0.0.5".parse().unwrap()), amount };
    let mut assumed = Assumed::new();
    assumed.put(Key::core("pods", "n", "other"), binding);
    let view = View { cache: &cache, assumed: &assumed, now: now() };
    let placed = place(&view, &wanting(json!({}))).unwrap();
    assert_eq!(placed.address, Some("10.0.0.6".parse().unwrap()));
}

#[test]
fn a_pod_that_names_its_node_gets_an_address_there() {
    let nodes = [node("node-0", json!({})), node("node-1", json!({"spec": {"podCIDR": "10.0.1.0/29"}}))];
    check(wanting(json!({"spec": {"nodeName": "node-1"}})), &nodes, "node-1 10.0.1.5");
}

#[test]
fn a_node_must_be_ready_schedulable_tolerated_selected() {
    let none = "0/1 nodes are available: 1";
    let check = |pod: Value, patch: Value, expect: &str| check(wanting(pod), &[node("n", patch)], expect);
    let why = |why: &str| format!("{none} {why}.");
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    check(json!({}), not_ready, &why("node(s) had untolerated taint {node.kubernetes.io/not-ready: }"));
    check(json!({}), json!({"spec": {"unschedulable": true}}), &why("node(s) were unschedulable"));
    let ssd = json!({"spec": {"nodeSelector": {"disk": "ssd"}}});
    check(ssd, json!({}), "n 10.0.0.5");
    let hdd = json!({"spec": {"nodeSelector": {"disk": "hdd"}}});
    check(hdd, json!({}), &why("node(s) didn't match Pod's node affinity/selector"));
    let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    check(json!({}), taint.clone(), &why("node(s) had untolerated taint {k: v}"));
    for toleration in [json!({"operator": "Exists"}), json!({"key": "k", "value": "v"})] {
        check(json!({"spec": {"tolerations": [toleration]}}), taint.clone(), "n 10.0.0.5");
    }
    let wrong = json!({"key": "k", "value": "w"});
    let untolerated = why("node(s) had untolerated taint {k: v}");
    check(json!({"spec": {"tolerations": [wrong]}}), taint, &untolerated);
}

#[test]
fn a_node_must_have_room() {
    let asks = |cpu: &str, memory: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]});
    let used = pod("a", json!({"spec": asks("600m", "512Mi")}));
    let used = with(&used, json!({"spec": {"nodeName": "n"}}));
    let check = |spec: Value, expect: &str| {
        check(wanting(json!({"spec": spec})), &[node("n", json!({})), used.clone()], expect);
    };
    check(asks("400m", "512Mi"), "n 10.0.0.5");
    check(asks("401m", "0"), "0/1 nodes are available: 1 Insufficient cpu.");
    check(asks("0", "513Mi"), "0/1 nodes are available: 1 Insufficient memory.");
    super::tests::check(wanting(json!({})), &[], "no nodes available to schedule pods");
    let three: Vec<Object> = ["a", "b", "c"]
        .map(|name| pod(name, json!({"spec": {"nodeName": "n"}})))
        .into_iter()
        .chain([node("n", json!({}))])
        .collect();
    super::tests::check(wanting(json!({})), &three, "0/1 nodes are available: 1 Too many pods.");
}

#[test]
fn no_address_left_is_said() {
    let full: Vec<Object> = (2..7)
        .map(|n| pod(&format!("p{n}"), json!({"status": {"podIP": format!("10.0.0.{n}")}})))
        .chain([node("n", json!({}))])
        .collect();
    check(wanting(json!({})), &full, "0/1 nodes are available: 1 node(s) had no free pod address.");
}

#[test]
fn a_claim_must_be_there_to_stay_but_not_bound() {
    let pod = wanting(json!({"spec": {"volumes": [
        {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}}));
    let claim = Object(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": "n", "uid": "c", "resourceVersion": "1"}}));
    let going = with(&claim, json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}}));
    let node = node("n", json!({}));
    check(
        pod.clone(),
        std::slice::from_ref(&node),
        "0/1 nodes are available: persistentvolumeclaim \\data\\ not found.",
    );
    check(
        pod.clone(),
        &[node.clone(), going],
        "0/1 nodes are available: persistentvolumeclaim \\data\\ is being deleted.",
    );
    check(pod, &[node, claim], "n 10.0.0.5");
}

#[test]
fn siblings_spread() {
    let owner = pod("owner", json!({}));
    let sibling = crate::testing::owned(pod("a", ready("10.0.0.2")), &owner);
    let nodes = [node("node-0", json!({})), node("node-1", json!({"spec": {"podCIDR": "10.0.1.0/29"}}))];
    let others: Vec<Object> = nodes.into_iter().chain([sibling]).collect();
    check(crate::testing::owned(wanting(json!({})), &owner), &others, "node-1 10.0.1.5");
}

#[test]
fn what_is_said_already_is_not_said_again() {
    let message = "no nodes available to schedule pods";
    let status = json!({"status": {"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}});
    check(wanting(status), &[], "");
}

/// Three nodes in two zones; each has room for three pods.
fn zoned() -> Vec<Object> {
    let place = |(n, zone): (u32, &str)| {
        let name = format!("n{n}");
        let labels = json!({"kubernetes.io/hostname": name, "zone": zone});
        let cidr = format!("10.0.{n}.0/29");
        node(&name, json!({"metadata": {"labels": labels}, "spec": {"podCIDR": cidr}}))
    };
    [(1, "a"), (2, "a"), (3, "b")].map(place).into()
}

/// A pod of some app on a node.
fn on(node: &str, name: &str, app: &str, patch: Value) -> Object {
    let here = json!({"metadata": {"labels": {"app": app}}, "spec": {"nodeName": node}});
    with(&pod(name, here), patch)
}

/// The node chosen, or why there is none.
#[track_caller]
fn check_node(wanting: Object, others: &[Object], expect: &str) {
    let (cache, assumed) = (cache(others.iter().cloned()), Assumed::new());
    let view = View { cache: &cache, assumed: &assumed, now: now() };
    let place = place(&view, &wanting);
    let said = place.map_or_else(|why| why, |binding| binding.node);
    assert_eq!(said.trim_start_matches("0/3 nodes are available: "), expect);
}

fn with_pods(pods: impl IntoIterator<Item = Object>) -> Vec<Object> {
    zoned().into_iter().chain(pods).collect()
}

fn affine(kind: &str, list: Value) -> Value {
    json!({"spec": {"affinity": {kind: list}}})
}

fn term(app: &str, topology: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": topology})
}

fn required(terms: Value) -> Value {
    json!({"requiredDuringSchedulingIgnoredDuringExecution": terms})
}

fn preferred(weight: i64, term: &Value) -> Value {
    json!({"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight": weight, "podAffinityTerm": term}]})
}

#[test]
fn node_affinity_required_and_preferred() {
    let zone =
        |zone: &str| json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]});
    let must = |zone: Value| affine("nodeAffinity", required(json!({"nodeSelectorTerms": [zone]})));
    check_node(wanting(must(zone("b"))), &zoned(), "n3");
    let none = "3 node(s) didn't match Pod's node affinity/selector.";
    check_node(wanting(must(zone("c"))), &zoned(), none);
    let name = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]});
    check_node(wanting(must(name)), &zoned(), "n2");
    let likes = affine(
        "nodeAffinity",
        json!({"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight": 5, "preference": zone("b")}, {"weight": 4, "preference": zone("a")}]}),
    );
    check_node(wanting(likes), &zoned(), "n3");
}

#[test]
fn pod_affinity_required() {
    let near = |topology: &str| wanting(affine("podAffinity", required(json!([term("db", topology)]))));
    let db = with_pods([on("n1", "db", "db", json!({}))]);
    check_node(near("kubernetes.io/hostname"), &db, "n1");
    // Not the node with the database, which is fuller, but its zone.
    check_node(near("zone"), &db, "n2");
    check_node(near("zone"), &zoned(), "3 node(s) didn't match pod affinity rules.");
    check_node(near("rack"), &db, "3 node(s) didn't match pod affinity rules.");
    let ended = with_pods([on("n1", "db", "db", json!({"status": {"phase": "Failed"}}))]);
    check_node(near("zone"), &ended, "3 node(s) didn't match pod affinity rules.");
}

#[test]
fn pod_affinity_to_its_own_kind_lets_the_first_one_in() {
    let own = wanting(affine("podAffinity", required(json!([term("web", "zone")]))));
    check_node(own.clone(), &zoned(), "n1");
    check_node(own, &with_pods([on("n3", "web", "web", json!({}))]), "n3");
}

#[test]
fn pod_affinity_terms_must_all_match_one_pod() {
    let both = wanting(affine(
        "podAffinity",
        required(json!([term("db", "zone"),
        {"labelSelector": {"matchLabels": {"tier": "fast"}}, "topologyKey": "zone"}])),
    ));
    let fast = json!({"metadata": {"labels": {"tier": "fast"}}});
    let apart = with_pods([on("n1", "db", "db", json!({})), on("n3", "x", "x", fast.clone())]);
    check_node(both.clone(), &apart, "3 node(s) didn't match pod affinity rules.");
    check_node(both, &with_pods([on("n3", "db", "db", fast)]), "n3");
}

#[test]
fn pod_anti_affinity_required() {
    let far = |topology: &str| wanting(affine("podAntiAffinity", required(json!([term("web", topology)]))));
    let some = with_pods([on("n1", "a", "web", json!({}))]);
    check_node(far("kubernetes.io/hostname"), &some, "n2");
    check_node(far("zone"), &some, "n3");
    let all = ["n1", "n2", "n3"].map(|node| on(node, node, "web", json!({})));
    check_node(far("zone"), &with_pods(all), "3 node(s) didn't match pod anti-affinity rules.");
    // A node without the label is in no domain.
    let bare = [node("bare", json!({}))];
    check_node(far("zone"), &bare, "bare");
}

#[test]
fn pods_that_are_there_keep_others_away() {
    let hermit = affine("podAntiAffinity", required(json!([term("web", "zone")])));
    let there = with_pods([on("n1", "db", "db", hermit.clone())]);
    check_node(wanting(json!({})), &there, "n3");
    let pods = [on("n1", "db", "db", hermit.clone()), on("n3", "dc", "db", hermit)];
    check_node(
        wanting(json!({})),
        &with_pods(pods),
        "3 node(s) didn't satisfy existing pods anti-affinity rules.",
    );
}

#[test]
fn pod_affinity_preferred_by_either_side() {
    let db = || with_pods([on("n3", "db", "db", json!({}))]);
    let near = affine("podAffinity", preferred(10, &term("db", "zone")));
    check_node(wanting(near), &db(), "n3");
    let far = affine("podAntiAffinity", preferred(10, &term("db", "zone")));
    check_node(wanting(far), &with_pods([on("n1", "db", "db", json!({}))]), "n3");
    let loves = affine("podAffinity", preferred(10, &term("web", "zone")));
    check_node(wanting(json!({})), &with_pods([on("n3", "db", "db", loves)]), "n3");
    let needs = affine("podAffinity", required(json!([term("web", "zone")])));
    check_node(wanting(json!({})), &with_pods([on("n3", "db", "db", needs)]), "n3");
    let hates = affine("podAntiAffinity", preferred(10, &term("web", "zone")));
    check_node(wanting(json!({})), &with_pods([on("n1", "db", "db", hates)]), "n3");
}

#[test]
fn pod_affinity_looks_at_its_namespaces() {
    let near = |extra: Value| {
        let term = with(&Object(term("db", "zone")), extra).0;
        wanting(affine("podAffinity", required(json!([term]))))
    };
    let shop = Object(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "uid": "s", "resourceVersion": "1", "labels": {"team": "a"}}}));
    let db = on("n3", "db", "db", json!({"metadata": {"namespace": "shop"}}));
    let there = with_pods([db, shop]);
    let none = "3 node(s) didn't match pod affinity rules.";
    check_node(near(json!({})), &there, none);
    check_node(near(json!({"namespaces": ["shop"]})), &there, "n3");
    check_node(near(json!({"namespaceSelector": {}})), &there, "n3");
    check_node(near(json!({"namespaceSelector": {"matchLabels": {"team": "a"}}})), &there, "n3");
    check_node(near(json!({"namespaceSelector": {"matchLabels": {"team": "b"}}})), &there, none);
}

#[test]
fn match_label_keys_narrow_a_term_to_the_pods_own_value() {
    let keyed = |field: &str| {
        let term = with(&Object(term("web", "zone")), json!({field: ["rev"]})).0;
        let rev = json!({"metadata": {"labels": {"rev": "2"}}});
        wanting(with(&Object(affine("podAntiAffinity", required(json!([term])))), rev).0)
    };
    let old = on("n1", "a", "web", json!({"metadata": {"labels": {"rev": "1"}}}));
    let new = on("n3", "b", "web", json!({"metadata": {"labels": {"rev": "2"}}}));
    check_node(keyed("matchLabelKeys"), &with_pods([old.clone(), new.clone()]), "n2");
    check_node(keyed("mismatchLabelKeys"), &with_pods([old, new]), "n3");
}

fn spread(patch: Value) -> Object {
    let base = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    wanting(json!({"spec": {"topologySpreadConstraints": [with(&Object(base), patch).0]}}))
}

#[test]
fn topology_spread_max_skew() {
    let one = on("n3", "a", "web", json!({}));
    check_node(spread(json!({})), &with_pods([one.clone()]), "n1");
    let full = json!({"spec": {"nodeSelector": {"zone": "b"}}});
    let stuck = with(&spread(json!({"nodeAffinityPolicy": "Ignore"})), full.clone());
    let none = "1 node(s) didn't match pod topology spread constraints, \
                2 node(s) didn't match Pod's node affinity/selector.";
    check_node(stuck, &with_pods([one.clone()]), none);
    // Only the domains it may be in count, unless it says otherwise.
    check_node(with(&spread(json!({})), full.clone()), &with_pods([one.clone()]), "n3");
    let loose = with(&spread(json!({"nodeAffinityPolicy": "Ignore", "maxSkew": 2})), full);
    check_node(loose, &with_pods([one]), "n3");
}

#[test]
fn topology_spread_counts_live_pods_of_its_kind() {
    let going = json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"}});
    let pods = [on("n1", "a", "web", json!({})), on("n3", "b", "web", going), on("n3", "c", "db", json!({}))];
    check_node(spread(json!({})), &with_pods(pods), "n3");
}

#[test]
fn topology_spread_min_domains() {
    let pods = [on("n1", "a", "web", json!({})), on("n3", "b", "web", json!({}))];
    check_node(spread(json!({})), &with_pods(pods.clone()), "n2");
    let none = "3 node(s) didn't match pod topology spread constraints.";
    check_node(spread(json!({"minDomains": 3})), &with_pods(pods), none);
}

#[test]
fn topology_spread_needs_the_label() {
    let none = "3 node(s) didn't match pod topology spread constraints (missing required label).";
    check_node(spread(json!({"topologyKey": "rack"})), &zoned(), none);
}

#[test]
fn topology_spread_node_taints_policy() {
    let mut nodes = with_pods([on("n1", "a", "web", json!({})), on("n2", "b", "web", json!({}))]);
    nodes[2].set("spec.taints", json!([{"key": "k", "effect": "NoSchedule"}]));
    let none =
        "1 node(s) had untolerated taint {k: }, 2 node(s) didn't match pod topology spread constraints.";
    check_node(spread(json!({})), &nodes, none);
    check_node(spread(json!({"nodeTaintsPolicy": "Honor"})), &nodes, "n1");
}

#[test]
fn topology_spread_anyway_prefers_the_emptier_domain() {
    let anyway = spread(json!({"whenUnsatisfiable": "ScheduleAnyway"}));
    check_node(anyway.clone(), &with_pods([on("n1", "a", "web", json!({}))]), "n3");
    check_node(anyway, &zoned()[..1], "n1");
}

#[test]
fn prefer_no_schedule_is_avoided_unless_tolerated() {
    let mut nodes = zoned();
    nodes[0].set("spec.taints", json!([{"key": "k", "effect": "PreferNoSchedule"}]));
    check_node(wanting(json!({})), &nodes, "n2");
    check_node(wanting(json!({"spec": {"tolerations": [{"operator": "Exists"}]}})), &nodes, "n1");
    check_node(wanting(json!({})), &nodes[..1], "n1");
}

#[test]
fn a_cordon_may_be_tolerated() {
    let mut nodes = zoned();
    nodes.iter_mut().for_each(|node| node.set("spec.unschedulable", true));
    check_node(wanting(json!({})), &nodes, "3 node(s) were unschedulable.");
    let key = api::node::UNSCHEDULABLE_TAINT;
    let tolerates = json!({"spec": {"tolerations": [{"key": key, "operator": "Exists"}]}});
    check_node(wanting(tolerates), &nodes, "n1");
}

#[test]
fn a_node_that_is_not_ready_repels_before_its_taint_is_written() {
    let mut nodes = zoned();
    let conditions = |status: &str| json!([{"type": "Ready", "status": status}]);
    nodes[0].set("status.conditions", conditions("Unknown"));
    nodes[1].set("status.conditions", conditions("False"));
    check_node(wanting(json!({})), &nodes, "n3");
    let none = "1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }, \
                1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }.";
    let said = none;
    let (cache, assumed) = (cache(nodes[..2].to_vec()), Assumed::new());
    let view = View { cache: &cache, assumed: &assumed, now: now() };
    assert_eq!(place(&view, &wanting(json!({}))).unwrap_err(), format!("0/2 nodes are available: {said}"));
}

#[test]
fn every_lack_of_a_node_is_counted() {
    let greedy = json!({"spec": {"containers": [
        {"name": "c", "resources": {"requests": {"cpu": "9", "memory": "9Gi"}}}]}});
    check_node(wanting(greedy), &zoned(), "3 Insufficient cpu, 3 Insufficient memory.");
}

#[test]
fn a_claim_for_one_pod_is_not_anothers() {
    let volumes =
        json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    let claim = Object(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": "n", "uid": "c", "resourceVersion": "1"},
        "spec": {"accessModes": ["ReadWriteOncePod"]}}));
    let none =
        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode.";
    check_node(wanting(volumes.clone()), &with_pods([claim.clone()]), "n1");
    let other = on("n1", "a", "web", volumes.clone());
    check_node(wanting(volumes.clone()), &with_pods([claim.clone(), other.clone()]), none);
    let ended = with(&other, json!({"status": {"phase": "Succeeded"}}));
    check_node(wanting(volumes), &with_pods([claim, ended]), "n1");
}

#[test]
fn a_controllers_pods_are_spread_over_the_nodes() {
    let owner = pod("owner", json!({}));
    let mut world = zoned();
    for n in 0..9 {
        let name = format!("w{n}");
        let wanting = crate::testing::owned(pod(&name, json!({})), &owner);
        let (cache, assumed) = (cache(world.iter().cloned()), Assumed::new());
        let view = View { cache: &cache, assumed: &assumed, now: now() };
        let node = place(&view, &wanting).unwrap().node;
        world.push(with(&wanting, json!({"spec": {"nodeName": node}})));
    }
    let on = |node: &str| world.iter().filter(|pod| pod.get_str("spec.nodeName") == Some(node)).count();
    assert_eq!(["n1", "n2", "n3"].map(on), [3, 3, 3]);
}

/// Bounds that hold even unoptimised, by CPU time of this thread. Figures with `--nocapture`.
#[test]
fn a_decision_among_a_thousand_pods_on_ten_nodes_is_quick() {
    let mut world: Vec<Object> = (0..10)
        .map(|n| {
            let name = format!("n{n}");
            let labels = json!({"kubernetes.io/hostname": name, "zone": format!("z{}", n % 3)});
            let roomy = json!({"cpu": "64", "memory": "64Gi", "pods": "250"});
            node(
                &name,
                json!({"metadata": {"labels": labels}, "spec": {"podCIDR": format!("10.{n}.0.0/16")},
                "status": {"allocatable": roomy}}),
            )
        })
        .collect();
    world.extend((0..1000).map(|n| {
        let address = format!("10.{}.1.{}", n % 10, n / 10 + 2);
        let place = json!({"spec": {"nodeName": format!("n{}", n % 10)}, "status": {"podIP": address}});
        pod(&format!("p{n}"), place)
    }));
    let (cache, assumed) = (cache(world), Assumed::new());
    let view = View { cache: &cache, assumed: &assumed, now: now() };
    let far = affine("podAntiAffinity", preferred(10, &term("web", "kubernetes.io/hostname")));
    for (what, pod, most) in [
        ("plain", wanting(json!({})), 20_000),
        ("spread by zone", spread(json!({})), 40_000),
        ("preferring distance", wanting(far), 40_000),
    ] {
        let start = crate::testing::cpu_micros();
        for _ in 0..10 {
            place(&view, &pod).unwrap();
        }
        let micros = (crate::testing::cpu_micros() - start) / 10;
        println!("{what}: {micros} µs");
        assert!(micros < most, "{what}: {micros} µs");
    }
}
