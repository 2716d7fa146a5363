//! The verbs, typed.

use api::{Key, Object, Resource};
use hyper::Method;
use serde_json::{Value, json};

use crate::connection::{Client, Request, Stream};
use crate::error::Error;
use crate::path::{resource_path, with_query};

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// As `app=web,tier in (a, b)`.
    pub labels: Option<String>,
    /// As `spec.nodeName=node-0`.
    pub fields: Option<String>,
    /// At most so many; the answer says how to go on.
    pub limit: Option<u64>,
    /// Where the last answer said to go on.
    pub continue_from: Option<String>,
}

/// Objects of one kind, true at one revision.
#[derive(Clone, Debug)]
pub struct List {
    /// The revision.
    pub resource_version: String,
    /// The objects, sorted by namespace and name; each with its `kind` and `apiVersion`.
    pub items: Vec<Object>,
    /// Where to go on, if there is more.
    pub continue_from: Option<String>,
}

/// How to write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Do everything but store.
    pub dry_run: bool,
    /// Who writes, in `metadata.managedFields`.
    pub field_manager: Option<String>,
}

/// An object as the server now has it.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object.
    pub object: Object,
    /// What the server wants the user to know.
    pub warnings: Vec<String>,
}

/// The dialects of PATCH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own.
    Strategic,
}

impl PatchKind {
    fn media_type(self) -> &'static str {
        match self {
            PatchKind::Json => "application/json-patch+json",
            PatchKind::Merge => "application/merge-patch+json",
            PatchKind::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds between SIGTERM and SIGKILL; `None` for the object's own.
    pub grace_period_secs: Option<u64>,
    /// `Background`, `Foreground` or `Orphan`; `None` for the kind's default.
    pub propagation: Option<&'static str>,
    /// Delete only this incarnation.
    pub uid: Option<String>,
    /// Do everything but delete.
    pub dry_run: bool,
}

/// Which part of a log to read.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// The container; may be left out of a pod that has one.
    pub container: Option<String>,
    /// Go on with what is written later.
    pub follow: bool,
    /// The attempt before the present one.
    pub previous: bool,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// At most so many lines from the end.
    pub tail_lines: Option<u64>,
    /// Only lines younger than this.
    pub since_secs: Option<u64>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
}

fn key_path(key: &Key, subresource: Option<&str>) -> String {
    resource_path(key.resource, Some(&key.namespace), Some(&key.name), subresource)
}

fn flag(set: bool) -> Option<String> {
    set.then(|| "true".to_string())
}

impl Client {
    /// Reads one object.
    ///
    /// # Errors
    /// `Refused` with `NotFound` if there is none.
    pub async fn get(&self, key: &Key) -> Result<Object, Error> {
        let (value, _) = self.request_json(Request::get(key_path(key, None))).await?;
        Ok(Object(value))
    }

