//! Requests to answers: one match over routes and methods. Each arm is one verb.

use std::sync::Arc;

use api::{Error, Key, Kind, Part, Resource, discovery};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use registry::Registry;
use serde_json::{Value, json};
use store::Store;
use tracing::{debug, error};

use crate::access::check;
use crate::identity::{Door, Identity};
use crate::node_api::NodeApi;
use crate::node_paths::{self, answer, not_allowed};
use crate::query::Query;
use crate::respond::{Body, error_response, full, json_response, parse_json, read_body, text_response};
use crate::route::{Route, Yard};
use crate::volumes::VolumesApi;
use crate::{exec, objects, plan, watch};

/// What answers requests, whatever they came by.
pub trait Answer: Send + Sync + 'static {
    /// Answers one request of somebody who is known. Refusals are answers too.
    fn answer(
        &self,
        identity: Identity,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// The API server's state: the registry for objects and the nodes for the rest.
pub struct Server<S> {
    pub(crate) registry: Arc<Registry<S>>,
    pub(crate) node: Arc<dyn NodeApi>,
    door: Option<Arc<dyn Door>>,
    volumes: Option<Arc<dyn VolumesApi>>,
}

/// How an answer is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects themselves.
    Objects,
    /// Rows and columns, as kubectl shows them.
    Table,
}

impl<S: Store> Answer for Server<S> {
    async fn answer(&self, identity: Identity, request: Request<Incoming>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_string());
        let answer = match (Route::parse(&path), whole(request).await) {
            (Some(route), Ok(request)) => match check(&identity, &route, &request, &*self.registry) {
                Ok(()) => self.dispatch(route, request).await,
                Err(refusal) => Err(refusal),
            },
            (None, _) => Err(no_such_path()),
            (_, Err(refusal)) => Err(refusal),
        };
        answer.unwrap_or_else(|refusal| refused(&method, &path, &refusal))
    }
}

/// A request with its whole body, which is bounded.
///
/// # Errors
/// `BadRequest` if it is too large or breaks off.
pub(crate) async fn whole(request: Request<Incoming>) -> Result<Request<Bytes>, Error> {
    let (head, body) = request.into_parts();
    Ok(Request::from_parts(head, read_body(body).await?))
}

/// The answer to a path where nothing lives.
pub(crate) fn no_such_path() -> Error {
    Error::new(Kind::NotFound, "the server could not find the requested resource")
}

/// A refusal as an answer; told in the log, too.
pub(crate) fn refused(method: &Method, path: &str, refusal: &Error) -> Response<Body> {
    match refusal.kind() {
        Kind::Internal => error!(%method, path, error = %refusal, "request"),
        _ => debug!(%method, path, error = %refusal, "request"),
    }
    error_response(refusal)
}

impl<S: Store> Server<S> {
    /// A server over a registry and a node.
    pub fn new(registry: Arc<Registry<S>>, node: Arc<dyn NodeApi>) -> Server<S> {
        Server { registry, node, door: None, volumes: None }
    }

    /// The same, for nodes too: their heartbeats go to `door`.
    #[must_use]
    pub fn with_door(self, door: Arc<dyn Door>) -> Server<S> {
        Server { door: Some(door), ..self }
    }

    /// The same, with volumes: what is asked of them goes to `volumes`.
    #[must_use]
    pub fn with_volumes(self, volumes: Arc<dyn VolumesApi>) -> Server<S> {
        Server { volumes: Some(volumes), ..self }
    }

