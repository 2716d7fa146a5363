//! A process of a container, be it the first or an exec: identity, rights, limits, program.
//!
//! [`Settling`] is the second half of both scripts (init.rs, exec.rs), in the order that the
//! rights involved dictate.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::Resource;
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{PosixRlimitType, Process};
use rustix::fs::{Mode, OFlags};

use crate::attributes::Attributes;
use crate::capabilities::CapabilitySets;
use crate::console::WindowSize;
use crate::error::{Call, Error, Kind, Result, Step};
use crate::labels::Labels;
use crate::mounts::beneath::{self, Links};
use crate::program;
use crate::protocol::{Ask, Channel};
use crate::seccomp::Filter;
use crate::sys;

/// What is decided about a process before it exists.
#[derive(Clone, Debug)]
pub struct ProcessPlan {
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: PathBuf,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
    pub(crate) umask: Option<u32>,
    pub(crate) capabilities: CapabilitySets,
    pub(crate) no_new_privileges: bool,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) attributes: Attributes,
    pub(crate) labels: Labels,
    /// Whether the spec wants a terminal; the caller decides by what it passes as stdio.
    pub terminal: bool,
    /// The terminal's first size.
    pub window: Option<WindowSize>,
    /// Whether it gets a session keyring of its own, and with it none of the caller's keys.
    pub new_keyring: bool,
    /// Whether a program that is not there is told of before the process is ready, and not when it is to be run.
    pub program_first: bool,
    /// Whether what its terminal shows is copied to another terminal, which ends lines in its own way.
    pub relayed: bool,
    /// How many of the caller's descriptors, from 3 on, the program gets. None of the host's, unless asked for.
    pub preserved_fds: u32,
}

/// A resource limit.
#[derive(Clone, Debug)]
pub(crate) struct Rlimit {
    name: String,
    resource: Resource,
    soft: u64,
    hard: u64,
}

/// Whose limits are set.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// This process's.
    Own,
    /// A child's.
    Child(i32),
}

impl Target {
    /// As the calls concerned take it.
    fn pid(self) -> i32 {
        match self {
            Target::Own => 0,
            Target::Child(pid) => pid,
        }
    }
}

/// Where a process's standard input, output and error go.
#[derive(Debug)]
pub enum Stdio {
    /// These three, in order.
    Fds([OwnedFd; 3]),
    /// A new pseudo-terminal of the container's; its master end is returned.
    Terminal(Option<WindowSize>),
}

/// Longest `/etc/passwd` read for `HOME`. The file is the image's.
const PASSWD_BYTES_MAX: u64 = 1 << 20;

impl ProcessPlan {
    /// Checks the spec's process.
    ///
    /// # Errors
    /// `Invalid` or `Unsupported`, naming the field.
    pub fn from_spec(process: &Process) -> Result<Self> {
        let strings = |field: &str, list: &[String]| {
            list.iter()
                .map(|s| {
                    CString::new(s.as_str())
                        .map_err(|_| Error::invalid(format!("process.{field}"), "contains NUL"))
                })
                .collect::<Result<Vec<_>>>()
        };
        let args = strings("args", process.args().as_deref().unwrap_or_default())?;
        if args.first().is_none_or(|a| a.is_empty()) {
            return Err(Error::invalid("process.args", "is empty"));
        }
        crate::validate::inside("process.cwd", process.cwd())?;
        let user = process.user();
        let groups = user.additional_gids().as_deref().unwrap_or_default();
        // -1 means "no change" to the set*id calls: it would leave the process root. What is negative to those who
        // read IDs as signed numbers is refused with it.
        for id in [user.uid(), user.gid()].iter().chain(groups) {
            if *id > i32::MAX as u32 {
                return Err(Error::invalid("process.user", format!("{id} is above {}", i32::MAX)));
            }
        }
        Ok(Self {
            args,
            env: last_of_each(strings("env", process.env().as_deref().unwrap_or_default())?),
            cwd: process.cwd().clone(),
            uid: Uid::from_raw(user.uid()),
            gid: Gid::from_raw(user.gid()),
            groups: groups.iter().map(|g| Gid::from_raw(*g)).collect(),
            umask: user.umask(),
            capabilities: CapabilitySets::from_spec(process.capabilities().as_ref())?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            rlimits: process
                .rlimits()
                .iter()
                .flatten()
                .map(|r| rlimit(r.typ(), r.soft(), r.hard()))
                .collect::<Result<Vec<_>>>()?,
            oom_score_adj: process.oom_score_adj(),
            attributes: Attributes::from_spec(process)?,
            labels: Labels::from_spec(process)?,
            terminal: process.terminal().unwrap_or(false),
            window: process.console_size().and_then(|size| {
                Some(WindowSize {
                    rows: u16::try_from(size.height()).ok()?,
                    columns: u16::try_from(size.width()).ok()?,
                })
            }),
            new_keyring: true,
            program_first: true,
            relayed: false,
            preserved_fds: 0,
        })
    }

