use super::*;
use crate::resource::resource_by_any_name;

fn now() -> Timestamp {
    "2026-01-01T00:01:00Z".parse().unwrap()
}

fn object(mut value: Value) -> Object {
    let name = value["metadata"]["name"].as_str().unwrap_or("x").to_string();
    value["metadata"]["name"] = name.into();
    value["metadata"]["creationTimestamp"] = "2026-01-01T00:00:30Z".into();
    Object(value)
}

#[test]
fn texts() {
    let check = |kind: &str, value: Value, wide: bool, expect: &[&str]| {
        let table = table(resource_by_any_name(kind).unwrap(), &[object(value)], wide, now());
        let text = table.to_text();
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines, expect, "{text}");
    };
    check(
        "pod",
        json!({"spec": {"containers": [{}], "nodeName": "node-0"}, "status": {"phase": "Pending", "podIP": "10.0.0.2"}}),
        true,
        &[
            "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES",
            "x 0/1 Pending 0 30s 10.0.0.2 node-0 <none> <none>",
        ],
    );
    check(
        "pod",
        json!({"spec": {"containers": [{}]}}),
        false,
        &["NAME READY STATUS RESTARTS AGE", "x 0/1 Unknown 0 30s"],
    );
    check(
        "svc",
        json!({"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "selector": {"a": "b"},
            "ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
        true,
        &[
            "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE SELECTOR",
            "x ClusterIP 10.96.0.1 <none> 80/TCP,53/UDP 30s a=b",
        ],
    );
    check(
        "rs",
        json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers":
            [{"name": "c", "image": "i"}]}}}, "status": {"replicas": 2, "readyReplicas": 1}}),
        true,
        &["NAME DESIRED CURRENT READY AGE CONTAINERS IMAGES SELECTOR", "x 3 2 1 30s c i a=b"],
    );
    for kind in ["sts", "petset"] {
        check(
            kind,
            json!({"spec": {"replicas": 3}, "status": {"readyReplicas": 1}}),
            false,
            &["NAME READY AGE", "x 1/3 30s"],
        );
    }
    check(
        "controllerrevisions",
        json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web",
            "uid": "u", "controller": true}]}, "revision": 2, "data": {}}),
        false,
        &["NAME CONTROLLER REVISION AGE", "x statefulset.apps/web 2 30s"],
    );
    check(
        "pvc",
        json!({"spec": {"volumeName": "pv-1", "storageClassName": "host", "volumeMode": "Filesystem"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}}),
        true,
        &[
            "NAME STATUS VOLUME CAPACITY ACCESS MODES STORAGECLASS VOLUMEATTRIBUTESCLASS AGE VOLUMEMODE",
            "x Bound pv-1 1Gi RWO host <unset> 30s Filesystem",
        ],
    );
    check(
        "pv",
        json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "d", "name": "c"}},
            "status": {"phase": "Bound"}}),
        false,
        &[
            "NAME CAPACITY ACCESS MODES RECLAIM POLICY STATUS CLAIM STORAGECLASS VOLUMEATTRIBUTESCLASS REASON AGE",
            "x 1Gi RWO,RWX Retain Bound d/c <unset> 30s",
        ],
    );
    check(
        "sc",
        json!({"provisioner": "podyard.io/host"}),
        false,
        &[
            "NAME PROVISIONER RECLAIMPOLICY VOLUMEBINDINGMODE ALLOWVOLUMEEXPANSION AGE",
            "x podyard.io/host Delete Immediate false 30s",
        ],
    );
    check("ns", json!({"status": {"phase": "Active"}}), false, &["NAME STATUS AGE", "x Active 30s"]);
    check(
        "node",
        json!({"spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"kubeletVersion": "v1"}}}),
        false,
        &["NAME STATUS ROLES AGE VERSION", "x Ready,SchedulingDisabled <none> 30s v1"],
    );
    check(
        "events",
        json!({"type": "Normal", "reason": "Started", "message": "Started\ncontainer a",
            "involvedObject": {"kind": "Pod", "name": "web-0"}, "lastTimestamp": "2026-01-01T00:00:50Z"}),
        false,
        &["LAST SEEN TYPE REASON OBJECT MESSAGE", "10s Normal Started pod/web-0 Started\\ncontainer a"],
    );
    check(
        "endpointslice",
        json!({"addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]}),
        false,
        &["NAME ADDRESSTYPE PORTS ENDPOINTS AGE", "x IPv4 80 10.0.0.1,10.0.0.2 30s"],
    );
}

#[test]
fn every_kind_fills_its_columns() {
    for resource in crate::RESOURCES {
        for wide in [false, true] {
            let table = table(resource, &[Object(json!({}))], wide, now());
            assert_eq!(table.columns.len(), table.rows[0].cells.len(), "{}", resource.kind);
        }
    }
}

#[test]
fn travels() {
    let pods = resource_by_any_name("po").unwrap();
    let table = table(pods, &[object(json!({"metadata": {"name": "a", "namespace": "n"}}))], true, now());
    let json = table.to_json(7, IncludeObject::Metadata);
    assert_eq!(json["metadata"]["resourceVersion"], "7");
    assert_eq!(json["columnDefinitions"][5]["priority"], 1);
    assert_eq!(json["rows"][0]["object"]["metadata"]["name"], "a");
    assert!(table.clone().with_namespace().to_text().starts_with("NAMESPACE   NAME"));
    assert!(table.with_kind(pods).to_text().contains("\npod/a "));
}
