//! Hooks: programs of the caller's that are run at points of a container's life.
//!
//! ```text
//!   list             run                                  in                    status, pid said
//!   prestart         mounts made, before pivot_root       the caller's          creating, outside
//!   createRuntime    after prestart                       the caller's          creating, outside
//!   createContainer  after createRuntime                  the container's,      creating, inside
//!                                                         before pivot_root
//!   startContainer   on start, before the program         the container         created, inside
//!   poststart        on start, after execve               the caller's          running, outside
//!   poststop         on delete, after all is gone         the caller's          stopped
//! ```
//!
//! A hook is the leader of a process group of its own, reads the container's state from standard input, and has no
//! descriptor but the standard ones. Its output is kept for the error's text. If it outlives its timeout the group
//! is killed, and what it left behind elsewhere is not waited for.
//!
//! Source: runtime-spec 1.2, config.md, "POSIX-platform Hooks", and runtime.md, "Lifecycle".
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::Spec;
use serde_json::Value;

use crate::error::{Call, Error, Kind, Result, Step};
use crate::pidfd;
use crate::protocol::above_stdio;
use crate::sys::{self, Forked};

/// A container's hooks, each list in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Deprecated by the specification, and still used.
    pub prestart: Vec<Hook>,
    /// Outside, once the mounts are made.
    pub create_runtime: Vec<Hook>,
    /// Inside, found outside, before the root is entered.
    pub create_container: Vec<Hook>,
    /// Inside, just before the program.
    pub start_container: Vec<Hook>,
    /// Outside, once the program runs.
    pub poststart: Vec<Hook>,
    /// Outside, once nothing is left.
    pub poststop: Vec<Hook>,
}

/// One program to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `hooks.prestart[0]`, for errors.
    field: String,
    path: CString,
    args: Vec<CString>,
    /// `None`: whoever runs it decides.
    env: Option<Vec<CString>>,
    timeout: Option<Duration>,
}

/// The lists' names, in the order in which they are run.
pub const NAMES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// How much of a hook's output an error quotes, from its end.
const OUTPUT_BYTES_MAX: usize = 1024;

/// Reads of 4 KiB in a pipe of the usual size. Source: pipe(7).
const PIPE_READS: usize = 16;

/// How long a killed hook may take to be gone. One that the kernel cannot end is left to it.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

impl Hooks {
    /// Checks the spec's hooks.
    ///
    /// # Errors
    /// `Invalid`, naming the field.
    pub fn from_spec(spec: &Spec) -> Result<Self> {
        let Some(hooks) = spec.hooks() else {
            return Ok(Self::default());
        };
        #[allow(deprecated)]
        let lists = [
            hooks.prestart(),
            hooks.create_runtime(),
            hooks.create_container(),
            hooks.start_container(),
            hooks.poststart(),
            hooks.poststop(),
        ];
        let mut parsed = NAMES.iter().zip(lists).map(|(name, list)| {
            let list = list.iter().flatten().enumerate();
            list.map(|(i, hook)| Hook::from_spec(format!("hooks.{name}[{i}]"), hook))
                .collect::<Result<Vec<_>>>()
        });
        let mut next = || parsed.next().expect("as many as there are names");
        Ok(Self {
            prestart: next()?,
            create_runtime: next()?,
            create_container: next()?,
            start_container: next()?,
            poststart: next()?,
            poststop: next()?,
        })
    }
}

impl Hook {
    fn from_spec(field: String, hook: &oci_spec::runtime::Hook) -> Result<Self> {
        if !hook.path().is_absolute() {
            return Err(Error::invalid(format!("{field}.path"), "must be absolute"));
        }
        let string = |name: &str, bytes: &[u8]| {
            CString::new(bytes).map_err(|_| Error::invalid(format!("{field}.{name}"), "contains NUL"))
        };
        let strings = |name: &str, list: &[String]| -> Result<Vec<CString>> {
            list.iter().map(|s| string(name, s.as_bytes())).collect()
        };
        let path = string("path", hook.path().as_os_str().as_bytes())?;
        let mut args = strings("args", hook.args().as_deref().unwrap_or_default())?;
        if args.is_empty() {
            args.push(path.clone());
        }
        let timeout = match hook.timeout() {
            None => None,
            Some(secs) => match u64::try_from(secs) {
                Ok(secs @ 1..) => Some(Duration::from_secs(secs)),
                _ => return Err(Error::invalid(format!("{field}.timeout"), "must be above zero")),
            },
        };
        // An empty list is what others write for none.
        let env = hook.env().as_deref().filter(|env| !env.is_empty());
        Ok(Self { path, args, env: env.map(|env| strings("env", env)).transpose()?, timeout, field })
    }

