//! A feed over HTTP: one list, then one watch per kind.
//!
//! ```text
//!   list all kinds ──► All ──► watch each kind from its list's version ──► Changed, Gone …
//!        ▲                         │ broken, or the link was down: again, from the last version seen
//!        └──── 410: history has gone on without us ◄──┘
//! ```

use std::time::Duration;

use api::{Object, Resource};
use client::{Client, EventKind, ListOptions, WatchOptions};
use futures::future::{join_all, select_all};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::link::{self, Backoff};
use crate::node_parts::feed::{Feed, Told, resource};

/// Words that wait for the consumer; the connections wait beyond that.
const WAITING_MAX: usize = 256;

/// Time for a list. Watches have none: they are silent while nothing happens.
const LIST_DEADLINE: Duration = Duration::from_secs(10);

/// One kind of a feed.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    resource: &'static Resource,
    fields: Option<String>,
}

impl Kind {
    /// All objects of a kind.
    pub(super) fn all(plural: &str) -> Kind {
        Kind { resource: resource(plural), fields: None }
    }

    /// Those that a field selector chooses.
    pub(super) fn selected(plural: &str, fields: &str) -> Kind {
        Kind { resource: resource(plural), fields: Some(fields.to_owned()) }
    }
}

/// A feed from the API. Dropping it ends its connections.
pub(super) struct RemoteFeed {
    words: mpsc::Receiver<Told>,
    task: JoinHandle<()>,
}

impl Drop for RemoteFeed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RemoteFeed {
    /// Begins as soon as the link is up.
    pub(super) fn start(client: Client, link: watch::Receiver<bool>, kinds: Vec<Kind>) -> RemoteFeed {
        let (told, words) = mpsc::channel(WAITING_MAX);
        RemoteFeed { words, task: tokio::spawn(run(client, link, kinds, told)) }
    }
}

impl Feed for RemoteFeed {
    async fn next(&mut self) -> Option<Told> {
        self.words.recv().await
    }

    fn try_next(&mut self) -> Option<Told> {
        self.words.try_recv().ok()
    }
}

/// Why a watch is not followed any further.
enum Stop {
    /// Its version is not in the history any more.
    Expired,
    /// Nobody listens.
    Unwanted,
}

async fn run(client: Client, mut link: watch::Receiver<bool>, kinds: Vec<Kind>, told: mpsc::Sender<Told>) {
    let mut backoff = Backoff::default();
    loop {
        link::wait_up(&mut link).await;
        let lists = kinds.iter().map(|kind| {
            let options = ListOptions { fields: kind.fields.clone(), ..ListOptions::default() };
            let client = &client;
            async move { client.list(kind.resource, None, &options).await }
        });
        let lists = match tokio::time::timeout(LIST_DEADLINE, join_all(lists)).await {
            Ok(lists) => {
                lists.into_iter().collect::<Result<Vec<_>, _>>().map_err(|error| node::error::chain(&error))
            }
            Err(_) => Err("no answer in time".to_owned()),
        };
        let lists = match lists {
            Ok(lists) => lists,
            Err(error) => {
                warn!(kinds = ?plurals(&kinds), error, "list");
                tokio::time::sleep(backoff.next()).await;
                continue;
            }
        };
        backoff = Backoff::default();
        let (versions, objects): (Vec<String>, Vec<Vec<Object>>) =
            lists.into_iter().map(|list| (list.resource_version, list.items)).unzip();
        if told.send(Told::All(objects.into_iter().flatten().collect())).await.is_err() {
            return;
        }
        let watches = kinds
            .iter()
            .zip(versions)
            .map(|(kind, version)| Box::pin(follow(&client, link.clone(), kind, version, &told)));
        match select_all(watches).await.0 {
            Stop::Expired => debug!(kinds = ?plurals(&kinds), "the history has gone on; list again"),
            Stop::Unwanted => return,
        }
    }
}

fn plurals(kinds: &[Kind]) -> Vec<&'static str> {
    kinds.iter().map(|kind| kind.resource.plural).collect()
}

/// Tells what happens to one kind after `version`, over as many watches as it takes.
async fn follow(
    client: &Client,
    mut link: watch::Receiver<bool>,
    kind: &Kind,
    mut version: String,
    told: &mpsc::Sender<Told>,
) -> Stop {
    let mut backoff = Backoff::default();
    loop {
        link::wait_up(&mut link).await;
        let options = WatchOptions {
            fields: kind.fields.clone(),
            resource_version: Some(version.clone()),
            bookmarks: true,
            ..WatchOptions::default()
        };
        let opened = tokio::select! {
            opened = client.watch(kind.resource, None, &options) => opened,
            () = link::wait_down(&mut link) => continue,
        };
        let error = match opened {
            Err(error) => Some(error),
            Ok(mut events) => loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    // Behind a cut the connection may hang for minutes.
                    () = link::wait_down(&mut link) => break None,
                };
                let event = match event {
                    Some(Ok(event)) => event,
                    Some(Err(error)) => break Some(error),
                    // The server ends each watch after a while.
                    None => break None,
                };
                backoff = Backoff::default();
                if let Some(reached) = event.object.get_str("metadata.resourceVersion") {
                    version = reached.to_owned();
                }
                let word = match event.kind {
                    EventKind::Added | EventKind::Modified => Told::Changed(event.object),
                    EventKind::Deleted => Told::Gone(event.object),
                    EventKind::Bookmark => continue,
                };
                if told.send(word).await.is_err() {
                    return Stop::Unwanted;
                }
            },
        };
        match error {
            Some(error) if error.kind() == Some(api::Kind::Gone) => return Stop::Expired,
            Some(error) => debug!(kind = kind.resource.plural, error = node::error::chain(&error), "watch"),
            None => {}
        }
        tokio::time::sleep(backoff.next()).await;
    }
}
