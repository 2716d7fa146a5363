//! From a request to what `authorize` is asked.

use api::{Error, FieldSelector, Key, Object};
use hyper::body::Bytes;
use hyper::{Method, Request};
use registry::Registry;
use serde_json::Value;
use store::Store;

use crate::authorize::{Attributes, Lookup, Target, Verb, authorize};
use crate::identity::Identity;
use crate::query::Query;
use crate::respond::parse_json;
use crate::route::{Route, Yard};

impl<S: Store> Lookup for Registry<S> {
    fn get(&self, key: &Key) -> Option<Object> {
        self.store().get(key).map(|record| record.object())
    }

    fn pod_by_uid(&self, namespace: &str, uid: &str) -> Option<Object> {
        let (_, pods) = self.store().list(Key::core("pods", "", "").resource, Some(namespace));
        // Most records are told apart without being parsed.
        let may_be = |bytes: &[u8]| bytes.windows(uid.len().max(1)).any(|part| part == uid.as_bytes());
        let likely = pods.iter().filter(|record| may_be(&record.bytes));
        likely.map(store::Record::object).find(|pod| pod.uid() == uid)
    }
}

/// Whether this may be done.
///
/// # Errors
/// `Denied`; `BadRequest` for what cannot be read.
pub fn check<S: Store>(
    identity: &Identity,
    route: &Route,
    request: &Request<Bytes>,
    registry: &Registry<S>,
) -> Result<(), Error> {
    // Root may do everything: nothing needs to be read for that.
    if *identity == Identity::Root {
        return Ok(());
    }
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let fields = query.get("fieldSelector").map(FieldSelector::parse).transpose()?.unwrap_or_default();
    let verb = verb(route, request.method(), &query);
    let body = match request.method() {
        &Method::GET => Value::Null,
        _ => parse_json(request.body())?,
    };
    authorize(identity, &Attributes { verb, target: target(route, &fields), body: &body }, registry)
}

fn verb(route: &Route, method: &Method, query: &Query) -> Verb {
    let is_collection = matches!(route, Route::Collection { .. });
    let part = match route {
        Route::Object { subresource, .. } => subresource.as_deref(),
        _ => None,
    };
    match (part, method.as_str()) {
        (Some("log" | "exec" | "attach"), _) => Verb::Connect,
        (_, "GET") if is_collection && query.flag("watch") => Verb::Watch,
        (_, "GET") if is_collection => Verb::List,
        (_, "GET") => Verb::Get,
        (_, "PUT") => Verb::Update,
        (_, "PATCH") => Verb::Patch,
        (_, "DELETE") if is_collection => Verb::DeleteCollection,
        (_, "DELETE") => Verb::Delete,
        _ => Verb::Create,
    }
}

fn target<'a>(route: &'a Route, fields: &'a FieldSelector) -> Target<'a> {
    match route {
        Route::Version
        | Route::Health
        | Route::CoreVersions
        | Route::Groups
        | Route::Group(_)
        | Route::Resources { .. } => Target::Discovery,
        Route::Collection { resource, namespace } => Target::Objects {
            resource,
            namespace: namespace.as_deref(),
            name: None,
            subresource: None,
            fields,
        },
        Route::Object { resource, key, subresource } => Target::Objects {
            resource,
            namespace: Some(&key.namespace),
            name: Some(&key.name),
            subresource: subresource.as_deref(),
            fields,
        },
        Route::Yard(Yard::Heartbeat(node)) => Target::Heartbeat(node),
        Route::Yard(_) => Target::Yard,
    }
}
