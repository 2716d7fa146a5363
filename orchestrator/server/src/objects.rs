//! The verbs on objects: HTTP to registry and back.

use std::sync::Arc;

use api::{Error, FieldSelector, FieldValidation, Key, Kind, LabelSelector, Object, Part, Resource, convert};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Response, StatusCode};
use registry::{DeleteOptions, ListOptions, PatchKind, Propagation, Registry, WriteOptions};
use serde_json::{Value, json};
use store::Store;

use crate::handler::Form;
use crate::query::Query;
use crate::respond::{Body, json_response, parse_json, success, with_warnings};

/// Runs a write in a task of its own: once begun it is finished, whether or not the client still listens.
async fn finish<T: Send + 'static>(
    write: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(write).await.unwrap_or_else(|error| Err(Error::internal(error)))
}

/// The object under a key.
///
/// # Errors
/// `NotFound`.
pub fn read<S: Store>(registry: &Registry<S>, key: &Key) -> Result<Object, Error> {
    registry.get(key)
}

pub async fn get<S: Store>(
    registry: &Registry<S>,
    resource: &'static Resource,
    key: &Key,
    form: Form,
) -> Result<Response<Body>, Error> {
    let object = read(registry, key)?;
    let revision = object.resource_version().unwrap_or(0);
    let object = convert::as_asked(resource, object);
    Ok(json_response(
        StatusCode::OK,
        &match form {
            Form::Objects => object.0,
            Form::Table => api::table::table(resource, &[object], true, registry.now())
                .to_json(revision, Default::default()),
        },
    ))
}

/// The selectors in a query.
///
/// # Errors
/// `BadRequest` naming what was not understood.
pub fn selectors(resource: &Resource, query: &Query) -> Result<(LabelSelector, FieldSelector), Error> {
    let labels = query.get("labelSelector").map(LabelSelector::parse).transpose()?.unwrap_or_default();
    let fields = query.get("fieldSelector").map(FieldSelector::parse).transpose()?.unwrap_or_default();
    fields.check(resource.kind)?;
    Ok((labels, fields))
}

pub async fn list<S: Store>(
    registry: &Registry<S>,
    resource: &'static Resource,
    namespace: Option<&str>,
    query: &Query,
    form: Form,
) -> Result<Response<Body>, Error> {
    let (labels, fields) = selectors(resource, query)?;
    let limit = query.number("limit").map_err(Error::bad_request)?.unwrap_or(0);
    let options = ListOptions {
        labels,
        fields,
        limit: usize::try_from(limit).unwrap_or(0),
        continue_token: query.get("continue").map(str::to_string),
    };
    let list = registry.list(resource, namespace, &options)?;
    if options.continue_token.is_none() {
        check_revision(query, list.revision)?;
    }
    let objects: Vec<Object> = list.objects().map(|object| convert::as_asked(resource, object)).collect();
    let mut body = match form {
        Form::Table => api::table::table(resource, &objects, true, registry.now())
            .to_json(list.revision, Default::default()),
        Form::Objects => json!({
            "kind": format!("{}List", resource.kind),
            "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": list.revision.to_string()},
            "items": objects,
        }),
    };
    if let Some(token) = list.continue_token {
        body["metadata"]["continue"] = token.into();
        if let Some(remaining) = list.remaining {
            body["metadata"]["remainingItemCount"] = remaining.into();
        }
    }
    Ok(json_response(StatusCode::OK, &body))
}

/// Refuses a list of another moment than the present. Source: Kubernetes API concepts, "Resource versions", the
/// table of `resourceVersionMatch`: what is not `Exact` may be newer than asked.
fn check_revision(query: &Query, present: u64) -> Result<(), Error> {
    let Some(wanted) = query.number("resourceVersion").map_err(Error::bad_request)? else { return Ok(()) };
    match query.get("resourceVersionMatch") {
        None | Some("NotOlderThan") if wanted > present => Err(Error::new(
            Kind::Timeout,
            format!("Too large resource version: {wanted}, current: {present}"),
        )),
        None | Some("NotOlderThan") => Ok(()),
        Some("Exact") if wanted == present => Ok(()),
        Some("Exact") => Err(Error::expired(format!("only the present is kept: {present}, not {wanted}"))),
        Some(other) => Err(Error::bad_request(format!("resourceVersionMatch: {other:?} is unknown"))),
    }
}

fn write_options(query: &Query) -> Result<WriteOptions, Error> {
    let dry_run = query.all("dryRun");
    if let Some(other) = dry_run.iter().find(|value| *value != "All") {
        return Err(Error::bad_request(format!("dryRun: {other:?}: only All is known")));
    }
    Ok(WriteOptions {
        dry_run: !dry_run.is_empty(),
        field_manager: query.get("fieldManager").unwrap_or("unknown").to_string(),
        validation: match query.get("fieldValidation") {
            None | Some("Strict") => FieldValidation::Strict,
            Some("Warn" | "Ignore") => FieldValidation::Warn,
            Some(other) => return Err(Error::bad_request(format!("fieldValidation: {other:?} is unknown"))),
        },
    })
}

