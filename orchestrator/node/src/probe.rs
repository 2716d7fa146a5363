//! Probes: is a running container ready, alive, started?
//!
//! One task per probe of a running container; it holds what the last attempts said and rings the pod's bell when
//! that changes anything. Connections are made from the node's network namespace, as a kubelet would make them.
//!
//! Source: Kubernetes, "Configure Liveness, Readiness and Startup Probes".

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::error::{Error, Kind, Result};
use crate::exec::{Streams, exec};
use crate::host::Event;
use crate::observed::{Observed, State};
use crate::plan::Run;
use crate::pod::{Pod, container};
use crate::status::Health;

/// What a probe is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum About {
    Startup,
    Readiness,
    Liveness,
}

/// When a probe is made, and how often it must agree.
#[derive(Clone, PartialEq, Debug)]
struct Schedule {
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    success_threshold: u32,
    failure_threshold: u32,
}

/// How a probe looks.
#[derive(Clone, PartialEq, Debug)]
enum Look {
    Exec(Vec<String>),
    Http { address: SocketAddr, path: String, headers: Vec<(String, String)> },
    Tcp(SocketAddr),
}

/// What the probes of one run say.
#[derive(Debug)]
struct Verdicts {
    health: Mutex<Health>,
    bell: Arc<tokio::sync::Notify>,
}

/// The probes of one pod.
pub struct Prober {
    pod: Arc<Pod>,
    runs: BTreeMap<(String, u32), (Arc<Verdicts>, JoinHandle<()>)>,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.runs.values().for_each(|(_, task)| task.abort());
    }
}

impl Prober {
    /// Nothing is probed yet.
    pub fn new(pod: Arc<Pod>) -> Prober {
        Prober { pod, runs: BTreeMap::new() }
    }

    /// What is known of containers that run and have probes.
    pub fn health(&self) -> BTreeMap<String, Health> {
        self.runs.iter().map(|((name, _), (verdicts, _))| (name.clone(), verdicts.get())).collect()
    }

    /// Probes what runs, and nothing else.
    pub fn sync(&mut self, object: &Arc<Object>, observed: &Observed) {
        let runs = |run: &(String, u32)| {
            observed
                .attempts
                .get(&run.0)
                .and_then(|attempts| attempts.last())
                .is_some_and(|last| last.number == run.1 && matches!(last.state, State::Running { .. }))
        };
        self.runs.retain(|run, (_, task)| {
            let keep = runs(run);
            if !keep {
                task.abort();
            }
            keep
        });
        for (name, attempts) in &observed.attempts {
            let Some(last) = attempts.last() else { continue };
            let key = (name.clone(), last.number);
            let State::Running { started_at, .. } = &last.state else { continue };
            if self.runs.contains_key(&key) {
                continue;
            }
            let Ok(entry) = container(object, name) else { continue };
            let has = |probe: &str| entry.get(probe).is_some_and(Value::is_object);
            if !["startupProbe", "readinessProbe", "livenessProbe"].into_iter().any(has) {
                continue;
            }
            let health = Health { ready: !has("readinessProbe"), started: !has("startupProbe") };
            let verdicts =
                Arc::new(Verdicts { health: Mutex::new(health), bell: Arc::clone(&self.pod.bell) });
            let since =
                Duration::try_from(jiff::Timestamp::now().duration_since(*started_at)).unwrap_or_default();
            let task = tokio::spawn(watch_over(
                Arc::clone(&self.pod),
                Arc::clone(object),
                Run { container: name.clone(), attempt: last.number },
                Arc::clone(&verdicts),
                since,
            ));
            self.runs.insert(key, (verdicts, task));
        }
    }
}

impl Verdicts {
    fn get(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut Health)) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *health;
        change(&mut health);
        if *health != before {
            self.bell.notify_one();
        }
    }
}

