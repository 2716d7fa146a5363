//! Drives the controllers: carries news from the store to them, and their calls to the registry.
//!
//! ```text
//!  store ── list, watch ──► Input ──► Controllers::step ──► Effect::Call ──► registry
//!                             ▲                                                 │
//!                             └──────────────── Input::Done ◄───────────────────┘
//! ```
//! The controllers decide; nothing here does. A watch that fell behind begins again with a list.

use super::nodes::Nodes;
use controller::{Call, Controllers, Effect, Input, perform};
use futures::stream::{FuturesUnordered, StreamExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use registry::Registry;
use std::sync::Arc;
use store::{End, EventKind, Scope, Store, Watch};

/// Calls under way at once: as many as one group commit takes well, and no more than memory allows.
const CALLS_MAX: usize = 256;

/// Runs the controllers until the store closes.
///
/// # Cancellation
/// Dropping the future loses nothing: everything is rebuilt from a list.
pub(super) async fn drive<S: Store>(registry: Arc<Registry<S>>, nodes: Arc<Nodes<S>>) {
    let mut controllers = Controllers::new();
    let mut rng = StdRng::from_os_rng();
    let mut wake = None;
    let mut waiting = std::collections::VecDeque::new();
    let mut calls = FuturesUnordered::new();
    'list: loop {
        let mut watch = begin(registry.store());
        let mut inputs = vec![Input::Listing];
        for resource in api::RESOURCES.iter().filter(|resource| std::ptr::eq(resource.stored(), *resource)) {
            let (_, records) = registry.store().list(resource, None);
            inputs.extend(records.into_iter().map(|record| Input::Changed(Arc::new(record.object()))));
        }
        inputs.push(Input::Synced);
        loop {
            for input in inputs.drain(..) {
                for effect in controllers.step(input, registry.now(), &mut rng) {
                    match effect {
                        Effect::Call { id, call } => waiting.push_back((id, call)),
                        Effect::WakeAt(at) => wake = Some(at),
                    }
                }
            }
            while calls.len() < CALLS_MAX
                && let Some((id, call)) = waiting.pop_front()
            {
                let (registry, nodes) = (Arc::clone(&registry), Arc::clone(&nodes));
                calls.push(async move {
                    let result = match call {
                        // Only here are a node's processes within reach.
                        Call::Fence { node, uid } => nodes.fence(&node, &uid).await.map(|()| None),
                        call => perform(&registry, call).await,
                    };
                    Input::Done { id, result }
                });
            }
            let due = async {
                match wake {
                    // A clock that jumped back makes this sleep longer; the next change looks again anyway.
                    Some(at) => {
                        tokio::time::sleep(at.duration_since(registry.now()).try_into().unwrap_or_default())
                            .await
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(done) = calls.next(), if !calls.is_empty() => inputs.push(done),
                event = watch.next() => match event {
                    Some(event) => inputs.push(input(&event)),
                    None if watch.end() == Some(End::Closed) => return,
                    None => continue 'list,
                },
                () = due => { wake = None; inputs.push(Input::Tick); }
            }
            // What else is there already, so that one step's worth of work sees one state.
            while let Some(event) = watch.try_next() {
                inputs.push(input(&event));
            }
        }
    }
}

/// A watch of everything, from before the list that follows.
fn begin<S: Store>(store: &S) -> Watch {
    loop {
        // The history reaches back to the present, but may move on between the two calls.
        if let Ok(watch) = store.watch(Scope::default(), store.revision()) {
            return watch;
        }
    }
}

fn input(event: &store::Event) -> Input {
    let object = Arc::new(event.record.object());
    match event.kind {
        EventKind::Created | EventKind::Updated => Input::Changed(object),
        EventKind::Deleted => Input::Deleted(object),
    }
}
