//! A program whose system calls are looked at one by one, and let through, refused, or made its last.
//!
//! The kernel asks by way of a seccomp listener, for the program and everything it clones or executes, so that also the
//! first process of a container is heard of. What only concerns the program's own memory is not asked.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A system call about to be made.
pub struct Call {
    pub pid: i32,
    pub number: i64,
    pub args: [u64; 6],
}

/// What becomes of it.
pub enum Verdict {
    Go,
    Fail(i32),
    /// The process is killed instead.
    Kill,
}

type Judge = dyn FnMut(&Call) -> Verdict + Send;

/// A running program.
pub struct Supervised {
    child: Pid,
    judge: Arc<Mutex<Box<Judge>>>,
}

/// Not asked: what only concerns the process's own memory and signals, its end, and what this file itself uses.
const UNASKED: &[i64] = &[
    libc::SYS_sendto,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_futex,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_close,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_getaffinity,
    libc::SYS_dup3,
];

impl Supervised {
    /// Starts it, its output in `output`, and asks `judge` about each of its calls from now on.
    pub fn start(
        program: &Path,
        args: &[&str],
        output: &std::fs::File,
        judge: impl FnMut(&Call) -> Verdict + Send + 'static,
    ) -> Self {
        let text = |s: &str| CString::new(s).unwrap();
        let path = text(program.to_str().unwrap());
        let words: Vec<CString> = [program.to_str().unwrap()].iter().chain(args).map(|s| text(s)).collect();
        let environment = [text("PATH=/bin"), text("RUST_BACKTRACE=0")];
        let filter = filter();
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: the child uses what was made above, and ends in execve or _exit.
        let child = match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let code = become_supervised(&path, &words, &environment, &filter, &theirs, &null, output);
                // SAFETY: ends this copy of the process.
                unsafe { libc::_exit(code) }
            }
            nix::unistd::ForkResult::Parent { child } => child,
        };
        drop(theirs);
        let mut number = [0; 4];
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        ours.recv(&mut number).expect("the child says which descriptor its listener is");
        let named = rustix::process::Pid::from_raw(child.as_raw()).unwrap();
        let pidfd = rustix::process::pidfd_open(named, rustix::process::PidfdFlags::empty()).unwrap();
        let flags = rustix::process::PidfdGetfdFlags::empty();
        let listener = rustix::process::pidfd_getfd(&pidfd, i32::from_ne_bytes(number), flags).unwrap();
        let judge: Box<Judge> = Box::new(judge);
        let judge = Arc::new(Mutex::new(judge));
        let judging = Arc::clone(&judge);
        std::thread::spawn(move || serve(&listener, &judging));
        Self { child, judge }
    }

    /// Waits for the program itself: its exit code, or 128 and the signal; `None` if it takes too long, and is killed.
    /// What it leaves running is let be from now on.
    pub fn wait(self, limit: Duration) -> Option<i32> {
        let start = Instant::now();
        let code = loop {
            match waitpid(self.child, Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::Exited(_, code) => break Some(code),
                WaitStatus::Signaled(_, signal, _) => break Some(128 + signal as i32),
                _ if start.elapsed() > limit => {
                    nix::sys::signal::kill(self.child, nix::sys::signal::Signal::SIGKILL).unwrap();
                    waitpid(self.child, None).unwrap();
                    break None;
                }
                _ => std::thread::sleep(Duration::from_micros(300)),
            }
        };
        *self.judge.lock().unwrap() = Box::new(|_| Verdict::Go);
        code
    }
}

/// Runs in the child; returns an exit code only on failure.
fn become_supervised(
    path: &CString,
    words: &[CString],
    environment: &[CString],
    filter: &[libc::sock_filter],
    socket: &std::os::unix::net::UnixDatagram,
    null: &std::fs::File,
    output: &std::fs::File,
) -> i32 {
    for (from, to) in [(null, 0), (output, 1), (output, 2)] {
        // SAFETY: this process is about to become another program.
        if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
            return 90;
        }
    }
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the structure has the kernel's layout, and outlives the call.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    if listener < 0 {
        return 91;
    }
    let number = (listener as i32).to_ne_bytes();
    // SAFETY: pointer and length are those of `number`. send(2) is sendto, which is not asked about.
    if unsafe { libc::send(socket.as_raw_fd(), number.as_ptr().cast(), number.len(), 0) } < 0 {
        return 92;
    }
    match nix::unistd::execve(path, words, environment) {
        Ok(never) => match never {},
        Err(_) => 93,
    }
}

/// Everything but [`UNASKED`] is asked about.
fn filter() -> Vec<libc::sock_filter> {
    let instruction = |code: u32, jt: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (at, number) in UNASKED.iter().enumerate() {
        let allow = UNASKED.len() - at;
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, allow as u8, *number as u32));
    }
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF));
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    program
}

/// Answers until nobody with this filter is left.
fn serve(listener: &OwnedFd, judge: &Mutex<Box<Judge>>) {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => panic!("poll(listener): {e}"),
        }
        let ready = fds[0].revents().unwrap_or(PollFlags::empty());
        if !ready.contains(PollFlags::POLLIN) {
            if ready.contains(PollFlags::POLLHUP) {
                return;
            }
            continue;
        }
        // SAFETY: all-zero is what the kernel asks for.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one such structure, which outlives the call.
        if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut asked) }
            < 0
        {
            // It was killed meanwhile.
            continue;
        }
        let call = Call { pid: asked.pid as i32, number: i64::from(asked.data.nr), args: asked.data.args };
        let mut answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error: 0, flags: 0 };
        match (*judge.lock().unwrap())(&call) {
            Verdict::Go => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Verdict::Fail(errno) => answer.error = -errno,
            Verdict::Kill => {
                let signal = nix::sys::signal::Signal::SIGKILL;
                nix::sys::signal::kill(Pid::from_raw(call.pid), signal).unwrap();
                continue;
            }
        }
        // SAFETY: the kernel reads one such structure. ENOENT: it was killed meanwhile.
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw const answer) };
    }
}

/// The text at an address of the caller's memory.
pub fn text_at(call: &Call, address: u64) -> String {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 512];
    let read = std::fs::File::open(format!("/proc/{}/mem", call.pid))
        .and_then(|memory| memory.read_at(&mut bytes, address))
        .unwrap_or(0);
    let end = bytes[..read].iter().position(|b| *b == 0).unwrap_or(read);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A file in memory for a program's output.
pub fn output() -> std::fs::File {
    let fd = rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    std::fs::File::from(fd)
}

/// What was written to [`output`].
pub fn written(file: &std::fs::File) -> String {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
