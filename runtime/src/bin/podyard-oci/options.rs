//! The command line, parsed by hand: a parser crate would be half of the binary.

use std::path::PathBuf;

use runtime::{Error, Result};

/// Where containers are remembered unless told otherwise.
const DEFAULT_ROOT: &str = "/run/podyard-oci";

/// One invocation.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Command {
    pub root: PathBuf,
    pub verb: String,
    pub bundle: PathBuf,
    pub pid_file: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub process: Option<PathBuf>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    pub env: Vec<String>,
    pub all: bool,
    pub force: bool,
    pub detach: bool,
    pub tty: bool,
    /// The id, and what follows it.
    pub args: Vec<String>,
}

impl Command {
    /// Whether it makes a process in a container.
    pub fn enters_containers(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "run" | "exec")
    }

    /// The container's id.
    pub fn id(&self) -> Result<&str> {
        let id = self.args.first().map(String::as_str);
        id.ok_or_else(|| Error::invalid(&self.verb, "needs a container id"))
    }
}

/// Parses the arguments after the program's name. Options end at the first word that is none, so
/// that an exec's own options stay its own; for the other verbs they may also follow the id.
pub fn parse(args: impl Iterator<Item = String>) -> Result<Command> {
    let mut command = Command { root: DEFAULT_ROOT.into(), bundle: ".".into(), ..Command::default() };
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        let open = command.verb != "exec" || command.args.is_empty();
        if !arg.starts_with('-') || !open {
            match command.verb.is_empty() {
                true => command.verb = arg,
                false => command.args.push(arg),
            }
            continue;
        }
        if arg == "--" {
            command.args.extend(args.by_ref());
            break;
        }
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name.to_string(), Some(value.to_string())),
            None => (arg.clone(), None),
        };
        let mut value = || {
            let value = inline.clone().or_else(|| args.next());
            value.ok_or_else(|| Error::invalid(&name, "needs a value"))
        };
        match name.as_str() {
            "--root" => command.root = value()?.into(),
            "-b" | "--bundle" => command.bundle = value()?.into(),
            "--pid-file" => command.pid_file = Some(value()?.into()),
            "--console-socket" => command.console_socket = Some(value()?.into()),
            "-p" | "--process" => command.process = Some(value()?.into()),
            "--cwd" => command.cwd = Some(value()?),
            "-u" | "--user" => command.user = Some(value()?),
            "-e" | "--env" => command.env.push(value()?),
            "-a" | "--all" => command.all = true,
            "-f" | "--force" => command.force = true,
            "-d" | "--detach" => command.detach = true,
            "-t" | "--tty" => command.tty = true,
            // Where to log and in what form: there is no log, errors go to standard error.
            "--log" | "--log-format" => drop(value()?),
            "--debug" | "--no-new-keyring" => {}
            _ => return Err(Error::unsupported(name, "no such option here")),
        }
    }
    if command.verb.is_empty() {
        return Err(Error::invalid(
            "podyard-oci",
            "needs a command: create, start, state, kill, delete, run, exec, spec, list",
        ));
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Command {
        parse(line.split(' ').map(str::to_string)).unwrap()
    }

    #[test]
    fn options_before_and_after_the_id() {
        let a = check("--root /r create --bundle /b --pid-file=/p c1");
        let b = check("--root=/r create c1 --pid-file /p -b /b");
        assert_eq!(a, b);
        assert_eq!((a.id().unwrap(), a.bundle.to_str()), ("c1", Some("/b")));
        assert_eq!(check("kill c1 KILL").args, ["c1", "KILL"]);
    }

    #[test]
    fn an_exec_keeps_its_own_options() {
        let exec = check("exec -t --user 1:2 c1 ls -l --all");
        assert!(exec.tty && !exec.all);
        assert_eq!(exec.args, ["c1", "ls", "-l", "--all"]);
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for line in ["", "create --no-pivot c1", "--systemd-cgroup create c1", "create --bundle"] {
            let words = line.split(' ').filter(|w| !w.is_empty()).map(str::to_string);
            let parsed = parse(words);
            assert!(parsed.is_err(), "{line}: {parsed:?}");
        }
    }
}
