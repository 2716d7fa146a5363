use super::*;
use crate::resource::resource_by_any_name;
use crate::{Kind, Object};
use serde_json::json;

fn context() -> AdmitContext {
    AdmitContext {
        now: "2026-01-02T03:04:05Z".parse().unwrap(),
        new_uid: "u-1".into(),
        namespace: "default".into(),
        name_suffix: "x7k2p".into(),
        validation: FieldValidation::Strict,
    }
}

fn create(kind: &str, value: Value) -> Result<Admitted, Error> {
    admit_create(resource_by_any_name(kind).unwrap(), value, &context())
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "a", "image": "podyard.local/toolbox"}]},
    })
}

fn sets() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {
            "serviceName": "db", "replicas": 3,
            "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
                "containers": [{"name": "a", "image": "i:1", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}],
            }},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
        },
    })
}

fn with(mut value: Value, path: &str, new: Value) -> Value {
    let mut object = Object(value.take());
    if new.is_null() {
        object.remove(path)
    } else {
        object.set(path, new)
    }
    object.0
}

/// Fields named by the refusal; empty if admitted.
fn fields(result: Result<Admitted, Error>) -> Vec<String> {
    match result {
        Ok(_) => Vec::new(),
        Err(error) if error.kind() == Kind::Invalid => {
            error.details.causes.iter().map(|cause| cause.field.clone()).collect()
        }
        Err(error) => vec![format!("{:?} {error}", error.kind())],
    }
}

#[test]
fn a_new_pod() {
    let admitted = create("pod", pod()).unwrap();
    let object = &admitted.object;
    assert_eq!(admitted.warnings, [""; 0]);
    assert_eq!(object.uid(), "u-1");
    assert_eq!(object.namespace(), "default");
    assert_eq!(object.generation(), 1);
    assert_eq!(object.get_str("metadata.creationTimestamp"), Some("2026-01-02T03:04:05Z"));
    assert_eq!(object.get("status"), Some(&json!({"phase": "Pending", "qosClass": "BestEffort"})));
    assert_eq!(object.resource_version(), None);
    let view: k8s_openapi::api::core::v1::Pod = object.view().unwrap();
    assert_eq!(view.spec.unwrap().restart_policy.as_deref(), Some("Always"));
}

#[test]
fn strict() {
    let mut bad = with(pod(), "spec.containers.0.imagee", json!("x"));
    bad["spec"]["foo"] = json!(1);
    let error = create("pod", bad.clone()).unwrap_err();
    assert_eq!(error.code(), 400);
    assert_eq!(
        error.message,
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \
         \"spec.containers[0].imagee\", unknown field \"spec.foo\""
    );
    let warn = AdmitContext { validation: FieldValidation::Warn, ..context() };
    let admitted = admit_create(resource_by_any_name("pod").unwrap(), bad, &warn).unwrap();
    assert_eq!(
        admitted.warnings,
        ["unknown field \"spec.containers[0].imagee\"", "unknown field \"spec.foo\""]
    );
    assert_eq!(admitted.object.get("spec.foo"), None);
}

