//! Further nodes: pods run there, and when a node dies or is cut off its pets move, with their disk and a proof.

use integration::harness::{Yard, first_status, is_ready, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

const PET: &str = "
apiVersion: v1
kind: Service
metadata: {name: counter}
spec:
  selector: {app: counter}
  ports: [{port: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: counter}
spec:
  serviceName: counter
  replicas: 1
  selector: {matchLabels: {app: counter}}
  template:
    metadata:
      labels: {app: counter}
      annotations: {podyard.io/restart-backoff-base: 50ms}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: podyard.local/toolbox
        command: [counter, --file, /data/visits, --port, '8080']
        ports: [{containerPort: 8080}]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      accessModes: [ReadWriteOncePod]
      resources: {requests: {storage: 16Mi}}
";

/// A yard with the further nodes n1 and n2, on which alone pods are scheduled; a silent node is unreachable after 2 s.
fn cluster(test: &str) -> Option<Yard> {
    if !integration::harness::is_root(test) {
        return None;
    }
    let mut yard = Yard::prepare(PROGRAM, test);
    yard.daemon_args(&["--node-grace-period=2s"]);
    yard.start_daemon();
    for node in ["n1", "n2"] {
        yard.ok(&["node", "add", node]);
    }
    yard.ok(&["node", "cordon", "node-0"]);
    Some(yard)
}

/// A pod of the toolbox's server on one node.
fn server(name: &str, node: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: main, image: podyard.local/toolbox, command: [serve]}}
"
    )
}

/// The pet on n1, its count at 3; n2 may take it on.
fn pet_on_n1(yard: &Yard) -> Value {
    yard.ok(&["node", "cordon", "n2"]);
    yard.apply(PET);
    let pod = yard.ready("counter-0");
    assert_eq!(pod["spec"]["nodeName"], "n1");
    yard.ok(&["node", "uncordon", "n2"]);
    for expected in 1..=3 {
        assert_eq!(visit(yard), expected);
    }
    pod
}

/// Visits the pet through its Service from the host; the count it answers.
fn visit(yard: &Yard) -> u64 {
    let url = format!("http://{}:8080/", yard.vip("counter"));
    until("the pet answers", || {
        let ran = yard.on_host(&["fetch", &url, "--timeout-ms", "500"]);
        ran.stdout.trim().strip_prefix("counter-0 ").and_then(|n| n.parse().ok()).ok_or(ran)
    })
}

fn node(yard: &Yard, name: &str) -> Value {
    yard.get(&["node", name]).unwrap_or_default()
}

fn agent_pid(yard: &Yard, node: &str) -> i32 {
    let file = yard.run_dir().join("nodes").join(node).join("agent.json");
    let text = std::fs::read(&file).expect("the agent is recorded");
    let name: Value = serde_json::from_slice(&text).expect("a process's name");
    i32::try_from(name["pid"].as_i64().expect("a pid")).expect("a pid")
}

/// A node's cgroup, in the hierarchy by which it is killed.
fn cgroup(yard: &Yard, node: &str) -> PathBuf {
    let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let beneath = |root: &str| PathBuf::from(format!("{root}/podyard-{}/nodes/{node}", yard.name()));
    roots.map(beneath).into_iter().find(|path| path.exists()).unwrap_or_default()
}

