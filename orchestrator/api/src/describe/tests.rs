use super::*;
use serde_json::json;

fn related<'a>(events: &'a [Object], pods: &'a [Object], slices: &'a [Object]) -> Related<'a> {
    Related {
        events,
        pods,
        endpoint_slices: slices,
        volume: None,
        now: "2026-01-01T00:01:00Z".parse().unwrap(),
    }
}

fn pod() -> Object {
    Object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": "default", "labels": {"app": "web", "tier": "front"},
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u",
                "controller": true}]},
        "spec": {
            "nodeName": "node-0",
            "containers": [{
                "name": "a", "image": "podyard.local/toolbox", "command": ["serve"],
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "500m"}, "requests": {"cpu": "250m"}},
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "readinessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": true}],
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}}],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}], "qosClass": "Burstable",
            "startTime": "2026-01-01T00:00:01Z",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "a", "ready": true, "restartCount": 1,
                "state": {"running": {"startedAt": "2026-01-01T00:00:02Z"}},
                "lastState": {"terminated": {"exitCode": 137, "signal": 9, "reason": "Error",
                    "startedAt": "2026-01-01T00:00:01Z", "finishedAt": "2026-01-01T00:00:02Z"}}}],
        },
    }))
}

#[test]
fn a_pod() {
    let event = Object(json!({"type": "Normal", "reason": "Started", "message": "Started container a",
        "source": {"component": "podyard", "host": "node-0"}, "count": 2,
        "firstTimestamp": "2026-01-01T00:00:02Z", "lastTimestamp": "2026-01-01T00:00:50Z"}));
    let text = describe(&pod(), &related(&[event], &[], &[]));
    let expect = "\
Name:             web-0
Namespace:        default
Priority:         0
Service Account:  default
Node:             node-0/
Start Time:       Thu, 01 Jan 2026 00:00:01 +0000
Labels:           app=web
                  tier=front
Annotations:      <none>
Status:           Running
IP:               10.0.0.2
IPs:
  IP:           10.0.0.2
Controlled By:  StatefulSet/web
Containers:
  a:
    Container ID:
    Image:         podyard.local/toolbox
    Image ID:
    Port:          80/TCP
    Host Port:     0/TCP
    Command:
      serve
    State:          Running
      Started:      Thu, 01 Jan 2026 00:00:02 +0000
    Last State:     Terminated
      Reason:       Error
      Exit Code:    137
      Signal:       9
      Started:      Thu, 01 Jan 2026 00:00:01 +0000
      Finished:     Thu, 01 Jan 2026 00:00:02 +0000
    Ready:          True
    Restart Count:  1
    Limits:
      cpu:  500m
    Requests:
      cpu:      250m
    Readiness:  http-get http://:80/ delay=0s timeout=1s period=10s #success=1 #failure=3
    Environment:
      IP:   (v1:status.podIP)
    Mounts:
      /data from data (ro)
Conditions:
  Type   Status
  Ready  True
Volumes:
  data:
    Type:        PersistentVolumeClaim (a claim in the same namespace)
    ClaimName:   data-web-0
    ReadOnly:    false
QoS Class:       Burstable
Node-Selectors:  <none>
Tolerations:     <none>
Events:
  Type    Reason   Age                From     Message
  ----    ------   ----               ----     -------
  Normal  Started  10s (x2 over 58s)  podyard  Started container a
";
    assert_eq!(text, expect, "\n{text}");
}

#[test]
fn other_kinds_name_what_matters() {
    let check = |object: Value, expect: &[&str]| {
        let slice = Object(json!({"ports": [{"name": "", "port": 8080}], "endpoints": [
            {"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"], "conditions": {"ready": false}}]}));
        let text = describe(&Object(object), &related(&[], &[pod()], &[slice]));
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for wanted in expect.iter().chain(&["Events: <none>"]) {
            assert!(lines.iter().any(|line| line == wanted), "{wanted:?} is missing in\n{text}");
        }
    };
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let meta = json!({"name": "x", "namespace": "default"});
    check(
        json!({"kind": "Service", "metadata": meta, "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1",
            "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}}),
        &["IP: 10.96.0.1", "Port: <unset> 80/TCP", "TargetPort: 8080/TCP", "Endpoints: 10.0.0.2:8080"],
    );
    check(
        json!({"kind": "ReplicaSet", "metadata": meta, "spec": {"replicas": 3, "template": template,
            "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}}),
        &[
            "Replicas: 1 current / 3 desired",
            "Pods Status: 1 Running / 0 Waiting / 0 Succeeded / 0 Failed",
            "c:",
        ],
    );
    check(
        json!({"kind": "PetSet", "metadata": meta, "spec": {"replicas": 3, "template": template,
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}]}}),
        &["Replicas: 3 desired | 0 total", "Volume Claims:", "Capacity: 1Gi", "Access Modes: [RWO]"],
    );
    check(
        json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "data-web-0"}, "spec": {"volumeName": "pv"},
            "status": {"phase": "Bound"}}),
        &["Volume: pv", "Status: Bound", "Used By: web-0"],
    );
    check(
        json!({"kind": "PersistentVolume", "metadata": {"name": "pv"}, "spec": {"hostPath": {"path": "/x"},
            "claimRef": {"namespace": "n", "name": "c"}}}),
        &["Claim: n/c", "Path: /x"],
    );
    check(
        json!({"kind": "Node", "metadata": {"name": "node-0"}, "status": {"capacity": {"cpu": "2"}}}),
        &["Non-terminated Pods: (1 in total)", "cpu 250m 500m", "default web-0 250m 500m 0 0 60s"],
    );
    check(
        json!({"kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4", "ports": [{"port": 80}]}),
        &["Address Type: IPv4", "Ports:", "Port: 80"],
    );
}

#[test]
fn nothing_steers_the_terminal() {
    let mut pod = pod();
    pod.set("metadata.labels.app", "\u{1b}[2J\nName: other");
    let text = describe(&pod, &related(&[], &[], &[]));
    assert!(text.contains("app=\\u{1b}[2J\\nName: other"), "{text}");
    assert!(!text.contains('\u{1b}'));
}
