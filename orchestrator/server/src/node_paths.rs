//! The paths that a node answers: logs, exec, attach, and what Kubernetes has no object for.
//!
//! The daemon serves them for all nodes, and each further node's agent for its own: the same code on both sides, so
//! that what one sends the other understands.

use api::{Error, Key, Kind};
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode};

use crate::exec;
use crate::node_api::{LogOptions, NodeApi};
use crate::query::Query;
use crate::respond::{Body, json_response, parse_json, stream, text_response};
use crate::route::Yard;
use crate::yard::StepAction;

/// `pods/log`
pub async fn logs(
    node: &dyn NodeApi,
    pod: Key,
    container: Option<String>,
    query: &Query,
) -> Result<Response<Body>, Error> {
    let number = |name| query.number(name).map_err(Error::bad_request);
    let options = LogOptions {
        container,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: number("tailLines")?,
        since_secs: number("sinceSeconds")?,
        limit_bytes: number("limitBytes")?,
    };
    Ok(text_response(stream(node.logs(pod, options).await?)))
}

/// `pods/exec` and `pods/attach`. All that may be refused is refused before 101, while the answer can still be a Status.
pub async fn exec(
    node: &dyn NodeApi,
    wanted: exec::ExecRequest,
    request: &mut Request<Bytes>,
    attach: bool,
) -> Result<Response<Body>, Error> {
    let handshake = exec::handshake(request)?;
    let session = if attach { node.attach(wanted).await? } else { node.exec(wanted).await? };
    Ok(exec::accept(handshake, session))
}

/// What Kubernetes has no path for.
pub async fn yard(
    node: &dyn NodeApi,
    yard: Yard,
    method: &Method,
    query: &Query,
    body: &[u8],
) -> Result<Response<Body>, Error> {
    let pod = |namespace: String, name: String| Key::core("pods", namespace, name);
    match (yard, method.as_str()) {
        (Yard::Info, "GET") => answer(&node.info().await?),
        (Yard::Namespaces, "GET") => answer(&node.namespaces().await?),
        (Yard::Services, "GET") => answer(&node.services(query.get("node").map(str::to_string)).await?),
        (Yard::Trace(namespace, name), "GET") => answer(&node.trace(pod(namespace, name)).await?),
        (Yard::Step(namespace, name), "GET") => {
            answer(&node.step(pod(namespace, name), StepAction::Show).await?)
        }
        (Yard::Step(namespace, name), "POST") => {
            let action = match query.get("action") {
                Some("next") => StepAction::Next,
                Some("run") => StepAction::Run,
                _ => return Err(Error::bad_request("action: must be next or run")),
            };
            answer(&node.step(pod(namespace, name), action).await?)
        }
        (Yard::PodPlan, "POST") => answer(&node.plan(api::Object(parse_json(body)?)).await?),
        (_, method) => Err(not_allowed(method)),
    }
}

/// A value as a JSON answer.
pub fn answer(value: &impl serde::Serialize) -> Result<Response<Body>, Error> {
    let value = serde_json::to_value(value).map_err(Error::internal)?;
    Ok(json_response(StatusCode::OK, &value))
}

/// The refusal of a method on a path that exists.
pub fn not_allowed(method: &str) -> Error {
    let verb = method.to_ascii_lowercase();
    let text = format!("the server does not allow this method on the requested resource: {verb}");
    Error::new(Kind::MethodNotAllowed, text)
}
