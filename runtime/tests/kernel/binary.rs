//! CVE-2019-5736: a container gets hold of the runtime's own program, and cannot write to it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::bundle::Bundle;
use crate::fixture::{Case, eventually};
use crate::harness::Test;
use crate::supervise::{Call, Supervised, Verdict, output, written};

pub const TESTS: &[Test] = &[
    ("root_cve_2019_5736_entrypoint_is_the_runtime", entrypoint_is_the_runtime),
    ("root_cve_2019_5736_writer_during_exec", writer_during_exec),
    ("root_cve_2019_5736_remount_of_the_runtime", remount_of_the_runtime),
    ("root_cve_2019_5736_sealed_copy", sealed_copy),
];

/// Rights that make the attack as strong as it can be.
const STRONG: [&str; 6] =
    ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_MKNOD"];

fn strong() -> serde_json::Value {
    json!({"bounding": STRONG, "permitted": STRONG, "effective": STRONG})
}

/// A bundle whose runtime is a copy: if it is overwritten, nothing else is.
fn with_a_copy(commands: &[&str]) -> (Bundle, Vec<u8>) {
    let mut bundle = Bundle::new(commands);
    bundle.edit(|spec| spec["process"]["capabilities"] = strong());
    let copy = bundle.directory.0.join("podyard-oci-copy");
    std::fs::copy(&bundle.program, &copy).unwrap();
    bundle.program = copy;
    let before = std::fs::read(&bundle.program).unwrap();
    (bundle, before)
}

fn entrypoint_is_the_runtime() {
    // The program that a container runs is the runtime itself, which fails at once, or shows its features.
    let (bundle, before) = with_a_copy(&[]);
    for link in ["/proc/self/exe", "/bin/sh"] {
        std::fs::create_dir_all(bundle.rootfs().join("bin")).unwrap();
        _ = std::os::unix::fs::symlink("/proc/self/exe", bundle.rootfs().join("bin/sh"));
        bundle.edit(|spec| spec["process"]["args"] = json!([link, "features"]));
        let directory = bundle.directory.0.to_str().unwrap();
        let shown = bundle.ok(&["run", "--bundle", directory, &bundle.id]);
        assert!(shown.contains("ociVersionMin"), "{shown}");
    }
    assert_eq!(std::fs::read(&bundle.program).unwrap(), before);
}

fn writer_during_exec() {
    let (bundle, before) = with_a_copy(&["save /result overwrite-runtime 6000"]);
    // Made into another's program by its script line, too: the kernel resolves it in the new process.
    std::fs::write(bundle.rootfs().join("script"), "#!/proc/self/exe\n").unwrap();
    let path = bundle.rootfs().join("script");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bundle.start();
    let start = Instant::now();
    let mut entered = 0;
    while start.elapsed() < Duration::from_millis(3000) {
        for program in ["/proc/self/exe", "/script"] {
            bundle.run(&["exec", &bundle.id, program, "features"]);
        }
        bundle.run(&["exec", &bundle.id, "/program", "--program", "pid"]);
        entered += 3;
    }
    // The attack outlasts them: then nothing runs from that file any more, and it is not busy.
    let result = bundle.rootfs().join("result");
    eventually("the attack is over", || result.exists() && std::fs::metadata(&result).unwrap().len() > 0);
    let said = [std::fs::read_to_string(&result).unwrap()];
    println!("{entered} entered: {}", said[0]);
    assert!(said[0].contains(" 0 written"), "{said:?}");
    // The attack did see the runtime's program.
    assert!(!said[0].starts_with("0 foreign"), "{said:?}");
    // An emulated machine is still busy with that file when the attack ends.
    let refused = said[0].contains("EROFS") || std::env::var_os("PODYARD_VM").is_some();
    assert!(refused, "{said:?}");
    assert_eq!(std::fs::read(&bundle.program).unwrap(), before);
}

fn remount_of_the_runtime() {
    // With every right over its own mounts the container still has none over that one.
    runtime::run_from_read_only_clone().unwrap();
    let args = json!(["/proc/self/exe", "--program", "remount-exe"]);
    let case = Case::new(&[]).set("/process/args", args).set("/process/capabilities", strong());
    let outcome = case.run().unwrap();
    // A sealed copy in memory is on no mount at all.
    let read_only = !crate::harness::lacks("open_tree");
    assert_eq!(outcome.answer(0), format!("[] {read_only}"), "{outcome:?}");
}

fn sealed_copy() {
    // Where there is no mount API, nor execveat, the runtime runs from memory that nobody can write to.
    let (bundle, before) = with_a_copy(&["sleep"]);
    bundle.start();
    let states = bundle.states().to_str().unwrap().to_string();
    let file = output();
    let refused = [nix::libc::SYS_open_tree, nix::libc::SYS_execveat];
    let judge = move |call: &Call| match refused.contains(&call.number) {
        true => Verdict::Fail(nix::libc::ENOSYS),
        false => Verdict::Go,
    };
    let args = ["exec", &bundle.id, "/proc/self/exe", "features"];
    let code = Supervised::start(&bundle.program, &bundle.words(&args, &states), &file, judge);
    assert_eq!(code.wait(Duration::from_secs(100)), Some(0), "{}", written(&file));
    // The program itself, caught in the middle of its life.
    let pids = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&pids);
    let judge = move |call: &Call| {
        if call.number == nix::libc::SYS_setns {
            let exe = format!("/proc/{}/exe", call.pid);
            let link = std::fs::read_link(&exe).unwrap();
            let write = std::fs::OpenOptions::new().append(true).open(&exe).map(drop);
            seen.lock().unwrap().push((link, write.map_err(|e| e.raw_os_error())));
        }
        match refused.contains(&call.number) {
            true => Verdict::Fail(nix::libc::ENOSYS),
            false => Verdict::Go,
        }
    };
    let args = ["exec", &bundle.id, "/program", "--program", "pid"];
    let run = Supervised::start(&bundle.program, &bundle.words(&args, &states), &file, judge);
    assert_eq!(run.wait(Duration::from_secs(100)), Some(0), "{}", written(&file));
    let seen = pids.lock().unwrap();
    assert!(!seen.is_empty());
    for (link, write) in seen.iter() {
        assert!(link.to_string_lossy().starts_with("/memfd:podyard-oci"), "{link:?}");
        assert!(write.is_err(), "{link:?} could be opened for writing");
    }
    assert_eq!(std::fs::read(&bundle.program).unwrap(), before);
}
