//! Volumes with a size, on the real kernel.

use rootfs::volume::{Backing, BindAccess, Deletion, Volume, claimed_fd};
use rootfs::{Claim, Enforcement, Kind, Volumes, Wish};
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(20);

/// A directory of the test's own, removed when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("podyard-volumes-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        fs::create_dir_all(&dir).expect("make a scratch directory");
        Scratch(dir)
    }

    fn volumes(&self) -> Volumes {
        Volumes::new(self.0.join("volumes"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn skip(why: &str) {
    // The machine that `cargo vm` boots has everything.
    assert!(std::env::var_os("PODYARD_VM").is_none(), "nothing may be skipped here: {why}");
    // Straight to the descriptor: the test runner keeps what print macros say of tests that pass.
    _ = std::io::stderr().write_all(format!("SKIP: {why}\n").as_bytes());
}

fn can_loop() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !can {
        skip("needs root and loop devices");
    }
    can
}

fn claim(uid: &str) -> Claim {
    Claim { uid: uid.into(), epoch: 1 }
}

fn image(size_bytes: u64) -> Wish {
    Wish { size_bytes, enforcement: Enforcement::Loop }
}

fn open(volume: &Volume, owner: &str) -> OwnedFd {
    claimed_fd(&volume.source, &claim(owner), None, BindAccess::ReadWrite).expect("mount the volume")
}

/// A path into a detached mount.
fn inside(mount: &OwnedFd, path: &str) -> PathBuf {
    Path::new("/proc/self/fd").join(mount.as_raw_fd().to_string()).join(path)
}

/// Writes until it is refused; the bytes that fitted.
fn fill(path: &Path) -> u64 {
    let mut file = fs::File::options().create(true).append(true).open(path).expect("open a file to fill");
    let piece = vec![0x5a; MIB as usize / 4];
    loop {
        if let Err(error) = file.write_all(&piece).and_then(|()| file.sync_data()) {
            let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            assert!(full, "{error}");
            return file.metadata().expect("its length").len();
        }
    }
}

/// Loop devices bound to a file beneath `dir`.
fn devices(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir("/sys/block").expect("list block devices").flatten();
    let bound = entries.filter_map(|entry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        file.starts_with(dir.to_str()?).then(|| entry.file_name().into_string().unwrap_or_default())
    });
    bound.collect()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn root_an_image_holds_what_was_asked_for_and_grows_while_it_is_mounted() {
    if !can_loop() {
        return;
    }
    let scratch = Scratch::new("grow");
    let volumes = scratch.volumes();
    let volume = volumes.ensure("pvc-1", &claim("a"), image(16 * MIB)).unwrap();
    assert_eq!(volume.backing.enforcement(), "loop");
    let (first, second) = (open(&volume, "a"), open(&volume, "a"));
    assert_eq!(devices(&scratch.0).len(), 1, "one device however many mounts");
    assert_eq!(fs::read_dir(inside(&first, "")).unwrap().count(), 0, "an empty directory: databases insist");

    let fitted = fill(&inside(&first, "full"));
    assert!((15 * MIB..=16 * MIB).contains(&fitted), "{fitted} bytes fitted");
    assert_eq!(fs::metadata(inside(&second, "full")).unwrap().len(), fitted, "both see one filesystem");
    assert_eq!(volumes.grow("pvc-1", "b", 64 * MIB).unwrap_err().kind(), Kind::Conflict);

    volumes.grow("pvc-1", "a", 64 * MIB).unwrap();
    let fitted = fill(&inside(&second, "full"));
    assert!((63 * MIB..=64 * MIB).contains(&fitted), "{fitted} bytes fitted");
    assert_eq!(volumes.grow("pvc-1", "a", 16 * MIB).unwrap().size_bytes, 64 * MIB, "never smaller");

    // The limit is there again for whoever comes next.
    drop((first, second));
    until("the device goes with its last mount", || devices(&scratch.0).is_empty());
    let third = open(&volume, "a");
    assert_eq!(fs::metadata(inside(&third, "full")).unwrap().len(), fitted);
    assert!(fill(&inside(&third, "more")) <= MIB, "still full");
    fs::remove_file(inside(&third, "full")).unwrap();
    fs::remove_file(inside(&third, "more")).unwrap();
    // What a file had is free once the journal says so.
    rustix::fs::syncfs(fs::File::open(inside(&third, "")).unwrap()).unwrap();
    let fitted = fill(&inside(&third, "full"));
    assert!((63 * MIB..=64 * MIB).contains(&fitted), "{fitted} bytes fitted again");
}

#[test]
fn root_beyond_its_room_an_image_grows_only_with_the_right_to() {
    if !can_loop() {
        return;
    }
    let scratch = Scratch::new("beyond");
    let volumes = scratch.volumes();
    let volume = volumes.ensure("pvc-1", &claim("a"), image(MIB)).unwrap();
    let Backing::Loop { usable_blocks } = volume.backing else { panic!("{volume:?}") };
    assert!(usable_blocks * 4096 < 64 * MIB, "{volume:?}");
    let mount = open(&volume, "a");
    let mut kept = fs::File::create(inside(&mount, "kept")).unwrap();
    kept.write_all(b"7").unwrap();
    let may = rustix::thread::capabilities(None).unwrap().effective;
    let may = may.contains(rustix::thread::CapabilitySet::SYS_RESOURCE);
    match volumes.grow("pvc-1", "a", 64 * MIB) {
        Ok(grown) => {
            assert!(may);
            assert_eq!(grown.size_bytes, 64 * MIB);
            let fitted = fill(&inside(&mount, "full"));
            assert!((60 * MIB..=64 * MIB).contains(&fitted), "{fitted} bytes fitted");
            fs::remove_file(inside(&mount, "full")).unwrap();
            // And a second time, while the same file is open.
            volumes.grow("pvc-1", "a", 96 * MIB).unwrap();
            let fitted = fill(&inside(&mount, "full"));
            assert!((92 * MIB..=96 * MIB).contains(&fitted), "{fitted} bytes fitted");
        }
        Err(error) => {
            assert!(!may, "{}", error.chain());
            assert_eq!(error.kind(), Kind::Denied, "{}", error.chain());
            assert!(error.chain().contains("CAP_SYS_RESOURCE"), "{}", error.chain());
            assert_eq!(
                volumes.open("pvc-1", &claim("a")).unwrap().size_bytes,
                MIB,
                "the record is unchanged"
            );
        }
    }
    kept.write_all(b"8").unwrap();
    drop((kept, mount));
    until("the device goes with its last mount", || devices(&scratch.0).is_empty());
    let volume = volumes.open("pvc-1", &claim("a")).unwrap();
    let mount = open(&volume, "a");
    assert_eq!(fs::read_to_string(inside(&mount, "kept")).unwrap(), "78");
    if may {
        let length = fs::metadata(inside(&mount, "full")).unwrap().len();
        assert!((92 * MIB..=96 * MIB).contains(&length), "what was written is there: {length} bytes");
    }
}

#[test]
fn root_swapped_data_is_refused() {
    if !can_loop() {
        return;
    }
    let scratch = Scratch::new("swap");
    let volumes = scratch.volumes();
    let swap = |left: &Path, right: &Path| {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(rustix::fs::CWD, left, rustix::fs::CWD, right, flags).unwrap();
    };
    for (kind, wish) in
        [("loop", image(MIB)), ("none", Wish { size_bytes: MIB, enforcement: Enforcement::None })]
    {
        let one = volumes
            .ensure(&format!("{kind}-1"), &claim("6f3a1c00-1234-4bcd-89ab-012345678901"), wish)
            .unwrap();
        let two = volumes
            .ensure(&format!("{kind}-2"), &claim("6f3a1c00-1234-4bcd-89ab-012345678902"), wish)
            .unwrap();
        let refused = |volume: &Volume, owner: &str| {
            let error = claimed_fd(&volume.source, &claim(owner), None, BindAccess::ReadOnly).unwrap_err();
            assert_eq!(error.kind(), Kind::Conflict, "{kind}: {}", error.chain());
        };
        let owner = one.claim.clone().unwrap().uid;
        refused(&one, "another");
        // Only the data; then the whole volume.
        swap(&one.source, &two.source);
        refused(&one, &owner);
        swap(&one.source, &two.source);
        drop(open(&one, &owner));
        swap(one.source.parent().unwrap(), two.source.parent().unwrap());
        refused(&one, &owner);
        let stale = claimed_fd(&two.source, &Claim { uid: owner, epoch: 0 }, None, BindAccess::ReadOnly);
        assert_eq!(stale.unwrap_err().kind(), Kind::Conflict, "an older epoch");
    }
    until("the devices go", || devices(&scratch.0).is_empty());
}

#[test]
fn root_a_released_image_goes_to_the_next_claim() {
    if !can_loop() {
        return;
    }
    let scratch = Scratch::new("release");
    let volumes = scratch.volumes();
    let volume = volumes.ensure("pvc-1", &claim("a"), image(MIB)).unwrap();
    fs::write(inside(&open(&volume, "a"), "visits"), "7").unwrap();
    let trash = volumes.trash();
    let deletion = Deletion {
        name: "pvc-1".into(),
        deleted_at_secs: 1,
        expires_at_secs: 2,
        about: serde_json::Value::Null,
    };
    until("the device goes", || devices(&scratch.0).is_empty());
    trash.put("a", &deletion).unwrap();
    trash.take_back("pvc-1").unwrap();
    let volume = volumes.ensure("pvc-1", &claim("b"), image(5 * MIB)).unwrap();
    assert_eq!(volume.size_bytes, MIB, "what is there keeps its size");
    let mount = open(&volume, "b");
    assert_eq!(fs::read_to_string(inside(&mount, "visits")).unwrap(), "7");
    trash.put("b", &deletion).unwrap();
    assert_eq!(trash.give_up("pvc-1").unwrap_err().kind(), Kind::Busy, "still mounted");
    drop(mount);
    until("the device goes", || devices(&scratch.0).is_empty());
    trash.give_up("pvc-1").unwrap();
    trash.reap(&mut |_| ()).unwrap();
}

#[test]
fn root_parts_of_an_image_are_mounted_too() {
    if !can_loop() {
        return;
    }
    let scratch = Scratch::new("parts");
    let volumes = scratch.volumes();
    let volume = volumes.ensure("pvc-1", &claim("a"), image(MIB)).unwrap();
    let part = |sub: &str, access| claimed_fd(&volume.source, &claim("a"), Some(Path::new(sub)), access);
    let deep = part("a/b", BindAccess::ReadWrite).unwrap();
    fs::write(inside(&deep, "file"), "7").unwrap();
    let whole = open(&volume, "a");
    assert_eq!(fs::read_to_string(inside(&whole, "a/b/file")).unwrap(), "7");
    std::os::unix::fs::symlink("/etc", inside(&whole, "out")).unwrap();
    fs::create_dir(inside(&whole, "etc")).unwrap();
    // As if the volume were the root.
    assert!(!inside(&part("out", BindAccess::ReadWrite).unwrap(), "passwd").exists());
    let read_only = part("a", BindAccess::ReadOnly).unwrap();
    let error = fs::write(inside(&read_only, "b/file"), "8").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn root_an_image_costs_milliseconds() {
    if !can_loop() {
        return;
    }
    let scratch = Scratch::new("time");
    let volumes = scratch.volumes();
    for gib in [1u64, 64, 1024] {
        let name = format!("pvc-{gib}");
        let begun = Instant::now();
        let volume = volumes.ensure(&name, &claim("a"), image(gib << 30)).unwrap();
        let made = begun.elapsed();
        let mount = open(&volume, "a");
        let mounted = begun.elapsed() - made;
        let again = open(&volume, "a");
        let shared = begun.elapsed() - made - mounted;
        eprintln!("{gib} GiB: made in {made:?}, mounted in {mounted:?}, again in {shared:?}");
        drop((mount, again));
        // An emulated machine on a busy one has its own idea of time.
        let is_emulated = std::env::var_os("PODYARD_VM").is_some();
        assert!(is_emulated || mounted < Duration::from_secs(2), "{gib} GiB: {mounted:?}");
        let Backing::Loop { usable_blocks } = volume.backing else { panic!() };
        assert!(usable_blocks * 4096 >= gib << 30);
    }
}