    /// Runs it to its end.
    fn run(&self, state: &Value, env: &[CString]) -> Result<()> {
        let input = above_stdio(input(state)?)?;
        let (ours, theirs) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).call(|| "pipe2(O_CLOEXEC)".into())?;
        let (ours, theirs) = (above_stdio(ours)?, above_stdio(theirs)?);
        let env = self.env.as_deref().unwrap_or(env);
        let (pid, pidfd) = match sys::fork()? {
            Forked::Parent { pid, pidfd } => (pid, pidfd),
            Forked::Child => {
                let Err(error) = self.become_it(&input, &theirs, env);
                // Quoted by whoever waits for us.
                _ = rustix::io::write(&theirs, error.to_string().as_bytes());
                sys::exit_now(127)
            }
        };
        drop((input, theirs));
        let output = Output::new(ours)?;
        let (ended, output) = match self.timeout {
            None => output.follow(&pidfd, None)?,
            Some(timeout) => output.follow(&pidfd, Some(Instant::now() + timeout))?,
        };
        if !ended {
            // Also those it started, unless they left its group.
            let group = nix::unistd::Pid::from_raw(pid);
            match nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(Error::sys(format!("killpg({pid}, SIGKILL)"), e)),
            }
            if wait_for(&pidfd, Some(Instant::now() + KILL_DEADLINE))? {
                pidfd::wait_status(&pidfd)?;
            }
            let secs = self.timeout.unwrap_or_default().as_secs();
            let text = format!("ran longer than its timeout of {secs} s{}", quoted(&output));
            return Err(Error::new(Kind::Timeout, text));
        }
        match pidfd::wait_status(&pidfd)? {
            (Some(0), _) => Ok(()),
            (Some(code), _) => {
                Err(Error::new(Kind::Internal, format!("exited with {code}{}", quoted(&output))))
            }
            (None, signal) => {
                let text = format!("was killed by signal {signal}{}", quoted(&output));
                Err(Error::new(Kind::Internal, text))
            }
        }
    }

    /// In the new process.
    fn become_it(
        &self,
        input: &OwnedFd,
        output: &OwnedFd,
        env: &[CString],
    ) -> Result<std::convert::Infallible> {
        use nix::unistd::{Pid, setpgid};
        setpgid(Pid::from_raw(0), Pid::from_raw(0)).call(|| "setpgid(0, 0)".into())?;
        sys::reset_signals()?;
        sys::dup_to(input.as_fd(), 0)?;
        sys::dup_to(output.as_fd(), 1)?;
        sys::dup_to(output.as_fd(), 2)?;
        // A container's own /proc, at worst; what is open here is nothing of the host's by then.
        sys::close_range_cloexec(3, None)?;
        let errno = sys::execve(&self.path, &self.args, env);
        Err(Error::sys(format!("exec {}", self.path.to_string_lossy()), errno))
    }
}

/// Runs hooks one after another; the first that fails ends it. `env` is for those that have none of their own.
///
/// Must be called from a single-threaded process. Blocks as long as a hook runs that has no timeout.
///
/// # Errors
/// `hooks.prestart[0]: exited with 1: …`, `Timeout` for one that took too long.
pub fn run(hooks: &[Hook], state: &Value, env: &[CString]) -> Result<()> {
    hooks.iter().try_for_each(|hook| hook.run(state, env).step(&hook.field))
}

/// Runs all hooks, also after one that fails.
///
/// # Errors
/// Those of each that failed. Source: runtime-spec 1.2, runtime.md, "Lifecycle", steps 9 and 13.
pub fn run_each(hooks: &[Hook], state: &Value, env: &[CString]) -> Vec<Error> {
    hooks.iter().filter_map(|hook| hook.run(state, env).step(&hook.field).err()).collect()
}

/// This process's own environment, which hooks outside are given as runc gives it.
pub fn own_environment() -> Vec<CString> {
    let joined = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name.into_vec()
    });
    joined.filter_map(|bytes| CString::new(bytes).ok()).collect()
}

/// A file and not a pipe: a hook that does not read its input must not stop us.
fn input(state: &Value) -> Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("state", rustix::fs::MemfdFlags::CLOEXEC)
        .call(|| "memfd_create(\"state\")".into())?;
    let mut file = std::fs::File::from(fd);
    std::io::Write::write_all(&mut file, state.to_string().as_bytes()).call(|| "write(state)".into())?;
    std::io::Seek::rewind(&mut file).call(|| "lseek(state, 0)".into())?;
    Ok(file.into())
}

/// What a hook writes, of which the end is kept.
struct Output {
    pipe: Option<OwnedFd>,
    kept: Vec<u8>,
}

