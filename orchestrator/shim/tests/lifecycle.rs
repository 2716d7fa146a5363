//! One pod, its containers and its shim, on the real kernel.

mod harness;

use harness::{Pod, eventually, id, is_root, state, status, wait_end};
use shim::protocol::*;
use shim::record;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

#[test]
fn root_a_container_runs_logs_exits_and_is_recorded() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    pod.run(&mut client, &web, "hostname; echo err >&2; printf unfinished; exit 7");
    let exit = pod.wait(&web);
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, 0, false));
    assert!(exit.started_at_ns.unwrap() <= exit.finished_at_ns);
    assert_eq!(record::read(&pod.dir, &web).unwrap(), Some(exit));
    let log = pod.log(&web);
    for line in ["stdout F pod\n", "stderr F err\n", "stdout F unfinished\n"] {
        assert!(log.contains(line), "{line:?} not in {log:?}");
    }
    client.call(Verb::Delete(web.clone()), &[]).unwrap();
    client.call(Verb::Delete(web.clone()), &[]).unwrap();
    assert!(state(&mut client).containers.is_empty());
    assert!(
        !runtime::cgroup::Cgroup::open(format!("{}/pod/web.0", pod.cgroup))
            .is_ok_and(|cgroup| cgroup.exists())
    );
    assert_eq!(pod.shim_log(), "");
}

#[test]
fn root_an_attempt_is_made_once() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let first = id("web", 0);
    pod.run(&mut client, &first, "exec sleep 1000");
    let mut refused = |attempt: u32, kind: FailureKind| {
        let create = pod.create_request(&id("web", attempt), &["/bin/true"]);
        let failure = client.call(Verb::Create(Box::new(create)), &[]).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        client.call(Verb::Kill { target: Target::All, signal: 0x7f }, &[]).unwrap_err();
    };
    refused(0, FailureKind::AlreadyExists);
    refused(1, FailureKind::Conflict);
    client.call(Verb::Kill { target: Target::Container(first.clone()), signal: 9 }, &[]).unwrap();
    assert_eq!(pod.wait(&first).signal, 9);
    client.call(Verb::Delete(first.clone()), &[]).unwrap();
    let create = pod.create_request(&first, &["/bin/true"]);
    let failure = client.call(Verb::Create(Box::new(create)), &[]).unwrap_err();
    assert_eq!(failure.kind, FailureKind::AlreadyExists, "the record outlives the entry: {failure}");
    pod.run(&mut client, &id("web", 1), "exit 0");
    assert_eq!(pod.wait(&id("web", 1)).code, 0);
}

#[test]
fn root_a_container_killed_before_start_never_runs() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    let create = pod.create_request(&web, &["/bin/sh", "-c", "echo ran"]);
    client.call(Verb::Create(Box::new(create)), &[]).unwrap();
    client.call(Verb::Kill { target: Target::All, signal: 15 }, &[]).unwrap();
    let exit = pod.wait(&web);
    assert_eq!(exit.started_at_ns, None);
    assert_eq!(pod.log(&web), "");
    let failure = client.call(Verb::Start(web), &[]).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Conflict, "{failure}");
}

#[test]
fn root_a_missing_program_is_named() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    let create = pod.create_request(&web, &["/no/such/program"]);
    let failed = client
        .call(Verb::Create(Box::new(create)), &[])
        .and_then(|_| client.call(Verb::Start(web.clone()), &[]))
        .unwrap_err();
    assert!(failed.message.contains("/no/such/program"), "{failed}");
}

#[test]
fn root_a_failed_create_leaves_nothing_and_may_be_repeated() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    let mut create = pod.create_request(&web, &["/bin/true"]);
    create.volumes = vec![VolumeMount {
        source: pod.dir.join("missing"),
        claim: None,
        sub_path: None,
        destination: "/data".into(),
        access: rootfs::volume::BindAccess::ReadOnly,
    }];
    let failure = client.call(Verb::Create(Box::new(create)), &[]).unwrap_err();
    assert!(failure.kind == FailureKind::Invalid && failure.message.contains("volumes[0]"), "{failure}");
    assert!(state(&mut client).containers.is_empty());
    assert!(runtime::cgroup::Cgroup::open(format!("{}/pod/web.0", pod.cgroup)).is_err());
    pod.run(&mut client, &web, "exit 3");
    assert_eq!(pod.wait(&web).code, 3);
}

