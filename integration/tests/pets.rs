//! A pet keeps its name and its storage; order is kept; a killed daemon changes nothing.

use integration::harness::{Yard, first_status, until};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

const COUNTER: &str = "
apiVersion: v1
kind: Service
metadata: {name: counter}
spec:
  clusterIP: None
  selector: {app: counter}
  ports: [{port: 8080}]
---
apiVersion: apps/v1alpha1
kind: PetSet
metadata: {name: counter}
spec:
  serviceName: counter
  replicas: 3
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

/// Visits a pet; the count it answers.
fn visit(yard: &Yard, pet: &str, path: &str) -> u64 {
    until(&format!("{pet} answers"), || {
        let Some(pod) = yard.get(&["pod", pet]) else { return Err("gone".to_owned()) };
        let url = format!("http://{}:8080{path}", pod["status"]["podIP"].as_str().unwrap_or("none"));
        let ran = yard.on_host(&["fetch", &url, "--timeout-ms", "2000"]);
        match ran.stdout.trim().strip_prefix(&format!("{pet} ")).and_then(|n| n.parse().ok()) {
            Some(count) => Ok(count),
            None => Err(format!("{ran:?}")),
        }
    })
}

#[test]
fn root_a_killed_pet_returns_under_its_name_with_its_storage() {
    let Some(yard) = Yard::start(PROGRAM, "petkill") else { return };
    yard.apply(COUNTER);
    yard.ready_count("app=counter", 3);
    for expected in 1..=3 {
        assert_eq!(visit(&yard, "counter-1", "/"), expected);
    }
    assert_eq!(visit(&yard, "counter-2", "/"), 1, "each has its own");
    let before = yard.ready("counter-1");
    let old = yard.pids("counter-1");
    assert!(!old.is_empty());
    for pid in &old {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL)
            .expect("kill the pet");
    }
    yard.pod_until("counter-1", "restarted", |pod| {
        first_status(pod)["restartCount"].as_u64() >= Some(1) && integration::harness::is_ready(pod)
    });
    assert_eq!(visit(&yard, "counter-1", "/"), 4, "its count is intact");
    let after = yard.ready("counter-1");
    let claim = |pod: &Value| {
        pod["spec"]["volumes"].as_array().and_then(|all| all.iter().find(|v| v["name"] == "data").cloned())
    };
    assert_eq!(claim(&before), claim(&after));
    assert_eq!(claim(&after).expect("a claim")["persistentVolumeClaim"]["claimName"], "data-counter-1");
}

#[test]
fn root_the_highest_leaves_first_and_the_lowest_returns_first() {
    let Some(yard) = Yard::start(PROGRAM, "petscale") else { return };
    yard.apply(COUNTER);
    yard.ready_count("app=counter", 3);
    for pet in ["counter-0", "counter-1", "counter-2"] {
        visit(&yard, pet, "/");
    }
    let mut watch = yard.spawn(&["get", "pods", "-l", "app=counter", "-w", "-o", "name"]);
    yard.ok(&["scale", "petset/counter", "--replicas", "1"]);
    // One leaves at a time: while counter-2 is there, counter-1 is not asked to go.
    until("counter-1 and counter-2 are gone", || {
        let pods = yard.list(&["pods", "-l", "app=counter"]);
        let leaving = |name: &str| {
            pods.iter().any(|pod| {
                pod["metadata"]["name"] == name && pod["metadata"]["deletionTimestamp"].is_string()
            })
        };
        assert!(!(leaving("counter-1") && leaving("counter-2")), "one at a time");
        let there = |name: &str| pods.iter().any(|pod| pod["metadata"]["name"] == name);
        assert!(!(there("counter-2") && leaving("counter-1")), "highest first");
        assert!(there("counter-0"));
        if pods.len() == 1 { Ok(()) } else { Err(pods.len()) }
    });
    assert_eq!(yard.list(&["pvc"]).len(), 3, "claims stay");
    yard.ok(&["scale", "petset/counter", "--replicas", "3"]);
    yard.ready_count("app=counter", 3);
    let created = |name: &str| {
        yard.get(&["pod", name]).expect("there")["status"]["startTime"].as_str().expect("started").to_owned()
    };
    assert!(created("counter-1") <= created("counter-2"), "lowest returns first");
    for pet in ["counter-0", "counter-1", "counter-2"] {
        assert_eq!(visit(&yard, pet, "/"), 2, "{pet} has its data");
    }
    watch.kill().expect("end the watch");
    watch.wait().expect("reap the watch");
}

