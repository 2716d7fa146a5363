//! What goes into the controllers and what comes out.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use api::{Error, Key, Object, Part, Timestamp};

use crate::kinds::NODES;

/// Something the controllers are told.
#[derive(Clone, Debug)]
pub enum Input {
    /// A list of everything is about to be read; until [`Input::Synced`] nothing acts. The state before the first list
    /// is this one.
    Listing,
    /// An object is as given, in the list or by the watch. Old news and repetitions do no harm.
    Changed(Arc<Object>),
    /// An object is gone; its last state, under the revision of its deletion.
    Deleted(Arc<Object>),
    /// The list is complete: what it did not name is gone.
    Synced,
    /// The answer to the call of that id. The object is the one written or read, if there is one now.
    Done {
        /// As in [`Effect::Call`].
        id: u64,
        /// What the registry said.
        result: Result<Option<Object>, Error>,
    },
    /// Time has passed.
    Tick,
}

/// Something the controllers want done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A call on the registry, to be answered by one [`Input::Done`]. Calls of one step may run in any order, or at
    /// once.
    Call {
        /// Given back with the answer; never used twice.
        id: u64,
        /// What to call.
        call: Call,
    },
    /// Send [`Input::Tick`] then. Replaces an earlier wish.
    WakeAt(Timestamp),
}

/// One registry verb with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// `create`. The name says what it is for, so that a repetition collides with itself.
    Create {
        /// The object, its namespace in its metadata.
        object: Object,
    },
    /// `update`, carrying the resource version it was read at.
    Update {
        /// The whole object.
        object: Object,
        /// The part that counts.
        part: Part,
    },
    /// `delete`, if the object still has that uid. A pod has its own grace period: there is no way to say 0, which is
    /// the agent's word that nothing runs any more.
    Delete {
        /// Which.
        key: Key,
        /// Only this incarnation.
        uid: String,
        /// What becomes of what it owns.
        propagation: Propagation,
    },
    /// `bind`: gives a pod its node and its address in one write.
    Bind {
        /// Which pod.
        pod: Key,
        /// Only this incarnation.
        uid: String,
        /// Where it shall run.
        node: String,
        /// Its address; `None` for pods in the host's network.
        pod_ip: Option<IpAddr>,
    },
    /// `get`, from the store itself: settles a doubt.
    Read {
        /// Which.
        key: Key,
        /// The incarnation whose existence is in doubt, for the controllers' own use.
        uid: Option<String>,
    },
    /// Ends all that runs on a node that is not ready, and removes its pods once nothing of it is seen to run. Only a
    /// driver that can reach the node's processes makes it ([`crate::perform`] refuses).
    ///
    /// Succeeds when no pod of the node is left in the store, or when there is nothing to do: the node has no pod with
    /// a deletion timestamp. Refused as `Conflict` if the node is ready again or another one by that name (for an
    /// empty uid: if it exists). `Busy` names what does not die.
    Fence {
        /// The node's name.
        node: String,
        /// Only this incarnation; empty for a node whose object is gone.
        uid: String,
    },
}

impl Call {
    /// The object it is about.
    pub fn key(&self) -> Key {
        match self {
            Call::Create { object } | Call::Update { object, .. } => object.key(),
            Call::Delete { key, .. } | Call::Bind { pod: key, .. } | Call::Read { key, .. } => key.clone(),
            Call::Fence { node, .. } => Key::new(*NODES, "", node),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self {
            Call::Create { .. } => "create",
            Call::Update { part: Part::Status, .. } => "status",
            Call::Update { .. } => "update",
            Call::Delete { .. } => "delete",
            Call::Bind { .. } => "bind",
            Call::Read { .. } => "read",
            Call::Fence { .. } => "fence",
        };
        write!(f, "{verb} {}", self.key())?;
        match self {
            Call::Bind { node, pod_ip: Some(address), .. } => write!(f, " to {node} at {address}"),
            Call::Bind { node, pod_ip: None, .. } => write!(f, " to {node}"),
            _ => Ok(()),
        }
    }
}

/// What becomes of the dependents of what is deleted. meta/v1 DeletionPropagation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay, without owner.
    Orphan,
}
