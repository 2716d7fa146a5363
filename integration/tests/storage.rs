//! Promise: a claim holds what it asked for and no more, grows while its pod runs, is one pod's at a time, and what was
//! deleted can be taken back.
#![allow(clippy::unwrap_used, reason = "tests")]

use integration::harness::{Yard, is_ready, is_root, until};
use serde_json::Value;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

fn start(test: &str) -> Option<Yard> {
    is_root(test).then(|| Yard::start(env!("CARGO_BIN_EXE_podyard-under-test"), test)).flatten()
}

fn claim(yard: &Yard, name: &str, size: &str, mode: &str) {
    yard.apply(&format!(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec: {{accessModes: [{mode}], resources: {{requests: {{storage: {size}}}}}}}
"
    ));
}

fn pod(yard: &Yard, name: &str, claim: &str) {
    yard.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: podyard.local/toolbox
    command: [sleep, infinity]
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
"
    ));
}

/// What the pod sees as /data.
fn data(yard: &Yard, pod: &str) -> PathBuf {
    yard.ready(pod);
    let pid = yard.pids(pod).first().copied().expect("a process of the pod");
    PathBuf::from(format!("/proc/{pid}/root/data"))
}

/// Writes until it is refused; the bytes that fitted.
fn fill(path: &Path) -> u64 {
    use std::io::Write;
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    let piece = vec![0x5a; MIB as usize / 4];
    while file.write_all(&piece).and_then(|()| file.sync_data()).is_ok() {
        assert!(file.metadata().unwrap().len() < 1 << 30, "there is no limit");
    }
    file.metadata().unwrap().len()
}

fn volume_of(yard: &Yard, claim: &str) -> Value {
    let claim = yard.get(&["pvc", claim]).expect("the claim");
    yard.get(&["pv", claim["spec"]["volumeName"].as_str().unwrap_or("")]).unwrap_or_default()
}

/// What enforces the claim's size, once the volume says so.
fn enforcement(yard: &Yard, claim: &str) -> String {
    until("the volume says what enforces its size", || {
        let volume = volume_of(yard, claim);
        let said = volume["metadata"]["annotations"]["podyard.io/enforcement"].as_str().map(str::to_owned);
        said.ok_or(volume)
    })
}

fn skip(why: &str) {
    // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
    _ = std::io::Write::write_all(&mut std::io::stderr(), format!("SKIP: {why}\n").as_bytes());
}

/// Loop devices bound to a file beneath `dir`.
fn devices(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir("/sys/block").unwrap().flatten();
    let bound = entries.filter_map(|entry| {
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        file.starts_with(dir.to_str()?).then(|| entry.file_name().into_string().unwrap_or_default())
    });
    bound.collect()
}

#[test]
fn root_a_claim_holds_its_size_and_grows_under_its_pod() {
    let Some(yard) = start("claim-size") else { return };
    claim(&yard, "data", "16Mi", "ReadWriteOnce");
    pod(&yard, "writer", "data");
    let data = data(&yard, "writer");
    if enforcement(&yard, "data") == "none" {
        return skip("neither project quotas nor loop devices here");
    }
    let fitted = fill(&data.join("full"));
    assert!((14 * MIB..=16 * MIB).contains(&fitted), "{fitted} bytes fitted");

    let patch = r#"{"spec": {"resources": {"requests": {"storage": "8Mi"}}}}"#;
    let shrunk = yard.podyard(&["patch", "pvc", "data", "--type", "merge", "-p", patch]);
    assert!(shrunk.code != 0 && shrunk.stderr.contains("less than previous value"), "{shrunk:?}");
    let patch = r#"{"spec": {"resources": {"requests": {"storage": "48Mi"}}}}"#;
    yard.ok(&["patch", "pvc", "data", "--type", "merge", "-p", patch]);
    until("the claim has what it asked for", || {
        let claim = yard.get(&["pvc", "data"]).unwrap();
        let has = claim["status"]["capacity"]["storage"] == "48Mi" && claim["status"]["conditions"].is_null();
        if has { Ok(()) } else { Err(claim) }
    });
    let fitted = fill(&data.join("full"));
    assert!((46 * MIB..=48 * MIB).contains(&fitted), "{fitted} bytes fitted");
    let shown = yard.ok(&["describe", "pvc", "data"]);
    assert!(shown.contains("Size enforced by:"), "{shown}");

    // The host's mount table knows nothing of it; when all is killed, the device goes.
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.lines().any(|line| line.contains("data.img") || line.contains("/volumes/")), "{table}");
    let home = yard.data_dir().join("volumes").canonicalize().unwrap();
    if enforcement(&yard, "data") == "loop" {
        assert_eq!(devices(&home).len(), 1);
        yard.ok(&["delete", "pod", "writer", "--grace-period", "0", "--force"]);
        yard.gone("writer");
        until("the loop device goes", || match devices(&home) {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        });
    }
}

