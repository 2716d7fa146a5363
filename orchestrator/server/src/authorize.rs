//! What a node's agent may do. One pure function over what is asked and what is there.
//!
//! | on | a node may |
//! | --- | --- |
//! | discovery, version, health | read |
//! | services, endpointslices, nodes, namespaces | get, list, watch |
//! | persistentvolumeclaims, persistentvolumes | get |
//! | pods bound to it | get; list and watch with `fieldSelector=spec.nodeName=<itself>`; update `status`; delete with grace period 0 and uid |
//! | its own Node | update `status`, and the labels that tell of the host |
//! | claims of its pods | hold for a pod that is bound to it; let go what it held; each at the resource version it names |
//! | events | create and update those that name it as their source |
//! | its heartbeat | post |
//!
//! Everything else is forbidden: what is not in the table does not exist for a node. Modelled on Kubernetes' node
//! authorizer and NodeRestriction admission ("Using Node Authorization", "Admission Controllers"). Holding claims is
//! Podyard's own: the words are in the API crate's `holder`.

use api::holder::{self, EPOCH_ANNOTATION, HELD_SINCE_ANNOTATION, HOLDER_ANNOTATION, HOLDER_NODE_ANNOTATION};
use api::{Error, FieldSelector, Key, Kind, Object, Resource};
use serde_json::{Map, Value};

use crate::identity::Identity;

/// The annotations of a claim that an agent writes.
const HOLDER_ANNOTATIONS: [&str; 4] =
    [HOLDER_ANNOTATION, HOLDER_NODE_ANNOTATION, HELD_SINCE_ANNOTATION, EPOCH_ANNOTATION];

/// The labels of its own Node that an agent writes.
const NODE_LABELS: [&str; 3] = ["kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch"];

/// What the server sets, and a writer cannot.
const SERVER_METADATA: [&str; 7] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
];

/// What is done. Kubernetes' words for it, except that a stream into a pod is `Connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the API's own verbs")]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    Connect,
}

/// What it is done to.
#[derive(Clone, Debug)]
pub enum Target<'a> {
    /// Discovery, version, health.
    Discovery,
    /// Objects.
    Objects {
        /// Their kind.
        resource: &'static Resource,
        /// `None` for all, and for kinds outside namespaces.
        namespace: Option<&'a str>,
        /// `None` for a collection.
        name: Option<&'a str>,
        /// As `status`.
        subresource: Option<&'a str>,
        /// Which of a collection.
        fields: &'a FieldSelector,
    },
    /// The heartbeat of the node of this name.
    Heartbeat(&'a str),
    /// A path that Kubernetes does not have.
    Yard,
}

/// A request, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    /// What is done.
    pub verb: Verb,
    /// To what.
    pub target: Target<'a>,
    /// What was sent; null for nothing.
    pub body: &'a Value,
}

/// What is there.
pub trait Lookup {
    /// The object under a key.
    fn get(&self, key: &Key) -> Option<Object>;
    /// The pod with a uid.
    fn pod_by_uid(&self, namespace: &str, uid: &str) -> Option<Object>;
}

/// Whether `identity` may do this.
///
/// What is there is read once, before the write: a write that depends on it must name the resource version, which the
/// registry compares again as it commits.
///
/// # Errors
/// `Denied` with the rule that forbids it.
pub fn authorize(identity: &Identity, request: &Attributes<'_>, objects: &impl Lookup) -> Result<(), Error> {
    let Identity::Node(node) = identity else { return Ok(()) };
    let allowed = match &request.target {
        Target::Discovery => if_that(request.verb == Verb::Get, "discovery can only be read"),
        Target::Heartbeat(of) => if_that(of == node, "it may only send its own heartbeat"),
        Target::Yard => Err("this path is not for nodes".to_owned()),
        Target::Objects { resource, namespace, name, subresource, fields } => {
            let asked =
                Asked { node, verb: request.verb, namespace, name: *name, body: request.body, objects };
            match (resource.stored().plural, *subresource) {
                ("services" | "endpointslices" | "nodes" | "namespaces", None)
                    if matches!(request.verb, Verb::Get | Verb::List | Verb::Watch) =>
                {
                    Ok(())
                }
                ("persistentvolumes", None) if request.verb == Verb::Get => Ok(()),
                ("persistentvolumeclaims", None) => asked.claim(resource),
                ("pods", part) => asked.pod(part, fields),
                ("nodes", part) => asked.own_node(part),
                ("events", None) => asked.event(),
                _ => Err("no rule allows a node to do this".to_owned()),
            }
        }
    };
    allowed.map_err(|why| refusal(node, request, &why))
}

