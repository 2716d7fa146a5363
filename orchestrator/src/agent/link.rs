//! The link to the API: a heartbeat every second, and what its answers say about whether the API can be reached.
//!
//! One state for the whole process: when the link is down, feeds drop their connections, which may hang for minutes
//! behind a cut, and requests are not tried; when it is up again, they go on at once.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use client::{Client, Error, Method, Request, Session};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// Between two heartbeats.
const EVERY: Duration = Duration::from_secs(1);

/// Time for the answer to one.
const ANSWER_DEADLINE: Duration = Duration::from_millis(1_500);

/// The first and the longest pause before the API is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), EVERY);

/// Pauses that grow and differ, so that many agents do not come at once.
pub(super) struct Backoff {
    next: Duration,
    rng: SmallRng,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next: PAUSES.0, rng: SmallRng::from_os_rng() }
    }
}

impl Backoff {
    /// The next pause: between a half and the whole of what is due; twice as much is due next time, up to a second.
    pub(super) fn next(&mut self) -> Duration {
        let due = self.next;
        self.next = (due * 2).min(PAUSES.1);
        due.mul_f64(self.rng.random_range(0.5..=1.0))
    }
}

/// Sends heartbeats, and tells in `up` whether they are answered. Does not end.
pub(super) async fn keep(client: Client, node: String, up: watch::Sender<bool>) -> Infallible {
    let mut backoff = Backoff::default();
    let mut down_since = Instant::now();
    let mut is_told = false;
    loop {
        let error = match tokio::time::timeout(ANSWER_DEADLINE, client.session()).await {
            Ok(Ok(session)) => {
                beat(session, &node, || {
                    if up.send_if_modified(|up| !std::mem::replace(up, true)) {
                        info!(after_ms = down_since.elapsed().as_millis() as u64, "the API is reached");
                        backoff = Backoff::default();
                    }
                })
                .await
            }
            Ok(Err(error)) => node::error::chain(&error),
            Err(_) => "no connection in time".to_owned(),
        };
        if up.send_if_modified(|up| std::mem::replace(up, false)) {
            down_since = Instant::now();
            is_told = false;
        }
        // Once: it may last.
        match std::mem::replace(&mut is_told, true) {
            false => warn!(error, "the API cannot be reached; pods run on"),
            true => debug!(error, "the API cannot be reached"),
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Sends heartbeats over one connection until one is not answered; why.
async fn beat(mut session: Session, node: &str, mut answered: impl FnMut()) -> String {
    let path = format!("/podyard/v1/nodes/{}/heartbeat", client::encode(node));
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let request = Request::new(Method::POST, path.clone());
        match tokio::time::timeout(ANSWER_DEADLINE, session.request(request)).await {
            Ok(Ok(_)) => answered(),
            Ok(Err(error @ Error::Refused(_))) => return format!("heartbeat refused: {error}"),
            Ok(Err(error)) => return node::error::chain(&error),
            Err(_) => return "a heartbeat is not answered".to_owned(),
        }
    }
}

/// Waits until the API can be reached.
///
/// # Cancellation
/// Loses nothing.
pub(super) async fn wait_up(link: &mut watch::Receiver<bool>) {
    wait_for(link, true).await;
}

/// Waits until the API cannot be reached.
///
/// # Cancellation
/// Loses nothing.
pub(super) async fn wait_down(link: &mut watch::Receiver<bool>) {
    wait_for(link, false).await;
}

async fn wait_for(link: &mut watch::Receiver<bool>, wanted: bool) {
    if link.wait_for(|up| *up == wanted).await.is_err() {
        // Who kept the link is gone, and with it soon the process.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = std::iter::repeat_with(|| backoff.next()).take(20).collect();
        assert!(pauses[0] <= PAUSES.0 && pauses[0] >= PAUSES.0 / 2);
        assert!(pauses.iter().all(|pause| *pause <= EVERY) && pauses[19] >= EVERY / 2);
    }
}
