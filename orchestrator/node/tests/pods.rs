//! Pods on the real kernel.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{World, root, sh};
use serde_json::json;
use std::time::Instant;

/// Ends at once when asked to.
const SERVE: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_a_pod_of_two_runs_shares_and_goes_without_a_trace() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let a = sh("a", &format!("echo hello > /shared/x; {SERVE}"));
    let b = sh("b", &format!("until [ -s /shared/x ]; do sleep 0.01; done; cat /shared/x; {SERVE}"));
    let mut pod =
        world.pod("two", 10, json!({"containers": [a, b], "volumes": [{"name": "s", "emptyDir": {}}]}));
    for n in 0..2 {
        pod.set(&format!("spec.containers.{n}.volumeMounts"), json!([{"name": "s", "mountPath": "/shared"}]));
    }
    let uid = pod.uid().to_owned();
    let begun = Instant::now();
    let key = world.apply(pod);
    let ready = world.ready(&key).await.unwrap();
    println!("apply to ready: {:?}", begun.elapsed());
    assert_eq!(ready.get_str("status.phase"), Some("Running"));
    assert_eq!(world.api.status_writes.load(std::sync::atomic::Ordering::SeqCst), 1, "one status commit");
    for entry in world.agent().trace(&key).unwrap().entries {
        println!("{:>8} {:<14} {}", entry.micros, entry.step, entry.effect);
    }
    let begun = Instant::now();
    world.delete(&key, 1);
    world.gone(&key).await;
    println!("delete to gone: {:?}", begun.elapsed());
    assert_eq!(world.leftovers(&uid), Vec::<String>::new());
}
