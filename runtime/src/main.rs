//! `podyard-oci`: the runtime behind an OCI command line.
fn main() {}