/// Live processes in a node's cgroup and beneath.
fn processes(yard: &Yard, node: &str) -> Vec<i32> {
    let mut dirs = vec![cgroup(yard, node)];
    let mut pids = Vec::new();
    while let Some(dir) = dirs.pop() {
        let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(procs.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        dirs.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    pids
}

fn events(yard: &Yard, reason: &str) -> Vec<Value> {
    yard.list(&["events", "-A"]).into_iter().filter(|event| event["reason"] == reason).collect()
}

fn claim(yard: &Yard) -> Value {
    yard.get(&["pvc", "data-counter-0"]).expect("the claim")
}

/// The pet is on n2 with its data, its claim tells of the fence, and so do Events.
fn assert_moved(yard: &Yard, old: &Value) {
    let new = yard.pod_until("counter-0", "is ready on n2", |pod| {
        is_ready(pod) && pod["spec"]["nodeName"] == "n2" && pod["metadata"]["uid"] != old["metadata"]["uid"]
    });
    assert_eq!(visit(yard), 4, "its data is intact");
    let claim = claim(yard);
    let notes = &claim["metadata"]["annotations"];
    assert_eq!(notes["podyard.io/holder"], new["metadata"]["uid"]);
    assert_eq!(notes["podyard.io/holder-node"], "n2");
    assert_eq!(notes["podyard.io/epoch"], "2");
    let proof: Value =
        serde_json::from_str(notes["podyard.io/fenced"].as_str().expect("a proof")).expect("JSON");
    assert_eq!((&proof["node"], &proof["holder"]), (&"n1".into(), &old["metadata"]["uid"]));
    assert!(proof["killed"].as_u64() >= Some(2), "agent, shim and pod: {proof}");
    assert_eq!(proof["cgroup"], format!("/podyard-{}/nodes/n1", yard.name()));
    let kinds = until("pod, node and claim have Events", || {
        let mut kinds: Vec<String> = events(yard, "Fenced")
            .iter()
            .map(|event| event["involvedObject"]["kind"].as_str().unwrap_or("").to_owned())
            .collect();
        kinds.sort_unstable();
        kinds.dedup();
        if kinds.len() == 3 { Ok(kinds) } else { Err(kinds) }
    });
    assert_eq!(kinds, ["Node", "PersistentVolumeClaim", "Pod"]);
    let page = yard.ok(&["describe", "pvc", "data-counter-0"]);
    for part in ["Holder:", "on n2", "Held since:", "Epoch:", "Fenced:", "populated 0"] {
        assert!(page.contains(part), "{part}: {page}");
    }
}

#[test]
fn root_pods_run_on_further_nodes() {
    let Some(yard) = cluster("nodes") else { return };
    yard.apply(&server("one", "n1"));
    yard.apply(&server("two", "n2"));
    for (pod, node, net) in [("one", "n1", "10.244.1."), ("two", "n2", "10.244.2.")] {
        let object = yard.ready(pod);
        assert_eq!(object["spec"]["nodeName"], node);
        assert!(object["status"]["podIP"].as_str().is_some_and(|ip| ip.starts_with(net)), "{object:#}");
        assert!(processes(&yard, node).len() >= 3, "agent, shim and container are in its cgroup");
        let ran = yard.podyard(&["exec", pod, "--", "/bin/toolbox", "hostname"]);
        assert!(ran.code != 126, "{ran:?}");
        yard.ok(&["logs", pod]);
    }
    let page = yard.ok(&["node", "ls"]);
    assert!(page.contains("n1") && page.contains("10.244.2.0/24") && page.contains("daemon"), "{page}");
    let listed: Value = serde_json::from_str(&yard.ok(&["node", "ls", "-o", "json"])).expect("JSON");
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(3));
    let page = yard.ok(&["describe", "node", "n1"]);
    for part in ["Power:", "Fabric:", "Ready", "one"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    // Whatever is written on it, the first node is not to be managed.
    yard.apply(&server("zero", "node-0"));
    yard.ok(&["node", "uncordon", "node-0"]);
    let zero = yard.ready("zero");
    let label = r#"{"metadata": {"labels": {"podyard.io/managed": "true"}}}"#;
    yard.ok(&["patch", "node", "node-0", "--type", "merge", "-p", label]);
    yard.ok(&["patch", "node", "node-0", "--type", "merge", "-p", &label.replace("\"true\"", "null")]);
    assert_eq!(yard.ready("zero")["metadata"]["uid"], zero["metadata"]["uid"]);
    for verb in ["cut", "kill", "heal", "rm"] {
        let ran = yard.podyard(&["node", verb, "node-0"]);
        assert!(ran.code == 1 && ran.stderr.contains("lives in the daemon"), "{ran:?}");
    }
    let ran = yard.podyard(&["node", "rm", "n1"]);
    assert!(ran.code == 1 && ran.stderr.contains("it has 1 pods"), "{ran:?}");
    let ran = yard.podyard(&["node", "add", "n3", "--cidr", "10.244.1.0/24", "--timeout=1s"]);
    assert!(ran.code == 1 && ran.stderr.contains("overlaps node n1"), "{ran:?}");
}

#[test]
fn root_a_killed_nodes_pet_moves_with_its_disk_and_a_proof() {
    let Some(yard) = cluster("nodekill") else { return };
    let old = pet_on_n1(&yard);
    let begun = Instant::now();
    yard.ok(&["node", "kill", "n1", "--wait=false"]);
    let url = format!("http://{}:8080/peek", yard.vip("counter"));
    until("the pet serves again", || {
        let moved = yard.get(&["pod", "counter-0"]).is_some_and(|pod| pod["spec"]["nodeName"] == "n2");
        let ran = yard.on_host(&["fetch", &url, "--timeout-ms", "100"]);
        if moved && ran.code == 0 { Ok(()) } else { Err(ran) }
    });
    eprintln!("kill to serving: {:?}", begun.elapsed());
    for line in
        yard.daemon_log().lines().filter(|line| line.contains(" killed ") || line.contains(" fenced "))
    {
        eprintln!("{line}");
    }
    assert_moved(&yard, &old);
    assert_eq!(processes(&yard, "n1"), [] as [i32; 0], "dead until it is healed");
    yard.ok(&["node", "heal", "n1"]);
    assert!(!processes(&yard, "n1").is_empty());
    yard.apply(&server("one", "n1"));
    yard.ready("one");
}

#[test]
fn root_a_cut_nodes_pet_moves_and_the_node_returns() {
    let Some(yard) = cluster("nodecut") else { return };
    let old = pet_on_n1(&yard);
    yard.ok(&["node", "cut", "n1"]);
    assert_eq!(
        node(&yard, "n1")["status"]["conditions"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["type"] == "Ready").cloned())
            .expect("Ready")["status"],
        "Unknown"
    );
    assert_moved(&yard, &old);
    yard.ok(&["node", "heal", "n1"]);
    yard.apply(&server("one", "n1"));
    yard.ready("one");
}

#[test]
fn root_what_dies_alone_disturbs_no_pod() {
    let Some(mut yard) = cluster("nodeadopt") else { return };
    yard.apply(&server("one", "n1"));
    yard.ready("one");
    let pods = yard.pids("one");
    let agent = agent_pid(&yard, "n1");
    kill(Pid::from_raw(agent), Signal::SIGKILL).expect("kill the agent");
    until("another agent is there", || {
        let now = agent_pid(&yard, "n1");
        if now != agent && processes(&yard, "n1").contains(&now) { Ok(()) } else { Err(now) }
    });
    until("it adopts its pod", || {
        let pids = yard.pids("one");
        if pids == pods { Ok(()) } else { Err(pids) }
    });
    let agent = agent_pid(&yard, "n1");
    yard.kill_daemon();
    yard.start_daemon();
    yard.ready("one");
    until("the nodes are ready", || {
        let page = yard.ok(&["node", "ls"]);
        if page.matches(" Ready ").count() == 2 { Ok(()) } else { Err(page) }
    });
    assert_eq!(agent_pid(&yard, "n1"), agent, "the agent is adopted");
    assert!(processes(&yard, "n1").contains(&agent));
    assert_eq!(yard.pids("one"), pods);
    assert_eq!(first_status(&yard.ready("one"))["restartCount"], 0);
}

#[test]
fn root_a_removed_node_leaves_nothing() {
    let Some(yard) = cluster("noderm") else { return };
    yard.apply(PET);
    yard.ready("counter-0");
    yard.apply(&server("one", "n1"));
    yard.ready("one");
    let ran = yard.podyard(&["node", "drain", "n1"]);
    assert!(ran.code == 1 && ran.stderr.contains("default/one"), "{ran:?}");
    let page = yard.ok(&["node", "drain", "n1", "--force"]);
    assert!(page.contains("node/n1 drained"), "{page}");
    yard.ok(&["node", "rm", "n1"]);
    assert_eq!(yard.get(&["node", "n1"]), None);
    for dir in [yard.run_dir(), yard.data_dir(), yard.dir().join("log")] {
        assert!(!dir.join("nodes/n1").exists(), "{}", dir.display());
    }
    assert!(!yard.run_dir().join("netns/n1").exists());
    assert_eq!(processes(&yard, "n1"), [] as [i32; 0]);
    yard.ready("counter-0");
    // By force, with what runs there.
    yard.apply(&server("two", "n2"));
    yard.ready("two");
    yard.ok(&["node", "rm", "n2", "--force"]);
    assert_eq!(yard.get(&["node", "n2"]), None);
    assert!(!yard.run_dir().join("nodes/n2").exists());
    // And its name and addresses are free.
    yard.ok(&["node", "add", "n2"]);
    assert_eq!(node(&yard, "n2")["spec"]["podCIDR"], "10.244.1.0/24");
}

#[test]
fn root_what_does_not_die_keeps_the_pet_where_it_is() {
    let freezer = PathBuf::from("/sys/fs/cgroup/freezer");
    if !freezer.join("tasks").exists() {
        eprintln!("SKIP: no v1 freezer, by which a process can be kept from dying");
        return;
    }
    let Some(yard) = cluster("nodefrozen") else { return };
    let old = pet_on_n1(&yard);
    let frozen = freezer.join(format!("podyard-{}-frozen", yard.name()));
    std::fs::create_dir(&frozen).expect("a freezer");
    let thaw = Thaw(frozen.clone());
    for pid in yard.pids("counter-0") {
        std::fs::write(frozen.join("cgroup.procs"), pid.to_string()).expect("into the freezer");
    }
    std::fs::write(frozen.join("freezer.state"), "FROZEN").expect("freeze");
    yard.ok(&["node", "kill", "n1"]);
    let refusal = until("the fence is refused", || events(&yard, "FenceFailed").pop().ok_or(()));
    let text = refusal["message"].as_str().unwrap_or("").to_owned();
    assert!(text.contains("do not die") && text.contains("state"), "{text}");
    let pod = yard.get(&["pod", "counter-0"]).expect("it stays");
    assert_eq!(pod["metadata"]["uid"], old["metadata"]["uid"]);
    assert!(pod["metadata"]["deletionTimestamp"].is_string(), "it is to go: {pod:#}");
    assert_eq!(claim(&yard)["metadata"]["annotations"]["podyard.io/holder"], old["metadata"]["uid"]);
    // Power comes back, and still nothing is started beside what does not die.
    drop(thaw);
    assert_moved(&yard, &old);
}

#[test]
fn root_a_daemon_killed_in_a_fence_converges() {
    let Some(mut yard) = cluster("nodefence") else { return };
    pet_on_n1(&yard);
    // At moments in and around the fence, which takes some tens of milliseconds after the kill.
    let mut count = 3;
    let mut nodes = ["n1", "n2"];
    for millis in [3, 15, 30, 60] {
        let [from, to] = nodes;
        yard.ok(&["node", "kill", from, "--wait=false"]);
        std::thread::sleep(Duration::from_millis(millis));
        yard.kill_daemon();
        yard.start_daemon();
        yard.pod_until("counter-0", "is ready on the other node", |pod| {
            is_ready(pod) && pod["spec"]["nodeName"] == to
        });
        count += 1;
        assert_eq!(visit(&yard), count, "its data is intact");
        assert_eq!(claim(&yard)["metadata"]["annotations"]["podyard.io/holder-node"], to);
        assert_eq!(processes(&yard, from), [] as [i32; 0]);
        yard.ok(&["node", "heal", from]);
        nodes = [to, from];
    }
}

#[test]
fn root_a_node_that_dies_wholly_is_seen_at_once_and_comes_back() {
    let Some(yard) = cluster("nodedies") else { return };
    let old = pet_on_n1(&yard);
    let cgroup = cgroup(&yard, "n1");
    std::fs::write(cgroup.join("cgroup.kill"), "1").expect("kill all of the node");
    yard.pod_until("counter-0", "is ready on n2", |pod| {
        is_ready(pod) && pod["spec"]["nodeName"] == "n2" && pod["metadata"]["uid"] != old["metadata"]["uid"]
    });
    assert_eq!(visit(&yard), 4, "its data is intact");
    yard.apply(&server("one", "n1"));
    yard.ready("one");
}

#[test]
fn root_further_nodes_at_rest_write_nothing() {
    let Some(yard) = cluster("nodeidle") else { return };
    pet_on_n1(&yard);
    let files = || {
        let mut files = BTreeMap::new();
        let mut dirs = vec![yard.data_dir(), yard.run_dir()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                // What a pod wrote to its volume is its own affair.
                if entry.file_name() == "volumes" {
                    continue;
                }
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() {
                    dirs.push(entry.path());
                }
                files.insert(entry.path(), (meta.len(), meta.modified().ok()));
            }
        }
        files
    };
    // Longer than two grace periods, so that every timer rings.
    until("nothing was written for five seconds", || {
        let before = files();
        std::thread::sleep(Duration::from_secs(5));
        let after = files();
        let changed: Vec<_> = after.iter().filter(|(path, state)| before.get(*path) != Some(state)).collect();
        if changed.is_empty() { Ok(()) } else { Err(format!("{changed:?}")) }
    });
}

/// Thaws and removes a freezer, whatever becomes of the test.
struct Thaw(PathBuf);

impl Drop for Thaw {
    fn drop(&mut self) {
        let thawed = std::fs::write(self.0.join("freezer.state"), "THAWED");
        until("the freezer is empty", || match std::fs::remove_dir(&self.0) {
            Ok(()) => Ok(()),
            Err(error) => Err((error, format!("{thawed:?}"))),
        });
    }
}