#[test]
fn root_a_killed_daemon_changes_nothing_that_runs() {
    let Some(mut yard) = Yard::start(PROGRAM, "adopt") else { return };
    yard.apply(COUNTER);
    yard.ready_count("app=counter", 3);
    visit(&yard, "counter-0", "/");
    let before: Vec<_> = ["counter-0", "counter-1", "counter-2"].iter().map(|pet| yard.pids(pet)).collect();
    assert!(before.iter().all(|pids| !pids.is_empty()));
    yard.kill_daemon();
    yard.start_daemon();
    yard.ready_count("app=counter", 3);
    let after: Vec<_> = ["counter-0", "counter-1", "counter-2"].iter().map(|pet| yard.pids(pet)).collect();
    assert_eq!(before, after, "the same processes");
    for pet in ["counter-0", "counter-1", "counter-2"] {
        assert_eq!(first_status(&yard.ready(pet))["restartCount"], 0, "{pet} was not restarted");
    }
    assert_eq!(visit(&yard, "counter-0", "/"), 2);
}

/// The manifest with some words changed.
fn counter(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(COUNTER.to_owned(), |manifest, (from, to)| {
        assert!(manifest.contains(from), "{from:?} is not in the manifest");
        manifest.replacen(from, to, 1)
    })
}

/// Waits until the set fulfils a condition, and returns it.
#[track_caller]
fn set_until(yard: &Yard, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    until(&format!("the set {what}"), || match yard.get(&["petset", "counter"]) {
        Some(set) if holds(&set) => Ok(set),
        other => Err(other.map(|set| set["status"].clone())),
    })
}

/// Waits until an update of so many pets is complete and nothing is left to do.
#[track_caller]
fn rolled_out(yard: &Yard, replicas: u64) -> Value {
    set_until(yard, "is rolled out", |set| {
        let status = &set["status"];
        status["observedGeneration"] == set["metadata"]["generation"]
            && status["updateRevision"] == status["currentRevision"]
            && [&status["replicas"], &status["readyReplicas"], &status["updatedReplicas"]]
                .iter()
                .all(|count| count.as_u64() == Some(replicas))
    })
}

fn uid(yard: &Yard, pet: &str) -> String {
    yard.get(&["pod", pet]).expect("it is there")["metadata"]["uid"].as_str().expect("a uid").to_owned()
}

fn revision(pod: &Value) -> &str {
    pod["metadata"]["labels"]["controller-revision-hash"].as_str().unwrap_or_default()
}

fn names(objects: &[Value]) -> Vec<&str> {
    objects.iter().filter_map(|object| object["metadata"]["name"].as_str()).collect()
}

fn is_told(yard: &Yard, reason: &str, words: &str) {
    until(&format!("an event {reason} with {words:?}"), || {
        let events = yard.list(&["events"]);
        let says = |event: &&Value| event["message"].as_str().is_some_and(|text| text.contains(words));
        match events.iter().filter(|event| event["reason"] == reason).find(says) {
            Some(_) => Ok(()),
            None => Err(events.iter().map(|event| event["message"].clone()).collect::<Vec<_>>()),
        }
    });
}

