//! Inside: the first and only process that is not a test.

use std::path::Path;
use std::process::{Command, ExitStatus};

use nix::mount::{MsFlags, mount};

/// What the host looks for on the console.
pub const RESULT: &str = "vm-result:";

/// What the initramfs has besides programs, which are in `usr/bin`.
pub const DIRECTORIES: [&str; 12] =
    ["usr", "usr/bin", "usr/lib", "usr/sbin", "dev", "proc", "sys", "tmp", "run", "modules", "etc", "var"];

/// Prepares the machine, runs what the host listed, powers off.
pub fn init() -> ! {
    let code = match prepare().and_then(|()| run_all()) {
        Ok(failures) => i32::from(failures > 0),
        Err(error) => {
            println!("vm: {error}");
            2
        }
    };
    println!("\n{RESULT} {code}");
    // The console is a serial line: let it drain.
    nix::unistd::sync();
    panic!("reboot(RB_POWER_OFF): {}", crate::sys::power_off());
}

fn prepare() -> std::io::Result<()> {
    leave_initramfs()?;
    for name in ["bin", "lib", "lib64", "sbin"] {
        std::os::unix::fs::symlink(Path::new("usr").join(name), Path::new("/").join(name))?;
    }
    for (fs, to) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        std::fs::create_dir_all(to)?;
        mount(Some(fs), to, Some(fs), MsFlags::empty(), None::<&str>)?;
    }
    // In the order of their dependencies.
    for name in std::fs::read_to_string("/modules/order")?.lines() {
        let file = std::fs::File::open(Path::new("/modules").join(name))?;
        match crate::sys::load_module(&file) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => println!("vm: module {name}: {e}"),
        }
    }
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    println!("vm: Linux {release}, cgroup2 with {}", controllers.trim());
    Ok(())
}

/// The kernel's first root cannot be pivoted away from: moves everything to a tmpfs.
///
/// Source: pivot_root(2), ramfs-rootfs-initramfs.rst.
fn leave_initramfs() -> std::io::Result<()> {
    std::fs::create_dir("/new")?;
    mount(Some("root"), "/new", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    move_files(Path::new("/"), Path::new("/new"))?;
    std::env::set_current_dir("/new")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")
}

fn move_files(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source == Path::new("/new") || source == Path::new("/dev") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            move_files(&source, &target)?;
        } else {
            std::fs::copy(&source, &target)?;
            std::fs::remove_file(&source)?;
        }
    }
    Ok(())
}

/// Runs each line of `/run.list`; the number of those that failed.
fn run_all() -> std::io::Result<usize> {
    let mut failures = 0;
    for line in std::fs::read_to_string("/run.list")?.lines() {
        println!("\nvm: {line}");
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        let status: ExitStatus = Command::new(Path::new("/bin").join(program))
            .args(words)
            .env("PATH", "/bin")
            // Where tests that drive the program find it.
            .env("PODYARD_UNDER_TEST", "/bin/podyard-under-test")
            // What a test cannot do here, it must not pass over.
            .env("PODYARD_VM", "1")
            .env("RUST_BACKTRACE", "0")
            // Once each: the machine is emulated, and the fallbacks are tried outside.
            .env("PODYARD_WITHOUT", "")
            // An emulated machine has little time for races and for commands struck at each step.
            .env("PODYARD_RACE_SECONDS", "1")
            .env("PODYARD_STEPS_SECONDS", "2")
            .status()?;
        if !status.success() {
            println!("vm: {line}: {status}");
            failures += 1;
        }
        reap();
    }
    Ok(failures)
}

/// Ends what a program left behind, which became process 1's, so that the next has the machine to itself.
fn reap() {
    // ESRCH: nobody is left.
    let everyone = nix::unistd::Pid::from_raw(-1);
    match nix::sys::signal::kill(everyone, nix::sys::signal::Signal::SIGKILL) {
        Ok(()) | Err(_) => {}
    }
    use nix::sys::wait::waitpid;
    while waitpid(None, None).is_ok() {}
}