    /// Adds what the container's spec has for all of its processes: personality and memory policy.
    ///
    /// # Errors
    /// `Invalid` or `Unsupported`, naming the field.
    pub fn within(mut self, linux: &oci_spec::runtime::Linux) -> Result<Self> {
        self.attributes.within(linux)?;
        Ok(self)
    }

    /// Sets resource limits, the out-of-memory score, scheduling and I/O priority. What may not be raised is clamped or
    /// left, with a warning, if the process can do with less.
    pub(crate) fn limit(
        &self,
        target: Target,
        oom_file: impl FnOnce() -> Result<OwnedFd>,
    ) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for limit in &self.rlimits {
            warnings.extend(limit.set(target)?);
        }
        if let Some(wanted) = self.oom_score_adj {
            warnings.extend(set_oom_score_adj(wanted, oom_file)?);
        }
        self.attributes.prioritize(target.pid())?;
        Ok(warnings)
    }

    /// [`ProcessPlan::limit`] for a child, which has asked for it.
    pub(crate) fn limit_child(&self, pid: i32) -> Result<Vec<String>> {
        let path = format!("/proc/{pid}/oom_score_adj");
        let file = || {
            rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .call(|| format!("open({path:?})"))
        };
        self.limit(Target::Child(pid), file)
    }

    /// The descriptors that the program gets beside its standard streams.
    pub(crate) fn preserved(&self) -> impl Iterator<Item = std::os::fd::RawFd> {
        let end = 3_i32.saturating_add(i32::try_from(self.preserved_fds).unwrap_or(i32::MAX - 3));
        3..end
    }
}

fn rlimit(typ: PosixRlimitType, soft: u64, hard: u64) -> Result<Rlimit> {
    use PosixRlimitType as T;
    let (name, resource) = match typ {
        T::RlimitCpu => ("RLIMIT_CPU", Resource::RLIMIT_CPU),
        T::RlimitFsize => ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
        T::RlimitData => ("RLIMIT_DATA", Resource::RLIMIT_DATA),
        T::RlimitStack => ("RLIMIT_STACK", Resource::RLIMIT_STACK),
        T::RlimitCore => ("RLIMIT_CORE", Resource::RLIMIT_CORE),
        T::RlimitRss => ("RLIMIT_RSS", Resource::RLIMIT_RSS),
        T::RlimitNproc => ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
        T::RlimitNofile => ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
        T::RlimitMemlock => ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
        T::RlimitAs => ("RLIMIT_AS", Resource::RLIMIT_AS),
        T::RlimitLocks => ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS),
        T::RlimitSigpending => ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
        T::RlimitMsgqueue => ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
        T::RlimitNice => ("RLIMIT_NICE", Resource::RLIMIT_NICE),
        T::RlimitRtprio => ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
        T::RlimitRttime => ("RLIMIT_RTTIME", Resource::RLIMIT_RTTIME),
    };
    if soft > hard {
        let field = format!("process.rlimits: {name}");
        return Err(Error::invalid(field, "soft is above hard"));
    }
    Ok(Rlimit { name: name.to_string(), resource, soft, hard })
}

impl Rlimit {
    fn set(&self, target: Target) -> Result<Option<String>> {
        let Rlimit { name, resource, soft, hard } = self;
        let pid = target.pid();
        match sys::prlimit(pid, *resource, Some((*soft, *hard))) {
            Ok(_) => return Ok(None),
            Err(Errno::EPERM) => {}
            Err(e) => return Err(Error::sys(format!("prlimit({pid}, {name}, {soft}, {hard})"), e)),
        }
        let (_, max) = sys::prlimit(pid, *resource, None).call(|| format!("prlimit({pid}, {name})"))?;
        let (soft, clamped) = ((*soft).min(max), (*hard).min(max));
        sys::prlimit(pid, *resource, Some((soft, clamped)))
            .call(|| format!("prlimit({pid}, {name}, {soft}, {clamped})"))?;
        Ok(Some(format!("{name} {hard} clamped to {clamped}: no CAP_SYS_RESOURCE")))
    }
}

