//! The demo's own yard: its daemon, its client, and the namespace that plays the host.

use super::Failure;
use crate::toolbox;
use api::{Key, Object, Resource};
use client::{Client, ExecOptions, ListOptions, Output, Request, WatchOptions};
use node::Yard;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing in the demo takes longer than this unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// A yard in a temporary directory, run by a daemon of its own.
pub(super) struct DemoYard {
    pub(super) yard: Yard,
    pub(super) client: Client,
    daemon: Option<Child>,
    flags: Vec<String>,
}

impl DemoYard {
    /// Names the yard by our process id, so that two demos run side by side.
    pub(super) fn new() -> Result<DemoYard, Failure> {
        let name = format!("demo{}", std::process::id());
        let dir = std::env::temp_dir().join(format!("podyard-{name}"));
        let yard = Yard::beneath(&dir, &name)?;
        let client = Client::new(&yard.socket);
        Ok(DemoYard { yard, client, daemon: None, flags: Vec::new() })
    }

    /// The directory that holds everything of the yard.
    pub(super) fn dir(&self) -> &Path {
        self.yard.data_dir.parent().unwrap_or(&self.yard.data_dir)
    }

    /// The daemon's command line, without the program.
    pub(super) fn arguments(&self, verb: &str) -> Vec<String> {
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut all = vec![verb.to_owned(), "--isolated".into(), "--name".into(), self.yard.name.clone()];
        for (flag, value) in [
            ("--data-dir", &self.yard.data_dir),
            ("--run-dir", &self.yard.run_dir),
            ("--log-dir", &self.yard.log_dir),
            ("--socket", &self.yard.socket),
        ] {
            all.extend([flag.into(), path(value)]);
        }
        all
    }

    /// Starts the daemon and waits until it answers; its process id.
    pub(super) async fn start(&mut self) -> Result<u32, Failure> {
        std::fs::create_dir_all(self.dir()).map_err(|e| format!("create {}: {e}", self.dir().display()))?;
        let log_path = self.dir().join("daemon.log");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(|e| format!("open {}: {e}", log_path.display()))?;
        let errors = log.try_clone().map_err(|e| format!("duplicate the log's descriptor: {e}"))?;
        let mut child = Command::new("/proc/self/exe")
            .args(self.arguments("up"))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|e| format!("start the daemon: {e}"))?;
        let pid = child.id();
        let deadline = Instant::now() + PATIENCE;
        while self.client.request(Request::get("/readyz")).await.is_err() {
            if let Ok(Some(status)) = child.try_wait() {
                let said = std::fs::read_to_string(&log_path).unwrap_or_default();
                return Err(format!("the daemon ended with {status}:\n{said}").into());
            }
            if Instant::now() > deadline {
                return Err(format!("the daemon does not answer; see {}", log_path.display()).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.daemon = Some(child);
        Ok(pid)
    }

    /// Flags of `podyard up` for daemons started from now on.
    pub(super) fn daemon_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|&flag| flag.to_owned()).collect();
    }