#[test]
fn pod_rules() {
    let check = |path: &str, value: Value, expect: &[&str]| {
        let result = create("pod", with(pod(), path, value.clone()));
        assert_eq!(fields(result), expect, "{path} = {value}");
    };
    check("metadata.name", json!("a.b"), &[]);
    check("metadata.name", json!("A"), &["metadata.name"]);
    check("metadata.name", Value::Null, &["metadata.name"]);
    check("metadata.labels.-x", json!("a"), &["metadata.labels"]);
    check("metadata.labels.x", json!("a b"), &["metadata.labels"]);
    check("spec.containers", json!([]), &["spec.containers"]);
    check("spec.containers.0.name", Value::Null, &[]);
    check("spec.containers.0.name", json!(""), &["spec.containers[0].name"]);
    check("spec.containers.0.name", json!("A"), &["spec.containers[0].name"]);
    check("spec.containers.0.image", json!(""), &["spec.containers[0].image"]);
    check("spec.restartPolicy", json!("Sometimes"), &["spec.restartPolicy"]);
    check("spec.terminationGracePeriodSeconds", json!(-1), &["spec.terminationGracePeriodSeconds"]);
    check("spec.hostNetwork", json!(true), &["spec.hostNetwork"]);
    check(
        "spec.containers.0.securityContext",
        json!({"privileged": true}),
        &["spec.containers[0].securityContext.privileged"],
    );
    check("spec.containers.0.securityContext", json!({"privileged": false, "runAsUser": 1000}), &[]);
    check(
        "spec.containers.0.volumeMounts",
        json!([{"name": "v", "mountPath": "/v"}]),
        &["spec.containers[0].volumeMounts[0].name"],
    );
    check(
        "spec.volumes",
        json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]),
        &["spec.volumes[0].hostPath"],
    );
    check(
        "spec.volumes",
        json!([{"name": "v", "hostPath": {"path": "/x/../y"}}]),
        &["spec.volumes[0].hostPath.path"],
    );
    check("spec.volumes", json!([{"name": "v"}, {"name": "v"}]), &["spec.volumes[1].name"]);
    check("spec.volumes", json!([{"name": "v", "configMap": {"name": "x"}}]), &["spec.volumes[0].configMap"]);
    check(
        "spec.containers.0.ports",
        json!([{"containerPort": 0}]),
        &["spec.containers[0].ports[0].containerPort"],
    );
    check(
        "spec.containers.0.resources",
        json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
        &["spec.containers[0].resources.requests"],
    );
    check(
        "spec.containers.0.resources",
        json!({"limits": {"gpu": "1"}}),
        &["spec.containers[0].resources.limits[gpu]", "spec.containers[0].resources.requests[gpu]"],
    );
    check("spec.containers.0.resources", json!({"limits": {"podyard.io/pids": "64"}}), &[]);
    check("spec.containers.0.readinessProbe", json!({}), &["spec.containers[0].readinessProbe"]);
    check("spec.containers.0.readinessProbe", json!({"tcpSocket": {"port": "http"}}), &[]);
    check(
        "spec.containers.0.env",
        json!([{"name": "A=B", "value": "x"}]),
        &["spec.containers[0].env[0].name"],
    );
    check("spec.containers.0.restartPolicy", json!("Always"), &["spec.containers[0].restartPolicy"]);
    check("spec.initContainers", json!([{"name": "i", "image": "x", "restartPolicy": "Always"}]), &[]);
    check("spec.initContainers", json!([{"name": "a", "image": "x"}]), &["spec.initContainers[0].name"]);
    check(
        "metadata.annotations",
        json!({"podyard.io/pids-limit": "0"}),
        &["metadata.annotations[podyard.io/pids-limit]"],
    );
    check("spec.dnsPolicy", json!("None"), &["spec.dnsConfig.nameservers"]);
    check(
        "metadata.ownerReferences",
        json!([{"kind": "A", "apiVersion": "v1", "name": "a"}]),
        &["metadata.ownerReferences[0].uid"],
    );
}

#[test]
fn the_name_is_required_by_words() {
    let error = create("pod", with(pod(), "spec.containers.0.name", json!(""))).unwrap_err();
    assert_eq!(error.message, "Pod \"web\" is invalid: spec.containers[0].name: Required value");
    assert_eq!(error.details.causes[0].reason, "FieldValueRequired");
    assert_eq!((error.code(), error.details.kind.as_str()), (422, "Pod"));
}

#[test]
fn not_implemented_is_said() {
    let admitted = create("pod", with(pod(), "spec.priority", json!(1))).unwrap();
    assert_eq!(admitted.warnings, ["not implemented yet: spec.priority"]);
}

