//! Refusals, shaped as Kubernetes' `Status`.
//!
//! Source: Kubernetes API conventions, "Response Status Kind"; meta/v1 StatusReason.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::key::Key;
use crate::resource::Resource;

/// What went wrong, in the terms callers decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No such object or path.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The object changed meanwhile, or another holds what was asked for: read again.
    Conflict,
    /// The object breaks a rule; causes name the fields.
    Invalid,
    /// The request cannot be understood.
    BadRequest,
    /// The media type, patch type or feature is not served.
    Unsupported,
    /// The path exists, but not with this verb.
    MethodNotAllowed,
    /// The revision asked for is compacted: list again.
    Gone,
    /// Understood and refused.
    Denied,
    /// Nobody known asks: a token is missing or wrong.
    Unauthorized,
    /// Try later.
    Busy,
    /// Took too long.
    Timeout,
    /// What would have to answer cannot be reached.
    Unavailable,
    /// Our mistake.
    Internal,
}

impl Kind {
    const ALL: [Kind; 14] = [
        Kind::NotFound,
        Kind::AlreadyExists,
        Kind::Conflict,
        Kind::Invalid,
        Kind::BadRequest,
        Kind::Unsupported,
        Kind::MethodNotAllowed,
        Kind::Gone,
        Kind::Denied,
        Kind::Unauthorized,
        Kind::Busy,
        Kind::Timeout,
        Kind::Unavailable,
        Kind::Internal,
    ];

    /// HTTP status code.
    pub fn code(self) -> u16 {
        self.parts().0
    }

    /// Status reason, as in `NotFound`.
    pub fn reason(self) -> &'static str {
        self.parts().1
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(self) -> bool {
        matches!(self, Kind::Busy | Kind::Timeout | Kind::Unavailable | Kind::Internal)
    }

    fn parts(self) -> (u16, &'static str) {
        match self {
            Kind::NotFound => (404, "NotFound"),
            Kind::AlreadyExists => (409, "AlreadyExists"),
            Kind::Conflict => (409, "Conflict"),
            Kind::Invalid => (422, "Invalid"),
            Kind::BadRequest => (400, "BadRequest"),
            Kind::Unsupported => (415, "UnsupportedMediaType"),
            Kind::MethodNotAllowed => (405, "MethodNotAllowed"),
            Kind::Gone => (410, "Expired"),
            Kind::Denied => (403, "Forbidden"),
            Kind::Unauthorized => (401, "Unauthorized"),
            Kind::Busy => (429, "TooManyRequests"),
            Kind::Timeout => (504, "Timeout"),
            Kind::Unavailable => (503, "ServiceUnavailable"),
            Kind::Internal => (500, "InternalError"),
        }
    }
}

/// One broken rule, and the field that breaks it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// Machine-readable, as in `FieldValueRequired`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people, without the field.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Path, as in `spec.containers[0].name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What the refusal is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Details {
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Kind, or plural in answers about paths.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Uid of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Broken rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// Seconds to wait before trying again; 0 means unsaid.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// A refusal; travels as a Kubernetes `Status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What went wrong.
    pub kind: Kind,
    /// For people.
    pub message: String,
    /// What it is about.
    pub details: Box<Details>,
}

impl Error {
    /// An error about no object in particular.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), details: Box::default() }
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// HTTP status code.
    pub fn code(&self) -> u16 {
        self.kind.code()
    }