    async fn dispatch(&self, route: Route, mut request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let query = Query::parse(request.uri().query().unwrap_or(""));
        let method = request.method().clone();
        match (route, method.as_str()) {
            (Route::Version, "GET") => Ok(ok(&version())),
            (Route::Health, "GET") => Ok(text_response(full("ok"))),
            (Route::CoreVersions, "GET") => Ok(match aggregated(&request) {
                Some(version) => discovered(version, &discovery::aggregated(true, version)),
                None => ok(&discovery::api_versions()),
            }),
            (Route::Groups, "GET") => Ok(match aggregated(&request) {
                Some(version) => discovered(version, &discovery::aggregated(false, version)),
                None => ok(&discovery::api_group_list()),
            }),
            (Route::Group(group), "GET") => found(discovery::api_group(&group)),
            (Route::Resources { group, version }, "GET") => {
                found(discovery::api_resource_list(&group, &version))
            }
            (Route::Collection { resource, namespace }, "GET") => {
                let form = form(&request)?;
                if query.flag("watch") {
                    watch::watch(&self.registry, resource, namespace, &query, form).await
                } else {
                    objects::list(&self.registry, resource, namespace.as_deref(), &query, form).await
                }
            }
            (Route::Collection { resource, namespace }, "POST") => {
                let namespace = needed(resource, namespace)?;
                objects::create(&self.registry, resource, namespace, &query, request).await
            }
            (Route::Collection { resource, namespace }, "DELETE") => {
                objects::delete_collection(&self.registry, resource, namespace, &query, request).await
            }
            (Route::Object { resource, key, subresource: None }, method) => match method {
                "GET" => objects::get(&self.registry, resource, &key, form(&request)?).await,
                "PUT" => objects::update(&self.registry, resource, key, Part::Main, &query, request).await,
                "PATCH" => objects::patch(&self.registry, resource, key, Part::Main, &query, request).await,
                "DELETE" => objects::delete(&self.registry, resource, key, &query, request).await,
                _ => Err(not_allowed(method)),
            },
            (Route::Object { resource, key, subresource: Some(part) }, method) => {
                if resource.subresource(&part).is_none() {
                    return Err(no_such_path());
                }
                match (part.as_str(), method) {
                    ("status", "GET") => objects::get(&self.registry, resource, &key, form(&request)?).await,
                    ("scale", "GET") => objects::get_scale(&self.registry, &key).await,
                    ("status" | "scale", "PUT") => {
                        objects::update(&self.registry, resource, key, written(&part), &query, request).await
                    }
                    ("status" | "scale", "PATCH") => {
                        objects::patch(&self.registry, resource, key, written(&part), &query, request).await
                    }
                    ("log", "GET") => self.logs(key, &query).await,
                    ("exec" | "attach", "GET" | "POST") => {
                        self.exec(key, &query, &mut request, part == "attach").await
                    }
                    ("binding", "POST") => objects::bind(&self.registry, key, request).await,
                    ("eviction", "POST") => objects::evict(&self.registry, key, request).await,
                    _ => Err(not_allowed(method)),
                }
            }
            (Route::Yard(yard), _) => self.yard(yard, &method, &query, &request).await,
            (_, method) => Err(not_allowed(method)),
        }
    }

    async fn yard(
        &self,
        yard: Yard,
        method: &Method,
        query: &Query,
        request: &Request<Bytes>,
    ) -> Result<Response<Body>, Error> {
        match (yard, method.as_str()) {
            (Yard::Plan, "POST") => {
                let manifests = parse_json(request.body())?;
                answer(&plan::plan(&self.registry, self.node.as_ref(), manifests).await?)
            }
            (Yard::Volumes(part), method) => {
                let volumes = self.volumes.as_ref().ok_or_else(no_such_path)?;
                match (part.as_deref(), method) {
                    (None, "GET") => answer(&volumes.list().await?),
                    (Some("undelete"), "POST") => answer(&volumes.undelete(wish(request)?).await?),
                    (Some("empty"), "POST") => answer(&volumes.empty(wish(request)?).await?),
                    (None | Some("undelete" | "empty"), method) => Err(not_allowed(method)),
                    _ => Err(no_such_path()),
                }
            }
            (Yard::Heartbeat(node), "POST") => {
                let door = self.door.as_ref().ok_or_else(no_such_path)?;
                door.heartbeat(&node);
                Ok(text_response(full("ok")))
            }
            (other, _) => node_paths::yard(self.node.as_ref(), other, method, query, request.body()).await,
        }
    }

    async fn logs(&self, pod: Key, query: &Query) -> Result<Response<Body>, Error> {
        let named = query.get("container").map(str::to_string);
        let container = container(&objects::read(&self.registry, &pod)?, named)?;
        node_paths::logs(self.node.as_ref(), pod, Some(container), query).await
    }

    async fn exec(
        &self,
        pod: Key,
        query: &Query,
        request: &mut Request<Bytes>,
        attach: bool,
    ) -> Result<Response<Body>, Error> {
        let pod_object = objects::read(&self.registry, &pod)?;
        let mut wanted = exec::parse(pod, query, attach)?;
        wanted.container = Some(container(&pod_object, wanted.container)?);
        node_paths::exec(self.node.as_ref(), wanted, request, attach).await
    }
}

