//! All nodes as one: a question about a pod goes to the node that it is bound to.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use api::{Error, Key, Kind, Object};
use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::BoxStream;
use hyper::body::Bytes;
use registry::Registry;
use server::yard::{Info, Namespace, NamespaceMap, PodPlan, ServiceMap, StepAction, StepState, Trace};
use server::{ExecRequest, ExecSession, LogOptions, NodeApi};
use store::Store;

use super::fabric::Fabric;
use crate::node_parts::local::LocalNode;

/// The node in this process, and all others.
pub(super) struct Everywhere<S> {
    pub(super) registry: Arc<Registry<S>>,
    pub(super) local: Arc<LocalNode>,
    /// The name of the node in this process.
    pub(super) name: String,
    pub(super) fabric: Arc<Fabric>,
}

impl<S: Store> Everywhere<S> {
    /// The node of this name; the one in this process for none.
    ///
    /// # Errors
    /// `Unavailable`: it is bound to a node that has no agent, or no longer.
    fn node(&self, name: Option<&str>) -> Result<Arc<dyn NodeApi>, Error> {
        match name.filter(|name| !name.is_empty() && *name != self.name) {
            None => Ok(Arc::clone(&self.local) as Arc<dyn NodeApi>),
            Some(name) => match self.fabric.node(name) {
                Some(node) => Ok(Arc::new(node)),
                None if self.registry.get(&Key::core("nodes", "", name)).is_ok() => {
                    Err(Error::new(Kind::Unavailable, format!("node {name:?} has no agent")))
                }
                None => Err(Error::new(Kind::NotFound, format!("nodes {name:?} not found"))),
            },
        }
    }

    /// The node of a pod.
    fn of(&self, pod: &Key) -> Result<Arc<dyn NodeApi>, Error> {
        self.node(self.registry.get(pod)?.get_str("spec.nodeName"))
    }

    /// What one of the nodes still knows of a pod that the API does not.
    async fn trace_of_gone(&self, pod: Key) -> Result<Trace, Error> {
        let here = self.local.trace(pod.clone()).await;
        if here.is_ok() {
            return here;
        }
        let nodes = self.fabric.nodes();
        let answers = join_all(nodes.iter().map(|node| node.trace(pod.clone()))).await;
        answers.into_iter().find(Result::is_ok).unwrap_or(here)
    }
}

impl<S: Store> NodeApi for Everywhere<S> {
    fn logs(
        &self,
        pod: Key,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<Bytes>>, Error>> {
        async move { self.of(&pod)?.logs(pod, options).await }.boxed()
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>> {
        async move { self.of(&request.pod)?.exec(request).await }.boxed()
    }

    fn attach(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecSession, Error>> {
        async move { self.of(&request.pod)?.attach(request).await }.boxed()
    }

    fn trace(&self, pod: Key) -> BoxFuture<'_, Result<Trace, Error>> {
        async move {
            match self.of(&pod) {
                Ok(node) => node.trace(pod).await,
                Err(error) if error.kind() == Kind::NotFound => self.trace_of_gone(pod).await,
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn step(&self, pod: Key, action: StepAction) -> BoxFuture<'_, Result<StepState, Error>> {
        async move { self.of(&pod)?.step(pod, action).await }.boxed()
    }

    fn namespaces(&self) -> BoxFuture<'_, Result<NamespaceMap, Error>> {
        async move {
            let mut all = self.local.namespaces().await?;
            let nodes = self.fabric.nodes();
            let maps = join_all(nodes.iter().map(NodeApi::namespaces)).await;
            for (node, map) in nodes.iter().zip(maps) {
                match map {
                    Ok(map) => join(&mut all, node.name(), map),
                    Err(error) => all.unreachable.push(error.message),
                }
            }
            Ok(all)
        }
        .boxed()
    }

    fn plan(&self, pod: Object) -> BoxFuture<'_, Result<PodPlan, Error>> {
        async move { self.node(pod.get_str("spec.nodeName"))?.plan(pod).await }.boxed()
    }

    fn services(&self, node: Option<String>) -> BoxFuture<'_, Result<ServiceMap, Error>> {
        async move { self.node(node.as_deref())?.services(None).await }.boxed()
    }

    fn info(&self) -> BoxFuture<'_, Result<Info, Error>> {
        self.local.info()
    }
}

/// Adds the map of a further node: what it calls `node` is that node, what it calls `host` is somebody else's to name.
fn join(all: &mut NamespaceMap, node: &str, more: NamespaceMap) {
    let place = |namespace: &Namespace| (namespace.kind.clone(), namespace.inode);
    let mut known: BTreeMap<_, _> =
        all.namespaces.drain(..).map(|namespace| (place(&namespace), namespace)).collect();
    for mut namespace in more.namespaces {
        namespace.pods.retain(|user| user != "host");
        namespace.pods.iter_mut().filter(|user| *user == "node").for_each(|user| *user = node.to_owned());
        match known.get_mut(&place(&namespace)) {
            Some(same) => {
                let new = namespace.pods.into_iter().filter(|user| !same.pods.contains(user));
                same.pods.extend(new.collect::<Vec<_>>());
                same.processes.extend(namespace.processes);
            }
            None if namespace.pods.is_empty() && namespace.processes.is_empty() => {}
            None => drop(known.insert(place(&namespace), namespace)),
        }
    }
    all.namespaces = known.into_values().collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maps_of_nodes_are_one() {
        let namespace = |inode: u64, pods: &[&str]| Namespace {
            kind: "net".into(),
            inode,
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
            ..Namespace::default()
        };
        let map = |namespaces: Vec<Namespace>| NamespaceMap { namespaces, unreachable: Vec::new() };
        let mut all = map(vec![namespace(1, &["host"]), namespace(3, &["node"]), namespace(5, &["d/a"])]);
        join(
            &mut all,
            "n1",
            map(vec![namespace(2, &["node"]), namespace(3, &["host"]), namespace(5, &["d/b"])]),
        );
        let expect = vec![
            namespace(1, &["host"]),
            namespace(2, &["n1"]),
            namespace(3, &["node"]),
            namespace(5, &["d/a", "d/b"]),
        ];
        assert_eq!(all, map(expect));
    }
}
