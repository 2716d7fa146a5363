//! Roots and volumes on the real kernel.

use rootfs::volume::{BindAccess, bind_fd, bind_sub_fd, ensure_empty_dir, remove_empty_dir};
use rootfs::{Access, Image, Kind, Medium, MountedLayer, Snapshots, Toolbox, image};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A directory of the test's own, removed when the test succeeds.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("podyard-rootfs-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        fs::create_dir_all(&dir).expect("make a scratch directory");
        Scratch(dir)
    }

    fn image(&self, reference: &str) -> Image {
        let toolbox =
            Toolbox { binary: "/proc/self/exe".into(), applets: vec!["serve".into(), "sleep".into()] };
        image::ensure(&self.0.join("images"), reference, &toolbox).expect("ensure the image")
    }

    fn mount(&self, reference: &str, access: Access) -> Vec<MountedLayer> {
        let snapshots = Snapshots::new(self.0.join("snapshots"));
        let plan = snapshots.prepare("web.0", &self.image(reference), access).expect("prepare");
        plan.mount().expect("mount")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
        _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: needs root\n");
    }
    root
}

/// A path into a detached mount.
fn inside(mount: &OwnedFd, path: &str) -> PathBuf {
    Path::new("/proc/self/fd").join(mount.as_raw_fd().to_string()).join(path)
}

#[test]
fn root_the_host_image_has_programs_and_no_secrets() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("host");
    let layers = scratch.mount("podyard.local/host:latest", Access::ReadWrite);
    let places: Vec<_> = layers.iter().map(|layer| layer.destination.to_str().unwrap()).collect();
    assert_eq!(places[..2], ["/", "/usr"]);
    let (root, usr) = (&layers[0].mount, &layers[1].mount);
    assert!(inside(usr, "bin/env").exists());
    for hidden in ["etc/shadow", "etc/ssh", "etc/ssl/private", "root/.ssh", "var/lib/dpkg"] {
        assert!(!inside(root, hidden).exists(), "{hidden} is visible");
    }
    for empty in ["root", "home", "run/lock", "opt"] {
        assert_eq!(fs::read_dir(inside(root, empty)).unwrap().count(), 0, "{empty}");
    }
    assert_eq!(fs::metadata(inside(root, "")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(inside(root, "tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
    assert!(fs::read_to_string(inside(root, "etc/passwd")).unwrap().starts_with("root:x:0:0:"));
}

#[test]
fn root_writes_stay_in_the_snapshot() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("writes");
    let layers = scratch.mount(image::HOST, Access::ReadWrite);
    let (root, usr) = (&layers[0].mount, &layers[1].mount);
    let name = format!("podyard-test-{}", std::process::id());
    fs::write(inside(usr, &format!("bin/{name}")), "x").unwrap();
    fs::write(inside(root, "etc/passwd"), "mine").unwrap();
    fs::remove_file(inside(usr, "bin/env")).unwrap();
    assert!(!Path::new("/usr/bin").join(&name).exists(), "reached the host");
    assert!(Path::new("/usr/bin/env").exists(), "reached the host");
    let image = scratch.image(image::HOST);
    let skeleton = fs::read_to_string(image.layers[0].lower[0].join("etc/passwd")).unwrap();
    assert!(skeleton.starts_with("root:"), "reached the image");
    drop(layers);
    // The same snapshot again, as after a worker that died: what was written is there.
    let again = scratch.mount(image::HOST, Access::ReadWrite);
    assert_eq!(fs::read_to_string(inside(&again[0].mount, "etc/passwd")).unwrap(), "mine");
    drop(again);
    Snapshots::new(scratch.0.join("snapshots")).remove("web.0").unwrap();
    let fresh = scratch.mount(image::HOST, Access::ReadWrite);
    assert!(inside(&fresh[1].mount, "bin/env").exists());
}

#[test]
fn root_a_read_only_root_refuses_writes_beneath() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("read-only");
    let layers = scratch.mount(image::HOST, Access::ReadOnly);
    let refused = fs::write(inside(&layers[1].mount, "bin/x"), "x").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn root_devices_in_a_root_are_dead() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("devices");
    let layers = scratch.mount(image::HOST, Access::ReadWrite);
    let path = inside(&layers[0].mount, "null");
    let device = rustix::fs::makedev(1, 3);
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::CharacterDevice, mode, device).unwrap();
    assert_eq!(fs::read(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[test]
fn root_long_directories_mount_too() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("long");
    let deep = scratch.0.join("d".repeat(150)).join("e,:".repeat(40));
    let image = scratch.image(image::HOST);
    let plan = Snapshots::new(&deep).prepare("web.0", &image, Access::ReadWrite).unwrap();
    let layers = plan.mount().unwrap();
    fs::write(inside(&layers[0].mount, "file"), "x").unwrap();
    assert!(plan.layers[0].upper.join("file").exists());
}

#[test]
fn root_overlay_on_overlay_is_refused_with_the_fix() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("nested");
    let layers = scratch.mount(image::HOST, Access::ReadWrite);
    let nested = Snapshots::new(inside(&layers[0].mount, "opt"));
    let plan = nested.prepare("web.0", &scratch.image(image::HOST), Access::ReadWrite).unwrap();
    let error = plan.mount().unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{}", error.chain());
    assert!(error.chain().contains("ext4"), "{}", error.chain());
}

#[test]
fn root_the_toolbox_is_a_copy_with_its_applets() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("toolbox");
    let layers = scratch.mount(image::TOOLBOX, Access::ReadWrite);
    assert_eq!(layers.len(), 1);
    let root = &layers[0].mount;
    assert_eq!(fs::read_link(inside(root, "bin/serve")).unwrap(), Path::new("podyard-toolbox"));
    let copy = fs::metadata(inside(root, "bin/podyard-toolbox")).unwrap();
    assert_eq!(copy.len(), fs::metadata("/proc/self/exe").unwrap().len());
    assert_eq!(copy.permissions().mode() & 0o777, 0o755);
    assert!(!inside(root, "usr").exists(), "nothing of the host");
}

