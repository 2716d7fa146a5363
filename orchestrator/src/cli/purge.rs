//! `purge`: the host as it was before the yard.
//!
//! A daemon that answers tells which yard it drives, and is asked to end first; else the flags say which one.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use client::{Client, Request};
use node::yard::Yard;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use server::yard::Info;

use super::context::Context;
use super::error::{Error, Outcome};
use super::up::Place;
use super::{DEFAULT_SOCKET, Globals, SOCKET_VARIABLE};

/// How long a daemon may take to end after SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Really: every pod, volume, image and object of the yard is deleted
    #[arg(long)]
    yes: bool,
}

pub fn run(globals: &Globals, args: Args) -> Outcome {
    let context = Context::new(globals);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("start", error))?;
    let wished = args.place.yard(globals)?;
    // The daemon that other verbs would ask; without one chosen, that of the yard the flags name.
    let is_chosen = globals.socket.is_some() || std::env::var_os(SOCKET_VARIABLE).is_some();
    let socket = if is_chosen { globals.socket() } else { wished.socket.clone() };
    let daemon = match runtime.block_on(info(&Client::new(&socket))) {
        Ok(info) => Some(info),
        // A socket in the environment may belong to a yard that is gone; it must not cost the host's own.
        Err(error @ Error::Client(client::Error::NoDaemon { .. }))
            if !args.place.is_given() && is_chosen && socket != Path::new(DEFAULT_SOCKET) =>
        {
            context.note("say which yard is meant: --isolated --name NAME --data-dir DIR --run-dir DIR");
            return Err(error);
        }
        Err(Error::Client(client::Error::NoDaemon { .. })) => None,
        Err(error) => return Err(error),
    };
    let yard = match &daemon {
        Some(info) => driven(info, &args.place, &wished)?,
        None => wished,
    };
    if !args.yes {
        return Err(Error::Usage(format!(
            "this deletes every pod, object, image and volume of yard {} ({}, {}, {}); add --yes if you mean it",
            yard.name,
            yard.data_dir.display(),
            yard.run_dir.display(),
            yard.log_dir.display()
        )));
    }
    if let Some(info) = daemon {
        let pidfd = pidfd(info.pid)?;
        // Still the one that answered: its pid cannot have been used again before the pidfd was ours.
        let again = runtime.block_on(info_of(&yard));
        if again.is_ok_and(|again| again.pid == info.pid) {
            end(&pidfd, info.pid)?;
            context.line(format_args!("removed the daemon, process {}", info.pid))?;
        }
    }
    let report = node::purge::purge(&yard).map_err(|error| Error::Daemon(Box::new(error)))?;
    for removed in &report.removed {
        context.line(format_args!("removed {removed}"))?;
    }
    for error in &report.errors {
        context.note(format_args!("error: {error}"));
    }
    if report.removed.is_empty() && report.errors.is_empty() {
        context.note(format_args!("nothing of yard {} was left", yard.name));
    }
    Ok(u8::from(!report.errors.is_empty()))
}

async fn info_of(yard: &Yard) -> Result<Info, Error> {
    info(&Client::new(&yard.socket)).await
}

async fn info(client: &Client) -> Result<Info, Error> {
    let (value, _) = client.request_json(Request::get("/podyard/v1/info")).await?;
    serde_json::from_value(value)
        .map_err(|error| Error::Usage(format!("the daemon's answer is garbled: {error}")))
}

/// The yard that a daemon drives. Flags that name another one are a mistake that must not cost anything.
fn driven(info: &Info, place: &Place, wished: &Yard) -> Result<Yard, Error> {
    let usage = |error: node::Error| Error::Usage(error.to_string());
    let mut yard = if info.isolated { Yard::isolated(&info.name).map_err(usage)? } else { Yard::host() };
    yard.data_dir = (&info.data_dir).into();
    yard.run_dir = (&info.run_dir).into();
    yard.log_dir = (&info.log_dir).into();
    yard.socket = (&info.socket).into();
    yard.node.clone_from(&info.node);
    yard.cgroup_parent.clone_from(&info.cgroup);
    let same = (&yard.name, &yard.data_dir, &yard.run_dir, &yard.log_dir)
        == (&wished.name, &wished.data_dir, &wished.run_dir, &wished.log_dir);
    if place.is_given() && !same {
        return Err(Error::Usage(format!(
            "the daemon on {} drives yard {} ({}, {}), which is not the one that the flags name",
            wished.socket.display(),
            yard.name,
            yard.data_dir.display(),
            yard.run_dir.display()
        )));
    }
    Ok(yard)
}

fn pidfd(pid: u32) -> Result<OwnedFd, Error> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let id = id.ok_or_else(|| Error::Usage(format!("{pid} is no process id")))?;
    pidfd_open(id, PidfdFlags::empty()).map_err(|errno| Error::errno(format!("pidfd_open({pid})"), errno))
}

/// Asks the daemon to end and waits until it has. Its pods run on.
fn end(pidfd: &OwnedFd, pid: u32) -> Result<(), Error> {
    match pidfd_send_signal(pidfd, Signal::TERM) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        sent => sent.map_err(|errno| Error::errno(format!("pidfd_send_signal({pid}, SIGTERM)"), errno))?,
    }
    let limit = Timespec { tv_sec: END_WITHIN.as_secs().cast_signed(), tv_nsec: 0 };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    match poll(&mut fds, Some(&limit)) {
        Ok(0) => {
            Err(Error::Usage(format!("the daemon, process {pid}, does not end: nothing else was touched")))
        }
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::errno(format!("wait for process {pid}"), errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        place: Place,
    }

    #[test]
    fn the_daemons_yard_is_taken_unless_the_flags_name_another() {
        let info = Info {
            name: "t".into(),
            isolated: true,
            data_dir: "/d".into(),
            run_dir: "/r".into(),
            log_dir: "/l".into(),
            socket: "/r/podyard.sock".into(),
            cgroup: "/podyard-t".into(),
            ..Info::default()
        };
        let globals = Globals { socket: Some("/r/podyard.sock".into()), namespace: None };
        let driven = |line: &str| {
            let place = Line::try_parse_from(line.split(' ')).unwrap().place;
            driven(&info, &place, &place.yard(&globals).unwrap())
        };
        assert_eq!(driven("purge").unwrap().data_dir.as_os_str(), "/d");
        assert!(driven("purge --isolated --name t --data-dir /d --run-dir /r --log-dir /l").is_ok());
        assert!(driven("purge --isolated --name other").is_err());
        assert!(driven("purge --data-dir /other").is_err());
    }
}
