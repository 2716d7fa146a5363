//! Hooks of a container being made and started: where they run, what they are told, what becomes of those that fail.

use std::path::Path;

use runtime::Kind;
use runtime::container::create;
use serde_json::{Value, json};

use crate::fixture::{Case, Directory, Outcome, eventually, output, wait};
use crate::harness::Test;

pub const TESTS: &[Test] = &[
    ("root_hooks_run_where_they_belong", where_they_belong),
    ("root_hooks_see_the_mounts", see_the_mounts),
    ("root_a_failed_hook_leaves_nothing", a_failed_hook_leaves_nothing),
    ("root_a_hook_is_killed_at_its_timeout", killed_at_its_timeout),
    ("root_a_hook_is_not_waited_for_longer_than_it_runs", not_waited_for),
    ("root_a_start_hook_under_a_filter", under_a_filter),
];

/// A hook outside: this binary.
fn outside(command: &str) -> Value {
    let path = std::env::current_exe().unwrap();
    json!({"path": path, "args": ["hook", "--program", command]})
}

/// A hook inside.
fn inside(command: &str) -> Value {
    json!({"path": "/program", "args": ["hook", "--program", command]})
}

fn told(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn own(kind: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

fn where_they_belong() {
    let directory = Directory::new();
    let file = directory.0.join("told");
    let record = outside(&format!("hook {}", file.display()));
    let mut with_env = record.clone();
    with_env["env"] = json!(["X=y"]);
    let mut case = Case::new(&["readlink /proc/self/ns/mnt", "readlink /proc/self/ns/pid"])
        .set("/annotations", json!({"k": "v"}))
        .set(
            "/hooks",
            json!({
                "prestart": [with_env], "createRuntime": [record], "createContainer": [record],
                "startContainer": [inside("hook /told")],
            }),
        );
    let (reader, stdio) = output();
    let mut request = case.request(stdio).unwrap();
    request.plan.identity.id = "an-id".into();
    request.plan.identity.bundle = "/a/bundle".into();
    let created = create(request).unwrap();
    let pid = created.pid;
    assert_eq!(told(&case.root.0.join("told")), Vec::<Value>::new(), "not before start");
    created.start.start().unwrap();
    let outcome = Outcome::collect(reader, &created.pidfd, Vec::new());
    let mut all = told(&file);
    all.extend(told(&case.root.0.join("told")));
    let [prestart, runtime, container, start] = &all[..] else { panic!("{all:?}") };
    for hook in &all {
        assert_eq!(hook["state"]["id"], "an-id");
        assert_eq!(hook["state"]["bundle"], "/a/bundle");
        assert_eq!(hook["state"]["ociVersion"], "1.0.2");
        assert_eq!(hook["state"]["annotations"], json!({"k": "v"}));
        assert_eq!(hook["fds"], "0 1 2 3", "nothing but its own directory");
        assert_eq!(hook["group"], hook["self"], "a process group of its own");
    }
    for hook in [prestart, runtime] {
        assert_eq!((&hook["state"]["status"], &hook["state"]["pid"]), (&json!("creating"), &json!(pid)));
        assert_eq!((&hook["mnt"], &hook["pid"]), (&json!(own("mnt")), &json!(own("pid"))));
    }
    assert_eq!(prestart["env"], json!(["X=y"]), "its own environment and nothing else");
    assert!(runtime["env"].as_array().unwrap().len() > 1, "or the caller's");
    assert_eq!((&container["state"]["status"], &container["state"]["pid"]), (&json!("creating"), &json!(1)));
    assert_eq!((&start["state"]["status"], &start["state"]["pid"]), (&json!("created"), &json!(1)));
    for hook in [container, start] {
        assert_eq!(hook["mnt"], outcome.answer(0));
        assert_eq!(hook["pid"], outcome.answer(1));
    }
    assert_eq!(container["env"], json!([]));
    assert_eq!(start["env"], json!(["PATH=/bin", "A=b", "HOME=/"]), "the program's");
    assert_eq!(start["cwd"], "/");
}

fn see_the_mounts() {
    let directory = Directory::new();
    let file = directory.0.join("seen");
    let case =
        Case::new(&["exists /dev/made-by-a-hook", "write /in-root x"]).set("/root/readonly", json!(true));
    let dev = case.root.0.join("dev");
    // In the container's mount namespace its root shows what is mounted in it, and can still be written.
    let commands = [
        format!("filesystem {} {}", dev.display(), file.display()),
        format!("write {}/made-by-a-hook x", dev.display()),
        format!("write {}/also x", case.root.0.display()),
    ];
    let hooks = commands.each_ref().map(|command| outside(command));
    let mut case = case.set("/hooks", json!({"createContainer": hooks}));
    let root = case.root.0.clone();
    let (reader, stdio) = output();
    let created = create(case.request(stdio).unwrap()).unwrap();
    created.start.start().unwrap();
    let outcome = Outcome::collect(reader, &created.pidfd, Vec::new());
    // include/uapi/linux/magic.h, TMPFS_MAGIC
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1021994");
    assert_eq!(outcome.answer(0), "yes");
    assert_eq!(outcome.answer(1), "EROFS");
    assert!(root.join("also").exists());
    assert!(!dev.join("made-by-a-hook").exists(), "the host sees no mount");
}

fn a_failed_hook_leaves_nothing() {
    let missing = json!({"path": "/no/such/hook"});
    for (list, hook, text) in [
        ("prestart", outside("fail 7"), "hooks.prestart[0]: exited with 7: it is by design"),
        (
            "createRuntime",
            missing.clone(),
            "hooks.createRuntime[0]: exited with 127: exec /no/such/hook: ENOENT",
        ),
        ("createContainer", outside("fail 7"), "hooks.createContainer[0]: exited with 7: it is by design"),
        ("createContainer", missing, "hooks.createContainer[0]: exited with 127: exec /no/such/hook: ENOENT"),
        ("prestart", outside("die"), "hooks.prestart[0]: was killed by signal 9"),
    ] {
        let mut case = Case::new(&["write /in-root changed"]).set("/hooks", json!({list: [hook]}));
        let (_reader, stdio) = output();
        let error = create(case.request(stdio).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), text);
        let left = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        assert_eq!(left, Err(nix::errno::Errno::ECHILD), "{text}");
        assert_eq!(std::fs::read_to_string(case.root.0.join("in-root")).unwrap(), "yes");
    }
    // At start it is the program that never runs.
    let mut case = Case::new(&["write /in-root changed"]).set(
        "/hooks",
        json!({"startContainer": [inside("pid"), inside("fail 9"), inside("write /in-root hook")]}),
    );
    let (_reader, stdio) = output();
    let created = create(case.request(stdio).unwrap()).unwrap();
    let error = created.start.start().unwrap_err();
    assert_eq!(error.to_string(), "hooks.startContainer[1]: exited with 9: it is by design");
    assert_eq!(wait(&created.pidfd), 127);
    assert_eq!(std::fs::read_to_string(case.root.0.join("in-root")).unwrap(), "yes", "later hooks neither");
}

fn killed_at_its_timeout() {
    for list in ["createRuntime", "createContainer"] {
        let directory = Directory::new();
        let lock = directory.0.join("lock");
        let mut hook = outside(&format!("hold {}", lock.display()));
        hook["timeout"] = json!(1);
        let mut case = Case::new(&[]).set("/hooks", json!({list: [hook]}));
        let (_reader, stdio) = output();
        let begun = std::time::Instant::now();
        let error = create(case.request(stdio).unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout);
        assert!(
            error.to_string().starts_with(&format!("hooks.{list}[0]: ran longer than its timeout of 1 s"))
        );
        let took = begun.elapsed().as_secs_f64();
        assert!((1.0..30.0).contains(&took), "{took}");
        // The hook and the child it had are gone: both held the lock.
        let file = std::fs::File::open(&lock).unwrap();
        let free = || rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok();
        eventually("the lock is free", free);
    }
}

fn not_waited_for() {
    // Its child lives on, with the hook's output still open, until the container ends.
    let outcome =
        Case::new(&["pid"]).set("/hooks", json!({"createContainer": [outside("daemon")]})).run().unwrap();
    assert_eq!(outcome.answer(0), "1");
}

fn under_a_filter() {
    // As Docker's profile does it: no clone3, because its flags cannot be seen. Loaded early without no_new_privs.
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    });
    for no_new_privileges in [true, false] {
        let outcome = Case::new(&["cat /told"])
            .set("/linux/seccomp", profile.clone())
            .set("/process/noNewPrivileges", json!(no_new_privileges))
            .set("/hooks", json!({"startContainer": [inside("hook /told")]}))
            .run()
            .unwrap();
        let told: Value = serde_json::from_str(outcome.answer(0)).unwrap();
        assert_eq!(told["state"]["status"], "created");
        // What the program may not do, the hook may not either.
        let deny = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
        });
        let denied = Case::new(&["exists /made"])
            .set("/linux/seccomp", deny)
            .set("/process/noNewPrivileges", json!(no_new_privileges))
            .set("/hooks", json!({"startContainer": [inside("mkdir /made")]}))
            .run()
            .unwrap();
        assert_eq!(denied.answer(0), "ENOENT");
    }
}
