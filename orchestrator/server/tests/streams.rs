//! Logs, exec, and the yard's own paths.
#![allow(clippy::unwrap_used, reason = "a failed expectation of a test panics")]

mod harness;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use api::Kind;
use client::{Client, ExecOptions, LogOptions, Output, Request, WriteOptions};
use harness::{Yard, key, pod, pods, yard};
use serde_json::json;
use server::yard::{Plan, StepState, Trace};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);

async fn yard_with_pod() -> Yard {
    let yard = yard().await;
    yard.client.create(pods(), "default", &pod("a"), &WriteOptions::default()).await.unwrap();
    yard
}

#[tokio::test]
async fn logs_follow() {
    let yard = yard_with_pod().await;
    let options = LogOptions { follow: true, tail_lines: Some(1), ..LogOptions::default() };
    let mut log = yard.client.logs(&key("a"), &options).await.unwrap();
    let line = |bytes: Option<Result<_, client::Error>>| {
        String::from_utf8(Vec::from(bytes.unwrap().unwrap() as hyper::body::Bytes)).unwrap()
    };
    assert_eq!(line(log.next().await), "a main tail=Some(1)\n");
    for n in 0..3 {
        yard.node.more_log.notify_one();
        assert_eq!(
            line(timeout(DEADLINE, log.next()).await.unwrap()),
            format!("line {n}\n"),
            "each line as it comes"
        );
    }
    yard.node.more_log.notify_one();
    assert!(log.next().await.is_none());
    let missing = LogOptions { container: Some("x".into()), ..LogOptions::default() };
    assert_eq!(yard.client.logs(&key("a"), &missing).await.err().unwrap().kind(), Some(Kind::BadRequest));
    assert!(yard.client.logs(&key("b"), &LogOptions::default()).await.err().unwrap().is_not_found());
}

/// Runs to the end; gives output, errors and exit code.
async fn exec(yard: &Yard, command: &[&str], input: Option<&[u8]>, tty: bool) -> (Vec<u8>, Vec<u8>, i32) {
    let options = ExecOptions {
        command: command.iter().map(|word| (*word).to_string()).collect(),
        stdin: input.is_some(),
        tty,
        ..ExecOptions::default()
    };
    let (mut send, mut receive) = yard.client.exec(&key("a"), &options).await.unwrap();
    if tty {
        send.resize(80, 24).await.unwrap();
    }
    if let Some(input) = input {
        send.write(input).await.unwrap();
        send.end().await.unwrap();
    }
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match timeout(DEADLINE, receive.next()).await.unwrap().unwrap().unwrap() {
            Output::Stdout(bytes) => out.extend_from_slice(&bytes),
            Output::Stderr(bytes) => err.extend_from_slice(&bytes),
            Output::Exit(code) => return (out, err, code),
        }
    }
}

#[tokio::test]
async fn exec_carries_streams_and_exit_codes() {
    let yard = yard_with_pod().await;
    assert_eq!(exec(&yard, &["exit", "0"], None, false).await, (vec![], vec![], 0));
    assert_eq!(exec(&yard, &["exit", "137"], None, false).await.2, 137);
    assert_eq!(exec(&yard, &["both"], None, false).await, (b"out".to_vec(), b"err".to_vec(), 3));
    assert_eq!(
        exec(&yard, &["cat"], Some(b"hello"), false).await.0,
        b"hello",
        "stdin ends where the client says"
    );
    assert_eq!(exec(&yard, &["size"], None, true).await.0, b"80x24");
    assert_eq!(exec(&yard, &["flood"], None, false).await.0.len(), 1 << 20, "no output is lost at the end");
}

