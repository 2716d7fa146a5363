//! What one look at one item leads to.

use api::{Object, Timestamp};
use serde_json::json;

use crate::effect::Call;
use crate::hash::letters;
use crate::kinds::EVENTS;

/// Calls to make now, all at once, and when to look again if nothing happens.
#[derive(Debug, Default)]
pub struct Plan {
    /// The item stays in hand until each is answered, and is looked at again afterwards.
    pub steps: Vec<Step>,
    /// Told whether or not there are steps.
    pub notes: Vec<Note>,
    /// When time alone changes the answer.
    pub wake: Option<Timestamp>,
}

/// A call, and what to tell of it.
#[derive(Debug)]
pub struct Step {
    /// What to do.
    pub call: Call,
    /// Told if it succeeds.
    pub note: Option<Note>,
    /// Told, with the error added, if it fails in a way that time does not heal.
    pub complaints: Vec<Note>,
}

impl Step {
    /// A call that nothing is told of.
    pub fn silent(call: Call) -> Step {
        Step { call, note: None, complaints: Vec::new() }
    }
}

impl Plan {
    /// Adds a call that nothing is told of.
    pub fn call(&mut self, call: Call) {
        self.steps.push(Step::silent(call));
    }

    /// Adds a call that a success and a failure are told of.
    pub fn told(&mut self, call: Call, note: Note, complaint: Note) {
        self.steps.push(Step { call, note: Some(note), complaints: vec![complaint] });
    }

    /// Nothing to do now.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// Something to tell people: becomes an Event.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    about: Object,
    component: &'static str,
    is_warning: bool,
    reason: &'static str,
    message: String,
}

impl Note {
    /// Something that went as it should.
    pub fn normal(about: &Object, component: &'static str, reason: &'static str, message: String) -> Note {
        Note { about: reference(about), component, is_warning: false, reason, message }
    }

    /// Something that did not.
    pub fn warning(about: &Object, component: &'static str, reason: &'static str, message: String) -> Note {
        Note { is_warning: true, ..Note::normal(about, component, reason, message) }
    }

    /// The same with `text` at the end of the message.
    pub fn with(mut self, text: &str) -> Note {
        self.message.push_str(text);
        self
    }

    /// The Event, named by what it says, so that saying it again collides.
    pub fn event(&self, now: Timestamp) -> Object {
        let (name, uid) = (&self.about.0["name"], &self.about.0["uid"]);
        let (name, uid) = (name.as_str().unwrap_or(""), uid.as_str().unwrap_or(""));
        // Cluster objects' events live in `default`, as in Kubernetes.
        let namespace = self.about.0["namespace"].as_str().unwrap_or("default");
        let time = api::time::seconds(now);
        Object(json!({
            "apiVersion": EVENTS.api_version(),
            "kind": EVENTS.kind,
            "metadata": {
                "name": format!("{name}.{}", letters(&[uid, self.reason, &self.message], 12)),
                "namespace": namespace,
            },
            "involvedObject": self.about.0,
            "type": if self.is_warning { "Warning" } else { "Normal" },
            "reason": self.reason,
            "message": self.message,
            "source": {"component": self.component},
            "reportingComponent": self.component,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }))
    }
}

fn reference(object: &Object) -> Object {
    let mut reference = Object(json!({
        "apiVersion": object.api_version(),
        "kind": object.kind(),
        "name": object.name(),
        "uid": object.uid(),
    }));
    if !object.namespace().is_empty() {
        reference.set("namespace", object.namespace());
    }
    reference
}
