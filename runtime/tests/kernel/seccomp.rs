//! Filters: every action, calls by other ABIs, and an agent that decides.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use runtime::container::create;
use runtime::exec::{ExecRequest, Executed, exec};
use serde_json::{Value, json};

use crate::fixture::{Case, Directory, Outcome, output, wait};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_seccomp_actions", actions),
    ("root_seccomp_32_bit_calls", calls_of_32_bits),
    ("root_seccomp_x32_calls", calls_of_x32),
    ("root_seccomp_agent_decides", agent_decides),
    ("root_seccomp_agent_missing", agent_missing),
];

fn profile(action: &str, names: &[&str]) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": names, "action": action}]})
}

fn actions() {
    // SIGSYS is 31.
    for (action, code, answer) in [
        ("SCMP_ACT_KILL_PROCESS", 128 + 31, ""),
        ("SCMP_ACT_KILL", 128 + 31, ""),
        ("SCMP_ACT_KILL_THREAD", 128 + 31, ""),
        ("SCMP_ACT_TRAP", 128 + 31, ""),
        ("SCMP_ACT_ERRNO", 0, "EPERM"),
        // Nobody traces.
        ("SCMP_ACT_TRACE", 0, "ENOSYS"),
        ("SCMP_ACT_LOG", 0, "made"),
        ("SCMP_ACT_ALLOW", 0, "made"),
    ] {
        let case = Case::new(&["mkdir /made"]).set("/linux/seccomp", profile(action, &["mkdir", "mkdirat"]));
        let outcome = case.run().unwrap();
        assert_eq!((outcome.code, outcome.answer(0)), (code, answer), "{action}");
    }
    // What a handler finds of a trap.
    let mut trap = profile("SCMP_ACT_TRAP", &["mkdir", "mkdirat"]);
    trap["syscalls"][0]["errnoRet"] = json!(42);
    let outcome = Case::new(&["trapped mkdir"]).set("/linux/seccomp", trap).run().unwrap();
    assert_eq!(outcome.answer(0), "SIGSYS errno 42");
    let flags = json!([
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
    ]);
    let mut flagged = profile("SCMP_ACT_ERRNO", &["mkdir", "mkdirat"]);
    flagged["flags"] = flags;
    let outcome = Case::new(&["mkdir /made"]).set("/linux/seccomp", flagged).run().unwrap();
    assert_eq!(outcome.answer(0), "EPERM");
}

/// Whether this machine answers such a call at all.
fn here(command: &str) -> bool {
    let run = std::process::Command::new("/proc/self/exe").args(["--program", command]).output().unwrap();
    let answer = String::from_utf8_lossy(&run.stdout);
    run.status.success() && !answer.starts_with('-')
}

fn calls_of_32_bits() {
    // getpid is 20 there, mkdir 39, and 102 and 117 are many in one.
    if !here("int80 20 0 0") {
        println!("SKIP: no 32-bit calls on this machine");
        return;
    }
    let commands =
        ["int80 20 0 0", "int80 39 0 0", "int80 102 1 0", "int80 102 2 0", "int80 117 23 0", "mkdir /made"];
    let deny = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat", "socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
            {"names": ["shmget"], "action": "SCMP_ACT_ERRNO", "errnoRet": 78,
             "args": [{"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}]},
        ],
    });
    let outcome = Case::new(&commands).set("/linux/seccomp", deny.clone()).run().unwrap();
    assert_eq!(outcome.answer(0), "1");
    assert_eq!(outcome.answer(1), "-77", "its own number");
    assert_eq!(outcome.answer(2), "-77", "through socketcall too");
    assert_eq!(outcome.answer(3), "-14", "but bind, which faults");
    assert_eq!(outcome.answer(4), "-78", "conditions that cannot be seen are met");
    assert_eq!(outcome.answer(5), nix::errno::Errno::from_raw(77).to_string().split(':').next().unwrap());
    let mut without = deny;
    without["architectures"] = json!(["SCMP_ARCH_X86_64"]);
    let outcome = Case::new(&commands).set("/linux/seccomp", without).run().unwrap();
    assert_eq!(outcome.answer(0), "-38", "a profile that is silent about them has none");
    assert_eq!(outcome.answer(1), "-38");
}

