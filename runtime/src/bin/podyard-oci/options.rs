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

/// An option of a command.
pub struct Opt {
    long: &'static str,
    /// One dash and a letter, or empty.
    short: &'static str,
    /// What its value is called; empty for a flag.
    value: &'static str,
    help: &'static str,
}

const fn flag(long: &'static str, short: &'static str, help: &'static str) -> Opt {
    Opt { long, short, value: "", help }
}

const fn value(long: &'static str, short: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt { long, short, value, help }
}

const GLOBAL: &[Opt] = &[
    value("--root", "", "DIR", "where containers are remembered; /run/podyard-oci unless given"),
    value("--log", "", "FILE", "errors and warnings are appended here, beside standard error"),
    value("--log-format", "", "FORMAT", "of that file: text or json"),
    flag("--debug", "", "accepted; there is nothing more to say"),
    flag("--systemd-cgroup", "", "refused: cgroups are made directly, without systemd"),
    value("--rootless", "", "BOOL", "accepted unless true: containers are made by root"),
    value("--criu", "", "PATH", "accepted; only checkpoint would use it, which is refused"),
    flag("--help", "-h", "this text; after a command, that command's"),
    flag("--version", "-v", "the version, and that of the specification"),
];

const BUNDLE: Opt =
    value("--bundle", "-b", "DIR", "the directory with config.json; the current one unless given");
const PID_FILE: Opt = value("--pid-file", "", "FILE", "written with the process's pid, as seen here");
const CONSOLE: Opt =
    value("--console-socket", "", "PATH", "a listening socket that is sent the terminal's master end");
const PRESERVE: Opt =
    value("--preserve-fds", "", "N", "descriptors 3 to 2+N go to the program, after those of LISTEN_FDS");
const NO_PIVOT: Opt =
    flag("--no-pivot", "", "for a root on the initial ramdisk, which pivot_root does not allow");
const NO_KEYRING: Opt = flag("--no-new-keyring", "", "the caller's session keyring stays the container's");
const DETACH: Opt = flag("--detach", "-d", "return when the program runs");
const NO_SUBREAPER: Opt = flag("--no-subreaper", "", "accepted; none is made");
const FORMAT: Opt = value("--format", "-f", "FORMAT", "table or json");

const CREATE: &[Opt] = &[BUNDLE, PID_FILE, CONSOLE, NO_PIVOT, NO_KEYRING, PRESERVE];

const RUN: &[Opt] = &[
    BUNDLE,
    PID_FILE,
    CONSOLE,
    NO_PIVOT,
    NO_KEYRING,
    PRESERVE,
    DETACH,
    flag("--keep", "", "do not delete the container when it has stopped"),
    NO_SUBREAPER,
];

const EXEC: &[Opt] = &[
    value("--additional-gids", "-g", "GID", "one more group; may be repeated"),
    value("--apparmor", "", "PROFILE", "the process's AppArmor profile"),
    value("--cap", "-c", "CAP", "one more capability; may be repeated"),
    value("--cgroup", "", "[CONTROLLER:]PATH", "an existing cgroup below the container's"),
    CONSOLE,
    value("--cwd", "", "DIR", "working directory in the container"),
    DETACH,
    value("--env", "-e", "NAME=VALUE", "one more variable; may be repeated"),
    flag("--ignore-paused", "", "also while paused: the process stands still until resume"),
    flag("--no-new-privs", "", "set no_new_privs"),
    NO_SUBREAPER,
    PID_FILE,
    PRESERVE,
    value("--process", "-p", "FILE", "the whole process object, as JSON, instead of a command"),
    value("--process-label", "", "LABEL", "the process's SELinux label"),
    flag("--tty", "-t", "a terminal of its own"),
    value("--user", "-u", "UID[:GID]", "numbers; group 0 unless given"),
];

const UPDATE: &[Opt] = &[
    value(
        "--resources",
        "-r",
        "FILE",
        "linux.resources as JSON; - is standard input; the options below do not count then",
    ),
    value("--blkio-weight", "", "N", "share of block I/O"),
    value("--cpu-burst", "", "US", "CPU time that may be saved up"),
    value("--cpu-idle", "", "0|1", "run only when nothing else does"),
    value("--cpu-period", "", "US", "the time that --cpu-quota is a part of"),
    value("--cpu-quota", "", "US", "CPU time per period; -1 for no limit"),
    value("--cpu-rt-period", "", "US", "the time that --cpu-rt-runtime is a part of"),
    value("--cpu-rt-runtime", "", "US", "real-time CPU time per period"),
    value("--cpu-share", "", "N", "weight against others"),
    value("--cpuset-cpus", "", "LIST", "CPUs it may use"),
    value("--cpuset-mems", "", "LIST", "memory nodes it may use"),
    value("--memory", "", "BYTES", "limit; -1 for none; suffixes k, M, G"),
    value("--memory-reservation", "", "BYTES", "what is reclaimed last"),
    value("--memory-swap", "", "BYTES", "limit of memory and swap together"),
    value("--pids-limit", "", "N", "most processes"),
];