fn set_oom_score_adj(wanted: i32, file: impl FnOnce() -> Result<OwnedFd>) -> Result<Option<String>> {
    let step = format!("set oom_score_adj to {wanted}");
    let file = file().step(&step)?;
    match rustix::io::write(&file, wanted.to_string().as_bytes()) {
        Ok(_) => Ok(None),
        // Lowering it needs CAP_SYS_RESOURCE. The process runs, but is a likelier victim.
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
            Ok(Some(format!("oom_score_adj {wanted} refused: no CAP_SYS_RESOURCE")))
        }
        Err(e) => Err(e).call(|| "write(oom_score_adj)".into()).step(step),
    }
}

/// Of variables set more than once, the last: programs differ in which they would take.
fn last_of_each(env: Vec<CString>) -> Vec<CString> {
    let name = |entry: &CString| entry.as_bytes().split(|b| *b == b'=').next().unwrap_or_default().to_vec();
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<CString> = env.into_iter().rev().filter(|entry| seen.insert(name(entry))).collect();
    kept.reverse();
    kept
}

/// The steps between "in the right namespaces" and "running the program".
pub(crate) struct Settling<'a, 'fd> {
    pub(crate) process: &'a ProcessPlan,
    pub(crate) seccomp: Option<&'a Filter>,
    /// The root of the container, as a directory.
    pub(crate) root: BorrowedFd<'fd>,
    /// A procfs nobody else has mounted, for this process's PID namespace.
    pub(crate) proc: BorrowedFd<'fd>,
    /// Standard input, output and error, none of them numbered 0 to 2.
    pub(crate) stdio: [BorrowedFd<'fd>; 3],
    pub(crate) terminal: bool,
    /// Whether it is in another user namespace than its parent.
    pub(crate) user_namespace: bool,
    /// Where the parent is asked for what it takes.
    pub(crate) channel: &'a Channel,
}

/// A process ready to run its program.
pub(crate) struct Settled<'a> {
    program: Result<CString>,
    args: &'a [CString],
    env: Vec<CString>,
    /// Loaded last if it may be, so that it need not allow the steps before.
    seccomp: Option<&'a Filter>,
    /// Those to take once the filter is loaded, if loading it needs others.
    capabilities: Option<CapabilitySets>,
    /// Where the parent is asked for what it takes.
    channel: &'a Channel,
}