#[test]
fn generated_names_and_namespaces() {
    let mut value = with(pod(), "metadata.name", Value::Null);
    value["metadata"]["generateName"] = json!("web-");
    assert_eq!(create("pod", value).unwrap().object.name(), "web-x7k2p");
    let other = with(pod(), "metadata.namespace", json!("other"));
    assert_eq!(create("pod", other).unwrap_err().kind(), Kind::BadRequest);
    assert_eq!(create("svc", pod()).unwrap_err().kind(), Kind::BadRequest);
    assert_eq!(create("pod", json!([])).unwrap_err().kind(), Kind::BadRequest);
}

#[test]
fn updates_keep_what_is_not_theirs() {
    let pods = resource_by_any_name("pod").unwrap();
    let mut old = create("pod", pod()).unwrap().object;
    old.set_resource_version(Some(7));
    let same = admit_update(pods, &old, old.0.clone(), Part::Main).unwrap();
    let mut stored = old.clone();
    stored.set_resource_version(None);
    assert_eq!(same.object, stored, "nothing but the resource version, which is not stored, differs");
    let mut new = old.clone();
    new.set("metadata.uid", "u-1");
    new.set("metadata.labels.tier", "front");
    new.set("metadata.deletionTimestamp", "2026-01-02T03:04:05Z");
    new.set("status.phase", "Running");
    let admitted = admit_update(pods, &old, new.0.clone(), Part::Main).unwrap();
    assert_eq!(admitted.object.label("tier"), Some("front"));
    assert_eq!(admitted.object.get_str("status.phase"), Some("Pending"));
    assert!(!admitted.object.is_deleting());
    assert_eq!(admitted.object.generation(), 1);
    let status = admit_update(pods, &old, new.0.clone(), Part::Status).unwrap();
    assert_eq!(status.object.get_str("status.phase"), Some("Running"));
    assert_eq!(status.object.label("tier"), None);

    new.set("metadata.resourceVersion", "6");
    assert_eq!(admit_update(pods, &old, new.0.clone(), Part::Main).unwrap_err().kind(), Kind::Conflict);
    new.set("metadata.resourceVersion", "7");
    new.set("metadata.uid", "u-2");
    assert_eq!(admit_update(pods, &old, new.0, Part::Main).unwrap_err().kind(), Kind::Conflict);
}