/// A command: its name, its options, how many words it takes, what those are, and what it does.
pub struct Verb {
    name: &'static str,
    options: &'static [Opt],
    words: std::ops::RangeInclusive<usize>,
    usage: &'static str,
    help: &'static str,
}

const fn verb(
    name: &'static str,
    options: &'static [Opt],
    words: std::ops::RangeInclusive<usize>,
    usage: &'static str,
    help: &'static str,
) -> Verb {
    Verb { name, options, words, usage, help }
}

/// More words than anybody writes.
const MANY: usize = usize::MAX;

/// Every command.
pub const COMMANDS: &[Verb] = &[
    verb("create", CREATE, 1..=1, "ID", "make a container from a bundle, but for running its program"),
    verb(
        "delete",
        &[flag("--force", "-f", "kill it first; also success if there is none")],
        1..=1,
        "ID",
        "forget a stopped container and remove its cgroup",
    ),
    verb(
        "events",
        &[
            flag("--stats", "", "show statistics once"),
            value("--interval", "", "TIME", "how often, such as 500ms; 5s unless given"),
        ],
        1..=1,
        "ID",
        "show statistics and out-of-memory events, as JSON lines, until it stops",
    ),
    verb("exec", EXEC, 1..=MANY, "ID COMMAND [ARG…]", "run one more program in a container"),
    verb("features", &[], 0..=0, "", "tell as JSON what this runtime can do"),
    verb(
        "kill",
        &[flag("--all", "-a", "to all its processes")],
        1..=2,
        "ID [SIGNAL]",
        "send a signal, TERM unless given, by name or number",
    ),
    verb("list", &[FORMAT, flag("--quiet", "-q", "ids only")], 0..=0, "", "list the containers below --root"),
    verb("pause", &[], 1..=1, "ID", "make all processes of a container stand still"),
    verb("ps", &[FORMAT], 1..=1, "ID", "list the processes of a container"),
    verb("resume", &[], 1..=1, "ID", "let them go on"),
    verb("run", RUN, 1..=1, "ID", "create, start and, unless detached, wait and delete"),
    verb(
        "spec",
        &[BUNDLE, flag("--rootless", "", "refused: containers are made by root")],
        0..=0,
        "",
        "write a config.json to begin with",
    ),
    verb("start", &[], 1..=1, "ID", "run the program of a created container"),
    verb("state", &[], 1..=1, "ID", "show a container's state as JSON"),
    verb("update", UPDATE, 1..=1, "ID", "change the limits of a container"),
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
    let mut own: Option<&Verb> = None;
    while let Some(arg) = args.next() {
        let open = command.verb != "exec" || command.args.is_empty();
        if !arg.starts_with('-') || arg == "-" || !open {
            match own {
                Some(_) => command.args.push(arg),
                None if arg == "help" => command.given.push(("--help", String::new())),
                None => (own, command.verb) = (Some(find(&arg)?), arg),
            }
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
        let known = own.map_or(&[][..], |verb| verb.options).iter().chain(GLOBAL);
        let known = known.into_iter().find(|o| o.long == long || (o.short == long && !o.short.is_empty()));
        let Some(option) = known else {
            return Err(Error::unsupported(word, "no such option here"));
        };
        let value = match (option.value.is_empty(), inline) {
            (false, Some(value)) => value,
            (false, None) => args.next().ok_or_else(|| Error::invalid(option.long, "needs a value"))?,
            (true, None) => String::new(),
            (true, Some(value)) => match value.as_str() {
                "true" | "1" => String::new(),
                "false" | "0" => continue,
                _ => return Err(Error::invalid(option.long, format!("{value:?} is neither true nor false"))),
            },
        };
        command.given.push((option.long, value));
    }
    if !command.has("--help") && !command.has("--version") {
        check(&command, own)?;
    }
    Ok(command)
}

fn find(name: &str) -> Result<&'static Verb> {
    COMMANDS.iter().find(|verb| verb.name == name).ok_or_else(|| {
        Error::unsupported(
            name,
            match name {
                "checkpoint" | "restore" => "CRIU is not offered",
                _ => "no such command here",
            },
        )
    })
}