impl<'a> Settling<'a, '_> {
    /// Every step but the last. The order is the order of the rights each step needs.
    pub(crate) fn settle(self, warnings: &mut Vec<String>) -> Result<Settled<'a>> {
        let process = self.process;
        match self.user_namespace {
            // Not even what is lowered: its files in procfs are the host's.
            true => drop(self.channel.ask(Ask::Limits)?),
            false => {
                let file = || own_file(self.proc, "oom_score_adj");
                warnings.extend(process.limit(Target::Own, file)?);
            }
        }
        if process.new_keyring {
            warnings.extend(leave_keyring()?);
        }
        process.attributes.apply()?;
        process.labels.apply(self.proc)?;
        self.set_stdio().step("stdio")?;
        if let Some(umask) = process.umask {
            sys::umask(umask);
        }
        let env = self.environment();

        let mut capabilities = process.capabilities.clone();
        capabilities.limit(warnings)?;
        // With the runtime's rights, as runc and crun do: a home may lie where only its owner or root can pass. Nothing
        // is gained but the way there: what is in it is looked up with the user's rights.
        let entered = self.change_directory();
        // The permitted set survives setresuid, so that `apply` has something to choose from.
        nix::sys::prctl::set_keepcaps(true).call(|| "prctl(PR_SET_KEEPCAPS, 1)".into())?;
        let (uid, gid) = (process.uid, process.gid);
        warnings.extend(self.set_groups()?);
        nix::unistd::setresgid(gid, gid, gid).call(|| format!("setresgid({gid})"))?;
        nix::unistd::setresuid(uid, uid, uid).call(|| format!("setresuid({uid})"))?;
        // Without no_new_privs only CAP_SYS_ADMIN may load a filter, and it is kept that long, without effect.
        let privileged = self.seccomp.is_some() && !process.no_new_privileges;
        match privileged {
            true => capabilities.take_effective()?,
            false => capabilities.apply()?,
        }
        if process.no_new_privileges {
            nix::sys::prctl::set_no_new_privs().call(|| "prctl(PR_SET_NO_NEW_PRIVS, 1)".into())?;
        }
        // As the user, where root may not: on a network filesystem, or in a user namespace.
        let entered = match entered {
            Err(e) if e.kind() == Kind::Denied => self.change_directory(),
            other => other,
        };
        entered.step(format!("chdir to {}", process.cwd.display()))?;
        sys::close_range_cloexec(3_u32.saturating_add(process.preserved_fds), Some(self.proc))?;
        let program = match program::find(&process.args[0], &env) {
            Err(error) if process.program_first => return Err(error),
            found => found,
        };
        Ok(Settled {
            program,
            args: &process.args,
            env,
            seccomp: self.seccomp,
            capabilities: privileged.then_some(capabilities),
            channel: self.channel,
        })
    }

    /// Where a user namespace denies it, the groups were given up before it was entered.
    fn set_groups(&self) -> Result<Option<String>> {
        let groups = &self.process.groups;
        match nix::unistd::setgroups(groups) {
            Ok(()) => return Ok(None),
            Err(Errno::EPERM) => {}
            Err(e) => return Err(Error::sys(format!("setgroups({groups:?})"), e)),
        }
        let held = nix::unistd::getgroups().call(|| "getgroups()".into())?;
        if !held.is_empty() || self.setgroups_file()?.trim() != "deny" {
            return Err(Error::sys(format!("setgroups({groups:?})"), Errno::EPERM));
        }
        let groups: Vec<u32> = groups.iter().map(|group| group.as_raw()).collect();
        let text = || format!("additional groups {groups:?} refused: the user namespace denies setgroups");
        Ok((!groups.is_empty()).then(text))
    }

    fn setgroups_file(&self) -> Result<String> {
        let path = own_path(self.proc, "setgroups")?;
        let file = open_in(self.proc, &path, OFlags::RDONLY)?;
        std::io::read_to_string(std::fs::File::from(file)).call(|| "read(setgroups)".into())
    }

    fn set_stdio(&self) -> Result<()> {
        let (uid, gid) = (self.process.uid, self.process.gid);
        for (fd, target) in self.stdio.iter().zip(0..) {
            let stat = rustix::fs::fstat(fd).call(|| format!("fstat(stdio {target})"))?;
            let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            let own = self.terminal || kind == rustix::fs::FileType::Fifo;
            // /dev/stdout is opened anew by some programs, with the user's rights.
            if own && !uid.is_root() {
                // A terminal stays its group's, by which others may write to it.
                let group = (!self.terminal).then_some(gid);
                match nix::unistd::fchown(fd, Some(uid), group) {
                    // A pipe of another filesystem or user namespace: the program may still use
                    // the descriptor it has.
                    Ok(()) | Err(Errno::EPERM | Errno::EINVAL | Errno::EROFS) => {}
                    Err(e) => return Err(Error::sys(format!("fchown(stdio {target})"), e)),
                }
            }
            sys::dup_to(*fd, target)?;
        }
        if self.terminal {
            sys::set_controlling_terminal(self.stdio[0])?;
            if self.process.relayed {
                keep_line_ends(self.stdio[0])?;
            }
        }
        Ok(())
    }

    /// The plan's environment, with `HOME` from the image's passwd file if it has none or an empty one.
    fn environment(&self) -> Vec<CString> {
        let mut env = self.process.env.clone();
        env.retain(|e| e.as_bytes() != b"HOME=");
        if !env.iter().any(|e| e.as_bytes().starts_with(b"HOME=")) {
            let home = home_of(self.root, self.process.uid).unwrap_or_else(|| "/".into());
            env.extend(CString::new(format!("HOME={home}")).ok());
        }
        env
    }

    /// Enters the working directory, which must lie in the container: not be a descriptor of the
    /// host's that `/proc/self/fd/N` names (CVE-2024-21626).
    fn change_directory(&self) -> Result<()> {
        let cwd = &self.process.cwd;
        let dir = beneath::open(self.root, cwd, OFlags::PATH | OFlags::DIRECTORY, Links::Follow)?;
        rustix::process::fchdir(&dir).call(|| "fchdir(cwd)".into())?;
        let now = nix::unistd::getcwd().call(|| "getcwd()".into())?;
        // The kernel shows a directory outside the root as "(unreachable)/…".
        if !now.is_absolute() {
            return Err(Error::new(Kind::Denied, format!("{} is outside the root", now.display())));
        }
        Ok(())
    }
}