impl Output {
    fn new(pipe: OwnedFd) -> Result<Self> {
        rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::NONBLOCK)
            .call(|| "fcntl(F_SETFL, O_NONBLOCK)".into())?;
        Ok(Self { pipe: Some(pipe), kept: Vec::new() })
    }

    /// Reads until the process has ended, which is true, or the deadline has passed. What its children go on writing
    /// is not waited for.
    fn follow(mut self, pidfd: &OwnedFd, deadline: Option<Instant>) -> Result<(bool, Vec<u8>)> {
        loop {
            let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            let ready = wait_ready(&mut fds, deadline)?;
            let ended = fds[0].revents().is_some_and(|events| !events.is_empty());
            drop(fds);
            // At the end all that a pipe holds.
            for _ in 0..if ended { PIPE_READS } else { 1 } {
                self.read()?;
            }
            if ended || !ready {
                return Ok((ended, self.kept));
            }
        }
    }

    fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        while let Some(pipe) = &self.pipe {
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    self.kept.extend(&buffer[..count]);
                    let surplus = self.kept.len().saturating_sub(OUTPUT_BYTES_MAX);
                    self.kept.drain(..surplus);
                    // A hook that writes faster than we read must not keep us from its deadline.
                    return Ok(());
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e).call(|| "read(output)".into()),
            }
        }
        Ok(())
    }
}

/// Whether something is ready before the deadline.
fn wait_ready(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<bool> {
    loop {
        let timeout = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            Some(Duration::ZERO) => return Ok(false),
            // Rounded up, or the last millisecond would be spent turning round.
            Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
        };
        match poll(fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(Error::sys("poll(hook)", e)),
        }
    }
}

fn wait_for(pidfd: &OwnedFd, deadline: Option<Instant>) -> Result<bool> {
    wait_ready(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], deadline)
}

/// In one line and without control characters: a hook inside is the container's to write, and this is read on terminals.
fn quoted(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output).replace(char::is_control, " ");
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(hooks: Value) -> Result<Hooks> {
        Hooks::from_spec(&serde_json::from_value(json!({"ociVersion": "1.2.0", "hooks": hooks})).unwrap())
    }

    #[test]
    fn lists_keep_their_order_and_names() {
        let hooks = parse(json!({
            "prestart": [{"path": "/a"}, {"path": "/b", "args": ["x", "y"], "env": ["K=V"], "timeout": 3}],
            "createContainer": [{"path": "/c"}],
            "startContainer": [{"path": "/d", "env": []}],
            "poststop": [{"path": "/e"}],
        }))
        .unwrap();
        let paths = |list: &[Hook]| -> Vec<String> {
            list.iter().map(|hook| hook.path.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(paths(&hooks.prestart), ["/a", "/b"]);
        assert_eq!(paths(&hooks.create_runtime), Vec::<String>::new());
        assert_eq!(paths(&hooks.create_container), ["/c"]);
        assert_eq!(paths(&hooks.start_container), ["/d"]);
        assert_eq!(paths(&hooks.poststart), Vec::<String>::new());
        assert_eq!(paths(&hooks.poststop), ["/e"]);
        assert_eq!(hooks.prestart[0].args, [c"/a".to_owned()], "its path where it has no arguments");
        assert_eq!(hooks.prestart[1].args, [c"x".to_owned(), c"y".to_owned()]);
        assert_eq!(hooks.prestart[1].env, Some(vec![c"K=V".to_owned()]));
        assert_eq!(hooks.prestart[1].timeout, Some(Duration::from_secs(3)));
        assert_eq!(hooks.prestart[1].field, "hooks.prestart[1]");
        assert_eq!((&hooks.start_container[0].env, hooks.start_container[0].timeout), (&None, None));
    }

    #[test]
    fn output_is_quoted_in_one_line() {
        for (output, expected) in
            [("", ""), (" \n", ""), ("no such file\n", ": no such file"), ("a\nb\x1b[2J", ": a b [2J")]
        {
            assert_eq!(quoted(output.as_bytes()), expected);
        }
        assert_eq!(quoted(b"\xff"), ": \u{fffd}");
    }

    #[test]
    fn bad_hooks_are_refused_by_name() {
        for (hook, named) in [
            (json!({"path": "relative"}), "hooks.poststart[0].path: must be absolute"),
            (json!({"path": "/a", "timeout": 0}), "hooks.poststart[0].timeout: must be above zero"),
            (json!({"path": "/a", "timeout": -1}), "hooks.poststart[0].timeout"),
            (json!({"path": "/a\0b"}), "hooks.poststart[0].path: contains NUL"),
            (json!({"path": "/a", "args": ["\0"]}), "hooks.poststart[0].args: contains NUL"),
            (json!({"path": "/a", "env": ["\0"]}), "hooks.poststart[0].env: contains NUL"),
        ] {
            let error = parse(json!({"poststart": [hook]})).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
