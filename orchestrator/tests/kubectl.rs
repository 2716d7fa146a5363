//! An unmodified kubectl, if there is one, against the same server: what it can do without protobuf and OpenAPI.
#![allow(clippy::unwrap_used, reason = "a failed expectation of a test panics")]

#[path = "../server/tests/harness/mod.rs"]
mod harness;

use std::process::Stdio;
use std::time::Duration;

use harness::yard;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, UnixStream};
use tokio::process::Command;

const DEADLINE: Duration = Duration::from_secs(60);

const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {"containers": [{"name": "main", "image": "podyard.local/host"}]}}"#;

struct Kubectl {
    server: String,
    home: tempfile::TempDir,
}

impl Kubectl {
    /// Output and errors together, with the exit code if it is not 0.
    async fn run(&self, line: &str, input: &str) -> String {
        let mut child = Command::new("kubectl")
            .args(["--server", &self.server])
            .args(line.split(' '))
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // A kubectl that does not read its input may be gone by now.
        _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text += &String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            text += &format!("exit {}\n", output.status.code().unwrap());
        }
        text
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_feels_at_home() {
    let there = Command::new("kubectl").args(["version", "--client"]).stdout(Stdio::null()).status().await;
    if !there.is_ok_and(|status| status.success()) {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: needs kubectl\n");
        return;
    }
    let yard = yard().await;
    // kubectl cannot dial a unix socket: a relay on the loopback does.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let kubectl = Kubectl {
        server: format!("http://{}", listener.local_addr().unwrap()),
        home: tempfile::tempdir().unwrap(),
    };
    let socket = yard.socket.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut server = UnixStream::connect(socket).await.unwrap();
                _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });

    let resources = kubectl.run("api-resources", "").await;
    assert!(resources.contains("petsets") && resources.contains("apps/v1alpha1"), "{resources}");
    assert_eq!(kubectl.run("apply --validate=false -f -", POD).await, "pod/web created\n");
    assert_eq!(kubectl.run("apply --validate=false -f -", POD).await, "pod/web unchanged\n");
    let table = kubectl.run("get pods -o wide", "").await;
    assert!(table.starts_with("NAME   READY   STATUS ") && table.contains("NOMINATED NODE"), "{table}");
    assert_eq!(kubectl.run("get all -o name", "").await, "pod/web\n");
    assert_eq!(kubectl.run("label pod web a=b", "").await, "pod/web labeled\n");
    assert!(kubectl.run("describe pod web", "").await.contains("a=b"));
    assert_eq!(kubectl.run("logs web --tail=1", "").await, "web main tail=Some(1)\n");
    assert_eq!(kubectl.run("exec -i web -- cat", "hello").await, "hello");
    let three = kubectl.run("exec web -- both", "").await;
    assert!(three.starts_with("outerr") && three.ends_with("exit 3\n"), "{three}");
    assert!(
        kubectl
            .run("get pod nope", "")
            .await
            .contains("Error from server (NotFound): pods \"nope\" not found")
    );
    assert_eq!(
        kubectl.run("wait --for=jsonpath={.status.phase}=Pending pod/web", "").await,
        "pod/web condition met\n"
    );
    let deleted = kubectl.run("delete pod web", "").await;
    assert!(deleted.starts_with("pod \"web\" deleted"), "{deleted}");
}