#[test]
fn root_images_nobody_uses_are_swept_and_made_again() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("sweep");
    let images = scratch.0.join("images");
    let (host, toolbox) = (scratch.image(image::HOST), scratch.image(image::TOOLBOX));
    assert_eq!(scratch.image(image::HOST), host, "the same host, the same image");
    let used = host.layers[0].lower[0].clone();
    fs::create_dir(images.join(".new.1.0.host.x")).unwrap();
    fs::create_dir(images.join("host.otherboo.0123")).unwrap();
    let swept = image::sweep(&images, &[used.clone()].into()).unwrap();
    assert_eq!(swept.len(), 3, "{swept:?}");
    assert!(used.is_dir() && !toolbox.layers[0].lower[0].exists());
    image::sweep(&images, &[].into()).unwrap();
    fs::create_dir_all(images.join("host.otherboo.0123/etc")).unwrap();
    assert_eq!(scratch.image(image::HOST), host);
    assert!(!images.join("host.otherboo.0123").exists(), "another boot's image stays");
    assert!(used.join("etc/passwd").exists());
    assert_eq!(scratch.image(image::TOOLBOX), toolbox);
}

#[test]
fn unknown_images_are_refused_by_name() {
    let toolbox = Toolbox { binary: "/proc/self/exe".into(), applets: Vec::new() };
    let error = image::ensure(Path::new("/nonexistent"), "docker.io/library/nginx", &toolbox).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("only podyard.local/host and podyard.local/toolbox exist so far"));
}

#[test]
fn root_a_bind_is_private_and_sealed() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("bind");
    fs::write(scratch.0.join("file"), "x").unwrap();
    let sealed = bind_fd(&scratch.0, BindAccess::ReadOnly).unwrap();
    assert_eq!(fs::read_to_string(inside(&sealed, "file")).unwrap(), "x");
    assert_eq!(fs::write(inside(&sealed, "file"), "y").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    let open = bind_fd(&scratch.0, BindAccess::ReadWrite).unwrap();
    fs::write(inside(&open, "file"), "z").unwrap();
    assert_eq!(fs::read_to_string(scratch.0.join("file")).unwrap(), "z");
    let file = bind_fd(&scratch.0.join("file"), BindAccess::ReadOnly).unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap(), "z");
}

#[test]
fn root_a_sub_path_cannot_leave_its_volume() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("sub-path");
    let volume = scratch.0.join("volume");
    fs::create_dir_all(volume.join("etc")).unwrap();
    fs::write(volume.join("etc/name"), "inside").unwrap();
    symlink("/etc", volume.join("evil")).unwrap();
    symlink("../../../../../../etc", volume.join("climb")).unwrap();
    for path in ["evil", "climb", "etc"] {
        let mount = bind_sub_fd(&volume, Path::new(path), BindAccess::ReadWrite).unwrap();
        assert_eq!(fs::read_to_string(inside(&mount, "name")).unwrap(), "inside", "{path}");
    }
    bind_sub_fd(&volume, Path::new("new/sub"), BindAccess::ReadWrite).unwrap();
    assert!(volume.join("new/sub").is_dir());
    assert!(bind_sub_fd(&volume, Path::new("new/../../out"), BindAccess::ReadWrite).is_err());
    assert!(!scratch.0.join("out").exists());
}

#[test]
fn root_an_empty_dir_in_memory_is_bounded_and_goes() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("memory");
    let path = scratch.0.join("volumes/cache");
    // A mount namespace of its own for this thread, which ends with the test.
    let inside = path.clone();
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        ensure_empty_dir(&inside, Medium::Memory { size_bytes: 1 << 20 }).unwrap();
        ensure_empty_dir(&inside, Medium::Memory { size_bytes: 1 << 20 }).unwrap();
        fs::write(inside.join("small"), "x").unwrap();
        assert!(fs::write(inside.join("large"), vec![0; 2 << 20]).is_err(), "not bounded");
        // Something that is not ours inside: refused, and nothing is deleted.
        let foreign = inside.parent().unwrap().join("foreign");
        fs::create_dir_all(foreign.join("sub")).unwrap();
        nix::mount::mount(
            Some("t"),
            &foreign.join("sub"),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        fs::write(foreign.join("sub/precious"), "x").unwrap();
        assert_eq!(remove_empty_dir(&foreign).unwrap_err().kind(), Kind::Busy);
        assert!(foreign.join("sub/precious").exists());
        remove_empty_dir(&inside).unwrap();
        remove_empty_dir(&inside).unwrap();
        assert!(!inside.exists());
    })
    .join()
    .unwrap();
    assert!(!path.join("small").exists());
}