#[test]
fn immutable_fields() {
    let check = |kind: &str, old: &Value, path: &str, value: Value, expect: &[&str]| {
        let resource = resource_by_any_name(kind).unwrap();
        let old = create(kind, old.clone()).unwrap().object;
        let new = with(old.0.clone(), path, value.clone());
        let result = admit_update(resource, &old, new, Part::Main);
        assert_eq!(fields(result), expect, "{kind} {path} = {value}");
    };
    check("pod", &pod(), "spec.containers.0.image", json!("other"), &[]);
    check("pod", &pod(), "spec.nodeName", json!("n"), &["spec"]);
    check("pod", &pod(), "spec.tolerations", json!([{"operator": "Exists"}]), &[]);
    check("sts", &sets(), "spec.replicas", json!(5), &[]);
    check("sts", &sets(), "spec.serviceName", json!("x"), &["spec"]);
    check(
        "sts",
        &sets(),
        "spec.volumeClaimTemplates",
        Value::Null,
        &["spec.template.spec.containers[0].volumeMounts[0].name"],
    );
    let revision = json!({"metadata": {"name": "r"}, "data": {"spec": {}}, "revision": 1});
    check("controllerrevision", &revision, "revision", json!(2), &[]);
    check("controllerrevision", &revision, "revision", json!(-1), &["revision"]);
    check("controllerrevision", &revision, "data.spec", json!({"a": 1}), &["data"]);
    check("sts", &sets(), "spec.template.spec.containers.0.image", json!("i:2"), &[]);
    let service =
        json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}});
    check("svc", &service, "spec.clusterIP", json!("10.0.0.2"), &["spec.clusterIPs", "spec.clusterIP"]);
    check("svc", &service, "spec.clusterIP", Value::Null, &[]);
    let claim = json!({"metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    check("pvc", &claim, "spec.accessModes", json!(["ReadOnlyMany"]), &["spec"]);
    check("pvc", &claim, "spec.volumeName", json!("pv-1"), &[]);
    check(
        "pvc",
        &claim,
        "spec.resources.requests.storage",
        json!("512Mi"),
        &["spec.resources.requests.storage", "spec.resources.requests.storage"],
    );
    let class = json!({"metadata": {"name": "c"}, "provisioner": "podyard.io/host"});
    check("sc", &class, "provisioner", json!("x.io/y"), &["provisioner"]);
}

#[test]
fn pets_are_stateful_sets() {
    let pets = resource_by_any_name("petset").unwrap();
    let mut value = sets();
    value["apiVersion"] = json!("apps/v1alpha1");
    value["kind"] = json!("PetSet");
    let admitted = create("petset", value.clone()).unwrap();
    assert_eq!(admitted.object.kind(), "StatefulSet");
    assert_eq!(admitted.object.get_str("spec.podManagementPolicy"), Some("OrderedReady"));
    assert_eq!(admitted.object.get_str("spec.volumeClaimTemplates.0.spec.volumeMode"), Some("Filesystem"));
    let mut scale = crate::scale::of(&admitted.object);
    assert_eq!(scale["status"]["selector"], "app=db");
    scale["spec"]["replicas"] = json!(1);
    let scaled = admit_update(pets, &admitted.object, scale.clone(), Part::Scale).unwrap().object;
    assert_eq!((scaled.get_i64("spec.replicas"), scaled.generation()), (Some(1), 2));
    scale["spec"]["replicas"] = json!(-1);
    let refused = admit_update(pets, &admitted.object, scale, Part::Scale);
    assert_eq!(fields(refused), ["spec.replicas"]);
    value["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    let error = create("petset", value).unwrap_err();
    assert!(
        error.message.starts_with("PetSet.apps \"db\" is invalid: spec.template.metadata.labels"),
        "{error}"
    );
}

#[test]
fn claim_templates_grow_and_come_and_go() {
    let pets = resource_by_any_name("sts").unwrap();
    let check = |path: &str, value: Value, expect: &[&str]| {
        let old = create("sts", sets()).unwrap().object;
        let new = with(old.0.clone(), path, value.clone());
        assert_eq!(fields(admit_update(pets, &old, new, Part::Main)), expect, "{path} = {value}");
    };
    let data = sets()["spec"]["volumeClaimTemplates"][0].clone();
    let template = |name: &str| {
        let mut template = data.clone();
        template["metadata"]["name"] = json!(name);
        template
    };
    let at = "spec.volumeClaimTemplates.0.spec";
    check(&format!("{at}.resources.requests.storage"), json!("2Gi"), &[]);
    check(
        &format!("{at}.resources.requests.storage"),
        json!("1Mi"),
        &["spec.volumeClaimTemplates[0].spec.resources.requests.storage"],
    );
    check(
        &format!("{at}.storageClassName"),
        json!("other"),
        &["spec.volumeClaimTemplates[0].spec.storageClassName"],
    );
    check(
        &format!("{at}.accessModes"),
        json!(["ReadWriteMany"]),
        &["spec.volumeClaimTemplates[0].spec.accessModes"],
    );
    check("spec.volumeClaimTemplates.0.metadata.labels", json!({"a": "b"}), &[]);
    check("spec.volumeClaimTemplates", json!([template("log"), template("data")]), &[]);
    check(
        "spec.volumeClaimTemplates",
        json!([template("data"), template("data")]),
        &["spec.volumeClaimTemplates[1].metadata.name"],
    );
    // What is mounted stays; what is not may go.
    check(
        "spec.volumeClaimTemplates",
        json!([template("log")]),
        &["spec.template.spec.containers[0].volumeMounts[0].name"],
    );
    let mut both = sets();
    both["spec"]["volumeClaimTemplates"] = json!([template("data"), template("log")]);
    let old = create("sts", both).unwrap().object;
    let new = with(old.0.clone(), "spec.volumeClaimTemplates", json!([template("data")]));
    assert_eq!(fields(admit_update(pets, &old, new, Part::Main)), [""; 0]);
}

#[test]
fn rules_of_pets() {
    let check = |path: &str, value: Value, expect: &[&str]| {
        let pets = with(sets(), path, value.clone());
        assert_eq!(fields(create("sts", pets)), expect, "{path} = {value}");
    };
    for strategy in ["RollingUpdate", "OnDelete", "Recreate"] {
        check("spec.updateStrategy", json!({"type": strategy}), &[]);
    }
    check("spec.updateStrategy", json!({"type": "Rolling"}), &["spec.updateStrategy.type"]);
    let rolling = |value: Value| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": value}});
    let wrong = ["spec.updateStrategy.rollingUpdate.maxUnavailable"];
    for value in [json!(1), json!(7), json!("1%"), json!("100%")] {
        check("spec.updateStrategy", rolling(value), &[]);
    }
    for value in [json!(0), json!(-1), json!("0%"), json!("101%"), json!("2"), json!("x%"), json!("-5%")] {
        check("spec.updateStrategy", rolling(value), &wrong);
    }
    check(
        "spec.updateStrategy",
        json!({"type": "Recreate", "rollingUpdate": {"partition": 1}}),
        &["spec.updateStrategy.rollingUpdate"],
    );
    let reserved = |text: &str| json!({"podyard.io/reserved-ordinals": text});
    check("metadata.annotations", reserved("1, 3"), &[]);
    check("metadata.annotations", reserved("one"), &["metadata.annotations[podyard.io/reserved-ordinals]"]);
}

#[test]
fn lifecycle_hooks_have_one_handler() {
    let check = |hooks: Value, expect: &[&str]| {
        let value = with(pod(), "spec.containers.0.lifecycle", hooks.clone());
        assert_eq!(fields(create("pod", value)), expect, "{hooks}");
    };
    let at = |rest: &str| format!("spec.containers[0].lifecycle.{rest}");
    check(json!({"preStop": {"exec": {"command": ["a"]}}, "postStart": {"sleep": {"seconds": 1}}}), &[]);
    check(json!({"preStop": {"httpGet": {"port": 80}}}), &[]);
    check(json!({"preStop": {}}), &[&at("preStop")]);
    check(json!({"preStop": {"exec": {"command": []}}}), &[&at("preStop.exec.command")]);
    check(json!({"postStart": {"httpGet": {}}}), &[&at("postStart.httpGet.port")]);
    check(json!({"postStart": {"sleep": {"seconds": -1}}}), &[&at("postStart.sleep.seconds")]);
    let both = json!({"postStart": {"sleep": {"seconds": 1}, "exec": {"command": ["a"]}}});
    check(both, &[&at("postStart.sleep")]);
}

#[test]
fn other_kinds() {
    let check = |kind: &str, value: Value, expect: &[&str]| {
        let mut value = value;
        value["metadata"]["name"] = json!("x");
        assert_eq!(fields(create(kind, value.clone())), expect, "{kind} {value}");
    };
    check("ns", json!({}), &[]);
    check("node", json!({"status": {"conditions": []}}), &[]);
    check(
        "svc",
        json!({"spec": {"ports": [{"port": 80}, {"port": 80}]}}),
        &["spec.ports[1]", "spec.ports[0].name", "spec.ports[1].name"],
    );
    check("svc", json!({"spec": {}}), &["spec.ports"]);
    check("svc", json!({"spec": {"clusterIP": "None"}}), &[]);
    check("svc", json!({"spec": {"type": "Odd", "ports": [{"port": 1}]}}), &["spec.type"]);
    check(
        "rs",
        json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}),
        &["spec.template.metadata.labels", "spec.template"],
    );
    check("rs", json!({}), &["spec.selector", "spec.template"]);
    check(
        "endpointslices",
        json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.300"]}]}),
        &["endpoints[0].addresses[0]"],
    );
    check(
        "pv",
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}}),
        &["spec.capacity[storage]"],
    );
    check(
        "pvc",
        json!({"spec": {"accessModes": ["Odd"]}}),
        &["spec.accessModes", "spec.resources.requests[storage]"],
    );
    check("sc", json!({}), &["provisioner"]);
    check("events", json!({"involvedObject": {"namespace": "default"}, "reason": "r"}), &[]);
    check("events", json!({"involvedObject": {"namespace": "other"}}), &["involvedObject.namespace"]);
}

