//! Seccomp: the OCI profile compiled to BPF, by our own small compiler, and a default profile.
//!
//! The program looks at the architecture, then finds the system call's range by binary search (a
//! profile of 400 names is about 60 ranges, so six comparisons), then its arguments if it must.
//!
//! Calls of another architecture than the binary's own (32-bit, x32) are decided by their own numbers if the profile
//! lists it, and answered `ENOSYS` if not. Where the default is an errno, calls newer than all that the profile names
//! are answered `ENOSYS`, so that libraries fall back.
//!
//! A profile may leave decisions to an agent (`SCMP_ACT_NOTIFY`): loading the filter yields a descriptor, which the
//! parent fetches from the process and sends to the agent's socket. Until the agent has it nobody answers, so the
//! process makes one call only in between, write(2), which no profile may leave to the agent.
//!
//! Source: seccomp(2); runtime-spec, config-linux.md, "Seccomp".

mod cache;
mod compile;
mod foreign;
mod notify;
mod profile;
mod syscalls;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

pub use crate::sys::Instruction;
pub use cache::Cache;
pub use notify::Agent;
pub use profile::default_profile;

use crate::error::{Error, Result, Step};
use crate::sys;
use compile::{Abi, Action, Rules};

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    program: Vec<Instruction>,
    flags: u32,
    agent: Option<Agent>,
}

/// Source: include/uapi/linux/seccomp.h.
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

impl Filter {
    /// Compiles a profile. Names that this architecture lacks are skipped, as profiles name the
    /// calls of all of them; where skipping would loosen the profile, `warnings` says so.
    ///
    /// # Errors
    /// `Invalid`, naming the field.
    pub fn compile(profile: &LinuxSeccomp, warnings: &mut Vec<String>) -> Result<Self> {
        Self::compile_here(profile, warnings).step("linux.seccomp")
    }

    fn compile_here(profile: &LinuxSeccomp, warnings: &mut Vec<String>) -> Result<Self> {
        let default = action(profile.default_action(), profile.default_errno_ret())?;
        if default.notifies() {
            return Err(Error::invalid("defaultAction", "an agent cannot be asked for everything"));
        }
        let mut all: BTreeMap<Abi, Rules> =
            abis(profile).into_iter().map(|abi| (abi, Rules::new(default))).collect();
        let (mut unknown, mut asks) = (Vec::new(), false);
        for (i, entry) in profile.syscalls().iter().flatten().enumerate() {
            let action = action(entry.action(), entry.errno_ret()).step(format!("syscalls[{i}].action"))?;
            let args = entry.args().as_deref().unwrap_or_default();
            asks |= action.notifies();
            for name in entry.names() {
                if action.notifies() && name == "write" {
                    let field = format!("syscalls[{i}]: write");
                    return Err(Error::invalid(field, "is what a process tells of its agent with"));
                }
                let mut found = false;
                for (abi, rules) in &mut all {
                    let step = || format!("syscalls[{i}]: {name}");
                    if let Some(number) = foreign::number(*abi, name) {
                        rules.add(number, action, args).map_err(|e| e.within(step()))?;
                        found = true;
                    }
                    if *abi == Abi::X86 {
                        found |= add_multiplexed(rules, name, action, !args.is_empty())?;
                    }
                }
                if !found {
                    unknown.push(name.clone());
                }
            }
        }
        if default.permits() && !unknown.is_empty() {
            warnings.push(format!(
                "seccomp: system calls unknown here are not restricted: {}",
                unknown.join(", ")
            ));
        }
        Self::complete(profile, asks, || compile::assemble(&all))
    }

    /// The filter of a profile whose program was compiled before.
    fn around(profile: &LinuxSeccomp, program: Vec<Instruction>) -> Result<Self> {
        let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
        let asks = profile.syscalls().iter().flatten().any(|entry| notifies(entry.action()));
        Self::complete(profile, asks, || Ok(program))
    }

