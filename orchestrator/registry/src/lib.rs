//! To be filled: see the crate table in README.md.
