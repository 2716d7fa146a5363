//! The default profile: every call of the table, but for those that reach the kernel's
//! administration or have been its way out of containers.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::syscalls;

/// Denied unless the container holds the capability; without one, always.
const DENIED: &[(Option<&str>, &[&str])] = &[
    (
        None,
        &[
            // Keys are not namespaced.
            "add_key",
            "keyctl",
            "request_key",
            // Attack surface out of proportion: io_uring bypasses this filter's view of calls.
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "userfaultfd",
            // Obsolete, or never for programs.
            "create_module",
            "get_kernel_syms",
            "query_module",
            "nfsservctl",
            "_sysctl",
            "sysfs",
            "uselib",
            "ustat",
            "lookup_dcookie",
            "vserver",
            "security",
            "tuxcall",
            "afs_syscall",
            "getpmsg",
            "putpmsg",
            "epoll_ctl_old",
            "epoll_wait_old",
        ],
    ),
    (
        Some("CAP_SYS_ADMIN"),
        &[
            "mount",
            "umount2",
            "pivot_root",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "mount_setattr",
            "setns",
            "unshare",
            "clone3",
            "sethostname",
            "setdomainname",
            "quotactl",
            "quotactl_fd",
            "fanotify_init",
            "swapon",
            "swapoff",
            "lsm_set_self_attr",
        ],
    ),
    (Some("CAP_BPF"), &["bpf"]),
    (Some("CAP_PERFMON"), &["perf_event_open"]),
    (Some("CAP_SYS_BOOT"), &["reboot", "kexec_load", "kexec_file_load"]),
    (Some("CAP_SYS_MODULE"), &["init_module", "finit_module", "delete_module"]),
    (Some("CAP_SYS_PACCT"), &["acct"]),
    (Some("CAP_SYS_PTRACE"), &["kcmp", "pidfd_getfd"]),
    (Some("CAP_SYS_RAWIO"), &["iopl", "ioperm"]),
    (Some("CAP_SYS_TIME"), &["settimeofday", "clock_settime"]),
    (Some("CAP_SYS_TTY_CONFIG"), &["vhangup"]),
    (Some("CAP_SYSLOG"), &["syslog"]),
    (Some("CAP_SYS_CHROOT"), &["chroot"]),
    (Some("CAP_DAC_READ_SEARCH"), &["open_by_handle_at"]),
    (
        Some("CAP_SYS_NICE"),
        &[
            "mbind",
            "set_mempolicy",
            "set_mempolicy_home_node",
            "get_mempolicy",
            "migrate_pages",
            "move_pages",
        ],
    ),
];

/// All namespace flags of clone(2) and unshare(2). The time namespace's bit means a signal number
/// to clone, and is not offered by it.
const NAMESPACES: u64 = 0x7e02_0000;

/// The profile of a container with these capabilities (names such as `CAP_SYS_ADMIN`).
///
/// What a capability is needed for is denied without it; new namespaces (and with them the
/// kernel's mount code) are denied to all but `CAP_SYS_ADMIN`, also through clone. Denied calls
/// answer `EPERM`; clone3, whose flags a filter cannot see, `ENOSYS`, so that libraries use clone.
pub fn default_profile(capabilities: &[&str]) -> LinuxSeccomp {
    let holds = |cap: &Option<&str>| cap.is_some_and(|cap| capabilities.contains(&cap));
    let administrator = holds(&Some("CAP_SYS_ADMIN"));
    let denied: Vec<&str> = DENIED
        .iter()
        .filter(|(capability, _)| !holds(capability))
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    let conditional = ["personality", "socket", "clone", "unshare", "clone3"];
    let allowed = syscalls::all()
        .map(|(name, _)| name)
        .filter(|name| !denied.contains(name) && !conditional.contains(name));
    let mut rules = vec![rule(allowed, &[])];
    if administrator {
        rules.push(rule(["clone", "unshare", "clone3"], &[]));
    } else {
        let none = compare(0, LinuxSeccompOperator::ScmpCmpMaskedEq, NAMESPACES, 0);
        rules.push(rule(["clone"], &[none]));
        // Bit 7 is the time namespace to unshare.
        let none = compare(0, LinuxSeccompOperator::ScmpCmpMaskedEq, NAMESPACES | 0x80, 0);
        rules.push(rule(["unshare"], &[none]));
        rules.push(errno(["clone3"], nix::libc::ENOSYS as u32));
    }
    // Linux and its address space options for old programs; not the others' behaviour.
    for persona in [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        let equal = compare(0, LinuxSeccompOperator::ScmpCmpEq, persona, 0);
        rules.push(rule(["personality"], &[equal]));
    }
    // vsock reaches the hypervisor, whatever the network namespace.
    let vsock = nix::libc::AF_VSOCK as u64;
    let other = compare(0, LinuxSeccompOperator::ScmpCmpNe, vsock, 0);
    rules.push(rule(["socket"], &[other]));
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .syscalls(rules)
        .build()
        .expect("every required field is set")
}

fn entry<'a>(names: impl IntoIterator<Item = &'a str>) -> LinuxSyscallBuilder {
    let names: Vec<String> = names.into_iter().map(str::to_string).collect();
    LinuxSyscallBuilder::default().names(names)
}

fn rule<'a>(names: impl IntoIterator<Item = &'a str>, args: &[LinuxSeccompArg]) -> LinuxSyscall {
    let entry = entry(names).action(LinuxSeccompAction::ScmpActAllow);
    let entry = match args.is_empty() {
        true => entry,
        false => entry.args(args.to_vec()),
    };
    entry.build().expect("every required field is set")
}

fn errno<'a>(names: impl IntoIterator<Item = &'a str>, errno: u32) -> LinuxSyscall {
    entry(names)
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(errno)
        .build()
        .expect("every required field is set")
}

fn compare(index: usize, op: LinuxSeccompOperator, value: u64, two: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value)
        .value_two(two)
        .build()
        .expect("every required field is set")
}