#[test]
fn root_an_update_goes_down_to_the_partition_and_back() {
    let Some(yard) = Yard::start(PROGRAM, "petroll") else { return };
    yard.apply(COUNTER);
    let first = rolled_out(&yard, 3)["status"]["updateRevision"].clone();
    visit(&yard, "counter-1", "/");
    let before = [uid(&yard, "counter-0"), uid(&yard, "counter-1")];
    let partition = |n: u32| {
        let patch =
            format!("{{\"spec\":{{\"updateStrategy\":{{\"rollingUpdate\":{{\"partition\":{n}}}}}}}}}");
        yard.ok(&["patch", "petset/counter", "--type", "merge", "-p", &patch]);
    };
    partition(2);
    assert!(yard.ok(&["rollout", "restart", "petset/counter"]).contains("petset.apps/counter restarted"));
    let said = yard.ok(&["rollout", "status", "petset/counter", "--timeout", "60s"]);
    assert!(said.contains("partitioned roll out complete: 1 new pods"), "{said}");
    let second = set_until(&yard, "has one new pet", |set| set["status"]["updatedReplicas"] == 1);
    let second = second["status"]["updateRevision"].clone();
    assert_ne!(first, second);
    assert_eq!(revision(&yard.ready("counter-2")), second);
    assert_eq!([uid(&yard, "counter-0"), uid(&yard, "counter-1")], before, "those below are not touched");
    // One that returns below the partition is what it was.
    yard.ok(&["delete", "pod", "counter-0"]);
    let returned = yard.pod_until("counter-0", "returned", |pod| {
        integration::harness::is_ready(pod) && pod["metadata"]["uid"] != before[0].as_str()
    });
    assert_eq!(revision(&returned), first);
    partition(0);
    let done = rolled_out(&yard, 3);
    assert_eq!(done["status"]["currentRevision"], second);
    let history = yard.ok(&["rollout", "history", "petset/counter"]);
    let numbers: Vec<&str> = history.lines().skip(2).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(
        numbers.iter().filter(|number| !number.is_empty()).collect::<Vec<_>>(),
        [&"1", &"2"],
        "{history}"
    );
    let undone = yard.ok(&["rollout", "undo", "petset/counter"]);
    assert_eq!(undone.trim(), "petset.apps/counter rolled back");
    let back = set_until(&yard, "goes back", |set| set["status"]["updateRevision"] == first);
    assert_eq!(back["status"]["collisionCount"], 0);
    rolled_out(&yard, 3);
    let skipped = yard.ok(&["rollout", "undo", "petset/counter", "--to-revision", "3"]);
    assert!(skipped.contains("skipped rollback (current template already matches revision 3)"), "{skipped}");
    assert_eq!(visit(&yard, "counter-1", "/"), 2, "its data went through all of it");
}

#[test]
fn root_as_many_pets_are_down_for_an_update_as_may_be() {
    let Some(yard) = Yard::start(PROGRAM, "petmax") else { return };
    let strategy = "replicas: 4\n  minReadySeconds: 1\n  podManagementPolicy: Parallel\n  \
                    updateStrategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 50%}}";
    yard.apply(&counter(&[("replicas: 3", strategy)]));
    rolled_out(&yard, 4);
    set_until(&yard, "is available", |set| set["status"]["availableReplicas"] == 4);
    yard.ok(&["rollout", "restart", "petset/counter"]);
    let mut fewest = 4;
    until("the update is complete", || {
        let set = yard.get(&["petset", "counter"]).expect("it is there");
        let status = &set["status"];
        fewest = fewest.min(status["availableReplicas"].as_u64().expect("a count"));
        let is_complete = status["observedGeneration"] == set["metadata"]["generation"]
            && status["updatedReplicas"] == 4
            && status["availableReplicas"] == 4;
        if is_complete { Ok(()) } else { Err(status.clone()) }
    });
    assert_eq!(fewest, 2, "two at a time, never more");
}

#[test]
fn root_a_rollout_that_is_stuck_on_a_broken_revision_frees_itself() {
    let Some(yard) = Yard::start(PROGRAM, "petstuck") else { return };
    yard.apply(COUNTER);
    let good = rolled_out(&yard, 3)["status"]["updateRevision"].clone();
    visit(&yard, "counter-2", "/");
    let healthy = [uid(&yard, "counter-0"), uid(&yard, "counter-1")];
    yard.apply(&counter(&[("command: [counter,", "command: [no-such-applet,")]));
    let stuck = yard.pod_until("counter-2", "broken", |pod| {
        revision(pod) != good && first_status(pod)["restartCount"].as_u64() >= Some(1)
    });
    assert!(!integration::harness::is_ready(&stuck));
    assert_eq!([uid(&yard, "counter-0"), uid(&yard, "counter-1")], healthy, "nobody else is touched");
    let waiting = yard.podyard(&["rollout", "status", "petset/counter", "--timeout", "300ms"]);
    assert_ne!(waiting.code, 0, "{waiting:?}");
    assert!(waiting.stdout.contains("Waiting for 1 pods to be ready..."), "{waiting:?}");
    yard.ok(&["rollout", "undo", "petset/counter"]);
    let free = rolled_out(&yard, 3);
    assert_eq!(free["status"]["updateRevision"], good);
    assert_eq!([uid(&yard, "counter-0"), uid(&yard, "counter-1")], healthy, "healthy pets stay");
    assert_eq!(visit(&yard, "counter-2", "/"), 2, "its data is intact");
}

