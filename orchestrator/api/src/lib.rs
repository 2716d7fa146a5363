//! Podyard's API, as pure data and functions: kinds, objects, errors, admission, patches, selectors, tables.
//!
//! ```text
//! bytes ── convert ── admission (strict walk → defaults → validation) ── Object ── store
//!                        ▲ schema table                                    │
//!                                                       table, scale, describe, selectors
//! ```
//!
//! Nothing here does I/O, reads a clock or draws a random number: time, uid and name suffix are passed in.
//! Words: a *resource* is a served kind; an *object* is one canonical JSON tree of it; a *key* is its identity;
//! a *part* is what one write may change (main, status, scale).
#![forbid(unsafe_code)]

pub mod admission;
pub mod convert;
mod defaults;
pub mod describe;
pub mod discovery;
pub mod error;
pub mod holder;
pub mod key;
pub mod node;
pub mod object;
mod ordinals;
pub mod patch;
pub mod quantity;
pub mod resource;
pub mod scale;
pub mod schema;
pub mod selector;
pub mod storage;
mod strategic;
pub mod support;
pub mod table;
pub mod time;
mod validate;
mod walk;

pub use admission::{
    AdmitContext, Admitted, FieldValidation, Part, admit_create, admit_update, admit_update_with,
};
pub use defaults::qos_class;
pub use error::{Cause, Details, Error, Kind};
pub use jiff::Timestamp;
pub use k8s_openapi;
pub use key::Key;
pub use object::{Object, OwnerReference};
pub use ordinals::{RESERVED_ORDINALS, parse_ordinals};
pub use resource::{RESOURCES, Resource, resource_by_any_name, resource_by_plural, resource_for_kind};
pub use selector::{FieldSelector, LabelSelector};
