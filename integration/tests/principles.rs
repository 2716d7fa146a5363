//! The principles of Kubernetes' design, one named test each: requirements, not slogans.
//!
//! | API objects | Control logic |
//! | --- | --- |
//! | A1 every API is declarative | C1 depends only on the current state |
//! | A2 objects complement each other and compose | C2 assumes any error, and handles it |
//! | A3 high-level APIs start from the user's intent | C3 no complex state machines; no unobservable internal state |
//! | A4 low-level APIs give what the high-level ones need | C4 any operation may be refused, or misread |
//! | A5 no thin wrappers, no hidden mechanism | C5 every module recovers by itself after a fault |
//! | A6 cost is proportional to the number of objects | C6 every module degrades gracefully |
//! | A7 state never depends on a connection's state | |
//! | A8 no reliance on global state | |

use integration::harness::{Yard, is_ready, until};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

fn replicas(count: u32) -> String {
    format!(
        "
apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: web}}
spec:
  replicas: {count}
  selector: {{matchLabels: {{app: web, made-by: set}}}}
  template:
    metadata: {{labels: {{app: web, made-by: set}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: main, image: podyard.local/toolbox, command: [serve, --port, '8080']}}]
"
    )
}

fn pod(name: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}, annotations: {{podyard.io/restart-backoff-base: 20ms}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: podyard.local/toolbox, command: [serve, --port, '8080']}}]
"
    )
}

/// What users declared and what became of it, without what differs between any two runs.
fn state(yard: &Yard) -> Value {
    let services = yard.list(&["services"]);
    let specs = |items: &[Value]| -> Vec<Value> {
        let strip = |item: &Value| {
            let mut spec = item["spec"].clone();
            for given in ["clusterIP", "clusterIPs"] {
                spec.as_object_mut().map(|s| s.remove(given));
            }
            json!({"name": item["metadata"]["name"], "labels": item["metadata"]["labels"], "spec": spec})
        };
        items.iter().map(strip).collect()
    };
    json!({
        "services": specs(&services),
        "replicasets": specs(&yard.list(&["rs"])),
        "pods ready": yard.list(&["pods"]).iter().filter(|pod| is_ready(pod)).count(),
        "pods": yard.list(&["pods"]).len(),
    })
}

/// The map elements behind a service's virtual IP, as the kernel has them.
fn elements(yard: &Yard) -> Value {
    let info: Value = serde_json::from_str(&yard.ok(&["ns", "services", "-o", "json"])).expect("JSON");
    info["services"].clone()
}

/// Who answers a virtual IP, asked by the host.
fn answers(yard: &Yard, vip: &str, times: u32) -> BTreeMap<String, u32> {
    let ran = yard.on_host(&[
        "fetch",
        &format!("http://{vip}/"),
        "--times",
        &times.to_string(),
        "--timeout-ms",
        "2000",
    ]);
    let mut seen = BTreeMap::new();
    for name in ran.stdout.lines() {
        *seen.entry(name.to_owned()).or_default() += 1;
    }
    seen
}

fn await_answers(yard: &Yard, vip: &str, count: usize) {
    until(&format!("{count} answer at {vip}"), || {
        let seen = answers(yard, vip, 20 * count as u32);
        if seen.len() == count { Ok(()) } else { Err(seen) }
    });
}

#[test]
fn root_a1_declarative_manifests_in_any_order_and_twice_reach_one_state() {
    let Some(forwards) = Yard::start(PROGRAM, "a1") else { return };
    let Some(backwards) = Yard::start(PROGRAM, "a1") else { return };
    for manifest in [SERVICE, &replicas(2), &pod("lone")] {
        forwards.apply(manifest);
    }
    for manifest in [&pod("lone"), &replicas(2), SERVICE, &replicas(2), &pod("lone"), SERVICE] {
        backwards.apply(manifest);
    }
    for yard in [&forwards, &backwards] {
        yard.ready_count("app=web", 3);
    }
    assert_eq!(state(&forwards), state(&backwards));
    let again = forwards.apply(SERVICE);
    assert!(again.contains("unchanged"), "{again}");
}