    fn complete(
        profile: &LinuxSeccomp,
        asks: bool,
        program: impl FnOnce() -> Result<Vec<Instruction>>,
    ) -> Result<Self> {
        let agent = match (asks, profile.listener_path()) {
            (false, _) => None,
            (true, Some(path)) if !path.as_os_str().is_empty() => Some(Agent {
                path: path.clone(),
                metadata: profile.listener_metadata().clone().unwrap_or_default(),
            }),
            (true, _) => return Err(Error::invalid("listenerPath", "is needed for SCMP_ACT_NOTIFY")),
        };
        let flags = flags(profile, agent.is_some());
        Ok(Self { program: program()?, flags, agent })
    }

    /// Puts the filter on this process, for good.
    pub(crate) fn load(&self) -> Result<()> {
        sys::seccomp_set_filter(&self.program, self.flags).step("load the seccomp filter")
    }

    /// Who decides what the filter leaves open.
    pub(crate) fn agent(&self) -> Option<&Agent> {
        self.agent.as_ref()
    }

    /// As [`Filter::load`], for a filter with an agent: what the agent listens with.
    pub(crate) fn load_for_agent(&self) -> Result<OwnedFd> {
        sys::seccomp_new_listener(&self.program, self.flags).step("load the seccomp filter")
    }

    /// The program, for tests and for the curious.
    pub fn program(&self) -> &[Instruction] {
        &self.program
    }
}

/// Those that the profile is about, and that this machine has.
fn abis(profile: &LinuxSeccomp) -> Vec<Abi> {
    let foreign = profile.architectures().iter().flatten().filter_map(|arch| match arch {
        Arch::ScmpArchX86 if cfg!(target_arch = "x86_64") => Some(Abi::X86),
        Arch::ScmpArchX32 if cfg!(target_arch = "x86_64") => Some(Abi::X32),
        Arch::ScmpArchArm if cfg!(target_arch = "aarch64") => Some(Abi::Arm),
        _ => None,
    });
    foreign.chain([Abi::Native]).collect()
}

/// The same for i386's way of calling many through one, where it can be seen: conditions on further arguments cannot,
/// being behind a pointer. Then what would be allowed is not, and what would be denied is whatever the arguments.
fn add_multiplexed(rules: &mut Rules, name: &str, action: Action, conditional: bool) -> Result<bool> {
    let Some((through, call, mask)) = foreign::multiplexed(name) else {
        return Ok(false);
    };
    let looser = action.permits() || !rules.default().permits();
    if let (Some(number), false) = (foreign::number(Abi::X86, through), conditional && looser) {
        rules.add_when(number, action, 0, mask, call);
    }
    Ok(true)
}

fn flags(profile: &LinuxSeccomp, asks: bool) -> u32 {
    // Source: include/uapi/linux/seccomp.h.
    let flags = profile.flags().iter().flatten().map(|flag| match flag {
        // There is one thread; with a listener the kernel takes it for a contradiction.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => u32::from(!asks),
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
        // It is about waiting for an agent.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => u32::from(asks) << 5,
    });
    flags.fold(0, |all, flag| all | flag)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action> {
    use LinuxSeccompAction as A;
    // A trapped process finds it in siginfo; it is nobody's business to put one there unasked.
    let given = errno.unwrap_or(0);
    let errno = errno.unwrap_or(nix::libc::EPERM as u32);
    // Source: seccomp(2), SECCOMP_RET_DATA is 16 bits; errnos end at 4095.
    if errno > 4095 {
        return Err(Error::invalid("errnoRet", format!("{errno} is not an errno")));
    }
    Ok(Action(match action {
        A::ScmpActKill | A::ScmpActKillThread => RET_KILL_THREAD,
        A::ScmpActKillProcess => RET_KILL_PROCESS,
        A::ScmpActTrap => RET_TRAP | given,
        A::ScmpActErrno => RET_ERRNO | errno,
        A::ScmpActTrace => RET_TRACE | errno,
        A::ScmpActLog => RET_LOG,
        A::ScmpActAllow => RET_ALLOW,
        A::ScmpActNotify => RET_USER_NOTIF,
    }))
}
