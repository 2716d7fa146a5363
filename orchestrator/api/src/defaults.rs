//! Defaults that the schema table cannot tell, as Kubernetes fills them in.
//!
//! Source: Kubernetes API reference, "Defaults to …" of each field; the pod's requests from its limits.

use serde_json::{Map, Value, json};

use crate::object::Object;

type Tree = Map<String, Value>;

/// Fills in the defaults of a new or changed object of the stored kind `kind`.
pub(crate) fn fill(kind: &str, object: &mut Object) {
    let Some(root) = object.0.as_object_mut() else { return };
    match kind {
        "Pod" => {
            if let Some(spec) = child(root, "spec") {
                pod_spec(spec);
                requests_from_limits(spec);
            }
        }
        "Service" => map(root, "spec", service_spec),
        "ReplicaSet" => map(root, "spec", |spec| {
            default(spec, "replicas", 1);
            template(spec);
        }),
        "StatefulSet" => map(root, "spec", stateful_set_spec),
        "PersistentVolumeClaim" => map(root, "spec", |spec| default(spec, "volumeMode", "Filesystem")),
        "PersistentVolume" => map(root, "spec", |spec| {
            default(spec, "volumeMode", "Filesystem");
            default(spec, "persistentVolumeReclaimPolicy", "Retain");
            map(spec, "hostPath", |host| default(host, "type", ""));
        }),
        "StorageClass" => {
            default(root, "reclaimPolicy", "Delete");
            default(root, "volumeBindingMode", "Immediate");
        }
        "Namespace" => {
            default(root, "spec", json!({}));
            let name = root["metadata"]["name"].clone();
            root["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
        "EndpointSlice" => {
            for port in items(root, "ports") {
                default(port, "name", "");
                default(port, "protocol", "TCP");
            }
        }
        _ => {}
    }
}

/// The status a new object starts with; `None` where the kind has none, or its creator writes it.
pub(crate) fn first_status(kind: &str, object: &Object) -> Option<Value> {
    Some(match kind {
        "Pod" => json!({"phase": "Pending", "qosClass": qos_class(object)}),
        "Service" => json!({"loadBalancer": {}}),
        "ReplicaSet" => json!({"replicas": 0}),
        "StatefulSet" => json!({"replicas": 0, "availableReplicas": 0}),
        "PersistentVolumeClaim" | "PersistentVolume" => json!({"phase": "Pending"}),
        "Namespace" => json!({"phase": "Active"}),
        _ => return None,
    })
}

fn pod_spec(spec: &mut Tree) {
    default(spec, "restartPolicy", "Always");
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "enableServiceLinks", true);
    default(spec, "securityContext", json!({}));
    for list in ["containers", "initContainers"] {
        items(spec, list).for_each(container);
    }
    items(spec, "volumes").for_each(volume);
}

fn container(container: &mut Tree) {
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    if let Some(image) = container.get("image").and_then(Value::as_str) {
        let policy = pull_policy(image);
        default(container, "imagePullPolicy", policy);
    }
    for port in items(container, "ports") {
        default(port, "protocol", "TCP");
    }
    for variable in items(container, "env") {
        map(variable, "valueFrom", |from| map(from, "fieldRef", |field| default(field, "apiVersion", "v1")));
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        map(container, name, probe);
    }
    map(container, "lifecycle", |hooks| {
        map(hooks, "postStart", handler);
        map(hooks, "preStop", handler);
    });
}

/// `Always` for images that move: tag `latest`, or none. Our own images are local and never pulled.
fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    let moves = !image.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
    if moves && !image.starts_with("podyard.local/") { "Always" } else { "IfNotPresent" }
}

fn probe(probe: &mut Tree) {
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default_nonzero(probe, field, value);
    }
    handler(probe);
}

fn handler(handler: &mut Tree) {
    map(handler, "httpGet", |get| {
        default(get, "path", "/");
        default(get, "scheme", "HTTP");
    });
    map(handler, "grpc", |grpc| default(grpc, "service", ""));
}

fn volume(volume: &mut Tree) {
    if volume.keys().all(|field| field == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    map(volume, "hostPath", |host| default(host, "type", ""));
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        map(volume, source, |source| default(source, "defaultMode", 0o644));
    }
}

/// A limit without a request is also the request; in pods, not in templates.
fn requests_from_limits(spec: &mut Tree) {
    for container in items(spec, "containers") {
        map(container, "resources", |resources| {
            let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
            if !resources.contains_key("requests") {
                resources.insert("requests".into(), json!({}));
            }
            map(resources, "requests", |requests| {
                limits.into_iter().for_each(|(name, limit)| default(requests, &name, limit));
            });
        });
    }
}

fn template(spec: &mut Tree) {
    map(spec, "template", |template| map(template, "spec", pod_spec));
}

fn stateful_set_spec(spec: &mut Tree) {
    default(spec, "replicas", 1);
    default(spec, "podManagementPolicy", "OrderedReady");
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "updateStrategy", json!({}));
    map(spec, "updateStrategy", |strategy| {
        default(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            default(strategy, "rollingUpdate", json!({}));
            map(strategy, "rollingUpdate", |rolling| default(rolling, "partition", 0));
        }
    });
    default(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
    map(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
        default(policy, "whenDeleted", "Retain");
        default(policy, "whenScaled", "Retain");
    });
    template(spec);
    for claim in items(spec, "volumeClaimTemplates") {
        default(claim, "apiVersion", "v1");
        default(claim, "kind", "PersistentVolumeClaim");
        map(claim, "spec", |claim| default(claim, "volumeMode", "Filesystem"));
    }
}

