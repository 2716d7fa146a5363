//! The command line, parsed by hand: a parser crate would be half of the binary.
//!
//! One table says which options each command takes; what is not in it is refused by name. Options may come before or
//! after the id, but an exec's own command keeps its own.
//!
//! Source: runc(8) and its commands' pages.

use std::path::{Path, PathBuf};

use runtime::{Error, Result};

/// Where containers are remembered unless told otherwise.
const DEFAULT_ROOT: &str = "/run/podyard-oci";

/// An option: its long name, its short one, and whether it takes a value.
type Option_ = (&'static str, &'static str, bool);

const GLOBAL: &[Option_] = &[
    ("--root", "", true),
    ("--log", "", true),
    ("--log-format", "", true),
    ("--debug", "", false),
    ("--systemd-cgroup", "", false),
    ("--rootless", "", true),
    ("--help", "-h", false),
    ("--version", "-v", false),
];

const CREATE: &[Option_] = &[
    ("--bundle", "-b", true),
    ("--pid-file", "", true),
    ("--console-socket", "", true),
    ("--no-pivot", "", false),
    ("--no-new-keyring", "", false),
    ("--preserve-fds", "", true),
];

const RUN: &[Option_] = &[
    ("--bundle", "-b", true),
    ("--pid-file", "", true),
    ("--console-socket", "", true),
    ("--no-pivot", "", false),
    ("--no-new-keyring", "", false),
    ("--preserve-fds", "", true),
    ("--detach", "-d", false),
    ("--keep", "", false),
    ("--no-subreaper", "", false),
];

const EXEC: &[Option_] = &[
    ("--additional-gids", "-g", true),
    ("--apparmor", "", true),
    ("--cap", "-c", true),
    ("--cgroup", "", true),
    ("--console-socket", "", true),
    ("--cwd", "", true),
    ("--detach", "-d", false),
    ("--env", "-e", true),
    ("--ignore-paused", "", false),
    ("--no-new-privs", "", false),
    ("--no-subreaper", "", false),
    ("--pid-file", "", true),
    ("--preserve-fds", "", true),
    ("--process", "-p", true),
    ("--process-label", "", true),
    ("--tty", "-t", false),
    ("--user", "-u", true),
];

const UPDATE: &[Option_] = &[
    ("--resources", "-r", true),
    ("--blkio-weight", "", true),
    ("--cpu-burst", "", true),
    ("--cpu-idle", "", true),
    ("--cpu-period", "", true),
    ("--cpu-quota", "", true),
    ("--cpu-rt-period", "", true),
    ("--cpu-rt-runtime", "", true),
    ("--cpu-share", "", true),
    ("--cpuset-cpus", "", true),
    ("--cpuset-mems", "", true),
    ("--memory", "", true),
    ("--memory-reservation", "", true),
    ("--memory-swap", "", true),
    ("--pids-limit", "", true),
];

/// Every command with its options, and how it is described.
pub const COMMANDS: &[(&str, &[Option_], &str)] = &[
    ("create", CREATE, "[--bundle DIR] [--pid-file FILE] [--console-socket PATH] ID"),
    ("delete", &[("--force", "-f", false)], "[--force] ID"),
    ("events", &[("--stats", "", false), ("--interval", "", true)], "[--stats] [--interval 5s] ID"),
    (
        "exec",
        EXEC,
        "[--tty] [--user UID[:GID]] [--cwd DIR] [--env K=V] [--process FILE] [--detach] ID COMMAND…",
    ),
    ("features", &[], "what this runtime can do, as JSON"),
    ("kill", &[("--all", "-a", false)], "[--all] ID [SIGNAL]"),
    ("list", &[("--format", "-f", true), ("--quiet", "-q", false)], "[--format table|json] [--quiet]"),
    ("pause", &[], "ID"),
    ("ps", &[("--format", "-f", true)], "[--format table|json] ID"),
    ("resume", &[], "ID"),
    ("run", RUN, "[--bundle DIR] [--detach] [--keep] ID"),
    ("spec", &[("--bundle", "-b", true), ("--rootless", "", false)], "[--bundle DIR] [--rootless]"),
    ("start", &[], "ID"),
    ("state", &[], "ID"),
    ("update", UPDATE, "[--resources FILE|-] [--memory BYTES] [--cpu-quota US] … ID"),
];

/// One invocation.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The command's name; empty for `--help` and `--version` alone.
    pub verb: String,
    /// The id, and what follows it.
    pub args: Vec<String>,
    given: Vec<(&'static str, String)>,
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

    /// Whether an option is given.
    pub fn has(&self, name: &str) -> bool {
        self.given.iter().any(|(known, _)| *known == name)
    }

    /// The last value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    /// All values of an option, in order.
    pub fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.given.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The last value of an option, as a path.
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.value(name).map(Path::new)
    }

    /// The last value of an option, as a number.
    ///
    /// # Errors
    /// `Invalid`, naming the option.
    pub fn number<N: std::str::FromStr>(&self, name: &str) -> Result<Option<N>> {
        let parsed =
            |text: &str| text.parse().map_err(|_| Error::invalid(name, format!("{text:?} is not a number")));
        self.value(name).map(parsed).transpose()
    }

    /// Where containers are remembered.
    pub fn root(&self) -> PathBuf {
        self.value("--root").unwrap_or(DEFAULT_ROOT).into()
    }

    /// The directory with `config.json`.
    pub fn bundle(&self) -> PathBuf {
        self.value("--bundle").unwrap_or(".").into()
    }
}