/// The probes of one run: startup first, then the others side by side.
async fn watch_over(pod: Arc<Pod>, object: Arc<Object>, run: Run, verdicts: Arc<Verdicts>, since: Duration) {
    let probe = |field: &str, about: About| {
        let entry = container(&object, &run.container).ok()?;
        let wish = entry.get(field).filter(|wish| wish.is_object())?;
        Some(Probe { pod: &pod, object: &object, run: &run, about, wish, schedule: schedule(wish), since })
    };
    if let Some(startup) = probe("startupProbe", About::Startup) {
        startup.run(&verdicts).await;
    }
    let readiness = async {
        if let Some(probe) = probe("readinessProbe", About::Readiness) {
            probe.run(&verdicts).await;
        }
    };
    let liveness = async {
        if let Some(probe) = probe("livenessProbe", About::Liveness) {
            probe.run(&verdicts).await;
        }
    };
    tokio::join!(readiness, liveness);
}

struct Probe<'a> {
    pod: &'a Arc<Pod>,
    object: &'a Arc<Object>,
    run: &'a Run,
    about: About,
    wish: &'a Value,
    schedule: Schedule,
    since: Duration,
}

impl Probe<'_> {
    /// Looks again and again; a startup probe ends with success or with giving up, a liveness one with giving up.
    async fn run(&self, verdicts: &Verdicts) {
        tokio::time::sleep(self.schedule.initial_delay.saturating_sub(self.since)).await;
        let mut ticks = tokio::time::interval(self.schedule.period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut successes, mut failures) = (0u32, 0u32);
        loop {
            ticks.tick().await;
            match self.look().await {
                Ok(()) => (successes, failures) = (successes.saturating_add(1), 0),
                Err(error) => {
                    (successes, failures) = (0, failures.saturating_add(1));
                    if failures == self.schedule.failure_threshold {
                        self.complain(&error);
                    }
                }
            }
            let good = successes >= self.schedule.success_threshold;
            let bad = failures >= self.schedule.failure_threshold;
            match self.about {
                About::Readiness if good => verdicts.set(|health| health.ready = true),
                About::Readiness if bad => verdicts.set(|health| health.ready = false),
                About::Startup if good => return verdicts.set(|health| health.started = true),
                About::Startup | About::Liveness if bad => {
                    self.pod.mark_unhealthy(&self.run.container, self.run.attempt);
                    return;
                }
                _ => {}
            }
        }
    }

    fn complain(&self, error: &Error) {
        let message = format!("{:?} probe of {} failed: {}", self.about, self.run.container, error.chain());
        let about = Arc::clone(self.object);
        self.pod.host().upstream.event(Event { about, normal: false, reason: "Unhealthy", message });
    }

    async fn look(&self) -> Result<()> {
        let look = look(self.object, &self.run.container, self.wish)?;
        let attempt = async {
            match &look {
                Look::Exec(command) => self.exec(command).await,
                Look::Tcp(address) => self.connect(*address).await.map(drop),
                Look::Http { address, path, headers } => self.http(*address, path, headers).await,
            }
        };
        tokio::time::timeout(self.schedule.timeout, attempt)
            .await
            .map_err(|_| Error::new(Kind::Busy, format!("no answer within {:?}", self.schedule.timeout)))?
    }

    async fn exec(&self, command: &[String]) -> Result<()> {
        let session = exec(self.pod, self.run, command, Streams::default()).await?;
        match session.exit.wait().await? {
            0 => Ok(()),
            code => Err(Error::new(Kind::Conflict, format!("{command:?} exited with {code}"))),
        }
    }

    async fn connect(&self, address: SocketAddr) -> Result<tokio::net::TcpStream> {
        let namespace = self.pod.host().network.namespace();
        namespace.connect(address).await.map_err(|error| Error::io(format!("connect to {address}"), error))
    }

    async fn http(&self, address: SocketAddr, path: &str, headers: &[(String, String)]) -> Result<()> {
        let what = || format!("GET http://{address}{path}");
        let stream = self.connect(address).await?;
        let failed = |error: hyper::Error| Error::with(Kind::Busy, what(), error);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let driver = tokio::spawn(connection);
        let mut request =
            hyper::Request::get(path).header("user-agent", "podyard-probe").header("accept", "*/*");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", address.to_string());
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request =
            request.body(Empty::<Bytes>::new()).map_err(|error| Error::with(Kind::Invalid, what(), error))?;
        let status = sender.send_request(request).await.map_err(failed)?.status().as_u16();
        driver.abort();
        if (200..400).contains(&status) {
            Ok(())
        } else {
            Err(Error::new(Kind::Conflict, format!("{} answers {status}", what())))
        }
    }
}

