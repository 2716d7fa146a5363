//! Seccomp: the OCI profile compiled to BPF, by our own small compiler, and a default profile.
//!
//! The program looks at the architecture, then finds the system call's range by binary search (a
//! profile of 400 names is about 60 ranges, so six comparisons), then its arguments if it must.
//!
//! Calls of another architecture than the binary's own (32-bit, x32) are answered `ENOSYS`
//! whatever the profile says about them: stricter, never looser. Where the default is an errno,
//! calls newer than our table are answered `ENOSYS`, so that libraries fall back.
//!
//! Source: seccomp(2); runtime-spec, config-linux.md, "Seccomp".

mod compile;
mod profile;
mod syscalls;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

pub use crate::sys::Instruction;
pub use profile::default_profile;

use crate::error::{Error, Result, Step};
use crate::sys;
use compile::{Action, Rules};

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    program: Vec<Instruction>,
    flags: u32,
}

/// Source: include/uapi/linux/seccomp.h.
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

impl Filter {
    /// Compiles a profile. Names that this architecture lacks are skipped, as profiles name the
    /// calls of all of them; where skipping would loosen the profile, `warnings` says so.
    ///
    /// # Errors
    /// `Unsupported` for notify actions and listeners, `Invalid` for bad arguments.
    pub fn compile(profile: &LinuxSeccomp, warnings: &mut Vec<String>) -> Result<Self> {
        Self::compile_here(profile, warnings).step("linux.seccomp")
    }

    fn compile_here(profile: &LinuxSeccomp, warnings: &mut Vec<String>) -> Result<Self> {
        if profile.listener_path().is_some() {
            return Err(Error::unsupported("listenerPath", "not offered"));
        }
        let default = action(profile.default_action(), profile.default_errno_ret())?;
        let mut rules = Rules::new(default);
        let mut unknown = Vec::new();
        for (i, entry) in profile.syscalls().iter().flatten().enumerate() {
            let action = action(entry.action(), entry.errno_ret()).step(format!("syscalls[{i}].action"))?;
            for name in entry.names() {
                match syscalls::number(name) {
                    Some(number) => rules
                        .add(number, action, entry.args().as_deref().unwrap_or_default())
                        .step(format!("syscalls[{i}]: {name}"))?,
                    None => unknown.push(name.clone()),
                }
            }
        }
        if default.permits() && !unknown.is_empty() {
            warnings.push(format!(
                "seccomp: system calls unknown here are not restricted: {}",
                unknown.join(", ")
            ));
        }
        let mut flags = 0;
        for flag in profile.flags().iter().flatten() {
            flags |= match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 1,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    return Err(Error::unsupported("flags", "no listener, nothing to wait for"));
                }
            };
        }
        Ok(Self { program: rules.assemble(syscalls::highest())?, flags })
    }

    /// Puts the filter on this process, for good.
    pub(crate) fn load(&self) -> Result<()> {
        sys::seccomp_set_filter(&self.program, self.flags).step("load the seccomp filter")
    }

    /// The program, for tests and for the curious.
    pub fn program(&self) -> &[Instruction] {
        &self.program
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action> {
    use LinuxSeccompAction as A;
    let errno = errno.unwrap_or(nix::libc::EPERM as u32);
    // Source: seccomp(2), SECCOMP_RET_DATA is 16 bits; errnos end at 4095.
    if errno > 4095 {
        return Err(Error::invalid("errnoRet", format!("{errno} is not an errno")));
    }
    Ok(Action(match action {
        A::ScmpActKill | A::ScmpActKillThread => RET_KILL_THREAD,
        A::ScmpActKillProcess => RET_KILL_PROCESS,
        A::ScmpActTrap => RET_TRAP,
        A::ScmpActErrno => RET_ERRNO | errno,
        A::ScmpActTrace => RET_TRACE | errno,
        A::ScmpActLog => RET_LOG,
        A::ScmpActAllow => RET_ALLOW,
        A::ScmpActNotify => {
            return Err(Error::unsupported("SCMP_ACT_NOTIFY", "no listeners"));
        }
    }))
}