#[test]
fn root_a_class_without_expansion_refuses_growth() {
    let Some(yard) = start("no-growth") else { return };
    yard.apply(
        "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fixed}
provisioner: podyard.io/host
parameters: {enforcement: none, trashGrace: 0s}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {storageClassName: fixed, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
",
    );
    assert_eq!(enforcement(&yard, "data"), "none");
    let patch = r#"{"spec": {"resources": {"requests": {"storage": "2Mi"}}}}"#;
    let grown = until("the claim is bound", || {
        let grown = yard.podyard(&["patch", "pvc", "data", "--type", "merge", "-p", patch]);
        if grown.stderr.contains("not bound yet") { Err(grown) } else { Ok(grown) }
    });
    assert!(grown.code != 0 && grown.stderr.contains("allowVolumeExpansion"), "{grown:?}");
    // No grace: gone at once.
    yard.ok(&["delete", "pvc", "data"]);
    until("the data is gone", || {
        let left: Vec<_> = std::fs::read_dir(yard.data_dir().join("volumes"))
            .unwrap()
            .chain(std::fs::read_dir(yard.data_dir().join("volumes/.trash")).into_iter().flatten())
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != ".trash")
            .collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn root_a_second_pod_waits_for_a_claim_of_one_and_is_told_why() {
    let Some(yard) = start("one-pod") else { return };
    let said = |what: &str| {
        until("the second pod says why it waits", || {
            let said = yard.ok(&["events"]);
            if said.contains(what) { Ok(()) } else { Err(said) }
        });
    };
    // ReadWriteOncePod is told apart by the scheduler, in Kubernetes' words.
    claim(&yard, "data", "4Mi", "ReadWriteOncePod");
    pod(&yard, "first", "data");
    yard.ready("first");
    pod(&yard, "second", "data");
    said("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode");
    assert!(!is_ready(&yard.get(&["pod", "second"]).unwrap()));
    yard.ok(&["delete", "pod", "first"]);
    yard.ready("second");

    // ReadWriteOnce means one pod here too: the second is on the node and waits for the holder.
    claim(&yard, "once", "4Mi", "ReadWriteOnce");
    pod(&yard, "holder", "once");
    let uid = yard.ready("holder")["metadata"]["uid"].as_str().unwrap().to_owned();
    pod(&yard, "waiter", "once");
    said(&format!("claim once is held by pod {uid}"));
    assert!(!is_ready(&yard.get(&["pod", "waiter"]).unwrap()));
    yard.ok(&["delete", "pod", "holder"]);
    yard.ready("waiter");

    // One that many may use is used by many, with one filesystem between them.
    claim(&yard, "shared", "4Mi", "ReadWriteMany");
    pod(&yard, "left", "shared");
    pod(&yard, "right", "shared");
    std::fs::write(data(&yard, "left").join("word"), "7").unwrap();
    assert_eq!(std::fs::read_to_string(data(&yard, "right").join("word")).unwrap(), "7");
}

#[test]
fn root_what_was_deleted_comes_back_also_after_a_killed_daemon() {
    let Some(mut yard) = start("trash") else { return };
    claim(&yard, "data", "4Mi", "ReadWriteOnce");
    pod(&yard, "writer", "data");
    std::fs::write(data(&yard, "writer").join("word"), "7").unwrap();
    enforcement(&yard, "data");
    yard.ok(&["delete", "pod", "writer"]);
    yard.ok(&["delete", "pvc", "data", "--wait=false"]);
    // Wherever it was: what it had begun is finished by the next one.
    yard.kill_daemon();
    yard.start_daemon();
    let trash = || serde_json::from_str::<Value>(&yard.ok(&["volume", "trash", "-o", "json"])).unwrap();
    let listed = until("the volume is in the trash", || {
        let listed = trash();
        if listed[0]["claim"] == "default/data" { Ok(listed) } else { Err(listed) }
    });
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    until("its object is gone", || match yard.list(&["pv"]) {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });

    claim(&yard, "data", "4Mi", "ReadWriteOnce");
    let taken = yard.podyard(&["volume", "undelete", "data"]);
    assert!(taken.code != 0 && taken.stderr.contains("--claim"), "{taken:?}");
    yard.ok(&["volume", "undelete", "data", "--claim", "again"]);
    pod(&yard, "reader", "again");
    assert_eq!(std::fs::read_to_string(data(&yard, "reader").join("word")).unwrap(), "7");
    assert_eq!(trash(), Value::Array(vec![]));
    assert!(yard.ok(&["volume", "ls"]).contains("default/again"));

    yard.ok(&["delete", "pod", "reader"]);
    yard.ok(&["delete", "pvc", "again"]);
    until("the volume is in the trash", || match trash() {
        listed if listed[0]["claim"] == "default/again" => Ok(()),
        listed => Err(listed),
    });
    yard.ok(&["volume", "empty", "--all"]);
    assert_eq!(trash(), Value::Array(vec![]));
    let left = std::fs::read_dir(yard.data_dir().join("volumes/.trash")).unwrap().count();
    assert_eq!(left, 0, "nothing is left on disk");
}
