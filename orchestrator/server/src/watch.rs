//! Watches: one JSON object per line, until the client leaves, the time is over, or history has gone on without us.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::table::{IncludeObject, table};
use api::{Error, Object, Resource, convert};
use futures::stream;
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use registry::{Registry, WatchEvent, WatchOptions};
use serde_json::{Value, json};
use store::Store;
use tokio::time::{Instant, sleep_until};

use crate::handler::Form;
use crate::objects::selectors;
use crate::query::Query;
use crate::respond::{Body, stream as streaming};

/// How long a watch lasts if the client does not say; clients watch again from where they were.
const TIMEOUT: Duration = Duration::from_secs(45 * 60);

/// How often a client that wants bookmarks is told the revision, if that has moved.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// Marks the bookmark after the initial events. Source: KEP-3157.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// A running watch.
struct Running<S> {
    registry: Arc<Registry<S>>,
    watch: registry::Watch,
    resource: &'static Resource,
    form: Form,
    bookmarks: bool,
    /// The revision the last bookmark told.
    told: u64,
    next_bookmark: Instant,
    deadline: Instant,
    over: bool,
}

/// Starts a watch.
///
/// # Errors
/// `Gone` if the revision is no longer in the history: list again. `Invalid` for parameters that do not fit together.
pub async fn watch<S: Store>(
    registry: &Arc<Registry<S>>,
    resource: &'static Resource,
    namespace: Option<String>,
    query: &Query,
    form: Form,
) -> Result<Response<Body>, Error> {
    let (labels, fields) = selectors(resource, query)?;
    let bookmarks = query.flag("allowWatchBookmarks");
    let initial = query.flag("sendInitialEvents");
    if initial && query.get("resourceVersionMatch") != Some("NotOlderThan") {
        return Err(Error::bad_request("sendInitialEvents: needs resourceVersionMatch=NotOlderThan"));
    }
    if initial && !bookmarks {
        return Err(Error::bad_request("sendInitialEvents: needs allowWatchBookmarks=true"));
    }
    let since = match query.get("resourceVersion") {
        None => None,
        Some(text) => Some(text.parse::<u64>().map_err(|_| {
            Error::bad_request(format!("resourceVersion: Invalid value: {text:?}: not a resource version"))
        })?),
    };
    let timeout = query.number("timeoutSeconds").map_err(Error::bad_request)?;
    let options =
        WatchOptions { labels, fields, since: if initial { None } else { since }, mark_initial_end: initial };
    let watch = registry.watch(resource, namespace.as_deref(), &options)?;
    let now = Instant::now();
    let running = Running {
        registry: Arc::clone(registry),
        watch,
        resource,
        form,
        bookmarks,
        told: 0,
        next_bookmark: now + BOOKMARK_EVERY,
        deadline: now + timeout.filter(|seconds| *seconds > 0).map_or(TIMEOUT, Duration::from_secs),
        over: false,
    };
    let lines = stream::unfold(running, |mut running| async move {
        let line = running.line().await?;
        Some((Ok::<_, io::Error>(line), running))
    });
    let mut response = Response::new(streaming(lines));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json;stream=watch"));
    Ok(response)
}

impl<S: Store> Running<S> {
    /// The next line; `None` at the end.
    async fn line(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        loop {
            let (deadline, next_bookmark, bookmarks) = (self.deadline, self.next_bookmark, self.bookmarks);
            let bookmark = async {
                if bookmarks { sleep_until(next_bookmark).await } else { std::future::pending().await }
            };
            tokio::select! {
                biased;
                event = self.watch.next() => return self.event(event?),
                () = sleep_until(deadline) => {
                    self.over = true;
                    // Tells where to go on from, so that the next watch need not list again.
                    let reached = self.watch.bookmark().filter(|_| bookmarks)?;
                    return self.event(Ok(reached));
                }
                () = bookmark => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    match self.watch.bookmark() {
                        Some(WatchEvent::Bookmark { revision, .. }) if revision == self.told => {}
                        Some(reached) => return self.event(Ok(reached)),
                        None => {}
                    }
                }
            }
        }
    }

    /// An event as it travels. An error is the last one.
    fn event(&mut self, event: Result<WatchEvent, Error>) -> Option<Bytes> {
        let (kind, object) = match event {
            Ok(WatchEvent::Added(record)) => ("ADDED", self.shown(record.object())),
            Ok(WatchEvent::Modified(record)) => ("MODIFIED", self.shown(record.object())),
            Ok(WatchEvent::Deleted(record)) => ("DELETED", self.shown(record.object())),
            Ok(WatchEvent::Bookmark { revision, is_initial_end }) => {
                self.told = revision;
                ("BOOKMARK", self.mark(revision, is_initial_end))
            }
            Err(error) => {
                self.over = true;
                ("ERROR", error.to_status_json())
            }
        };
        let mut line = json!({"type": kind, "object": object}).to_string();
        line.push('\n');
        Some(Bytes::from(line))
    }

    fn shown(&self, object: Object) -> Value {
        let revision = object.resource_version().unwrap_or(0);
        let object = convert::as_asked(self.resource, object);
        match self.form {
            Form::Objects => object.0,
            Form::Table => table(self.resource, &[object], true, self.registry.now())
                .to_json(revision, IncludeObject::default()),
        }
    }

    /// Source: Kubernetes API concepts, "Watch bookmarks".
    fn mark(&self, revision: u64, is_initial_end: bool) -> Value {
        let mut object = match self.form {
            Form::Objects => json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version()}),
            Form::Table => table(self.resource, &[], true, self.registry.now())
                .to_json(revision, IncludeObject::default()),
        };
        object["metadata"] = json!({"resourceVersion": revision.to_string()});
        if is_initial_end {
            object["metadata"]["annotations"] = json!({INITIAL_END: "true"});
        }
        object
    }
}
