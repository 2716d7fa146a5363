//! `podyard launch`: a process of ours that outlives its maker, born in a cgroup.
//!
//! ```text
//!  daemon ──exec──► launcher ──clone3(CLONE_INTO_CGROUP)──► child: setsid, stdio, exec itself with other words
//!                      └── name and pidfd on fd 0, exits at once: the child is nobody's child
//! ```
//! Not moved there after its birth: between birth and move a fence of the cgroup would miss it.
#![forbid(unsafe_code)]

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags};

use crate::cgroup::fresh_cgroup;
use crate::launch::tell;
use crate::protocol::{Failure, FailureKind, ProcessName};
use crate::sys::{self, Call, Forked, Result};

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    cgroup: PathBuf,
    log: PathBuf,
    /// From the program's second word on.
    words: Vec<OsString>,
}

/// The whole of `podyard launch CGROUP LOG WORD…`. `args` is what follows the word `launch`. Call it first of all: no
/// thread before it. Fd 0 is the socket on which the child's name is reported.
pub fn launch(args: impl Iterator<Item = OsString>) -> ExitCode {
    // Number 0 stays taken, so that nothing else gets it before /dev/null does.
    let Ok(standard) = sys::take_fd(0) else { return ExitCode::FAILURE };
    let Ok(report) = rustix::io::fcntl_dupfd_cloexec(&standard, 3) else { return ExitCode::FAILURE };
    let born = parse(args).and_then(|arguments| {
        // What the child needs is made before it is: a failure can still be told.
        let log = open_log(&arguments.log)?;
        let cgroup = fresh_cgroup(&arguments.cgroup)?;
        let forked = sys::fork(0, Some(cgroup.dir()?.as_fd()))?;
        Ok((forked, log, arguments))
    });
    let told = match born {
        Ok((Forked::Child, log, arguments)) => {
            let failure = become_program(&log, arguments.words);
            eprintln!("podyard launch: {failure}");
            sys::exit_now(127)
        }
        Ok((Forked::Parent { pid, pidfd }, ..)) => match ProcessName::of(pid) {
            Ok(name) => tell(&report, &Ok(name), Some(&pidfd)),
            Err(failure) => tell(&report, &Err(failure), None),
        },
        Err(failure) => tell(&report, &Err(failure), None),
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("podyard launch: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: impl Iterator<Item = OsString>) -> Result<Arguments> {
    let usage = || Failure::new(FailureKind::Invalid, "usage: podyard launch CGROUP LOG WORD…");
    let mut args = args;
    let (cgroup, log) = (args.next().ok_or_else(usage)?.into(), args.next().ok_or_else(usage)?.into());
    let words: Vec<OsString> = args.collect();
    if words.is_empty() { Err(usage()) } else { Ok(Arguments { cgroup, log, words }) }
}

fn open_log(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).call(|| format!("open({})", path.display()))
}

/// In the child: a session of its own, nothing inherited but the environment, and the program. Answers only if that
/// fails.
fn become_program(log: &OwnedFd, words: Vec<OsString>) -> Failure {
    let transform = || -> Result<std::convert::Infallible> {
        rustix::process::setsid().call(|| "setsid".into())?;
        rustix::process::chdir("/").call(|| "chdir(/)".into())?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .call(|| "open(/dev/null)".into())?;
        nix::unistd::dup2_stdin(&null).call(|| "dup2(/dev/null, 0)".into())?;
        nix::unistd::dup2_stdout(&null).call(|| "dup2(/dev/null, 1)".into())?;
        nix::unistd::dup2_stderr(log).call(|| "dup2(log, 2)".into())?;
        sys::close_all_but(&[])?;
        let word = |word: OsString| {
            CString::new(word.into_vec())
                .map_err(|_| Failure::new(FailureKind::Invalid, "a word holds a NUL"))
        };
        let mut argv = vec![c"podyard".to_owned()];
        for given in words {
            argv.push(word(given)?);
        }
        nix::unistd::execv(c"/proc/self/exe", &argv).call(|| "execv(/proc/self/exe)".into())
    };
    match transform() {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_a_log_and_words() {
        let parse = |args: &[&str]| parse(args.iter().map(OsString::from));
        let expect =
            Arguments { cgroup: "/c".into(), log: "/l".into(), words: vec!["agent".into(), "--x".into()] };
        assert_eq!(parse(&["/c", "/l", "agent", "--x"]).unwrap(), expect);
        assert_eq!(parse(&["/c", "/l"]).unwrap_err().kind, FailureKind::Invalid);
    }
}