fn service_spec(spec: &mut Tree) {
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        default(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10_800}}));
    }
    for port in items(spec, "ports") {
        default(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            default(port, "targetPort", number);
        }
    }
    if spec["type"] == "ExternalName" {
        return;
    }
    default(spec, "internalTrafficPolicy", "Cluster");
    default(spec, "ipFamilies", json!(["IPv4"]));
    default(spec, "ipFamilyPolicy", "SingleStack");
    if spec["type"] == "NodePort" || spec["type"] == "LoadBalancer" {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if let Some(ip) = spec.get("clusterIP").and_then(Value::as_str).filter(|ip| !ip.is_empty()) {
        let ips = json!([ip]);
        default(spec, "clusterIPs", ips);
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`. Source: Kubernetes documentation, "Pod Quality of Service Classes".
pub fn qos_class(pod: &Object) -> &'static str {
    let (mut any, mut all_limited) = (false, true);
    for container in pod.get_array("spec.containers") {
        let resources = &container["resources"];
        for name in ["cpu", "memory"] {
            let (limit, request) = (&resources["limits"][name], &resources["requests"][name]);
            any |= !limit.is_null() || !request.is_null();
            all_limited &= !limit.is_null() && (request.is_null() || limit == request);
        }
    }
    match (any, all_limited) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn default(tree: &mut Tree, field: &str, value: impl Into<Value>) {
    if !tree.contains_key(field) {
        tree.insert(field.into(), value.into());
    }
}

fn default_nonzero(tree: &mut Tree, field: &str, value: i64) {
    if tree.get(field).is_none_or(|v| v.as_i64() == Some(0)) {
        tree.insert(field.into(), value.into());
    }
}

fn child<'a>(tree: &'a mut Tree, field: &str) -> Option<&'a mut Tree> {
    tree.get_mut(field)?.as_object_mut()
}

fn map(tree: &mut Tree, field: &str, f: impl FnOnce(&mut Tree)) {
    if let Some(inner) = child(tree, field) {
        f(inner);
    }
}

fn items<'a>(tree: &'a mut Tree, field: &str) -> impl Iterator<Item = &'a mut Tree> {
    let list = tree.get_mut(field).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(kind: &str, value: Value) -> Value {
        let mut object = Object(value);
        fill(kind, &mut object);
        object.0
    }

    #[test]
    fn pods() {
        let pod = filled(
            "Pod",
            json!({"spec": {
                "containers": [{
                    "name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "1"}},
                    "readinessProbe": {"httpGet": {"port": 80}},
                    "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                }],
                "volumes": [{"name": "v"}, {"name": "h", "hostPath": {"path": "/x"}}],
            }}),
        );
        let spec = &pod["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["hostPath"]["type"], "");
        let container = &spec["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(container["resources"]["requests"]["cpu"], "1");
        assert_eq!(container["readinessProbe"]["periodSeconds"], 10);
        assert_eq!(
            container["readinessProbe"]["httpGet"],
            json!({"port": 80, "path": "/", "scheme": "HTTP"})
        );
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    }

    #[test]
    fn is_idempotent() {
        let value = json!({"metadata": {"name": "w"}, "spec": {
            "template": {"spec": {"containers": [{"name": "a", "image": "b:1"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}],
            "ports": [{"port": 1}],
        }});
        for kind in ["Pod", "Service", "ReplicaSet", "StatefulSet", "Namespace"] {
            let once = filled(kind, value.clone());
            assert_eq!(filled(kind, once.clone()), once, "{kind}");
        }
    }

    #[test]
    fn pull_policies() {
        let check = |image: &str, expect: &str| assert_eq!(pull_policy(image), expect, "{image}");
        check("nginx", "Always");
        check("nginx:latest", "Always");
        check("nginx:1.27", "IfNotPresent");
        check("localhost:5000/nginx", "Always");
        check("nginx@sha256:00", "IfNotPresent");
        check("podyard.local/toolbox", "IfNotPresent");
    }

    #[test]
    fn qos() {
        let check = |resources: Value, expect: &str| {
            let pod = Object(json!({"spec": {"containers": [{"resources": resources}]}}));
            assert_eq!(qos_class(&pod), expect);
        };
        check(json!({}), "BestEffort");
        check(json!({"requests": {"cpu": "1"}}), "Burstable");
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable");
    }

    #[test]
    fn services_and_pets() {
        let service = filled("Service", json!({"spec": {"ports": [{"port": 80}], "clusterIP": "None"}}));
        assert_eq!(service["spec"]["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
        assert_eq!(service["spec"]["clusterIPs"], json!(["None"]));
        let pets = filled("StatefulSet", json!({"spec": {"updateStrategy": {"type": "OnDelete"}}}));
        assert_eq!(pets["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
        assert_eq!(pets["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"], "Retain");
    }
}