#[test]
fn root_volumes_and_shared_namespaces_reach_the_containers() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let data = pod.dir.join("data");
    std::fs::create_dir_all(&data).unwrap();
    for (name, access, script) in [
        (
            "writer",
            rootfs::volume::BindAccess::ReadWrite,
            "echo hello > /data/file; readlink /proc/self/ns/ipc",
        ),
        (
            "reader",
            rootfs::volume::BindAccess::ReadOnly,
            "cat /data/file; echo no > /data/x; readlink /proc/self/ns/ipc",
        ),
    ] {
        let container = id(name, 0);
        let mut create = pod.create_request(&container, &["/bin/sh", "-c", script]);
        create.volumes = vec![VolumeMount {
            source: data.clone(),
            claim: None,
            sub_path: None,
            destination: "/data".into(),
            access,
        }];
        client.call(Verb::Create(Box::new(create)), &[]).unwrap();
        client.call(Verb::Start(container.clone()), &[]).unwrap();
        pod.wait(&container);
    }
    assert!(!data.join("x").exists(), "read-only volume was written");
    let log = pod.log(&id("reader", 0));
    assert!(log.contains("stdout F hello") && log.contains("Read-only file system"), "{log}");
    let names = state(&mut client).namespaces;
    let ipc = names.iter().find(|namespace| namespace.kind == "ipc").unwrap().inode;
    for name in ["writer", "reader"] {
        assert!(
            pod.log(&id(name, 0)).contains(&format!("ipc:[{ipc}]")),
            "{name} is in another IPC namespace"
        );
    }
    let (_, fds) = client.call(Verb::Namespaces, &[]).unwrap();
    assert_eq!(fds.len(), names.len());
}

#[test]
fn root_cve_2019_5736_the_shims_program_cannot_be_written() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    pod.run(&mut client, &id("web", 0), "exec sleep 1000");
    let path = format!("/proc/{}/exe", pod.shim.as_ref().unwrap().process.pid);
    let found = rustix::fs::statvfs(&path).unwrap();
    assert!(found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{:?}", found.f_flag);
    let error = std::fs::OpenOptions::new().append(true).open(&path).unwrap_err();
    let refused = [rustix::io::Errno::ROFS, rustix::io::Errno::TXTBSY].map(|e| Some(e.raw_os_error()));
    assert!(refused.contains(&error.raw_os_error()), "{error}");
}

#[test]
fn root_exec_runs_in_the_container() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    pod.run(&mut client, &web, "exec sleep 1000");
    let (mut stdin, theirs_in) = std::os::unix::net::UnixStream::pair().unwrap();
    let (mut stdout, theirs_out) = std::os::unix::net::UnixStream::pair().unwrap();
    let exec = Exec {
        container: web.clone(),
        process: serde_json::json!({"args": ["/bin/sh", "-c", "cat; cat /proc/1/comm; exit 5"]}),
        deadline_ms: 0,
    };
    let fds = [theirs_in.as_fd(), theirs_out.as_fd(), theirs_out.as_fd()];
    let (reply, pidfds) = client.call(Verb::Exec(Box::new(exec)), &fds).unwrap();
    drop((theirs_in, theirs_out));
    let Reply::Executing { exec: number, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(pidfds.len(), 1);
    stdin.write_all(b"typed\n").unwrap();
    drop(stdin);
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "typed\nsleep\n");
    let event = client.event(Duration::from_secs(10)).unwrap();
    assert_eq!(event, Some(Event::ExecExited { exec: number, code: 5 }));

    let missing = Exec { container: web, process: serde_json::json!({"args": ["/no/such"]}), deadline_ms: 0 };
    let failure = client.call(Verb::Exec(Box::new(missing)), &[]).unwrap_err();
    assert!(failure.message.contains("/no/such"), "{failure}");
}

