//! A server of one node's pods, without objects: what an agent answers to the daemon.

use std::sync::Arc;

use api::{Error, Kind};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};

use crate::exec;
use crate::handler::{Answer, no_such_path, refused, whole};
use crate::identity::Identity;
use crate::node_api::NodeApi;
use crate::node_paths::{self, not_allowed};
use crate::query::Query;
use crate::respond::{Body, full, text_response};
use crate::route::Route;

/// Answers for the pods of one node. Who asks has named the container: pods are not read here.
pub struct NodeServer {
    node: Arc<dyn NodeApi>,
}

impl NodeServer {
    /// A server over a node.
    pub fn new(node: Arc<dyn NodeApi>) -> NodeServer {
        NodeServer { node }
    }

    async fn dispatch(&self, mut request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let route = Route::parse(request.uri().path()).ok_or_else(no_such_path)?;
        let query = Query::parse(request.uri().query().unwrap_or(""));
        let method = request.method().clone();
        let node = self.node.as_ref();
        match route {
            Route::Health => Ok(text_response(full("ok"))),
            Route::Yard(yard) => node_paths::yard(node, yard, &method, &query, request.body()).await,
            Route::Object { resource, key, subresource: Some(part) } if resource.plural == "pods" => {
                match (part.as_str(), method.as_str()) {
                    ("log", "GET") => {
                        let container = query.get("container").map(str::to_string);
                        node_paths::logs(node, key, container, &query).await
                    }
                    ("exec" | "attach", "GET" | "POST") => {
                        let attach = part == "attach";
                        let wanted = exec::parse(key, &query, attach)?;
                        node_paths::exec(node, wanted, &mut request, attach).await
                    }
                    (_, method) => Err(not_allowed(method)),
                }
            }
            _ => Err(no_such_path()),
        }
    }
}

impl Answer for NodeServer {
    async fn answer(&self, identity: Identity, request: Request<Incoming>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answer = match identity {
            Identity::Root => match whole(request).await {
                Ok(request) => self.dispatch(request).await,
                Err(error) => Err(error),
            },
            Identity::Node(node) => {
                Err(Error::new(Kind::Denied, format!("node {node:?} may ask nothing of other nodes")))
            }
        };
        answer.unwrap_or_else(|refusal| refused(&method, &path, &refusal))
    }
}
