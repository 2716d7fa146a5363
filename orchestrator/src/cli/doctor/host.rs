//! The host: who we are, its cgroups, its disk, its daemon.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, fdatasync, open};

use super::Check;

/// Controllers that limits of pods need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Slower than this, every `apply` is felt.
const FSYNC_SLOW: Duration = Duration::from_millis(10);

pub fn checks() -> Vec<Check> {
    let mut checks = vec![root()];
    checks.extend(capabilities(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    checks.extend(cgroups(&mounts));
    checks.push(fsync(Path::new("/var/lib/podyard")));
    checks.push(open_files());
    checks
}

fn root() -> Check {
    match rustix::process::geteuid().as_raw() {
        0 => Check::ok("root", "uid 0"),
        uid => Check::missing("root", format!("uid {uid}"), "run this, and `podyard up`, as root"),
    }
}

fn capabilities(status: &str) -> Vec<Check> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let has = |bit: u32| mask & (1 << bit) != 0;
    // Numbers from linux/capability.h.
    let needed = [(12, "CAP_NET_ADMIN"), (18, "CAP_SYS_CHROOT"), (21, "CAP_SYS_ADMIN")];
    let lacking: Vec<&str> = needed.iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| *name).collect();
    let main = if lacking.is_empty() {
        Check::ok("capabilities", "SYS_ADMIN, NET_ADMIN, SYS_CHROOT")
    } else {
        let found = format!("without {}", lacking.join(", "));
        Check::missing("capabilities", found, "run as root on the host, not in a restricted container")
    };
    let resource = if has(24) {
        Check::ok("CAP_SYS_RESOURCE", "held")
    } else {
        let fix = "pods run, but oom_score_adj below our own and rlimits above our own are refused; give it to the daemon";
        Check::warn("CAP_SYS_RESOURCE", "not held", fix)
    };
    vec![main, resource]
}

/// Source: cgroups(7), /proc/PID/mounts.
fn cgroups(mounts: &str) -> Vec<Check> {
    let rows = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.nth(1)?, fields.next()?, fields.next()?))
    });
    let mut unified = None;
    let mut v1: Vec<&str> = Vec::new();
    for (path, kind, options) in rows {
        match kind {
            "cgroup2" if unified.is_none() => unified = Some(path),
            "cgroup" => v1.extend(options.split(',').filter(|option| CONTROLLERS.contains(option))),
            _ => {}
        }
    }
    let mode = match (unified, v1.is_empty()) {
        (Some(path), true) => Check::ok("cgroups", format!("v2 at {path}")),
        (Some(path), false) => {
            Check::ok("cgroups", format!("hybrid: limits in v1, processes in v2 at {path}"))
        }
        (None, false) => Check::ok("cgroups", "v1; a private v2 tree will hold the processes"),
        (None, true) => {
            let fix = "mount -t cgroup2 none /sys/fs/cgroup";
            Check::missing("cgroups", "no cgroup file system is mounted", fix)
        }
    };
    let in_v2 = unified
        .and_then(|path| std::fs::read_to_string(Path::new(path).join("cgroup.controllers")).ok())
        .unwrap_or_default();
    let lacking: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| !v1.contains(name) && !in_v2.split_whitespace().any(|found| found == *name))
        .collect();
    let controllers = if lacking.is_empty() {
        Check::ok("controllers", CONTROLLERS.join(", "))
    } else {
        let fix =
            "pods run without these limits; boot with cgroup_enable=memory, or enable them in the kernel";
        Check::warn("controllers", format!("without {}", lacking.join(", ")), fix)
    };
    vec![mode, controllers]
}

/// The median of some 4 KiB appends made durable, in the data directory or the nearest directory above it.
fn fsync(data: &Path) -> Check {
    let name = "fsync";
    let Some(dir) = data.ancestors().find(|dir| dir.is_dir()) else {
        return Check::warn(name, "no directory to try it in", "create /var/lib/podyard");
    };
    match latency(dir) {
        Ok(median) if median <= FSYNC_SLOW => {
            Check::ok(name, format!("{} µs in {}", median.as_micros(), dir.display()))
        }
        Ok(median) => {
            let found = format!("{} µs in {}", median.as_micros(), dir.display());
            Check::warn(name, found, "every write waits for this; put --data-dir on a faster disk")
        }
        Err(error) => {
            Check::warn(name, format!("{}: {error}", dir.display()), "make the data directory writable")
        }
    }
}

fn latency(dir: &Path) -> std::io::Result<Duration> {
    // O_TMPFILE has no name: nothing is left whatever happens.
    let fd = open(dir, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
    let mut file = std::fs::File::from(fd);
    let mut times = Vec::new();
    for _ in 0..9 {
        let begin = Instant::now();
        file.write_all(&[0; 4096])?;
        fdatasync(&file)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn open_files() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < 4096 => {
            Check::warn("open files", limit.to_string(), "ulimit -n 65536, or LimitNOFILE=65536 in the unit")
        }
        Some(limit) => Check::ok("open files", limit.to_string()),
        None => Check::ok("open files", "unlimited"),
    }
}

/// Whether a daemon answers; none need.
pub fn daemon(socket: &Path) -> Check {
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => Check::ok("daemon", format!("answers on {}", socket.display())),
        Err(error) => {
            Check::warn("daemon", format!("{}: {error}", socket.display()), "start one with `podyard up`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn cgroup_modes() {
        let check = |mounts: &str, expect: &str| {
            let checks = cgroups(mounts);
            assert!(checks[0].found.starts_with(expect), "{checks:?}");
        };
        check("none /nonexistent cgroup2 rw 0 0\n", "v2");
        let v1 = "c /c cgroup rw,cpu,cpuacct 0 0\nm /m cgroup rw,memory 0 0\np /p cgroup rw,pids 0 0\n";
        check(&format!("{v1}none /nonexistent cgroup2 rw 0 0\n"), "hybrid");
        check(v1, "v1");
        assert_eq!(cgroups(v1)[1].verdict, Verdict::Ok);
        assert_eq!(cgroups("")[0].verdict, Verdict::Missing);
    }

    #[test]
    fn capability_masks() {
        let verdicts =
            |status: &str| capabilities(status).iter().map(|check| check.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts("CapEff:\t000001ffffffffff\n"), [Verdict::Ok, Verdict::Ok]);
        assert_eq!(verdicts("CapEff:\t000001fffeffffff\n"), [Verdict::Ok, Verdict::Warn]);
        assert_eq!(verdicts("CapEff:\t0000000000000000\n"), [Verdict::Missing, Verdict::Warn]);
    }
}
