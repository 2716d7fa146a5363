//! `ns enter`: a program of the host's, inside a pod's namespaces.
//!
//! ```text
//!   podyard ── thread ── unshare(CLONE_FS), setns(pidfd, …) ── fork, exec ── the program
//!                 ends with it; the rest of podyard never left the host
//! ```
//! A process is named by its pidfd, and checked to be in the namespace that the daemon told, so that a pid that was
//! used again cannot lead us elsewhere. Source: setns(2), pidfd_open(2).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use client::Request;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use server::yard::{Info, NamespaceMap};
use tokio::signal::unix::{SignalKind, signal};

use super::super::context::Context;
use super::super::error::{Error, Outcome};
use super::Place;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// POD or POD/CONTAINER
    #[arg(required_unless_present_any = ["host", "node"], value_name = "POD[/CONTAINER]")]
    place: Option<String>,
    /// The network namespace
    #[arg(long)]
    net: bool,
    /// The mount namespace: the program is then the container's own
    #[arg(long)]
    mnt: bool,
    /// The PID namespace
    #[arg(long)]
    pid: bool,
    /// The IPC namespace
    #[arg(long)]
    ipc: bool,
    /// The UTS namespace (hostname)
    #[arg(long)]
    uts: bool,
    /// The namespace that plays the host in an isolated yard
    #[arg(long, conflicts_with_all = ["place", "node"])]
    host: bool,
    /// The network namespace of the yard's node
    #[arg(long, conflicts_with = "place")]
    node: bool,
    /// The program and its arguments; without --mnt it is the host's
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What a thread needs to get in.
struct Door {
    /// A pidfd or a namespace's fd, and what to take from it.
    entries: Vec<(OwnedFd, CloneFlags)>,
}

pub async fn run(context: &Context, args: Args) -> Outcome {
    let door = match &args.place {
        Some(word) => {
            let place = Place::parse(word, context.namespace());
            open(&super::fetch(context, &[]).await?, &place, &kinds(&args))?
        }
        None => yards_own(context, args.host).await?,
    };
    // Both get ^C from the terminal; the program decides what it means. Handlers do not survive its exec.
    let _interrupt = signal(SignalKind::interrupt());
    let _quit = signal(SignalKind::quit());
    let command = args.command;
    let thread = std::thread::spawn(move || enter(door, &command));
    let joined = tokio::task::spawn_blocking(|| thread.join()).await;
    match joined {
        Ok(Ok(outcome)) => outcome,
        _ => Err(Error::Usage("the thread that entered died".to_string())),
    }
}

/// The kinds to enter; without flags those that a pod's containers share, so that the host's tools stay at hand.
fn kinds(args: &Args) -> Vec<&'static str> {
    let flags =
        [("net", args.net), ("ipc", args.ipc), ("uts", args.uts), ("pid", args.pid), ("mnt", args.mnt)];
    if flags.iter().all(|(_, set)| !set) {
        return vec!["net", "ipc", "uts"];
    }
    flags.into_iter().filter(|(_, set)| *set).map(|(kind, _)| kind).collect()
}

fn flag(kind: &str) -> CloneFlags {
    match kind {
        "net" => CloneFlags::CLONE_NEWNET,
        "ipc" => CloneFlags::CLONE_NEWIPC,
        "uts" => CloneFlags::CLONE_NEWUTS,
        "pid" => CloneFlags::CLONE_NEWPID,
        "mnt" => CloneFlags::CLONE_NEWNS,
        _ => CloneFlags::empty(),
    }
}

async fn yards_own(context: &Context, host: bool) -> Result<Door, Error> {
    let (value, _) = context.client.request_json(Request::get("/podyard/v1/info")).await?;
    let info: Info = serde_json::from_value(value)
        .map_err(|error| Error::Usage(format!("the daemon's answer is garbled: {error}")))?;
    let path = match (host, info.host_netns, info.node_netns) {
        (true, Some(path), _) | (false, _, Some(path)) => path,
        (true, None, _) => {
            return Err(Error::Usage(
                "this yard is not isolated: its host is the host you are on".to_string(),
            ));
        }
        (false, _, None) => return Err(Error::Usage("the daemon names no node namespace".to_string())),
    };
    let file = File::open(&path).map_err(|error| Error::io(format!("open {path}"), error))?;
    Ok(Door { entries: vec![(file.into(), CloneFlags::CLONE_NEWNET)] })
}

