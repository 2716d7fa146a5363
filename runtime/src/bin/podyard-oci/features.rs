//! `features`: what this runtime can do, for callers that ask before they try.
//!
//! Source: runtime-spec, features.md and features-linux.md.

use runtime::{Result, features};
use serde_json::json;

use crate::store::print;

/// The newest specification that is followed.
pub const SPEC_VERSION: &str = "1.2.0";

/// Prints the document.
pub fn show() -> Result<()> {
    let document = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": features::HOOKS,
        "mountOptions": features::mount_options(),
        "linux": {
            "namespaces": features::namespaces(),
            "capabilities": features::capabilities(),
            "cgroup": {
                "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false,
            },
            "seccomp": {
                "enabled": true,
                "actions": features::seccomp_actions(),
                "operators": features::seccomp_operators(),
                "archs": features::seccomp_architectures(),
                "knownFlags": features::seccomp_flags(),
                "supportedFlags": features::seccomp_flags(),
            },
            "apparmor": {"enabled": features::APPARMOR},
            "selinux": {"enabled": features::SELINUX},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": features::IDMAP}},
        },
        "annotations": {"io.podyard.version": env!("CARGO_PKG_VERSION")},
        "potentiallyUnsafeConfigAnnotations": [],
    });
    print(format_args!("{document:#}"))
}