impl Settled<'_> {
    /// Loads the filter now: hooks inside are the container's programs too.
    pub(crate) fn load_filter(&mut self) -> Result<()> {
        self.seccomp.take().map_or(Ok(()), Filter::load)
    }

    /// Loads a filter that cannot wait for the program: only now may it be, or is somebody there to hand its
    /// descriptor on. Comes when all else is done, so that a profile need allow no more than the steps that follow:
    /// capset, the parent's messages, execve.
    pub(crate) fn restrict(mut self) -> Result<Self> {
        let now = |filter: &mut &Filter| self.capabilities.is_some() || filter.agent().is_some();
        let Some(filter) = self.seccomp.take_if(now) else {
            return Ok(self);
        };
        if self.capabilities.is_some() {
            CapabilitySets::take_all_effective()?;
        }
        self.load(filter)?;
        if let Some(capabilities) = self.capabilities.take() {
            capabilities.apply()?;
        }
        Ok(self)
    }

    fn load(&self, filter: &Filter) -> Result<()> {
        if filter.agent().is_none() {
            return filter.load();
        }
        let listener = filter.load_for_agent()?;
        self.channel.ask(Ask::Listener(listener.as_raw_fd())).map(drop)
    }

    /// What the program is given.
    pub(crate) fn environment(&self) -> &[CString] {
        &self.env
    }

    /// Runs the program. Returns only on failure.
    pub(crate) fn execute(self) -> Error {
        if let Err(e) = self.seccomp.map_or(Ok(()), Filter::load) {
            return e;
        }
        let program = match &self.program {
            Ok(program) => program,
            Err(error) => return error.clone(),
        };
        let errno = sys::execve(program, self.args, &self.env);
        Error::sys(format!("exec {}", self.args[0].to_string_lossy()), errno)
    }
}

/// A new terminal ends each line with a return of the carriage, which another behind it would do once more, and a file
/// would not want. Source: termios(3), `ONLCR`.
fn keep_line_ends(terminal: BorrowedFd<'_>) -> Result<()> {
    use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
    let mut attributes = tcgetattr(terminal).call(|| "tcgetattr(terminal)".into())?;
    attributes.output_flags.remove(OutputFlags::ONLCR);
    tcsetattr(terminal, SetArg::TCSANOW, &attributes).call(|| "tcsetattr(terminal, -ONLCR)".into())
}

/// A keyring of its own where there are any; a kernel or a filter around us may have none.
fn leave_keyring() -> Result<Option<String>> {
    match sys::join_session_keyring() {
        Err(e) if e.errno() == Some(Errno::ENOSYS) => Ok(None),
        Err(e) if e.errno() == Some(Errno::EPERM) => Ok(Some(format!("session keyring shared: {e}"))),
        other => other.map(|()| None),
    }
}

/// Opens a file of this process's own directory in `proc`, for writing.
pub(crate) fn own_file(proc: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    open_in(proc, &own_path(proc, name)?, OFlags::WRONLY)
}

fn own_path(proc: BorrowedFd<'_>, name: &str) -> Result<PathBuf> {
    let pid =
        rustix::fs::readlinkat(proc, "self", Vec::new()).call(|| "readlinkat(proc, \"self\")".into())?;
    Ok(Path::new(OsStr::from_bytes(pid.as_bytes())).join(name))
}

/// Opens a file of `proc` itself: no link, and nothing mounted over it.
pub(crate) fn open_in(proc: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    beneath::open_proc(proc, path, flags)
}

/// The home directory of `uid` by the image's own passwd file: a regular file below its root,
/// and at most a mebibyte of it.
fn home_of(root: BorrowedFd<'_>, uid: Uid) -> Option<String> {
    use std::io::Read;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = beneath::open(root, Path::new("etc/passwd"), flags, Links::Follow).ok()?;
    let file = std::fs::File::from(fd.as_fd().try_clone_to_owned().ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(PASSWD_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    String::from_utf8_lossy(&bytes).lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse() == Ok(uid.as_raw());
        fields.nth(2).filter(|home| found && home.starts_with('/')).map(str::to_string)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_set_once() {
        let strings = |list: &[&str]| list.iter().map(|s| CString::new(*s).unwrap()).collect::<Vec<_>>();
        for (given, kept) in [
            (&["A=1", "B=2", "A="][..], &["B=2", "A="][..]),
            (&["A=1=2", "A=3=4", "AA=5"], &["A=3=4", "AA=5"]),
            (&["bare", "bare"], &["bare"]),
        ] {
            assert_eq!(last_of_each(strings(given)), strings(kept), "{given:?}");
        }
    }
}