fn calls_of_x32() {
    let deny = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["getpid", "ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}],
    });
    // getpid is 39, ioctl 514 there and 16 elsewhere. A filter is asked before the kernel looks whether it has such calls.
    let commands = ["x32 39", "x32 514", "x32 39"];
    let outcome = Case::new(&commands).set("/linux/seccomp", deny.clone()).run().unwrap();
    if cfg!(not(target_arch = "x86_64")) {
        println!("SKIP: x32 is x86-64's");
        return;
    }
    assert_eq!([outcome.answer(0), outcome.answer(1)], ["-77", "-77"]);
    let mut without = deny;
    without["architectures"] = json!(["SCMP_ARCH_X86_64"]);
    let outcome = Case::new(&commands).set("/linux/seccomp", without).run().unwrap();
    assert_eq!(outcome.answer(0), "-38");
}

/// An agent in a process of its own: writes what it was told to a file, refuses to make directories with EXDEV and lets
/// all else go on.
fn agent(directory: &Path) -> nix::unistd::Pid {
    let listener = std::os::unix::net::UnixListener::bind(directory.join("agent")).unwrap();
    // SAFETY: this test process has one thread.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => child,
        nix::unistd::ForkResult::Child => {
            let mut told = std::fs::File::create(directory.join("told")).unwrap();
            let (socket, _) = listener.accept().unwrap();
            let mut bytes = [0; 16384];
            let mut space = nix::cmsg_space!([i32; 1]);
            let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
            let received = nix::sys::socket::recvmsg::<()>(
                socket.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                nix::sys::socket::MsgFlags::empty(),
            )
            .unwrap();
            let Some(nix::sys::socket::ControlMessageOwned::ScmRights(fds)) =
                received.cmsgs().unwrap().next()
            else {
                panic!("no descriptor");
            };
            let len = received.bytes;
            // SAFETY: received just now, for us alone.
            let fd = unsafe { OwnedFd::from_raw_fd(fds[0]) };
            told.write_all(&bytes[..len]).unwrap();
            told.flush().unwrap();
            answer(&fd);
            // SAFETY: nothing of this copy of the process is to run.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Until nobody is left to be answered.
fn answer(fd: &OwnedFd) {
    const CONTINUE: u32 = 1;
    loop {
        let mut fds = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE).unwrap();
        if !fds[0].revents().unwrap().contains(nix::poll::PollFlags::POLLIN) {
            return;
        }
        // SAFETY: integers only; the kernel wants them zeroed.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel fills one such structure.
        if unsafe { libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut asked) } != 0 {
            continue;
        }
        let number = i64::from(asked.data.nr);
        let mkdir = number == libc::SYS_mkdirat || cfg!(target_arch = "x86_64") && number == 83;
        let (error, flags) = if mkdir { (-libc::EXDEV, 0) } else { (0, CONTINUE) };
        let mut reply = libc::seccomp_notif_resp { id: asked.id, val: 0, error, flags };
        // SAFETY: the kernel reads one such structure. The caller may be gone: then nobody waits.
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut reply) };
    }
}

fn asking(directory: &Path) -> Value {
    // Also what the runtime itself does between filter and program: the agent has its descriptor by then.
    let names = ["mkdir", "mkdirat", "sendmsg", "recvmsg", "recvfrom", "sendto", "close_range", "execve"];
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": directory.join("agent"),
        "listenerMetadata": "some metadata",
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
    })
}

fn told(directory: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(directory.join("told")).unwrap()).unwrap()
}

