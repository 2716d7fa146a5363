//! What this runtime can do, in the specification's words: each list is read off the code that does it.

use crate::namespaces::Kind;

/// Kinds of hooks that are run.
pub const HOOKS: [&str; 6] = crate::hooks::NAMES;

/// Whether AppArmor profiles are applied, on a kernel that has it.
pub const APPARMOR: bool = true;

/// Whether SELinux labels are applied, on a kernel that has it.
pub const SELINUX: bool = true;

/// Whether mounts can be id-mapped.
pub const IDMAP: bool = true;

/// Kinds of namespaces, as the specification names them.
pub fn namespaces() -> Vec<&'static str> {
    Kind::ALL.iter().map(|kind| kind.spec_name()).collect()
}

/// Capabilities by name, all that this program knows.
pub fn capabilities() -> Vec<String> {
    let mut all: Vec<_> = caps::all().into_iter().collect();
    all.sort_by_key(caps::Capability::index);
    all.iter().map(ToString::to_string).collect()
}

/// Mount options that are understood; others go to the filesystem.
pub fn mount_options() -> Vec<String> {
    crate::mounts::options::names()
}

/// Seccomp actions.
pub fn seccomp_actions() -> Vec<&'static str> {
    let mut all = vec![
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_TRAP",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_LOG",
        "SCMP_ACT_NOTIFY",
    ];
    all.sort_unstable();
    all
}

/// Comparisons of a system call's arguments.
pub fn seccomp_operators() -> [&'static str; 7] {
    [
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_LE",
        "SCMP_CMP_LT",
        "SCMP_CMP_MASKED_EQ",
        "SCMP_CMP_NE",
    ]
}

/// Architectures whose calls a profile can allow: others are answered `ENOSYS`.
pub fn seccomp_architectures() -> &'static [&'static str] {
    match cfg!(target_arch = "aarch64") {
        true => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        false => &["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
    }
}

/// Flags of a filter.
pub fn seccomp_flags() -> [&'static str; 4] {
    [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ]
}