#[test]
fn root_recreate_runs_one_revision_at_a_time() {
    let Some(yard) = Yard::start(PROGRAM, "petrecreate") else { return };
    let strategy = "replicas: 3\n  podManagementPolicy: Parallel\n  updateStrategy: {type: Recreate}";
    yard.apply(&counter(&[("replicas: 3", strategy)]));
    let first = rolled_out(&yard, 3)["status"]["updateRevision"].clone();
    yard.ok(&["rollout", "restart", "petset/counter"]);
    until("all are of the new revision", || {
        let pods = yard.list(&["pods", "-l", "app=counter"]);
        let old = pods.iter().filter(|pod| revision(pod) == first).count();
        assert!(old == 0 || old == pods.len(), "old and new at the same time: {pods:#?}");
        if old == 0 && pods.len() == 3 { Ok(()) } else { Err((old, pods.len())) }
    });
    rolled_out(&yard, 3);
    let said = yard.ok(&["rollout", "status", "petset/counter"]);
    assert!(said.contains("statefulset rolling update complete 3 pods at revision"), "{said}");
}

#[test]
fn root_claims_go_with_their_pets_if_the_set_says_so() {
    let Some(yard) = Yard::start(PROGRAM, "petretain") else { return };
    let policy = |scaled: &str, deleted: &str| {
        let policy = format!(
            "replicas: 3\n  persistentVolumeClaimRetentionPolicy: {{whenScaled: {scaled}, whenDeleted: {deleted}}}"
        );
        counter(&[("replicas: 3", &policy)])
    };
    yard.apply(&policy("Delete", "Retain"));
    rolled_out(&yard, 3);
    assert_eq!(visit(&yard, "counter-2", "/"), 1);
    assert_eq!(visit(&yard, "counter-0", "/"), 1);
    yard.ok(&["scale", "petset/counter", "--replicas", "2"]);
    until("the claim follows its pet", || {
        let claims = yard.list(&["pvc"]);
        if names(&claims) == ["data-counter-0", "data-counter-1"] { Ok(()) } else { Err(claims) }
    });
    yard.ok(&["scale", "petset/counter", "--replicas", "3"]);
    rolled_out(&yard, 3);
    assert_eq!(visit(&yard, "counter-2", "/"), 1, "a new claim is empty");
    // Kept when the set is deleted, and found by the next of its name.
    yard.ok(&["delete", "petset/counter"]);
    yard.ready_count("app=counter", 0);
    assert_eq!(yard.list(&["pvc"]).len(), 3);
    yard.apply(&policy("Retain", "Delete"));
    rolled_out(&yard, 3);
    assert_eq!(visit(&yard, "counter-0", "/"), 2);
    until("the set owns its claims", || {
        let claims = yard.list(&["pvc"]);
        let owned = |claim: &Value| claim["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet";
        if claims.iter().all(owned) { Ok(()) } else { Err(claims) }
    });
    yard.ok(&["delete", "petset/counter"]);
    until("the claims go with the set", || {
        let claims = yard.list(&["pvc"]);
        if claims.is_empty() { Ok(()) } else { Err(claims) }
    });
}

#[test]
fn root_claim_templates_grow_and_new_ones_are_mounted() {
    let Some(yard) = Yard::start(PROGRAM, "petclaims") else { return };
    yard.apply(COUNTER);
    rolled_out(&yard, 3);
    assert_eq!(visit(&yard, "counter-1", "/"), 1);
    let added = "  - metadata: {name: log}\n    spec:\n      accessModes: [ReadWriteOncePod]\n      \
                 resources: {requests: {storage: 16Mi}}\n";
    let mut larger = counter(&[
        ("storage: 16Mi", "storage: 32Mi"),
        ("{name: data, mountPath: /data}]", "{name: data, mountPath: /data}, {name: log, mountPath: /log}]"),
    ]);
    larger.push_str(added);
    yard.apply(&larger);
    rolled_out(&yard, 3);
    for pet in ["counter-0", "counter-1", "counter-2"] {
        let pod = yard.ready(pet);
        let volumes = pod["spec"]["volumes"].as_array().expect("volumes");
        let claims: Vec<_> =
            volumes.iter().filter_map(|it| it["persistentVolumeClaim"]["claimName"].as_str()).collect();
        assert_eq!(claims, [format!("data-{pet}"), format!("log-{pet}")]);
        let claim = yard.get(&["pvc", &format!("data-{pet}")]).expect("it is there");
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "32Mi");
    }
    assert_eq!(visit(&yard, "counter-1", "/"), 2, "its data is intact");
    let smaller = yard.podyard_with(&["apply", "-f", "-"], COUNTER);
    assert_ne!(smaller.code, 0);
    let field = "spec.volumeClaimTemplates[0].spec.resources.requests.storage";
    assert!(smaller.stderr.contains(field), "{smaller:?}");
}