/// The media type of a body, without parameters.
fn media_type(request: &Request<Bytes>) -> String {
    let header = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/json");
    header.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

fn json_body(request: Request<Bytes>) -> Result<Value, Error> {
    match media_type(&request).as_str() {
        "application/json" | "text/json" | "*/*" | "" => parse_json(request.body()),
        other => Err(Error::new(
            Kind::Unsupported,
            format!(
                "the body of the request was in an unknown format - accepted media types include: application/json (got {other})"
            ),
        )),
    }
}

fn written(
    code: StatusCode,
    resource: &'static Resource,
    part: Part,
    done: registry::Written,
) -> Response<Body> {
    let body = match part {
        Part::Scale => api::scale::of(&done.object),
        Part::Main | Part::Status => convert::as_asked(resource, done.object).0,
    };
    with_warnings(json_response(code, &body), &done.warnings)
}

pub async fn create<S: Store>(
    registry: &Arc<Registry<S>>,
    resource: &'static Resource,
    namespace: String,
    query: &Query,
    request: Request<Bytes>,
) -> Result<Response<Body>, Error> {
    let options = write_options(query)?;
    let object = json_body(request)?;
    let registry = Arc::clone(registry);
    let done = finish(async move { registry.create(resource, &namespace, object, &options).await }).await?;
    Ok(written(StatusCode::CREATED, resource, Part::Main, done))
}

pub async fn update<S: Store>(
    registry: &Arc<Registry<S>>,
    resource: &'static Resource,
    key: Key,
    part: Part,
    query: &Query,
    request: Request<Bytes>,
) -> Result<Response<Body>, Error> {
    let options = write_options(query)?;
    let mut object = json_body(request)?;
    convert::to_stored(resource, &mut object);
    let registry = Arc::clone(registry);
    let done = finish(async move { registry.update(&key, object, part, &options).await }).await?;
    Ok(written(StatusCode::OK, resource, part, done))
}

pub async fn patch<S: Store>(
    registry: &Arc<Registry<S>>,
    resource: &'static Resource,
    key: Key,
    part: Part,
    query: &Query,
    request: Request<Bytes>,
) -> Result<Response<Body>, Error> {
    let options = write_options(query)?;
    let kind = match media_type(&request).as_str() {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        "application/strategic-merge-patch+json" => PatchKind::Strategic,
        other => {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, \
                     application/strategic-merge-patch+json (got {other})"
                ),
            ));
        }
    };
    let mut patch = parse_json(request.body())?;
    // A merge patch may name the kind it was asked as.
    convert::to_stored(resource, &mut patch);
    let registry = Arc::clone(registry);
    let done = finish(async move { registry.patch(&key, kind, &patch, part, &options).await }).await?;
    Ok(written(StatusCode::OK, resource, part, done))
}

pub async fn get_scale<S: Store>(registry: &Registry<S>, key: &Key) -> Result<Response<Body>, Error> {
    Ok(json_response(StatusCode::OK, &api::scale::of(&read(registry, key)?)))
}

/// Options of a deletion, from the body or else from the query. meta/v1 DeleteOptions.
fn delete_options(query: &Query, body: &Value) -> Result<DeleteOptions, Error> {
    let known = [
        "kind",
        "apiVersion",
        "gracePeriodSeconds",
        "preconditions",
        "propagationPolicy",
        "orphanDependents",
        "dryRun",
    ];
    if let Some(unknown) =
        body.as_object().and_then(|map| map.keys().find(|key| !known.contains(&key.as_str())))
    {
        return Err(Error::bad_request(format!("DeleteOptions: unknown field {unknown:?}")));
    }
    let text = |name: &str| body[name].as_str().or(query.get(name)).map(str::to_string);
    let grace = match &body["gracePeriodSeconds"] {
        Value::Null => {
            query.get("gracePeriodSeconds").map(|text| text.parse().map_err(|_| text.to_string())).transpose()
        }
        value => value.as_i64().map(Some).ok_or_else(|| value.to_string()),
    };
    let grace = grace
        .map_err(|value| Error::bad_request(format!("gracePeriodSeconds: {value} is not an integer")))?;
    let propagation = match (text("propagationPolicy").as_deref(), body["orphanDependents"].as_bool()) {
        (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
        (Some("Foreground"), _) => Some(Propagation::Foreground),
        (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
        (None, None) => None,
        (Some(other), _) => {
            return Err(Error::bad_request(format!("propagationPolicy: {other:?} is unknown")));
        }
    };
    let version = match body["preconditions"]["resourceVersion"].as_str() {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            Error::bad_request(format!("preconditions.resourceVersion: {text:?} is not a resource version"))
        })?),
    };
    Ok(DeleteOptions {
        grace_period_secs: grace,
        uid: body["preconditions"]["uid"].as_str().map(str::to_string),
        resource_version: version,
        propagation,
        dry_run: body["dryRun"].as_array().is_some_and(|list| !list.is_empty())
            || query.get("dryRun").is_some(),
    })
}

