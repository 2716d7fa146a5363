//! The applets of the image `podyard.local/toolbox`: what demos, tests and probes run inside pods.
//!
//! The image holds one copy of this binary, and a link per applet; the name a process was started
//! under chooses the applet, as busybox does it. Nothing here is needed to run pods.
//!
//! As PID 1 of a PID namespace a process gets only the signals it handles (pid_namespaces(7)), so the
//! applets that stay (`serve`, `counter`, `sleep`, `write --every`) handle SIGTERM and SIGINT.

mod files;
mod http;
mod lookup;

pub(crate) use http::get;

use std::path::Path;
use std::process::ExitCode;

/// What an applet returns; the message of an error goes to stderr.
pub(crate) type Outcome = Result<ExitCode, String>;

/// One program of the toolbox.
struct Applet {
    name: &'static str,
    usage: &'static str,
    run: fn(&[String]) -> Outcome,
}

const APPLETS: &[Applet] = &[
    Applet {
        name: "serve",
        usage: "serve [--port N] [--text T | --dir DIR]   HTTP: T, DIR's files, or the host name",
        run: http::serve,
    },
    Applet {
        name: "counter",
        usage: "counter --file F [--port N]               HTTP: each visit counts up a number kept in F",
        run: http::counter,
    },
    Applet {
        name: "fetch",
        usage: "fetch URL [--times N] [--timeout-ms N]    HTTP GET, N times; exit 1 unless all answer 2xx",
        run: http::fetch,
    },
    Applet {
        name: "lookup",
        usage: "lookup NAME|ADDRESS [TYPE] [@SERVER]      asks DNS: search domains apply; exit 1 if there is nothing",
        run: lookup::lookup,
    },
    Applet { name: "sleep", usage: "sleep SECONDS|infinity", run: files::sleep },
    Applet {
        name: "write",
        usage: "write FILE TEXT [--every SECONDS]         replaces FILE by TEXT and the time, once or for ever",
        run: files::write,
    },
    Applet { name: "cat", usage: "cat FILE…", run: files::cat },
    Applet { name: "ls", usage: "ls [DIR]", run: files::ls },
    Applet { name: "echo", usage: "echo WORD…", run: files::echo },
    Applet { name: "env", usage: "env", run: files::env },
    Applet { name: "hostname", usage: "hostname", run: files::hostname },
    Applet { name: "exit", usage: "exit CODE", run: files::exit },
    Applet { name: "true", usage: "true", run: |_| Ok(ExitCode::SUCCESS) },
    Applet { name: "false", usage: "false", run: |_| Ok(ExitCode::FAILURE) },
    Applet { name: "test", usage: "test -e FILE", run: files::test },
    Applet {
        name: "mem",
        usage: "mem BYTES                                 touches so much memory, then sleeps",
        run: files::mem,
    },
];

/// The applets' names: the links that the toolbox image holds.
pub fn names() -> impl Iterator<Item = &'static str> {
    APPLETS.iter().map(|applet| applet.name)
}

/// Runs the applet that `args[0]` names or, for `podyard toolbox NAME`, `args[2]`.
///
/// `None` if the process was started as something else.
pub fn dispatch(args: &[String]) -> Option<ExitCode> {
    let find = |name: &str| APPLETS.iter().find(|applet| applet.name == name);
    let own = Path::new(args.first()?).file_name()?.to_str()?;
    let (applet, rest) = match (find(own), args) {
        (Some(applet), [_, rest @ ..]) => (applet, rest),
        (None, [_, verb, name, rest @ ..]) if verb == "toolbox" => match find(name) {
            Some(applet) => (applet, rest),
            None => return Some(usage()),
        },
        (None, [_, verb]) if verb == "toolbox" => return Some(usage()),
        _ => return None,
    };
    Some((applet.run)(rest).unwrap_or_else(|message| {
        eprintln!("{}: {message}", applet.name);
        ExitCode::FAILURE
    }))
}

fn usage() -> ExitCode {
    eprintln!("podyard toolbox: the applets of podyard.local/toolbox");
    for applet in APPLETS {
        eprintln!("  {}", applet.usage);
    }
    ExitCode::from(2)
}

/// The value after `flag`, and the arguments without the two.
pub(crate) fn take_flag(args: &mut Vec<String>, flag: &str) -> Result<Option<String>, String> {
    let Some(at) = args.iter().position(|arg| arg == flag) else { return Ok(None) };
    if at + 1 >= args.len() {
        return Err(format!("{flag} takes a value"));
    }
    args.remove(at);
    Ok(Some(args.remove(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_name_chooses_the_applet() {
        for (line, ran) in [
            ("/bin/true", true),
            ("podyard toolbox true", true),
            ("podyard-under-test toolbox true", true),
            ("podyard toolbox no-such-applet", true),
            ("podyard get", false),
            ("podyard", false),
        ] {
            assert_eq!(dispatch(&words(line)).is_some(), ran, "{line}");
        }
    }

    #[test]
    fn a_flag_without_its_value_is_refused() {
        let mut args = words("--port");
        assert_eq!(take_flag(&mut args, "--port"), Err("--port takes a value".into()));
        let mut args = words("a --port 80 b");
        assert_eq!(take_flag(&mut args, "--port"), Ok(Some("80".into())));
        assert_eq!(args, words("a b"));
    }
}