    /// Reads the objects of a kind, in one namespace or in all. With a limit, one page of them.
    ///
    /// # Errors
    /// `Refused` with `Gone` if `continue_from` is too old.
    pub async fn list(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<List, Error> {
        let path = with_query(
            resource_path(resource, namespace, None, None),
            &[
                ("labelSelector", options.labels.clone()),
                ("fieldSelector", options.fields.clone()),
                ("limit", options.limit.map(|limit| limit.to_string())),
                ("continue", options.continue_from.clone()),
            ],
        );
        let (mut list, _) = self.request_json(Request::get(path)).await?;
        let items = match list["items"].take() {
            Value::Array(items) => items.into_iter().map(|item| with_kind(resource, item)).collect(),
            _ => Vec::new(),
        };
        let text =
            |name: &str| list["metadata"][name].as_str().filter(|text| !text.is_empty()).map(str::to_string);
        Ok(List {
            resource_version: text("resourceVersion").unwrap_or_default(),
            items,
            continue_from: text("continue"),
        })
    }

    /// Creates an object.
    ///
    /// # Errors
    /// `Refused` with `AlreadyExists`, `Invalid` naming each field, and others.
    pub async fn create(
        &self,
        resource: &'static Resource,
        namespace: &str,
        object: &Value,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let path = resource_path(resource, Some(namespace), None, None);
        self.write(Request::new(Method::POST, path).json(object), options).await
    }

    /// Replaces an object or, with `status` or `scale`, a part of it.
    ///
    /// # Errors
    /// `Refused` with `Conflict` if its resource version is not the present one.
    pub async fn update(
        &self,
        key: &Key,
        subresource: Option<&str>,
        object: &Value,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        self.write(Request::new(Method::PUT, key_path(key, subresource)).json(object), options).await
    }

    /// Changes an object, or a part of it.
    ///
    /// # Errors
    /// `Refused` with `Unsupported` for a dialect that the server does not speak.
    pub async fn patch(
        &self,
        key: &Key,
        subresource: Option<&str>,
        kind: PatchKind,
        patch: &Value,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let mut request = Request::new(Method::PATCH, key_path(key, subresource)).json(patch);
        request.content_type = kind.media_type();
        self.write(request, options).await
    }

    async fn write(&self, mut request: Request, options: &WriteOptions) -> Result<Written, Error> {
        request.path = with_query(
            request.path,
            &[
                ("fieldManager", options.field_manager.clone()),
                ("fieldValidation", Some("Strict".to_string())),
                ("dryRun", options.dry_run.then(|| "All".to_string())),
            ],
        );
        let (value, warnings) = self.request_json(request).await?;
        Ok(Written { object: Object(value), warnings })
    }

    /// Deletes an object. Answers with the object if it goes later, and with `None` if it is gone.
    ///
    /// # Errors
    /// `Refused` with `NotFound`, or `Conflict` if another incarnation has the name.
    pub async fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<Option<Object>, Error> {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(seconds) = options.grace_period_secs {
            body["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(propagation) = options.propagation {
            body["propagationPolicy"] = propagation.into();
        }
        if let Some(uid) = &options.uid {
            body["preconditions"] = json!({"uid": uid});
        }
        if options.dry_run {
            body["dryRun"] = json!(["All"]);
        }
        let request = Request::new(Method::DELETE, key_path(key, None)).json(&body);
        let (value, _) = self.request_json(request).await?;
        Ok((value["kind"] != "Status").then_some(Object(value)))
    }

    /// Sets the wanted number of pods; answers with the `Scale`.
    ///
    /// # Errors
    /// `Refused` with `NotFound` for a kind without `scale`.
    pub async fn scale(&self, key: &Key, replicas: u32) -> Result<Written, Error> {
        let patch = json!({"spec": {"replicas": replicas}});
        self.patch(key, Some("scale"), PatchKind::Merge, &patch, &WriteOptions::default()).await
    }

    /// Reads a container's log as it comes.
    ///
    /// # Errors
    /// `Refused` with `BadRequest` if the container is not named, or has not started.
    pub async fn logs(&self, pod: &Key, options: &LogOptions) -> Result<Stream, Error> {
        let path = with_query(
            key_path(pod, Some("log")),
            &[
                ("container", options.container.clone()),
                ("follow", flag(options.follow)),
                ("previous", flag(options.previous)),
                ("timestamps", flag(options.timestamps)),
                ("tailLines", options.tail_lines.map(|lines| lines.to_string())),
                ("sinceSeconds", options.since_secs.map(|seconds| seconds.to_string())),
                ("limitBytes", options.limit_bytes.map(|bytes| bytes.to_string())),
            ],
        );
        self.stream(Request::get(path)).await
    }
}

/// Items of a list may leave out what the list's own kind says.
fn with_kind(resource: &Resource, mut item: Value) -> Object {
    if let Some(map) = item.as_object_mut() {
        map.entry("kind").or_insert_with(|| resource.kind.into());
        map.entry("apiVersion").or_insert_with(|| resource.api_version().into());
    }
    Object(item)
}