#[test]
fn root_exec_with_a_terminal_returns_its_master() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    pod.run(&mut client, &web, "exec sleep 1000");
    let process = serde_json::json!({
        "args": ["/bin/sh", "-c", "stty size; exit 0"], "terminal": true, "consoleSize": {"height": 33, "width": 77},
    });
    let exec = Exec { container: web, process, deadline_ms: 0 };
    let (_, mut fds) = client.call(Verb::Exec(Box::new(exec)), &[]).unwrap();
    assert_eq!(fds.len(), 2);
    let mut master = std::fs::File::from(fds.remove(1));
    let mut text = Vec::new();
    let mut buffer = [0; 256];
    // EIO is a terminal's end of file.
    while let Ok(count) = master.read(&mut buffer) {
        if count == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(String::from_utf8_lossy(&text), "33 77\r\n");
    assert!(matches!(
        client.event(Duration::from_secs(10)).unwrap(),
        Some(Event::ExecExited { code: 0, .. })
    ));
}

#[test]
fn root_a_client_may_come_and_go() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    let process = pod.run(&mut client, &web, "echo one; read x < /gate; echo two; exec sleep 1000");
    drop(client);
    eventually("first line", || pod.log(&web).contains("one"));
    let mut client = pod.client();
    let before = state(&mut client);
    assert_eq!(before.containers[0].process, Some(process.clone()));
    assert_eq!(before.containers[0].status, Status::Running);
    assert!(process.exists());
    eventually("second line, written while nobody was connected", || pod.log(&web).contains("two"));
    // Half a frame and gone: nobody else is disturbed.
    let mut rude = shim::client::connect(&pod.dir).unwrap();
    rude.write_all(&[9, 0, 0, 0, b'{']).unwrap();
    drop(rude);
    let mut hostile = shim::client::connect(&pod.dir).unwrap();
    hostile.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert_eq!(hostile.read(&mut [0; 8]).unwrap_or(0), 0, "hung up on");
    assert_eq!(state(&mut client), before);
}

#[test]
fn root_the_shims_death_is_the_pods_death() {
    if !is_root() {
        return;
    }
    let (mut pod, mut client) = Pod::ready();
    let web = id("web", 0);
    let process = pod.run(&mut client, &web, "exec sleep 1000");
    let failure = pod.spawn().unwrap_err();
    assert_eq!(failure.kind, FailureKind::AlreadyExists, "a second shim is refused: {failure}");
    assert!(shim::spawn::is_alive(&pod.dir).unwrap());

    pod.fence();
    assert!(!shim::spawn::is_alive(&pod.dir).unwrap());
    eventually("the container is gone", || !process.exists());
    assert!(client.call(Verb::State, &[]).is_err());

    // The next shim starts clean; the daemon has recorded the attempt, so it asks for the next one.
    pod.shim = Some(pod.spawn().unwrap());
    let mut client = pod.client();
    assert!(state(&mut client).containers.is_empty());
    client.call(Verb::Setup(Setup { hostname: "again".into(), ..Setup::default() }), &[]).unwrap();
    pod.run(&mut client, &id("web", 1), "hostname");
    pod.wait(&id("web", 1));
    assert_eq!(pod.log(&id("web", 1)), "stdout F again\n");
}

#[test]
fn root_shutdown_is_refused_while_a_container_runs() {
    if !is_root() {
        return;
    }
    let (mut pod, mut client) = Pod::ready();
    let web = id("web", 0);
    pod.run(&mut client, &web, "exec sleep 1000");
    assert_eq!(client.call(Verb::Shutdown, &[]).unwrap_err().kind, FailureKind::Busy);
    client.call(Verb::Kill { target: Target::Cgroup(web.clone()), signal: 9 }, &[]).unwrap();
    assert_eq!(pod.wait(&web).code, 137);
    client.call(Verb::Shutdown, &[]).unwrap();
    wait_end(&pod.shim.take().unwrap().pidfd);
    assert!(!pod.dir.join(SOCKET_FILE).exists());
}

/// A request whose worker waits for ever: the cgroup above the container's is frozen, so its init is born asleep.
fn create_frozen(pod: &Pod, container: &ContainerId) -> Create {
    let mut create = pod.create_request(container, &["/bin/true"]);
    let above = format!("{}/pod/cold", pod.cgroup);
    create.cgroup = format!("{above}/{container}");
    let cgroup = runtime::cgroup::Cgroup::create(&above).expect("create the cgroup");
    let dir = cgroup.dir().expect("open the cgroup");
    let freeze = format!("/proc/self/fd/{}/cgroup.freeze", std::os::fd::AsRawFd::as_raw_fd(&dir));
    std::fs::write(freeze, "1").expect("freeze the cgroup");
    create
}

