//! Tables for the runtime spec.

use super::*;

fn pod() -> Object {
    Object(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {"containers": []}}))
}

fn make(pod: &Object, container: &Value) -> Result<Value> {
    let image =
        rootfs::Config { env: vec!["PATH=/bin".into()], cwd: "/".into(), ..rootfs::Config::default() };
    let input = Input {
        pod,
        container,
        image: &image,
        host_ip: "h",
        services: &[],
        cgroup: "/podyard/pods/podu/c.0",
        bounding: u64::MAX,
    };
    spec(&input).map(|spec| serde_json::to_value(spec).unwrap())
}

fn sh() -> Value {
    json!({"name": "c", "command": ["sh"]})
}

#[test]
fn defaults_are_safe() {
    let spec = make(&pod(), &sh()).unwrap();
    let process = &spec["process"];
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(process["capabilities"]["bounding"].as_array().unwrap().len(), DEFAULT_CAPABILITIES.len());
    assert!(!process["capabilities"].to_string().contains("SYS_ADMIN"));
    assert_eq!(process["capabilities"]["ambient"], json!([]));
    assert!(spec["linux"].get("seccomp").is_some());
    assert!(spec["linux"]["maskedPaths"].to_string().contains("/proc/kcore"));
    assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], false);
    assert_eq!(spec["linux"]["cgroupsPath"], "/podyard/pods/podu/c.0");
    assert_eq!(process["cwd"], "/");
    assert_eq!(process["user"]["uid"], 0);
}

#[test]
fn security_context() {
    let check = |own: Value, path: &str, expect: Value| {
        let mut container = sh();
        container["securityContext"] = own;
        let spec = make(&pod(), &container).unwrap();
        assert_eq!(*spec.pointer(path).unwrap_or(&Value::Null), expect, "{path}");
    };
    check(json!({"allowPrivilegeEscalation": true}), "/process/noNewPrivileges", json!(false));
    check(json!({"runAsUser": 7, "runAsGroup": 8}), "/process/user/gid", json!(8));
    check(json!({"runAsUser": 7}), "/process/user/uid", json!(7));
    check(json!({"readOnlyRootFilesystem": true}), "/root/readonly", json!(true));
    check(json!({"seccompProfile": {"type": "Unconfined"}}), "/linux/seccomp", Value::Null);
    check(json!({"capabilities": {"drop": ["ALL"]}}), "/process/capabilities/bounding", json!([]));
    check(
        json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}),
        "/process/capabilities/effective",
        json!(["CAP_NET_ADMIN"]),
    );
    check(json!({"privileged": true}), "/linux/seccomp", Value::Null);
    check(json!({"privileged": true}), "/process/noNewPrivileges", json!(false));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let check = |own: Value, text: &str| {
        let mut container = sh();
        container["securityContext"] = own;
        let error = make(&pod(), &container).unwrap_err();
        assert_eq!(error.waiting_reason(), Some("CreateContainerConfigError"));
        assert!(error.to_string().contains(text), "{error}");
    };
    check(json!({"runAsNonRoot": true}), "runAsNonRoot");
    check(json!({"capabilities": {"add": ["NOPE"]}}), "NOPE");
    check(json!({"seccompProfile": {"type": "Localhost"}}), "Localhost");
    let mut host = pod();
    host.set("spec.hostNetwork", true);
    assert!(make(&host, &sh()).unwrap_err().to_string().contains("spec.hostNetwork"));
    assert!(make(&pod(), &json!({"name": "c"})).unwrap_err().to_string().contains("no command"));
}

#[test]
fn resources_become_cgroup_limits() {
    let mut container = sh();
    container["resources"] =
        json!({"limits": {"cpu": "500m", "memory": "128Mi"}, "requests": {"cpu": "250m"}});
    let mut limited = pod();
    limited.set("metadata.annotations", json!({"podyard.io/pids-limit": "100"}));
    let resources = &make(&limited, &container).unwrap()["linux"]["resources"];
    assert_eq!(resources["cpu"]["shares"], 256);
    assert_eq!(resources["cpu"]["quota"], 50_000);
    assert_eq!(resources["cpu"]["period"], 100_000);
    assert_eq!(resources["memory"]["limit"], 134_217_728);
    assert_eq!(resources["pids"]["limit"], 100);
    let free = &make(&pod(), &sh()).unwrap()["linux"]["resources"];
    assert!(free.get("cpu").is_none() && free.get("memory").is_none() && free.get("pids").is_none());
}

#[test]
fn a_capability_that_the_host_lacks_is_not_asked_for() {
    let privileged = json!({"privileged": true});
    let names = |bounding| capabilities(&privileged, true, bounding).unwrap();
    assert!(names(u64::MAX).contains(&"CAP_SYS_RESOURCE".to_owned()));
    assert!(!names(!(1 << 24)).contains(&"CAP_SYS_RESOURCE".to_owned()));
}
