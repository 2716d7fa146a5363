//! Probes: is a running container ready, alive, started?
//!
//! One task per probe of a running container; it holds what the last attempts said and rings the pod's bell when
//! that changes anything. Connections are made from the node's network namespace, as a kubelet would make them.
//!
//! Source: Kubernetes, "Configure Liveness, Readiness and Startup Probes".

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::error::{Error, Kind, Result};
use crate::handler::Act;
use crate::hook;
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
            let run = Run { container: name.clone(), attempt: last.number };
            let hooked = hook::POST_START.of(entry).is_some() && !self.pod.post_started(&run);
            if !hooked && !["startupProbe", "readinessProbe", "livenessProbe"].into_iter().any(has) {
                continue;
            }
            let ready = !hooked && !has("readinessProbe");
            let health = Health { ready, started: !hooked && !has("startupProbe") };
            let verdicts =
                Arc::new(Verdicts { health: Mutex::new(health), bell: Arc::clone(&self.pod.bell) });
            let since =
                Duration::try_from(jiff::Timestamp::now().duration_since(*started_at)).unwrap_or_default();
            let task = tokio::spawn(watch_over(
                Arc::clone(&self.pod),
                Arc::clone(object),
                run,
                Arc::clone(&verdicts),
                since,
                hooked,
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

/// The hook after the start of one run, if it is still to be called; then the probes: startup first, then the
/// others side by side.
async fn watch_over(
    pod: Arc<Pod>,
    object: Arc<Object>,
    run: Run,
    verdicts: Arc<Verdicts>,
    since: Duration,
    hooked: bool,
) {
    if hooked {
        if !hook::post_start(&pod, &object, &run).await {
            return;
        }
        let entry = container(&object, &run.container).ok();
        let has = |probe: &str| entry.is_some_and(|entry| entry.get(probe).is_some_and(Value::is_object));
        verdicts.set(|health| {
            *health = Health { ready: !has("readinessProbe"), started: !has("startupProbe") };
        });
    }
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
        let act = Act::read(self.object, &self.run.container, self.wish)?;
        tokio::time::timeout(self.schedule.timeout, act.perform(self.pod, self.run))
            .await
            .map_err(|_| Error::new(Kind::Busy, format!("no answer within {:?}", self.schedule.timeout)))?
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_kubernetes_own() {
        let schedule = schedule(&json!({}));
        assert_eq!(schedule.period, Duration::from_secs(10));
        assert_eq!(schedule.timeout, Duration::from_secs(1));
        assert_eq!((schedule.success_threshold, schedule.failure_threshold), (1, 3));
    }
}