#[test]
fn root_a_worker_that_hangs_hits_its_deadline() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    let mut create = create_frozen(&pod, &web);
    create.deadline_ms = 200;
    let began = Instant::now();
    let failure = client.call(Verb::Create(Box::new(create)), &[]).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout, "{failure}");
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert!(state(&mut client).containers.is_empty());
    assert!(
        runtime::cgroup::Cgroup::open(format!("{}/pod/cold/web.0", pod.cgroup)).is_err(),
        "cgroup is left"
    );
    pod.run(&mut client, &web, "exit 4");
    assert_eq!(pod.wait(&web).code, 4);
    assert_eq!(pod.shim_log(), "");
}

#[test]
fn root_a_shim_killed_in_the_middle_of_a_create_leaves_nothing() {
    if !is_root() {
        return;
    }
    let (mut pod, mut client) = Pod::ready();
    let create = create_frozen(&pod, &id("web", 0));
    let shim = pod.shim.as_ref().unwrap().process.pid;
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| pod.client().call(Verb::Create(Box::new(create)), &[]).unwrap_err());
        let cgroup = runtime::cgroup::Cgroup::open(format!("{}/pod/cold", pod.cgroup)).unwrap();
        eventually("an init, asleep", || cgroup.populated().unwrap());
        assert_eq!(state(&mut client).containers[0].process, None, "the shim has not heard of it");
        kill(shim);
        creating.join().unwrap();
    });
    // By itself, without the daemon: the worker has gone with its shim.
    let shims = runtime::cgroup::Cgroup::open(format!("{}/shims", pod.cgroup)).unwrap();
    assert!(shims.wait_empty(Duration::from_secs(10)).unwrap(), "a worker outlives its shim");
    pod.fence();
    assert!(!shim::spawn::is_alive(&pod.dir).unwrap(), "somebody still holds the lock");
    pod.shim = Some(pod.spawn().unwrap());
    assert!(state(&mut pod.client()).containers.is_empty());
}

#[test]
fn root_a_cgroup_with_processes_is_not_used() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let process = pod.run(&mut client, &id("web", 0), "echo ready; exec sleep 1000");
    let mut create = pod.create_request(&id("other", 0), &["/bin/true"]);
    create.cgroup = format!("{}/pod/web.0", pod.cgroup);
    let failure = client.call(Verb::Create(Box::new(create)), &[]).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Conflict, "{failure}");
    assert_eq!(state(&mut client).containers.len(), 1);
    let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let (_, pidfds) = client.call(Verb::Pidfd(id("web", 0)), &[]).unwrap();
    let mut ended = [rustix::event::PollFd::new(&pidfds[0], rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut ended, Some(&wait)).unwrap(), 0, "what is in it was killed");
    assert!(process.exists());
}

#[test]
fn root_a_terminals_output_is_logged() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    let mut create = pod.create_request(&web, &["/bin/sh", "-c", "tty; echo err >&2"]);
    create.spec["process"]["terminal"] = true.into();
    client.call(Verb::Create(Box::new(create)), &[]).unwrap();
    client.call(Verb::Start(web.clone()), &[]).unwrap();
    assert_eq!(pod.wait(&web).code, 0);
    assert_eq!(pod.log(&web), "stdout F /dev/pts/0\r\nstdout F err\r\n");
    assert_eq!(pod.shim_log(), "");
}