#[test]
fn root_a2_objects_compose_a_service_serves_pods_it_knows_only_by_label() {
    let Some(yard) = Yard::start(PROGRAM, "a2") else { return };
    yard.apply(SERVICE);
    yard.apply(&replicas(1));
    yard.apply(&pod("lone"));
    yard.ready_count("app=web", 2);
    await_answers(&yard, &yard.vip("web"), 2);
    // Taking the label away takes the pod out of the service, and out of nothing else.
    let ran = yard.podyard(&[
        "patch",
        "pod",
        "lone",
        "--type",
        "merge",
        "-p",
        r#"{"metadata":{"labels":{"app":"other"}}}"#,
    ]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    await_answers(&yard, &yard.vip("web"), 1);
    assert!(is_ready(&yard.get(&["pod", "lone"]).expect("it runs on")));
}

#[test]
fn root_a3_intent_replicas_are_kept_without_saying_how() {
    let Some(yard) = Yard::start(PROGRAM, "a3") else { return };
    yard.apply(&replicas(2));
    let pods = yard.ready_count("app=web", 2);
    for pod in &pods {
        yard.ok(&["delete", "pod", pod["metadata"]["name"].as_str().expect("a name")]);
    }
    yard.ready_count("app=web", 2);
}

#[test]
fn root_a4_hand_made_pods_and_endpoints_are_as_good_as_the_controllers() {
    let Some(yard) = Yard::start(PROGRAM, "a4") else { return };
    // A service without a selector: nobody makes its endpoints but the user.
    yard.apply("{apiVersion: v1, kind: Service, metadata: {name: by-hand}, spec: {ports: [{port: 80, targetPort: 8080}]}}");
    yard.apply(&pod("lone").replace("app: web}", "app: web, made-by: set}"));
    let address = yard.ready("lone")["status"]["podIP"].as_str().expect("an address").to_owned();
    yard.apply(&format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: by-hand-1, labels: {{kubernetes.io/service-name: by-hand}}}}
addressType: IPv4
ports: [{{port: 8080, protocol: TCP}}]
endpoints: [{{addresses: ['{address}'], conditions: {{ready: true}}}}]
"
    ));
    await_answers(&yard, &yard.vip("by-hand"), 1);
    // A pod made by hand with the set's label is adopted, and counts.
    yard.apply(&replicas(2));
    yard.ready_count("app=web", 2);
    let lone = yard.get(&["pod", "lone"]).expect("it was adopted, not replaced");
    assert_eq!(lone["metadata"]["ownerReferences"][0]["kind"], "ReplicaSet", "{lone:#}");
}

#[test]
fn root_a5_nothing_hidden_the_kernel_can_be_rebuilt_from_the_objects() {
    let Some(yard) = Yard::start(PROGRAM, "a5") else { return };
    yard.apply(SERVICE);
    yard.apply(&replicas(2));
    yard.ready_count("app=web", 2);
    await_answers(&yard, &yard.vip("web"), 2);
    // From `get -o json` alone: which address answers at which virtual IP.
    let mut expected: Vec<(String, String)> = Vec::new();
    let slices = yard.list(&["endpointslices"]);
    for service in yard.list(&["services"]) {
        let of = |slice: &&Value| {
            slice["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]
        };
        for slice in slices.iter().filter(of) {
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                let port = &slice["ports"][0]["port"];
                let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
                expected.push((
                    format!(
                        "{}:{}",
                        text(&service["spec"]["clusterIP"]),
                        service["spec"]["ports"][0]["port"]
                    ),
                    format!("{}:{port}", text(&endpoint["addresses"][0])),
                ));
            }
        }
    }
    expected.sort();
    let mut kernel: Vec<(String, String)> = Vec::new();
    for item in elements(&yard).as_array().expect("items") {
        for backend in item["endpoints"].as_array().into_iter().flatten() {
            let vip = format!("{}:{}", item["ip"].as_str().unwrap_or(""), item["port"]);
            kernel.push((vip, backend.as_str().unwrap_or("").to_owned()));
        }
    }
    kernel.sort();
    assert_eq!(expected, kernel);
    assert_eq!(expected.len(), 2);
    for pod in yard.list(&["pods"]) {
        assert!(pod["spec"]["nodeName"].is_string() && pod["status"]["podIP"].is_string(), "{pod:#}");
    }
}

#[test]
fn root_a6_kernel_work_per_added_object_is_the_same_at_10_100_and_1000() {
    let Some(yard) = Yard::start(PROGRAM, "a6") else { return };
    let service = |i: u32| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{i}}}, spec: {{ports: [{{port: 80, targetPort: 8080}}]}}}}
