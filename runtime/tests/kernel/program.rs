//! What runs inside the containers: each argument is a command, its answer goes to standard
//! output, closed by a record separator. Answers to failures start with the errno's name.

use std::io::{Read, Write};
use std::path::Path;

use nix::errno::Errno;

pub fn main(commands: &[String]) {
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        let answer = run(&words).unwrap_or_else(|e| format!("{:?}", errno(&e)));
        let mut out = std::io::stdout();
        write!(out, "{answer}\x1e").unwrap();
        out.flush().unwrap();
    }
}

fn errno(e: &std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

fn run(words: &[&str]) -> std::io::Result<String> {
    let flags = |n: &str| nix::sched::CloneFlags::from_bits_retain(n.parse().unwrap());
    Ok(match words {
        ["cat", path] => {
            let mut bytes = Vec::new();
            std::fs::File::open(path)?.take(1 << 16).read_to_end(&mut bytes)?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
        ["write", path, text] => {
            std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)?
                .write_all(text.as_bytes())?;
            "written".into()
        }
        ["ls", path] => {
            let mut names: Vec<String> = std::fs::read_dir(path)?
                .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<_>>()?;
            names.sort();
            names.join(" ")
        }
        ["readlink", path] => std::fs::read_link(path)?.display().to_string(),
        ["mkdir", path] => std::fs::create_dir(path).map(|()| "made".into())?,
        ["stat", path] => {
            use std::os::unix::fs::MetadataExt;
            let m = std::fs::metadata(path)?;
            let (major, minor) = (rustix::fs::major(m.rdev()), rustix::fs::minor(m.rdev()));
            format!("{:o} {}:{} {major}:{minor}", m.mode(), m.uid(), m.gid())
        }
        ["cwd"] => std::env::current_dir()?.display().to_string(),
        ["env"] => std::env::vars().map(|(k, v)| format!("{k}={v}\n")).collect(),
        ["hostname"] => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        ["pid"] => std::process::id().to_string(),
        ["ids"] => {
            let groups = nix::unistd::getgroups()?;
            let groups: Vec<u32> = groups.iter().map(|g| g.as_raw()).collect();
            format!("{} {} {groups:?}", nix::unistd::getuid(), nix::unistd::getgid())
        }
        ["mount"] => {
            use nix::mount::{MsFlags, mount};
            mount(Some("t"), "/", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            "mounted".into()
        }
        ["remount-rw", path] => {
            use nix::mount::{MsFlags, mount};
            let how = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
            mount(None::<&str>, *path, None::<&str>, how, None::<&str>)?;
            "remounted".into()
        }
        ["umount", path] => {
            nix::mount::umount2(*path, nix::mount::MntFlags::MNT_DETACH)?;
            "unmounted".into()
        }
        ["unshare", bits] => nix::sched::unshare(flags(bits)).map(|()| "unshared".into())?,
        ["mknod", major, minor] => {
            let number = rustix::fs::makedev(major.parse().unwrap(), minor.parse().unwrap());
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let kind = rustix::fs::FileType::CharacterDevice;
            rustix::fs::mknodat(rustix::fs::CWD, "/dev/made", kind, mode, number)?;
            std::fs::File::open("/dev/made")?;
            "opened".into()
        }
        ["rlimit-nofile"] => {
            let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
            format!("{limit:?}")
        }
        ["chroot"] => nix::unistd::chroot("/dev").map(|()| "done".into())?,
        ["isatty"] => format!("{:?}", nix::unistd::isatty(std::io::stdin())?),
        ["ttyname"] => nix::unistd::ttyname(std::io::stdin())?.display().to_string(),
        ["exists", path] => Path::new(path).symlink_metadata().map(|_| "yes".into())?,
        ["signals"] => {
            let status = std::fs::read_to_string("/proc/self/status")?;
            let line = |n: &str| status.lines().find(|l| l.starts_with(n)).unwrap_or("").to_string();
            format!("{} {}", line("SigBlk"), line("SigIgn"))
        }
        ["loopback"] => {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            std::net::TcpStream::connect(listener.local_addr()?)?;
            "connected".into()
        }
        ["allocate", megabytes] => {
            let mut blocks = Vec::new();
            for _ in 0..megabytes.parse::<usize>().unwrap() {
                blocks.push(vec![1u8; 1 << 20]);
            }
            format!("{}", blocks.len())
        }
        ["threads", count] => {
            let mut made = 0;
            for _ in 0..count.parse::<usize>().unwrap() {
                let builder = std::thread::Builder::new().stack_size(64 * 1024);
                match builder.spawn(|| std::thread::sleep(std::time::Duration::from_secs(60))) {
                    Ok(_) => made += 1,
                    Err(e) => return Ok(format!("{made} {:?}", errno(&e))),
                }
            }
            format!("{made}")
        }
        ["spawn-sleepers", count] => {
            for _ in 0..count.parse::<usize>().unwrap() {
                std::process::Command::new("/program").args(["--program", "sleep"]).spawn()?;
            }
            "spawned".into()
        }
        ["sleep"] => {
            std::thread::sleep(std::time::Duration::from_secs(600));
            "slept".into()
        }
        other => panic!("unknown command {other:?}"),
    })
}