fn agent_decides() {
    for no_new_privileges in [true, false] {
        let directory = Directory::new();
        let child = agent(&directory.0);
        let mut case = Case::new(&["mkdir /made", "cat /in-root", "exists /made"])
            .set("/process/noNewPrivileges", json!(no_new_privileges))
            .set("/annotations", json!({"k": "v"}))
            .set("/linux/seccomp", asking(&directory.0));
        let (reader, stdio) = output();
        let mut request = case.request(stdio).unwrap();
        request.plan.identity.id = "an-id".into();
        let created = create(request).unwrap();
        created.start.start().unwrap();
        let outcome = Outcome::collect(reader, &created.pidfd, Vec::new());
        assert_eq!(outcome.answer(0), "EXDEV", "{outcome:?}");
        assert_eq!(outcome.answer(1), "yes");
        assert_eq!(outcome.answer(2), "ENOENT");
        let told = told(&directory.0);
        assert_eq!(told["fds"], json!(["seccompFd"]));
        assert_eq!(told["metadata"], "some metadata");
        assert_eq!((&told["pid"], &told["state"]["pid"]), (&json!(created.pid), &json!(created.pid)));
        assert_eq!(told["state"]["id"], "an-id");
        assert_eq!(told["state"]["status"], "creating");
        assert_eq!(told["state"]["annotations"]["k"], "v");
        nix::sys::wait::waitpid(child, None).unwrap();
    }
    // An exec has a filter of its own, and asks the agent anew.
    let directory = Directory::new();
    let running = Case::new(&["sleep"]).start();
    let child = agent(&directory.0);
    let filter = serde_json::from_value(asking(&directory.0)).unwrap();
    let filter = runtime::seccomp::Filter::compile(&filter, &mut Vec::new()).unwrap();
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["/program", "--program", "mkdir /made"], "cwd": "/",
        "noNewPrivileges": true,
    });
    let (reader, stdio) = output();
    let Executed { pid, pidfd, .. } = exec(ExecRequest {
        target: running.pidfd.try_clone().unwrap(),
        process: runtime::exec::ProcessPlan::from_spec(&serde_json::from_value(process).unwrap()).unwrap(),
        seccomp: Some(filter),
        stdio,
        cgroup: None,
        parent: runtime::container::Parent::Caller,
        identity: runtime::state::Identity { id: "other".into(), ..Default::default() },
    })
    .unwrap();
    let outcome = Outcome::collect(reader, &pidfd, Vec::new());
    assert_eq!(outcome.answer(0), "EXDEV");
    let told = told(&directory.0);
    assert_eq!((&told["pid"], &told["state"]["id"]), (&json!(pid), &json!("other")));
    assert_eq!(told["state"]["status"], "running");
    nix::sys::wait::waitpid(child, None).unwrap();
    running.kill();
}

fn agent_missing() {
    let directory = Directory::new();
    let mut case = Case::new(&["pid"]).set("/linux/seccomp", asking(&directory.0));
    let (_reader, stdio) = output();
    let error = create(case.request(stdio).unwrap()).unwrap_err().to_string();
    assert!(
        error.starts_with("linux.seccomp.listenerPath: connect(") && error.ends_with("ENOENT"),
        "{error}"
    );
    let left = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    assert_eq!(left, Err(nix::errno::Errno::ECHILD));
    for (profile, named) in [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}), "linux.seccomp: defaultAction"),
        (profile("SCMP_ACT_NOTIFY", &["mkdir"]), "linux.seccomp: listenerPath"),
        (profile("SCMP_ACT_NOTIFY", &["write"]), "linux.seccomp: syscalls[0]: write"),
        (json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}), "linux.seccomp: errnoRet"),
    ] {
        let error = Case::new(&[]).set("/linux/seccomp", profile).plan().unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
    }
    // Nothing is asked: nobody need listen.
    let mut silent = profile("SCMP_ACT_ERRNO", &["mkdir"]);
    silent["listenerPath"] = json!("/nowhere");
    let mut case = Case::new(&["pid"]).set("/linux/seccomp", silent);
    let (reader, stdio) = output();
    let created = create(case.request(stdio).unwrap()).unwrap();
    created.start.start().unwrap();
    drop(reader);
    wait(&created.pidfd);
}