---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: s{i}-1, labels: {{kubernetes.io/service-name: s{i}}}}}, addressType: IPv4, ports: [{{port: 8080}}], endpoints: [{{addresses: ['10.244.0.77'], conditions: {{ready: true}}}}]}}\n"
        )
    };
    let work = || -> (u64, u64) {
        let info: Value = serde_json::from_str(&yard.ok(&["ns", "services", "-o", "json"])).expect("JSON");
        (
            info["elements"].as_u64().expect("elements written so far"),
            info["services"].as_array().map_or(0, Vec::len) as u64,
        )
    };
    let mut there = 0;
    let mut costs = Vec::new();
    for size in [10, 100, 1_000] {
        yard.apply(&(there..size).map(service).collect::<String>());
        let before = until("all are programmed", || match work() {
            (elements, count) if count == u64::from(size) => Ok(elements),
            other => Err(other),
        });
        yard.apply(&service(size));
        let after = until("one more is programmed", || match work() {
            (elements, count) if count == u64::from(size) + 1 => Ok(elements),
            other => Err(other),
        });
        costs.push(after - before);
        there = size + 1;
    }
    assert!(costs[0] > 0 && costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");
}

#[test]
fn root_a7_dropping_every_watch_changes_no_object() {
    let Some(yard) = Yard::start(PROGRAM, "a7") else { return };
    yard.apply(SERVICE);
    yard.apply(&replicas(2));
    yard.ready_count("app=web", 2);
    let slice_is_full = || {
        let slices = yard.list(&["endpointslices"]);
        let full = slices.len() == 1 && slices[0]["endpoints"].as_array().is_some_and(|all| all.len() == 2);
        if full { Ok(()) } else { Err(slices) }
    };
    until("the endpoints are there", slice_is_full);
    // What its controller has still to say of them comes after they are ready.
    until("the set knows its pods", || match &yard.list(&["rs"])[0]["status"]["readyReplicas"] {
        ready if *ready == 2 => Ok(()),
        other => Err(other.clone()),
    });
    let versions = || {
        let kinds = ["pods", "services", "rs", "endpointslices", "nodes"];
        let all = kinds.iter().flat_map(|kind| yard.list(&[kind]));
        all.map(|o| (o["metadata"]["uid"].to_string(), o["metadata"]["resourceVersion"].to_string()))
            .collect::<BTreeMap<_, _>>()
    };
    let quiet = until("the yard is quiet", || {
        let (first, second) = (versions(), versions());
        if first == second { Ok(first) } else { Err((first, second)) }
    });
    let mut watches: Vec<_> = (0..4).map(|_| yard.spawn(&["get", "pods", "-w"])).collect();
    let mut follow = yard.spawn(&["get", "services", "-w", "-o", "name"]);
    for watch in watches.iter_mut().chain([&mut follow]) {
        use std::io::Read;
        let mut byte = [0];
        watch.stdout.as_mut().expect("stdout").read_exact(&mut byte).expect("the watch has begun");
        watch.kill().expect("drop the watch");
        watch.wait().expect("reap the watch");
    }
    assert_eq!(versions(), quiet);
}

#[test]
fn root_a8_no_global_state_two_yards_with_the_same_names_live_side_by_side() {
    let Some(one) = Yard::start(PROGRAM, "a8") else { return };
    let Some(two) = Yard::start(PROGRAM, "a8") else { return };
    for yard in [&one, &two] {
        yard.apply(SERVICE);
        yard.apply(&replicas(1));
        yard.apply(&pod("lone"));
    }
    let names = |yard: &Yard| -> Vec<String> {
        let pods = yard.ready_count("app=web", 2);
        await_answers(yard, &yard.vip("web"), 2);
        pods.iter().map(|pod| pod["metadata"]["uid"].to_string()).collect()
    };
    let (first, second) = (names(&one), names(&two));
    assert!(first.iter().all(|uid| !second.contains(uid)));
    one.ok(&["delete", "pod", "lone"]);
    assert!(is_ready(&two.get(&["pod", "lone"]).expect("the other yard's pod runs on")));
}

#[test]
fn root_c1_level_not_edge_what_changed_while_nobody_looked_is_acted_on() {
    let Some(mut yard) = Yard::start(PROGRAM, "c1") else { return };
    yard.apply(&pod("lone"));
    let pod = yard.ready("lone");
    let before = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    let old = yard.pids("lone");
    assert_eq!(old.len(), 1);
    // The daemon misses the event altogether: it dies first, then the container does.
    yard.kill_daemon();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(old[0]), nix::sys::signal::Signal::SIGKILL)
        .expect("kill the container");
    yard.start_daemon();
    yard.pod_until("lone", "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64() > before && is_ready(pod)
    });
}

