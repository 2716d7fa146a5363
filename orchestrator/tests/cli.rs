//! The built `podyard` against a server over an in-memory store and a fake node: what users type and see.
#![allow(clippy::unwrap_used, reason = "a failed expectation of a test panics")]

#[path = "../server/tests/harness/mod.rs"]
mod harness;

use std::process::{Output, Stdio};
use std::time::Duration;

use harness::{Yard, yard};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

const DEADLINE: Duration = Duration::from_secs(20);

fn command(yard: &Yard, line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podyard"));
    command.args(line).env("PODYARD_SOCKET", &yard.socket).env_remove("PODYARD_NAMESPACE");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn output(yard: &Yard, line: &str, input: &str) -> Output {
    let words: Vec<&str> = line.split(' ').collect();
    let mut child = command(yard, &words).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap()
}

/// Output and errors together, with the exit code if it is not 0.
async fn run(yard: &Yard, line: &str, input: &str) -> String {
    let output = output(yard, line, input).await;
    let mut text = String::from_utf8(output.stdout).unwrap() + std::str::from_utf8(&output.stderr).unwrap();
    if !output.status.success() {
        text += &format!("exit {}\n", output.status.code().unwrap());
    }
    text
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - {name: main, image: podyard.local/host, command: [sleep, '60']}
  - {name: side, image: podyard.local/host, command: [sleep, '60']}
";

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_configures_and_leaves_alone() {
    let yard = yard().await;
    assert_eq!(run(&yard, "apply -f - --dry-run=server", POD).await, "pod/web created (server dry run)\n");
    assert_eq!(run(&yard, "apply -f - --dry-run=client", POD).await, "pod/web created (dry run)\n");
    assert_eq!(run(&yard, "get pods", "").await, "No resources found in default namespace.\n");
    assert_eq!(run(&yard, "apply -f -", POD).await, "pod/web created\n");
    assert_eq!(run(&yard, "apply -f -", POD).await, "pod/web unchanged\n");
    let labelled = POD.replace("app: web", "app: web, tier: front");
    assert_eq!(run(&yard, "apply -f -", &labelled).await, "pod/web configured\n");
    assert_eq!(run(&yard, "get pod web -o jsonpath={.metadata.labels.tier}", "").await, "front");
    assert_eq!(
        run(&yard, "apply -f -", POD).await,
        "pod/web configured\n",
        "a label that left the file goes"
    );
    assert_eq!(run(&yard, "get pod web -o jsonpath={.metadata.labels}", "").await, r#"{"app":"web"}"#);
    let again = run(&yard, "create -f -", POD).await;
    assert_eq!(again, "Error from server (AlreadyExists): pods \"web\" already exists\nexit 1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_unknown_field_is_named_and_the_rest_goes_on() {
    let yard = yard().await;
    let wrong =
        POD.replace("metadata:", "extra: 1\nmetadata:").replace("name: main,", "name: main, imagine: x,");
    let both = format!("{wrong}---{}", POD.replace("name: web,", "name: other,"));
    let text = run(&yard, "apply -f -", &both).await;
    assert!(text.starts_with("pod/other created\n"), "{text}");
    assert!(text.contains("extra") && text.contains("spec.containers[0].imagine"), "{text}");
    assert!(text.ends_with("exit 1\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn get_speaks_kubectl() {
    let yard = yard().await;
    run(&yard, "apply -f -", POD).await;
    let table = run(&yard, "get po", "").await;
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert!(table.lines().nth(1).unwrap().starts_with("web    0/2     Pending   0          "), "{table}");
    assert!(run(&yard, "get pods -A -o wide", "").await.starts_with("NAMESPACE   NAME   READY"));
    assert_eq!(run(&yard, "get pods,svc -o name", "").await, "pod/web\n");
    assert_eq!(
        run(&yard, "get pods --no-headers -l app=nope", "").await,
        "No resources found in default namespace.\n"
    );
    assert_eq!(
        run(&yard, "get pod web nope -o name", "").await,
        "pod/web\nError from server (NotFound): pods \"nope\" not found\nexit 1\n"
    );
    assert_eq!(
        run(&yard, "get cars", "").await,
        "error: the server doesn't have a resource type \"cars\"\nexit 1\n"
    );
    assert!(run(&yard, "get pod/web -o yaml", "").await.contains("\n  name: web\n  namespace: default\n"));
    assert!(run(&yard, "get ns -o json", "").await.contains("\"kind\": \"List\""));
    let described = run(&yard, "describe pod web", "").await;
    assert!(described.starts_with("Name:") && described.contains("Events:"), "{described}");
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_waits_and_wait_waits() {
    let yard = yard().await;
    run(&yard, "apply -f -", POD).await;
    let met = run(&yard, "wait --for=jsonpath={.status.phase}=Pending pod/web", "").await;
    assert_eq!(met, "pod/web condition met\n");
    let late = run(&yard, "wait --for=condition=Ready pod web --timeout=50ms", "").await;
    assert_eq!(late, "error: timed out waiting for the condition on pods/web\nexit 1\n");
    let mut waiting = command(&yard, &["wait", "--for=delete", "pod/web"]).spawn().unwrap();
    assert_eq!(run(&yard, "delete pod web", "").await, "pod \"web\" deleted\n");
    assert!(tokio::time::timeout(DEADLINE, waiting.wait()).await.unwrap().unwrap().success());
    assert_eq!(
        run(&yard, "delete pod web", "").await,
        "Error from server (NotFound): pods \"web\" not found\nexit 1\n"
    );
    assert_eq!(run(&yard, "delete pod web --ignore-not-found", "").await, "");
    assert_eq!(run(&yard, "delete pods --all", "").await, "No resources found\n");
    run(&yard, "apply -f -", POD).await;
    assert_eq!(run(&yard, "delete -f -", POD).await, "pod \"web\" deleted\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_changes_and_dies_with_its_reader() {
    let yard = yard().await;
    let mut child = command(&yard, &["get", "pods", "-w", "-o", "name"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    run(&yard, "apply -f -", POD).await;
    let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap();
    assert_eq!(line.as_deref(), Some("pod/web"));
    drop(lines);
    // A process that another test is just starting may hold our end of the pipe for a moment: change it again.
    let status = tokio::time::timeout(DEADLINE, async {
        loop {
            run(&yard, "delete pod web --ignore-not-found", "").await;
            run(&yard, "apply -f -", POD).await;
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
        }
    });
    let status = status.await.unwrap();
    assert_eq!(status.code(), Some(141), "a closed pipe ends it without a word");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_and_logs() {
    let yard = yard().await;
    run(&yard, "apply -f -", POD).await;
    assert_eq!(run(&yard, "exec web -c main -i -- cat", "hello").await, "hello");
    let seven = run(&yard, "exec web -c main -- exit 7", "").await;
    assert_eq!(seven, "command terminated with exit code 7\nexit 7\n");
    let both = output(&yard, "exec pod/web -- both", "").await;
    assert_eq!((both.stdout.as_slice(), both.status.code()), (&b"out"[..], Some(3)));
    let errors = String::from_utf8(both.stderr).unwrap();
    assert!(errors.starts_with("Defaulted container \"main\" out of: main, side\nerr"), "{errors}");
    assert_eq!(run(&yard, "logs web -c side --tail 3", "").await, "web side tail=Some(3)\n");
    assert_eq!(
        run(&yard, "logs web -c x", "").await,
        "Error from server (BadRequest): container x is not valid for pod web\nexit 1\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_are_scaled_and_planned() {
    let yard = yard().await;
    let set = "
apiVersion: apps/v1alpha1
kind: PetSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: main, image: podyard.local/host}]}
";
    let plan = run(&yard, "plan -f -", set).await;
    assert!(plan.starts_with("+ create petset/db\n    2 pets, one after the other"), "{plan}");
    assert!(
        plan.contains("\npod default/db-0 (for petset/db)\n") && plan.ends_with("Nothing was changed.\n"),
        "{plan}"
    );
    assert_eq!(run(&yard, "apply -f -", set).await, "petset.apps/db created\n");
    assert_eq!(run(&yard, "apply -f -", set).await, "petset.apps/db unchanged\n");
    assert_eq!(run(&yard, "scale petset/db --replicas 3", "").await, "petset.apps/db scaled\n");
    assert_eq!(run(&yard, "get sts db -o jsonpath={.spec.replicas}", "").await, "3");
    assert_eq!(
        run(&yard, "scale sts db --replicas=1 --current-replicas=2", "").await,
        "error: expected replicas to be 2, was 3\nexit 1\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn run_makes_a_pod() {
    let yard = yard().await;
    let line = "run once --image podyard.local/host --restart Never --env A=1 --command -- sh -c true";
    assert_eq!(run(&yard, line, "").await, "pod/once created\n");
    assert_eq!(
        run(&yard, "get pod once -o jsonpath={.spec.containers[0].command}", "").await,
        r#"["sh","-c","true"]"#
    );
    let yaml = run(&yard, "run x --image i --dry-run=client -o yaml", "").await;
    assert!(yaml.starts_with("apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    run: x\n"), "{yaml}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_answers() {
    let yard = yard().await;
    run(&yard, "apply -f -", POD).await;
    assert!(run(&yard, "trace web", "").await.contains("netns create"));
    assert!(run(&yard, "version", "").await.contains("Server Version: v1.33.0+podyard-"));
    assert!(run(&yard, "version -o json", "").await.contains("\"serverVersion\""));
    assert!(run(&yard, "api-resources", "").await.contains("pods                     po           v1"));
    assert_eq!(run(&yard, "events", "").await, "No events found in default namespace.\n");
    assert_eq!(run(&yard, "ns map", "").await, "no namespaces: no pod runs\n");
    let purge = run(&yard, "purge", "").await;
    assert!(purge.contains("yard test") && purge.contains("add --yes if you mean it"), "{purge}");
    let other = run(&yard, "purge --yes --isolated --name none-such", "").await;
    assert!(other.contains("which is not the one that the flags name"), "{other}");
    let gone = run(&yard, "purge --yes --socket /nonexistent/x.sock", "").await;
    assert!(gone.starts_with("say which yard is meant") && gone.ends_with("exit 1\n"), "{gone}");
    let doctor = run(&yard, "doctor -o json", "").await;
    assert!(doctor.contains("\"name\": \"overlayfs\"") && doctor.contains("\"ok\": "), "{doctor}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_every_verb_says_so() {
    let yard = yard().await;
    for line in
        ["get pods", "apply -f -", "logs x", "exec x -- y", "trace x", "ns ls", "events", "delete pod x"]
    {
        let words: Vec<&str> = line.split(' ').collect();
        let mut child = command(&yard, &words)
            .env("PODYARD_SOCKET", "/nonexistent/x.sock")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(POD.as_bytes()).await.unwrap_or(());
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(
            (String::from_utf8(output.stderr).unwrap().as_str(), output.status.code()),
            (
                "error: no podyard daemon answers on /nonexistent/x.sock: start one with `podyard up`\n",
                Some(1)
            ),
            "{line}"
        );
    }
}