#[tokio::test]
async fn exec_is_refused_with_a_status() {
    let yard = yard_with_pod().await;
    let refused =
        async |pod: &str, options: ExecOptions| yard.client.exec(&key(pod), &options).await.err().unwrap();
    let nonsense = ExecOptions { command: vec!["nonsense".into()], ..ExecOptions::default() };
    assert!(refused("a", nonsense.clone()).await.to_string().contains("no such file"));
    assert!(refused("b", nonsense.clone()).await.is_not_found());
    let other = ExecOptions { container: Some("x".into()), ..nonsense };
    assert_eq!(refused("a", other).await.kind(), Some(Kind::BadRequest));
    assert_eq!(refused("a", ExecOptions::default()).await.kind(), Some(Kind::Unsupported), "attach");
    let plain = Request::get("/api/v1/namespaces/default/pods/a/exec?command=x&stdout=true");
    assert_eq!(yard.client.request(plain).await.unwrap_err().kind(), Some(Kind::BadRequest), "no upgrade");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_exec_and_no_object() {
    let yard = yard_with_pod().await;
    let before = yard.client.get(&key("a")).await.unwrap();
    let options = ExecOptions { command: vec!["wait".into()], stdin: true, ..ExecOptions::default() };
    let streams = yard.client.exec(&key("a"), &options).await.unwrap();
    drop(streams);
    timeout(DEADLINE, yard.node.left.notified()).await.unwrap();
    assert_eq!(yard.client.get(&key("a")).await.unwrap(), before);
}

#[tokio::test]
async fn the_yards_own_paths() {
    let yard = yard_with_pod().await;
    let (trace, _) = yard.client.request_json(Request::get("/podyard/v1/trace/default/a")).await.unwrap();
    let trace: Trace = serde_json::from_value(trace).unwrap();
    assert_eq!(trace.steps[0].micros, Some(120));
    let run = Request::new(hyper::Method::POST, "/podyard/v1/step/default/a?action=run");
    let (state, _) = yard.client.request_json(run).await.unwrap();
    assert!(serde_json::from_value::<StepState>(state).unwrap().done);
    let fly = Request::new(hyper::Method::POST, "/podyard/v1/step/default/a?action=fly");
    assert_eq!(yard.client.request(fly).await.unwrap_err().kind(), Some(Kind::BadRequest));
}

#[tokio::test]
async fn a_plan_is_made_pod_by_pod_and_nothing_else() {
    let yard = yard_with_pod().await;
    let template = json!({"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "main", "image": "podyard.local/host"}]}});
    let manifests = json!([
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "new"}},
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "w", "namespace": "new"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "w"}}, "template": template}},
        pod("a"),
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"}, "spec": {"nope": 1, "containers": []}},
    ]);
    let before = store::Store::revision(yard.registry.store());
    let request = Request::new(hyper::Method::POST, "/podyard/v1/plan").json(&manifests);
    let (plan, _) = yard.client.request_json(request).await.unwrap();
    let plan: Plan = serde_json::from_value(plan).unwrap();
    let actions: Vec<String> =
        plan.objects.iter().map(|object| format!("{} {}", object.action, object.object)).collect();
    assert_eq!(actions, ["create namespace/new", "create replicaset/w", "unchanged pod/a", "refuse pod/bad"]);
    let planned: Vec<&str> = plan.pods.iter().map(|pod| pod.pod.as_str()).collect();
    assert_eq!(planned, ["new/w-<1>", "new/w-<2>"]);
    assert_eq!(plan.pods[0].steps[0].step, "container main start", "{:?}", plan.pods[0]);
    assert_eq!(store::Store::revision(yard.registry.store()), before, "planning writes nothing");
}

#[tokio::test]
async fn the_socket_is_ours_alone() {
    let yard = yard().await;
    let mode = std::fs::metadata(&yard.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = server::listen(&yard.socket).unwrap_err();
    assert!(error.to_string().contains("a daemon answers"), "{error}");
    let file = yard.socket.with_extension("txt");
    std::fs::write(&file, "precious").unwrap();
    assert!(server::listen(&file).is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn nobody_there_is_told() {
    let error = Client::new("/nonexistent/podyard.sock").get(&key("a")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no podyard daemon answers on /nonexistent/podyard.sock: start one with `podyard up`"
    );
}