    /// Status reason.
    pub fn reason(&self) -> &'static str {
        self.kind.reason()
    }

    /// `pods "x" not found`.
    pub fn not_found(key: &Key) -> Error {
        Error::about(
            Kind::NotFound,
            key,
            format!("{} {:?} not found", key.resource.group_resource(), key.name),
        )
    }

    /// `pods "x" already exists`.
    pub fn already_exists(key: &Key) -> Error {
        let message = format!("{} {:?} already exists", key.resource.group_resource(), key.name);
        Error::about(Kind::AlreadyExists, key, message)
    }

    /// `Operation cannot be fulfilled on pods "x": why`.
    pub fn conflict(key: &Key, why: impl fmt::Display) -> Error {
        let what = key.resource.group_resource();
        let message = format!("Operation cannot be fulfilled on {what} {:?}: {why}", key.name);
        Error::about(Kind::Conflict, key, message)
    }

    /// The refusal of a write whose resource version is stale.
    pub fn modified(key: &Key) -> Error {
        Error::conflict(
            key,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// `pods "x" is forbidden: why`.
    pub fn denied(key: &Key, why: impl fmt::Display) -> Error {
        let message = format!("{} {:?} is forbidden: {why}", key.resource.group_resource(), key.name);
        Error::about(Kind::Denied, key, message)
    }

    /// `Pod "x" is invalid: field: message`, one or several causes.
    pub fn invalid(resource: &Resource, name: &str, causes: Vec<Cause>) -> Error {
        let shown: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let list = match shown.as_slice() {
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        Error {
            kind: Kind::Invalid,
            message: format!("{} {name:?} is invalid: {list}", resource.group_kind()),
            details: Box::new(Details {
                name: name.into(),
                group: resource.group.into(),
                kind: resource.kind.into(),
                causes,
                ..Details::default()
            }),
        }
    }

    /// A request that cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Error {
        Error::new(Kind::BadRequest, message)
    }

    /// Our mistake.
    pub fn internal(message: impl fmt::Display) -> Error {
        Error::new(Kind::Internal, format!("Internal error occurred: {message}"))
    }

    /// A revision that is compacted.
    pub fn expired(message: impl Into<String>) -> Error {
        Error::new(Kind::Gone, message)
    }

    /// An error about the object `key`.
    pub fn about(kind: Kind, key: &Key, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            details: Box::new(Details {
                name: key.name.clone(),
                group: key.resource.group.into(),
                kind: key.resource.plural.into(),
                ..Details::default()
            }),
        }
    }

    /// The same error, naming the object's uid.
    pub fn with_uid(mut self, uid: impl Into<String>) -> Error {
        self.details.uid = uid.into();
        self
    }

    /// The body that travels.
    pub fn to_status_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason(),
            "code": self.code(),
        });
        let details = serde_json::to_value(&*self.details).unwrap_or_default();
        if details.as_object().is_some_and(|map| !map.is_empty()) {
            status["details"] = details;
        }
        status
    }

    /// The error in a `Status` body; `None` if it is none, or says success.
    pub fn from_status_json(status: &Value) -> Option<Error> {
        if status["kind"] != "Status" || status["status"] == "Success" {
            return None;
        }
        let reason = status["reason"].as_str().unwrap_or("");
        let code = status["code"].as_u64().unwrap_or(500);
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.reason() == reason)
            .or_else(|| (reason == "Gone").then_some(Kind::Gone))
            .or_else(|| Kind::ALL.into_iter().find(|kind| u64::from(kind.code()) == code))
            .unwrap_or(Kind::Internal);
        Some(Error {
            kind,
            message: status["message"].as_str().unwrap_or("unknown").into(),
            details: Box::new(
                status.get("details").and_then(|d| Details::deserialize(d).ok()).unwrap_or_default(),
            ),
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_round_trip() {
        for kind in Kind::ALL {
            let error = Error::about(kind, &Key::core("pods", "default", "x"), "why").with_uid("u");
            assert_eq!(Error::from_status_json(&error.to_status_json()), Some(error));
        }
        assert_eq!(Error::from_status_json(&json!({"kind": "Pod"})), None);
    }

    #[test]
    fn words() {
        let key = Key::core("pods", "default", "x");
        let check = |error: Error, code: u16, message: &str| {
            assert_eq!((error.code(), error.message.as_str()), (code, message));
        };
        check(Error::not_found(&key), 404, "pods \"x\" not found");
        check(Error::already_exists(&key), 409, "pods \"x\" already exists");
        let cause = |field: &str| Cause {
            reason: "FieldValueRequired".into(),
            message: "Required value".into(),
            field: field.into(),
        };
        let one = Error::invalid(key.resource, "x", vec![cause("a")]);
        check(one, 422, "Pod \"x\" is invalid: a: Required value");
        let two = Error::invalid(key.resource, "x", vec![cause("a"), cause("b")]);
        check(two, 422, "Pod \"x\" is invalid: [a: Required value, b: Required value]");
    }
}