/// The container that is meant.
///
/// # Errors
/// `BadRequest` if none is named and there are several, or the pod has no such container; kubectl's words.
fn container(pod: &api::Object, named: Option<String>) -> Result<String, Error> {
    let of = |list: &str| -> Vec<String> {
        let items = pod.get_array(list).iter();
        items.filter_map(|item| item["name"].as_str().map(str::to_string)).collect()
    };
    let (main, init) = (of("spec.containers"), of("spec.initContainers"));
    match named {
        Some(name) if main.contains(&name) || init.contains(&name) => Ok(name),
        Some(name) => {
            Err(Error::bad_request(format!("container {name} is not valid for pod {}", pod.name())))
        }
        None => match main.as_slice() {
            [only] => Ok(only.clone()),
            several => Err(Error::bad_request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                pod.name(),
                several.join(" ")
            ))),
        },
    }
}

fn ok(value: &Value) -> Response<Body> {
    json_response(StatusCode::OK, value)
}

/// Clients tell aggregated discovery from the plain lists by the media type alone.
fn discovered(version: &str, list: &Value) -> Response<Body> {
    let mut response = ok(list);
    let media_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(media_type) = HeaderValue::from_str(&media_type) {
        response.headers_mut().insert(CONTENT_TYPE, media_type);
    }
    response
}

fn found(document: Option<Value>) -> Result<Response<Body>, Error> {
    document.map(|document| ok(&document)).ok_or_else(no_such_path)
}

fn wish<T: serde::de::DeserializeOwned>(request: &Request<Bytes>) -> Result<T, Error> {
    serde_json::from_value(parse_json(request.body())?)
        .map_err(|error| Error::bad_request(format!("the request's body: {error}")))
}

fn written(part: &str) -> Part {
    if part == "scale" { Part::Scale } else { Part::Status }
}

/// The namespace to create in.
fn needed(resource: &Resource, namespace: Option<String>) -> Result<String, Error> {
    match namespace {
        None if resource.namespaced => {
            Err(Error::new(Kind::MethodNotAllowed, "an empty namespace may not be set during creation"))
        }
        other => Ok(other.unwrap_or_default()),
    }
}

/// Which version of aggregated discovery is accepted, if any.
fn aggregated(request: &Request<Bytes>) -> Option<&'static str> {
    let accepted = accept(request);
    let part = accepted.split(',').find(|part| part.contains("as=APIGroupDiscoveryList"))?;
    Some(if part.contains("v=v2beta1") { "v2beta1" } else { "v2" })
}

/// The first form in `Accept` that we write. Source: Kubernetes API concepts, "Receiving resources as Tables".
///
/// # Errors
/// 406 is told as `Unsupported` by its own reason: only JSON is written.
fn form(request: &Request<Bytes>) -> Result<Form, Error> {
    parse_form(&accept(request)).ok_or_else(|| {
        Error::new(
            Kind::Unsupported,
            "only application/json is written: protobuf, YAML and CBOR are not accepted",
        )
    })
}

fn parse_form(accepted: &str) -> Option<Form> {
    if accepted.trim().is_empty() {
        return Some(Form::Objects);
    }
    accepted.split(',').find_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        match parts.next()? {
            "application/json" | "application/*" | "*/*" => {
                let mut conversion = None;
                for part in parts {
                    conversion = part.strip_prefix("as=").or(conversion);
                }
                match conversion {
                    None => Some(Form::Objects),
                    Some("Table") => Some(Form::Table),
                    Some(_) => None,
                }
            }
            _ => None,
        }
    })
}

fn accept(request: &Request<Bytes>) -> String {
    let values = request.headers().get_all(ACCEPT).into_iter();
    values.filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",")
}

/// `/version`, in Kubernetes' fields: the version whose API is served, and our own.
fn version() -> Value {
    json!({
        "major": "1", "minor": "33",
        "gitVersion": concat!("v1.33.0+podyard-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_forms() {
        let check =
            |accepted: &str, expect: Option<Form>| assert_eq!(parse_form(accepted), expect, "{accepted}");
        check("", Some(Form::Objects));
        check("*/*", Some(Form::Objects));
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(Form::Table));
        check("application/vnd.kubernetes.protobuf,application/json", Some(Form::Objects));
        check(
            "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json",
            Some(Form::Objects),
        );
        check("application/yaml", None);
    }

    #[test]
    fn the_container_must_be_clear() {
        let pod = |names: &[&str]| {
            let list: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            api::Object(json!({"metadata": {"name": "p"}, "spec": {"containers": list}}))
        };
        assert_eq!(container(&pod(&["a"]), None).unwrap(), "a");
        assert_eq!(
            container(&pod(&["a", "b"]), None).unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b]"
        );
        assert!(container(&pod(&["a"]), Some("c".into())).is_err());
    }
}