#[test]
fn root_a_killed_worker_is_undone_and_others_are_served_meanwhile() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    let create = create_frozen(&pod, &web);
    let shim = pod.shim.as_ref().unwrap().process.pid;
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| pod.client().call(Verb::Create(Box::new(create)), &[]).unwrap_err());
        eventually("creating", || {
            state(&mut client)
                .containers
                .first()
                .is_some_and(|container| container.status == Status::Creating)
        });
        pod.run(&mut client, &id("other", 0), "exit 6");
        assert_eq!(pod.wait(&id("other", 0)).code, 6);
        let again = pod.create_request(&web, &["/bin/true"]);
        assert_eq!(client.call(Verb::Create(Box::new(again)), &[]).unwrap_err().kind, FailureKind::Busy);
        assert_eq!(client.call(Verb::Shutdown, &[]).unwrap_err().kind, FailureKind::Busy);
        let worker = children(shim).into_iter().find(|pid| comm(*pid) == "shim-create").unwrap();
        kill(worker);
        let failure = creating.join().unwrap();
        assert!(failure.message.contains("signal 9"), "{failure}");
    });
    pod.run(&mut client, &web, "exit 4");
    assert_eq!(pod.wait(&web).code, 4);
}

#[test]
fn root_nothing_of_the_host_leaks_into_containers() {
    if !is_root() {
        return;
    }
    let (pod, mut client) = Pod::ready();
    let web = id("web", 0);
    let create = pod.create_request(&web, &["/bin/sh", "-c", "ls -l /proc/self/fd; exec sleep 1000"]);
    let Reply::Created { process, .. } = client.call(Verb::Create(Box::new(create)), &[]).unwrap().0 else {
        panic!("not created");
    };
    // Before its program runs, too: no socket of the shim's, no other container's pipe.
    let held = descriptors(process.pid);
    let shims = descriptors(pod.shim.as_ref().unwrap().process.pid);
    let shared: Vec<_> =
        held.iter().filter(|name| name.starts_with("socket:") && shims.contains(name)).collect();
    assert!(shared.is_empty(), "{shared:?}");
    assert!(held.iter().all(|name| !name.contains("shim")), "{held:?}");
    client.call(Verb::Start(web.clone()), &[]).unwrap();
    let process = format!("/proc/{}/fd", process.pid);
    eventually("sleep runs", || {
        std::fs::read_to_string(format!("{process}/../comm")).is_ok_and(|comm| comm.trim() == "sleep")
    });
    assert_eq!(std::fs::read_dir(&process).unwrap().count(), 3);
    let shim = pod.shim.as_ref().unwrap().process.pid;
    let cwd = std::fs::read_link(format!("/proc/{shim}/cwd")).unwrap();
    assert_eq!(cwd.as_os_str(), "/");
    let binary = std::fs::OpenOptions::new().write(true).open(format!("/proc/{shim}/exe"));
    assert!(binary.is_err(), "the shim's program can be written");
}

#[test]
fn root_a_shared_pid_namespace_has_its_init() {
    if !is_root() {
        return;
    }
    let pod = Pod::new();
    let mut client = pod.client();
    let setup = Setup {
        hostname: "pod".into(),
        share_pid: true,
        pause_cgroup: format!("{}/pod/pause", pod.cgroup),
        ..Setup::default()
    };
    client.call(Verb::Setup(setup), &[]).unwrap();
    let pause = state(&mut client).pause.unwrap();
    pod.run(&mut client, &id("a", 0), "exec sleep 1000");
    pod.run(&mut client, &id("b", 0), "cat /proc/1/comm; ls /proc/1/root || echo closed");
    assert_eq!(pod.wait(&id("b", 0)).code, 0);
    let log = pod.log(&id("b", 0));
    assert!(log.contains("stdout F pause"), "{log}");
    let uid = std::fs::read_to_string(format!("/proc/{}/status", pause.pid)).unwrap();
    assert!(uid.contains("CapEff:\t0000000000000000"), "{uid}");
    let a = state(&mut client).containers[0].process.clone().unwrap();
    assert!(a.exists(), "b's end does not end a");
    client.call(Verb::Kill { target: Target::All, signal: 9 }, &[]).unwrap();
    pod.wait(&id("a", 0));
    assert_eq!(
        status(&client.call(Verb::State, &[]).unwrap().0, &id("a", 0)),
        Status::Exited(pod.wait(&id("a", 0)))
    );
}

#[allow(clippy::unwrap_used, reason = "a test helper")]
fn descriptors(pid: i32) -> Vec<String> {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap().display().to_string())
        .collect()
}

#[allow(clippy::unwrap_used, reason = "a test helper")]
fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[allow(clippy::unwrap_used, reason = "a test helper")]
fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
