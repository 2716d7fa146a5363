//! The API over HTTP, as an agent's objects.

use std::future::Future;
use std::time::Duration;

use api::{Error, Key, Kind, Object, Part};
use client::{Client, DeleteOptions, WriteOptions};
use futures::future::{BoxFuture, FutureExt};
use tokio::sync::watch;

use super::link;
use crate::node_parts::upstream::{FIELD_MANAGER, Objects};

/// How long a request waits for a link that is down. Bounds how often a worker tries to tell the same thing.
const LINK_DEADLINE: Duration = Duration::from_secs(2);

/// Time for one request: more than a commit takes, less than a cut connection would hang.
const DEADLINE: Duration = Duration::from_secs(5);

/// Objects in the API.
pub(super) struct Remote {
    client: Client,
    link: watch::Receiver<bool>,
}

fn write() -> WriteOptions {
    WriteOptions { field_manager: Some(FIELD_MANAGER.into()), ..WriteOptions::default() }
}

impl Remote {
    /// Objects behind `client`, which is asked only while the link is up.
    pub(super) fn new(client: Client, link: watch::Receiver<bool>) -> Remote {
        Remote { client, link }
    }

    /// Carries out one request. Its answer may be lost although it was done: who asks must be able to ask again.
    async fn ask<T>(&self, request: impl Future<Output = Result<T, client::Error>>) -> Result<T, Error> {
        let unavailable = |why: &str| Error::new(Kind::Unavailable, format!("the API {why}"));
        let mut link = self.link.clone();
        tokio::time::timeout(LINK_DEADLINE, link::wait_up(&mut link))
            .await
            .map_err(|_| unavailable("cannot be reached"))?;
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(DEADLINE, request) => outcome.map_err(|_| unavailable("does not answer"))?,
            () = link::wait_down(&mut link) => return Err(unavailable("was lost")),
        };
        outcome.map_err(|error| match error {
            client::Error::Refused(error) => error,
            other => unavailable(&format!("cannot be reached: {}", node::error::chain(&other))),
        })
    }
}

impl Objects for Remote {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Object, Error>> {
        self.ask(self.client.get(key)).boxed()
    }

    fn create(&self, object: Object) -> BoxFuture<'_, Result<Object, Error>> {
        async move {
            let key = object.key();
            let options = write();
            let request = self.client.create(key.resource, &key.namespace, &object.0, &options);
            self.ask(request).await.map(|written| written.object)
        }
        .boxed()
    }

    fn update(&self, object: Object, part: Part) -> BoxFuture<'_, Result<Object, Error>> {
        async move {
            let key = object.key();
            let subresource = match part {
                Part::Main => None,
                Part::Status => Some("status"),
                Part::Scale => Some("scale"),
            };
            let options = write();
            let request = self.client.update(&key, subresource, &object.0, &options);
            self.ask(request).await.map(|written| written.object)
        }
        .boxed()
    }

    fn finish<'a>(&'a self, key: &'a Key, uid: String) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let options =
                DeleteOptions { grace_period_secs: Some(0), uid: Some(uid), ..DeleteOptions::default() };
            self.ask(self.client.delete(key, &options)).await.map(drop)
        }
        .boxed()
    }
}
