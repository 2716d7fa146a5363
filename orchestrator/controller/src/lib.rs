//! The controllers: what turns wishes into pods, without doing any of it.
//!
//! `step(input, now, rng) → effects`: told of objects, they answer with calls on the registry, which a driver makes.
//! No clock, no randomness and no I/O is inside, and no map whose order differs between runs (`clippy.toml` of this
//! crate forbids them), so that a seed decides everything and `cargo sim` can replay it. README.md lists what is
//! guaranteed and what a driver must do.
//!
//! Words: a *rule* is one controller; an *item* is a rule and the key it looks at; a *plan* is what a look leads to;
//! a *call* is one registry verb; *in hand* is an item whose calls are not all answered.
#![forbid(unsafe_code)]

mod cache;
mod claim;
mod controllers;
mod driver;
mod effect;
mod endpoints;
mod eviction;
mod gc;
mod hash;
mod ipam;
mod kinds;
mod ledger;
mod namespace;
mod node;
mod plan;
mod pod;
mod queue;
mod replicaset;
mod rules;
mod scheduler;
pub mod sim;
mod statefulset;
#[cfg(test)]
mod testing;
mod toleration;
mod volume;

pub use controllers::Controllers;
pub use driver::perform;
pub use effect::{Call, Effect, Input, Propagation};