/// What was admitted decodes into its view, and admitting it again changes nothing.
#[test]
fn admission_is_idempotent_and_typed() {
    use k8s_openapi::api::{
        apps::v1 as apps, core::v1 as core, discovery::v1::EndpointSlice, storage::v1 as storage,
    };
    fn check<T: serde::de::DeserializeOwned>(kind: &str, mut value: Value) {
        let resource = resource_by_any_name(kind).unwrap();
        value["metadata"]["name"] = json!("x");
        let once = create(kind, value).unwrap().object;
        once.view::<T>().unwrap();
        let again = admit_update(resource, &once, once.0.clone(), Part::Main).unwrap().object;
        assert_eq!(again, once);
        let status = admit_update(resource, &once, once.0.clone(), Part::Status).unwrap().object;
        assert_eq!(status, once);
    }
    let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": 1}}});
    let volume =
        json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1.5Gi"}, "local": {"path": "/x"}});
    let replica_set = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}}}});
    check::<core::Pod>("pod", pod());
    check::<core::Service>("svc", json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}]}}));
    check::<EndpointSlice>(
        "endpointslice",
        json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}),
    );
    check::<apps::ReplicaSet>("rs", replica_set);
    check::<apps::StatefulSet>("sts", sets());
    check::<apps::ControllerRevision>("controllerrevision", json!({"data": {"spec": {}}, "revision": 1}));
    check::<core::PersistentVolumeClaim>("pvc", json!({"spec": claim}));
    check::<core::PersistentVolume>("pv", json!({"spec": volume}));
    check::<storage::StorageClass>("sc", json!({"provisioner": "podyard.io/host"}));
    check::<core::Namespace>("ns", json!({}));
    check::<core::Node>("node", json!({"status": {"capacity": {"cpu": "2"}}}));
    let event = json!({"involvedObject": {"namespace": "default"}, "lastTimestamp": "2026-01-02T03:04:05Z",
        "eventTime": "2026-01-02T03:04:05.000006Z"});
    check::<core::Event>("events", event);
}

/// A bound that holds even unoptimised; release takes about a tenth. The figure is printed with `--nocapture`.
#[test]
fn a_pod_is_admitted_quickly() {
    let mut value = pod();
    value["spec"]["containers"][0] = json!({
        "name": "a", "image": "podyard.local/toolbox", "command": ["serve"], "args": ["--port", "80"],
        "env": [{"name": "A", "value": "b"}, {"name": "C", "value": "d"}],
        "ports": [{"containerPort": 80, "name": "http"}],
        "resources": {"limits": {"cpu": "500m", "memory": "128Mi"}},
        "readinessProbe": {"httpGet": {"port": "http"}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    value["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let mut second = value["spec"]["containers"][0].clone();
    second["name"] = json!("b");
    value["spec"]["containers"].as_array_mut().unwrap().push(second);
    create("pod", value.clone()).unwrap();
    let runs = 200;
    let start = std::time::Instant::now();
    for _ in 0..runs {
        create("pod", value.clone()).unwrap();
    }
    let micros = start.elapsed().as_micros() / runs;
    println!("admission of a pod of two containers: {micros} µs");
    assert!(micros < 5_000, "{micros} µs");
}