/// Nothing too few, and nothing too many: a word that would be ignored is refused.
fn check(command: &Command, verb: Option<&Verb>) -> Result<()> {
    let Some(verb) = verb else {
        let all: Vec<&str> = COMMANDS.iter().map(|verb| verb.name).collect();
        return Err(Error::invalid("podyard-oci", format!("needs a command: {}", all.join(", "))));
    };
    let given = command.args.len();
    if given < *verb.words.start() {
        return Err(Error::invalid(verb.name, "needs a container id"));
    }
    if given > *verb.words.end() {
        let extra = &command.args[*verb.words.end()];
        return Err(Error::invalid(verb.name, format!("{extra:?} is one word too many")));
    }
    if command.value("--rootless").is_some_and(|value| value == "true") && verb.name != "spec" {
        return Err(Error::unsupported("--rootless", "containers are made by root here"));
    }
    Ok(())
}

/// What `--help` prints: all commands, or one command with its options.
pub fn usage(command: &Command) -> String {
    let mut text = String::new();
    match COMMANDS.iter().find(|verb| verb.name == command.verb) {
        Some(verb) => {
            let options = if verb.options.is_empty() { "" } else { "[OPTION…] " };
            text += &format!(
                "podyard-oci [GLOBAL OPTION…] {} {options}{}\n\n  {}\n",
                verb.name, verb.usage, verb.help
            );
            section(&mut text, "Options, before or after the id", verb.options);
        }
        None => {
            text += "podyard-oci [GLOBAL OPTION…] COMMAND [OPTION…] …\n\nCommands; `podyard-oci COMMAND --help` tells more\n";
            for verb in COMMANDS {
                text += &format!("  {:9} {}\n", verb.name, verb.help);
            }
        }
    }
    section(&mut text, "Global options", GLOBAL);
    text
}

fn section(text: &mut String, title: &str, options: &[Opt]) {
    if options.is_empty() {
        return;
    }
    let shown = |option: &Opt| {
        let short = if option.short.is_empty() { String::new() } else { format!("{}, ", option.short) };
        format!("{short}{} {}", option.long, option.value)
    };
    let width = options.iter().map(|option| shown(option).len()).max().unwrap_or(0);
    *text += &format!("\n{title}\n");
    for option in options {
        *text += &format!("  {:width$}  {}\n", shown(option), option.help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Command {
        parse(line.split(' ').map(str::to_string)).unwrap()
    }

    #[test]
    fn options_before_and_after_the_id() {
        for line in [
            "--root /r create --bundle /b --pid-file=/p c1",
            "--root=/r create c1 --pid-file /p -b /b",
            "-root /r create -bundle=/b c1 --pid-file /p",
        ] {
            let command = parsed(line);
            assert_eq!(command.id().unwrap(), "c1", "{line}");
            assert_eq!(command.root(), Path::new("/r"), "{line}");
            assert_eq!(command.bundle(), Path::new("/b"), "{line}");
            assert_eq!(command.path("--pid-file"), Some(Path::new("/p")), "{line}");
        }
        assert_eq!(parsed("kill c1 KILL").args, ["c1", "KILL"]);
        assert!(parsed("kill --all c1 9").has("--all"));
        assert_eq!(parsed("update -r - c1").value("--resources"), Some("-"));
    }

    #[test]
    fn an_exec_keeps_its_own_options() {
        let exec = parsed("exec -t --user 1:2 -e A=1 --env B=2 c1 ls -l --all");
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
            ("start", "start: needs a container id"),
            ("state c1 c2", "state: \"c2\" is one word too many"),
            ("kill c1 KILL c2", "kill: \"c2\" is one word too many"),
            ("list c1", "is one word too many"),
            ("kill --all=maybe c1", "--all: \"maybe\" is neither"),
            ("--rootless true start c1", "--rootless: containers are made by root"),
        ] {
            let words = line.split(' ').filter(|w| !w.is_empty()).map(str::to_string);
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
        assert!(parsed("update --cpu-share x c1").number::<u64>("--cpu-share").is_err());
    }

    #[test]
    fn help_tells_of_every_command_and_option() {
        let all = usage(&parsed("--help"));
        for verb in COMMANDS {
            assert!(all.contains(&format!("  {} ", verb.name)), "{}", verb.name);
            for line in [format!("{} --help", verb.name), format!("help {}", verb.name)] {
                let one = usage(&parsed(&line));
                for option in verb.options.iter().chain(GLOBAL) {
                    assert!(
                        one.contains(option.long) && one.contains(option.help),
                        "{line}: {}",
                        option.long
                    );
                }
            }
        }
        assert!(parse(["help", "frobnicate"].map(str::to_string).into_iter()).is_err());
    }
}
