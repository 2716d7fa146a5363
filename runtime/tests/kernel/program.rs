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

pub fn errno(e: &std::io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// Seconds of the monotonic and of the boot-time clock.
pub fn clocks() -> String {
    use nix::time::{ClockId, clock_gettime};
    let seconds = |clock| clock_gettime(clock).unwrap().tv_sec();
    format!("{} {}", seconds(ClockId::CLOCK_MONOTONIC), seconds(ClockId::CLOCK_BOOTTIME))
}

/// The number of the session keyring; empty where there are none.
pub fn session_keyring() -> String {
    let (get_id, session) = (0, -3);
    // SAFETY: integers only.
    match unsafe { libc::syscall(libc::SYS_keyctl, get_id, session, 0) } {
        -1 => String::new(),
        number => number.to_string(),
    }
}

/// A call as a 32-bit program makes it.
#[cfg(target_arch = "x86_64")]
fn int80(number: u32, first: u32, second: u32) -> i32 {
    let result;
    // SAFETY: the calls tested take integers or a null pointer. rbx is the compiler's own, and kept.
    unsafe {
        std::arch::asm!(
            "xchg {first:r}, rbx", "int 0x80", "xchg {first:r}, rbx",
            first = inout(reg) u64::from(first) => _,
            inlateout("eax") number => result,
            in("ecx") second,
            in("edx") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}

#[cfg(not(target_arch = "x86_64"))]
fn int80(_: u32, _: u32, _: u32) -> i32 {
    -38
}

/// A call with x32's bit set, without arguments.
fn x32(number: i64) -> i64 {
    // SAFETY: integers only.
    match unsafe { libc::syscall(0x4000_0000 | number, -1, 0, 0) } {
        -1 => -i64::from(Errno::last_raw()),
        other => other,
    }
}

pub fn run(words: &[&str]) -> std::io::Result<String> {
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
        ["mount-tmpfs", path] => {
            use nix::mount::{MsFlags, mount};
            mount(Some("inside"), *path, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            "mounted".into()
        }
        ["mount-sysfs", path] => {
            use nix::mount::{MsFlags, mount};
            mount(Some("inside"), *path, Some("sysfs"), MsFlags::empty(), None::<&str>)?;
            "mounted".into()
        }
        // Options of the mount at a path, its propagation, and the options of its filesystem.
        ["mountinfo", path] => {
            let table = std::fs::read_to_string("/proc/self/mountinfo")?;
            let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(*path));
            let Some((mount, fs)) = line.and_then(|line| line.split_once(" - ")) else {
                return Ok("not mounted".into());
            };
            let mount: Vec<&str> = mount.split(' ').skip(5).collect();
            format!("{} - {fs}", mount.join(" "))
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
        ["clocks"] => clocks(),
        ["session-keyring"] => session_keyring(),
        ["sched"] => {
            // Source: sched_getattr(2).
            let mut attr = [0_u32; 14];
            // SAFETY: the kernel writes at most the size given.
            let ret = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, attr.as_mut_ptr(), 56, 0) };
            if ret < 0 {
                return Err(std::io::Error::last_os_error());
            }
            format!("{} {} {} {}", attr[1], attr[4] as i32, attr[5], attr[2])
        }
        // SAFETY: integers only.
        ["ioprio"] => unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) }.to_string(),
        // SAFETY: integers only; this value asks and changes nothing.
        ["personality"] => unsafe { libc::personality(0xffff_ffff) }.to_string(),
        ["machine"] => nix::sys::utsname::uname()?.machine().to_string_lossy().into_owned(),
        ["affinity"] => {
            let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
            let all: Vec<String> =
                (0..1024).filter(|cpu| set.is_set(*cpu).unwrap()).map(|cpu| cpu.to_string()).collect();
            all.join(",")
        }
        ["mempolicy"] => {
            let (mut mode, mut nodes) = (0_i32, [0_u64; 16]);
            // SAFETY: the kernel writes one int and the bits it is told there are.
            let ret = unsafe {
                libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes.as_mut_ptr(), 1024, 0, 0)
            };
            if ret < 0 {
                return Err(std::io::Error::last_os_error());
            }
            format!("{mode} {}", nodes[0])
        }
        ["int80", number, first, second] => {
            int80(number.parse().unwrap(), first.parse().unwrap(), second.parse().unwrap()).to_string()
        }
        ["x32", number] => x32(number.parse().unwrap()).to_string(),
        ["trapped", "mkdir"] => {
            static SEEN: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);
            extern "C" fn note(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
                // SAFETY: the kernel passes a valid siginfo to a handler that asked for one.
                SEEN.store(unsafe { (*info).si_errno }, std::sync::atomic::Ordering::Relaxed);
            }
            // SAFETY: integers and a pointer; zero is no flags and an empty mask.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = note as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            // SAFETY: the handler only stores to an atomic.
            unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
            // What it returns is what was in the register; the handler tells.
            _ = std::fs::create_dir("/made");
            format!("SIGSYS errno {}", SEEN.load(std::sync::atomic::Ordering::Relaxed))
        }
        // As a hook: what it was told, and where it ran.
        ["hook", path] => {
            let mut state = String::new();
            std::io::stdin().read_to_string(&mut state)?;
            let namespace = |kind: &str| {
                let link = std::fs::read_link(format!("/proc/self/ns/{kind}"));
                link.map_or("none".into(), |link| link.display().to_string())
            };
            let line = serde_json::json!({
                "state": serde_json::from_str::<serde_json::Value>(&state)?,
                "mnt": namespace("mnt"), "pid": namespace("pid"), "self": std::process::id(),
                "group": nix::unistd::getpgrp().as_raw(),
                "env": std::env::vars().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
                "fds": run(&["ls", "/proc/self/fd"]).unwrap_or_default(),
                "cwd": std::env::current_dir()?,
            });
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            writeln!(file, "{line}")?;
            "told".into()
        }
        ["fail", code] => {
            eprintln!("it is by design");
            // SAFETY: ends this process, of which nothing is left to do.
            unsafe { libc::_exit(code.parse().unwrap()) }
        }
        ["die"] => nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).map(|()| "alive".into())?,
        // The magic number of the filesystem at a path, written to a file.
        ["filesystem", path, file] => {
            let found = rustix::fs::statfs(*path)?;
            std::fs::write(file, format!("{:x}", found.f_type))?;
            "written".into()
        }
        // Holds a lock, together with a child of its own, for ever.
        ["hold", path] => {
            use std::os::fd::AsRawFd;
            let file = std::fs::File::create(path)?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            let kept = nix::unistd::dup(&file)?;
            assert!(kept.as_raw_fd() > 2);
            std::process::Command::new("/proc/self/exe").args(["--program", "sleep"]).spawn()?;
            return run(&["sleep"]);
        }
        // A child that goes on, its output still ours.
        ["daemon"] => {
            std::process::Command::new("/proc/self/exe").args(["--program", "sleep"]).spawn()?;
            "spawned".into()
        }
        ["sleep"] => {
            std::thread::sleep(std::time::Duration::from_secs(600));
            "slept".into()
        }
        _ => return crate::attack::run(words),
    })
}