#[test]
fn root_c2_errors_are_assumed_and_handled() {
    let Some(yard) = Yard::start(PROGRAM, "c2") else { return };
    // The host path is missing, so the pod cannot start; the reason is said, and once it is there it starts.
    let path = yard.dir().join("later");
    yard.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: early, annotations: {{podyard.io/restart-backoff-base: 50ms}}}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{name: h, hostPath: {{path: '{}', type: Directory}}}}]
  containers: [{{name: main, image: podyard.local/toolbox, command: [sleep, infinity], volumeMounts: [{{name: h, mountPath: /h}}]}}]
",
        path.display()
    ));
    yard.pod_until("early", "says why", |pod| {
        pod["status"].to_string().contains(&path.display().to_string())
    });
    std::fs::create_dir(&path).expect("make the path");
    yard.ready("early");
}

#[test]
fn root_c3_no_unobservable_state_without_its_caches_a_new_daemon_plans_the_same() {
    let Some(mut yard) = Yard::start(PROGRAM, "c3") else { return };
    yard.apply(SERVICE);
    yard.apply(&replicas(2));
    yard.ready_count("app=web", 2);
    await_answers(&yard, &yard.vip("web"), 2);
    let plan = |yard: &Yard| yard.podyard_with(&["plan", "-f", "-"], &replicas(3)).stdout;
    let versions = |yard: &Yard| -> Vec<String> {
        ["pods", "rs", "services", "endpointslices"]
            .iter()
            .flat_map(|kind| yard.list(&[kind]))
            .map(|o| format!("{}@{}", o["metadata"]["name"], o["metadata"]["resourceVersion"]))
            .collect()
    };
    let (planned, before) = (plan(&yard), versions(&yard));
    assert!(!planned.is_empty());
    // All caches are the daemon's memory: a killed one starts with none.
    yard.kill_daemon();
    yard.start_daemon();
    assert_eq!(plan(&yard), planned);
    await_answers(&yard, &yard.vip("web"), 2);
    assert_eq!(versions(&yard), before, "and nothing was written again");
}