fn open(yard: &NamespaceMap, place: &Place, kinds: &[&str]) -> Result<Door, Error> {
    let namespaces = place.namespaces(yard)?;
    let of = |kind: &str| {
        let found = namespaces.iter().find(|namespace| namespace.kind == kind);
        found.ok_or_else(|| Error::Usage(format!("pod {} has no {kind} namespace of its own", place.pod)))
    };
    if let Some(pid) = place.process(yard) {
        let pidfd = pidfd(pid)?;
        let mut flags = CloneFlags::empty();
        for kind in kinds {
            let expected = of(kind)?.inode;
            let path = format!("/proc/{pid}/ns/{kind}");
            let actual =
                std::fs::metadata(&path).map_err(|error| Error::io(format!("stat {path}"), error))?.ino();
            if actual != expected {
                return Err(Error::Usage(format!(
                    "process {pid} is in {kind}:[{actual}], not {kind}:[{expected}]: it has changed meanwhile, try again"
                )));
            }
            flags |= flag(kind);
        }
        return Ok(Door { entries: vec![(pidfd, flags)] });
    }
    let entries = kinds.iter().map(|kind| {
        let namespace = of(kind)?;
        let path = namespace.path.clone().ok_or_else(|| {
            Error::Usage(format!("no process of pod {} runs in {kind}:[{}]", place.pod, namespace.inode))
        })?;
        let file = File::open(&path).map_err(|error| Error::io(format!("open {path}"), error))?;
        Ok((OwnedFd::from(file), flag(kind)))
    });
    Ok(Door { entries: entries.collect::<Result<_, Error>>()? })
}

fn pidfd(pid: u32) -> Result<OwnedFd, Error> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let id = id.ok_or_else(|| Error::Usage(format!("{pid} is no process id")))?;
    pidfd_open(id, PidfdFlags::empty()).map_err(|errno| Error::errno(format!("pidfd_open({pid})"), errno))
}

/// On a thread of its own, which must never come back to a pool.
fn enter(door: Door, command: &[String]) -> Outcome {
    // setns into a mount namespace is refused to a thread that shares its root and cwd with others.
    unshare(CloneFlags::CLONE_FS).map_err(|errno| Error::errno("unshare(CLONE_FS)", errno))?;
    for (fd, flags) in &door.entries {
        setns(fd.as_fd(), *flags).map_err(|errno| Error::errno(format!("setns({flags:?})"), errno))?;
    }
    let (program, arguments) = command.split_first().ok_or_else(|| Error::Usage("no command".to_string()))?;
    let mut child = Command::new(program)
        .args(arguments)
        .spawn()
        .map_err(|error| Error::io(format!("run {program}"), error))?;
    let status = child.wait().map_err(|error| Error::io(format!("wait for {program}"), error))?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use server::yard::{Namespace, Process};

    fn own(kind: &str) -> Namespace {
        let pid = std::process::id();
        let inode = std::fs::metadata(format!("/proc/self/ns/{kind}")).unwrap().ino();
        let process = Process {
            pid,
            command: "test".into(),
            pod: Some("default/a".into()),
            container: Some("c".into()),
        };
        Namespace {
            kind: kind.into(),
            inode,
            path: None,
            pods: vec!["default/a".into()],
            processes: vec![process],
        }
    }

    #[test]
    fn a_process_that_is_elsewhere_is_not_followed() {
        let mut yard = NamespaceMap { namespaces: vec![own("net")], ..NamespaceMap::default() };
        let place = Place::parse("a", "default");
        assert!(open(&yard, &place, &["net"]).is_ok());
        yard.namespaces[0].inode += 1;
        assert!(open(&yard, &place, &["net"]).err().unwrap().to_string().contains("changed meanwhile"));
        assert!(open(&yard, &place, &["ipc"]).is_err());
    }

    #[test]
    fn root_a_program_runs_inside_and_we_stay_outside() {
        if !rustix::process::geteuid().is_root() {
            // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
            _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: needs root\n");
            return;
        }
        let before = std::fs::read_link("/proc/self/ns/net").unwrap();
        let (namespace, inode) = {
            let namespace = netns::Namespace::create().unwrap();
            let inode = namespace.inode().unwrap();
            (namespace, inode)
        };
        let door = || Door {
            entries: vec![(namespace.as_fd().try_clone_to_owned().unwrap(), CloneFlags::CLONE_NEWNET)],
        };
        let run = |script: String| {
            let door = door();
            std::thread::spawn(move || enter(door, &["sh".into(), "-c".into(), script]))
                .join()
                .unwrap()
                .unwrap()
        };
        assert_eq!(run(format!("test \"$(readlink /proc/self/ns/net)\" = 'net:[{inode}]'")), 0);
        assert_eq!(run("exit 7".into()), 7);
        assert_eq!(run("kill -9 $$".into()), 137);
        assert_eq!(std::fs::read_link("/proc/self/ns/net").unwrap(), before);
    }
}
