//! Tells the agent of the pods bound to its node, and of volumes that are deleted.

use node::agent::Agent;
use std::sync::Arc;
use store::{End, EventKind, Scope, Store};
use tracing::error;

/// Feeds the agent until the store closes. A watch that fell behind begins again with a list.
pub(super) async fn feed<S: Store>(store: Arc<S>, agent: Arc<Agent>) {
    let Some(pods) = api::resource_by_any_name("pods") else { return };
    loop {
        let Ok(mut watch) = store.watch(Scope::default(), store.revision()) else { continue };
        let (_, records) = store.list(pods, None);
        let listed: Vec<_> = records.iter().map(|record| Arc::new(record.object())).collect();
        if let Err(error) = agent.sync(&listed) {
            error!(error = %error.chain(), "read the pods that are here; nothing is started or ended");
            return;
        }
        while let Some(event) = watch.next().await {
            match (event.record.key.resource.plural, event.kind) {
                ("pods", EventKind::Created | EventKind::Updated) => {
                    agent.changed(Arc::new(event.record.object()))
                }
                ("pods", EventKind::Deleted) => agent.deleted(&event.record.object()),
                ("persistentvolumes", EventKind::Deleted) => {
                    let (volume, agent) = (event.record.object(), Arc::clone(&agent));
                    // A large volume takes its time; the pods do not wait for it.
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = agent.volume_deleted(&volume) {
                            error!(volume = volume.name(), error = %error.chain(), "remove the volume's data");
                        }
                    });
                }
                _ => {}
            }
        }
        if watch.end() == Some(End::Closed) {
            return;
        }
    }
}