    /// Runs a verb of our own command line against the yard, as a user would.
    pub(super) async fn podyard(&self, arguments: &[&str]) -> Result<String, Failure> {
        let mut command = Command::new("/proc/self/exe");
        command.args(arguments).env("PODYARD_SOCKET", &self.yard.socket).stdin(Stdio::null());
        let said = format!("podyard {}", arguments.join(" "));
        let ran = tokio::task::spawn_blocking(move || command.output()).await;
        let ran = ran.map_err(|e| format!("{said}: {e}"))?.map_err(|e| format!("{said}: {e}"))?;
        if !ran.status.success() {
            return Err(format!("{said}: {}", String::from_utf8_lossy(&ran.stderr)).into());
        }
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    /// SIGKILLs the daemon and reaps it.
    pub(super) fn kill_daemon(&mut self) -> Result<(), Failure> {
        if let Some(mut child) = self.daemon.take() {
            child.kill().map_err(|e| format!("kill the daemon: {e}"))?;
            child.wait().map_err(|e| format!("reap the daemon: {e}"))?;
        }
        Ok(())
    }

    /// Lets the daemon run on after the demo.
    pub(super) fn keep_daemon(&mut self) {
        self.daemon = None;
    }

    /// Creates the objects of a manifest.
    pub(super) async fn apply(&self, manifest: &str) -> Result<(), Failure> {
        for manifest in crate::cli::manifest::parse("the demo's manifest", manifest.as_bytes())? {
            let object = &manifest.object;
            self.client.create(manifest.resource, "default", object, &Default::default()).await?;
        }
        Ok(())
    }

    /// One object of the namespace `default`.
    pub(super) async fn get(&self, kind: &str, name: &str) -> Result<Object, Failure> {
        Ok(self.client.get(&key(kind, name)?).await?)
    }

    /// One object that belongs to no namespace.
    pub(super) async fn get_cluster(&self, kind: &str, name: &str) -> Result<Object, Failure> {
        Ok(self.client.get(&Key { namespace: String::new(), ..key(kind, name)? }).await?)
    }

    /// All objects of a kind in the namespace `default`, by label.
    pub(super) async fn list(&self, kind: &str, labels: &str) -> Result<Vec<Object>, Failure> {
        let options =
            ListOptions { labels: (!labels.is_empty()).then(|| labels.to_owned()), ..ListOptions::default() };
        Ok(self.client.list(resource(kind)?, Some("default"), &options).await?.items)
    }

    /// All objects of a kind that belongs to no namespace.
    pub(super) async fn list_cluster(&self, kind: &str) -> Result<Vec<Object>, Failure> {
        Ok(self.client.list(resource(kind)?, None, &ListOptions::default()).await?.items)
    }

    /// Waits, by watch, until the pods of a selector fulfil `holds`; they are given at each change.
    pub(super) async fn pods_until(
        &self,
        labels: &str,
        mut holds: impl FnMut(&[Object]) -> bool,
    ) -> Result<Vec<Object>, Failure> {
        let pods = resource("pods")?;
        let waited = async {
            loop {
                let options = ListOptions {
                    labels: (!labels.is_empty()).then(|| labels.to_owned()),
                    ..ListOptions::default()
                };
                let list = self.client.list(pods, Some("default"), &options).await?;
                if holds(&list.items) {
                    return Ok(list.items);
                }
                let options = WatchOptions {
                    labels: options.labels,
                    resource_version: Some(list.resource_version),
                    ..WatchOptions::default()
                };
                // Any event is a reason to look again; so is the end of the watch.
                if let Some(event) = self.client.watch(pods, Some("default"), &options).await?.next().await {
                    event?;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waited)
            .await
            .map_err(|_| format!("pods {labels}: not as awaited within {PATIENCE:?}"))?
    }

    /// Runs a program in a container; what it printed.
    pub(super) async fn exec(&self, pod: &str, container: &str, command: &[&str]) -> Result<String, Failure> {
        let options = ExecOptions {
            container: Some(container.to_owned()),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            ..ExecOptions::default()
        };
        let (_input, mut output) = self.client.exec(&key("pods", pod)?, &options).await?;
        let mut printed = Vec::new();
        while let Some(part) = output.next().await {
            match part? {
                Output::Stdout(bytes) | Output::Stderr(bytes) => printed.extend_from_slice(&bytes),
                Output::Exit(0) => break,
                Output::Exit(code) => {
                    let said = String::from_utf8_lossy(&printed);
                    return Err(format!("{} in {pod}: exit code {code}: {said}", command.join(" ")).into());
                }
            }
        }
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }

    /// What a path of the yard's own API answers.
    pub(super) async fn ask(&self, path: &str) -> Result<Value, Failure> {
        let (value, _) = self.client.request_json(Request::get(format!("/podyard/v1/{path}"))).await?;
        Ok(value)
    }

    /// One HTTP GET from the namespace that plays the host.
    pub(super) async fn fetch(&self, url: String) -> Result<String, Failure> {
        let host = self.yard.host_netns();
        let answer = tokio::task::spawn_blocking(move || fetch_in(&host, &url)).await;
        answer.map_err(|e| format!("fetch: {e}"))?
    }
}

/// GETs `url` from a network namespace, on a thread of its own: a pooled thread never enters one.
pub(super) fn fetch_in(netns: &Path, url: &str) -> Result<String, Failure> {
    let namespace = netns::Namespace::open(netns)?;
    let answer = namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| format!("start an event loop: {e}"))?;
        let asked = async {
            let timeout = Duration::from_secs(3);
            tokio::time::timeout(timeout, toolbox::get(url))
                .await
                .map_err(|_| format!("GET {url}: no answer"))?
        };
        runtime.block_on(asked)
    })?;
    let (status, body) = answer?;
    if !status.is_success() {
        return Err(format!("GET {url}: {status}").into());
    }
    Ok(String::from_utf8_lossy(&body).trim().to_owned())
}

pub(super) fn resource(kind: &str) -> Result<&'static Resource, Failure> {
    Ok(api::resource_by_any_name(kind).ok_or_else(|| format!("unknown kind {kind}"))?)
}

pub(super) fn key(kind: &str, name: &str) -> Result<Key, Failure> {
    Ok(Key { resource: resource(kind)?, namespace: "default".into(), name: name.into() })
}

/// Whether a pod's Ready condition is True.
pub(super) fn is_ready(pod: &Object) -> bool {
    let conditions = pod.0["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}