#[test]
fn root_reserved_ordinals_are_skipped() {
    let Some(yard) = Yard::start(PROGRAM, "petreserve") else { return };
    let reserving = |ordinals: &str| {
        let meta = format!(
            "kind: PetSet\nmetadata:\n  name: counter\n  annotations: {{podyard.io/reserved-ordinals: '{ordinals}'}}"
        );
        counter(&[("kind: PetSet\nmetadata: {name: counter}", &meta)])
    };
    let pets = |expected: &[&str]| {
        until(&format!("the pets are {expected:?}"), || {
            let pods = yard.list(&["pods", "-l", "app=counter"]);
            if names(&pods) == expected && pods.iter().all(integration::harness::is_ready) {
                Ok(())
            } else {
                Err(names(&pods).join(" "))
            }
        });
    };
    yard.apply(&reserving("1"));
    pets(&["counter-0", "counter-2", "counter-3"]);
    visit(&yard, "counter-3", "/");
    yard.apply(&reserving("0,2"));
    pets(&["counter-1", "counter-3", "counter-4"]);
    assert_eq!(visit(&yard, "counter-3", "/"), 2, "whoever stays stays");
    let refused = yard.podyard_with(&["apply", "-f", "-"], &reserving("first"));
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("metadata.annotations[podyard.io/reserved-ordinals]"), "{refused:?}");
}

#[test]
fn root_a_lost_claim_is_made_again_and_told_of() {
    let Some(yard) = Yard::start(PROGRAM, "petlost") else { return };
    yard.apply(COUNTER);
    rolled_out(&yard, 3);
    for pet in ["counter-0", "counter-1", "counter-2"] {
        assert_eq!(visit(&yard, pet, "/"), 1);
    }
    // Deleted by hand, then its pod: the next incarnation gets a new one.
    yard.ok(&["delete", "pvc", "data-counter-1", "--wait=false"]);
    assert_eq!(visit(&yard, "counter-1", "/"), 2, "it stays while it is mounted");
    let old = uid(&yard, "counter-1");
    yard.ok(&["delete", "pod", "counter-1"]);
    yard.pod_until("counter-1", "returned", |pod| {
        integration::harness::is_ready(pod) && pod["metadata"]["uid"] != old.as_str()
    });
    assert_eq!(visit(&yard, "counter-1", "/"), 1);
    is_told(&yard, "ClaimLost", "pet counter-1");
    // The volume is taken away under the claim: while the pet runs it is left alone, then it gets a new one.
    let claim = yard.get(&["pvc", "data-counter-2"]).expect("it is there");
    let volume = format!("pv/{}", claim["spec"]["volumeName"].as_str().expect("bound"));
    yard.ok(&["patch", &volume, "--type", "merge", "-p", "{\"metadata\":{\"finalizers\":null}}"]);
    yard.ok(&["delete", &volume]);
    until("the claim is lost", || match yard.get(&["pvc", "data-counter-2"]) {
        Some(claim) if claim["status"]["phase"] == "Lost" => Ok(()),
        other => Err(other),
    });
    let old = uid(&yard, "counter-2");
    yard.ok(&["delete", "pod", "counter-2"]);
    yard.pod_until("counter-2", "returned", |pod| {
        integration::harness::is_ready(pod) && pod["metadata"]["uid"] != old.as_str()
    });
    is_told(&yard, "ClaimLost", "pet counter-2");
    assert_eq!(visit(&yard, "counter-2", "/"), 1);
    assert_eq!(visit(&yard, "counter-0", "/"), 2, "nobody else has lost anything");
}
