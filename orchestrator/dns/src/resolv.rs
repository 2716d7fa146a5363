//! The host's `/etc/resolv.conf`: read, and read again when it changes.
//!
//! Source: resolv.conf(5), inotify(7).

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tracing::warn;

use crate::PORT;

/// As many as the C libraries take.
const NAMESERVERS_MAX: usize = 3;

/// What we take of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolv {
    /// Whom to ask, in this order.
    pub nameservers: Vec<SocketAddr>,
    /// Domains that short names are tried in.
    pub search: Vec<String>,
    /// Names with so many dots are tried as they are first; the C libraries' default is one.
    pub ndots: usize,
}

impl Default for Resolv {
    fn default() -> Resolv {
        Resolv { nameservers: Vec::new(), search: Vec::new(), ndots: 1 }
    }
}

impl Resolv {
    /// Reads the file's text. What is not understood is passed over, as the C libraries do.
    pub fn parse(text: &str) -> Resolv {
        let mut resolv = Resolv::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                // Scoped addresses (fe80::1%eth0) are passed over: the scope is another namespace's.
                (Some("nameserver"), Some(address)) => {
                    let address = address.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT));
                    resolv.nameservers.extend(address);
                }
                // The last one counts.
                (Some("search" | "domain"), Some(first)) => {
                    let domains = std::iter::once(first).chain(words);
                    resolv.search = domains.map(|name| name.trim_end_matches('.').to_owned()).collect();
                    resolv.search.retain(|name| !name.is_empty());
                }
                (Some("options"), Some(first)) => {
                    let mut options = std::iter::once(first).chain(words);
                    let ndots = options.find_map(|option| option.strip_prefix("ndots:")?.parse().ok());
                    resolv.ndots = ndots.unwrap_or(resolv.ndots).min(15);
                }
                _ => {}
            }
        }
        resolv.nameservers.truncate(NAMESERVERS_MAX);
        resolv
    }

    /// Reads a file; one that is not there says nothing.
    ///
    /// # Errors
    /// The file's.
    pub fn read(path: &Path) -> io::Result<Resolv> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(Resolv::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Resolv::default()),
            Err(error) => Err(error),
        }
    }
}

/// Tells what the file says whenever that changes, for as long as anybody listens. Sleeps in between.
///
/// # Errors
/// Those of inotify; what was told last stays.
///
/// # Cancellation
/// May stop anywhere.
pub async fn watch(path: &Path, told: watch::Sender<Resolv>) -> io::Result<()> {
    loop {
        // Armed anew each time, before reading: a link may point elsewhere by now.
        #[expect(
            deprecated,
            reason = "an Inotify stays open for as long as it is registered; register is unsafe"
        )]
        let inotify = AsyncFd::with_interest(Armed::new(path)?, Interest::READABLE)?;
        match Resolv::read(path) {
            Ok(resolv) => {
                told.send_if_modified(|old| {
                    let differs = *old != resolv;
                    *old = resolv;
                    differs
                });
            }
            Err(error) => warn!(path = %path.display(), %error, "read the host's nameservers"),
        }
        loop {
            let mut ready = tokio::select! {
                ready = inotify.readable() => ready?,
                () = told.closed() => return Ok(()),
            };
            if inotify.get_ref().is_concerned()? {
                break;
            }
            ready.clear_ready();
        }
    }
}

/// Watches the directories in which the file, and what it links to, come and go.
struct Armed {
    inotify: Inotify,
    names: Vec<OsString>,
}

impl AsFd for Armed {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl std::os::fd::AsRawFd for Armed {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.inotify.as_fd())
    }
}

impl Armed {
    fn new(path: &Path) -> io::Result<Armed> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut names = Vec::new();
        for (directory, name) in places(path) {
            inotify.add_watch(&directory, changes)?;
            names.push(name);
        }
        Ok(Armed { inotify, names })
    }

    /// Reads what came, and whether any of it is about the file.
    fn is_concerned(&self) -> io::Result<bool> {
        match self.inotify.read_events() {
            // Without a name: about a directory itself, or that events were lost.
            Ok(events) => Ok(events.iter().any(|event| match &event.name {
                Some(name) => self.names.contains(name),
                None => true,
            })),
            Err(nix::errno::Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Where a change of the file shows: beside it, and beside what it links to; the nearest directory that is there.
fn places(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut places = Vec::new();
    let mut path = path.to_owned();
    // Links of links beyond these are somebody's joke.
    for _ in 0..4 {
        let mut at = path.as_path();
        while let (Some(directory), Some(name)) = (at.parent(), at.file_name()) {
            if directory.is_dir() {
                places.push((directory.to_owned(), name.to_owned()));
                break;
            }
            at = directory;
        }
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        let check = |text: &str, nameservers: &[&str], search: &[&str]| {
            let resolv = Resolv::parse(text);
            let told: Vec<String> = resolv.nameservers.iter().map(|one| one.ip().to_string()).collect();
            assert_eq!(
                (told, resolv.search),
                (
                    nameservers.iter().map(|s| s.to_string()).collect(),
                    search.iter().map(|s| s.to_string()).collect()
                ),
                "{text}"
            );
        };
        check("", &[], &[]);
        check("# nameserver 1.1.1.1\n;x\nnameserver 10.0.0.1\n", &["10.0.0.1"], &[]);
        check("nameserver ::1\nnameserver x\n  nameserver\t9.9.9.9 # mine", &["::1", "9.9.9.9"], &[]);
        check("domain a.example\nsearch b.example. c.example\n", &[], &["b.example", "c.example"]);
        check("search .\noptions ndots:2", &[], &[]);
        let four = "nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\nnameserver 1.0.0.4";
        check(four, &["1.0.0.1", "1.0.0.2", "1.0.0.3"], &[]);
        check("nameserver fe80::1%eth0", &[], &[]);
    }

    #[tokio::test]
    async fn changes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let (told, mut heard) = watch::channel(Resolv::default());
        let watched = path.clone();
        let task = tokio::spawn(async move { watch(&watched, told).await });
        let mut expect = async |search: &str| {
            let is = |resolv: &Resolv| resolv.search.join(" ") == search;
            let heard = tokio::time::timeout(std::time::Duration::from_secs(10), heard.wait_for(is)).await;
            heard.expect(search).unwrap();
        };
        std::fs::write(&path, "search a").unwrap();
        expect("a").await;
        // In place, by renaming, by a link, by its target, by a directory that was not there.
        std::fs::write(&path, "search b").unwrap();
        expect("b").await;
        std::fs::write(dir.path().join("new"), "search c").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        expect("c").await;
        std::fs::remove_file(&path).unwrap();
        expect("").await;
        std::os::unix::fs::symlink("run/stub", &path).unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        std::fs::write(dir.path().join("run/stub"), "search d").unwrap();
        expect("d").await;
        std::fs::write(dir.path().join("run/stub"), "search e").unwrap();
        expect("e").await;
        task.abort();
    }
}