#[test]
fn root_c4_a_misread_answer_is_not_believed() {
    let Some(yard) = Yard::start(PROGRAM, "c4") else { return };
    yard.apply(&pod("lone"));
    let object = yard.ready("lone");
    // An acknowledgement of another incarnation (the wrong uid) changes nothing, whoever sends it.
    let mut stale = object.clone();
    stale["metadata"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
    let ran = yard.podyard_with(&["replace", "--subresource", "status", "-f", "-"], &stale.to_string());
    assert!(ran.code != 0 && ran.stderr.contains("UID"), "{ran:#?}");
    // A stale version is a conflict, not an overwrite.
    let mut old = object.clone();
    old["metadata"]["resourceVersion"] = json!("1");
    let ran = yard.podyard_with(&["replace", "-f", "-"], &old.to_string());
    assert!(ran.code != 0 && ran.stderr.contains("Conflict"), "{ran:#?}");
    assert_eq!(yard.get(&["pod", "lone"]).expect("there")["metadata"]["uid"], object["metadata"]["uid"]);
}

#[test]
fn root_c5_every_module_recovers_by_itself() {
    let Some(mut yard) = Yard::start(PROGRAM, "c5") else { return };
    yard.apply(SERVICE);
    yard.apply(&replicas(2));
    yard.ready_count("app=web", 2);
    await_answers(&yard, &yard.vip("web"), 2);
    yard.kill_daemon();
    yard.start_daemon();
    await_answers(&yard, &yard.vip("web"), 2);
    for round in 0..3 {
        yard.kill_daemon();
        yard.start_daemon();
        yard.ok(&["scale", "rs/web", "--replicas", &(1 + round % 2).to_string()]);
    }
    yard.ready_count("app=web", 1);
}

#[test]
fn root_c6_modules_degrade_one_at_a_time() {
    let Some(mut yard) = Yard::start(PROGRAM, "c6") else { return };
    yard.apply(SERVICE);
    yard.apply(&replicas(2));
    yard.ready_count("app=web", 2);
    let vip = yard.vip("web");
    await_answers(&yard, &vip, 2);
    // The daemon (API, controllers, proxy's programmer) is away: the data path goes on.
    yard.kill_daemon();
    let node =
        std::fs::read_dir(yard.run_dir().join("netns")).expect("the namespaces' pins").flatten().count();
    assert!(node >= 1);
    yard.start_daemon();
    await_answers(&yard, &vip, 2);
    // A pod that cannot start does not keep others from starting.
    yard.apply(
        &pod("broken")
            .replace("podyard.local/toolbox", "podyard.local/none")
            .replace("app: web", "app: broken"),
    );
    yard.ok(&["scale", "rs/web", "--replicas", "3"]);
    yard.ready_count("app=web", 3);
}

#[test]
fn root_c6_a_full_disk_leaves_the_rest_at_work() {
    // In a mount namespace of this thread's, which its children inherit: the data directory is a small disk.
    if !integration::harness::is_root("c6") {
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace for the test");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("keep mounts to the test");
    let mut yard = Yard::prepare(PROGRAM, "c6");
    let data = yard.data_dir();
    std::fs::create_dir(&data).expect("the data directory");
    mount(Some("small"), &data, Some("tmpfs"), MsFlags::empty(), Some("size=400m")).expect("a small disk");
    yard.start_daemon();
    yard.apply(SERVICE);
    yard.apply(&replicas(2));
    yard.ready_count("app=web", 2);
    let vip = yard.vip("web");
    await_answers(&yard, &vip, 2);
    let filler = data.join("filler");
    let mut file = std::fs::File::create(&filler).expect("the filler");
    let piece = vec![0_u8; 64 << 10];
    while std::io::Write::write_all(&mut file, &piece).is_ok() {}
    // The last page may still take a small object; then it is refused, saying why, and nothing else suffers.
    let refused = (0..2_000).map(|n| {
        yard.podyard_with(&["create", "-f", "-"], &pod(&format!("full{n}")).replace("app: web", "app: full"))
    });
    let refused = refused.take(200).find(|ran| ran.code != 0).expect("a full disk takes no objects for ever");
    assert!(refused.stderr.to_lowercase().contains("no space"), "{refused:#?}");
    await_answers(&yard, &vip, 2);
    assert_eq!(yard.list(&["pods", "-l", "app=web"]).len(), 2, "what is there can be read");
    drop(file);
    std::fs::remove_file(&filler).expect("make room");
    yard.ok(&["scale", "rs/web", "--replicas", "3"]);
    yard.ready_count("app=web", 3);
    let ran = yard.purge();
    // A mount point cannot be removed; everything in it can.
    assert!(ran.code == 0 || ran.stderr.to_lowercase().contains("busy"), "{ran:#?}");
    match umount2(&data, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => panic!("take the disk away: {errno}"),
    }
}

/// The address of a name, asked from where the host is; needs no daemon but the one that serves DNS.
fn resolve(yard: &Yard, name: &str) -> Result<Vec<u8>, std::io::Error> {
    let host = netns::Namespace::open(&yard.run_dir().join("netns/host")).expect("the host's namespace");
    let socket = host.udp("0.0.0.0:0".parse().expect("an address"))?;
    socket.set_read_timeout(Some(std::time::Duration::from_millis(300)))?;
    socket.connect("10.96.0.10:53")?;
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a short label"));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send(&query)?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    match buffer[7] {
        0 => Err(std::io::Error::other(format!("no answer in {:?}", &buffer[..length]))),
        _ => Ok(buffer[length - 4..length].to_vec()),
    }
}

#[test]
fn root_c6_dns_away_leaves_the_rest_at_work() {
    let Some(mut yard) = Yard::start(PROGRAM, "c6dns") else { return };
    yard.apply(SERVICE);
    yard.apply(&replicas(2));
    yard.ready_count("app=web", 2);
    let vip = yard.vip("web");
    let expect: Vec<u8> = vip.split('.').map(|octet| octet.parse().expect("an octet")).collect();
    let name = "web.default.svc.cluster.local";
    let back = |yard: &Yard| {
        until("DNS answers", || match resolve(yard, name) {
            Ok(address) if address == expect => Ok(()),
            other => Err(other),
        });
    };
    back(&yard);
    // DNS lives in the daemon: away with it, what knows an address goes on.
    yard.kill_daemon();
    resolve(&yard, name).expect_err("nobody answers");
    let host = netns::Namespace::open(&yard.run_dir().join("netns/host")).expect("the host's namespace");
    let address = format!("{vip}:80").parse().expect("an address");
    for _ in 0..20 {
        host.connect_blocking(address, std::time::Duration::from_secs(2)).expect("the service answers");
    }
    yard.start_daemon();
    back(&yard);
    // Its address alone taken away: the node puts it back, and names come back with it; the rest works on.
    let netns = ["ns", "enter", "--node", "--", "ip", "addr"];
    if yard.podyard(&[&netns[..], &["show"]].concat()).code != 0 {
        return;
    }
    yard.ok(&[&netns[..], &["del", "10.96.0.10/32", "dev", "pods"]].concat());
    yard.ok(&["scale", "rs/web", "--replicas", "3"]);
    yard.ready_count("app=web", 3);
    await_answers(&yard, &vip, 3);
    back(&yard);
}