/// Parses the arguments after the program's name.
///
/// # Errors
/// `Invalid` or `Unsupported`, naming the word.
pub fn parse(args: impl Iterator<Item = String>) -> Result<Command> {
    let mut command = Command::default();
    let mut args = args.peekable();
    let mut own: &[Option_] = &[];
    while let Some(arg) = args.next() {
        let open = command.verb != "exec" || command.args.is_empty();
        if !arg.starts_with('-') || arg == "-" || !open {
            if !command.verb.is_empty() {
                command.args.push(arg);
                continue;
            }
            let Some((_, options, _)) = COMMANDS.iter().find(|(verb, ..)| *verb == arg) else {
                let reason = match arg.as_str() {
                    "checkpoint" | "restore" => "CRIU is not offered",
                    _ => "no such command here",
                };
                return Err(Error::unsupported(arg, reason));
            };
            (own, command.verb) = (options, arg);
            continue;
        }
        if arg == "--" {
            command.args.extend(args.by_ref());
            break;
        }
        let (word, inline) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => (arg.as_str(), None),
        };
        // Go's flags may be written with one dash.
        let long =
            if word.starts_with("--") || word.len() == 2 { word.to_string() } else { format!("-{word}") };
        let known = own
            .iter()
            .chain(GLOBAL)
            .find(|(name, short, _)| *name == long || (*short == long && !short.is_empty()));
        let Some((name, _, takes_value)) = known else {
            return Err(Error::unsupported(word, "no such option here"));
        };
        let value = match (takes_value, inline) {
            (true, Some(value)) => value,
            (true, None) => args.next().ok_or_else(|| Error::invalid(name, "needs a value"))?,
            // `--flag=false` is none.
            (false, Some(value)) if value == "false" => continue,
            (false, _) => String::new(),
        };
        command.given.push((name, value));
    }
    if command.verb.is_empty() && !command.has("--help") && !command.has("--version") {
        let all: Vec<&str> = COMMANDS.iter().map(|(verb, ..)| *verb).collect();
        return Err(Error::invalid("podyard-oci", format!("needs a command: {}", all.join(", "))));
    }
    Ok(command)
}

/// What `--help` prints.
pub fn usage() -> String {
    let mut text =
        String::from("podyard-oci [--root DIR] [--log FILE] [--log-format text|json] COMMAND …\n\n");
    for (verb, _, usage) in COMMANDS {
        text += &format!("  {verb:9} {usage}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Command {
        parse(line.split(' ').map(str::to_string)).unwrap()
    }

    #[test]
    fn options_before_and_after_the_id() {
        for line in [
            "--root /r create --bundle /b --pid-file=/p c1",
            "--root=/r create c1 --pid-file /p -b /b",
            "-root /r create -bundle=/b c1 --pid-file /p",
        ] {
            let command = check(line);
            assert_eq!(command.id().unwrap(), "c1", "{line}");
            assert_eq!(command.root(), Path::new("/r"), "{line}");
            assert_eq!(command.bundle(), Path::new("/b"), "{line}");
            assert_eq!(command.path("--pid-file"), Some(Path::new("/p")), "{line}");
        }
        assert_eq!(check("kill c1 KILL").args, ["c1", "KILL"]);
        assert!(check("kill --all c1 9").has("--all"));
        assert_eq!(check("update -r - c1").value("--resources"), Some("-"));
    }

    #[test]
    fn an_exec_keeps_its_own_options() {
        let exec = check("exec -t --user 1:2 -e A=1 --env B=2 c1 ls -l --all");
        assert!(exec.has("--tty") && !exec.has("--all"));
        assert_eq!(exec.args, ["c1", "ls", "-l", "--all"]);
        assert_eq!(exec.values("--env").collect::<Vec<_>>(), ["A=1", "B=2"]);
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for (line, named) in [
            ("", "needs a command"),
            ("create --no-such c1", "--no-such: no such option"),
            ("start --bundle /b c1", "--bundle: no such option"),
            ("create --bundle", "--bundle: needs a value"),
            ("checkpoint c1", "CRIU is not offered"),
            ("frobnicate c1", "no such command"),
        ] {
            let words = line.split(' ').filter(|w| !w.is_empty()).map(str::to_string);
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
        assert!(check("update --cpu-share x c1").number::<u64>("--cpu-share").is_err());
    }
}