fn schedule(wish: &Value) -> Schedule {
    let secs = |field: &str, default: u64| {
        Duration::from_secs(wish[field].as_u64().filter(|secs| *secs > 0).unwrap_or(default))
    };
    let count = |field: &str, default: u32| {
        wish[field].as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default)
    };
    Schedule {
        initial_delay: secs("initialDelaySeconds", 0),
        period: secs("periodSeconds", 10),
        timeout: secs("timeoutSeconds", 1),
        success_threshold: count("successThreshold", 1),
        failure_threshold: count("failureThreshold", 3),
    }
}

fn look(pod: &Object, name: &str, wish: &Value) -> Result<Look> {
    if let Some(command) = wish["exec"]["command"].as_array() {
        return Ok(Look::Exec(command.iter().filter_map(|part| part.as_str().map(str::to_owned)).collect()));
    }
    let entry = container(pod, name)?;
    let invalid = |text: &str| Error::new(Kind::Invalid, text.to_owned());
    let address = |action: &Value| -> Result<SocketAddr> {
        let host =
            action["host"].as_str().filter(|host| !host.is_empty()).or_else(|| pod.get_str("status.podIP"));
        let host: Ipv4Addr = host
            .and_then(|host| host.parse().ok())
            .ok_or_else(|| invalid("the probe's host is no IPv4 address, or the pod has none"))?;
        let port = port(entry, &action["port"])
            .ok_or_else(|| invalid("the probe's port is no port of the container"))?;
        Ok(SocketAddr::from((host, port)))
    };
    if let Some(http) = wish.get("httpGet").filter(|http| http.is_object()) {
        if http["scheme"].as_str().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
            return Err(invalid("probes by HTTPS are not supported yet"));
        }
        let path = http["path"].as_str().filter(|path| !path.is_empty()).unwrap_or("/");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let headers = http["httpHeaders"].as_array().into_iter().flatten();
        let headers = headers.filter_map(|header| {
            Some((header["name"].as_str()?.to_owned(), header["value"].as_str()?.to_owned()))
        });
        return Ok(Look::Http { address: address(http)?, path, headers: headers.collect() });
    }
    if let Some(tcp) = wish.get("tcpSocket").filter(|tcp| tcp.is_object()) {
        return Ok(Look::Tcp(address(tcp)?));
    }
    Err(invalid("the probe has neither exec, httpGet nor tcpSocket"))
}

/// A port by number or by the container's name for it.
fn port(container: &Value, wish: &Value) -> Option<u16> {
    if let Some(number) = wish.as_u64() {
        return u16::try_from(number).ok();
    }
    let name = wish.as_str()?;
    let ports = container["ports"].as_array().into_iter().flatten();
    let named = ports.filter(|port| port["name"] == name).find_map(|port| port["containerPort"].as_u64());
    named.and_then(|number| u16::try_from(number).ok()).or_else(|| name.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Object {
        Object(json!({
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"podIP": "10.244.0.5"}
        }))
    }

    #[test]
    fn what_a_probe_looks_at() {
        let check = |wish: Value, expect: Look| assert_eq!(look(&pod(), "c", &wish).unwrap(), expect);
        let address: SocketAddr = "10.244.0.5:8080".parse().unwrap();
        check(json!({"exec": {"command": ["a", "b"]}}), Look::Exec(vec!["a".into(), "b".into()]));
        check(json!({"tcpSocket": {"port": 8080}}), Look::Tcp(address));
        check(json!({"tcpSocket": {"port": "web"}}), Look::Tcp(address));
        check(
            json!({"httpGet": {"port": "web", "path": "ok", "httpHeaders": [{"name": "A", "value": "b"}]}}),
            Look::Http { address, path: "/ok".into(), headers: vec![("A".into(), "b".into())] },
        );
        for bad in [
            json!({}),
            json!({"tcpSocket": {"port": "nope"}}),
            json!({"httpGet": {"port": 1, "scheme": "HTTPS"}}),
        ] {
            assert!(look(&pod(), "c", &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_are_kubernetes_own() {
        let schedule = schedule(&json!({}));
        assert_eq!(schedule.period, Duration::from_secs(10));
        assert_eq!(schedule.timeout, Duration::from_secs(1));
        assert_eq!((schedule.success_threshold, schedule.failure_threshold), (1, 3));
    }
}
