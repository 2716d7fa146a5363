//! Network namespaces: create, pin to a path, open, and act inside one.
//!
//! A namespace lives as long as something refers to it: an open descriptor, a process, or a pin (a bind mount of
//! `/proc/…/ns/net` on a file). Work inside a foreign namespace happens on a thread that then dies: no thread of a pool ever
//! calls `setns`. Sockets made inside keep belonging to that namespace, whoever uses them later.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::Outcome;
use crate::error::{Error, Kind, Result};

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Namespace> for OwnedFd {
    fn from(namespace: Namespace) -> Self {
        namespace.fd
    }
}

impl Namespace {
    /// Creates an empty namespace (a loopback link, down) on a thread that then dies.
    ///
    /// # Errors
    /// [`Kind::Denied`] without `CAP_SYS_ADMIN`.
    ///
    /// Source: unshare(2), network_namespaces(7).
    pub fn create() -> Result<Self> {
        on_dying_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::sys("unshare(CLONE_NEWNET)", errno))?;
            Self::current()
        })?
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens a pin or a `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when nothing is there, or when the file is an old pin that a reboot left without its mount.
    pub fn open(path: &Path) -> Result<Self> {
        let call = || format!("open({})", path.display());
        let file = fs::File::open(path).map_err(|error| Error::io(call(), error))?;
        Self::from_fd(file.into()).map_err(|error| error.during(call()))
    }

    /// Takes over a descriptor received from elsewhere.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when it is not a namespace.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let stat = fstatfs(&fd).map_err(|errno| Error::sys("fstatfs(namespace)", errno))?;
        if stat.filesystem_type() != NSFS_MAGIC {
            return Err(Error::new(Kind::NotFound, "the file is no namespace"));
        }
        Ok(Self { fd })
    }

    /// The namespace pinned at `path`; created and pinned if there is none. Idempotent.
    ///
    /// # Errors
    /// As [`create`](Self::create) and [`pin`](Self::pin).
    pub fn ensure(path: &Path) -> Result<(Self, Outcome)> {
        match Self::open(path) {
            Ok(namespace) => Ok((namespace, Outcome::Unchanged)),
            Err(error) if error.kind() == Kind::NotFound => {
                let namespace = Self::create()?;
                namespace.pin(path)?;
                Ok((namespace, Outcome::Changed))
            }
            Err(error) => Err(error),
        }
    }

    /// A second descriptor of the same namespace.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|error| Error::io("fcntl(F_DUPFD_CLOEXEC)", error))?;
        Ok(Self { fd })
    }

    /// The inode number, as `readlink /proc/PID/ns/net` shows it. Equal numbers, same namespace (while both are open).
    ///
    /// # Errors
    /// `fstat` does not fail on an open descriptor.
    pub fn inode(&self) -> Result<u64> {
        let file = fs::File::from(self.try_clone()?.fd);
        Ok(file.metadata().map_err(|error| Error::io("fstat(namespace)", error))?.ino())
    }

    /// Keeps the namespace alive at `path` until [`unpin`]. Parents are created, mode as umask allows. Idempotent.
    ///
    /// # Errors
    /// [`Kind::AlreadyExists`] when another namespace is pinned there.
    ///
    /// Source: network_namespaces(7), mount(2) MS_BIND.
    pub fn pin(&self, path: &Path) -> Result<Outcome> {
        match Self::open(path) {
            Ok(there) if there.inode()? == self.inode()? => return Ok(Outcome::Unchanged),
            Ok(_) => {
                return Err(Error::new(
                    Kind::AlreadyExists,
                    format!("pin {}: another namespace is there", path.display()),
                ));
            }
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .map_err(|error| Error::io(format!("mkdir({})", parent.display()), error))?;
        }
        match fs::OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(format!("creat({})", path.display()), error)),
        }
        let source = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|errno| Error::sys(format!("mount({source}, {}, MS_BIND)", path.display()), errno))?;
        Ok(Outcome::Changed)
    }

    /// Runs `body` inside, on a thread that then dies. Blocks until it is done (starting the thread costs about 50 µs).
    ///
    /// # Errors
    /// [`Kind::Denied`] without `CAP_SYS_ADMIN`.
    ///
    /// Source: setns(2).
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        on_dying_thread(|| {
            setns(&self.fd, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::sys("setns(CLONE_NEWNET)", errno))?;
            Ok(body())
        })?
    }

    /// An unconnected, non-blocking TCP socket that belongs to this namespace.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn tcp_socket(&self, family: AddressFamily) -> Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        self.run(|| socket(family, SockType::Stream, flags, None))?
            .map_err(|errno| Error::sys("socket(SOCK_STREAM)", errno))
    }

    /// Connects from inside this namespace; usable on any tokio runtime. The caller sets the deadline.
    ///
    /// # Errors
    /// The connection's own (`ECONNREFUSED`, …), or those of [`run`](Self::run) as `io::Error::other`.
    ///
    /// # Cancellation
    /// Dropping the future closes the socket.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = self.tcp_socket(family).map_err(io::Error::other)?;
        tokio::net::TcpSocket::from_std_stream(TcpStream::from(socket)).connect(address).await
    }

    /// Connects from inside this namespace, blocking.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_blocking(
        &self,
        address: SocketAddr,
        timeout: std::time::Duration,
    ) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&address, timeout)).map_err(io::Error::other)?
    }

    /// Listens inside this namespace.
    ///
    /// # Errors
    /// `EADDRINUSE`, `EADDRNOTAVAIL`, or those of [`run`](Self::run) as `io::Error::other`.
    pub fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.run(|| TcpListener::bind(address)).map_err(io::Error::other)?
    }

    /// A UDP socket bound inside this namespace.
    ///
    /// # Errors
    /// As [`listen`](Self::listen).
    pub fn udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.run(|| UdpSocket::bind(address)).map_err(io::Error::other)?
    }
}

/// Removes the pin and its file. The namespace lives on while something else refers to it. Idempotent.
///
/// # Errors
/// [`Kind::Invalid`] when a file of someone's (not empty, not a pin) is there.
pub fn unpin(path: &Path) -> Result<Outcome> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: no mount point, a file that a crash or a reboot left behind.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(Errno::ENOENT) => return Ok(Outcome::Unchanged),
        Err(errno) => return Err(Error::sys(format!("umount2({}, MNT_DETACH)", path.display()), errno)),
    }
    let call = |verb: &str| format!("{verb}({})", path.display());
    let metadata = fs::symlink_metadata(path).map_err(|error| Error::io(call("lstat"), error))?;
    if !metadata.is_file() || metadata.len() > 0 {
        return Err(Error::new(Kind::Invalid, format!("unpin {}: not one of our pins", path.display())));
    }
    fs::remove_file(path).map_err(|error| Error::io(call("unlink"), error))?;
    Ok(Outcome::Changed)
}

/// Runs `body` on a thread of its own, so that whatever it does to its namespaces ends with it.
fn on_dying_thread<T: Send>(body: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, body)
            .map_err(|error| Error::io("clone(thread)", error))?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