pub async fn delete<S: Store>(
    registry: &Arc<Registry<S>>,
    resource: &'static Resource,
    key: Key,
    query: &Query,
    request: Request<Bytes>,
) -> Result<Response<Body>, Error> {
    let options = delete_options(query, &json_body(request)?)?;
    let registry = Arc::clone(registry);
    let name = key.name.clone();
    let deleted = finish(async move { registry.delete(&key, &options).await }).await?;
    if deleted.is_gone {
        let uid = deleted.object.uid();
        let details = json!({"name": name, "group": resource.group, "kind": resource.plural, "uid": uid});
        return Ok(json_response(StatusCode::OK, &success(details)));
    }
    Ok(json_response(StatusCode::OK, &convert::as_asked(resource, deleted.object).0))
}

pub async fn delete_collection<S: Store>(
    registry: &Arc<Registry<S>>,
    resource: &'static Resource,
    namespace: Option<String>,
    query: &Query,
    request: Request<Bytes>,
) -> Result<Response<Body>, Error> {
    if resource.namespaced && namespace.is_none() {
        return Err(Error::new(Kind::MethodNotAllowed, "deletecollection needs a namespace"));
    }
    let options = delete_options(query, &json_body(request)?)?;
    let (labels, fields) = selectors(resource, query)?;
    let list = ListOptions { labels, fields, ..ListOptions::default() };
    let shared = Arc::clone(registry);
    let deleted =
        finish(
            async move { shared.delete_collection(resource, namespace.as_deref(), &list, &options).await },
        )
        .await?;
    let items: Vec<Object> =
        deleted.into_iter().map(|done| convert::as_asked(resource, done.object)).collect();
    let body = json!({
        "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(),
        "metadata": {"resourceVersion": registry.store().revision().to_string()}, "items": items,
    });
    Ok(json_response(StatusCode::OK, &body))
}

/// `pods/binding`: puts a pod on a node, which then gives it an address.
pub async fn bind<S: Store>(
    registry: &Arc<Registry<S>>,
    key: Key,
    request: Request<Bytes>,
) -> Result<Response<Body>, Error> {
    let binding = json_body(request)?;
    let node = binding["target"]["name"].as_str().unwrap_or("").to_string();
    if node.is_empty() {
        return Err(Error::bad_request("target.name: Required value"));
    }
    let uid = binding["metadata"]["uid"].as_str().map(str::to_string);
    let registry = Arc::clone(registry);
    finish(async move { registry.bind(&key, uid.as_deref(), &node, None).await }).await?;
    Ok(json_response(StatusCode::CREATED, &success(Value::Null)))
}

/// `pods/eviction`: deletes the pod. There are no disruption budgets that could forbid it.
pub async fn evict<S: Store>(
    registry: &Arc<Registry<S>>,
    key: Key,
    request: Request<Bytes>,
) -> Result<Response<Body>, Error> {
    let eviction = json_body(request)?;
    let options = delete_options(&Query::default(), &eviction["deleteOptions"])?;
    let registry = Arc::clone(registry);
    finish(async move { registry.delete(&key, &options).await }).await?;
    Ok(json_response(StatusCode::CREATED, &success(Value::Null)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_present_is_listed() {
        let check = |query: &str, expect: Option<Kind>| {
            let found = check_revision(&Query::parse(query), 7).err().map(|error| error.kind());
            assert_eq!(found, expect, "{query}");
        };
        check("", None);
        check("resourceVersion=0", None);
        check("resourceVersion=7&resourceVersionMatch=Exact", None);
        check("resourceVersion=6&resourceVersionMatch=Exact", Some(Kind::Gone));
        check("resourceVersion=8", Some(Kind::Timeout));
        check("resourceVersion=x", Some(Kind::BadRequest));
        check("resourceVersion=1&resourceVersionMatch=Odd", Some(Kind::BadRequest));
    }

    #[test]
    fn deletions_are_read_strictly() {
        let parse = |body: Value, query: &str| delete_options(&Query::parse(query), &body);
        let body = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u", "resourceVersion": "7"}});
        let options = parse(body, "propagationPolicy=Foreground").unwrap();
        assert_eq!(options.grace_period_secs, Some(0));
        assert_eq!((options.uid.as_deref(), options.resource_version), (Some("u"), Some(7)));
        assert_eq!(options.propagation, Some(Propagation::Foreground));
        assert_eq!(parse(Value::Null, "gracePeriodSeconds=3").unwrap().grace_period_secs, Some(3));
        assert!(parse(json!({"gracePeriod": 0}), "").unwrap_err().message.contains("\"gracePeriod\""));
        assert!(parse(Value::Null, "propagationPolicy=Never").is_err());
        assert!(parse(Value::Null, "gracePeriodSeconds=x").is_err());
    }
}