fn if_that(holds: bool, why: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why.to_owned()) }
}

/// In the words of Kubernetes' authorizers, which name clients sort by.
fn refusal(node: &str, request: &Attributes<'_>, why: &str) -> Error {
    let verb = format!("{:?}", request.verb).to_ascii_lowercase();
    let what = match &request.target {
        Target::Objects { resource, name, subresource, .. } => {
            let mut what = resource.group_resource();
            for piece in [name, subresource].into_iter().flatten() {
                what = format!("{what}/{piece}");
            }
            what
        }
        Target::Discovery | Target::Yard => "this path".into(),
        Target::Heartbeat(of) => format!("the heartbeat of node {of}"),
    };
    Error::new(Kind::Denied, format!("node {node:?} is forbidden to {verb} {what}: {why}"))
}

/// One request of one node, about objects.
struct Asked<'a, L> {
    node: &'a str,
    verb: Verb,
    namespace: &'a Option<&'a str>,
    name: Option<&'a str>,
    body: &'a Value,
    objects: &'a L,
}

impl<L: Lookup> Asked<'_, L> {
    /// The object that is named, if it is there. If not, the verb itself answers so.
    fn there(&self, resource: &'static Resource) -> Option<Object> {
        self.objects.get(&Key::new(resource, self.namespace.unwrap_or_default(), self.name?))
    }

    fn pod(&self, part: Option<&str>, fields: &FieldSelector) -> Result<(), String> {
        let own = |pod: &Object| pod.get_str("spec.nodeName") == Some(self.node);
        let there = || self.there(Key::core("pods", "", "").resource);
        let is_own_or_missing =
            || if_that(there().as_ref().is_none_or(own), "the pod is not bound to this node");
        match (part, self.verb) {
            (None, Verb::Get) => is_own_or_missing(),
            (None, Verb::List | Verb::Watch) => if_that(
                fields.equals("spec.nodeName") == Some(self.node),
                "it must select its own pods, with fieldSelector=spec.nodeName",
            ),
            (Some("status"), Verb::Update) => is_own_or_missing(),
            (None, Verb::Delete) => {
                let ends_here = self.body["gracePeriodSeconds"].as_u64() == Some(0)
                    && self.body["preconditions"]["uid"].as_str().is_some_and(|uid| !uid.is_empty());
                if_that(ends_here, "it may only finish a deletion: grace period 0, and the uid")?;
                is_own_or_missing()
            }
            _ => Err("no rule allows a node to do this".to_owned()),
        }
    }

    fn own_node(&self, part: Option<&str>) -> Result<(), String> {
        if_that(self.name == Some(self.node), "it may only write its own Node")?;
        match (part, self.verb) {
            (Some("status"), Verb::Update) => Ok(()),
            (None, Verb::Update) => {
                let Some(old) = self.there(Key::core("nodes", "", "").resource) else { return Ok(()) };
                let (old, new) = (without_status(&old.0), without_status(self.body));
                let same = without(&old, "labels", &NODE_LABELS) == without(&new, "labels", &NODE_LABELS);
                if_that(same, "it may only write its status and the labels that tell of the host")
            }
            _ => Err("no rule allows a node to do this".to_owned()),
        }
    }

    fn claim(&self, resource: &'static Resource) -> Result<(), String> {
        match self.verb {
            Verb::Get => return Ok(()),
            Verb::Update => {}
            _ => return Err("no rule allows a node to do this".to_owned()),
        }
        let Some(old) = self.there(resource) else { return Ok(()) };
        let new = Object(self.body.clone());
        let version = |claim: &Object| claim.get_str("metadata.resourceVersion").map(str::to_owned);
        if_that(version(&new).is_some(), "it must name the resource version")?;
        // Another version is a conflict, which the registry tells.
        if version(&new) != version(&old) {
            return Ok(());
        }
        let same = |object: &Object| without(&without_status(&object.0), "annotations", &HOLDER_ANNOTATIONS);
        if_that(same(&old) == same(&new), "it may only hold the claim or let it go")?;
        let (was, is) = (Held::of(&old), Held::of(&new));
        let had = was.holder.is_none() || self.has(&was, old.namespace());
        match is.holder {
            _ if was == is => Ok(()),
            None => if_that(had && is.epoch == was.epoch, "it does not hold the claim"),
            Some(uid) => {
                if_that(had, "a pod of another node holds the claim")?;
                if_that(is.node == Some(self.node), "it may only hold the claim for itself")?;
                if_that(
                    is.epoch == was.epoch + 1,
                    "each holder has an epoch of its own, one after the other",
                )?;
                let pod = self.objects.pod_by_uid(old.namespace(), uid);
                let uses = |pod: &Object| {
                    pod.get_str("spec.nodeName") == Some(self.node)
                        && pod
                            .get_array("spec.volumes")
                            .iter()
                            .any(|volume| volume["persistentVolumeClaim"]["claimName"] == old.name())
                };
                if_that(pod.as_ref().is_some_and(uses), "no pod of this node with that uid uses the claim")
            }
        }
    }

    /// Whether the claim's holder is this node's to speak for.
    fn has(&self, held: &Held<'_>, namespace: &str) -> bool {
        match (held.node, held.holder) {
            (Some(node), _) => node == self.node,
            (None, Some(uid)) => {
                let pod = self.objects.pod_by_uid(namespace, uid);
                pod.is_some_and(|pod| pod.get_str("spec.nodeName") == Some(self.node))
            }
            (None, None) => true,
        }
    }

    fn event(&self) -> Result<(), String> {
        let ours = |event: &Value| event["source"]["host"] == self.node;
        match self.verb {
            Verb::Create => if_that(ours(self.body), "an Event of a node names it as source.host"),
            Verb::Get | Verb::Update => {
                let there = self.there(Key::core("events", "", "").resource);
                let is_ours = there.is_none_or(|event| ours(&event.0));
                let stays_ours = self.verb == Verb::Get || ours(self.body);
                if_that(is_ours && stays_ours, "the Event is of another source")
            }
            _ => Err("no rule allows a node to do this".to_owned()),
        }
    }
}

/// Who holds a claim.
#[derive(PartialEq)]
struct Held<'a> {
    holder: Option<&'a str>,
    node: Option<&'a str>,
    epoch: u64,
}

impl Held<'_> {
    fn of(claim: &Object) -> Held<'_> {
        Held { holder: holder::holder(claim), node: holder::holder_node(claim), epoch: holder::epoch(claim) }
    }
}

/// What a write of the main part can change.
fn without_status(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        SERVER_METADATA.iter().for_each(|field| drop(metadata.remove(*field)));
    }
    object
}

/// The object without some of its labels or annotations; no entries and no map are the same.
fn without(object: &Value, map: &str, names: &[&str]) -> Value {
    let mut object = object.clone();
    let mut entries = object["metadata"][map].as_object().cloned().unwrap_or_default();
    names.iter().for_each(|name| drop(entries.remove(*name)));
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    if let Some(metadata) = metadata {
        metadata.insert(map.to_owned(), Value::Object(Map::from_iter(entries)));
    }
    object
}

#[cfg(test)]
#[path = "authorize_tests.rs"]
mod tests;
