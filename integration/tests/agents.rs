//! Agents: what people ask of a pod is answered wherever it runs; a daemon that goes away and comes back finds its nodes
//! at work; and the ports between them are of no use to pods.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use integration::harness::{Ran, Yard, first_status, is_root, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

/// Longest wait for the answer that there is none: what is promised for a node that is cut off, and some room.
const REFUSAL_DEADLINE: Duration = Duration::from_millis(2_500);

/// A yard with one further node, n1, which may be silent for a minute.
fn yard(test: &str) -> Option<Yard> {
    if !is_root(test) {
        return None;
    }
    let mut yard = Yard::prepare(PROGRAM, test);
    yard.daemon_args(&["--node-grace-period=60s"]);
    yard.start_daemon();
    yard.ok(&["node", "add", "n1"]);
    Some(yard)
}

/// A pod of the host's shell on one node, which counts on its output.
fn pod(name: &str, node: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: podyard.local/host
    command: [sh, -c, 'i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done']
"
    )
}

/// The lines of a running client, as they come.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (told, lines) = mpsc::channel();
    let output = BufReader::new(child.stdout.take().expect("its output"));
    std::thread::spawn(move || output.lines().map_while(Result::ok).all(|line| told.send(line).is_ok()));
    lines
}

#[test]
fn root_what_is_asked_of_a_pod_is_answered_by_its_node() {
    let Some(yard) = yard("agentask") else { return };
    yard.apply(&pod("far", "n1"));
    yard.apply(&pod("near", "node-0"));
    yard.ready("near");
    let far = yard.ready("far");
    assert_eq!(far["status"]["hostIP"], "10.244.1.1");
    // Logs, at once and as they come.
    until("it says something", || match yard.ok(&["logs", "far"]) {
        text if text.contains("line 3\n") => Ok(()),
        text => Err(text),
    });
    assert_eq!(yard.ok(&["logs", "far", "--tail=2"]).lines().count(), 2);
    let mut follow = yard.spawn(&["logs", "-f", "far", "--tail=0"]);
    let said = lines(&mut follow);
    for _ in 0..3 {
        said.recv_timeout(Duration::from_secs(20)).expect("the next line");
    }
    follow.kill().expect("end the client");
    follow.wait().expect("reap the client");
    // Exec: input, output, errors, exit code; a command that is not there.
    let script = "cat; echo oops >&2; hostname; exit 7";
    let ran = yard.podyard_with(&["exec", "-i", "far", "--", "sh", "-c", script], "typed\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (7, "typed\nfar\n"), "{ran:?}");
    assert!(ran.stderr.starts_with("oops\n"), "{ran:?}");
    let ran = yard.podyard(&["exec", "far", "--", "/no/such/program"]);
    assert!(ran.code != 0 && ran.stderr.contains("/no/such/program"), "{ran:?}");
    // A megabyte passes unchanged.
    let large = "x".repeat(1 << 20);
    let ran = yard.podyard_with(&["exec", "-i", "far", "--", "sh", "-c", "cat"], &large);
    assert!(ran.code == 0 && ran.stdout == large, "{} bytes, {}", ran.stdout.len(), ran.stderr);
    // Steps, namespaces, virtual IPs, plans.
    assert!(yard.ok(&["trace", "far"]).contains("clone3 pid"));
    let net = |pod: &str| yard.namespaces(pod, "net")[0]["inode"].as_u64();
    assert!(net("far").is_some() && net("far") != net("near"));
    assert!(yard.ok(&["ns", "ls"]).contains(" n1 "));
    assert!(yard.ok(&["ns", "services", "--node", "n1"]).contains("VIRTUAL PORT"));
    let ran = yard.podyard(&["ns", "services", "--node", "n9"]);
    assert!(ran.code == 1 && ran.stderr.contains("NotFound"), "{ran:?}");
    yard.ok(&["delete", "pod", "far", "near"]);
    // What it did is remembered by its node.
    assert!(yard.ok(&["trace", "far"]).contains("delete pod"));
}

#[test]
fn root_a_node_works_on_while_the_daemon_is_away() {
    let Some(mut yard) = yard("agentapi") else { return };
    yard.apply(&pod("stays", "n1"));
    yard.apply(&pod("goes", "n1"));
    let before = (yard.ready("stays"), yard.ready("goes"));
    let pid = yard.pids("stays")[0];
    yard.kill_daemon();
    // What is wished as soon as the daemon is back reaches the node by its old watch, or a new list.
    yard.start_daemon();
    let back = Instant::now();
    yard.apply(&pod("new", "n1"));
    yard.ok(&["delete", "pod", "goes"]);
    yard.gone("goes");
    yard.ready("new");
    assert!(back.elapsed() < Duration::from_secs(30));
    let after = yard.ready("stays");
    assert_eq!(yard.pids("stays")[0], pid, "untouched");
    assert_eq!(first_status(&after)["restartCount"], 0);
    assert_eq!(after["metadata"]["uid"], before.0["metadata"]["uid"]);
    assert_eq!(yard.podyard(&["exec", "stays", "--", "true"]).code, 0);
    let log = std::fs::read_to_string(yard.run_dir().join("nodes/n1/agent.log")).expect("the agent's log");
    assert_eq!(log.matches("the API cannot be reached").count(), 1, "said once: {log}");
    assert_eq!(log.matches("the API is reached").count(), 2, "{log}");
    assert_eq!(log.matches("is up").count(), 1, "one agent all the time: {log}");
}

#[test]
fn root_a_node_that_is_cut_off_is_named_soon() {
    let Some(yard) = yard("agentcut") else { return };
    yard.apply(&pod("far", "n1"));
    yard.apply(&pod("near", "node-0"));
    yard.ready("far");
    yard.ready("near");
    let pid = yard.pids("far")[0];
    let mut follow = yard.spawn(&["logs", "-f", "far"]);
    // It does not wait for the condition, which a minute's silence would take.
    yard.podyard(&["node", "cut", "n1", "--timeout=1ms"]);
    let refused = |args: &[&str]| -> Ran {
        let begun = Instant::now();
        let ran = yard.podyard(args);
        assert!(begun.elapsed() < REFUSAL_DEADLINE, "{args:?}: {:?}", begun.elapsed());
        ran
    };
    until("the link is down", || {
        let ran = yard.podyard(&["logs", "far"]);
        if ran.code == 1 { Ok(()) } else { Err(ran.code) }
    });
    for args in [&["logs", "far"][..], &["exec", "far", "--", "true"], &["trace", "far"]] {
        let ran = refused(args);
        let named = ran.stderr.contains("ServiceUnavailable") && ran.stderr.contains("\"n1\"");
        assert!(ran.code == 1 && named, "{args:?}: {ran:?}");
    }
    let ran = refused(&["ns", "ls"]);
    assert!(ran.code == 0 && ran.stderr.contains("\"n1\"") && ran.stdout.contains("default/near"), "{ran:?}");
    // Who listened to it is told that it ended.
    until("the follower ends", || match follow.try_wait() {
        Ok(Some(status)) if !status.success() => Ok(()),
        other => Err(other.map_err(|error| error.to_string())),
    });
    yard.ok(&["node", "heal", "n1"]);
    until("it answers again", || {
        let ran = yard.podyard(&["exec", "far", "--", "true"]);
        if ran.code == 0 { Ok(()) } else { Err(ran) }
    });
    assert_eq!(yard.pids("far")[0], pid, "within its grace period, nothing was done to it");
}

#[test]
fn root_pods_cannot_use_the_ports_between_daemon_and_agents() {
    let Some(yard) = yard("agentauth") else { return };
    let asker = "
apiVersion: v1
kind: Pod
metadata: {name: asker}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: podyard.local/toolbox, command: [serve]}
";
    yard.apply(asker);
    yard.ready("asker");
    for url in ["http://10.244.0.1:6443/api/v1/pods", "http://10.244.1.1:10250/podyard/v1/namespaces"] {
        let ran = yard.podyard(&["exec", "asker", "--", "fetch", url]);
        assert!(ran.code != 0 && ran.stderr.contains("401"), "{url}: {ran:?}");
        assert!(ran.stdout.contains("\"reason\":\"Unauthorized\""), "{url}: {ran:?}");
    }
    // The port is there only while there are further nodes.
    yard.ok(&["node", "rm", "n1", "--force"]);
    let url = "http://10.244.0.1:6443/version";
    until("the port is closed", || {
        let ran = yard.on_host(&["fetch", url, "--timeout-ms", "1000"]);
        if ran.stderr.contains("refused") { Ok(()) } else { Err(ran) }
    });
}
