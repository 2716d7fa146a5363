//! Watches: a stream of JSON objects, one per line.

use api::{Object, Resource};
use serde_json::Value;

use crate::connection::{Client, Request, Stream};
use crate::error::Error;
use crate::path::{resource_path, with_query};

/// Longest event, bytes: an object may have 3 MiB, and grows by what the server adds.
const LINE_BYTES_MAX: usize = 16 << 20;

/// What to watch.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// As for list.
    pub labels: Option<String>,
    /// As for list; `metadata.name=x` for one object.
    pub fields: Option<String>,
    /// Tell what happened after this; `None` begins with what is there.
    pub resource_version: Option<String>,
    /// End after so many seconds.
    pub timeout_secs: Option<u64>,
    /// Be told the revision now and then, to go on from there.
    pub bookmarks: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It is there, or matches now.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or matches no more; the object is its last state.
    Deleted,
    /// Nothing; the object holds the revision reached.
    Bookmark,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchEvent {
    /// What happened.
    pub kind: EventKind,
    /// To what.
    pub object: Object,
}

/// A running watch.
pub struct Watch {
    stream: Stream,
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no newline.
    scanned: usize,
}

impl Client {
    /// Watches the objects of a kind, in one namespace or in all.
    ///
    /// # Errors
    /// `Refused` with `Gone` if the revision is too old: list again.
    pub async fn watch(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        options: &WatchOptions,
    ) -> Result<Watch, Error> {
        let path = with_query(
            resource_path(resource, namespace, None, None),
            &[
                ("watch", Some("true".to_string())),
                ("labelSelector", options.labels.clone()),
                ("fieldSelector", options.fields.clone()),
                ("resourceVersion", options.resource_version.clone()),
                ("timeoutSeconds", options.timeout_secs.map(|seconds| seconds.to_string())),
                ("allowWatchBookmarks", options.bookmarks.then(|| "true".to_string())),
            ],
        );
        let stream = self.stream(Request::get(path)).await?;
        Ok(Watch { stream, buffer: Vec::new(), scanned: 0 })
    }
}

impl Watch {
    /// The next event; `None` when the server ends the watch, as it does after its timeout.
    ///
    /// # Errors
    /// `Refused` with the error the server sends as its last event.
    ///
    /// # Cancellation
    /// Nothing is lost: what was read stays in the buffer.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, Error>> {
        loop {
            if let Some(offset) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=self.scanned + offset).collect();
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Some(parse(&line));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                return Some(Err(garbled(format!("an event is longer than {LINE_BYTES_MAX} bytes"))));
            }
            match self.stream.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => return Some(Err(error)),
                None => return None,
            }
        }
    }
}

fn garbled(problem: String) -> Error {
    Error::Garbled { request: "watch".to_string(), problem }
}

fn parse(line: &[u8]) -> Result<WatchEvent, Error> {
    let mut event: Value = serde_json::from_slice(line).map_err(|error| garbled(error.to_string()))?;
    let object = event["object"].take();
    let kind = match event["type"].as_str() {
        Some("ADDED") => EventKind::Added,
        Some("MODIFIED") => EventKind::Modified,
        Some("DELETED") => EventKind::Deleted,
        Some("BOOKMARK") => EventKind::Bookmark,
        Some("ERROR") => {
            let error = api::Error::from_status_json(&object);
            return Err(error.map_or_else(|| garbled(format!("error event {object}")), Error::Refused));
        }
        _ => return Err(garbled(format!("event of type {}", event["type"]))),
    };
    Ok(WatchEvent { kind, object: Object(object) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events() {
        let added = parse(br#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#).unwrap();
        assert_eq!((added.kind, added.object.name()), (EventKind::Added, "a"));
        let gone = parse(
            br#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"old"}}"#,
        );
        assert_eq!(gone.unwrap_err().kind(), Some(api::Kind::Gone));
        assert!(parse(b"{}").is_err());
    }
}
