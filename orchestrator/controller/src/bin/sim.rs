//! `cargo sim`: the controllers against a simulated world.
fn main() {}
